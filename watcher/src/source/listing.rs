//! A look into a directory that others fill: a bounded part of it is remembered, however many entries there are.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most names of each kind that are remembered of one look, by default: the first ones in their order. What a look
/// reads is shared by that many claims.
pub const NAMES_MAX: usize = 16_384;
/// After how long a look may be repeated though there are names left of it, so that new ones get their turn.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// And after how long it is in any case.
const OLD_AFTER: Duration = Duration::from_secs(60);
/// Most entries that are read for each name that was used, while there are names left: the reason why a claim costs
/// the same in a spool of a hundred jobs and in one of a hundred thousand.
const ENTRIES_PER_NAME: usize = 100;
/// A look into a large directory takes long: at most one part in so many of the time is spent on looking.
const SHARE: u32 = 20;
/// So many names have to be gone before a look counts as outdated.
const GONE_MIN: usize = 64;

/// Whether a look that has begun then, and took so long, may be followed by another one.
pub fn may_look_again(at: Instant, took: Duration) -> bool {
    at.elapsed() >= took.saturating_mul(SHARE)
}

/// What is made of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It can be one of those that are looked for.
    Good,
    /// The same, and it was looked at already: it waits among the others, and takes none of them its place.
    Waits,
    /// It cannot be one.
    Odd,
    /// It is nothing to look at now.
    Skipped,
}

/// The first names of a directory, in their order, at the last look.
#[derive(Debug, Default)]
struct Names {
    good: VecDeque<OsString>,
    /// Names that could be good and wait: they are not handed out, and do not keep another look from being made.
    waiting: BTreeSet<OsString>,
    odd: VecDeque<OsString>,
    /// How many entries were read for them.
    entries: usize,
    /// Whether there were more good names than are remembered.
    is_cut: bool,
}

/// When something was looked at, and how long that took.
#[derive(Debug)]
struct Look {
    at: Instant,
    took: Duration,
}

/// The entries of one directory, in several kinds, so that a flood of one kind does not hide the others.
#[derive(Debug)]
pub struct Listing {
    dir: PathBuf,
    most: usize,
    old_after: Duration,
    names: Names,
    looked: Option<Look>,
    /// Good names that were handed out since the last look; those of them that were claimed, and that were gone.
    used: usize,
    claimed: usize,
    gone: usize,
    /// The next name is one of so many: 1, the first one, until others are seen to take names from this directory too.
    spread: usize,
    entries_read: u64,
}

impl Listing {
    /// Of this directory, of which at most `most` names of each kind are remembered; nothing is read yet.
    pub fn new(dir: PathBuf, most: usize) -> Self {
        Self {
            dir,
            most,
            old_after: OLD_AFTER,
            names: Names::default(),
            looked: None,
            used: 0,
            claimed: 0,
            gone: 0,
            spread: 1,
            entries_read: 0,
        }
    }

    /// Looks again, unless the last look is still good or it is too early.
    pub fn refresh(&mut self, kind: impl Fn(&OsStr) -> Kind) -> io::Result<()> {
        if self.is_stale() {
            if self.gone == 0 {
                self.spread = 1; // nobody else takes names any more
            }
            let began = Instant::now();
            self.names = first_names(&self.dir, self.most, kind)?;
            self.looked = Some(Look { at: Instant::now(), took: began.elapsed() });
            self.entries_read += self.names.entries as u64;
            (self.used, self.claimed, self.gone) = (0, 0, 0);
        }
        Ok(())
    }

    /// Puts names that wait back to their places among the good ones where `may_go`. Only the first few: the others
    /// have their turn behind them.
    pub fn recheck(&mut self, may_go: impl Fn(&OsStr) -> bool) {
        let most = self.spread.max(GONE_MIN);
        let ready: Vec<_> = self.names.waiting.iter().filter(|name| may_go(name)).take(most).cloned().collect();
        for name in ready {
            self.names.waiting.remove(&name);
            let at = self.names.good.partition_point(|other| *other < name);
            self.names.good.insert(at, name);
        }
    }

    /// The place of the good name to look at next: the first one, or, where others take names too, one of the first
    /// ones by chance, so that not all try the same.
    pub fn next_good(&self) -> Option<usize> {
        let among = self.spread.min(self.names.good.len());
        (among > 0).then(|| by_chance(among))
    }

