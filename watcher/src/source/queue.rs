//! The jobs of a spool in the order in which a pilot claims them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::listing::{Kind, Listing, NAMES_MAX as NAMES_OF_NEW_MAX, has_other_than};
use super::needs::Needs;
use super::spool::{DELAY_MAX, NAME_MAX, Spool, is_job_name, printable_name};
use super::{Claimed, claimed, own_dir};
use crate::bind::{Failure, Reason};
use crate::job::{Fit, Requests, now};
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

/// How long one search for a job may look into jobs that it has not looked into before.
const LOOK_WITHIN: Duration = Duration::from_millis(50);

/// What a pilot can claim.
#[derive(Debug)]
pub struct Queue {
    spool: Spool,
    new: Listing,
    retry: Listing,
    retry_looked: Option<Instant>,
    /// What the jobs of both need that could not be claimed when they were looked at.
    new_needs: Needs,
    retry_needs: Needs,
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
            new: Listing::new(new, NAMES_OF_NEW_MAX),
            retry: Listing::new(retry, NAMES_OF_RETRY_MAX),
            retry_looked: None,
            new_needs: Needs::default(),
            retry_needs: Needs::default(),
            immovable: HashMap::new(),
            undelivered: Vec::new(),
        }
    }

    /// Claims the next job, whatever it needs.
    pub fn claim(&mut self) -> io::Result<Option<Claimed>> {
        self.claim_fitting(|_| Fit::Now)
    }

    /// Claims the next job that may run now and for which there is a slot: one rename decides which pilot has it.
    /// Entries that cannot be jobs are held on the way, a few at a time. No entry keeps another one from being served.
    pub fn claim_fitting(&mut self, fit: impl Fn(&Requests) -> Fit) -> io::Result<Option<Claimed>> {
        if let Some(claimed) = self.claim_again(&fit)? {
            return Ok(Some(claimed));
        }
        self.new_needs.forget_old();
        self.look_for_new()?;
        for _ in 0..ODD_AT_ONCE {
            let Some(name) = self.new.next_odd() else { break };
            self.hold(&name)?;
        }
        let until = Instant::now() + LOOK_WITHIN;
        for look in 0..LOOKS_MAX {
            if look > 0 {
                self.look_for_new()?;
            }
            self.new.recheck(|name| self.new_needs.may_fit(name, &fit));
            let mut is_lost = false;
            while !self.new.is_outdated()
                && let Some((name, requests)) = self.next_fitting(until, &fit)?
            {
                let text = name.to_string_lossy();
                let own = self.spool.claim_dir(&text);
                if self.take(&name, &own, |_| Ok(()))? {
                    self.new.was_claimed();
                    return Claimed::new(own, &text).map(|claimed| Some(claimed.needing(requests)));
                }
                is_lost = true;
            }
            // Where only jobs are left that wait, they would be there at another look too.
            if !is_lost {
                break;
            }
        }
        Ok(None)
    }

    fn look_for_new(&mut self) -> io::Result<()> {
        let needs = &self.new_needs;
        self.new.refresh(|name| if is_job_name(name) { needs.kind(name) } else { Kind::Odd })
    }

    /// The next job of `new/` for which there is a slot, with what it needs. Those that have to wait for a slot keep
    /// their place before those that come later.
    fn next_fitting(
        &mut self,
        until: Instant,
        fit: impl Fn(&Requests) -> Fit,
    ) -> io::Result<Option<(OsString, Requests)>> {
        while let Some(at) = self.new.next_good()
            && let Some(name) = self.new.good(at)
        {
            let dir = self.spool.new_dir().join(name);
            let Some((requests, found)) = self.new_needs.look(name, &dir, until, &fit)? else { break };
            if found == Fit::Now
                && let Some(name) = self.new.take(at)
            {
                self.new_needs.forget(&name);
                return Ok(Some((name, requests)));
            }
            pass_over(&mut self.new, at, &self.new_needs, found);
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

    /// Whether no job waits, now or later. What is larger than every slot here waits for another pilot.
    pub fn is_empty(&self) -> io::Result<bool> {
        let is_others = |name: &OsStr| self.immovable.contains_key(name) || self.new_needs.is_too_large(name);
        let waits = has_other_than(&self.spool.new_dir(), is_others)?;
        Ok(!waits && !has_other_than(&self.spool.retry_dir(), |name| self.retry_needs.is_too_large(name))?)
    }

    /// A job that waits for its next attempt, and may have it now.
    fn claim_again(&mut self, fit: impl Fn(&Requests) -> Fit) -> io::Result<Option<Claimed>> {
        if self.retry_looked.is_none_or(|at| at.elapsed() >= RETRY_EVERY) {
            self.retry_needs.forget_old();
            self.retry.refresh(|key| self.retry_needs.kind(key))?;
            self.retry_looked = Some(Instant::now());
        }
        self.retry.recheck(|key| self.retry_needs.may_fit(key, &fit));
        let until = Instant::now() + LOOK_WITHIN;
        while let Some(at) = self.retry.next_good()
            && let Some(key) = self.retry.good(at)
        {
            // One that waits for a slot is due, and was when it was looked at.
            if !self.retry_needs.may_fit(key, &fit) {
                self.retry.set_waiting(at);
                continue;
            }
            let from = self.spool.retry_dir().join(key);
            let (name, not_before) = match claimed::waiting(&from) {
                Ok((name, not_before)) if is_job_name(OsStr::new(&name)) => (name, not_before),
                // Nothing of it is lost: it is a claim whose state is determined again.
                _ => (printable_name(key), 0.0),
            };
            if not_before > now() && not_before <= now() + DELAY_MAX as f64 {
                self.retry.skip(at);
                continue;
            }
            let Some((requests, found)) = self.retry_needs.look(key, &from, until, &fit)? else { break };
            if found != Fit::Now {
                pass_over(&mut self.retry, at, &self.retry_needs, found);
                continue;
            }
            self.retry_needs.forget(key);
            self.retry.take(at);
            let own = self.spool.claim_dir(&name);
            match fs::rename(&from, &own) {
                Ok(()) => {
                    self.retry.was_claimed();
                    return Claimed::resume(own, &name).map(|claimed| Some(claimed.needing(requests)));
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

/// Passes over a job for which there is no slot now. One that was too much to remember is found at the next look.
fn pass_over(listing: &mut Listing, at: usize, needs: &Needs, found: Fit) {
    let is_known = listing.good(at).is_some_and(|name| needs.known(name).is_some());
    if found == Fit::Later && is_known { listing.set_waiting(at) } else { listing.skip(at) }
}

/// Whether an entry itself cannot be moved, rather than anything at the moment.
fn is_immovable(e: &io::Error) -> bool {
    let immovable = [Errno::EXDEV, Errno::EBUSY, Errno::EPERM, Errno::EACCES, Errno::EINVAL];
    e.raw_os_error().is_some_and(|errno| immovable.contains(&Errno::from_raw(errno)))
}
