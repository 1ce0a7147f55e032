//! The spool: a directory that users put jobs into and pilots take them from; several pilots can share it.
//!
//! ```text
//! new/<job>/               the users': job.json, inputs/, files that job.json names; put there by one rename
//! claimed/<pilot>/<job>/   root's, as are the others; the user's directory is in it, moved there by one rename
//! retry/<job>/             waits for its next attempt, by any pilot
//! done/<job>/              over
//! held/<job>/              will fail again until its user changes something; also what is not a job
//! ```
//!
//! What is in root's directories is believed, since nobody else can write there. What is in a user's is opened beneath
//! it, without following links, and is never written.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::claimed::{SUBMITTED, remove_unused};
use super::{Claimed, own_dir};
use crate::bind::{Class, Failure, Reason};
use crate::job::{Report, is_id, now};
use crate::random::random_hex;
use crate::store::{put_file, sync_dir};
use crate::text::json_for_people;

/// Longest name of a job here: with the attempt's number, it is the name of a job of the core.
pub const NAME_MAX: usize = 117;

/// Most attempts that do not count: a job whose inputs find no room is tried again, and not for ever.
const EXCUSED_MAX: u32 = 100;

/// Longest time that a job has to wait for its next attempt, seconds. What says more was written by another clock, or
/// before this one was set back, and is not waited for.
pub const DELAY_MAX: u64 = 256;

/// So many names of a place are tried in order, before a random one is taken.
const NUMBERED_MAX: u32 = 100;

/// How much is written to find out whether there is room in the spool.
const PROBE_BYTES: usize = 256 << 10;

/// Begins the names of what is being moved to `held/`; a random suffix and the job's name follow.
const ASIDE: &str = ".aside-";
/// Characters of a random suffix.
const SUFFIX_LEN: usize = 16;

/// Name of the file that is written to find out whether there is room.
const ROOM: &str = ".room";

/// A spool as one pilot uses it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spool {
    root: PathBuf,
    claimed: PathBuf,
}

/// Whether a name can be a job's.
pub fn is_job_name(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| is_id(name) && name.len() <= NAME_MAX)
}

fn random_suffix() -> io::Result<String> {
    random_hex::<{ SUFFIX_LEN / 2 }>()
}

/// Whether a directory could not be renamed because something else has the name.
fn is_taken(e: &io::Error) -> bool {
    let taken = [Errno::EEXIST, Errno::ENOTEMPTY, Errno::ENOTDIR, Errno::EISDIR];
    e.raw_os_error().is_some_and(|errno| taken.contains(&Errno::from_raw(errno)))
}

impl Spool {
    /// Opens the spool; creates what is missing of it, and refuses what could be exchanged by others.
    pub fn open(root: &Path, pilot: &str) -> io::Result<Self> {
        own_dir::check_top(root)?;
        let spool = Self { root: root.to_owned(), claimed: root.join("claimed").join(pilot) };
        spool.ensure()?;
        let new = spool.new_dir();
        fs::create_dir_all(&new)?;
        let (theirs, ours) = (new.symlink_metadata()?, spool.claimed.symlink_metadata()?);
        if !theirs.is_dir() || theirs.dev() != ours.dev() {
            let why = "has to be a directory on the file system of the spool: a job is claimed by one rename";
            return Err(io::Error::other(format!("{}: {why}", new.display())));
        }
        Ok(spool)
    }

    /// Root's own directories, as they have to be.
    fn ensure(&self) -> io::Result<()> {
        for place in ["claimed", "retry", "done", "held"] {
            own_dir::ensure(&self.root.join(place))?;
        }
        own_dir::ensure(&self.claimed)
    }

    /// Where users put jobs.
    pub fn new_dir(&self) -> PathBuf {
        self.root.join("new")
    }

    /// Where jobs wait for their next attempt.
    pub fn retry_dir(&self) -> PathBuf {
        self.root.join("retry")
    }

    /// Where a claim of this name is.
    pub fn claim_dir(&self, name: &str) -> PathBuf {
        self.claimed.join(name)
    }

    /// Whether a job of this name is anywhere that a pilot which serves the spool alone could have it.
    pub fn has(&self, name: &str) -> bool {
        let places = ["new", "retry", "done", "held"].map(|place| self.root.join(place));
        places.iter().chain([&self.claimed]).any(|place| place.join(name).symlink_metadata().is_ok())
    }

    /// How many jobs wait to be claimed, now or later, counted up to `most`.
    pub fn waiting(&self, most: usize) -> usize {
        let entries = [self.new_dir(), self.retry_dir()].into_iter().filter_map(|dir| fs::read_dir(dir).ok());
        entries.flatten().take(most).count()
    }

