//! The kill routine: ends every process of one payload UID in one container, and nothing else.
//!
//! `kill(-1)` as root would reach the pilot; as the payload UID it would reach what the pilot runs under that UID, and
//! the payload could stop or kill the killer. So it runs in a child with real and saved UID K and effective UID P: by
//! kill(2) such a process may signal P, and P may not signal it. It stops everything of P at once (a fork in progress
//! notices the pending signal and does not complete), then kills one by one what is in the container. Afterwards the
//! rest is continued.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::refused;
use crate::processes::{Pinned, Proc, Process};
use crate::sys::{self, Capabilities, Fork};
use latebind_contract::layout::Ids;

/// How long to wait between two looks at a child that neither reports nor ends.
const LOOK_EVERY_MS: u16 = 5;

/// What is to be ended.
pub struct Routine<'a> {
    /// `/proc` of the PID namespace.
    pub proc: &'a Proc,
    /// The slot's numbers.
    pub ids: Ids,
    /// The cgroups text of the container, as [`Proc::cgroup`] gives it.
    pub cgroup: &'a str,
}

/// What the child ends with besides 0, which says that none is left.
const SOME_LEFT: i32 = 1;
/// It did not get its IDs, or may signal nobody: another try would end like this one.
const REFUSED: i32 = 2;

impl Routine<'_> {
    /// Runs the routine until none is left or `deadline` has passed. Returns how many processes still live.
    pub fn run(&self, deadline: Instant) -> io::Result<u64> {
        self.ids.check().map_err(|e| refused(format_args!("{e}")))?;
        let outside = self.split()?.1;
        let left = self.end_all(deadline);
        // Here and not in the child, which may have been cut off: what was stopped on the way goes on, whatever
        // happened.
        for process in self.split()?.1 {
            if !outside.iter().any(|before| before.pid == process.pid && before.is_stopped()) {
                self.signal_one(process.pid, false, Signal::SIGCONT);
            }
        }
        left
    }

    fn end_all(&self, deadline: Instant) -> io::Result<u64> {
        loop {
            match self.run_child(deadline) {
                Ok(0) => return Ok(0),
                Ok(REFUSED) => {
                    let message = "the kill routine did not get the IDs that it needs, and ended nothing";
                    return Err(refused(format_args!("{message}")));
                }
                // Somebody killed or stalled the child, or a process cannot be ended: again, as long as there is time.
                Ok(_) => {}
                // No process can be made, because the payload has taken all: make room one by one.
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory) => {
                    self.signal(None, Signal::SIGKILL)?;
                }
                Err(e) => return Err(e),
            }
            let left = self.inside()?.len() as u64;
            if left == 0 || Instant::now() >= deadline {
                return Ok(left);
            }
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
    fn signal_one(&self, pid: i32, inside: bool, signal: Signal) {
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

    /// Makes the child and waits for it: what it ended with.
    fn run_child(&self, deadline: Instant) -> io::Result<i32> {
        let (end_seen, end): (OwnedFd, OwnedFd) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let pid = match sys::fork()? {
            Fork::Child => sys::exit_now(match self.as_child(deadline) {
                Ok(()) => 0,
                Err(e) if e.raw_os_error() == Some(nix::libc::EPERM) => REFUSED,
                Err(_) => SOME_LEFT,
            }),
            Fork::Parent(pid) => pid,
        };
        drop(end);
        let mut end_seen = std::fs::File::from(end_seen);
        // A little more than the child has, so that it can report by itself.
        let last = deadline + Duration::from_millis(200);
        loop {
            match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED))? {
                WaitStatus::Exited(_, code) => return Ok(code),
                WaitStatus::Signaled(..) => return Ok(SOME_LEFT),
                // Another container's routine of the same slot may stop ours, for a moment.
                WaitStatus::Stopped(..) => sys::signal_process(pid, Signal::SIGCONT as i32)?,
                _ if Instant::now() >= last => sys::signal_process(pid, Signal::SIGKILL as i32)?,
                _ => {}
            }
            let mut wait = [PollFd::new(end_seen.as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, PollTimeout::from(LOOK_EVERY_MS)).is_ok_and(|n| n > 0) {
                let _ = end_seen.read(&mut [0]); // end of file: the child is gone, and will be reaped above
                std::thread::yield_now();
            }
        }
    }

    /// The child: takes the IDs, proves that it has them, then stops everything and kills what is in the container.
    fn as_child(&self, deadline: Instant) -> io::Result<()> {
        take_ids(self.ids).map_err(|_| io::Error::from_raw_os_error(nix::libc::EPERM))?;
        loop {
            match sys::stop_all_of(self.ids.uid, self.ids.kill_uid) {
                // Nothing of this UID anywhere but, perhaps, what has ended and waits to be reaped.
                Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(()),
                stopped => stopped?,
            }
            self.signal(None, Signal::SIGKILL)?;
            if self.inside()?.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
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