    /// The good name at this place.
    pub fn good(&self, at: usize) -> Option<&OsStr> {
        self.names.good.get(at).map(OsString::as_os_str)
    }

    /// Hands out the good name at this place, which is then used.
    pub fn take(&mut self, at: usize) -> Option<OsString> {
        let name = self.names.good.remove(at)?;
        self.used += 1;
        Some(name)
    }

    /// Leaves out the good name at this place until the next look.
    pub fn skip(&mut self, at: usize) {
        self.names.good.remove(at);
    }

    /// Lets the good name at this place wait until [`Listing::recheck`], or until a look says otherwise.
    pub fn set_waiting(&mut self, at: usize) {
        self.names.waiting.extend(self.names.good.remove(at));
    }

    /// The next other name of the last look.
    pub fn next_odd(&mut self) -> Option<OsString> {
        self.names.odd.pop_front()
    }

    /// The name that was handed out last was claimed.
    pub fn was_claimed(&mut self) {
        self.claimed += 1;
        self.spread = self.spread.saturating_sub(1).max(1);
    }

    /// The name that was handed out last is gone: somebody else takes names from this directory.
    pub fn was_gone(&mut self) {
        self.gone += 1;
        self.spread = (self.spread * 2).min(self.most);
    }

    /// Whether so much of the last look is gone that another one costs less than what is left of it; and whether that
    /// may be had now. A look that brought nothing is followed by its pause: whoever only removes names could otherwise
    /// keep a pilot looking.
    pub fn is_outdated(&self) -> bool {
        self.gone >= GONE_MIN && self.gone > self.claimed && (self.claimed > 0 || self.has_paused())
    }

    /// Whether looking takes at most its share of the time, if there is another look now.
    fn has_paused(&self) -> bool {
        self.looked.as_ref().is_none_or(|look| may_look_again(look.at, look.took))
    }

    /// How many entries of the directory were read until now.
    pub fn entries_read(&self) -> u64 {
        self.entries_read
    }

    fn is_stale(&self) -> bool {
        let Some(look) = &self.looked else { return true };
        if self.is_outdated() {
            return true;
        }
        let is_paid = self.used.saturating_mul(ENTRIES_PER_NAME) >= self.names.entries;
        // Names that wait do not count: new ones must not wait for them.
        if self.names.good.is_empty() {
            // Used up by this pilot and others: there is more. Where nobody could claim any, there may as well be
            // nothing; and where most only began to wait, each further look would serve few claims.
            let is_used_up = self.claimed > 0 && (is_paid || self.used.saturating_mul(2) >= self.most);
            return self.names.is_cut && is_used_up || self.has_paused();
        }
        let age = look.at.elapsed();
        self.has_paused() && age >= FRESH_FOR && (is_paid || age >= self.old_after)
    }
}

/// A number below `among`; 0 where there is no choice.
fn by_chance(among: usize) -> usize {
    let mut random = [0; 8];
    if among < 2 || latebind_linux::sys::random(&mut random).is_err() {
        return 0;
    }
    // The rest of a division by at most some thousands: no name is noticeably more likely than another.
    usize::try_from(u64::from_ne_bytes(random) % among as u64).unwrap_or(0)
}

