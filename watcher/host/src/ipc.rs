//! Removal of what a payload has left in its container's IPC namespace, by a process of this program that enters it.
//!
//! A container that serves the next job of the same owner is to be as it was before the last one. The pilot cannot
//! reach the objects, which are in another namespace than its own; glue's lines are too dear for it.

use crate::arguments::CleanIpc;
use crate::failure::{Context, Failure, failure};
use crate::main_process::MainProcess;
use latebind_contract::layout::Ids;
use latebind_linux::kill::take_ids;
use latebind_linux::sys::{Capabilities, set_capabilities};
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;
use watcher::tree::Deadline;
use watcher::{child, ipc};

/// How long the removal may take: a payload decides how much there is. What takes longer costs the slot its container.
const WITHIN: Duration = Duration::from_secs(10);
/// Bits of capabilities(7): files of other users, in directories closed to others; then the payload's own IDs.
const RIGHTS: u64 = 1 << 1 | 1 << 3 | 1 << 6 | 1 << 7;

/// Has the objects of `ids` removed in the container `id`, of which `main` is a process.
pub fn clean(main: &MainProcess, id: &str, ids: &Ids) -> Result<(), String> {
    let numbers = [main.pid().to_string(), id.to_owned(), ids.uid.to_string(), ids.gid.to_string()];
    let mut child = Command::new("/proc/self/exe")
        .arg("clean-ipc")
        .args(numbers)
        .arg(ids.kill_uid.to_string())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start a process for it: {e}"))?;
    let from = child.stderr.take().ok_or("cannot hear the process that does it")?;
    let (status, said) = child::answer(child, "", from, WITHIN).map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err(said.trim().to_owned()) }
}

/// The removal itself, in a process that has no thread but this.
pub fn obey(task: &CleanIpc) -> Result<(), Failure> {
    let CleanIpc { pid, container, uid, gid, kill_uid } = task;
    let ids = Ids { uid: *uid, gid: *gid, kill_uid: *kill_uid };
    ids.check().map_err(failure)?;
    let open = |kind: &str| {
        File::open(format!("/proc/{pid}/ns/{kind}")).context(|| format!("cannot open a namespace of process {pid}"))
    };
    let (of_ipc, of_mounts) = (open("ipc")?, open("mnt")?);
    // Read after the descriptors were had: the process with this number was the container's when they were opened.
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if !groups.contains(container.as_str()) {
        return Err(failure("the container's process has ended"));
    }
    let entering = || "cannot enter the container's namespaces".to_owned();
    setns(of_ipc, CloneFlags::CLONE_NEWIPC).context(entering)?;
    // By the host's /proc, which no image has made.
    let objects = ipc::system_v_of(ids.uid);
    setns(of_mounts, CloneFlags::CLONE_NEWNS).context(entering)?;
    set_capabilities(Capabilities { effective: RIGHTS, permitted: RIGHTS, inheritable: 0 }).context(entering)?;
    ipc::remove_files(ids.uid, &Deadline::within(WITHIN)).context(|| "the payload's files".into())?;
    // The System V calls know an object's owner only.
    take_ids(ids).context(|| "cannot take the payload's user ID".into())?;
    ipc::remove_all(&objects);
    Ok(())
}
