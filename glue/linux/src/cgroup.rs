//! What the container's own cgroup has counted, read only where a real cgroup file system is mounted.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::OFlag;

use crate::sys;
use crate::volume::read_whole;
use latebind_contract::record::CgroupUse;

/// `CGROUP_SUPER_MAGIC` (version 1) and `CGROUP2_SUPER_MAGIC` of statfs(2).
const MAGICS: [i64; 2] = [0x0027_e0eb, 0x6367_7270];

/// Counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    cpu_s: Option<f64>,
    oom_kills: Option<u64>,
    memory_peak: Option<u64>,
}

/// Reads the counters; what is not there, or not the kernel's, is left out.
pub fn read() -> Counters {
    let cpu_v2 = || number_after(&text("/sys/fs/cgroup/cpu.stat")?, "usage_usec").map(|us| us as f64 / 1e6);
    let cpu_v1 = || whole(&text("/sys/fs/cgroup/cpuacct/cpuacct.usage")?).map(|ns| ns as f64 / 1e9);
    let oom_v2 = || number_after(&text("/sys/fs/cgroup/memory.events")?, "oom_kill");
    let oom_v1 = || number_after(&text("/sys/fs/cgroup/memory/memory.oom_control")?, "oom_kill");
    let peak_v2 = || whole(&text("/sys/fs/cgroup/memory.peak")?);
    let peak_v1 = || whole(&text("/sys/fs/cgroup/memory/memory.max_usage_in_bytes")?);
    Counters {
        cpu_s: cpu_v2().or_else(cpu_v1),
        oom_kills: oom_v2().or_else(oom_v1),
        memory_peak: peak_v2().or_else(peak_v1),
    }
}

impl Counters {
    /// What came since `before`; `None` where nothing is known at all.
    pub fn since(&self, before: &Self) -> Option<CgroupUse> {
        let known = self.cpu_s.is_some() || self.oom_kills.is_some() || self.memory_peak.is_some();
        known.then(|| CgroupUse {
            cpu_s: self.cpu_s.zip(before.cpu_s).map(|(now, then)| (now - then).max(0.0)),
            oom_kills: self.oom_kills.zip(before.oom_kills).map(|(now, then)| now.saturating_sub(then)),
            memory_peak_since_container_start: self.memory_peak,
        })
    }
}

fn text(path: &str) -> Option<String> {
    let path = std::ffi::CString::new(path).ok()?;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = sys::openat(nix::fcntl::AT_FDCWD, &path, flags.bits(), 0).ok()?;
    if !is_cgroup(fd.as_fd()) {
        return None;
    }
    String::from_utf8(read_whole(fd.as_fd(), 16_384).ok()?).ok()
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
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "oom 7\noom_kill_disable 0\noom_kill 3\n";
        assert_eq!(number_after(text, "oom_kill"), Some(3));
        assert_eq!(number_after(text, "oom_kil"), None);
    }

    #[test]
    fn a_file_that_is_not_the_kernels_is_not_read() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("memory.events");
        std::fs::write(&path, "oom_kill 1\n").unwrap();
        assert_eq!(text(&path.display().to_string()), None);
    }

    #[test]
    fn differences_never_go_below_zero() {
        let before = Counters { cpu_s: Some(2.0), oom_kills: Some(4), memory_peak: Some(9) };
        let after = Counters { cpu_s: Some(1.0), oom_kills: Some(5), memory_peak: None };
        let used = after.since(&before);
        assert_eq!(used.map(|u| (u.cpu_s, u.oom_kills)), Some((Some(0.0), Some(1))));
        assert_eq!(Counters::default().since(&before), None);
    }
}
