//! The spool: a directory that users put jobs into and pilots take them from; several pilots can share it.
//!
//! ```text
//! new/<job>/               job.json, inputs/, files that job.json names; put there by one rename
//! claimed/<pilot>/<job>/   taken by one rename, so by one pilot
//! done/<job>/result/       over: report.json, record.jws, stdout, stderr, outputs/
//! held/<job>/result/       will fail again until its user changes something
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glue::contract::layout::is_component;
use glue::contract::startup::{EnvFormat, EnvMode, Object, Rlimit};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown};
use serde::Deserialize;

use crate::bind::Class;
use crate::job::limits::Limits;
use crate::job::{EnvSource, Report, Request, is_id, now};
use crate::store::put_file;
use crate::tree;

/// Longest name of a job here; the attempt's number is added to it.
const NAME_MAX: usize = 117;

/// Longest time that a job has to wait for its next attempt, seconds. What says more was written by another clock, or before this
/// one was set back, and is not waited for.
const DELAY_MAX: u64 = 256;

/// Largest `job.json`.
const JOB_FILE_MAX: u64 = 1 << 20;

/// `job.json`. Unknown fields are refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobFile {
    image: String,
    argv: Vec<String>,
    #[serde(default)]
    owner: String,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    env_mode: EnvMode,
    /// Names of files beside job.json.
    #[serde(default)]
    env_files: Vec<EnvName>,
    #[serde(default)]
    cwd: Option<String>,
    #[serde(default)]
    umask: Option<String>,
    #[serde(default)]
    rlimits: Object<Rlimit>,
    #[serde(default)]
    links: Object<String>,
    #[serde(default)]
    passwd: bool,
    #[serde(default)]
    timeout_s: f64,
    #[serde(default)]
    limits: Limits,
    #[serde(default = "ten")]
    grace_s: f64,
    #[serde(default = "ten")]
    kill_s: f64,
    /// Name of a file beside job.json.
    #[serde(default)]
    stdin: Option<String>,
    #[serde(default)]
    outputs: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvName {
    name: String,
    format: EnvFormat,
}

const fn ten() -> f64 {
    10.0
}

/// A spool as one pilot uses it.
#[derive(Clone, Debug)]
pub struct Spool {
    root: PathBuf,
    claimed: PathBuf,
}

/// A job that this pilot has claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Its name, without the attempt.
    pub name: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    dir: PathBuf,
}

impl Spool {
    /// Opens the spool, and makes what is missing of it.
    pub fn open(root: &Path, pilot: &str) -> io::Result<Self> {
        let claimed = root.join("claimed").join(pilot);
        for dir in [root.join("new"), root.join("done"), root.join("held"), claimed.clone()] {
            fs::create_dir_all(&dir).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", dir.display())))?;
        }
        Ok(Self { root: root.to_owned(), claimed })
    }

    /// What this pilot, in an earlier life, has claimed and not brought to an end.
    pub fn unfinished(&self) -> io::Result<Vec<Claimed>> {
        let mut unfinished = Vec::new();
        for name in names(&self.claimed)? {
            let dir = self.claimed.join(&name);
            match take_over(&dir, false) {
                // Killed between taking it and counting that: still the first attempt, or that of the last count.
                Ok(()) => unfinished.push(Claimed { attempt: attempts(&dir).max(1), dir, name }),
                Err(e) => tracing::error!(job = %name, "stays claimed, and is left alone: {e}"),
            }
        }
        Ok(unfinished)
    }

    /// Claims the next job that may run now: one rename decides who has it.
    pub fn claim(&self) -> io::Result<Option<Claimed>> {
        for name in names(&self.root.join("new"))? {
            let (from, to) = (self.root.join("new").join(&name), self.claimed.join(&name));
            if not_before(&from) > now() {
                continue;
            }
            match fs::rename(&from, &to) {
                // Another pilot was quicker.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                // One entry that can not be had (its name is under way already, say) keeps no other from being served.
                Err(e) => {
                    tracing::debug!(job = %name, "can not be claimed now: {e}");
                    continue;
                }
                Ok(()) => {}
            }
            let counted = take_over(&to, true).and_then(|()| {
                let attempt = attempts(&to).saturating_add(1);
                put_file(&to.join("attempts"), attempt.to_string().as_bytes(), 0o644).map(|()| attempt)
            });
            match counted {
                Ok(attempt) => return Ok(Some(Claimed { name, attempt, dir: to })),
                Err(e) => tracing::error!(job = %name, "stays claimed, and is left alone: {e}"),
            }
        }
        Ok(None)
    }

