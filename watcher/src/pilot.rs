//! `watcher pilot`: the loop over a spool, with as many jobs at once as there are slots.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use glue::contract::encoding::hex;

use crate::bind::{Binder, Class, Failure, Reason};
use crate::check::{self, Grade};
use crate::job::{Phase, Report, is_id, now, rfc3339};
use crate::serve::Core;
use crate::serve::client::Client;
use crate::source::spool::{Claimed, Spool};

/// How often the spool is looked at while there is nothing to do.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long to wait before a report is delivered again.
const DELIVER_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// How often a pod in which jobs can not be run is checked again, and for how long at most.
const CHECK_AGAIN_AFTER: Duration = Duration::from_secs(1);
const CHECK_WITHIN: Duration = Duration::from_secs(180);

/// What the loop needs to know.
#[derive(Clone)]
pub struct Loop {
    /// The spool.
    pub spool: PathBuf,
    /// The core's socket.
    pub socket: PathBuf,
    /// How images are bound: while that is not possible, no job is claimed that could only fail.
    pub binder: Arc<dyn Binder>,
    /// The core, which knows how many slots can be given a job.
    pub core: Core,
    /// The private volume, which knows the pilot's name.
    pub private: PathBuf,
    /// The pilot's name, if it is given one.
    pub name: Option<String>,
    /// How many jobs at once.
    pub slots: usize,
    /// Attempts that a job has before it is held.
    pub max_attempts: u32,
    /// Ends once nothing waited for this long; never, where it is `None`.
    pub idle_exit: Option<Duration>,
}

/// The name under which jobs are claimed: the same in every life of this pilot.
fn own_name(private: &Path, given: Option<&str>) -> io::Result<String> {
    if let Some(given) = given {
        let invalid = || io::Error::other(format!("--name {given:?}: use 1 to 128 letters, digits, '.', '_' or '-'"));
        return is_id(given).then(|| given.to_owned()).ok_or_else(invalid);
    }
    let path = private.join("name");
    match std::fs::read_to_string(&path) {
        Ok(name) if is_id(&name) => return Ok(name),
        Ok(bad) => tracing::error!("{}: {bad:?} is not a pilot's name; a new one is made", path.display()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) if e.kind() == io::ErrorKind::InvalidData => tracing::error!("{}: {e}", path.display()),
        Err(e) => return Err(e),
    }
    let mut random = [0; 6];
    glue::sys::random(&mut random)?;
    let name = format!("pilot-{}", hex(&random));
    crate::store::put_file(&path, name.as_bytes(), 0o600)?;
    Ok(name)
}

