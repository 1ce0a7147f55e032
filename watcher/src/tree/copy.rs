//! Copying trees of files from one owner to another: inputs into a slot, outputs out of it. No link is followed,
//! nothing is waited for, every entry and every byte is charged to a budget before it is copied, what is sparse stays
//! sparse, what can be executed stays a program, and times of changes are kept. Set-user-ID, set-group-ID and sticky
//! bits are not.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, Whence, fchown, ftruncate, linkat, lseek, symlinkat, unlinkat};

use super::listing::{Listing, shown};
use super::{Deadline, check_reader, is};
use crate::text;

/// How deep a tree may be.
pub const DEPTH_MAX: usize = 64;

/// Bytes that are copied at once; between two of them the deadline is looked at.
const BLOCK: usize = 256 << 10;

/// What may still be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes, holes included.
    pub bytes: u64,
    /// Files and directories.
    pub entries: u64,
    /// The size of the largest file for which the bytes were not enough.
    pub refused: u64,
}

impl Budget {
    /// So much.
    pub fn new(bytes: u64, entries: u64) -> Self {
        Self { bytes, entries, refused: 0 }
    }
}

/// What is copied, and how.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whose files and directories alone are copied; everybody's where it is `None`.
    pub only_of: Option<u32>,
    /// For whom it is read: see [`check_reader`].
    pub reader: Option<u32>,
    /// UID and GID that the copies get; the caller's where it is `None`.
    pub owner: Option<(u32, u32)>,
    /// Whether links that stay within the tree are kept; else they are refused.
    pub links: bool,
}

/// Why copying does not go on.
#[derive(Debug)]
pub enum Problem {
    /// With this file or directory.
    Skip(io::Error),
    /// At all.
    Stop(io::Error),
}

impl Problem {
    /// The error.
    pub fn error(self) -> io::Error {
        match self {
            Self::Skip(e) | Self::Stop(e) => e,
        }
    }
}

impl From<io::Error> for Problem {
    fn from(e: io::Error) -> Self {
        Self::Skip(e)
    }
}

impl From<Errno> for Problem {
    fn from(e: Errno) -> Self {
        Self::Skip(e.into())
    }
}

/// Copies trees within one budget and one deadline.
pub struct Copier<'a> {
    /// What is copied, and how.
    pub rules: Rules,
    /// What may still be copied.
    pub budget: Budget,
    /// Until when.
    pub deadline: &'a Deadline<'a>,
    /// What becomes of a file in a directory that cannot be copied: goes on without it, or ends with the error.
    pub failed: &'a mut dyn FnMut(&str, io::Error) -> io::Result<()>,
    /// Whether the last error came from the place that is copied to.
    pub at_target: bool,
    /// Where copies of files with several names are, so that each is copied once; none: each name is a file.
    pub known: Option<Known>,
}

/// Most files with several names that are remembered. What has more is copied, and charged, for each name.
const KNOWN_MAX: usize = 10_000;
/// Most bytes of their paths.
const KNOWN_BYTES_MAX: usize = 1 << 20;

/// Copies of files that have more than one name.
#[derive(Debug)]
pub struct Known {
    /// What all paths are beneath; nobody else writes there.
    top: OwnedFd,
    /// The directory that is being copied to, beneath `top`, as bytes that end with a slash; empty for `top` itself.
    pub at: Vec<u8>,
    copies: BTreeMap<(u64, u64), CString>,
    bytes: usize,
}

impl Known {
    /// None yet, beneath `top`.
    pub fn new(top: OwnedFd) -> Self {
        Self { top, at: Vec::new(), copies: BTreeMap::new(), bytes: 0 }
    }

    fn path(&self, name: &CStr) -> Option<CString> {
        CString::new([self.at.as_slice(), name.to_bytes()].concat()).ok()
    }

    /// Gives the copy of this file another name. Whether there is one.
    fn link(&self, stat: &FileStat, to: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
        let Some(copy) = self.copies.get(&(stat.st_dev, stat.st_ino)) else { return Ok(false) };
        linkat(&self.top, copy.as_c_str(), to, name, AtFlags::empty())?;
        Ok(true)
    }

    fn remember(&mut self, stat: &FileStat, name: &CStr) {
        let Some(path) = self.path(name) else { return };
        self.bytes += path.as_bytes().len();
        if self.copies.len() < KNOWN_MAX && self.bytes <= KNOWN_BYTES_MAX {
            self.copies.insert((stat.st_dev, stat.st_ino), path);
        }
    }
}

