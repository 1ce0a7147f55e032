//! An HTCondor pool on our own cluster: central manager and access point in a pod, pilots of the manifests in another.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use latebind_tests::pod::{Ran, Running, Scratch, eventually, unique};
use serde_json::{Value, json};

use crate::access::{CALL_WITHIN, cluster};
use crate::namespace::Namespace;
use crate::node::directory::Directory;
use crate::pilot::{Options, Pilot};

/// How long one step of a job may take, its image's fetching and a wait after a failure included.
pub const STEP_WITHIN: Duration = Duration::from_secs(150);
/// How often a job is looked at; each time is two processes.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The Job that the manifest makes.
pub const JOB: &str = "latebind-htcondor";
/// The user's UID and GID in the pool's pod.
const ALICE: u32 = 5000;

/// A job's states, as HTCondor numbers them.
pub mod status {
    /// Waits for a slot.
    pub const IDLE: i64 = 1;
    /// Has one.
    pub const RUNNING: i64 = 2;
    /// Has ended.
    pub const COMPLETED: i64 = 4;
    /// Is held.
    pub const HELD: i64 = 5;
}

/// A pool with one pilot.
pub struct Pool {
    /// Its pilot; the pool's own pod is in the same namespace.
    pub pilot: Pilot,
    home: Directory,
}

impl Pool {
    /// Makes the pool, then the pilot of `deploy/htcondor-before-1.32` with the changes that `options` gets, and waits
    /// for its slot.
    #[track_caller]
    pub fn start(change: impl FnOnce(Options) -> Options) -> Self {
        Self::of("deploy/htcondor-before-1.32", change)
    }

    /// The same with a pilot of another manifest.
    #[track_caller]
    pub fn of(manifest: &str, change: impl FnOnce(Options) -> Options) -> Self {
        let (namespace, home) = (Namespace::new(), cluster().node().directory());
        // All pods share the node's network, with other pools: a port that is free now.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port();
        namespace.create(&pool_objects(&namespace, &home, port));
        let token = eventually("the pool's token", STEP_WITHIN, || {
            let ran = namespace.call(&["exec", "pool", "--", "cat", "/secret/tokens/pool"]);
            (ran.code == Some(0) && !ran.stdout.is_empty()).then(|| ran.out())
        });
        let scratch = Scratch::new();
        let file = scratch.path().join("pool.token");
        std::fs::write(&file, token).unwrap();
        // As docs/htcondor.md has it.
        let from = format!("--from-file=pool={}", file.display());
        namespace.ask(&["create", "secret", "generic", "latebind-htcondor-token", &from]);
        let options = Options::new()
            .manifest(manifest)
            .setting("CONDOR_HOST", &format!("127.0.0.1:{port}"))
            .setting("LATEBIND_CONDOR_CONFIG", include_str!("../../condor/pilot.conf"));
        let pool = Self { pilot: change(options).start_in(namespace), home };
        pool.slot();
        pool
    }

    /// Waits for the slot of the newest pilot; returns its ad.
    #[track_caller]
    pub fn slot(&self) -> Value {
        self.until("a slot is there", || self.slots().first().cloned())
    }

    /// Ads of all slots that the collector knows.
    #[track_caller]
    pub fn slots(&self) -> Vec<Value> {
        let said = self.exec("root", "condor_status -json").out();
        serde_json::from_str(&said).unwrap_or_default()
    }

    /// Runs a shell script in the pool's pod.
    #[track_caller]
    pub fn exec(&self, user: &str, script: &str) -> Ran {
        let (reuid, regid) = (format!("--reuid={user}"), format!("--regid={user}"));
        let mut command = cluster().kubectl();
        command.args(["--namespace", self.pilot.namespace.name(), "exec", "pool", "--", "setpriv"]);
        command.args([&reuid, &regid, "--clear-groups", "/bin/sh", "-c", script]);
        Running::start(&mut command, Vec::new()).finish(CALL_WITHIN)
    }

