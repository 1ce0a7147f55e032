//! The cluster's one node: its processes and files, reached by one command ([`shell`]), and the parts of our own
//! cluster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use latebind_tests::pod::{Ran, Running, Scratch, Signal, eventually, program, unique};

pub mod directory;
pub mod shell;

use shell::Shell;

/// How long a part of the cluster may take to come back.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// What each process of our own cluster has in its environment; tests/cluster/settings.sh has the same.
const MARK: &str = "LATEBIND_CLUSTER_PROCESS";
/// The last word of a control group's path, for a container: as cgroupfs, containerd and CRI-O have it. Another
/// process of CRI-O's, `crio-conmon-ID.scope`, is not in the container.
const OF_CONTAINER: &str = "(/|:cri-containerd:|cri-containerd-|crio-)$1(\\.scope)?$";

/// The node.
pub struct Node {
    shell: Shell,
    /// Where our own cluster keeps everything.
    own: Option<PathBuf>,
}

impl Node {
    /// The node of our own cluster, whose state is here.
    pub(crate) fn own(state: PathBuf) -> Self {
        Self { shell: Shell::from_environment().unwrap_or_else(Shell::here), own: Some(state) }
    }

    /// The node of another cluster; `None` where there is no way to it.
    pub(crate) fn of_another() -> Option<Self> {
        Some(Self { shell: Shell::from_environment()?, own: None })
    }

    /// A root shell on it.
    pub fn shell(&self) -> &Shell {
        &self.shell
    }

    /// Whether it is this machine, so that this machine's loopback interface is the node's.
    pub fn is_this_machine(&self) -> bool {
        let look = "cat /proc/sys/kernel/random/boot_id; readlink /proc/self/ns/net";
        self.shell.is_here() || self.shell.ask(look, &[]) == Shell::here().ask(look, &[])
    }

    /// Whether this machine's `/tmp` is the node's.
    pub fn has_our_files(&self) -> bool {
        let scratch = Scratch::new();
        let path = scratch.path().display().to_string();
        self.shell.is_here() || self.shell.call("test -d \"$1\"", &[&path], Vec::new()).code == Some(0)
    }

    fn state(&self) -> &Path {
        self.own.as_deref().expect("this cluster is not our own: needs(\"...; parts\") is missing")
    }

    /// Process ID of a part of the cluster: `kubelet`, `kube-apiserver`, `containerd`, `registry`, ... Of our own
    /// cluster only.
    ///
    /// # Panics
    /// If it does not run.
    pub fn part(&self, name: &str) -> i32 {
        self.find(name)
            .unwrap_or_else(|| panic!("{name} of the cluster does not run: see {}/logs", self.state().display()))
    }

    fn find(&self, name: &str) -> Option<i32> {
        let mark = format!("{MARK}={}:{name}", self.state().display());
        let script = "pid=$(cat \"$1\") && grep -qzxF \"$2\" \"/proc/$pid/environ\" && echo \"$pid\"";
        let file = self.state().join("run").join(format!("{name}.pid"));
        let ran = self.shell.call(script, &[&file.to_string_lossy(), &mark], Vec::new());
        ran.out().trim().parse().ok()
    }

    /// What a part of the cluster has logged; empty before its first line. Of our own cluster only.
    pub fn log(&self, name: &str) -> String {
        let file = self.state().join("logs").join(format!("{name}.log"));
        self.shell.call("cat \"$1\"", &[&file.to_string_lossy()], Vec::new()).out()
    }