impl Copier<'_> {
    /// Copies what is in `from` into the empty directory `to`; `path` is what messages call `from`.
    pub fn content(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &str) -> Result<(), Problem> {
        self.level(from, to, path, 1)
    }

    /// Copies an open file or directory to `name` in `to`, where nothing is.
    pub fn entry(&mut self, from: OwnedFd, to: BorrowedFd<'_>, name: &CStr, path: &str) -> Result<(), Problem> {
        self.open_entry(from, to, name, path, 1)
    }

    fn level(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &str, depth: usize) -> Result<(), Problem> {
        if depth > DEPTH_MAX {
            return Err(io::Error::other(format!("nested deeper than {DEPTH_MAX}")).into());
        }
        let mut listing = Listing::default();
        while let Some(entry) = listing.next(from)? {
            let shown = if path.is_empty() { shown(entry.name) } else { format!("{path}/{}", shown(entry.name)) };
            // One name of this very directory, no link: it can lead nowhere else. It may be a mount, as each input of
            // `latebind-host run` is. Non-blocking, so that a FIFO is an error and not a wait.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let copied = match openat(from, entry.name, flags, Mode::empty()) {
                Ok(open) => self.open_entry(open, to, entry.name, &shown, depth),
                Err(Errno::ELOOP) if self.rules.links => self.link(from, to, entry.name, depth),
                Err(e) => self.charge_entry().and(Err(plain(e.into()).into())),
            };
            match copied {
                Ok(()) => {}
                Err(Problem::Skip(e)) => (self.failed)(&shown, e).map_err(Problem::Stop)?,
                Err(stop) => return Err(stop),
            }
        }
        Ok(())
    }

    fn open_entry(
        &mut self,
        from: OwnedFd,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &str,
        depth: usize,
    ) -> Result<(), Problem> {
        self.charge_entry()?;
        let stat = fstat(&from)?;
        if let Some(uid) = self.rules.only_of.filter(|uid| *uid != stat.st_uid) {
            return Err(io::Error::other(format!("belongs to UID {}, not to {uid}", stat.st_uid)).into());
        }
        check_reader(&stat, self.rules.reader)?;
        if is(&stat, SFlag::S_IFDIR) {
            let made = at_target(&mut self.at_target, make_dir(to, name))?;
            let above = self.known.as_ref().map_or(0, |known| known.at.len());
            if let Some(known) = &mut self.known {
                known.at.extend_from_slice(name.to_bytes());
                known.at.push(b'/');
            }
            // Whatever becomes of the rest, what is in it can be reached.
            let copied = self.level(from.as_fd(), made.as_fd(), path, depth + 1);
            if let Some(known) = &mut self.known {
                known.at.truncate(above);
            }
            let given = at_target(&mut self.at_target, give(made.as_fd(), self.rules.owner, 0o755, &stat));
            return copied.and(given.map_err(Problem::Skip));
        }
        if !is(&stat, SFlag::S_IFREG) {
            return Err(io::Error::other("is neither a file nor a directory").into());
        }
        let has_more_names = stat.st_nlink > 1;
        if let Some(known) = self.known.as_ref().filter(|_| has_more_names)
            && at_target(&mut self.at_target, known.link(&stat, to, name))?
        {
            return Ok(());
        }
        self.file(&File::from(from), &stat, to, name)?;
        if let Some(known) = self.known.as_mut().filter(|_| has_more_names) {
            known.remember(&stat, name);
        }
        Ok(())
    }

    /// Makes a link that stays within the tree once more; `depth`: the level that it is on, 2 in its first directory.
    fn link(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Problem> {
        self.charge_entry()?;
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if let Some(uid) = self.rules.only_of.filter(|uid| *uid != stat.st_uid) {
            return Err(io::Error::other(format!("belongs to UID {}, not to {uid}", stat.st_uid)).into());
        }
        let target = readlinkat(from, name)?;
        if !stays_within(target.as_bytes(), depth.saturating_sub(2)) {
            let target = text::shown(&target.to_string_lossy(), TARGET_SHOWN_MAX);
            let why = format!("is a symbolic link that leads out of the output ({target}), and is not followed");
            return Err(io::Error::other(why).into());
        }
        at_target(&mut self.at_target, symlinkat(target.as_os_str(), to, name).map_err(io::Error::from))?;
        Ok(())
    }

    /// Copies an open regular file. What cannot be copied whole is not kept in part: nobody could tell.
    pub fn file(&mut self, from: &File, stat: &FileStat, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Problem> {
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        // Charged whether or not it can be copied: trying costs as much.
        let Some(left) = self.budget.bytes.checked_sub(size) else {
            self.budget.refused = self.budget.refused.max(size);
            let message = format!("has {size} bytes, and {} more may be copied", self.budget.bytes);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message).into());
        };
        self.budget.bytes = left;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(to, name, flags, Mode::from_bits_truncate(0o600));
        let made = File::from(at_target(&mut self.at_target, made.map_err(io::Error::from))?);
        let mode = if stat.st_mode & 0o111 != 0 { 0o755 } else { 0o644 };
        let copied = self.bytes(from, &made, size).and_then(|()| {
            let given = give(made.as_fd(), self.rules.owner, mode, stat);
            at_target(&mut self.at_target, given).map_err(Problem::Skip)
        });
        if copied.is_err() {
            let _ = unlinkat(to, name, UnlinkatFlags::NoRemoveDir);
        }
        copied
    }

    /// Copies the first `size` bytes, however many there are by now, and leaves out the holes.
    fn bytes(&mut self, from: &File, to: &File, size: u64) -> Result<(), Problem> {
        let end = i64::try_from(size).unwrap_or(i64::MAX);
        at_target(&mut self.at_target, ftruncate(to, end).map_err(io::Error::from))?;
        let mut block = vec![0; BLOCK.min(usize::try_from(size).unwrap_or(BLOCK).max(1))];
        let mut at = 0;
        while let Some((data, hole)) = next_data(from, at, end)? {
            at = data;
            while at < hole {
                self.deadline.check().map_err(Problem::Stop)?;
                let most = usize::try_from(hole - at).unwrap_or(BLOCK).min(block.len());
                let part = block.get_mut(..most).unwrap_or_default();
                let n = from.read_at(part, at.unsigned_abs())?;
                if n == 0 {
                    return Ok(()); // it was cut meanwhile
                }
                let read = part.get(..n).unwrap_or_default();
                at_target(&mut self.at_target, to.write_all_at(read, at.unsigned_abs()))?;
                at = at.saturating_add(i64::try_from(n).unwrap_or(i64::MAX));
            }
        }
        Ok(())
    }

    fn charge_entry(&mut self) -> Result<(), Problem> {
        self.deadline.check().map_err(Problem::Stop)?;
        self.at_target = false;
        self.budget.entries = self
            .budget
            .entries
            .checked_sub(1)
            .ok_or_else(|| Problem::Stop(io::Error::other("more files and directories than may be copied")))?;
        Ok(())
    }
}

