//! Work that must be done under the payload's rights, by a process of its own: `watcher helper ...`.
//!
//! The watcher has threads and is root; the kill routine needs a process that has given up its rights. So each such
//! task is a fresh process, which knows nothing of keys and ends when the task is done.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use latebind_contract::layout::{self, Ids};
use latebind_linux::kill::{KillLock, Routine, take_ids};
use latebind_linux::processes::Proc;
use latebind_linux::volume::Dir;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::tree::Deadline;
use crate::tree::unpack::{self, Unpacked};
use crate::{child, ipc};

/// How long the kill helper is waited for beyond the time that it was given.
const MORE_THAN_IT_HAS: Duration = Duration::from_secs(5);
/// How long removing IPC objects may take: a payload of another slot may keep making more of them.
const IPC_WITHIN: Duration = Duration::from_secs(30);

/// Ends every process of the slot's payload UID in the container with these cgroups. Returns how many still live.
pub fn kill(slot: u32, ids: Ids, cgroup: &str, within: Duration) -> io::Result<u64> {
    let said = call("kill", ids, &format!("{} {slot} {cgroup}", within.as_millis()), within + MORE_THAN_IT_HAS)?;
    said.trim().parse().map_err(|_| io::Error::other(format!("the kill helper said {said:?}")))
}

/// Removes the POSIX and System V IPC objects of the payload UID.
pub fn clean_ipc(ids: Ids) -> io::Result<()> {
    let left = call("clean-ipc", ids, "", IPC_WITHIN + MORE_THAN_IT_HAS)?;
    if left.is_empty() { Ok(()) } else { Err(io::Error::other(left)) }
}

/// What only processes of the payload UID, or with more rights than ours, may see of the payload's processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// Sum of the proportional sets, bytes.
    pub pss: Option<u64>,
    /// Open files.
    pub files: Option<u64>,
    /// Bytes read from storage.
    pub read_bytes: Option<u64>,
    /// Bytes written to it.
    pub written_bytes: Option<u64>,
}

/// How long the helper may look, and how long is waited for it: the payload may slow it down.
const LOOK_WITHIN: Duration = Duration::from_millis(500);
const DETAILS_WITHIN: Duration = Duration::from_secs(2);

/// Looks at these processes with the payload's rights. The helper has the kill routine's IDs: it may look at the
/// payload, which can neither signal nor trace it.
pub fn details(ids: Ids, pids: &[i32]) -> io::Result<Details> {
    let list: Vec<String> = pids.iter().map(i32::to_string).collect();
    let said = call("details", ids, &list.join(" "), DETAILS_WITHIN)?;
    serde_json::from_str(&said).map_err(io::Error::other)
}

/// `kill(-1, SIGSTOP)` with the payload's rights: everything of the payload UID, wherever, is stopped at once.
pub fn stop_all(ids: Ids) -> io::Result<()> {
    call("stop-all", ids, "", DETAILS_WITHIN).map(drop)
}

/// Variable with what the helper for inputs is to do.
const INPUT: &str = "LATEBIND_INPUT";
/// Address space of the helper for inputs: what an archive says of itself could make it need any memory.
const INPUT_MEMORY: u64 = 160 << 20;

/// What the helper for inputs is to do with the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Placing {
    /// Whether it is an archive whose content is wanted.
    pub unpack: bool,
    /// Where it goes beneath the directory; empty for the directory itself.
    pub to: String,
    /// How much may come of it.
    pub limits: unpack::Limits,
}

/// Puts a file, or what is in it, into a directory of the payload's, with the payload's rights. It goes on until
/// `deadline`.
pub fn place(
    ids: Ids,
    file: &File,
    to: BorrowedFd<'_>,
    placing: &Placing,
    deadline: &Deadline<'_>,
) -> io::Result<Unpacked> {
    let mut child = command("input", ids)
        .env(INPUT, serde_json::to_string(placing)?)
        .current_dir(format!("/proc/self/fd/{}", to.as_raw_fd()))
        .stdin(file.try_clone()?)
        .spawn()?;
    let from = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let (status, said) = child::answer_until(child, "", from, || deadline.check().err())?;
    if status.signal() == Some(Signal::SIGABRT as i32) {
        let why = format!("needs more than {} MiB of memory to be read, or is not an archive", INPUT_MEMORY >> 20);
        return Ok(Unpacked { problem: Some(unpack::Problem { why, at_target: None }), ..Unpacked::default() });
    }
    match serde_json::from_str(&said) {
        Ok(unpacked) if status.success() => Ok(unpacked),
        _ => Err(io::Error::other(format!("the helper for inputs ended with {status}"))),
    }
}

