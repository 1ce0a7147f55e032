//! Whether jobs can be run in this pod at all.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bind::Binder;
use crate::check;
use crate::finding::Grade;

/// How often a pod in which jobs cannot be run is checked again, and for how long at most.
const CHECK_AGAIN_AFTER: Duration = Duration::from_secs(1);
const CHECK_WITHIN: Duration = Duration::from_secs(180);

/// Nothing is claimed before every check was good once.
pub struct Gate {
    binder: Arc<dyn Binder>,
    private: PathBuf,
    slots: Vec<u32>,
    since: Instant,
    passed: bool,
    said: Vec<String>,
    next: Instant,
}

impl Gate {
    /// Shut, until the checks have been good once.
    pub fn new(binder: Arc<dyn Binder>, private: PathBuf, slots: usize) -> Self {
        Self {
            binder,
            private,
            slots: (0..u32::try_from(slots).unwrap_or(0)).collect(),
            since: Instant::now(),
            passed: false,
            said: Vec::new(),
            next: Instant::now(),
        }
    }

    /// Whether jobs may be claimed; an error once it has been shut for too long.
    pub fn is_open(&mut self) -> io::Result<bool> {
        if self.passed || Instant::now() < self.next {
            return Ok(self.passed);
        }
        let lines = check::all(self.binder.as_ref(), &self.slots, &self.private);
        self.next = Instant::now() + CHECK_AGAIN_AFTER;
        let bad: Vec<String> = lines.iter().filter(|l| l.grade == Grade::Fail).map(ToString::to_string).collect();
        if bad.is_empty() {
            self.passed = true;
            for line in lines.iter().filter(|l| l.grade == Grade::Warning) {
                tracing::warn!("check: {line}");
            }
            tracing::info!(lines = lines.len(), "check: jobs can be run here");
            return Ok(true);
        }
        if bad != self.said {
            bad.iter().for_each(|line| tracing::error!("check: {line}"));
            self.said.clone_from(&bad);
        }
        if self.since.elapsed() >= CHECK_WITHIN {
            return Err(io::Error::other(format!("no job can be run here: {}", bad.join(" | "))));
        }
        Ok(false)
    }
}
