//! What jobs need that wait in a spool, as far as a pilot has looked into them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::claimed::requests_in;
use super::listing::Kind;
use crate::job::{Fit, Requests};

/// For how long what a job needs is believed: its user may put another one of its name.
const KNOWN_FOR: Duration = Duration::from_secs(300);
/// After which time it is forgotten, if nobody has looked again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3 * 300);
/// Most jobs that are remembered.
const KNOWN_MAX: usize = 10_000;

/// One job that was not claimed when it was looked at.
#[derive(Debug)]
struct Known {
    requests: Requests,
    is_too_large: bool,
    at: Instant,
}

/// Jobs of one directory that were not claimed when they were looked at, by their names.
#[derive(Debug, Default)]
pub struct Needs(HashMap<OsString, Known>);

impl Needs {
    /// What a job needs and whether there is a slot for it now. `None`: that is not known now, and it is past `until`.
    pub fn look(
        &mut self,
        name: &OsStr,
        dir: &Path,
        until: Instant,
        fit: impl Fn(&Requests) -> Fit,
    ) -> io::Result<Option<(Requests, Fit)>> {
        let requests = match self.known(name) {
            Some(requests) => requests,
            None if Instant::now() >= until => return Ok(None),
            None => requests_in(dir)?,
        };
        let fit = fit(&requests);
        if fit != Fit::Now && self.known(name).is_none() && (self.0.len() < KNOWN_MAX || self.0.contains_key(name)) {
            let known = Known { requests, is_too_large: fit == Fit::Never, at: Instant::now() };
            self.0.insert(name.to_owned(), known);
        }
        Ok(Some((requests, fit)))
    }

    /// What the job of this name needs, where that was looked at not long ago.
    pub fn known(&self, name: &OsStr) -> Option<Requests> {
        self.fresh(name).map(|known| known.requests)
    }

    fn fresh(&self, name: &OsStr) -> Option<&Known> {
        self.0.get(name).filter(|known| known.at.elapsed() < KNOWN_FOR)
    }

    /// Whether a job that waited may have a slot now, or has to be looked into again to say so.
    pub fn may_fit(&self, name: &OsStr, fit: impl Fn(&Requests) -> Fit) -> bool {
        self.known(name).is_none_or(|requests| fit(&requests) != Fit::Later)
    }

    /// Forgets a job that is claimed now, by whomever.
    pub fn forget(&mut self, name: &OsStr) {
        self.0.remove(name);
    }

    /// What is made of a name when its directory is read.
    pub fn kind(&self, name: &OsStr) -> Kind {
        match self.fresh(name) {
            None => Kind::Good,
            Some(known) if known.is_too_large => Kind::Skipped,
            Some(_) => Kind::Waits,
        }
    }

    /// Whether the job was larger than every slot when it was looked at last.
    pub fn is_too_large(&self, name: &OsStr) -> bool {
        self.0.get(name).is_some_and(|known| known.is_too_large)
    }

    /// Forgets jobs that nobody has looked at for long: they are gone, it is likely.
    pub fn forget_old(&mut self) {
        self.0.retain(|_, known| known.at.elapsed() < FORGOTTEN_AFTER);
    }
}
