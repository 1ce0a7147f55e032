//! A pilot of one test: a pod made of the manifests as they are shipped, in a namespace of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use latebind_tests::pod::{Outcome, Ran, Running, Signal, look_into};
use serde_json::{Value, json};
use watcher::job::Report;

use crate::access::cluster;
use crate::namespace::Namespace;
use crate::node::directory::Directory;
pub use crate::options::Options;

/// How long a pod may take until its pilot serves.
pub const START_WITHIN: Duration = Duration::from_secs(90);
/// How long a short job may take, its image's fetching included.
pub const JOB_WITHIN: Duration = Duration::from_secs(120);
/// How often the API server is asked; each time is a process.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// How long a pod whose containers run may take until its kubelet is reminded of it.
const NUDGE_AFTER: Duration = Duration::from_secs(2);

/// A pilot's pod.
pub struct Pilot {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub pod: String,
    pub(crate) home: Option<Directory>,
}

impl Pilot {
    /// [`Options::new`], started.
    #[track_caller]
    pub fn start() -> Self {
        Options::new().start()
    }

    /// The pod as it is now.
    ///
    /// # Panics
    /// If it is not there.
    #[track_caller]
    pub fn object(&self) -> Value {
        self.namespace.pod(&self.pod).unwrap_or_else(|| panic!("the pod {} is gone", self.pod))
    }

    /// Asks for the pod until `look` finds something in it.
    #[track_caller]
    pub fn until<T>(&self, what: &str, limit: Duration, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        let give_up = Instant::now() + limit;
        loop {
            let pod = self.namespace.pod(&self.pod);
            if let Some(found) = pod.as_ref().and_then(&mut look) {
                return found;
            }
            if Instant::now() > give_up {
                let status = pod.map(|p| p["status"].clone());
                panic!("not within {limit:?}: {what}; the pod's status: {:#}", status.unwrap_or_default());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until all containers run and are ready.
    #[track_caller]
    pub fn ready(&self) {
        let mut nudged = Instant::now();
        self.until("the pod is ready", START_WITHIN, |pod| {
            let mut conditions = pod["status"]["conditions"].as_array()?.iter();
            if conditions.any(|c| c["type"] == "Ready" && c["status"] == "True") {
                return Some(());
            }
            let containers = pod["status"]["containerStatuses"].as_array()?;
            if containers.iter().all(|c| c["state"]["running"].is_object()) && nudged.elapsed() > NUDGE_AFTER {
                nudged = Instant::now();
                self.namespace.remind(&self.pod);
            }
            None
        });
    }

    /// Waits until the pod has ended, and returns its phase: `Succeeded` or `Failed`.
    #[track_caller]
    pub fn ended(&self, limit: Duration) -> String {
        self.until("the pod has ended", limit, |pod| {
            let phase = pod["status"]["phase"].as_str()?;
            matches!(phase, "Succeeded" | "Failed").then(|| phase.to_owned())
        })
    }

    /// What the kubelet says of a container now.
    #[track_caller]
    pub fn status(&self, container: &str) -> Value {
        status_of(&self.object(), container).unwrap_or_else(|| panic!("no status of the container {container} yet"))
    }

    /// ID of the container that runs, or ran last, as the engine has it.
    #[track_caller]
    pub fn container_id(&self, container: &str) -> String {
        container_id(&self.status(container)).unwrap_or_else(|| panic!("{container} has no container yet"))
    }

    /// Waits until another container than `before` runs in its place; returns its ID.
    #[track_caller]
    pub fn replaced(&self, container: &str, before: &str, limit: Duration) -> String {
        self.until(&format!("another container {container} than {before}"), limit, |pod| {
            let status = status_of(pod, container)?;
            let id = container_id(&status).filter(|id| id != before)?;
            status["state"]["running"].is_object().then_some(id)
        })
    }

    /// Waits until a container waits for one of these reasons; returns reason and message.
    #[track_caller]
    pub fn waiting(&self, container: &str, reasons: &[&str], limit: Duration) -> (String, String) {
        self.until(&format!("{container} waits for one of {reasons:?}"), limit, |pod| {
            let state = status_of(pod, container)?["state"]["waiting"].clone();
            let reason = state["reason"].as_str().filter(|r| reasons.contains(r))?;
            Some((reason.to_owned(), state["message"].as_str().unwrap_or_default().to_owned()))
        })
    }

    /// The kubectl command that runs a program in a container.
    fn exec_command(&self, container: &str, options: &[&str], argv: &[&str]) -> Command {
        let mut command = cluster().kubectl();
        command.args(["--namespace", self.namespace.name(), "exec", &self.pod, "-c", container]);
        command.args(options).arg("--").args(argv);
        command
    }

    /// Runs a program in a container. kubectl adds a line to standard error where its code is not 0.
    #[track_caller]
    pub fn exec(&self, container: &str, argv: &[&str]) -> Ran {
        Running::start(&mut self.exec_command(container, &[], argv), Vec::new()).finish(JOB_WITHIN)
    }

    /// Runs a shell script in the pilot container, and returns what it wrote.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        let ran = self.exec("pilot", &["/bin/sh", "-c", script]);
        assert_eq!(ran.code, Some(0), "{script}: {}", ran.err());
        ran.out()
    }

    /// One job: `watcher run` with these arguments, to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.spawn(arguments).finish(JOB_WITHIN)
    }

    /// The same with standard input: `run_with_input(&["-i", image, "--", "cat"], ...)`.
    #[track_caller]
    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let argv = [&["watcher", "run"], arguments].concat();
        Running::start(&mut self.exec_command("pilot", &["-i"], &argv), input.to_vec()).finish(JOB_WITHIN)
    }

