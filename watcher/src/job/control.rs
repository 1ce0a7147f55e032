//! What clients want of a job while it is under way, and waking whoever waits for the job.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use latebind_contract::text::printable;

use super::board::Board;
use crate::text::has_hung_up;

/// Signals that end a program which does not say otherwise: HUP, INT, QUIT, KILL, TERM.
const ENDING: [i32; 5] = [1, 2, 3, 9, 15];

/// Whether a signal ends a program that does not say otherwise.
pub fn ends(signal: i32) -> bool {
    ENDING.contains(&signal)
}

/// Highest number of a signal.
const SIGNAL_MAX: i32 = 64;
/// Most signals for all processes that wait to be sent.
const STEERS_MAX: usize = 16;
/// Most clients that wait for a connection to the job's container.
const CLIENTS_MAX: usize = 8;

/// Signals and cancellation for one job.
pub struct Control {
    /// What the job's monitor has found.
    pub board: Board,
    wanted: Mutex<Wanted>,
    wake: OwnedFd,
    woken: OwnedFd,
}

#[derive(Default)]
struct Wanted {
    signals: VecDeque<i32>,
    steer: VecDeque<Steer>,
    clients: VecDeque<OwnedFd>,
    cancel: Option<String>,
    /// How often that was wanted.
    cancels: u64,
    cancelled_at: Option<Instant>,
    at_once: bool,
}

/// A signal that is wanted for all processes of a payload, and where to say how many got it.
pub struct Steer {
    /// Its number.
    pub signal: i32,
    /// Goes without an answer where the job ends first.
    pub done: Sender<Result<u64, String>>,
}

impl Control {
    /// Nothing is wanted yet.
    pub fn new() -> io::Result<Self> {
        let (woken, wake) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
        Ok(Self { board: Board::default(), wanted: Mutex::default(), wake, woken })
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake();
    }

    /// Wakes whoever waits for the job.
    pub fn wake(&self) {
        let _ = nix::unistd::write(&self.wake, b"!");
    }

    /// Wants a signal sent to all of the payload's processes. The answer comes once that is done, or never.
    pub fn steer(&self, signal: i32) -> Receiver<Result<u64, String>> {
        let (done, answer) = channel();
        self.change(|w| {
            if w.steer.len() < STEERS_MAX {
                w.steer.push_back(Steer { signal, done });
            } else {
                let _ = done.send(Err(format!("{STEERS_MAX} signals wait to be sent already")));
            }
        });
        answer
    }

    /// The next signal for all processes.
    pub fn next_steer(&self) -> Option<Steer> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).steer.pop_front()
    }

    /// Wants a connection to the job's container sent through this socket of a client's, which waits for it.
    pub fn connect(&self, client: OwnedFd) -> Result<(), String> {
        let mut taken = Ok(());
        self.change(|w| {
            // One that has gone waits for nothing.
            w.clients.retain(|client| !has_hung_up(client.as_fd()));
            if w.clients.len() < CLIENTS_MAX {
                w.clients.push_back(client);
            } else {
                taken = Err(format!("{CLIENTS_MAX} clients wait for the job already"));
            }
        });
        taken
    }

    /// The client that has waited longest for a connection.
    pub fn next_client(&self) -> Option<OwnedFd> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clients.pop_front()
    }

    /// Nobody can be given a connection any more: clients that wait see the end of theirs.
    pub fn dismiss_clients(&self) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clients.clear();
    }

    /// Wants this signal sent to the job's main process. As with the kernel, one that waits already is not sent twice.
    pub fn signal(&self, signal: i32) {
        self.change(|w| {
            if (1..=SIGNAL_MAX).contains(&signal) && !w.signals.contains(&signal) {
                w.signals.push_back(signal);
            }
        });
    }

    /// Wants the job ended, for this reason.
    pub fn cancel(&self, why: &str) {
        self.change(|w| {
            w.cancel = Some(printable(why)); // it comes back in the report
            w.cancels += 1;
            w.cancelled_at.get_or_insert_with(Instant::now);
        });
    }

    /// How often the job's end was asked for.
    pub fn cancels(&self) -> u64 {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).cancels
    }

    /// Wants the job ended without any grace: nobody is left whom it could do good.
    pub fn abandon(&self, why: &str) {
        self.change(|w| {
            w.cancel.get_or_insert_with(|| why.to_owned());
            w.cancelled_at.get_or_insert_with(Instant::now);
            w.at_once = true;
        });
    }

    /// Whether the job is to be ended without grace.
    pub fn at_once(&self) -> bool {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).at_once
    }

    /// The next signal that is wanted.
    pub fn next_signal(&self) -> Option<i32> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).signals.pop_front()
    }

    /// Why the job is to be ended, if it is.
    pub fn cancelled(&self) -> Option<String> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).cancel.clone()
    }

    /// Why what is still done for the job's sake has to end, if it has to: it was cancelled, and its grace is over.
    pub fn given_up(&self, grace: Duration) -> Option<String> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let over = wanted.at_once || wanted.cancelled_at.is_some_and(|at| at.elapsed() >= grace);
        wanted.cancel.clone().filter(|_| over)
    }

    /// Why a job that has not started yet is not to start: it was cancelled, or a signal that ends programs waits for
    /// it.
    pub fn stop_wanted(&self) -> Option<String> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let ending = wanted.signals.iter().find(|s| ends(**s));
        wanted.cancel.clone().or_else(|| ending.map(|s| format!("told to end by signal {s}")))
    }

    /// Whether anything waits to be done to the job's processes.
    pub fn is_wanted(&self) -> bool {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.cancel.is_some() || !wanted.signals.is_empty() || !wanted.steer.is_empty()
    }

    /// Becomes readable when something is wanted.
    pub fn woken(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    /// Takes the wake-ups.
    pub fn settle(&self) {
        while nix::unistd::read(&self.woken, &mut [0; 64]).is_ok_and(|n| n > 0) {}
    }
}
