//! Signals: passed on to the job, and remembered.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator;
use watcher::serve::client::Client;

/// Those that the job gets. Not CONT: the starter sends that to the job itself.
const PASSED_ON: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
/// Those that ask for an end.
const ENDING: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

#[derive(Default)]
struct State {
    client: Option<Arc<Client>>,
    /// Those that came before there was a job, each once: the job's UID is this process's, so there is no end to what
    /// it may send.
    waiting: Vec<i32>,
    ending: Option<i32>,
}

/// Signals from the first moment on.
pub struct Signals(Arc<(Mutex<State>, Condvar)>);

impl Signals {
    /// Takes them from now on.
    pub fn new() -> io::Result<Self> {
        let mut signals = iterator::Signals::new(PASSED_ON)?;
        let shared: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let taken = shared.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                let client = Self::lock(&taken).take(signal);
                taken.1.notify_all();
                // Not under the lock: the watcher may be slow to read.
                if let Some(client) = client {
                    let _ = client.signal("", signal);
                }
            }
        })?;
        Ok(Self(shared))
    }

    fn lock(shared: &(Mutex<State>, Condvar)) -> MutexGuard<'_, State> {
        shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job is submitted: signals go there, those that came before first.
    pub fn pass_to(&self, client: Client) {
        let mut state = Self::lock(&self.0);
        for signal in std::mem::take(&mut state.waiting) {
            let _ = client.signal("", signal);
        }
        state.client = Some(Arc::new(client));
    }

    /// The last signal that asked for an end.
    pub fn ending(&self) -> Option<i32> {
        Self::lock(&self.0).ending
    }

    /// Waits, unless the end was or is asked for.
    pub fn wait(&self, time: Duration) {
        drop(self.0.1.wait_timeout_while(Self::lock(&self.0), time, |state| state.ending.is_none()));
    }
}

impl State {
    /// Takes note of a signal; returns whom to tell.
    fn take(&mut self, signal: i32) -> Option<Arc<Client>> {
        if ENDING.contains(&signal) {
            self.ending = Some(signal);
        }
        if self.client.is_none() && !self.waiting.contains(&signal) {
            self.waiting.push(signal);
        }
        self.client.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_without_end_take_no_room() {
        let mut state = State::default();
        for signal in PASSED_ON.iter().cycle().take(10_000) {
            assert!(state.take(*signal).is_none());
        }
        assert_eq!(state.waiting, PASSED_ON);
        assert_eq!(state.ending, Some(SIGTERM));
    }
}
