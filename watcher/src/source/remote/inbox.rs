//! What comes from a source: one job, checked as a spool's job is, put into the pilot's own spool by one rename.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::{Answer, JobSource, Places, Reported, TimeLimit};
use crate::source::spool::{NAME_MAX, Spool, is_job_name};
use crate::store::{put_file, sync_dir};
use crate::text::printable;
use crate::tree::{self, Deadline};

/// Longest time for removing what an earlier question has left.
const CLEAR_WITHIN: Duration = Duration::from_secs(60);

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// A job of this name is in the spool.
    Job(String),
    /// There is none now; how long to wait, where the source says so.
    Nothing(Option<Duration>),
    /// The source could not be asked, or has answered with what cannot be a job; it was logged.
    Failed(Option<Duration>),
}

/// All that has to be understood of a job here; the rest is checked when it is claimed, and reported.
#[derive(Deserialize)]
struct Named {
    name: String,
}

/// Fetches jobs.
pub struct Inbox {
    source: Arc<dyn JobSource>,
    spool: Spool,
    reported: Arc<Reported>,
    dir: PathBuf,
    limit: TimeLimit,
}

impl Inbox {
    /// From this source into this spool.
    pub fn new(
        source: Arc<dyn JobSource>,
        spool: Spool,
        reported: Arc<Reported>,
        places: &Places,
        limit: TimeLimit,
    ) -> Self {
        Self { source, spool, reported, dir: places.fetch(), limit }
    }

    /// Asks the source for one job.
    pub fn fetch(&self) -> Fetched {
        let failed = |why: String, after| {
            tracing::error!("no job was fetched: {}", printable(&why));
            Fetched::Failed(after)
        };
        if let Err(e) = self.clear() {
            return failed(format!("{}: {e}", self.dir.display()), None);
        }
        let fetched = match self.source.fetch(&self.dir, &self.limit) {
            Ok(Answer::Nothing(after)) => Fetched::Nothing(after),
            Ok(Answer::Job(text)) => match self.take(&text) {
                Ok(name) => {
                    tracing::info!(job = %name, "fetched");
                    Fetched::Job(name)
                }
                Err(e) => failed(e.to_string(), None),
            },
            Err(e) => failed(e.why, e.retry_after),
        };
        if !matches!(fetched, Fetched::Job(_)) {
            let _ = self.clear();
        }
        fetched
    }

    /// An empty directory for the next job.
    fn clear(&self) -> io::Result<()> {
        tree::remove_tree(&self.dir, &Deadline::within(CLEAR_WITHIN))?;
        DirBuilder::new().mode(0o700).create(&self.dir)
    }

    /// Puts a job into the spool, under its name.
    fn take(&self, text: &[u8]) -> io::Result<String> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let named: Named = serde_json::from_slice(text)
            .map_err(|e| invalid(format!("what the source gave is not a job.json with a name: {e}")))?;
        let name = named.name;
        if !is_job_name(name.as_ref()) {
            let rule = format!("1 to {NAME_MAX} letters, digits, '.', '_' or '-', not beginning with '.'");
            return Err(invalid(format!("the source gave a job of the name {name:?}: a name is {rule}")));
        }
        if self.reported.contains(&name) {
            return Err(invalid(format!("the source gave {name} again, whose result it has: not run again")));
        }
        if self.spool.has(&name) {
            return Err(invalid(format!("the source gave {name} again, which this pilot has: not run twice")));
        }
        put_file(&self.dir.join("job.json"), text, 0o600)?;
        fs::rename(&self.dir, self.spool.new_dir().join(&name))?;
        sync_dir(&self.spool.new_dir())?;
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::super::{Over, SourceError};
    use super::*;
    use std::path::Path;
    use std::sync::Mutex;

    struct Answers(Mutex<Vec<Result<Answer, SourceError>>>);

    impl JobSource for Answers {
        fn fetch(&self, dir: &Path, _: &TimeLimit) -> Result<Answer, SourceError> {
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
            fs::write(dir.join("data"), "beside job.json").unwrap();
            self.0.lock().unwrap().pop().unwrap()
        }

        fn report(&self, _: &Over<'_>, _: &TimeLimit) -> Result<(), SourceError> {
            Ok(())
        }
    }

    fn ask(top: &Path, answer: Result<Answer, SourceError>) -> Fetched {
        let places = Places::new(top);
        let spool = Spool::open(&places.spool(), "p").unwrap();
        let reported = Arc::new(Reported::open(places.reported()).unwrap());
        let source = Arc::new(Answers(Mutex::new(vec![answer])));
        Inbox::new(source, spool, reported, &places, TimeLimit::default()).fetch()
    }

    fn job(text: &str) -> Result<Answer, SourceError> {
        Ok(Answer::Job(text.into()))
    }

    #[test]
    fn a_job_enters_the_spool_whole_and_once() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        let text = r#"{"name":"a","image":"i","argv":["x"]}"#;
        assert_eq!(ask(top, job(text)), Fetched::Job("a".into()));
        let put = top.join("source/spool/new/a");
        assert_eq!(fs::read_to_string(put.join("job.json")).unwrap(), text);
        assert!(put.join("data").exists());
        for place in ["new", "retry", "claimed/p", "done", "held"] {
            fs::rename(&put, top.join("elsewhere")).unwrap();
            let there = top.join("source/spool").join(place).join("a");
            fs::rename(top.join("elsewhere"), &there).unwrap();
            assert_eq!(ask(top, job(text)), Fetched::Failed(None), "{place}");
            fs::rename(there, &put).unwrap();
        }
        fs::remove_dir_all(&put).unwrap();
        Reported::open(Places::new(top).reported()).unwrap().add("a").unwrap();
        assert_eq!(ask(top, job(text)), Fetched::Failed(None));
        assert!(!put.exists());
    }

    #[test]
    fn what_is_not_a_job_of_a_good_name_is_not_taken_and_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let long = format!(r#"{{"name":"{}"}}"#, "a".repeat(NAME_MAX + 1));
        for bad in ["", "{}", "[]", r#"{"name":1}"#, r#"{"name":"a","name":"b"}"#, r#"{"name":"../a"}"#, &long] {
            assert_eq!(ask(scratch.path(), job(bad)), Fetched::Failed(None), "{bad}");
        }
        let later = Some(Duration::from_secs(7));
        assert_eq!(ask(scratch.path(), Ok(Answer::Nothing(later))), Fetched::Nothing(later));
        let error = SourceError { why: "away".into(), retry_after: later };
        assert_eq!(ask(scratch.path(), Err(error)), Fetched::Failed(later));
        assert_eq!(fs::read_dir(scratch.path().join("source/spool/new")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(scratch.path().join("source/fetch")).unwrap().count(), 0);
    }
}
