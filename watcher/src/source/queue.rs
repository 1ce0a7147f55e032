//! The jobs of a spool in the order in which a pilot claims them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::listing::{Listing, NAMES_MAX as NAMES_OF_NEW_MAX, has_other_than};
use super::spool::{DELAY_MAX, NAME_MAX, Spool, is_job_name, printable_name};
use super::{Claimed, claimed, own_dir};
use crate::bind::{Failure, Reason};
use crate::job::now;
use crate::text::printable;

/// How often the jobs that wait for another attempt are looked at.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Most names of `retry/` that are remembered of one look: of each the claim is read.
const NAMES_OF_RETRY_MAX: usize = 1024;
/// Most looks into `new/` for one claim: others may have claimed what was there at the last one.
const LOOKS_MAX: usize = 3;
/// Most entries that are held at once for not being jobs: jobs come first.
const ODD_AT_ONCE: usize = 4;
/// For how long an entry that cannot be moved is left alone, and how many of them are remembered.
const IMMOVABLE_FOR: Duration = Duration::from_secs(300);
const IMMOVABLE_MAX: usize = 1024;

/// What a pilot can claim.
#[derive(Debug)]
pub struct Queue {
    spool: Spool,
    new: Listing,
    retry: Listing,
    retry_looked: Option<Instant>,
    /// Entries of `new/` that cannot be moved: a mount, say, or a directory that another file system's quota keeps.
    immovable: HashMap<OsString, Instant>,
    /// Claims of what is not a job, whose report could not be delivered.
    undelivered: Vec<Claimed>,
}

impl Queue {
    /// The jobs of this spool.
    pub fn new(spool: Spool) -> Self {
        let (new, retry) = (spool.new_dir(), spool.retry_dir());
        Self {
            spool,
            new: Listing::new(new, NAMES_OF_NEW_MAX, is_job_name),
            retry: Listing::new(retry, NAMES_OF_RETRY_MAX, |_| true),
            retry_looked: None,
            immovable: HashMap::new(),
            undelivered: Vec::new(),
        }
    }

