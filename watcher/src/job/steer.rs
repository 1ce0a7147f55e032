//! Signals for all of a payload, by the kill routine's rules: what has the payload UID and is in the job's container.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use latebind_contract::layout::{self, Ids};
use latebind_linux::kill::KillLock;
use latebind_linux::processes::{Pinned, Proc, Process};
use latebind_linux::volume::Dir;
use nix::sys::signal::Signal;

use crate::helper;

/// How long it may take until the last process is stopped, or continued.
const WITHIN: Duration = Duration::from_secs(5);

/// Sends a signal to every process of the slot's payload in the container. Returns how many got it.
///
/// Stopping is done at once for all, so that nothing is forked past it; what has the same UID elsewhere, and was
/// stopped by that, is continued. Continuing goes on until none is stopped.
pub fn all(slot: u32, ids: Ids, cgroup: &str, signal: i32) -> io::Result<u64> {
    let signal = Signal::try_from(signal).map_err(|_| io::Error::other(format!("there is no signal {signal}")))?;
    let proc = Proc::open()?;
    match signal {
        Signal::SIGSTOP => stop(slot, &proc, ids, cgroup),
        Signal::SIGCONT => {
            let mut reached = HashSet::new();
            until(|| {
                let stopped: Vec<_> =
                    split(&proc, ids.uid, cgroup)?.0.into_iter().filter(Process::is_stopped).collect();
                reached.extend(stopped.iter().filter(|p| send(&proc, p, ids.uid, signal)).map(|p| p.pid));
                Ok(stopped.is_empty())
            })?;
            Ok(reached.len() as u64)
        }
        other => {
            let inside = split(&proc, ids.uid, cgroup)?.0;
            Ok(inside.iter().filter(|p| send(&proc, p, ids.uid, other)).count() as u64)
        }
    }
}

fn stop(slot: u32, proc: &Proc, ids: Ids, cgroup: &str) -> io::Result<u64> {
    let ctl = Dir::open(&layout::ctl(slot))?;
    let lock = KillLock::in_slot(ctl.as_fd(), Instant::now() + WITHIN)?;
    let before: HashSet<i32> =
        split(proc, ids.uid, cgroup)?.1.into_iter().filter(Process::is_stopped).map(|p| p.pid).collect();
    let stopped = helper::stop_all(ids);
    // Also where that failed: what was stopped elsewhere goes on.
    for process in split(proc, ids.uid, cgroup)?.1.iter().filter(|p| p.is_stopped() && !before.contains(&p.pid)) {
        send(proc, process, ids.uid, Signal::SIGCONT);
    }
    drop(lock);
    stopped?;
    // What continues its own kind from outside the stop can only be another container's: one by one now.
    until(|| {
        let inside = split(proc, ids.uid, cgroup)?.0;
        let running: Vec<_> = inside.iter().filter(|p| !matches!(p.state, 'T' | 't' | 'Z')).collect();
        for process in &running {
            send(proc, process, ids.uid, Signal::SIGSTOP);
        }
        Ok(running.is_empty())
    })?;
    Ok(split(proc, ids.uid, cgroup)?.0.len() as u64)
}

fn until(mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let give_up = Instant::now() + WITHIN;
    while !done()? {
        if Instant::now() >= give_up {
            return Err(io::Error::other(format!("some processes did not follow within {WITHIN:?}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Living processes of the payload UID: those in the container, and those elsewhere.
fn split(proc: &Proc, uid: u32, cgroup: &str) -> io::Result<(Vec<Process>, Vec<Process>)> {
    let known = proc.of_uid(uid)?.into_iter().filter_map(|p| Some((p, proc.cgroup_of(&p).ok()?)));
    let (inside, outside): (Vec<_>, Vec<_>) = known.partition(|(_, its)| its == cgroup);
    let bare = |list: Vec<(Process, String)>| list.into_iter().map(|(process, _)| process).collect();
    Ok((bare(inside), bare(outside)))
}

/// Pinned first, then looked at: the number cannot have passed to a stranger in between.
fn send(proc: &Proc, process: &Process, uid: u32, signal: Signal) -> bool {
    let Ok(pinned) = Pinned::new(process.pid) else { return false };
    proc.process(process.pid).is_some_and(|now| now.uid == uid) && pinned.signal(signal).is_ok()
}
