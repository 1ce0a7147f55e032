//! What goes back to a source: the result of each job, until the source has taken it. It stays on disk until then.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{JobSource, Over, Places, Reported, TimeLimit};
use crate::bind::Class;
use crate::job::Report;
use crate::pace::Pace;
use crate::store::read_bounded;
use crate::text::printable;
use crate::tree::{self, Deadline};

/// Waits between two tries for the same result.
const PACE: Pace = Pace { first: Duration::from_secs(2), most: Duration::from_secs(300) };
/// Largest report that is read.
const REPORT_MAX: u64 = 8 << 20;
/// Longest time for removing one result at a time; what is left is removed later.
const REMOVE_WITHIN: Duration = Duration::from_secs(60);

/// When a result is offered again.
#[derive(Clone, Copy)]
struct Due {
    tries: u32,
    at: Instant,
}

/// Reports results.
pub struct Outbox {
    source: Arc<dyn JobSource>,
    reported: Arc<Reported>,
    spool: PathBuf,
    trash: PathBuf,
    limit: TimeLimit,
    due: HashMap<PathBuf, Due>,
    backlog: Arc<AtomicUsize>,
}

impl Outbox {
    /// From the spool of these places to this source.
    pub fn new(
        source: Arc<dyn JobSource>,
        reported: Arc<Reported>,
        places: &Places,
        limit: TimeLimit,
    ) -> io::Result<Self> {
        let trash = places.trash();
        DirBuilder::new().recursive(true).mode(0o700).create(&trash)?;
        let outbox = Self {
            source,
            reported,
            spool: places.spool(),
            trash,
            limit,
            due: HashMap::new(),
            backlog: Arc::default(),
        };
        outbox.backlog.store(outbox.entries(&["done", "held"]).len(), Ordering::SeqCst);
        Ok(outbox)
    }

    /// How many results the source does not have yet.
    pub fn backlog(&self) -> Arc<AtomicUsize> {
        self.backlog.clone()
    }

    fn entries(&self, places: &[&str]) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for place in places {
            let dir = self.spool.join(place);
            match fs::read_dir(&dir) {
                Ok(entries) => found.extend(entries.flatten().map(|entry| entry.path())),
                Err(e) => tracing::error!("{}: {e}", dir.display()),
            }
        }
        found.sort();
        found
    }

    /// Offers each result that is due. Returns when the next one is.
    pub fn round(&mut self) -> Option<Instant> {
        self.offer(&["done", "held"], false)
    }

    /// Offers all that the source does not have, once: results, and jobs that wait for another attempt, which are given
    /// back. For the end of the pilot.
    pub fn last_round(&mut self) {
        self.offer(&["done", "held", "retry"], true);
        let left = self.backlog.load(Ordering::SeqCst);
        if left > 0 {
            tracing::warn!(left, "results that the source does not have stay in {}", self.spool.display());
        }
    }

    fn offer(&mut self, places: &[&str], at_once: bool) -> Option<Instant> {
        self.empty_trash();
        let entries = self.entries(places);
        self.due.retain(|path, _| entries.contains(path));
        self.backlog.store(entries.len(), Ordering::SeqCst);
        let mut next: Option<Instant> = None;
        for entry in entries {
            let due = self.due.get(&entry).copied();
            let waits = due.filter(|due| !at_once && due.at > Instant::now());
            let again = match waits {
                Some(due) => Some(due.at),
                None if at_once && self.limit.left(Instant::now(), Duration::MAX).is_zero() => break,
                None => self.offer_one(&entry, due.map_or(0, |due| due.tries)),
            };
            match again {
                None => {
                    self.due.remove(&entry);
                    self.backlog.fetch_sub(1, Ordering::SeqCst);
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
            }
        }
        next
    }

    /// Offers one result. `None`: the source has it.
    fn offer_one(&mut self, entry: &Path, tries: u32) -> Option<Instant> {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (why, after) = match self.report(entry, &name) {
            Ok(()) => return None,
            Err(refused) => refused,
        };
        let tries = tries.saturating_add(1);
        let wait = PACE.wait(tries, after);
        tracing::error!(job = %name, tries, "not reported yet, again in {:.0?}: {}", wait, printable(&why));
        let at = Instant::now() + wait;
        self.due.insert(entry.to_owned(), Due { tries, at });
        Some(at)
    }

    fn report(&self, entry: &Path, name: &str) -> Result<(), (String, Option<Duration>)> {
        let own = |e: io::Error| (e.to_string(), None);
        if !self.reported.contains(name) {
            let result = result_of(entry).map_err(own)?;
            let path = result.join("report.json");
            let read = tree::open_file(&path).and_then(|file| read_bounded(file, REPORT_MAX));
            let report = read.and_then(|bytes| serde_json::from_slice::<Report>(&bytes).map_err(Into::into));
            let report = report.map_err(|e| (format!("{}: {e}", path.display()), None))?;
            let over = Over { name, result: &result, report: &report };
            self.source.report(&over, &self.limit).map_err(|e| (e.why, e.retry_after))?;
            tracing::info!(job = %name, class = report.class.name(), "reported");
            // A retry is not a result: the source may give it out again, also to this pilot.
            if report.class != Class::Retry {
                self.reported.add(name).map_err(own)?;
            }
        }
        self.discard(entry).map_err(own)
    }

    /// Takes a result out of the spool in one step, and removes it.
    fn discard(&self, entry: &Path) -> io::Result<()> {
        let trash = self.trash.join(entry.file_name().unwrap_or_default());
        remove(&trash)?;
        fs::rename(entry, &trash)?;
        if let Err(e) = remove(&trash) {
            tracing::warn!("{}: removed later: {e}", trash.display());
        }
        Ok(())
    }

    fn empty_trash(&self) {
        for entry in fs::read_dir(&self.trash).into_iter().flatten().flatten() {
            if let Err(e) = remove(&entry.path()) {
                tracing::warn!("{}: removed later: {e}", entry.path().display());
            }
        }
    }
}

