//! Tells the engine whether the pod has work, so that whoever makes room takes a pod without.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bind::Binder;

/// How long a pod is without work before that is told: jobs that follow each other are one piece of work.
const IDLE_FOR: Duration = Duration::from_secs(5);

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
            told.follow(|busy| {
                if let Err(e) = binder.mark(busy) {
                    tracing::warn!(busy, "the pod is not marked as idle or busy: {e}");
                }
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

    /// Tells each change once, whatever comes of it.
    fn follow(&self, mut tell: impl FnMut(bool)) {
        let mut told = None;
        loop {
            let mut busy = self.lock();
            while *busy == told {
                busy = self.changed.wait(busy).unwrap_or_else(PoisonError::into_inner);
            }
            if *busy == Some(false) && told.is_some() {
                let idle = self.changed.wait_timeout_while(busy, IDLE_FOR, |busy| *busy == Some(false));
                busy = idle.map_or_else(|e| e.into_inner().0, |(busy, _)| busy);
                if *busy == Some(true) {
                    continue;
                }
            }
            told = *busy;
            drop(busy);
            told.into_iter().for_each(&mut tell);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn each_change_is_told_once_and_a_short_pause_is_none() {
        let (marks, (say, said)) = (Arc::new(Marks::default()), std::sync::mpsc::channel());
        let told = marks.clone();
        std::thread::spawn(move || told.follow(|busy| say.send(busy).unwrap()));
        let next = || said.recv_timeout(Duration::from_secs(30)).unwrap();
        marks.set(false);
        assert!(!next(), "at first there is no work");
        marks.set(true);
        assert!(next());
        marks.set(false);
        marks.set(true);
        assert!(said.recv_timeout(IDLE_FOR + Duration::from_secs(1)).is_err());
        marks.set(false);
        assert!(!next());
    }
}
