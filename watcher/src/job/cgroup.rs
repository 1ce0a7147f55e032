//! What the payload container's cgroup counts, as far as the pilot can see it.
//!
//! The pilot container has a cgroup of its own. That of the payload container is looked at through glue's root
//! directory, while glue can be looked into, which is before it has claimed a job; the files stay open. The image
//! decides what lies at that path, so nothing is believed but a real cgroup file system, and no link is followed.
//! Once its job is over and the key is wiped, glue can be looked into again: so a watcher that was started meanwhile
//! still reads the counters, and compares them with those that the one before it has kept.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use latebind_linux::cgroup::{Whereabouts, is_cgroup, number_after, whole};
use latebind_linux::processes::Proc;
use latebind_linux::volume::open_at;
use nix::fcntl::OFlag;

/// Limits above this are none: version 1 says so with a number of pages near 2^63.
const NO_LIMIT: u64 = 1 << 60;

/// What a container's cgroup has counted: since it was made, or in a report since the job was handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// CPU time, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_s: Option<f64>,
    /// Processes that the kernel killed for memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
}

impl Counted {
    /// What came since `before`; `None` where nothing is known at all.
    pub fn since(&self, before: &Self) -> Option<Self> {
        let came = Self {
            cpu_s: self.cpu_s.zip(before.cpu_s).map(|(now, then)| (now - then).max(0.0)),
            oom_kills: self.oom_kills.zip(before.oom_kills).map(|(now, then)| now.saturating_sub(then)),
        };
        (came != Self::default()).then_some(came)
    }
}

/// Open files of a container's counters.
#[derive(Debug)]
pub struct Counters {
    cpu: Option<(File, CpuForm)>,
    oom: Option<File>,
}

impl Counters {
    /// What they say now.
    pub fn now(&self) -> Counted {
        let oom_kills = self.oom.as_ref().and_then(|file| number_after(&text(file)?, "oom_kill"));
        Counted { cpu_s: self.cpu_s(), oom_kills }
    }

    fn cpu_s(&self) -> Option<f64> {
        let (file, form) = self.cpu.as_ref()?;
        let text = text(file)?;
        match form {
            CpuForm::Two => number_after(&text, "usage_usec").map(|us| us as f64 / 1e6),
            CpuForm::One => whole(&text).map(|ns| ns as f64 / 1e9),
        }
    }
}

/// Open files of a container's cgroup.
#[derive(Debug)]
pub struct Group {
    /// The container's memory limit, bytes.
    pub memory_limit: Option<u64>,
    /// What it counts.
    pub counters: Arc<Counters>,
    memory: Option<(File, File)>,
    cpu_before: f64,
}

#[derive(Clone, Copy, Debug)]
enum CpuForm {
    /// `usage_usec N` of cpu.stat.
    Two,
    /// Nanoseconds.
    One,
}

impl Group {
    /// Opens what can be had of the container that `pid`, a process of root, is in; `None` where that is nothing. A
    /// mount that shows more than the container's own cgroup counts for others too, and is not believed.
    pub fn open(pid: i32) -> Option<Self> {
        let whereabouts = Whereabouts::of(&Proc::open().ok()?, pid);
        Self::open_where(pid, |device, controller| whereabouts.owns(device, controller))
    }

