//! User IDs of a pod: for each slot one of the payload and one of the kill routine, which no other living pod of this
//! host has.
//!
//! The kernel keeps state for a user ID (keyrings, inotify instances, queues, process counts), and the containers here
//! have the host's IDs. So each pod gets a block of its own. Which blocks are taken is written down in one directory
//! for all state directories of the host; a new pod takes the next free block after the last one, so that an ID rests
//! as long as possible.

use crate::failure::{Context, Failure, failure};
use crate::place::{PodPlace, directory};
use crate::rootless;
use latebind_contract::layout::{Ids, SLOT_MAX};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where the blocks of all pods of this host are written down. It ends with the boot, as all pods do.
const REGISTRY: &str = "/run/latebind-uids";
/// The IDs that blocks are taken from, where the operator names none: within the 65536 that a rootless podman maps, and
/// outside of what the Debian Policy Manual (section 9.2.2) reserves.
pub const DEFAULT_RANGE: IdRange = IdRange { first: 20_000, last: 59_999 };
/// `nobody`, which the kernel shows for IDs that are not mapped, and the ID that 16-bit programs take for -1.
const NEVER: IdRange = IdRange { first: 65_534, last: 65_535 };
/// Name of the last block's end within the registry.
const LAST: &str = "last";

/// User IDs `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    first: u32,
    last: u32,
}

impl IdRange {
    /// Reads `FIRST-LAST`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("invalid range of user IDs {text:?}: expected FIRST-LAST, e.g. {DEFAULT_RANGE}");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let number = |n: &str| n.parse::<u32>().map_err(|_| wrong());
        let range = Self { first: number(first)?, last: number(last)? };
        // 0 is root; setresuid(2) takes 4294967295 as "leave unchanged".
        let good = range.first > 0 && range.first < range.last && range.last < u32::MAX;
        good.then_some(range).ok_or_else(wrong)
    }

    fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The first `count` free IDs in a row after `after`, else from the beginning. `taken` in any order.
    fn free(&self, count: u32, after: u32, taken: &[Self]) -> Option<Self> {
        let from = |mut first: u32| loop {
            let block = Self { first, last: first.checked_add(count - 1)? };
            if block.last > self.last {
                return None;
            }
            match taken.iter().filter(|t| t.meets(&block)).map(|t| t.last).max() {
                Some(last) => first = last.checked_add(1)?,
                None => return Some(block),
            }
        };
        let next = after.checked_add(1).filter(|next| (self.first..=self.last).contains(next));
        next.and_then(from).or_else(|| from(self.first))
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The IDs of one pod: those of the payloads, slot by slot, then those of the kill routines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodIds {
    block: IdRange,
    slots: u32,
}

impl PodIds {
    /// For tests of what is done with numbers alone.
    #[cfg(test)]
    pub fn at(first: u32, slots: u32) -> Self {
        Self { block: IdRange { first, last: first + 2 * slots - 1 }, slots }
    }

    /// The numbers of one slot.
    pub fn of(&self, slot: u32) -> Ids {
        let uid = self.block.first.saturating_add(slot);
        Ids { uid, gid: uid, kill_uid: uid.saturating_add(self.slots) }
    }
}

impl fmt::Display for PodIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.block.fmt(f)
    }
}

/// What is written down of a block.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    ids: IdRange,
    pod: PathBuf,
    boot: String,
}

/// The blocks of all pods of this host.
#[derive(Debug)]
struct Registry {
    dir: PathBuf,
    boot: String,
    _lock: Flock<File>,
}

impl Registry {
    fn open(dir: &Path) -> Result<Self, Failure> {
        directory(dir, 0o700)?;
        let path = dir.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.context(|| format!("cannot open {}", path.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| failure(format!("cannot lock {}: {e}", path.display())))?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self { dir: dir.to_owned(), boot, _lock: lock })
    }