    /// What this pilot, in an earlier life, has claimed and not brought to an end.
    pub fn unfinished(&self) -> io::Result<Vec<Claimed>> {
        let mut unfinished = Vec::new();
        for entry in fs::read_dir(&self.claimed)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            // Killed between making the directory and moving the job into it, or while looking for room.
            if remove_unused(&path) || (name == ROOM && fs::remove_file(&path).is_ok()) {
                continue;
            }
            let is_claim = own_dir::is_roots(&path) && path.join(SUBMITTED).symlink_metadata().is_ok();
            match name.to_str().filter(|_| is_claim && is_job_name(&name)) {
                Some(name) => unfinished.push(Claimed::resume(path, name)?),
                None => self.clear(&path, &name),
            }
        }
        Ok(unfinished)
    }

    /// Moves to `held/` what lies in the pilot's directory and is not a claim.
    fn clear(&self, path: &Path, name: &OsStr) {
        let shown = printable_name(name);
        let aside = name.to_str().and_then(|name| name.strip_prefix(ASIDE));
        if aside.is_some() && path.join("claim").symlink_metadata().is_err() {
            // Killed before the claim was moved into it: what is here is only the report.
            if let Err(e) = fs::remove_dir_all(path) {
                tracing::error!("{}: cannot be removed: {e}", path.display());
            }
            return;
        }
        let moved = if let Some(name) = aside {
            self.place(path, "held", name.get(SUFFIX_LEN + 1..).unwrap_or("set-aside"))
        } else {
            let failure = Failure::hold(Reason::InvalidJob, "was in the pilot's directory of claims, and is not one");
            Claimed::new(path.to_owned(), &shown)
                .and_then(|claim| self.set_aside(path, &shown, &claim.refusal(&failure)))
        };
        match moved {
            Ok(()) => tracing::warn!("{}: is not a claim; set aside in held/", path.display()),
            Err(e) => tracing::error!("{}: is not a claim, and cannot be set aside: {e}", path.display()),
        }
    }

    /// Moves an entry of `new/` into a directory of root's own, by one rename: that decides which pilot has it.
    /// `Ok(false)`: another one was quicker.
    pub fn take(&self, entry: &OsStr, own: &Path) -> io::Result<bool> {
        match fs::rename(self.new_dir().join(entry), own.join(SUBMITTED)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Whether there is room for results.
    pub fn has_room(&self) -> bool {
        has_room(&self.claimed)
    }

    /// Puts a job's report beside its results and moves it where its class says. A job that may run again waits in
    /// `retry/`, for a time that doubles, until it has had `most` attempts that count. Can be repeated after a failure
    /// at any step.
    pub fn deliver(&self, claimed: &Claimed, report: &Report, most: u32) -> io::Result<&'static str> {
        let counts = report.reason != Reason::VolumeHeld || claimed.excused() >= EXCUSED_MAX;
        let place = match report.class {
            Class::Final => "done",
            Class::Retry if !counts || claimed.attempts() < most => "retry",
            Class::Retry | Class::Hold => "held",
        };
        let kept = claimed.result_of(claimed.attempt);
        if place != "retry" || !kept.exists() {
            claimed.create_result()?;
            put_file(&claimed.result().join("report.json"), self.report(report)?.as_bytes(), 0o644)?;
        }
        if place == "retry" {
            if !kept.exists() {
                fs::rename(claimed.result(), &kept)?;
            }
            let delay = (1 << claimed.attempt.min(8)).min(DELAY_MAX);
            claimed.write_next_attempt(now() + delay as f64, counts)?;
        }
        self.place(claimed.dir(), place, &claimed.name)?;
        Ok(place)
    }

    /// Moves a job that cannot be delivered to `held/`, in a new directory with this report: nothing in the old one can
    /// be in the way.
    pub fn set_aside(&self, dir: &Path, name: &str, report: &Report) -> io::Result<()> {
        let own = self.claimed.join(format!("{ASIDE}{}-{name}", random_suffix()?));
        let result = own.join("result");
        let text = self.report(report)?;
        let moved = own_dir::create(&own)
            .and_then(|()| own_dir::create(&result))
            .and_then(|()| put_file(&result.join("report.json"), text.as_bytes(), 0o644))
            .and_then(|()| fs::rename(dir, own.join("claim")));
        if let Err(e) = moved {
            // Only what was made here: whatever was answered, the claim may have been moved.
            let _ = fs::remove_file(result.join("report.json"));
            let _ = fs::remove_dir(&result);
            let _ = fs::remove_dir(&own);
            return Err(e);
        }
        self.place(&own, "held", name)
    }

    /// A report as it is written, with this pilot's name.
    fn report(&self, report: &Report) -> io::Result<String> {
        let pilot = self.claimed.file_name().unwrap_or_default().to_string_lossy().into_owned();
        json_for_people(&Report { pilot, ..report.clone() })
    }

    /// Moves a directory of this pilot's to a place, under a name that is free there: an earlier job of the same name
    /// keeps its own.
    fn place(&self, dir: &Path, place: &str, name: &str) -> io::Result<()> {
        let target = self.root.join(place);
        for n in 1..=NUMBERED_MAX + 1 {
            let free = match n {
                1 => name.to_owned(),
                n if n <= NUMBERED_MAX => format!("{name}.{n}"),
                _ => format!("{name}.{}", random_suffix()?),
            };
            match fs::rename(dir, target.join(free)) {
                Err(e) if is_taken(&e) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound && dir.exists() => {
                    // Somebody has cleared up a little too much.
                    self.ensure()?;
                    return fs::rename(dir, target.join(name));
                }
                result => {
                    result?;
                    return sync_dir(&target).and_then(|()| sync_dir(&self.claimed));
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name}: no free name in {place}/")))
    }
}

/// A name that others chose, made into one that a job can have.
pub fn printable_name(name: &OsStr) -> String {
    let text = name.to_string_lossy();
    let good = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = text.chars().map(good).take(100).collect();
    if name.starts_with('.') || name.is_empty() { format!("_{name}") } else { name }
}

/// Whether something of the size of a report can be written in `dir`.
pub fn has_room(dir: &Path) -> bool {
    let path = dir.join(ROOM);
    let written = fs::File::create(&path).and_then(|mut file| {
        file.write_all(&[0; PROBE_BYTES])?;
        file.sync_data()
    });
    let _ = fs::remove_file(&path);
    written.is_ok()
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