/// Serves the spool until there is nothing more to do, or `stop` is set. Returns how many jobs were brought to an end.
pub fn run(settings: &Loop, stop: &Arc<AtomicBool>) -> io::Result<usize> {
    let name = own_name(&settings.private, settings.name.as_deref())?;
    let spool = Spool::open(&settings.spool, &name)?;
    let mut unfinished = give_back_lost(&settings.private, &spool, settings.max_attempts)?;
    tracing::info!(pilot = %name, spool = %settings.spool.display(), unfinished = unfinished.len(), "serving");
    forget_delivered(settings, &unfinished)?;
    let (busy, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut idle_since = Instant::now();
    let mut gate = Gate {
        settings: settings.clone(),
        since: Instant::now(),
        passed: false,
        said: Vec::new(),
        next: Instant::now(),
    };
    while !stop.load(Ordering::Relaxed) {
        if busy.load(Ordering::Relaxed) + settings.core.restoring() >= settings.slots {
            idle_since = Instant::now();
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let next = match unfinished.pop() {
            Some(claimed) => Some(claimed),
            None if !gate.is_open()? || settings.binder.ready().is_err() => {
                std::thread::sleep(LOOK_EVERY);
                continue;
            }
            None => spool.claim().unwrap_or_else(|e| {
                tracing::error!("the spool can not be read: {e}");
                None
            }),
        };
        let Some(claimed) = next else {
            if busy.load(Ordering::Relaxed) > 0 || !spool.is_empty().unwrap_or(false) {
                idle_since = Instant::now();
            }
            if settings.idle_exit.is_some_and(|limit| idle_since.elapsed() >= limit) {
                break;
            }
            std::thread::sleep(LOOK_EVERY);
            continue;
        };
        busy.fetch_add(1, Ordering::Relaxed);
        let (settings, spool, busy, over) = (settings.clone(), spool.clone(), busy.clone(), over.clone());
        let stop = stop.clone();
        std::thread::Builder::new().name("job".into()).spawn(move || {
            // Asking the core again never runs the job again: so a spool that is full for a while costs no result.
            while let Err(e) = one_job(&settings, &spool, &claimed, &stop) {
                tracing::error!(job = %claimed.name, "not delivered yet: {e}");
                if stop.load(Ordering::Relaxed) || !claimed.is_here() {
                    break;
                }
                std::thread::sleep(DELIVER_AGAIN_AFTER);
            }
            over.fetch_add(1, Ordering::Relaxed);
            busy.fetch_sub(1, Ordering::Relaxed);
        })?;
    }
    while busy.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(over.load(Ordering::Relaxed))
}

/// Nothing is claimed before every check was good once.
struct Gate {
    settings: Loop,
    since: Instant,
    passed: bool,
    said: Vec<String>,
    next: Instant,
}

impl Gate {
    /// Whether jobs may be claimed; an error once it has been shut for too long.
    fn is_open(&mut self) -> io::Result<bool> {
        if self.passed || Instant::now() < self.next {
            return Ok(self.passed);
        }
        let slots: Vec<u32> = (0..u32::try_from(self.settings.slots).unwrap_or(0)).collect();
        let lines = check::all(self.settings.binder.as_ref(), &slots, &self.settings.private);
        self.next = Instant::now() + CHECK_AGAIN_AFTER;
        let bad: Vec<String> = lines.iter().filter(|l| l.grade == Grade::Bad).map(ToString::to_string).collect();
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

/// What an earlier life of this pod has left unfinished. What another pod of this name had claimed is lost with that pod: it goes back
/// as an attempt that was made, else a job that ends its pilots would be every next one's first.
fn give_back_lost(private: &Path, spool: &Spool, most: u32) -> io::Result<Vec<Claimed>> {
    let (mark, mut unfinished) = (private.join("serves"), spool.unfinished()?);
    if mark.exists() {
        return Ok(unfinished);
    }
    for claimed in unfinished.drain(..) {
        let lost =
            Failure::retry(Reason::PilotLost, "the pod in which this attempt was made is gone, and its word with it");
        let to = spool.deliver(&claimed, &refused(&claimed, &lost), most)?;
        tracing::warn!(job = %claimed.name, attempt = claimed.attempt, to, "claimed by an earlier pod of this name");
    }
    crate::store::put_file(&mark, b"", 0o600)?;
    Ok(unfinished)
}

/// Reports that were delivered before the core could be told so.
fn forget_delivered(settings: &Loop, unfinished: &[Claimed]) -> io::Result<()> {
    let client = Client::connect(&settings.socket)?;
    for line in client.jobs()? {
        let wanted = unfinished.iter().any(|c| line.job == format!("{}.{}", c.name, c.attempt));
        if line.phase == Phase::Done && !wanted {
            client.forget(&line.job)?;
        }
    }
    Ok(())
}

/// One claimed job, from the core to its place in the spool.
fn one_job(settings: &Loop, spool: &Spool, claimed: &Claimed, stop: &AtomicBool) -> io::Result<()> {
    let report = match claimed.request() {
        Err(why) => refused(claimed, &Failure::hold(Reason::InvalidJob, why)),
        Ok(request) => {
            if let Err(why) = request.check() {
                refused(claimed, &Failure::hold(Reason::InvalidJob, why))
            } else {
                let client = Client::connect(&settings.socket)?;
                let canceller = client.try_clone()?;
                let ended = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        while !ended.load(Ordering::Relaxed) {
                            if stop.load(Ordering::Relaxed) {
                                let _ = canceller.cancel(&request.id, "the pilot was told to stop");
                                return;
                            }
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    });
                    let report = client.run(&request, &[], |_| ());
                    ended.store(true, Ordering::Relaxed);
                    report
                })?
            }
        }
    };
    let to = spool.deliver(claimed, &report, settings.max_attempts)?;
    tracing::info!(job = %claimed.name, attempt = claimed.attempt, class = ?report.class, reason = %report.reason, to, "delivered");
    if report.class != Class::Hold || report.slot.is_some() {
        Client::connect(&settings.socket)?.forget(&report.job)?;
    }
    Ok(())
}

/// The report of a job that the core was never asked to run.
fn refused(claimed: &Claimed, failure: &Failure) -> Report {
    let request = claimed.request().unwrap_or_else(|_| claimed.unreadable());
    let mut report = Report::new(&request);
    (report.class, report.reason, report.message) = (failure.class, failure.reason, failure.message.clone());
    report.finished_at = rfc3339(now());
    report
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use std::fs;

    #[test]
    fn a_pilot_keeps_its_name_and_makes_a_new_one_where_it_is_unreadable() {
        let scratch = tempfile::tempdir().unwrap();
        let private = scratch.path();
        let name = own_name(private, None).unwrap();
        assert_eq!(own_name(private, None).unwrap(), name);
        for bad in [&b""[..], b"../x", b"\xff"] {
            fs::write(private.join("name"), bad).unwrap();
            let new = own_name(private, None).unwrap();
            assert!(is_id(&new) && new != name, "{new}");
        }
        assert_eq!(own_name(private, Some("given")).unwrap(), "given");
        for bad in ["", "a/b", "..", ".hidden"] {
            assert!(own_name(private, Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_lost_pod_had_claimed_is_an_attempt() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        let job = top.join("spool/new/a");
        fs::create_dir_all(&job).unwrap();
        fs::write(job.join("job.json"), r#"{"image":"i","argv":["x"]}"#).unwrap();
        let spool = Spool::open(&top.join("spool"), "p").unwrap();
        let begin = |pod: &str| {
            fs::create_dir_all(top.join(pod)).unwrap();
            give_back_lost(&top.join(pod), &spool, 2).unwrap().len()
        };
        assert_eq!(begin("first"), 0);
        assert!(spool.claim().unwrap().is_some());
        assert_eq!(begin("first"), 1, "the same pod goes on with it");
        assert_eq!(begin("second"), 0);
        assert!(job.join("result.1/report.json").is_file(), "it waits for its next attempt");
        fs::remove_file(job.join("not-before")).unwrap();
        assert_eq!(spool.claim().unwrap().unwrap().attempt, 2);
        assert_eq!(begin("third"), 0);
        assert!(top.join("spool/held/a/result/report.json").is_file(), "after the last one it is held");
    }
}