    /// Kills a part of the cluster, which is gone until the outage ends. The test needs the cluster for itself
    /// ([`Namespace::alone`](crate::namespace::Namespace::alone)).
    pub fn stop(&self, name: &str) -> Outage<'_> {
        self.kill(&[self.part(name)], Signal::SIGKILL);
        eventually(&format!("{name} is gone"), Duration::from_secs(10), || self.find(name).is_none().then_some(()));
        Outage { node: self, frozen: None }
    }

    /// The same for a part that hangs: it is there and does not answer.
    pub fn freeze(&self, name: &str) -> Outage<'_> {
        let pid = self.part(name);
        self.kill(&[pid], Signal::SIGSTOP);
        Outage { node: self, frozen: Some(pid) }
    }

    /// Kills a part of the cluster, starts it again, and waits until the node is ready.
    pub fn restart(&self, name: &str) {
        self.stop(name).end();
    }

    fn bring_back(&self) -> Ran {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/up.sh");
        let words = "LATEBIND_CLUSTER=$1 LATEBIND_CLUSTER_NUMBER=$2 exec \"$3\"";
        let number = std::env::var("LATEBIND_CLUSTER_NUMBER").unwrap_or_default();
        let state = self.state().to_string_lossy();
        self.shell.call_within(words, &[&state, &number, script], Vec::new(), BACK_WITHIN)
    }

    /// Sends a signal to processes of the node, behind the kubelet's back. One that has ended is no fault.
    pub fn kill(&self, pids: &[i32], signal: Signal) {
        let mut words = vec![(signal as i32).to_string()];
        words.extend(pids.iter().map(ToString::to_string));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // One after the other: kill(1) of some systems stops at the first that is gone.
        self.shell.ask("s=$1; shift; for pid; do kill -\"$s\" \"$pid\" 2>/dev/null; done; true", &words);
    }

    /// All processes of a container, as the node numbers them; its main process first, as the oldest.
    pub fn processes(&self, container: &str) -> Vec<i32> {
        let script = format!(
            "for f in $(grep -lsE \"{OF_CONTAINER}\" /proc/[0-9]*/cgroup); do d=${{f%/cgroup}}; \
             s=$(cat \"$d/stat\" 2>/dev/null) && echo \"${{d#/proc/}} ${{s##*) }}\"; done; true"
        );
        let said = self.shell.ask(&script, &[container]);
        let mut found: Vec<(u64, i32)> = said.lines().filter_map(started).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, pid)| pid).collect()
    }

    /// Process ID, on the node, of a container's main process.
    ///
    /// # Panics
    /// If the container does not run.
    #[track_caller]
    pub fn main_process(&self, container: &str) -> i32 {
        let first = self.processes(container).first().copied();
        first.unwrap_or_else(|| panic!("container {container} does not run"))
    }

    /// Sends a signal to all processes of a container, as the engine does when it ends one.
    pub fn kill_all(&self, container: &str, signal: Signal) {
        self.kill(&self.processes(container), signal);
    }

    /// Whether a process is there and can still do anything.
    pub fn lives(&self, pid: i32) -> bool {
        let script = "read -r state <\"/proc/$1/stat\" 2>/dev/null && echo \"${state##*) }\"";
        let said = self.shell.call(script, &[&pid.to_string()], Vec::new()).out();
        !matches!(said.chars().next(), None | Some('Z' | 'X'))
    }

    /// The process that a pod, by its UID, has under this ID in its PID namespace. The UID has other separators where
    /// systemd makes the control groups.
    pub fn process_of_pod(&self, uid: &str, inner: i64) -> Option<i32> {
        let script = "for f in $(grep -lsE \"^NSpid:.*[[:space:]]$1\\$\" /proc/[0-9]*/status); do d=${f%/status}; \
                      grep -qsE \"$2\" \"$d/cgroup\" && echo \"${d#/proc/}\"; done; true";
        let said = self.shell.ask(script, &[&inner.to_string(), &uid.replace('-', "[-_]")]);
        said.lines().next()?.parse().ok()
    }

    /// The engine's own client: ctr of containerd, by whatever name the node has it.
    fn ctr(&self, arguments: &[&str], input: Vec<u8>) -> Ran {
        if let Some(state) = &self.own {
            let script = "state=$1; shift; exec \"$state/debian/usr/bin/ctr\" -a \"$state/run/containerd.sock\" \
                          -n k8s.io \"$@\"";
            return self.shell.call(script, &[&[&*state.to_string_lossy()], arguments].concat(), input);
        }
        let script = "if command -v ctr >/dev/null; then exec ctr -n k8s.io \"$@\"; else exec k3s ctr \"$@\"; fi";
        self.shell.call(script, arguments, input)
    }

    /// Gives the node an image of the probe, /program, as a file: no registry has it, and it has no digest.
    #[track_caller]
    pub fn import(&self) -> Imported<'_> {
        let (scratch, name) = (Scratch::new(), format!("localhost/{}:1", unique("imported")));
        let archive = scratch.path().join("image.tar");
        let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("one-program-image.sh"));
        script.arg(&archive).arg(&name).arg(program("probe")).arg("/program");
        let made = Running::start(&mut script, Vec::new()).finish(Duration::from_secs(20));
        assert_eq!(made.code, Some(0), "{name}: {}", made.err());
        let ran = self.ctr(&["images", "import", "-"], std::fs::read(&archive).unwrap());
        assert_eq!(ran.code, Some(0), "{name}: {}", ran.err());
        Imported { node: self, name }
    }

    /// Where the kubelet keeps the pods' volumes, on the node. Those of our own cluster are mounted in its mount
    /// namespace.
    pub fn pods(&self) -> PathBuf {
        let Some(state) = &self.own else {
            let set = std::env::var_os("LATEBIND_KUBELET_DIR").filter(|v| !v.is_empty());
            return set.map_or_else(|| "/var/lib/kubelet".into(), PathBuf::from).join("pods");
        };
        let kubelet = state.join("run/kubelet/pods");
        let root = PathBuf::from(format!("/proc/{}/root", self.part("namespace")));
        root.join(kubelet.strip_prefix("/").unwrap_or(&kubelet))
    }
}

