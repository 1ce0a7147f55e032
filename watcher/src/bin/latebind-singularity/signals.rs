//! Signals: passed on to the job, and remembered.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
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
    client: Option<Client>,
    waiting: Vec<i32>,
    ending: Option<i32>,
}

/// Signals from the first moment on.
pub struct Signals {
    state: Arc<Mutex<State>>,
    came: Receiver<i32>,
}

impl Signals {
    /// Takes them from now on.
    pub fn new() -> io::Result<Self> {
        let mut signals = iterator::Signals::new(PASSED_ON)?;
        let state: Arc<Mutex<State>> = Arc::default();
        let (tell, came) = channel();
        let shared = state.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if ENDING.contains(&signal) {
                    state.ending = Some(signal);
                    let _ = tell.send(signal);
                }
                match &state.client {
                    Some(client) => drop(client.signal("", signal)),
                    None => state.waiting.push(signal),
                }
            }
        })?;
        Ok(Self { state, came })
    }

    /// The job is submitted: signals go there, those that came before first.
    pub fn pass_to(&self, client: Client) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for signal in std::mem::take(&mut state.waiting) {
            let _ = client.signal("", signal);
        }
        state.client = Some(client);
    }

    /// The last signal that asked for an end.
    pub fn ending(&self) -> Option<i32> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ending
    }

    /// Waits, unless the end was or is asked for.
    pub fn wait(&self, time: Duration) {
        if self.ending().is_none() {
            match self.came.recv_timeout(time) {
                Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }
}