    /// Whether no job waits, now or later.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(names(&self.root.join("new"))?.is_empty())
    }

    /// Puts a job's report beside its results and moves it where its class says. A job that may run again goes back, with a
    /// delay that doubles, until it has had `most` attempts.
    pub fn deliver(&self, claimed: &Claimed, report: &Report, most: u32) -> io::Result<&'static str> {
        let result = claimed.dir.join("result");
        fs::create_dir_all(&result)?;
        put_file(&result.join("report.json"), crate::text::json_for_people(report)?.as_bytes(), 0o644)?;
        let to = match report.class {
            Class::Final => "done",
            Class::Retry if claimed.attempt < most => "new",
            Class::Retry | Class::Hold => "held",
        };
        if to == "new" {
            let kept = claimed.dir.join(format!("result.{}", claimed.attempt));
            let _ = fs::remove_dir_all(&kept);
            fs::rename(&result, &kept)?;
            let delay = Duration::from_secs((1 << claimed.attempt.min(8)).min(DELAY_MAX)).as_secs_f64();
            put_file(&claimed.dir.join("not-before"), format!("{:.3}", now() + delay).as_bytes(), 0o644)?;
        }
        let target = free_name(&self.root.join(to), &claimed.name);
        fs::rename(&claimed.dir, target)?;
        Ok(to)
    }
}

/// Makes a claimed directory root's, so that whoever put it there can not exchange what lies in it, and puts aside what stands
/// where our own files go. What is deeper in it may still be changed, and is opened without following links.
fn take_over(dir: &Path, fresh: bool) -> io::Result<()> {
    let fd = tree::open_dir(dir)?;
    fchown(&fd, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))?;
    fchmod(&fd, Mode::from_bits_truncate(0o755))?;
    for name in ["attempts", "not-before", "result", "report.tmp", "attempts.tmp", "not-before.tmp"] {
        let path = dir.join(name);
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let ours = metadata.uid() == 0
            && match name {
                "attempts" | "not-before" => metadata.is_file(),
                // A fresh claim has no result yet; one that is taken up again may have.
                _ => !fresh && metadata.is_dir(),
            };
        if !ours {
            fs::rename(&path, free_name(dir, &format!("{name}.not-ours")))?;
        }
    }
    Ok(())
}

/// A path in `dir` that is not taken: an earlier job of the same name keeps its place.
fn free_name(dir: &Path, name: &str) -> PathBuf {
    let mut path = dir.join(name);
    let mut n = 1;
    while path.symlink_metadata().is_ok() {
        n += 1;
        path = dir.join(format!("{name}.{n}"));
    }
    path
}

/// Names of the directories in `dir` that can be jobs, sorted.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(dir)?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_id(name) && name.len() <= NAME_MAX)
        .collect();
    names.sort();
    Ok(names)
}

/// The number in a small file, which others may have put there: no link is followed, and nothing is waited for.
fn number(path: &Path) -> Option<f64> {
    let mut text = String::new();
    tree::open_file(path).and_then(|file| file.take(64).read_to_string(&mut text)).ok()?;
    text.trim().parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)
}

fn attempts(dir: &Path) -> u32 {
    number(&dir.join("attempts")).map_or(0, |n| n as u32)
}

fn not_before(dir: &Path) -> f64 {
    number(&dir.join("not-before")).filter(|at| *at <= now() + DELAY_MAX as f64).unwrap_or(0.0)
}

impl Claimed {
    /// Whether the job is still this pilot's to deliver.
    pub fn is_here(&self) -> bool {
        self.dir.is_dir()
    }