/// When a process was started, in clock ticks, and its ID: of a line `PID STATE PPID ...` (proc_pid_stat(5), from the
/// third field on). `None` of a zombie.
fn started(line: &str) -> Option<(u64, i32)> {
    let mut words = line.split(' ');
    let (pid, state) = (words.next()?.parse().ok()?, words.next()?);
    // Field 22, of which 1, 2 and 3 are taken.
    let ticks = words.nth(18)?.parse().ok()?;
    (state != "Z").then_some((ticks, pid))
}

/// An image that the node has until this value goes.
pub struct Imported<'n> {
    node: &'n Node,
    /// Its name.
    pub name: String,
}

impl Drop for Imported<'_> {
    fn drop(&mut self) {
        let remove = || self.node.ctr(&["images", "rm", &self.name], Vec::new());
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(remove));
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
            self.node.kill(&[pid], Signal::SIGCONT);
        }
        let ran = self.node.bring_back();
        // A second panic would hide what the test has found.
        if !std::thread::panicking() {
            assert_eq!(ran.code, Some(0), "the cluster did not come back: {}{}", ran.out(), ran.err());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_process_is_the_main_one() {
        let line = |pid: i32, state: &str, ticks: u64| {
            format!("{pid} {state} 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 {ticks} 0 0")
        };
        assert_eq!(started(&line(7, "S", 1234)), Some((1234, 7)));
        assert_eq!(started(&line(7, "Z", 1234)), None);
        assert_eq!(started("7 S"), None);
        let own = std::process::id();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let (ticks, pid) = started(&format!("{own} {}", stat.rsplit_once(") ").unwrap().1)).unwrap();
        assert_eq!((pid.unsigned_abs(), ticks > 0), (own, true));
    }

    #[test]
    fn a_containers_control_group_is_told_from_its_monitors() {
        let shell = Shell::here();
        let id = "0123456789abcdef";
        let is_inside = |path: &str| {
            let script = format!("printf '%s\\n' \"$2\" | grep -qE \"{OF_CONTAINER}\"");
            shell.call(&script, &[id, path], Vec::new()).code == Some(0)
        };
        for path in [
            format!("4:memory:/latebind/burstable/pod1/{id}"),
            format!("0::/kubelet.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            format!("0::/kubepods.slice/crio-{id}.scope"),
            format!("0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{id}"),
        ] {
            assert!(is_inside(&path), "{path}");
        }
        for path in
            [format!("0::/kubepods.slice/crio-conmon-{id}.scope"), format!("0::/pod1/{id}0"), format!("0::/{id}/init")]
        {
            assert!(!is_inside(&path), "{path}");
        }
    }
}
