//! Tells the engine whether the pod has work, so that whoever makes room takes a pod without.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bind::{Binder, Reason};

/// How long a pod is without work before that is told: jobs that follow each other are one piece of work.
const IDLE_FOR: Duration = Duration::from_secs(5);

/// When it is told again, where nobody was there to hear it.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What is to be told.
#[derive(Debug, Default)]
pub struct Marks {
    /// `None`: not known yet.
    busy: Mutex<Option<bool>>,
    changed: Condvar,
}

impl Marks {
    /// Starts to tell, in a thread of its own: nobody waits for the answer.
    pub fn start(binder: Arc<dyn Binder>) -> std::io::Result<Arc<Self>> {
        let marks = Arc::new(Self::default());
        let told = marks.clone();
        std::thread::Builder::new().name("marks".into()).spawn(move || {
            told.follow(AGAIN_AFTER, |busy| {
                let marked = binder.mark(busy);
                if let Err(e) = &marked {
                    tracing::warn!(busy, "the pod is not marked as idle or busy: {e}");
                }
                // What is not allowed now is not allowed later either.
                !marked.is_err_and(|e| e.reason == Reason::ApiUnavailable)
            });
        })?;
        Ok(marks)
    }

    /// Whether there is work now.
    pub fn set(&self, busy: bool) {
        let mut now = self.lock();
        if *now != Some(busy) {
            *now = Some(busy);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<bool>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells each change; again after a time, where `tell` says that it has not arrived.
    fn follow(&self, again_after: Duration, mut tell: impl FnMut(bool) -> bool) {
        let (mut told, mut arrived) = (None, true);
        loop {
            let wait = if arrived { Duration::MAX } else { again_after };
            let changed = self.changed.wait_timeout_while(self.lock(), wait, |busy| *busy == told);
            let mut busy = changed.map_or_else(|e| e.into_inner().0, |(busy, _)| busy);
            if *busy == Some(false) && told == Some(true) {
                let idle = self.changed.wait_timeout_while(busy, IDLE_FOR, |busy| *busy == Some(false));
                busy = idle.map_or_else(|e| e.into_inner().0, |(busy, _)| busy);
                if *busy == told && arrived {
                    continue;
                }
            }
            told = *busy;
            drop(busy);
            arrived = told.is_none_or(&mut tell);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn each_change_is_told_until_it_arrives_and_a_short_pause_is_none() {
        let (marks, (say, said)) = (Arc::new(Marks::default()), std::sync::mpsc::channel());
        let told = marks.clone();
        // Once nobody hears it.
        let mut deaf = true;
        std::thread::spawn(move || {
            told.follow(Duration::from_millis(10), |busy| {
                say.send(busy).unwrap();
                !std::mem::replace(&mut deaf, false)
            });
        });
        let next = || said.recv_timeout(Duration::from_secs(30)).unwrap();
        marks.set(false);
        assert!(!next(), "at first there is no work");
        assert!(!next(), "it is told again");
        marks.set(true);
        assert!(next());
        marks.set(false);
        marks.set(true);
        assert!(said.recv_timeout(IDLE_FOR + Duration::from_secs(1)).is_err());
        marks.set(false);
        assert!(!next());
    }
}
