//! The node of our own cluster: its processes, and those of containers, seen from this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use latebind_tests::pod::{Ran, Running, Scratch, eventually, kill, program, unique};

const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
/// How long a part of the cluster may take to come back.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// What each process of our own cluster has in its environment; tests/cluster/settings.sh has the same.
const MARK: &str = "LATEBIND_CLUSTER_PROCESS";

/// The node.
pub struct Node {
    state: PathBuf,
}

impl Node {
    pub(crate) fn new(state: PathBuf) -> Self {
        Self { state }
    }

    /// Process ID of a part of the cluster: `kubelet`, `kube-apiserver`, `containerd`, `registry`, ...
    ///
    /// # Panics
    /// If it does not run.
    pub fn part(&self, name: &str) -> i32 {
        self.find(name)
            .unwrap_or_else(|| panic!("{name} of the cluster does not run: see {}", self.log(name).display()))
    }

    fn find(&self, name: &str) -> Option<i32> {
        let pid: i32 =
            fs::read_to_string(self.state.join("run").join(format!("{name}.pid"))).ok()?.trim().parse().ok()?;
        let wanted = format!("{MARK}={}:{name}", self.state.display());
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        environ.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes()).then_some(pid)
    }

    /// Where a part of the cluster logs to.
    pub fn log(&self, name: &str) -> PathBuf {
        self.state.join("logs").join(format!("{name}.log"))
    }

    /// Kills a part of the cluster, which is gone until the outage ends. The test needs the cluster for itself
    /// ([`Namespace::alone`](crate::namespace::Namespace::alone)).
    pub fn stop(&self, name: &str) -> Outage<'_> {
        kill(self.part(name), SIGKILL);
        eventually(&format!("{name} is gone"), Duration::from_secs(10), || self.find(name).is_none().then_some(()));
        Outage { node: self, frozen: None }
    }

    /// The same for a part that hangs: it is there and does not answer.
    pub fn freeze(&self, name: &str) -> Outage<'_> {
        let pid = self.part(name);
        kill(pid, SIGSTOP);
        Outage { node: self, frozen: Some(pid) }
    }

    /// Kills a part of the cluster, starts it again, and waits until the node is ready.
    pub fn restart(&self, name: &str) {
        self.stop(name).end();
    }

    fn bring_back(&self) -> Ran {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("up.sh");
        Running::start(Command::new(script).env("LATEBIND_CLUSTER", &self.state), Vec::new()).finish(BACK_WITHIN)
    }

    /// Process ID, on this machine, of a container's main process.
    ///
    /// # Panics
    /// If the container does not run.
    #[track_caller]
    pub fn main_process(&self, container: &str) -> i32 {
        let ran = self.ctr(&["tasks", "list"]);
        // TASK PID STATUS
        let listed = ran.out();
        let line = listed.lines().find(|line| line.starts_with(container));
        let pid = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        let pid = pid.unwrap_or_else(|| panic!("container {container} does not run:\n{listed}{}", ran.err()));
        assert!(in_container(pid, container), "process {pid} is not in container {container}");
        pid
    }

    /// The engine's own client.
    fn ctr(&self, arguments: &[&str]) -> Ran {
        let mut ctr = Command::new(self.state.join("debian/usr/bin/ctr"));
        ctr.arg("--address").arg(self.state.join("run/containerd.sock")).args(["--namespace", "k8s.io"]);
        Running::start(ctr.args(arguments), Vec::new()).finish(Duration::from_secs(60))
    }

    /// Gives the node an image of the probe, /program, as a file: no registry has it, and it has no digest.
    #[track_caller]
    pub fn import(&self) -> Imported<'_> {
        let (scratch, name) = (Scratch::new(), format!("localhost/{}:1", unique("imported")));
        let archive = scratch.path().join("image.tar");
        let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("one-program-image.sh"));
        script.arg(&archive).arg(&name).arg(program("probe")).arg("/program");
        for ran in [
            Running::start(&mut script, Vec::new()).finish(Duration::from_secs(20)),
            self.ctr(&["images", "import", &archive.to_string_lossy()]),
        ] {
            assert_eq!(ran.code, Some(0), "{name}: {}", ran.err());
        }
        Imported { node: self, name }
    }

    /// All processes of a container, on this machine.
    pub fn processes(&self, container: &str) -> Vec<i32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
        pids.filter(|pid| in_container(*pid, container)).collect()
    }

    /// Sends a signal to a container's main process, behind the kubelet's back.
    #[track_caller]
    pub fn kill(&self, container: &str, signal: i32) {
        kill(self.main_process(container), signal);
    }

    /// Sends a signal to all processes of a container, as the engine does when it ends one.
    pub fn kill_all(&self, container: &str, signal: i32) {
        self.processes(container).into_iter().for_each(|pid| kill(pid, signal));
    }

    /// Where the kubelet keeps the pods' volumes, seen from this machine: they are mounted in the cluster's mount
    /// namespace.
    pub fn pods(&self) -> PathBuf {
        let kubelet = self.state.join("run/kubelet/pods");
        self.root_of(self.part("namespace")).join(kubelet.strip_prefix("/").unwrap_or(&kubelet))
    }

    /// Changes an object by one request, which takes a few milliseconds; kubectl takes a hundred.
    ///
    /// # Panics
    /// With what the server said, if it refused.
    #[track_caller]
    pub fn patch(&self, path: &str, patch: &serde_json::Value) {
        let pki = |name: &str| self.state.join("pki").join(name);
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "20", "--noproxy", "*"]);
        curl.arg("--cacert").arg(pki("ca.crt")).arg("--cert").arg(pki("admin.crt")).arg("--key").arg(pki("admin.key"));
        curl.args(["-X", "PATCH", "-H", "Content-Type: application/strategic-merge-patch+json", "-d"]);
        curl.arg(patch.to_string()).arg(format!("https://127.0.0.1:{}{path}", crate::cluster().api_port()));
        let ran = Running::start(&mut curl, Vec::new()).finish(Duration::from_secs(30));
        assert_eq!(ran.code, Some(0), "PATCH {path}: {}{}", ran.out(), ran.err());
    }

    /// Where a process's files are, on this machine.
    pub fn root_of(&self, pid: i32) -> PathBuf {
        PathBuf::from(format!("/proc/{pid}/root"))
    }
}

fn in_container(pid: i32, container: &str) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().any(|line| line.rsplit('/').next() == Some(container))
}

/// An image that the node has until this value goes.
pub struct Imported<'n> {
    node: &'n Node,
    /// Its name.
    pub name: String,
}

impl Drop for Imported<'_> {
    fn drop(&mut self) {
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.node.ctr(&["images", "rm", &self.name])));
    }
}

/// A part of the cluster is missing, until this value goes.
pub struct Outage<'n> {
    node: &'n Node,
    frozen: Option<i32>,
}

impl Outage<'_> {
    /// Ends it, and waits until the node is ready.
    pub fn end(self) {}
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        if let Some(pid) = self.frozen {
            kill(pid, SIGCONT);
        }
        let ran = self.node.bring_back();
        // A second panic would hide what the test has found.
        if !std::thread::panicking() {
            assert_eq!(ran.code, Some(0), "the cluster did not come back: {}{}", ran.out(), ran.err());
        }
    }
}