    /// The job as the core takes it.
    pub fn request(&self) -> Result<Request, String> {
        let path = self.dir.join("job.json");
        let mut text = Vec::new();
        tree::open_file(&path)
            .and_then(|file| file.take(JOB_FILE_MAX + 1).read_to_end(&mut text))
            .map_err(|e| format!("job.json: {e}"))?;
        if text.len() as u64 > JOB_FILE_MAX {
            return Err(format!("job.json: has more than {JOB_FILE_MAX} bytes"));
        }
        let job: JobFile = serde_json::from_slice(&text).map_err(|e| format!("job.json: {e}"))?;
        let beside = |name: &str| -> Result<PathBuf, String> {
            if is_component(name) {
                Ok(self.dir.join(name))
            } else {
                Err(format!("{name:?} is no file beside job.json"))
            }
        };
        let env_files = job.env_files.iter().map(|f| Ok(EnvSource { path: beside(&f.name)?, format: f.format }));
        let inputs = self.dir.join("inputs");
        Ok(Request {
            image: job.image,
            argv: job.argv,
            owner: job.owner,
            env: job.env,
            env_mode: job.env_mode,
            env_files: env_files.collect::<Result<_, String>>()?,
            cwd: job.cwd,
            umask: job.umask,
            rlimits: job.rlimits,
            links: job.links,
            passwd: job.passwd,
            timeout_s: job.timeout_s,
            limits: job.limits,
            grace_s: job.grace_s,
            kill_s: job.kill_s,
            inputs: inputs.symlink_metadata().is_ok().then_some(inputs),
            stdin: job.stdin.as_deref().map(beside).transpose()?,
            results: Some(self.dir.join("result")),
            outputs: job.outputs,
            ..self.unreadable()
        })
    }

    /// A request that stands for a job whose file can not be read, for its report.
    pub fn unreadable(&self) -> Request {
        Request { attempt: self.attempt, ..Request::new(format!("{}.{}", self.name, self.attempt)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool() -> (tempfile::TempDir, Spool) {
        let scratch = tempfile::tempdir().unwrap();
        let spool = Spool::open(scratch.path(), "p").unwrap();
        (scratch, spool)
    }

    fn put(spool: &Spool, name: &str, text: &str) {
        let dir = spool.root.join("new").join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("job.json"), text).unwrap();
    }

    #[test]
    fn a_job_is_claimed_by_one_pilot() {
        let (scratch, first) = spool();
        let second = Spool::open(scratch.path(), "q").unwrap();
        put(&first, "a", r#"{"image":"i","argv":["x"]}"#);
        let claimed = first.claim().unwrap().unwrap();
        assert_eq!((claimed.name.as_str(), claimed.attempt), ("a", 1));
        assert!(second.claim().unwrap().is_none());
        assert_eq!(first.unfinished().unwrap().len(), 1);
        let request = claimed.request().unwrap();
        assert_eq!((request.id.as_str(), request.image.as_str()), ("a.1", "i"));
    }

    #[test]
    fn classes_decide_where_a_job_goes() {
        let (_scratch, spool) = spool();
        for (class, most, to) in
            [(Class::Final, 3, "done"), (Class::Hold, 3, "held"), (Class::Retry, 1, "held"), (Class::Retry, 3, "new")]
        {
            put(&spool, "a", r#"{"image":"i","argv":["x"]}"#);
            let claimed = spool.claim().unwrap().unwrap();
            let mut report = Report::new(&claimed.request().unwrap());
            report.class = class;
            assert_eq!(spool.deliver(&claimed, &report, most).unwrap(), to);
        }
        assert!(spool.claim().unwrap().is_none(), "not before its delay is over");
        assert!(!spool.is_empty().unwrap());
        assert_eq!(attempts(&spool.root.join("new/a")), 1);
        assert!(spool.root.join("held/a.2").is_dir(), "the second of its name keeps a place of its own");
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_no_job_waiting() {
        let (_scratch, spool) = spool();
        for (name, at, is_due) in
            [("a", now() + 200.0, false), ("b", now() + 3_600.0, true), ("c", now() - 1e9, true), ("d", 1e300, true)]
        {
            put(&spool, name, r#"{"image":"i","argv":["x"]}"#);
            fs::write(spool.root.join("new").join(name).join("not-before"), format!("{at:.3}")).unwrap();
            let claimed = spool.claim().unwrap();
            assert_eq!(claimed.map(|c| c.name), is_due.then(|| name.to_owned()), "{name}");
        }
    }

    #[test]
    fn bad_job_files_say_why() {
        let (_scratch, spool) = spool();
        for (name, text, why) in [
            ("a", "{", "EOF"),
            ("b", r#"{"image":"i"}"#, "argv"),
            ("c", r#"{"image":"i","argv":[],"imgae":1}"#, "imgae"),
            ("d", r#"{"image":"i","argv":["x"],"stdin":"../x"}"#, "beside"),
        ] {
            put(&spool, name, text);
            let refused = spool.claim().unwrap().unwrap().request();
            assert!(refused.as_ref().is_err_and(|e| e.contains(why)), "{name}: {refused:?}");
        }
    }
}
