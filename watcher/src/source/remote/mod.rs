//! Jobs from elsewhere: a source that is asked for one job after the other, and gets a report of each.
//!
//! Such a pilot has a spool of its own in its private volume, which one thread fills and another one empties. Claims,
//! attempts, restarts and delivery are those of any spool; only what enters it and what leaves it is known here.
//!
//! ```text
//! <private>/source/spool/     a spool that nobody else uses
//! <private>/source/fetch/     a job that is being fetched; moved into the spool's new/ by one rename
//! <private>/source/reported   names of jobs whose result the source has
//! <private>/source/trash/     results that the source has, while they are being removed
//! ```

pub mod command;
pub mod http;
mod inbox;
mod outbox;
mod reported;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::job::Report;

pub use self::inbox::{Fetched, Inbox};
pub use self::outbox::Outbox;
pub use self::reported::Reported;

/// Where jobs are fetched from and reported to.
pub trait JobSource: Send + Sync {
    /// Asks for a job. Files that belong beside its `job.json` may be put into `dir`, which is empty.
    fn fetch(&self, dir: &Path, limit: &TimeLimit) -> Result<Answer, SourceError>;

    /// Says what came of a job. It may be called again for the same result, after a failure or a restart.
    fn report(&self, over: &Over<'_>, limit: &TimeLimit) -> Result<(), SourceError>;
}

/// What a source answers when it is asked for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A job: `job.json`, with its name.
    Job(Vec<u8>),
    /// No job now, and how long to wait before the next question, where the source says so.
    Nothing(Option<Duration>),
}

/// A job that is over, or given back.
#[derive(Clone, Copy, Debug)]
pub struct Over<'a> {
    /// The job's name.
    pub name: &'a str,
    /// The directory with `report.json`, and what else there is of its result.
    pub result: &'a Path,
    /// The report.
    pub report: &'a Report,
}

/// Why a source could not be asked, or did not take a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// In words, for the operator; foreign text in it is made printable where it is logged.
    pub why: String,
    /// How long to wait before the next try, where the source says so.
    pub retry_after: Option<Duration>,
}

impl SourceError {
    /// Without a time to wait.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), retry_after: None }
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<std::io::Error> for SourceError {
    fn from(e: std::io::Error) -> Self {
        Self::new(e.to_string())
    }
}

/// When whatever is under way with a source has to be over: nothing to say while the pilot serves, and soon once it
/// ends. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct TimeLimit(Arc<Mutex<Option<Instant>>>);

impl TimeLimit {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything is over by then.
    pub fn end_at(&self, at: Instant) {
        *self.lock() = Some(at);
    }

    /// What is left of `within`, which began at `began`.
    pub fn left(&self, began: Instant, within: Duration) -> Duration {
        let own = within.saturating_sub(began.elapsed());
        self.lock().map_or(own, |at| own.min(at.saturating_duration_since(Instant::now())))
    }
}

/// The places of a pilot with a source, in its private volume.
#[derive(Clone, Debug)]
pub struct Places(PathBuf);

impl Places {
    /// Beneath this private volume.
    pub fn new(private: &Path) -> Self {
        Self(private.join("source"))
    }

    /// The spool.
    pub fn spool(&self) -> PathBuf {
        self.0.join("spool")
    }

    /// Where a job is fetched.
    pub fn fetch(&self) -> PathBuf {
        self.0.join("fetch")
    }

    /// The file with the names of reported jobs.
    pub fn reported(&self) -> PathBuf {
        self.0.join("reported")
    }

    /// An archive of a result, while it is sent.
    pub fn archive(&self) -> PathBuf {
        self.0.join("result.tar.gz")
    }

    /// What is being removed.
    pub fn trash(&self) -> PathBuf {
        self.0.join("trash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_pilot_shortens_what_is_left() {
        let limit = TimeLimit::default();
        let hour = Duration::from_secs(3600);
        let minute = Duration::from_secs(60);
        assert!(limit.left(Instant::now(), hour) > minute);
        limit.clone().end_at(Instant::now() + minute);
        assert!(limit.left(Instant::now(), hour) <= minute);
        limit.end_at(Instant::now());
        assert_eq!(limit.left(Instant::now(), hour), Duration::ZERO);
        assert_eq!(TimeLimit::default().left(Instant::now(), Duration::ZERO), Duration::ZERO);
    }
}
