//! A process held by descriptor, so that neither a signal nor a wait can ever meet another one that got its number.

use latebind_linux::sys::{pidfd_open, signal_pidfd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

/// A process, running or ended.
#[derive(Debug)]
pub struct Process {
    fd: OwnedFd,
    pid: i32,
}

impl Process {
    /// Takes hold of the process that has the number `pid` now.
    pub fn open(pid: i32) -> io::Result<Self> {
        pidfd_open(pid).map(|fd| Self { fd, pid })
    }

    /// Takes hold of a child that was not waited for yet.
    pub fn of(child: &Child) -> io::Result<Self> {
        Self::open(i32::try_from(child.id()).map_err(io::Error::other)?)
    }

    /// Its number, which may be another process's once this one has ended.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends `signal`; a process that has ended already is not an error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match signal_pidfd(self.fd.as_fd(), signal as i32) {
            Err(e) if e.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
            sent => sent,
        }
    }

    /// Whether the process has ended; waits for that for at most `limit`.
    pub fn ended_within(&self, limit: Duration) -> io::Result<bool> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // Rounded up: a wait of 0 ms in a loop would be a busy one.
            let timeout = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_signalled_and_its_end_is_seen() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(&child).unwrap();
        assert!(!process.ended_within(Duration::from_millis(5)).unwrap());
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.ended_within(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        process.signal(Signal::SIGTERM).unwrap();
    }
}
