//! The kill routine: ends every process of one payload UID in one container, and nothing else.
//!
//! `kill(-1)` as root would reach the pilot; as the payload UID it would reach what the pilot runs under that UID, and
//! the payload could stop or kill the killer. So it runs in a process with real and saved UID K and effective UID P: by
//! kill(2) such a process may signal P, and P may not signal it. It stops everything of P and K at once (a fork in
//! progress notices the pending signal and does not complete), then kills one by one what is in the container.
//! Afterwards the rest is continued.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::error::refused;
use crate::processes::{Pinned, Proc, Process};
use crate::sys::{self, Capabilities};
use latebind_contract::layout::Ids;

/// Between two looks at what is not over yet.
const PAUSE: Duration = Duration::from_micros(200);

/// What is to be ended.
pub struct Routine<'a> {
    /// `/proc` of the PID namespace.
    pub proc: &'a Proc,
    /// The slot's numbers.
    pub ids: Ids,
    /// The cgroups text of the container, as [`Proc::cgroup`] gives it.
    pub cgroup: &'a str,
}

/// The right to stop all of a payload's processes: one process at a time has it. A second one would take what this one
/// stops for stopped by others, and leave it so.
pub struct KillLock {
    _lock: Option<Flock<OwnedFd>>,
}

impl KillLock {
    /// Waits for the others, by a lock on the slot's `ctl/`, which the payload cannot open. At `deadline` it goes on
    /// without it: whoever has the lock may have been slowed down by the payload.
    pub fn in_slot(ctl: BorrowedFd<'_>, deadline: Instant) -> io::Result<Self> {
        let mut fd = ctl.try_clone_to_owned()?;
        loop {
            match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { _lock: Some(lock) }),
                Err(_) if Instant::now() >= deadline => return Ok(Self { _lock: None }),
                Err((again, _)) => fd = again,
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Routine<'_> {
    /// Runs the routine until none is left or `deadline` has passed. Returns how many processes still live. The caller
    /// has the IDs already: a supervisor, or a process that has [taken](take_ids) them.
    pub fn run(&self, _lock: &KillLock, deadline: Instant) -> io::Result<u64> {
        self.ids.check().map_err(|e| refused(format_args!("{e}")))?;
        let before = self.split()?.1;
        let left = self.end_all(deadline);
        // What was stopped on the way goes on, whatever happened.
        let outside = self.split().map_or_else(|_| before.clone(), |(_, outside)| outside);
        for process in outside {
            if !before.iter().any(|before| before.pid == process.pid && before.is_stopped()) {
                self.signal_one(process.pid, false, Signal::SIGCONT);
            }
        }
        left
    }

    fn end_all(&self, deadline: Instant) -> io::Result<u64> {
        loop {
            match sys::stop_all_of(self.ids.uid, self.ids.kill_uid) {
                // Nothing of this UID anywhere but, perhaps, what has ended and waits to be reaped.
                Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(0),
                stopped => stopped?,
            }
            let left = self.signal(None, Signal::SIGKILL).and_then(|()| Ok(self.inside()?.len() as u64));
            if matches!(left, Ok(0)) || Instant::now() >= deadline {
                return left;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Living processes of the payload in the container.
    pub fn inside(&self) -> io::Result<Vec<Process>> {
        Ok(self.split()?.0)
    }

    /// Living processes of the payload UID: those in the container, and those elsewhere.
    fn split(&self) -> io::Result<(Vec<Process>, Vec<Process>)> {
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        for process in self.proc.of_uid(self.ids.uid)? {
            match self.proc.cgroup_of(&process) {
                Ok(cgroup) if cgroup == self.cgroup => inside.push(process),
                Ok(_) => outside.push(process),
                Err(_) => {} // it has just ended
            }
        }
        Ok((inside, outside))
    }

    /// Sends `signal` to what is in the container, or in `group` there, one by one.
    pub fn signal(&self, group: Option<i32>, signal: Signal) -> io::Result<()> {
        self.members(group)?.iter().for_each(|found| self.signal_one(found.pid, true, signal));
        Ok(())
    }

    /// Signals one process of the payload that is in the container, or is not. It is pinned first, and then looked at:
    /// so its number cannot have passed to a stranger. What ended meanwhile needs no signal.
    pub fn signal_one(&self, pid: i32, inside: bool, signal: Signal) {
        let is_there = |now: &Process| self.proc.cgroup_of(now).is_ok_and(|of| (of == self.cgroup) == inside);
        if let Ok(pinned) = Pinned::new(pid)
            && self.proc.process(pid).is_some_and(|now| now.uid == self.ids.uid && is_there(&now))
        {
            let _ = pinned.signal(signal);
        }
    }

    /// Living processes of the payload in the container, or in `group` there.
    pub fn members(&self, group: Option<i32>) -> io::Result<Vec<Process>> {
        let mut members = self.inside()?;
        let in_group = |p: &Process, group| self.proc.stat(p.pid).is_ok_and(|stat| stat.group == group);
        members.retain(|process| group.is_none_or(|group| in_group(process, group)));
        Ok(members)
    }
}

/// Takes the routine's IDs and reads them back; afterwards no capability is left. What such a process does, it does
/// with the rights of the payload, and the payload cannot signal or trace it.
pub fn take_ids(ids: Ids) -> io::Result<()> {
    ids.check().map_err(|e| refused(format_args!("{e}")))?;
    sys::set_uids(ids.kill_uid, ids.uid, ids.kill_uid)?;
    sys::set_capabilities(Capabilities::default())?;
    if sys::uids()? != [ids.kill_uid, ids.uid, ids.kill_uid] {
        return Err(refused(format_args!("the IDs read back are not those that were set")));
    }
    Ok(())
}

#[cfg(test)]
#[path = "kill_tests.rs"]
mod tests;