/// Where the result of a job is: of its last attempt, where it waits for another one.
fn result_of(entry: &Path) -> io::Result<PathBuf> {
    let last = entry.join("result");
    if last.exists() {
        return Ok(last);
    }
    let number = |name: &str| name.strip_prefix("result.")?.parse::<u32>().ok();
    let names = fs::read_dir(entry)?.flatten().filter_map(|e| number(e.file_name().to_str()?));
    let latest = names.max().ok_or_else(|| io::Error::other(format!("{}: has no result", entry.display())))?;
    Ok(entry.join(format!("result.{latest}")))
}

fn remove(dir: &Path) -> io::Result<()> {
    tree::remove_tree(dir, &Deadline::within(REMOVE_WITHIN))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::super::{Answer, SourceError};
    use super::*;
    use crate::job::Request;
    use std::sync::Mutex;

    /// Refuses so many reports, and remembers which job came with which class.
    #[derive(Default)]
    struct Picky {
        refuses: AtomicUsize,
        had: Mutex<Vec<String>>,
    }

    impl JobSource for Picky {
        fn fetch(&self, _: &Path, _: &TimeLimit) -> Result<Answer, SourceError> {
            Ok(Answer::Nothing(None))
        }

        fn report(&self, over: &Over<'_>, _: &TimeLimit) -> Result<(), SourceError> {
            assert!(over.result.join("report.json").exists());
            self.had.lock().unwrap().push(format!("{} {}", over.name, over.report.class.name()));
            let refuses = self.refuses.load(Ordering::SeqCst);
            self.refuses.store(refuses.saturating_sub(1), Ordering::SeqCst);
            if refuses > 0 { Err(SourceError::new("away")) } else { Ok(()) }
        }
    }

    struct Case {
        scratch: tempfile::TempDir,
        source: Arc<Picky>,
    }

    impl Case {
        fn new(refuses: usize) -> Self {
            let source = Arc::new(Picky { refuses: refuses.into(), had: Mutex::default() });
            Self { scratch: tempfile::tempdir().unwrap(), source }
        }

        fn places(&self) -> Places {
            Places::new(self.scratch.path())
        }

        fn reported(&self) -> Arc<Reported> {
            Arc::new(Reported::open(self.places().reported()).unwrap())
        }

        fn outbox(&self) -> Outbox {
            fs::create_dir_all(self.places().spool().join("held")).unwrap();
            Outbox::new(self.source.clone(), self.reported(), &self.places(), TimeLimit::default()).unwrap()
        }

        fn put(&self, path: &str, class: Class) -> PathBuf {
            let dir = self.places().spool().join(path);
            fs::create_dir_all(&dir).unwrap();
            let report = Report { class, ..Report::new(&Request::new("x.1".into())) };
            fs::write(dir.join("report.json"), serde_json::to_string(&report).unwrap()).unwrap();
            dir.parent().unwrap().to_owned()
        }

        fn had(&self) -> Vec<String> {
            std::mem::take(&mut self.source.had.lock().unwrap())
        }
    }

    #[test]
    fn a_result_is_kept_until_the_source_has_it_and_is_then_gone() {
        let case = Case::new(1);
        let [a, b] = [case.put("done/a/result", Class::Final), case.put("held/b/result", Class::Hold)];
        let mut outbox = case.outbox();
        assert!(outbox.round().is_some(), "one was refused");
        assert_eq!(case.had(), ["a final", "b hold"], "and the other one has not waited for that");
        assert!(a.exists() && !b.exists());
        assert_eq!(outbox.backlog().load(Ordering::SeqCst), 1);
        assert!(outbox.round().is_some() && case.had().is_empty(), "not due yet");
        outbox.due.values_mut().for_each(|due| due.at = Instant::now());
        assert_eq!(outbox.round(), None);
        assert!(!a.exists() && outbox.backlog().load(Ordering::SeqCst) == 0);
        assert!(["a", "b"].iter().all(|name| case.reported().contains(name)));
    }

    #[test]
    fn what_was_reported_before_a_restart_is_not_reported_again() {
        let case = Case::new(0);
        let dir = case.put("done/a/result", Class::Final);
        case.reported().add("a").unwrap();
        fs::create_dir_all(case.places().trash().join("a/result")).unwrap();
        assert_eq!(case.outbox().round(), None);
        assert!(!dir.exists() && case.had().is_empty());
    }

    #[test]
    fn at_the_end_jobs_that_wait_are_given_back_and_may_come_again() {
        let case = Case::new(0);
        case.put("retry/a/result.9", Class::Retry);
        let dir = case.put("retry/a/result.10", Class::Retry);
        let mut outbox = case.outbox();
        fs::create_dir_all(case.places().spool().join("done")).unwrap();
        assert_eq!(outbox.round(), None);
        assert!(dir.exists() && case.had().is_empty(), "while the pilot serves it is the pilot's");
        outbox.last_round();
        assert_eq!(case.had(), ["a retry"]);
        assert!(!dir.exists() && !case.reported().contains("a"));
    }

    #[test]
    fn what_has_no_report_stays_and_keeps_nothing_else() {
        let case = Case::new(0);
        fs::create_dir_all(case.places().spool().join("done/a")).unwrap();
        let b = case.put("done/b/result", Class::Final);
        let mut outbox = case.outbox();
        assert!(outbox.round().is_some());
        assert!(!b.exists() && case.places().spool().join("done/a").exists());
    }
}
