//! What can happen to glue, and waiting for it: one poll(2) over a signalfd, the FIFO of the watcher, and stage two's
//! pipe.
//!
//! All signals are blocked for good and read from a signalfd: no handler runs, so nothing can be interrupted.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGCHLD, SIGCONT};

use latebind_linux::sys;

/// `SI_USER` and `SI_TKILL` of sigaction(2): codes up to 0 come from a process, those above from the kernel.
const FROM_A_PROCESS: i32 = 0;

const ALMOST_A_MILLISECOND: Duration = Duration::from_nanos(999_999);

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody told glue to stop, with this signal.
    Stop(i32),
    /// A child ended or stopped.
    Child,
    /// The watcher has notified: a file may be there.
    Notified,
    /// Stage two's pipe has something to read, or has ended.
    Pipe,
    /// The deadline has passed.
    Deadline,
}

/// Everything that glue waits for.
pub struct Events {
    signals: OwnedFd,
    notify: OwnedFd,
    own_pid: u32,
}

impl Events {
    /// Blocks all signals and takes over `glue.notify`, a FIFO that was opened for reading and writing.
    pub fn new(notify: OwnedFd) -> io::Result<Self> {
        Ok(Self { signals: sys::signal_fd()?, notify, own_pid: std::process::id() })
    }

    /// Waits for the next event. Signals come first: whoever says stop is heard before a new job is looked for.
    ///
    /// `busy` says that a job runs: notifications then wait.
    pub fn next(&self, busy: bool, pipe: Option<BorrowedFd<'_>>, deadline: Option<Instant>) -> io::Result<Event> {
        loop {
            while let Some(signal) = sys::next_signal(self.signals.as_fd())? {
                if let Some(event) = self.meaning(&signal) {
                    return Ok(event);
                }
            }
            let other = pipe.unwrap_or_else(|| self.notify.as_fd());
            let mut wait =
                [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN), PollFd::new(other, PollFlags::POLLIN)];
            // While a job runs, the FIFO is not listened to: its byte stays in the FIFO until the job is over.
            let count = if busy && pipe.is_none() { 1 } else { 2 };
            let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
                // Rounded up to milliseconds, so that the deadline has passed when poll returns.
                let left = deadline.saturating_duration_since(Instant::now()).saturating_add(ALMOST_A_MILLISECOND);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            if !busy {
                sys::release_code_pages(); // a job may be hours away
            }
            match poll(wait.get_mut(..count).unwrap_or_default(), timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let [signals, other] = &wait;
            if signals.any() == Some(true) {
                continue;
            }
            if count == 2 && other.any() == Some(true) {
                if pipe.is_some() {
                    return Ok(Event::Pipe);
                }
                self.drain();
                return Ok(Event::Notified);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Event::Deadline);
            }
        }
    }

    /// What a signal means. An image chooses the signal that stops it, so any that can be caught means stop, but for
    /// SIGCONT: that continues a glue which somebody has suspended.
    fn meaning(&self, signal: &sys::Signal) -> Option<Event> {
        match signal.number {
            SIGCHLD if signal.code > FROM_A_PROCESS => Some(Event::Child),
            SIGCONT => None,
            // Our own write to a pipe without a reader (SIGPIPE) counts as sent by ourselves.
            _ if signal.sender == self.own_pid => None,
            number => Some(Event::Stop(number)),
        }
    }

    /// Empties the FIFO; its bytes say nothing but that there is news.
    fn drain(&self) {
        let mut bytes = [0; 64];
        while nix::unistd::read(&self.notify, &mut bytes).is_ok_and(|n| n == bytes.len()) {}
    }
}