/// Most characters of a link's target that are shown.
const TARGET_SHOWN_MAX: usize = 100;

/// Whether a link to `target` stays within a tree, `levels` below whose top it is. `..` may only be at its beginning,
/// so that it leaves directories alone and no other link, which may lead elsewhere.
pub(super) fn stays_within(target: &[u8], levels: usize) -> bool {
    let mut parts = target.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).peekable();
    let mut up = 0;
    while parts.next_if_eq(&b"..".as_slice()).is_some() {
        up += 1;
    }
    !target.starts_with(b"/") && up <= levels && parts.all(|part| part != b"..")
}

/// What some errors of opening a file mean where links are not followed.
pub fn plain(e: io::Error) -> io::Error {
    match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ELOOP) => io::Error::other("is a symbolic link, which is not followed"),
        Some(Errno::ENXIO) => io::Error::other("is neither a file nor a directory"),
        _ => e,
    }
}

/// Gives a copy its mode, its owner where it gets another one, and the time of its last change.
fn give(made: BorrowedFd<'_>, owner: Option<(u32, u32)>, mode: u32, stat: &FileStat) -> io::Result<()> {
    fchmod(made, Mode::from_bits_truncate(mode))?;
    if let Some((uid, gid)) = owner {
        fchown(made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    // A time that the file system cannot keep is no reason to lose the file.
    let _ = futimens(made, &TimeSpec::UTIME_OMIT, &TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    Ok(())
}

fn at_target<T>(mark: &mut bool, result: io::Result<T>) -> io::Result<T> {
    *mark |= result.is_err();
    result
}

fn make_dir(to: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    mkdirat(to, name, Mode::from_bits_truncate(0o700))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(to, name, flags, Mode::empty())?)
}

/// The next stretch of data at or behind `at` and before `end`.
fn next_data(file: &File, at: i64, end: i64) -> io::Result<Option<(i64, i64)>> {
    if at >= end {
        return Ok(None);
    }
    let data = match lseek(file, at, Whence::SeekData) {
        Err(Errno::ENXIO) => return Ok(None), // only a hole is left
        // A file system that does not know its holes.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some((at, end))),
        data => data?,
    };
    let hole = lseek(file, data, Whence::SeekHole)?;
    Ok((data < end).then(|| (data, hole.min(end))))
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
