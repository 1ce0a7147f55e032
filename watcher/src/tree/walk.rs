//! How much a tree takes on disk: counted a part at a time, whatever names it has and however deep it is, while its
//! owner changes it, with a bounded number of descriptors and a bounded memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::is;
use super::listing::Listing;

/// So many levels stay open, and so come back to by their descriptor. Deeper ones are left by `..`.
const OPEN_MAX: usize = 24;

/// Deepest level that is gone into; less than a hundred bytes are remembered of each.
pub const DEPTH_MAX: usize = if cfg!(test) { 5_000 } else { 100_000 };

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Bytes of its blocks. A file of several names counts in part for each, so that all of them make it one.
    pub bytes: u64,
    /// Bytes of its files, holes included, for each name.
    pub size: u64,
    /// Names.
    pub entries: u64,
    /// Whether there was something that could not be gone into: moved meanwhile, or too deep.
    pub missed: bool,
}

/// A directory on the way from the top to where the count is.
struct Level {
    open: Option<(OwnedFd, Listing)>,
    inode: u64,
    /// Where its entries go on.
    next: i64,
}

/// A count under way.
pub struct Walk {
    /// Never empty; the last one is always open.
    levels: Vec<Level>,
    device: u64,
    count: Count,
}

fn open(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    // Without a trace, so that the tree's owner does not see where the count is.
    match openat(dir, name, flags | OFlag::O_NOATIME, Mode::empty()) {
        Err(Errno::EPERM) => openat(dir, name, flags, Mode::empty()),
        result => result,
    }
}

