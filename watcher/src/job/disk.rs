//! How full a slot's data volume is: at little cost, whatever the payload makes there.

use std::io;

use latebind_contract::layout;
use latebind_contract::mounts;
use latebind_linux::volume::Dir;
use nix::sys::statvfs::fstatvfs;

use crate::tree::walk::Walk;

/// Entries that one look goes through; the next one goes on from there.
const ENTRIES_MAX: usize = 20_000;

/// So many counts in a row may miss a part of a tree that is changed meanwhile. After that, or where the tree is too
/// deep, the whole file system's usage counts: it cannot be less than the tree's.
const MISSED_MAX: u32 = 3;

/// A data volume.
pub struct Disk {
    data: Dir,
    /// The whole file system is the volume, so that the kernel knows how full it is.
    is_file_system: bool,
    /// How large it is, as far as that is known.
    pub size: Option<u64>,
    walk: Option<Walk>,
    missed: u32,
    total: Option<u64>,
}

impl Disk {
    /// The data volume of a slot. `size` is what the pod's owner has given it, where a quota is kept by somebody else.
    pub fn open(slot: u32, size: Option<u64>) -> io::Result<Self> {
        let path = layout::data(slot);
        let mounted = mounts::parse(&std::fs::read_to_string("/proc/self/mountinfo")?).map_err(io::Error::other)?;
        let is_file_system = mounted.iter().rev().find(|m| m.point == path).is_some_and(|m| m.root == "/");
        let mut disk = Self { data: Dir::open(&path)?, is_file_system, size, walk: None, missed: 0, total: None };
        if is_file_system {
            let all = fstatvfs(disk.data.as_fd())?;
            let whole = all.blocks().saturating_mul(all.fragment_size());
            disk.size = Some(size.map_or(whole, |given| given.min(whole)));
        }
        Ok(disk)
    }

    /// Bytes in use. Where the volume is a directory of a larger file system, its files are counted; a large tree takes
    /// several looks, and the last full count stands until then. Files that are open and have no name any more are not
    /// seen there.
    pub fn used(&mut self) -> io::Result<Option<u64>> {
        if self.is_file_system {
            return self.used_of_file_system().map(Some);
        }
        self.look(ENTRIES_MAX)?;
        // What has been counted already is there in any case.
        let counted = self.walk.as_ref().map_or(0, |walk| walk.so_far().bytes);
        Ok(Some(self.total.unwrap_or(0).max(counted)).filter(|_| self.total.is_some() || counted > 0))
    }

    fn used_of_file_system(&self) -> io::Result<u64> {
        let all = fstatvfs(self.data.as_fd())?;
        Ok(all.blocks().saturating_sub(all.blocks_free()).saturating_mul(all.fragment_size()))
    }

    /// Counts so many entries more, and begins again where all have been counted.
    fn look(&mut self, entries: usize) -> io::Result<()> {
        let walk = match &mut self.walk {
            Some(walk) => walk,
            None => self.walk.insert(Walk::new(self.data.as_fd())?),
        };
        if !walk.go_on(entries) {
            return Ok(());
        }
        let count = walk.so_far();
        self.walk = None;
        self.missed = if count.missed { self.missed.saturating_add(1) } else { 0 };
        self.total = Some(match self.missed {
            0 => count.bytes,
            n if n < MISSED_MAX => count.bytes.max(self.total.unwrap_or(0)),
            _ => self.used_of_file_system()?.max(count.bytes),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use nix::fcntl::OFlag;
    use std::os::fd::AsFd;

    #[test]
    fn a_count_stands_until_the_next_one_is_complete() {
        // Not below /tmp: a volume that others could exchange is refused.
        let scratch = tempfile::tempdir_in("/run").unwrap();
        let top = scratch.path();
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::write(top.join("a/b/one"), vec![1; 1 << 20]).unwrap();
        let data = Dir::open(top.to_str().unwrap()).unwrap();
        let mut disk = Disk { data, is_file_system: false, size: None, walk: None, missed: 0, total: None };
        let first = disk.used().unwrap().unwrap();
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&first), "{first}");
        std::fs::write(top.join("two"), vec![1; 1 << 20]).unwrap();
        disk.look(1).unwrap();
        assert_eq!(disk.total, Some(first));
        let second = disk.used().unwrap().unwrap();
        assert!(second >= first + (1 << 20), "{second}");
    }

    #[test]
    fn what_is_too_deep_to_be_counted_counts_as_all_that_there_is() {
        use nix::fcntl::openat;
        use nix::sys::stat::{Mode, mkdirat};
        let scratch = tempfile::tempdir_in("/run").unwrap();
        let top = scratch.path();
        let mut at = crate::tree::open_dir(top).unwrap();
        for _ in 0..crate::tree::walk::DEPTH_MAX {
            mkdirat(&at, "d", Mode::from_bits_truncate(0o700)).unwrap();
            at = openat(&at, "d", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        let data = Dir::open(top.to_str().unwrap()).unwrap();
        let mut disk = Disk { data, is_file_system: false, size: None, walk: None, missed: 0, total: None };
        while disk.missed < MISSED_MAX {
            disk.look(ENTRIES_MAX).unwrap();
        }
        assert!(disk.total >= Some(disk.used_of_file_system().unwrap() / 2), "{:?}", disk.total);
        let deadline = crate::tree::Deadline::within(std::time::Duration::MAX);
        crate::tree::remove_content(crate::tree::open_dir(top).unwrap().as_fd(), &deadline).unwrap();
    }
}
