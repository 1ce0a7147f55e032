//! Which cgroup a process is in, and which files are that cgroup's: read only where a real cgroup file system is
//! mounted.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use crate::processes::Proc;
use crate::sys;
use latebind_contract::mounts::{self, Mount};

/// `CGROUP_SUPER_MAGIC` (version 1) and `CGROUP2_SUPER_MAGIC` of statfs(2).
const MAGICS: [i64; 2] = [0x0027_e0eb, 0x6367_7270];

/// Where cgroups are mounted.
const TOP: &str = "/sys/fs/cgroup";

/// The machine's own cgroup namespace (PROC_CGROUP_INIT_INO of `linux/proc_ns.h`): a process at its top is in no
/// container's cgroup.
const FIRST_NAMESPACE: &str = "cgroup:[4026531835]";

/// What says which cgroup a process is in, and which cgroups are mounted where.
#[derive(Debug, Default)]
pub struct Whereabouts {
    mounts: Vec<Mount>,
    cgroups: String,
    machine: bool,
}

impl Whereabouts {
    /// Those of a process. Empty, so that no cgroup is believed, where they cannot be read.
    pub fn of(proc: &Proc, pid: i32) -> Self {
        let known = || -> io::Result<Self> {
            let namespace = nix::fcntl::readlinkat(proc.as_fd(), format!("{pid}/ns/cgroup").as_str())?;
            let mounts = mounts::parse(&proc.read(&format!("{pid}/mountinfo"))?).unwrap_or_default();
            Ok(Self {
                mounts: mounts.into_iter().filter(|mount| mount.point.starts_with(TOP)).collect(),
                cgroups: proc.cgroup(pid)?,
                machine: namespace == FIRST_NAMESPACE,
            })
        };
        known().unwrap_or_default()
    }

    /// Whether a file of a cgroup file system lies in the process's own cgroup: every mount of that file system below
    /// `/sys/fs/cgroup` shows that cgroup and not one above it, such as the machine's. `controller` is the one of
    /// version 1 that the file belongs to, empty for version 2.
    pub fn owns(&self, device: u64, controller: &str) -> bool {
        let device = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let Some(own) = path_of(&self.cgroups, controller).filter(|path| !self.machine || *path != "/") else {
            return false;
        };
        let mut shown = self.mounts.iter().filter(|mount| mount.device == device).peekable();
        shown.peek().is_some() && shown.all(|mount| mount.root == own)
    }
}

/// The cgroup that a `/proc/<pid>/cgroup` names for a controller of version 1, or for version 2 where that is empty.
pub fn path_of<'a>(cgroups: &'a str, controller: &str) -> Option<&'a str> {
    cgroups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// Whether a file is of a cgroup file system, and so the kernel's word.
pub fn is_cgroup(file: BorrowedFd<'_>) -> bool {
    sys::file_system_type(file).is_ok_and(|magic| MAGICS.contains(&magic))
}

/// A file that is one number.
pub fn whole(text: &str) -> Option<u64> {
    text.trim_ascii().parse().ok()
}

/// The number behind this name, in a file that has a name and a number on each line.
pub fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).and_then(whole)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "oom 7\noom_kill_disable 0\noom_kill 3\n";
        assert_eq!(number_after(text, "oom_kill"), Some(3));
        assert_eq!(number_after(text, "oom_kil"), None);
    }

    #[test]
    fn a_file_that_is_not_the_kernels_is_not_believed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("memory.events");
        std::fs::write(&path, "oom_kill 1\n").unwrap();
        assert!(!is_cgroup(std::fs::File::open(&path).unwrap().as_fd()));
    }

    #[test]
    fn only_a_mount_that_shows_the_own_cgroup_is_believed() {
        let mounts = "32 31 0:29 /pod/a /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                      33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                      34 31 0:31 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n";
        let cgroups = "4:memory:/pod/a\n2:cpu,cpuacct:/pod/a\n0::/\n";
        let of = |mounts: &str, cgroups: &str, machine: bool| Whereabouts {
            mounts: mounts::parse(mounts).unwrap(),
            cgroups: cgroups.into(),
            machine,
        };
        let device = |minor| nix::sys::stat::makedev(0, minor);
        let one = of(mounts, cgroups, false);
        assert!(one.owns(device(29), "memory"), "its own cgroup is mounted there");
        assert!(!one.owns(device(30), "cpuacct"), "the machine's cgroup is mounted there");
        assert!(one.owns(device(31), ""), "a namespace of its own begins at its cgroup");
        assert!(!of(mounts, cgroups, true).owns(device(31), ""), "the top of the machine is nobody's own");
        assert!(!one.owns(device(28), "memory"), "a file system that is not mounted there");
        assert!(!one.owns(device(29), "pids"), "a controller that it is not in");
        let twice = format!("{mounts}35 31 0:29 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
        assert!(!of(&twice, cgroups, false).owns(device(29), "memory"), "two mounts, one of them of the machine");
        assert!(!Whereabouts::default().owns(device(31), ""));
    }
}
