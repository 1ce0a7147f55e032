//! What can happen to glue, and waiting for it: one poll(2) over a signalfd and what else is waited for.
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
    /// Somebody told this process to stop, with this signal.
    Stop(i32),
    /// A child ended or stopped.
    Child,
    /// The descriptor has something to read, or has ended.
    Readable,
    /// The deadline has passed.
    Deadline,
}

/// The signals of a process. A fork of it reads its own from the same descriptor.
pub struct Events(OwnedFd);

impl Events {
    /// Blocks all signals.
    pub fn new() -> io::Result<Self> {
        Ok(Self(sys::signal_fd()?))
    }

    /// Waits for the next event. Signals come first: whoever says stop is heard before a new job is looked for.
    ///
    /// `idle` says that there is no job: the wait takes little memory, and has no deadline.
    pub fn next(&self, idle: bool, other: Option<BorrowedFd<'_>>, deadline: Option<Instant>) -> io::Result<Event> {
        loop {
            while let Some(signal) = sys::next_signal(self.0.as_fd())? {
                if let Some(event) = meaning(&signal) {
                    return Ok(event);
                }
            }
            let signals = PollFd::new(self.0.as_fd(), PollFlags::POLLIN);
            let mut wait = [signals, PollFd::new(other.unwrap_or(self.0.as_fd()), PollFlags::POLLIN)];
            let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
                // Rounded up to milliseconds, so that the deadline has passed when poll returns.
                let left = deadline.saturating_duration_since(Instant::now()).saturating_add(ALMOST_A_MILLISECOND);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            // A job may be hours away.
            let polled = if idle { sys::wait_for_long(&mut wait) } else { poll(&mut wait, timeout).map(drop) };
            match polled {
                Ok(()) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let [signals, other] = wait.map(|polled| polled.any() == Some(true));
            if signals {
                continue;
            }
            if other {
                return Ok(Event::Readable);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Event::Deadline);
            }
        }
    }
}

/// What a signal means. An image chooses the signal that stops it, so any that can be caught means stop, but for
/// SIGCONT: that continues a glue which somebody has suspended.
fn meaning(signal: &sys::Signal) -> Option<Event> {
    match signal.number {
        SIGCHLD if signal.code > FROM_A_PROCESS => Some(Event::Child),
        SIGCONT => None,
        // Our own write to a pipe without a reader (SIGPIPE) counts as sent by ourselves.
        _ if signal.sender == std::process::id() => None,
        number => Some(Event::Stop(number)),
    }
}