    /// The same; what it printed, where it ended well.
    #[track_caller]
    pub fn ask(&self, user: &str, script: &str) -> String {
        let ran = self.exec(user, script);
        assert_eq!(ran.code, Some(0), "{script}: {}{}", ran.out(), ran.err());
        ran.out()
    }

    /// Hands in a job of an image of `images/`, or of another one by its whole name; `lines` are of the submit file.
    #[track_caller]
    pub fn submit(&self, image: &str, lines: &str, script: Option<&str>) -> Job<'_> {
        let name = unique("job");
        let program = script.map(|script| format!("#!/bin/sh\n{script}\n"));
        let image = if image.contains('/') { image.to_owned() } else { cluster().image(image) };
        let executable = script.map_or("", |_| "executable = job.sh\n");
        let text = format!(
            "universe = container\ncontainer_image = docker://{image}\n{executable}{lines}\n\
             should_transfer_files = YES\nwhen_to_transfer_output = ON_EXIT\noutput = out\nerror = err\nlog = log\n\
             request_cpus = 1\nrequest_memory = 100MB\nrequest_disk = 10MB\nleave_in_queue = True\nqueue\n"
        );
        let mut files = vec![("job.sub", text.as_bytes())];
        files.extend(program.iter().map(|program| ("job.sh", program.as_bytes())));
        self.home.put(&name, ALICE, &files);
        let said = self.ask("alice", &format!("cd /home/alice/{name} && condor_submit -terse job.sub"));
        // 7.0 - 7.0
        let id = said.split_whitespace().next().unwrap_or_else(|| panic!("condor_submit said {said:?}")).to_owned();
        Job { pool: self, id, name }
    }

    /// A job that runs this in busybox's shell.
    #[track_caller]
    pub fn shell(&self, script: &str) -> Job<'_> {
        self.submit("busybox", "", Some(script))
    }

    /// Waits for another pod of the Job than the pilot's, and makes its pilot the pool's.
    #[track_caller]
    pub fn follow(&mut self) {
        let selector = format!("job-name={JOB}");
        self.pilot.pod = self.until("another pod of the Job", || {
            let pods = self.pilot.namespace.ask(&["get", "pods", "-l", &selector, "-o", "name"]);
            let mut names = pods.lines().filter_map(|pod| pod.strip_prefix("pod/"));
            names.find(|name| *name != self.pilot.pod).map(str::to_owned)
        });
    }

    /// Waits until the Job that makes the pilots is complete, and looks at how its pod has ended.
    #[track_caller]
    pub fn completes(&self) {
        let ended = self.pilot.ended(Duration::from_secs(180));
        assert_eq!(ended, "Succeeded", "{}", self.logs());
        // The pod waits for these to end with 0: not for a native sidecar.
        let pod = self.pilot.object();
        for container in pod["spec"]["containers"].as_array().unwrap() {
            let name = container["name"].as_str().unwrap();
            let state = self.pilot.status(name)["state"]["terminated"].clone();
            assert_eq!(state["exitCode"], 0, "{name}: {state}");
        }
        let job = eventually("the Job is complete", STEP_WITHIN, || {
            let job = self.pilot.namespace.ask_json(&["get", "job", JOB]);
            let mut conditions = job["status"]["conditions"].as_array()?.clone().into_iter();
            conditions.any(|c| c["type"] == "Complete" && c["status"] == "True").then_some(job)
        });
        assert_eq!((&job["status"]["succeeded"], &job["status"]["failed"]), (&json!(1), &Value::Null), "{job:#}");
    }

    /// Asks until there is an answer.
    #[track_caller]
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let give_up = Instant::now() + STEP_WITHIN;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < give_up, "not within {STEP_WITHIN:?}: {what}\n{}", self.logs());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What HTCondor's daemons in the pilot have written last.
    pub fn logs(&self) -> String {
        let ran = self.pilot.exec("pilot", &["/bin/sh", "-c", "tail -n 40 /pilot/log/*Log*"]);
        format!("{}{}", ran.out(), ran.err())
    }
}