/// Bytes of a file's blocks.
pub fn blocks(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

impl Walk {
    /// Begins with what is in `top`, which may have another position already.
    pub fn new(top: BorrowedFd<'_>) -> io::Result<Self> {
        let open = open(top, c".")?;
        let stat = fstat(&open)?;
        let level = Level { open: Some((open, Listing::default())), inode: stat.st_ino, next: 0 };
        Ok(Self { levels: vec![level], device: stat.st_dev, count: Count::default() })
    }

    /// What has been counted so far.
    pub fn so_far(&self) -> Count {
        self.count
    }

    /// Counts so many entries more, and says whether that was the end.
    pub fn go_on(&mut self, entries: usize) -> bool {
        for _ in 0..entries {
            if !self.step() {
                return true;
            }
        }
        false
    }

    /// One entry, or the way out of a directory. `false` at the end.
    fn step(&mut self) -> bool {
        let depth = self.levels.len();
        let Some(level) = self.levels.last_mut() else { return false };
        let Some((dir, listing)) = &mut level.open else { return self.leave() };
        let Ok(Some(entry)) = listing.next(dir.as_fd()) else { return self.leave() };
        level.next = entry.next;
        // The owner may take away what was just there.
        let Ok(stat) = fstatat(&*dir, entry.name, AtFlags::AT_SYMLINK_NOFOLLOW) else { return true };
        self.count.entries += 1;
        if !is(&stat, SFlag::S_IFDIR) {
            #[allow(clippy::useless_conversion, reason = "st_nlink has 32 bits on aarch64")]
            let names = u64::from(stat.st_nlink).max(1);
            self.count.bytes = self.count.bytes.saturating_add(blocks(&stat) / names);
            self.count.size = self.count.size.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
            return true;
        }
        self.count.bytes = self.count.bytes.saturating_add(blocks(&stat));
        let below = if depth < DEPTH_MAX { open(dir.as_fd(), entry.name) } else { Err(Errno::ENAMETOOLONG) };
        match below.and_then(|below| Ok((fstat(&below)?, below))) {
            Ok((stat, below)) if stat.st_dev == self.device => {
                if depth > OPEN_MAX {
                    level.open = None;
                }
                self.levels.push(Level { open: Some((below, Listing::default())), inode: stat.st_ino, next: 0 });
            }
            Err(Errno::ENOENT) => {}
            _ => self.count.missed = true,
        }
        true
    }

    /// Goes on in the directory above, which is the one that it came from or is not gone on with.
    fn leave(&mut self) -> bool {
        let Some(left) = self.levels.pop() else { return false };
        let Some(level) = self.levels.last_mut() else { return false };
        if level.open.is_some() {
            return true;
        }
        let above = left.open.and_then(|(dir, _)| open(dir.as_fd(), c"..").ok());
        let is_same = |dir: &OwnedFd| fstat(dir).is_ok_and(|s| (s.st_ino, s.st_dev) == (level.inode, self.device));
        let mut listing = Listing::default();
        level.open =
            above.filter(is_same).and_then(|dir| listing.seek(dir.as_fd(), level.next).ok().map(|()| (dir, listing)));
        if level.open.is_none() {
            // Somebody has moved it. What else is in the levels between is not found this time.
            self.count.missed = true;
            while self.levels.last().is_some_and(|level| level.open.is_none()) {
                self.levels.pop();
            }
        }
        !self.levels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::super::{Deadline, open_dir, remove_content};
    use super::*;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    struct Scratch(tempfile::TempDir);

    impl Scratch {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn join(&self, path: impl AsRef<Path>) -> PathBuf {
            self.0.path().join(path)
        }

        fn count(&self) -> Count {
            let mut walk = Walk::new(open_dir(self.0.path()).unwrap().as_fd()).unwrap();
            assert!(walk.go_on(1_000_000));
            walk.so_far()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            // Too deep for a library to remove.
            let top = open_dir(self.0.path()).unwrap();
            remove_content(top.as_fd(), &Deadline::within(std::time::Duration::MAX)).unwrap();
        }
    }

    const MIB: u64 = 1 << 20;

    /// Makes this deep a tree, with a file of a mebibyte at its end, and says where that is.
    fn nest(top: &Path, name: &[u8], depth: usize) -> OwnedFd {
        let mut at = open_dir(top).unwrap();
        for _ in 0..depth {
            nix::sys::stat::mkdirat(&at, name, Mode::from_bits_truncate(0o700)).unwrap();
            at = openat(&at, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        let file = openat(&at, "file", OFlag::O_WRONLY | OFlag::O_CREAT, Mode::from_bits_truncate(0o600)).unwrap();
        nix::unistd::write(&file, &vec![1; MIB as usize]).unwrap();
        nix::unistd::fsync(&file).unwrap();
        at
    }

    #[test]
    fn nothing_is_hidden_by_its_name_or_its_depth() {
        let scratch = Scratch::new();
        fs::create_dir(scratch.join(std::ffi::OsStr::from_bytes(b"\xff"))).unwrap();
        nest(&scratch.join(std::ffi::OsStr::from_bytes(b"\xff")), b"a", 1);
        nest(scratch.0.path(), &[b'n'; 250], 300);
        nest(scratch.0.path(), b"d", 3_000);
        for n in 0..400 {
            fs::create_dir(scratch.join(format!("d/{n}"))).unwrap();
        }
        let count = scratch.count();
        assert!(!count.missed && count.bytes >= 3 * MIB && count.bytes < 40 * MIB, "{count:?}");
    }

    #[test]
    fn a_file_of_several_names_counts_once() {
        let scratch = Scratch::new();
        nest(scratch.0.path(), b"d", 1);
        let before = scratch.count().bytes;
        for n in 0..64 {
            fs::hard_link(scratch.join("d/file"), scratch.join(format!("again-{n}"))).unwrap();
        }
        let after = scratch.count().bytes;
        assert!(after >= before - 4096 && after <= before + 64 * 1024, "{before} {after}");
    }

    #[test]
    fn links_lead_nowhere() {
        let scratch = Scratch::new();
        std::os::unix::fs::symlink("/usr", scratch.join("link")).unwrap();
        assert!(scratch.count().bytes < MIB);
    }

    #[test]
    fn a_part_at_a_time_comes_to_the_same() {
        let scratch = Scratch::new();
        nest(scratch.0.path(), b"d", 60);
        nest(scratch.0.path(), b"e", 3);
        let mut walk = Walk::new(open_dir(scratch.0.path()).unwrap().as_fd()).unwrap();
        let mut looks = 0;
        while !walk.go_on(1) {
            looks += 1;
        }
        assert!(looks > 64);
        assert_eq!(walk.so_far(), scratch.count());
    }

    #[test]
    fn a_count_whose_directory_is_moved_away_says_so_and_ends() {
        let scratch = Scratch::new();
        nest(scratch.0.path(), b"d", 60);
        fs::create_dir(scratch.join("elsewhere")).unwrap();
        let mut walk = Walk::new(open_dir(scratch.0.path()).unwrap().as_fd()).unwrap();
        while walk.levels.len() < 50 {
            assert!(!walk.go_on(1));
        }
        let deep = scratch.join(["d"; 45].join("/"));
        fs::rename(deep, scratch.join("elsewhere/d")).unwrap();
        while !walk.go_on(100) {}
        assert!(walk.so_far().missed, "{:?}", walk.so_far());
        let again = scratch.count();
        assert!(!again.missed && again.bytes >= MIB, "{again:?}");
    }
}
