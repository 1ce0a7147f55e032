//! The mount proof: before any key is written, that the slot's new container runs *our* glue on *our* volumes.
//!
//! Until it has passed, root in the payload container is the image's. It ties a process to the container (its cgroup),
//! reads what that process has mounted at and below `/shared`, demands that each mount is the very one that this
//! container has there, and that the program it runs is the file that `glue install` wrote.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use latebind_contract::{layout, mounts};
use latebind_linux::processes::Proc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Failure, Reason};
use crate::pids::pids;

/// A process that is ending has no mounts any more, a moment before it counts as ended.
const ENDING: Duration = Duration::from_millis(100);

/// Whether a cgroups text is of the container with this ID.
pub fn is_of_container(cgroup: &str, container: &str) -> bool {
    // The last component is the ID with a prefix or suffix of the engine; some engines add one below for the main
    // process.
    container.len() >= 32 && cgroup.lines().any(|line| line.rsplit('/').take(2).any(|part| part.contains(container)))
}

/// Proves that `pid` is our glue in `container`. Returns a handle on that process, which tells when it ends.
pub fn prove(pid: i32, slot: u32, container: &str) -> Result<OwnedFd, Failure> {
    let ended = || Failure::retry(Reason::GlueLost, format!("glue (process {pid}) ended while it was being looked at"));
    // Pinned first: everything below is then about this process and no successor of its number.
    let pinned = match latebind_linux::sys::pidfd_open(pid) {
        Ok(pinned) => pinned,
        Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => return Err(ended()),
        Err(e) => return Err(Failure::hold(Reason::MountProofFailed, format!("process {pid}, said to be glue: {e}"))),
    };
    let proven = prove_pinned(pid, slot, container);
    // What is read of a process that ends meanwhile is wrong in many ways; none of them is the image's fault.
    if is_readable_within(pinned.as_fd(), if proven.is_ok() { Duration::ZERO } else { ENDING }) {
        return Err(ended());
    }
    proven.map(|()| pinned).map_err(|why| Failure::hold(Reason::MountProofFailed, why))
}

fn prove_pinned(pid: i32, slot: u32, container: &str) -> Result<(), String> {
    let proc = Proc::open().map_err(|e| e.to_string())?;
    let cgroup = proc.cgroup(pid).map_err(|e| format!("/proc/{pid}/cgroup cannot be read: {e}"))?;
    if !is_of_container(&cgroup, container) {
        return Err(format!("process {pid}, said to be glue, is not in container {container}"));
    }
    prove_mounts(pid, slot)?;
    prove_program(pid)
}

/// Demands that `pid` runs the very file that `glue install` wrote.
pub fn prove_program(pid: i32) -> Result<(), String> {
    let program = fs::metadata(format!("/proc/{pid}/exe"))
        .map_err(|e| format!("/proc/{pid}/exe cannot be read: {e}; the pilot needs more capabilities than glue"))?;
    let ours = fs::metadata(layout::GLUE).map_err(|e| format!("{}: {e}", layout::GLUE))?;
    if (program.dev(), program.ino()) != (ours.dev(), ours.ino()) {
        return Err(format!("process {pid} does not run {}", layout::GLUE));
    }
    Ok(())
}

/// Whether the process behind a pidfd has ended.
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    is_readable_within(pidfd.as_fd(), Duration::ZERO)
}

/// Waits until a descriptor is readable, which for a pidfd is the end of its process, at most `within`.
pub fn is_readable_within(fd: BorrowedFd<'_>, within: Duration) -> bool {
    let within = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], within).is_ok_and(|n| n > 0)
}

/// Demands of `pid` exactly the slot's mounts, from where this container has them.
pub fn prove_mounts(pid: i32, slot: u32) -> Result<(), String> {
    let read = |who: &str| {
        fs::read_to_string(format!("/proc/{who}/mountinfo")).map_err(|e| {
            format!("/proc/{who}/mountinfo cannot be read: {e}; the pilot needs more capabilities than glue")
        })
    };
    let theirs = mounts::check(&mounts::parse(&read(&pid.to_string())?)?, slot)?;
    let own = mounts::parse(&read("self")?)?;
    for mount in [&theirs.bin, &theirs.ctl, &theirs.data] {
        let same = own.iter().rfind(|m| m.point == mount.point);
        let same = same.ok_or_else(|| format!("{} is not mounted in the pilot container", mount.point))?;
        if (&same.device, &same.root) != (&mount.device, &mount.root) {
            return Err(format!(
                "{} in the payload container is {} of device {}, not the pod's volume ({} of device {}): an image that \
                 declares a VOLUME there cannot be used",
                mount.point, mount.root, mount.device, same.root, same.device
            ));
        }
    }
    Ok(())
}

/// Looks at whatever runs in `container`: the mounts are the same for all its processes, so a container with wrong ones
/// is found out at once, also where a foreign program took glue's place. `Ok(false)`: nothing runs there yet.
pub fn look_at_any(slot: u32, container: &str) -> Result<bool, Failure> {
    let Ok(proc) = Proc::open() else { return Ok(false) };
    for pid in pids() {
        if proc.cgroup(pid).is_ok_and(|cgroup| is_of_container(&cgroup, container)) {
            let Err(why) = prove_mounts(pid, slot) else { return Ok(true) };
            match latebind_linux::sys::pidfd_open(pid) {
                Ok(pinned) if !is_readable_within(pinned.as_fd(), ENDING) => {
                    return Err(Failure::hold(Reason::MountProofFailed, why));
                }
                _ => continue, // it was about to end
            }
        }
    }
    Ok(false)
}

/// Whether any process of the container is there.
pub fn has_process(container: &str) -> bool {
    let Ok(proc) = Proc::open() else { return false };
    pids().any(|pid| proc.cgroup(pid).is_ok_and(|cgroup| is_of_container(&cgroup, container)))
}

#[cfg(test)]
mod tests {
    use super::is_of_container;

    #[test]
    fn containers_are_told_by_their_cgroup() {
        let id = "a".repeat(64);
        for text in [
            format!("4:memory:/libpod_parent/libpod-{id}\n0::/libpod_parent/libpod-{id}\n"),
            format!("0::/../libpod-{id}.scope/container\n"),
            format!("0::/kubepods.slice/x/cri-containerd-{id}.scope\n"),
        ] {
            assert!(is_of_container(&text, &id), "{text}");
        }
        assert!(!is_of_container("0::/\n", &id));
        assert!(!is_of_container(&format!("0::/{id}/deeper/than/that\n"), &id));
        assert!(!is_of_container("0::/\n", ""));
    }
}