/// The pool's pod, which is of the pilot's image, and the scripts that make a pool of it.
fn pool_objects(namespace: &Namespace, home: &Directory, port: u16) -> [Value; 2] {
    let metadata = |name: &str| json!({"name": name, "namespace": namespace.name()});
    let scripts =
        json!({"token": include_str!("../../condor/pool/token"), "start": include_str!("../../condor/pool/start")});
    let capabilities = json!(["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"]);
    let container = json!({
        "name": "pool", "image": cluster().image("htcondor-pilot"), "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/bash", "-c", "/pool-script/token && exec /pool-script/start"],
        "env": [{"name": "POOL_PORT", "value": port.to_string()}],
        "securityContext": {"capabilities": {"drop": ["ALL"], "add": capabilities}},
        "volumeMounts": [{"name": "scripts", "mountPath": "/pool-script"}, {"name": "home", "mountPath": "/home/alice"}],
    });
    let spec = json!({
        "hostNetwork": cluster().is_own(), "automountServiceAccountToken": false, "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 1, "containers": [container],
        "volumes": [
            {"name": "scripts", "configMap": {"name": "pool", "defaultMode": 0o555}},
            {"name": "home", "hostPath": {"path": home.path(), "type": "Directory"}},
        ],
    });
    [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("pool"), "data": scripts}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata("pool"), "spec": spec}),
    ]
}

/// A job in the pool's queue.
pub struct Job<'p> {
    pool: &'p Pool,
    /// Cluster and number.
    pub id: String,
    name: String,
}

impl Job<'_> {
    /// All that the schedd knows of it.
    #[track_caller]
    pub fn ad(&self) -> Value {
        let said = self.pool.ask("alice", &format!("condor_q -json {}", self.id));
        let ads: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("condor_q said {said:?}: {e}"));
        ads[0].clone()
    }

    /// Waits until its ad is as wanted.
    #[track_caller]
    pub fn until(&self, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let wanted = || Some(self.ad()).filter(&good);
        let give_up = Instant::now() + STEP_WITHIN;
        loop {
            if let Some(ad) = wanted() {
                return ad;
            }
            if Instant::now() > give_up {
                let (ad, log) = (self.ad(), self.text("log"));
                let (state, why) = (&ad["JobStatus"], &ad["HoldReason"]);
                panic!("job {} not {what}: status {state}, {why}; its log:\n{log}\n{}", self.id, self.pool.logs());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for its end, which has to be with this code.
    #[track_caller]
    pub fn ends_with(&self, code: i64) -> Value {
        let over = [status::COMPLETED, status::HELD];
        let ad = self.until("over", |ad| over.iter().any(|s| ad["JobStatus"] == *s));
        let how = (&ad["JobStatus"], &ad["ExitBySignal"], &ad["ExitCode"]);
        let wanted = (&json!(status::COMPLETED), &json!(false), &json!(code));
        assert_eq!(how, wanted, "{}: {}\n{}", ad["HoldReason"], self.text("err"), self.pool.logs());
        ad
    }

    /// Waits until it is held; returns the reason.
    #[track_caller]
    pub fn held_for(&self) -> (Value, String) {
        let ad = self.until("held", |ad| ad["JobStatus"] == status::HELD);
        let reason = ad["HoldReason"].as_str().unwrap_or_default().to_owned();
        (ad, reason)
    }

    /// Waits until it has begun: it has made the file `begun` in its sandbox.
    #[track_caller]
    pub fn has_begun(&self) {
        self.until("running", |ad| ad["JobStatus"] == status::RUNNING);
        let look = "ls /shared/slot/0/data/execute/dir_*/begun 2>/dev/null";
        let pilot = &self.pool.pilot;
        self.pool.until("a file of the job's", || {
            (pilot.exec("pilot", &["/bin/sh", "-c", look]).code == Some(0)).then_some(())
        });
    }

    /// A file of the user's directory, which may not be there.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&self.pool.home.read(&format!("{}/{name}", self.name)).unwrap_or_default()).into_owned()
    }
}