    /// What is taken by pods that may still live; what others left is removed.
    fn entries(&self) -> Result<Vec<(PathBuf, Entry)>, Failure> {
        let mut entries = Vec::new();
        let listed = fs::read_dir(&self.dir).context(|| format!("cannot list {}", self.dir.display()))?;
        for found in listed.flatten() {
            let path = found.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let entry = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
            match entry {
                // A pod that was killed lives on, and its directory with it, until it is removed.
                Some(entry) if entry.boot == self.boot && entry.pod.exists() => entries.push((path, entry)),
                _ => {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(entries)
    }

    fn take(&self, pod: &Path, range: IdRange, count: u32, avoid: &[IdRange]) -> Result<IdRange, Failure> {
        let taken: Vec<IdRange> = self.entries()?.into_iter().map(|(_, entry)| entry.ids).collect();
        let last = fs::read_to_string(self.dir.join(LAST)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let all: Vec<IdRange> = taken.iter().chain(avoid).chain([&NEVER]).copied().collect();
        let ids = range.free(count, last, &all).ok_or_else(|| {
            failure(format!(
                "there are no {count} free user IDs in a row in {range}: {} pods of this host have blocks of their own there, \
                 and so may have running processes or accounts in /etc/passwd; end pods (latebind-host ps lists those of a \
                 state directory), or give another range with --uids",
                taken.iter().filter(|t| t.meets(&range)).count()
            ))
        })?;
        let entry = Entry { ids, pod: pod.to_owned(), boot: self.boot.clone() };
        let path = self.dir.join(format!("{ids}.json"));
        serde_json::to_vec(&entry)
            .map_err(io::Error::other)
            .and_then(|text| fs::write(&path, text))
            .and_then(|()| fs::write(self.dir.join(LAST), format!("{}\n", ids.last)))
            .context(|| format!("cannot write {}", path.display()))?;
        Ok(ids)
    }

    fn give_back(&self, pod: &Path) -> Result<(), Failure> {
        for (path, entry) in self.entries()? {
            if entry.pod == pod {
                fs::remove_file(&path).context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Takes IDs for a pod, and writes them down in its directory. Without `range` the default one, in which
/// accounts of the host are left out as well.
pub fn take(place: &PodPlace, slots: u32, range: Option<IdRange>) -> Result<PodIds, Failure> {
    take_in(&registry(), place, slots, range)
}

/// The registry; of a user who is not root, whose subordinate IDs nobody else has, one for that user's pods.
fn registry() -> PathBuf {
    let session = if rootless::is_inside() { rootless::session_directory() } else { None };
    session.map_or_else(|| REGISTRY.into(), |dir| dir.join("latebind-uids"))
}

fn take_in(registry: &Path, place: &PodPlace, slots: u32, range: Option<IdRange>) -> Result<PodIds, Failure> {
    let slots = slots.clamp(1, SLOT_MAX + 1);
    directory(place.top(), 0o700)?;
    let mut avoid = of_processes();
    if range.is_none() {
        avoid.extend(of_accounts());
    }
    let block = Registry::open(registry)?.take(place.top(), range.unwrap_or(DEFAULT_RANGE), 2 * slots, &avoid)?;
    let ids = PodIds { block, slots };
    let path = place.uids();
    fs::write(&path, format!("{ids}\n")).context(|| format!("cannot write {}", path.display()))?;
    Ok(ids)
}

/// Gives back what a pod has, once nothing of it is left.
pub fn give_back(place: &PodPlace) -> Result<(), Failure> {
    Registry::open(&registry())?.give_back(place.top())
}

/// The IDs of all processes: of pods that are written down somewhere else, or of users whose accounts are elsewhere.
fn of_processes() -> Vec<IdRange> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|e| e.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit));
    let mut ids: Vec<u32> = processes.filter_map(|e| Some(e.metadata().ok()?.uid())).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(|id| IdRange { first: id, last: id }).collect()
}

/// The user and group IDs of the host's own accounts.
fn of_accounts() -> Vec<IdRange> {
    let ids_of = |file: &str| {
        let text = fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().filter_map(|line| line.split(':').nth(2)?.parse::<u32>().ok()).collect::<Vec<_>>()
    };
    let ids = ["/etc/passwd", "/etc/group"].into_iter().flat_map(ids_of);
    ids.map(|id| IdRange { first: id, last: id }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    fn range(first: u32, last: u32) -> IdRange {
        IdRange { first, last }
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(IdRange::parse("20000-59999").unwrap(), DEFAULT_RANGE);
        assert_eq!(IdRange::parse("1-2").unwrap(), range(1, 2));
        for bad in ["", "1", "1-", "-2", "0-5", "5-5", "6-5", "1-4294967295", "1-4294967296", "a-b", "1-2-3"] {
            assert!(IdRange::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_block_comes_after_the_last_one_and_meets_no_other() {
        let all = range(100, 109);
        assert_eq!(all.free(2, 0, &[]), Some(range(100, 101)));
        assert_eq!(all.free(2, 101, &[]), Some(range(102, 103)), "the next one, though the first is free again");
        assert_eq!(all.free(2, 103, &[range(105, 105)]), Some(range(106, 107)));
        assert_eq!(all.free(2, 107, &[range(109, 200)]), Some(range(100, 101)), "from the beginning");
        assert_eq!(all.free(4, 107, &[range(102, 103)]), Some(range(104, 107)));
        assert_eq!(all.free(2, 0, &[range(1, 108)]), None);
        assert_eq!(all.free(11, 0, &[]), None);
        let top = range(u32::MAX - 3, u32::MAX - 1);
        assert_eq!(top.free(2, u32::MAX, &[range(u32::MAX - 3, u32::MAX - 2)]), None);
    }

    #[test]
    fn no_two_slots_of_a_pod_share_an_id() {
        let ids = PodIds::at(300, 3);
        let mut all: Vec<u32> = (0..3).flat_map(|n| [ids.of(n).uid, ids.of(n).kill_uid]).collect();
        all.sort_unstable();
        assert_eq!(all, [300, 301, 302, 303, 304, 305]);
        assert!((0..3).all(|n| ids.of(n).check().is_ok()));
    }

    #[test]
    fn two_living_pods_never_share_an_id_and_a_removed_ones_come_back_last() {
        let top = std::env::temp_dir().join(format!("latebind-uids-{}", std::process::id()));
        let registry = top.join("registry");
        let pod = |name: &str| {
            let place = PodPlace::at(top.join(name).to_str().unwrap());
            fs::create_dir_all(place.top()).unwrap();
            place
        };
        // Beyond what any process of this machine has.
        let all = Some(range(3_000_000_000, 3_000_000_007));
        let take = |place: &PodPlace| take_in(&registry, place, 1, all).map(|ids| ids.of(0).uid - 3_000_000_000);
        let places = ["a", "b", "c", "d"].map(pod);
        assert_eq!([0, 1, 2, 3].map(|n| take(&places[n]).unwrap()), [0, 2, 4, 6]);
        assert_eq!(fs::read_to_string(places[1].uids()).unwrap(), "3000000002-3000000003\n");
        let fifth = pod("e");
        assert!(take(&fifth).is_err_and(|e| e.to_string().contains("4 pods")));
        // One that was removed, and one whose directory is gone.
        Registry::open(&registry).unwrap().give_back(places[2].top()).unwrap();
        assert_eq!(take(&fifth).unwrap(), 4);
        fs::remove_dir_all(places[0].top()).unwrap();
        assert_eq!(take(&pod("f")).unwrap(), 0);
        assert!(take(&pod("g")).is_err());
        // What an earlier boot left says nothing.
        let path = registry.join("3000000000-3000000001.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"boot\":\"", "\"boot\":\"before")).unwrap();
        assert_eq!(take(&pod("g")).unwrap(), 0);
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn running_processes_and_accounts_are_seen() {
        let own = nix::unistd::geteuid().as_raw();
        assert!(of_processes().contains(&range(own, own)));
        assert!(of_accounts().contains(&range(0, 0)));
    }
}