    /// Starts `watcher run` with these arguments; see [`Running`] for its end.
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        let argv = [&["watcher", "run"], arguments].concat();
        Running::start(&mut self.exec_command("pilot", &[], &argv), Vec::new())
    }

    /// A container's log.
    #[track_caller]
    pub fn log(&self, container: &str) -> String {
        self.namespace.ask(&["logs", &self.pod, "-c", container])
    }

    /// What glue says of itself in a slot: its `status.json`; null where there is none.
    #[track_caller]
    pub fn glue(&self, slot: u32) -> Value {
        let ran = self.exec("pilot", &["cat", &format!("/shared/slot/{slot}/ctl/status.json")]);
        serde_json::from_str(&ran.out()).unwrap_or_default()
    }

    /// Patches the image of a container, as the watcher does; of a payload that is a native sidecar as well.
    #[track_caller]
    pub fn patch_image(&self, container: &str, image: &str) {
        let all = self.object();
        let listed =
            |list: &str| all["spec"][list].as_array().is_some_and(|l| l.iter().any(|c| c["name"] == container));
        let list = if listed("containers") { "containers" } else { "initContainers" };
        let patch = json!({"spec": {list: [{"name": container, "image": image}]}});
        self.namespace.ask(&["patch", "pod", &self.pod, "--type=strategic", "-p", &patch.to_string()]);
    }

    /// Process ID, on the node, of a container's main process.
    #[track_caller]
    pub fn main_process(&self, container: &str) -> i32 {
        cluster().node().main_process(&self.container_id(container))
    }

    /// Kills a container's main process, behind the kubelet's back.
    #[track_caller]
    pub fn kill_main_process(&self, container: &str) {
        cluster().node().kill(&[self.main_process(container)], Signal::SIGKILL);
    }

    fn home(&self) -> &Directory {
        self.home.as_ref().expect("Options::spool was not called")
    }

    /// The spool as it is now, to be read on this machine: a copy where that is not the node.
    ///
    /// # Panics
    /// If the pilot was started without one.
    #[track_caller]
    pub fn spool(&self) -> PathBuf {
        self.home().now().join("spool")
    }

    /// The spool itself, for what writes into it. Only where the node has this machine's `/tmp`.
    #[track_caller]
    pub fn spool_here(&self) -> PathBuf {
        assert!(cluster().node().has_our_files(), "the spool is on another machine: needs(\"...; files\") is missing");
        self.home().path().join("spool")
    }

    /// Puts a job into the spool; [`shell`] and [`probe`] make some.
    #[track_caller]
    pub fn put(&self, name: &str, job: &Value) {
        self.put_with(name, job, &[]);
    }

    /// The same with files beside job.json.
    #[track_caller]
    pub fn put_with(&self, name: &str, job: &Value, files: &[(&str, &[u8])]) {
        let job = job.to_string();
        let files = [&[("job.json", job.as_bytes())], files].concat();
        self.home().put(&format!("spool/new/{name}"), 0, &files);
    }

    /// Waits for a job's result.
    #[track_caller]
    pub fn result(&self, name: &str) -> Outcome {
        latebind_tests::pod::eventually(&format!("a result of {name}"), JOB_WITHIN, || look_into(&self.spool(), name))
    }

    /// Puts a job and waits for its result.
    #[track_caller]
    pub fn job(&self, name: &str, job: &Value) -> Outcome {
        self.put(name, job);
        self.result(name)
    }
}

impl Pilot {
    /// The report of an attempt at a job of the spool that another one is to follow.
    #[track_caller]
    pub fn attempt(&self, name: &str, number: u32) -> Report {
        self.attempt_within(name, number, JOB_WITHIN)
    }

    /// The same with another limit.
    #[track_caller]
    pub fn attempt_within(&self, name: &str, number: u32, limit: Duration) -> Report {
        latebind_tests::pod::eventually(&format!("attempt {number} of {name}"), limit, || {
            let spool = self.spool();
            let claimed = std::fs::read_dir(spool.join("claimed")).into_iter().flatten().flatten().map(|e| e.path());
            let mut places = ["retry", "done", "held"].into_iter().map(|place| spool.join(place)).chain(claimed);
            let file = format!("{name}/result.{number}/report.json");
            let bytes = places.find_map(|place| std::fs::read(place.join(&file)).ok())?;
            Some(serde_json::from_slice(&bytes).unwrap())
        })
    }
}

/// A job that runs this in Debian's shell.
pub fn debian(script: &str) -> Value {
    json!({"image": cluster().image("debian"), "argv": ["/bin/sh", "-c", script]})
}

/// A job that runs this in busybox's shell.
pub fn shell(script: &str) -> Value {
    json!({"image": cluster().image("busybox"), "argv": ["/bin/sh", "-c", script]})
}

/// A job that runs the probe, in an image without a shell.
pub fn probe(words: &[&str]) -> Value {
    let argv = [&["/probe"], words].concat();
    json!({"image": cluster().image("noshell"), "argv": argv})
}

/// What the kubelet says of a container in a pod, wherever it is listed.
pub fn status_of(pod: &Value, container: &str) -> Option<Value> {
    let lists = ["initContainerStatuses", "containerStatuses"];
    let all = lists.iter().filter_map(|list| pod["status"][list].as_array()).flatten();
    all.into_iter().find(|s| s["name"] == container).cloned()
}

/// The engine's ID in a container's status; `None` before there is one.
pub fn container_id(status: &Value) -> Option<String> {
    let id = status["containerID"].as_str()?;
    Some(id.split_once("://").map_or(id, |(_, id)| id).to_owned()).filter(|id| !id.is_empty())
}
