//! The main process of a container, and whatever else is in its control group.

use crate::container::STOP_SECONDS;
use crate::pidfd::Process;
use latebind_linux::cgroup::{number_after, path_of};
use nix::sys::signal::Signal;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How long what glue left in its container may take to end before the engine has to see to it.
const REST_LIMIT: Duration = Duration::from_millis(100);

/// The main process of one container.
#[derive(Debug)]
pub struct MainProcess {
    process: Process,
    /// Lists everything in the container's control group.
    members: Option<PathBuf>,
    /// Counts the processes of the container that the kernel killed for memory.
    oom: Option<PathBuf>,
}

impl MainProcess {
    /// Finds the process that the engine named in `pidfile`; `None` if it has ended already, or if the number belongs
    /// to a process outside of `container` by now.
    pub fn find(pidfile: &Path, container: &str) -> Option<Self> {
        let pid = fs::read_to_string(pidfile).ok()?.trim().parse::<i32>().ok()?;
        let process = Process::open(pid).ok()?;
        // Read after the descriptor was had, so that it is about the same process.
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        groups.contains(container).then(|| {
            let members = group(&groups, "pids").map(|g| g.join("cgroup.procs")).filter(|f| f.exists());
            let oom = group(&groups, "memory").and_then(|g| {
                ["memory.events", "memory.oom_control"].map(|f| g.join(f)).into_iter().find(|f| f.exists())
            });
            Self { process, members, oom }
        })
    }

    /// Whether the container's own program has taken the place of the runtime's, with `word` in its command line.
    /// Before that a signal would hit the runtime half-way through a start.
    pub fn is_running(&self, word: &str) -> bool {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid())).unwrap_or_default();
        line.split(|b| *b == 0).any(|w| w == word.as_bytes())
    }

    /// Whether it has a handler for `signal`.
    pub fn handles(&self, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let caught = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
        caught.is_some_and(|caught| caught >> (signal as u32 - 1) & 1 == 1)
    }

    /// Its number, which may be another process's once this one has ended.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.process.signal(signal)
    }

    /// Whether it has ended; waits for at most `limit`.
    pub fn ended_within(&self, limit: Duration) -> io::Result<bool> {
        self.process.ended_within(limit)
    }

    /// Whether the kernel has killed anything in the container for memory; `None` once the group is removed.
    pub fn oom_killed(&self) -> Option<bool> {
        let counted = number_after(&fs::read_to_string(self.oom.as_ref()?).ok()?, "oom_kill")?;
        Some(counted > 0)
    }

    /// Asks it to end, then forces it, as the engine's `stop` does and 0.1 s faster. Says whether nothing is left of
    /// the container's processes: in shared namespaces they do not end with the main process by themselves.
    pub fn stop(&self) -> io::Result<bool> {
        self.process.signal(Signal::SIGTERM)?;
        if !self.process.ended_within(Duration::from_secs(STOP_SECONDS))? {
            self.process.signal(Signal::SIGKILL)?;
            if !self.process.ended_within(Duration::from_secs(STOP_SECONDS))? {
                return Ok(false);
            }
        }
        let end = Instant::now() + REST_LIMIT;
        loop {
            let left = match &self.members {
                Some(list) => {
                    fs::read_to_string(list).map_or_else(|e| e.kind() != io::ErrorKind::NotFound, |m| !m.is_empty())
                }
                None => true,
            };
            if !left || Instant::now() >= end {
                return Ok(!left);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The control group that a `/proc/<pid>/cgroup` names: version 1's for `controller`, else version 2's.
fn group(groups: &str, controller: &str) -> Option<PathBuf> {
    let of = |controller: &str| {
        let path = path_of(groups, controller).filter(|path| *path != "/")?;
        Some(Path::new(CGROUPS).join(controller).join(path.trim_start_matches('/')))
    };
    of(controller).or_else(|| of(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions() {
        let v1 = "9:name=systemd:/p/x\n8:pids:/p/x\n4:cpu,memory:/p/m\n0::/p/u\n";
        assert_eq!(group(v1, "pids"), Some("/sys/fs/cgroup/pids/p/x".into()));
        assert_eq!(group(v1, "memory"), Some("/sys/fs/cgroup/memory/p/m".into()));
        assert_eq!(group("0::/a.slice/b:c\n", "memory"), Some("/sys/fs/cgroup/a.slice/b:c".into()));
        assert_eq!(group("0::/\n", "memory"), None);
    }

    #[test]
    fn kills_for_memory_are_counted() {
        assert_eq!(number_after("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"), Some(2));
        assert_eq!(number_after("low 0\noom 3\noom_kill 1\noom_group_kill 0\n", "oom_kill"), Some(1));
        assert_eq!(number_after("low 0\n", "oom_kill"), None);
    }
}
