//! What the payload container's cgroup counts, as far as the pilot can see it.
//!
//! The pilot container has a cgroup of its own. That of the payload container is looked at through glue's root
//! directory, while glue can be looked into, which is before it has claimed a job; the files stay open. The image
//! decides what lies at that path, so nothing is believed but a real cgroup file system, and no link is followed.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use latebind_linux::cgroup::{Whereabouts, is_cgroup, number_after, whole};
use latebind_linux::processes::Proc;
use latebind_linux::sys;
use nix::fcntl::OFlag;

/// Limits above this are none: version 1 says so with a number of pages near 2^63.
const NO_LIMIT: u64 = 1 << 60;

/// Open files of a container's cgroup.
#[derive(Debug)]
pub struct Group {
    /// The container's memory limit, bytes.
    pub memory_limit: Option<u64>,
    memory: Option<(File, File)>,
    cpu: Option<(File, CpuForm)>,
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
        let mut group = Self { memory_limit: None, memory, cpu, cpu_before: 0.0 };
        group.memory_limit = limit.and_then(|mut f| whole(&text(&mut f)?)).filter(|n| *n < NO_LIMIT);
        group.cpu_before = group.cpu_total().unwrap_or(0.0);
        (group.memory.is_some() || group.cpu.is_some()).then_some(group)
    }

    /// Bytes in use now, without the files, and what it knows of files, that the kernel would drop before it ends a
    /// process.
    pub fn memory_now(&mut self) -> Option<u64> {
        let (current, stat) = self.memory.as_mut()?;
        let current = whole(&text(current)?)?;
        let stat = text(stat)?;
        let files: u64 = ["active_file", "inactive_file", "slab_reclaimable"]
            .iter()
            .filter_map(|name| number_after(&stat, &format!("total_{name}")).or_else(|| number_after(&stat, name)))
            .sum();
        Some(current.saturating_sub(files))
    }

    /// CPU time since this was opened, seconds.
    pub fn cpu_s(&mut self) -> Option<f64> {
        Some((self.cpu_total()? - self.cpu_before).max(0.0))
    }

    fn cpu_total(&mut self) -> Option<f64> {
        let (file, form) = self.cpu.as_mut()?;
        let text = text(file)?;
        match form {
            CpuForm::Two => number_after(&text, "usage_usec").map(|us| us as f64 / 1e6),
            CpuForm::One => whole(&text).map(|ns| ns as f64 / 1e9),
        }
    }
}

/// Finds a file one component at a time, over mounts but over no link, and opens nothing on the way: what the image put
/// there leads nowhere else and is not woken by it.
fn find(root: &File, path: &str) -> io::Result<OwnedFd> {
    let mut at: OwnedFd = root.as_fd().try_clone_to_owned()?;
    for part in path.split('/') {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let name = std::ffi::CString::new(part)?;
        at = sys::openat(at.as_fd(), &name, flags.bits(), 0)?;
    }
    Ok(at)
}

fn text(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(16_384).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_can_be_read_again_and_again() {
        let mut group = Group::open_where(std::process::id() as i32, |_, _| true)
            .expect("this machine has no cgroup file system at /sys/fs/cgroup, without which nothing is tested here");
        // The top of version 2 counts CPU time and no memory; every other group counts both.
        let counts_memory = ["memory.current", "memory/memory.usage_in_bytes"]
            .iter()
            .any(|name| std::path::Path::new("/sys/fs/cgroup").join(name).exists());
        for _ in 0..2 {
            assert_eq!(group.memory_now().is_some_and(|used| used > 0), counts_memory);
            assert!(group.cpu_s().is_some_and(|s| s >= 0.0), "no cpu.stat and no cpuacct.usage at /sys/fs/cgroup");
        }
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