    /// Claims the next job that may run now: one rename decides which pilot has it. Entries that cannot be jobs are
    /// held on the way, a few at a time. No entry keeps another one from being served.
    pub fn claim(&mut self) -> io::Result<Option<Claimed>> {
        if let Some(claimed) = self.claim_again()? {
            return Ok(Some(claimed));
        }
        self.new.refresh()?;
        for _ in 0..ODD_AT_ONCE {
            let Some(name) = self.new.next_odd() else { break };
            self.hold(&name)?;
        }
        for _ in 0..LOOKS_MAX {
            self.new.refresh()?;
            while !self.new.is_outdated()
                && let Some(name) = self.new.next_good()
            {
                let text = name.to_string_lossy();
                let own = self.spool.claim_dir(&text);
                if self.take(&name, &own, |_| Ok(()))? {
                    self.new.was_claimed();
                    return Claimed::new(own, &text).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// How many directory entries were read until now, which is what looking for jobs costs.
    pub fn entries_read(&self) -> u64 {
        self.new.entries_read() + self.retry.entries_read()
    }

    /// Claims of what is not a job, whose report could not be delivered.
    pub fn undelivered(&mut self) -> Option<Claimed> {
        self.undelivered.pop()
    }

    /// Whether no job waits, now or later.
    pub fn is_empty(&self) -> io::Result<bool> {
        let waits = has_other_than(&self.spool.new_dir(), |name| self.immovable.contains_key(name))?;
        Ok(!waits && !has_other_than(&self.spool.retry_dir(), |_| false)?)
    }

    /// A job that waits for its next attempt, and may have it now.
    fn claim_again(&mut self) -> io::Result<Option<Claimed>> {
        if self.retry_looked.is_none_or(|at| at.elapsed() >= RETRY_EVERY) {
            self.retry.refresh()?;
            self.retry_looked = Some(Instant::now());
        }
        while let Some(key) = self.retry.next_good() {
            let from = self.spool.retry_dir().join(&key);
            let (name, not_before) = match claimed::waiting(&from) {
                Ok((name, not_before)) if is_job_name(OsStr::new(&name)) => (name, not_before),
                // Nothing of it is lost: it is a claim whose state is determined again.
                _ => (printable_name(&key), 0.0),
            };
            if not_before > now() && not_before <= now() + DELAY_MAX as f64 {
                continue;
            }
            let own = self.spool.claim_dir(&name);
            match fs::rename(&from, &own) {
                Ok(()) => {
                    self.retry.was_claimed();
                    return Claimed::resume(own, &name).map(Some);
                }
                // Another pilot was quicker, or another job of this name is under way here.
                Err(e) => {
                    tracing::debug!(job = %name, "not claimed now: {e}");
                    if e.kind() == io::ErrorKind::NotFound {
                        self.retry.was_gone();
                    }
                }
            }
        }
        Ok(None)
    }

    /// Moves an entry of `new/` into a fresh directory of root's own. `Ok(false)`: not now.
    fn take(&mut self, entry: &OsStr, own: &Path, prepare: impl Fn(&Path) -> io::Result<()>) -> io::Result<bool> {
        self.immovable.retain(|_, since| since.elapsed() < IMMOVABLE_FOR);
        if self.immovable.contains_key(entry) {
            return Ok(false);
        }
        if self.spool.new_dir().join(entry).symlink_metadata().is_err() {
            self.new.was_gone();
            return Ok(false);
        }
        match own_dir::create(own) {
            // Another job of this name is under way here.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            result => result?,
        }
        let taken = prepare(own).and_then(|()| self.spool.take(entry, own));
        if !claimed::remove_unused(own) {
            return Ok(true); // whatever was answered, the entry is there
        }
        match taken {
            Err(e) if is_immovable(&e) => {
                let shown = printable(&entry.to_string_lossy());
                tracing::error!("new/{shown}: cannot be claimed, and is left alone for {IMMOVABLE_FOR:?}: {e}");
                if self.immovable.len() < IMMOVABLE_MAX {
                    self.immovable.insert(entry.to_owned(), Instant::now());
                }
                Ok(false)
            }
            Ok(false) => {
                self.new.was_gone();
                Ok(false)
            }
            taken => taken,
        }
    }

    /// Moves something that cannot be a job to `held/`, with the reason.
    fn hold(&mut self, entry: &OsStr) -> io::Result<()> {
        let (name, shown) = (printable_name(entry), printable(&entry.to_string_lossy()));
        let why = format!(
            "new/{shown}: the name of a job is 1 to {NAME_MAX} letters, digits, '.', '_' or '-', and does not \
             begin with '.'"
        );
        let own = self.spool.claim_dir(&name);
        if !self.take(entry, &own, |own| Claimed::invalid(own.to_owned(), &name, why.clone()).map(drop))? {
            return Ok(());
        }
        let claimed = Claimed::resume(own, &name)?;
        let report = claimed.refusal(&Failure::hold(Reason::InvalidJob, why));
        match self.spool.deliver(&claimed, &report, 1) {
            Ok(place) => tracing::warn!("new/{shown}: is not a job's name; moved to {place}/"),
            Err(e) => {
                tracing::error!("new/{shown}: is not a job's name, and not delivered yet: {e}");
                self.undelivered.push(claimed);
            }
        }
        Ok(())
    }
}

/// Whether an entry itself cannot be moved, rather than anything at the moment.
fn is_immovable(e: &io::Error) -> bool {
    let immovable = [Errno::EXDEV, Errno::EBUSY, Errno::EPERM, Errno::EACCES, Errno::EINVAL];
    e.raw_os_error().is_some_and(|errno| immovable.contains(&Errno::from_raw(errno)))
}
