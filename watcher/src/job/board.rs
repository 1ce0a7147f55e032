//! What the monitor of a job has found, where everybody else reads it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::limits::{Crossed, Limits};
use super::relay::Meter;
use super::usage::{Summary, Usage};

/// What the monitor of a job has found, for whoever wants to know.
#[derive(Debug, Default)]
pub struct Board {
    /// What it has put out so far.
    pub output: Meter,
    inner: Mutex<Inner>,
    pub(super) changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// Which of the job's monitors is the one that counts.
    pub(super) epoch: u64,
    pub(super) summary: Option<Summary>,
    pub(super) limits: Limits,
    pub(super) all_stopped: bool,
    pub(super) crossed: Option<Crossed>,
    pub(super) at_once: bool,
}

/// A job as it is now, for `watcher top`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// What it uses.
    pub usage: Usage,
    /// What it may use.
    pub limits: Limits,
    /// Whether all of its processes are stopped.
    pub stopped: bool,
}

impl Board {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the job's usage so far.
    pub fn summary(&self) -> Option<Summary> {
        self.lock().summary.clone()
    }

    /// The job as it is now; `None` while nobody watches it.
    pub fn live(&self) -> Option<Live> {
        let inner = self.lock();
        let usage = inner.summary.as_ref().filter(|s| s.samples > 0)?.last;
        Some(Live { usage, limits: inner.limits, stopped: inner.all_stopped })
    }

    /// The limits that hold.
    pub fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// The limit that was crossed, and whether there is no time for a grace period.
    pub fn crossed(&self) -> Option<(Crossed, bool)> {
        let inner = self.lock();
        inner.crossed.clone().map(|crossed| (crossed, inner.at_once))
    }
}