/// A name that begins with `.` is somebody's work in progress.
fn is_left_alone(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// Adds a name, and keeps the first `most`. Whether one had to be left out.
fn keep_first(names: &mut BTreeSet<OsString>, name: OsString, most: usize) -> bool {
    if names.len() < most || names.last().is_some_and(|last| name < *last) {
        names.insert(name);
        return names.len() > most && names.pop_last().is_some();
    }
    true
}

/// The first names of a directory in their order, at most `most` of each kind; memory is bounded by that, time by the
/// directory's size.
fn first_names(dir: &Path, most: usize, kind: impl Fn(&OsStr) -> Kind) -> io::Result<Names> {
    let [mut good, mut waiting, mut odd] = [const { BTreeSet::new() }; 3];
    let (mut entries, mut is_cut) = (0, false);
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        entries += 1;
        if is_left_alone(&name) {
            continue;
        }
        match kind(&name) {
            Kind::Good => is_cut |= keep_first(&mut good, name, most),
            Kind::Waits => drop(keep_first(&mut waiting, name, most)),
            Kind::Odd => drop(keep_first(&mut odd, name, most)),
            Kind::Skipped => {}
        }
    }
    Ok(Names { good: good.into_iter().collect(), waiting, odd: odd.into_iter().collect(), entries, is_cut })
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

    fn filled(jobs: usize) -> tempfile::TempDir {
        let scratch = tempfile::tempdir().unwrap();
        (0..jobs).for_each(|n| drop(fs::File::create(scratch.path().join(format!("{n:06}"))).unwrap()));
        scratch
    }

    fn listing(dir: &Path, most: usize) -> Listing {
        // By the counts alone: how quick this machine is decides nothing.
        Listing { old_after: Duration::MAX, ..Listing::new(dir.to_owned(), most) }
    }

    fn good(_: &OsStr) -> Kind {
        Kind::Good
    }

    fn next_good(listing: &mut Listing) -> Option<OsString> {
        listing.next_good().and_then(|at| listing.take(at))
    }

    /// Claims one name as a pilot does, and returns it with the number of those that were gone.
    fn claim(listing: &mut Listing) -> Option<(OsString, usize)> {
        let mut gone = 0;
        for _ in 0..4 {
            listing.refresh(good).unwrap();
            while let Some(name) = next_good(listing) {
                if fs::remove_file(listing.dir.join(&name)).is_ok() {
                    listing.was_claimed();
                    return Some((name, gone));
                }
                gone += 1;
                listing.was_gone();
                if listing.is_outdated() {
                    break;
                }
            }
        }
        None
    }

    #[test]
    fn what_a_claim_reads_is_bounded_however_many_entries_there_are() {
        let (jobs, claims) = (20_000, 5000);
        let scratch = filled(jobs);
        let mut listing = listing(scratch.path(), 1000);
        for n in 0..claims {
            let (name, gone) = claim(&mut listing).unwrap();
            assert_eq!((name, gone), (OsString::from(format!("{n:06}")), 0), "alone, so in their order");
        }
        let most = jobs * (1 + claims / 1000) + claims * ENTRIES_PER_NAME;
        assert!(listing.entries_read() <= most as u64, "{} of {most}", listing.entries_read());
    }

    #[test]
    fn pilots_that_share_a_directory_seldom_try_the_same_name_and_lose_none() {
        let jobs = 4000;
        let scratch = filled(jobs);
        let mut pilots: Vec<_> = (0..20).map(|_| listing(scratch.path(), NAMES_MAX)).collect();
        let (mut claimed, mut lost) = (BTreeSet::new(), 0);
        // Always the next one in turn: in their order, each name would be tried by all twenty.
        while let Some(name) = pilots.iter_mut().find_map(|pilot| {
            let (name, gone) = claim(pilot)?;
            lost += gone;
            Some(name)
        }) {
            assert!(claimed.insert(name), "claimed twice");
            pilots.rotate_left(1);
        }
        assert_eq!(claimed.len(), jobs, "each was claimed");
        assert!(lost < 2 * jobs, "{lost} tries for names that were gone, {jobs} claims");
        let read: u64 = pilots.iter().map(Listing::entries_read).sum();
        assert!(read < 500 * jobs as u64, "{read} entries read by all");
    }

    #[test]
    fn names_that_nobody_can_claim_are_not_looked_for_again_and_again() {
        let scratch = filled(30);
        let mut listing = listing(scratch.path(), 10);
        listing.refresh(good).unwrap();
        assert_eq!(std::iter::from_fn(|| next_good(&mut listing)).count(), 10);
        listing.looked.as_mut().unwrap().took = Duration::from_secs(3600);
        listing.refresh(good).unwrap();
        assert_eq!(listing.entries_read(), 30, "there are others, but these were not worth the look");
        listing.was_gone();
        listing.refresh(good).unwrap();
        assert_eq!(listing.entries_read(), 30, "and names that others only remove make nobody look all the time");
        listing.was_claimed();
        listing.refresh(good).unwrap();
        assert_eq!((listing.entries_read(), listing.names.is_cut), (60, true), "they are: one was claimed");
    }

    #[test]
    fn removed_names_bring_no_look_before_its_pause_and_the_order_comes_back() {
        let scratch = filled(200);
        let mut listing = listing(scratch.path(), 300);
        listing.refresh(good).unwrap();
        listing.looked.as_mut().unwrap().took = Duration::from_secs(3600);
        for _ in 0..100 {
            next_good(&mut listing).unwrap();
            listing.was_gone();
        }
        listing.refresh(good).unwrap();
        assert_eq!((listing.is_outdated(), listing.entries_read()), (false, 200), "the rest is served meanwhile");
        listing.looked.as_mut().unwrap().took = Duration::ZERO;
        listing.refresh(good).unwrap();
        assert_eq!((listing.entries_read(), listing.spread), (400, 300));
        // A look during which nobody else took any: from the first name on again.
        next_good(&mut listing).unwrap();
        listing.was_claimed();
        (listing.old_after, listing.looked.as_mut().unwrap().at) = (Duration::ZERO, Instant::now() - FRESH_FOR);
        listing.refresh(good).unwrap();
        assert_eq!((listing.entries_read(), listing.spread), (600, 1));
    }

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
        let kind = |name: &OsStr| {
            let is_good = name.as_bytes().len() < 3 && name.as_bytes().is_ascii();
            if is_good { Kind::Good } else { Kind::Odd }
        };
        let names = first_names(dir, 3, kind).unwrap();
        assert_eq!(names.good, ["00", "01", "02"]);
        assert_eq!(names.odd, [OsStr::new("odd"), OsStr::from_bytes(b"\xff")]);
        let mut listing = Listing::new(dir.to_owned(), NAMES_MAX);
        assert_eq!(listing.next_good(), None, "nothing was read yet");
        listing.refresh(kind).unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| next_good(&mut listing)).collect();
        assert_eq!(taken, (0..50).map(|n| OsString::from(format!("{n:02}"))).collect::<Vec<_>>());
        assert_eq!(std::iter::from_fn(|| listing.next_odd()).count(), 2);
        assert!(has_other_than(dir, |name| name == "00").unwrap());
        assert!(!has_other_than(dir, |_| true).unwrap());
    }

    #[test]
    fn names_that_wait_take_no_other_ones_place_and_keep_their_own() {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["0", "1", "2", "3", "4", "5", "6", "7"] {
            fs::write(scratch.path().join(name), "").unwrap();
        }
        let kind = |name: &OsStr| match name.as_bytes() {
            b"0" => Kind::Skipped,
            b"1" | b"2" | b"3" | b"5" => Kind::Waits,
            _ => Kind::Good,
        };
        let mut listing = listing(scratch.path(), 3);
        listing.refresh(kind).unwrap();
        assert_eq!(listing.names.good, ["4", "6", "7"]);
        listing.set_waiting(1);
        assert!(listing.names.waiting.iter().eq(["1", "2", "3", "6"]), "{listing:?}");
        listing.recheck(|name| name == "2" || name == "6");
        assert_eq!(listing.names.good, ["2", "4", "6", "7"]);
        listing.recheck(|_| true);
        assert_eq!(listing.names.good, ["1", "2", "3", "4", "6", "7"]);
    }

    #[test]
    fn names_that_wait_neither_keep_another_look_from_being_made_nor_cause_one() {
        let scratch = filled(30);
        let kind = |name: &OsStr| if name < "000020" { Kind::Waits } else { Kind::Good };
        let mut listing = listing(scratch.path(), 10);
        listing.refresh(good).unwrap();
        (0..9).for_each(|_| listing.set_waiting(0));
        assert!(next_good(&mut listing).is_some());
        listing.was_claimed();
        (listing.names.entries, listing.looked.as_mut().unwrap().took) = (1000, Duration::from_secs(3600));
        listing.refresh(kind).unwrap();
        assert_eq!(listing.entries_read(), 30, "there are others, but this look has served one claim only");
        listing.looked.as_mut().unwrap().took = Duration::ZERO;
        listing.refresh(kind).unwrap();
        assert_eq!((listing.entries_read(), listing.names.good.len()), (60, 10), "as if nothing waited");
        assert_eq!(listing.names.waiting.len(), 10);
    }
}
