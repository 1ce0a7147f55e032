//! The request that this program stops: SIGTERM or SIGINT. It is waited for, not polled.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Whether a stop was requested. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Stop(Arc<(Mutex<Inner>, Condvar)>);

#[derive(Default)]
struct Inner {
    requested: bool,
    then: Vec<Box<dyn FnOnce() + Send>>,
}

impl Stop {
    /// Requested by SIGTERM or SIGINT, from now on.
    pub fn on_signals() -> io::Result<Self> {
        let (stop, mut signals) = (Self::default(), Signals::new([SIGTERM, SIGINT])?);
        let requested = stop.clone();
        std::thread::Builder::new().name("stop".into()).spawn(move || {
            for _ in signals.forever() {
                requested.request();
            }
        })?;
        Ok(stop)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests the stop.
    pub fn request(&self) {
        let mut inner = self.lock();
        inner.requested = true;
        let then = std::mem::take(&mut inner.then);
        drop(inner);
        self.0.1.notify_all();
        then.into_iter().for_each(|then| then());
    }

    /// Whether it was requested.
    pub fn is_requested(&self) -> bool {
        self.lock().requested
    }

    /// Calls `then` once the stop is requested, from another thread; at once where it was already.
    pub fn then(&self, then: impl FnOnce() + Send + 'static) {
        let mut inner = self.lock();
        if inner.requested {
            drop(inner);
            then();
        } else {
            inner.then.push(Box::new(then));
        }
    }

    /// Waits for the request.
    pub fn wait(&self) {
        let inner = self.lock();
        drop(self.0.1.wait_while(inner, |inner| !inner.requested));
    }

    /// Waits for the request, at most `within`.
    pub fn wait_within(&self, within: Duration) {
        let inner = self.lock();
        drop(self.0.1.wait_timeout_while(inner, within, |inner| !inner.requested));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "a test ends where it fails")]

    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_request_wakes_whatever_waits_for_it() {
        let stop = Stop::default();
        assert!(!stop.is_requested());
        stop.wait_within(Duration::from_millis(1));
        let (tell, called) = channel();
        let again = tell.clone();
        stop.then(move || tell.send("before").unwrap());
        let waits = std::thread::spawn({
            let stop = stop.clone();
            move || stop.wait()
        });
        stop.request();
        waits.join().unwrap();
        stop.wait();
        stop.wait_within(Duration::from_secs(3600));
        stop.then(move || again.send("after").unwrap());
        assert!(stop.is_requested());
        assert_eq!(called.into_iter().collect::<Vec<_>>(), ["before", "after"]);
    }
}