/// The helper's side of [`place`].
fn place_input(ids: Ids) -> io::Result<String> {
    let placing = std::env::var(INPUT).map_err(io::Error::other)?;
    let placing: Placing = serde_json::from_str(&placing)?;
    let to = crate::tree::open_dir(Path::new("."))?;
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    setrlimit(Resource::RLIMIT_AS, INPUT_MEMORY, INPUT_MEMORY)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    nix::sys::prctl::set_no_new_privs()?;
    latebind_linux::sys::set_groups(&[])?;
    latebind_linux::sys::set_gid(ids.gid)?;
    take_ids(ids)?;
    let placed = unpack::place(file, to, placing.unpack, placing.to.as_bytes(), placing.limits);
    serde_json::to_string(&placed).map_err(io::Error::other)
}

/// Runs the helper for `task` to its end, at most `within`.
fn call(task: &str, ids: Ids, input: &str, within: Duration) -> io::Result<String> {
    let call = || {
        let mut child = command(task, ids).stdin(Stdio::piped()).spawn()?;
        let from = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        match child::answer(child, input, from, within)? {
            (status, said) if status.success() => Ok(said),
            (status, _) => Err(io::Error::other(format!("ended with {status}"))),
        }
    };
    call().map_err(|e| io::Error::new(e.kind(), format!("the helper for {task}: {e}")))
}

/// The helper, with an empty environment; its standard input is the caller's to choose.
fn command(task: &str, ids: Ids) -> Command {
    let numbers = [ids.uid, ids.gid, ids.kill_uid].map(|n| n.to_string());
    let mut command = Command::new("/proc/self/exe");
    command.args(["helper", task]).args(numbers).env_clear().stdout(Stdio::piped());
    command
}

/// The helper's side: `task` with the slot's numbers, the rest on standard input. Returns what to print.
pub fn main(task: &str, ids: Ids) -> io::Result<String> {
    if task == "input" {
        return place_input(ids);
    }
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    match task {
        "kill" => {
            let mut words = input.splitn(3, ' ');
            let (Some(millis), Some(slot), Some(cgroup)) = (words.next(), words.next(), words.next()) else {
                return Err(io::Error::other("no cgroups were given"));
            };
            let deadline = Instant::now() + Duration::from_millis(millis.parse().map_err(io::Error::other)?);
            let ctl = Dir::open(&layout::ctl(slot.parse().map_err(io::Error::other)?))?;
            let proc = Proc::open()?;
            // With root's IDs, which another such routine does not reach.
            let lock = KillLock::in_slot(ctl.as_fd(), deadline)?;
            take_ids(ids)?;
            Routine { proc: &proc, ids, cgroup }.run(&lock, deadline).map(|left| left.to_string())
        }
        "clean-ipc" => {
            let deadline = Deadline::within(IPC_WITHIN);
            let files = ipc::remove_files(ids.uid, &deadline);
            // The System V calls know an object's owner only.
            take_ids(ids)?;
            let objects = ipc::remove_system_v_of(ids.uid);
            let failed = [files, objects].into_iter().filter_map(Result::err);
            Ok(failed.map(|e| e.to_string()).collect::<Vec<_>>().join("; "))
        }
        "details" => {
            // The kernel compares the group too.
            latebind_linux::sys::set_groups(&[])?;
            latebind_linux::sys::set_gid(ids.gid)?;
            take_ids(ids)?;
            let details = look(input.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()));
            serde_json::to_string(&details).map_err(io::Error::other)
        }
        "stop-all" => {
            take_ids(ids)?;
            match latebind_linux::sys::stop_all_of(ids.uid, ids.kill_uid) {
                Err(e) if e.raw_os_error() != Some(nix::libc::ESRCH) => Err(e),
                _ => Ok(String::new()),
            }
        }
        other => Err(io::Error::other(format!("there is no task {other}"))),
    }
}

/// Sums up what can be read in time. A value that could be read of no process is none; one that could be read of some
/// is a lower bound.
fn look(pids: impl Iterator<Item = i32>) -> Details {
    let give_up = Instant::now() + LOOK_WITHIN;
    let mut all = Details::default();
    let add = |sum: &mut Option<u64>, value: Option<u64>| {
        if let Some(value) = value {
            *sum = Some(sum.unwrap_or(0).saturating_add(value));
        }
    };
    let mut shares_are_whole = true;
    for pid in pids {
        if Instant::now() >= give_up {
            shares_are_whole = false;
            break;
        }
        let Ok(process) = procfs::process::Process::new(pid) else { continue };
        let rollup = process.smaps_rollup().ok();
        let pss = rollup.and_then(|r| r.memory_map_rollup.0.first().and_then(|m| m.extension.map.get("Pss").copied()));
        // Without an answer it may have ended, or keep its memory to itself.
        shares_are_whole &= pss.is_some() || process.stat().map_or(true, |s| matches!(s.state, 'Z' | 'X'));
        add(&mut all.pss, pss);
        add(&mut all.files, process.fd_count().ok().map(|n| n as u64));
        let io = process.io().ok();
        add(&mut all.read_bytes, io.as_ref().map(|io| io.read_bytes));
        add(&mut all.written_bytes, io.as_ref().map(|io| io.write_bytes));
    }
    // Less than the whole would let a payload hide memory by making a process unreadable.
    all.pss = all.pss.filter(|_| shares_are_whole);
    all
}
