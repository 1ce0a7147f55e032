//! A look into a directory that others fill: a bounded part of it is remembered, however many entries there are.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most names of each kind that are remembered of one look: the first ones in their order.
const NAMES_MAX: usize = 1024;
/// After how long a look is repeated though there are names left of it, so that new ones get their turn.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// A look into a large directory takes long: at most one part in so many of the time is spent on looking.
const SHARE: u32 = 20;

/// The first names of a directory, in their order, at the last look.
#[derive(Debug, Default)]
struct Names {
    good: VecDeque<OsString>,
    odd: VecDeque<OsString>,
}

/// The entries of one directory, in two kinds, so that a flood of one kind does not hide the other.
#[derive(Debug)]
pub struct Listing {
    dir: PathBuf,
    is_good: fn(&OsStr) -> bool,
    names: Names,
    looked: Option<(Instant, Duration)>,
}

impl Listing {
    /// Of this directory; nothing is read yet.
    pub fn new(dir: PathBuf, is_good: fn(&OsStr) -> bool) -> Self {
        Self { dir, is_good, names: Names::default(), looked: None }
    }

    /// Looks again, unless there are names left or it is too early.
    pub fn refresh(&mut self) -> io::Result<()> {
        if self.is_stale() {
            let began = Instant::now();
            self.names = first_names(&self.dir, NAMES_MAX, self.is_good)?;
            self.looked = Some((Instant::now(), began.elapsed()));
        }
        Ok(())
    }

    /// The next good name of the last look.
    pub fn next_good(&mut self) -> Option<OsString> {
        self.names.good.pop_front()
    }

    /// The next other name of the last look.
    pub fn next_odd(&mut self) -> Option<OsString> {
        self.names.odd.pop_front()
    }

    fn is_stale(&self) -> bool {
        let Some((at, took)) = self.looked else { return true };
        let pause = took.saturating_mul(SHARE);
        at.elapsed() >= if self.names.good.is_empty() { pause } else { pause.max(FRESH_FOR) }
    }
}

/// A name that begins with `.` is somebody's work in progress.
fn is_left_alone(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// Adds a name, and keeps the first `most`.
fn keep_first(names: &mut BTreeSet<OsString>, name: OsString, most: usize) {
    if names.len() < most || names.last().is_some_and(|last| name < *last) {
        names.insert(name);
        if names.len() > most {
            names.pop_last();
        }
    }
}

/// The first names of a directory in their order, at most `most` of each kind; memory is bounded by that, time by the
/// directory's size.
fn first_names(dir: &Path, most: usize, is_good: fn(&OsStr) -> bool) -> io::Result<Names> {
    let (mut good, mut odd) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !is_left_alone(&name) {
            keep_first(if is_good(&name) { &mut good } else { &mut odd }, name, most);
        }
    }
    Ok(Names { good: good.into_iter().collect(), odd: odd.into_iter().collect() })
}

/// Whether there is an entry that is not left alone and not one of these.
pub fn has_other_than(dir: &Path, known: impl Fn(&OsStr) -> bool) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !is_left_alone(&name) && !known(&name) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_bounded_ordered_and_leaves_hidden_names_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        for n in 0..50 {
            fs::write(dir.join(format!("{n:02}")), "").unwrap();
        }
        fs::write(dir.join(".upload"), "").unwrap();
        for odd in [OsStr::from_bytes(b"\xff"), OsStr::new("odd")] {
            fs::write(dir.join(odd), "").unwrap();
        }
        let short = |name: &OsStr| name.as_bytes().len() < 3 && name.as_bytes().is_ascii();
        let names = first_names(dir, 3, short).unwrap();
        assert_eq!(names.good, ["00", "01", "02"]);
        assert_eq!(names.odd, [OsStr::new("odd"), OsStr::from_bytes(b"\xff")]);
        let mut listing = Listing::new(dir.to_owned(), short);
        assert_eq!(listing.next_good(), None, "nothing was read yet");
        listing.refresh().unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| listing.next_good()).collect();
        assert_eq!(taken, (0..50).map(|n| OsString::from(format!("{n:02}"))).collect::<Vec<_>>());
        assert_eq!(std::iter::from_fn(|| listing.next_odd()).count(), 2);
        assert!(has_other_than(dir, |name| name == "00").unwrap());
        assert!(!has_other_than(dir, |_| true).unwrap());
    }
}