    /// As [`Group::open`], with a test of its own for what is the container's: by device and controller.
    fn open_where(pid: i32, is_own: impl Fn(u64, &str) -> bool) -> Option<Self> {
        let root = File::open(format!("/proc/{pid}/root")).ok()?;
        let open = |controller: &str, path: &str| -> Option<File> {
            let found = find(&root, path).ok()?;
            let own = is_cgroup(found.as_fd()) && is_own(nix::sys::stat::fstat(&found).ok()?.st_dev, controller);
            own.then(|| File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok())?
        };
        let two = |name: &str| open("", &format!("sys/fs/cgroup/{name}"));
        let one = |group: &str, name: &str| {
            // Where several controllers share a hierarchy, the one name is a link to the other.
            let dirs: &[&str] = if group == "cpuacct" { &["cpuacct", "cpu,cpuacct"] } else { &[group] };
            dirs.iter().find_map(|dir| open(group, &format!("sys/fs/cgroup/{dir}/{group}.{name}")))
        };
        let limit = two("memory.max").or_else(|| one("memory", "limit_in_bytes"));
        let memory = two("memory.current")
            .zip(two("memory.stat"))
            .or_else(|| one("memory", "usage_in_bytes").zip(open("memory", "sys/fs/cgroup/memory/memory.stat")));
        let cpu =
            two("cpu.stat").map(|file| (file, CpuForm::Two)).or_else(|| Some((one("cpuacct", "usage")?, CpuForm::One)));
        let oom = two("memory.events").or_else(|| one("memory", "oom_control"));
        if memory.is_none() && cpu.is_none() && oom.is_none() {
            return None;
        }
        let memory_limit = limit.and_then(|file| whole(&text(&file)?)).filter(|n| *n < NO_LIMIT);
        let counters = Counters { cpu, oom };
        let cpu_before = counters.cpu_s().unwrap_or(0.0);
        Some(Self { memory_limit, counters: Arc::new(counters), memory, cpu_before })
    }

    /// Bytes in use now, without the files, and what it knows of files, that the kernel would drop before it ends a
    /// process.
    pub fn memory_now(&self) -> Option<u64> {
        let (current, stat) = self.memory.as_ref()?;
        let current = whole(&text(current)?)?;
        let stat = text(stat)?;
        let files: u64 = ["active_file", "inactive_file", "slab_reclaimable"]
            .iter()
            .filter_map(|name| number_after(&stat, &format!("total_{name}")).or_else(|| number_after(&stat, name)))
            .sum();
        Some(current.saturating_sub(files))
    }

    /// CPU time since this was opened, seconds.
    pub fn cpu_s(&self) -> Option<f64> {
        Some((self.counters.cpu_s()? - self.cpu_before).max(0.0))
    }
}

/// Finds a file one component at a time, over mounts but over no link, and opens nothing on the way: what the image put
/// there leads nowhere else and is not woken by it.
fn find(root: &File, path: &str) -> io::Result<OwnedFd> {
    let mut at: OwnedFd = root.as_fd().try_clone_to_owned()?;
    for part in path.split('/') {
        at = open_at(at.as_fd(), part, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
    }
    Ok(at)
}

/// A file of the kernel's from its beginning, so far as this has use for it. Its position is left alone: two threads
/// share it.
fn text(file: &File) -> Option<String> {
    let mut bytes = vec![0; 16_384];
    let read = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(read);
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_can_be_read_again_and_again() {
        let group = Group::open_where(std::process::id() as i32, |_, _| true)
            .expect("this machine has no cgroup file system at /sys/fs/cgroup, without which nothing is tested here");
        // The top of version 2 counts CPU time and no memory; every other group counts both.
        let counts_memory = ["memory.current", "memory/memory.usage_in_bytes"]
            .iter()
            .any(|name| std::path::Path::new("/sys/fs/cgroup").join(name).exists());
        for _ in 0..2 {
            assert_eq!(group.memory_now().is_some_and(|used| used > 0), counts_memory);
            assert!(group.cpu_s().is_some_and(|s| s >= 0.0), "no cpu.stat and no cpuacct.usage at /sys/fs/cgroup");
            assert_eq!(group.counters.now().oom_kills.is_some(), counts_memory);
        }
    }

    #[test]
    fn differences_never_go_below_zero() {
        let before = Counted { cpu_s: Some(2.0), oom_kills: Some(4) };
        let after = Counted { cpu_s: Some(1.0), oom_kills: Some(5) };
        assert_eq!(after.since(&before), Some(Counted { cpu_s: Some(0.0), oom_kills: Some(1) }));
        assert_eq!(Counted::default().since(&before), None);
        assert_eq!(after.since(&Counted::default()), None);
    }

    #[test]
    fn a_link_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        std::fs::create_dir(top.join("real")).unwrap();
        std::fs::write(top.join("real/file"), "x").unwrap();
        std::os::unix::fs::symlink("real", top.join("link")).unwrap();
        let root = File::open(top).unwrap();
        assert!(find(&root, "real/file").is_ok());
        assert!(find(&root, "link/file").is_err());
    }
}
