//! How full a slot's data volume is: at little cost, whatever the payload makes there.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use glue::contract::layout;
use glue::contract::mounts;
use glue::volume::Dir;
use nix::dir::{Dir as Listing, OwningIter};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{SFlag, fstatat};
use nix::sys::statvfs::fstatvfs;

/// Entries that one look goes through; the next one goes on from there.
const ENTRIES_MAX: usize = 20_000;

/// Longest path that is gone into, and most directories that are remembered: what lies beyond is not counted.
const PATH_MAX: usize = 4_000;
const WAITING_MAX: usize = 100_000;
/// Files of several names that are remembered in one count.
const LINKS_MAX: usize = 100_000;

/// A directory whose entries are being counted.
struct Counting {
    path: String,
    dir: OwnedFd,
    entries: OwningIter,
}

/// A data volume.
pub struct Disk {
    data: Dir,
    /// The whole file system is the volume, so that the kernel knows how full it is.
    is_file_system: bool,
    /// How large it is, as far as that is known.
    pub size: Option<u64>,
    waiting: VecDeque<String>,
    counting: Option<Counting>,
    links: HashSet<u64>,
    counted: u64,
    total: Option<u64>,
}

impl Disk {
    /// The data volume of a slot. `size` is what the pod's owner has given it, where a quota is kept by somebody else.
    pub fn open(slot: u32, size: Option<u64>) -> io::Result<Self> {
        let path = layout::data(slot);
        let data = Dir::open(&path)?;
        let mounted = mounts::parse(&std::fs::read_to_string("/proc/self/mountinfo")?).map_err(io::Error::other)?;
        let is_file_system = mounted.iter().rev().find(|m| m.point == path).is_some_and(|m| m.root == "/");
        let mut disk = Self {
            data,
            is_file_system,
            size,
            waiting: VecDeque::new(),
            counting: None,
            links: HashSet::new(),
            counted: 0,
            total: None,
        };
        if is_file_system {
            let all = fstatvfs(disk.data.as_fd())?;
            let whole = all.blocks().saturating_mul(all.fragment_size());
            disk.size = Some(size.map_or(whole, |given| given.min(whole)));
        }
        Ok(disk)
    }

    /// Bytes in use. Where the volume is a directory of a larger file system, its files are counted; a large tree takes several
    /// looks, and the last full count stands until then. Files that are open and have no name any more are not seen there.
    pub fn used(&mut self) -> io::Result<Option<u64>> {
        if self.is_file_system {
            let all = fstatvfs(self.data.as_fd())?;
            return Ok(Some(all.blocks().saturating_sub(all.blocks_free()).saturating_mul(all.fragment_size())));
        }
        self.look(ENTRIES_MAX);
        // What has been counted already is there in any case.
        Ok(Some(self.total.unwrap_or(0).max(self.counted)).filter(|_| self.total.is_some() || self.counted > 0))
    }

    /// Counts so many entries more, and begins anew where all have been counted.
    fn look(&mut self, mut left: usize) {
        if self.counting.is_none() && self.waiting.is_empty() {
            (self.counted, self.links) = (0, HashSet::new());
            self.waiting.push_back(".".into());
        }
        while left > 0 {
            if self.counting.is_none() {
                let Some(path) = self.waiting.pop_front() else {
                    self.total = Some(self.counted);
                    return;
                };
                left -= 1;
                // The payload may take away what was just there.
                self.counting = self.open_dir(path).ok();
            }
            self.count(&mut left);
        }
    }

    fn open_dir(&self, path: String) -> io::Result<Counting> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
        let dir = if path == "." {
            self.data.as_fd().try_clone_to_owned()?
        } else {
            self.data.open_beneath(&path, flags, 0)?
        };
        let listing = Listing::openat(dir.as_fd(), ".", flags | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
        Ok(Counting { path, dir, entries: listing.into_iter() })
    }

    fn count(&mut self, left: &mut usize) {
        let Some(mut counting) = self.counting.take() else { return };
        while *left > 0 {
            let Some(Ok(entry)) = counting.entries.next() else { return };
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            *left -= 1;
            let Ok(stat) = fstatat(&counting.dir, entry.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            let is_dir = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
            // Beyond what is remembered, a second name counts again.
            let counts = is_dir || stat.st_nlink < 2 || self.links.len() >= LINKS_MAX || self.links.insert(stat.st_ino);
            if !counts {
                continue;
            }
            self.counted = self.counted.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
            if is_dir && let Ok(name) = entry.file_name().to_str() {
                let below = if counting.path == "." { name.to_owned() } else { format!("{}/{name}", counting.path) };
                if below.len() <= PATH_MAX && self.waiting.len() < WAITING_MAX {
                    self.waiting.push_back(below);
                }
            }
        }
        // The next look goes on here, however many entries one directory has.
        self.counting = Some(counting);
    }

    /// Bytes of standard output and error, where they go to files.
    pub fn output(&self) -> u64 {
        let size = |name: &str| {
            let path = format!("{}/{name}", super::stage::IO);
            let file = self.data.open_beneath(&path, OFlag::O_PATH, 0).ok()?;
            u64::try_from(nix::sys::stat::fstat(&file).ok()?.st_size).ok()
        };
        ["stdout", "stderr"].iter().filter_map(|name| size(name)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_once_and_links_are_not_followed() {
        // Not below /tmp: a volume that others could exchange is refused.
        let top = std::path::PathBuf::from(format!("/run/latebind-disk-{}", std::process::id()));
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::write(top.join("a/b/one"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(top.join("a/b/one"), top.join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", top.join("link")).unwrap();
        let mut disk = Disk {
            data: Dir::open(top.to_str().unwrap()).unwrap(),
            is_file_system: false,
            size: None,
            waiting: VecDeque::new(),
            counting: None,
            links: HashSet::new(),
            counted: 0,
            total: None,
        };
        let first = disk.used().unwrap().unwrap();
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&first), "{first}");
        std::fs::write(top.join("two"), vec![1; 1 << 20]).unwrap();
        let second = disk.used().unwrap().unwrap();
        assert!(second >= first + (1 << 20), "{second}");
        // One entry a look, whether of one directory or of several: the last count stands meanwhile, and it comes to the same.
        disk.total = None;
        for n in 0..60 {
            disk.look(1);
            assert!(disk.counted <= second, "{n}: {}", disk.counted);
        }
        assert_eq!(disk.total, Some(second));
        std::fs::remove_dir_all(top).unwrap();
    }
}
