//! The entries of a directory, one after the other: however many there are, one buffer of them is held.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use nix::unistd::{Whence, lseek};

use crate::text;

/// Bytes of entries that are read at once. The kernel needs room for one of the longest name, 280 bytes.
const BUFFER: usize = 8 << 10;

/// Where `linux_dirent64` of getdents64(2) has its fields.
const OFFSET: std::ops::Range<usize> = 8..16;
const LENGTH: std::ops::Range<usize> = 16..18;
const KIND: usize = 18;
const NAME: usize = 19;

/// Longest name (limits.h).
const NAME_MAX: usize = 255;

/// What the file system says an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    Other,
    /// It does not say.
    Unknown,
}

/// One entry of a directory.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Its name, any bytes.
    pub name: &'a CStr,
    /// What it is.
    pub kind: Kind,
    /// Where the entry behind it is found: see [`Listing::seek`].
    pub next: i64,
}

/// Reads the entries of one directory, whose descriptor comes with each call: its position belongs to the descriptor.
#[derive(Debug)]
pub struct Listing {
    buffer: Box<[u8]>,
    filled: usize,
    at: usize,
}

impl Default for Listing {
    fn default() -> Self {
        Self { buffer: vec![0; BUFFER].into(), filled: 0, at: 0 }
    }
}

impl Listing {
    /// The next entry, `.` and `..` left out.
    pub fn next(&mut self, dir: BorrowedFd<'_>) -> io::Result<Option<Entry<'_>>> {
        let (record, next) = loop {
            if self.at >= self.filled {
                (self.filled, self.at) = (latebind_linux::sys::read_directory(dir, &mut self.buffer)?, 0);
                if self.filled == 0 {
                    return Ok(None);
                }
            }
            let (length, next) = header(self.buffer.get(self.at..self.filled).unwrap_or_default())?;
            let record = self.at..self.at + length;
            self.at = record.end;
            if !matches!(name(self.buffer.get(record.clone()).unwrap_or_default())?.to_bytes(), b"." | b"..") {
                break (record, next);
            }
        };
        let bytes = self.buffer.get(record).unwrap_or_default();
        let kind = match bytes.get(KIND) {
            Some(&nix::libc::DT_DIR) => Kind::Directory,
            Some(&nix::libc::DT_UNKNOWN) | None => Kind::Unknown,
            Some(_) => Kind::Other,
        };
        Ok(Some(Entry { name: name(bytes)?, kind, next }))
    }

    /// Goes on at `position`, which an [`Entry::next`] of this directory has named; 0 is the beginning.
    pub fn seek(&mut self, dir: BorrowedFd<'_>, position: i64) -> io::Result<()> {
        (self.filled, self.at) = (0, 0);
        lseek(dir, position, Whence::SeekSet)?;
        Ok(())
    }
}

fn malformed() -> io::Error {
    io::Error::other("the kernel's list of a directory is malformed")
}

/// Length of the first record, and the position behind it.
fn header(bytes: &[u8]) -> io::Result<(usize, i64)> {
    let field = |range| bytes.get(range).ok_or_else(malformed);
    let length = u16::from_ne_bytes(field(LENGTH)?.try_into().map_err(|_| malformed())?);
    let next = i64::from_ne_bytes(field(OFFSET)?.try_into().map_err(|_| malformed())?);
    let length = usize::from(length);
    if length > NAME && length <= bytes.len() { Ok((length, next)) } else { Err(malformed()) }
}

fn name(record: &[u8]) -> io::Result<&CStr> {
    CStr::from_bytes_until_nul(record.get(NAME..).unwrap_or_default()).map_err(|_| malformed())
}

/// A name for people: see [`text::shown`].
pub fn shown(name: &CStr) -> String {
    text::shown(&String::from_utf8_lossy(name.to_bytes()), NAME_MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use std::collections::BTreeSet;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn more_entries_than_the_buffer_holds_are_listed_and_found_again() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        let long = |n: u8| [[b'x', n].repeat(100), vec![b'\xff'; 50]].concat();
        let wanted: BTreeSet<Vec<u8>> = (b'a'..=b'z').chain(b'A'..=b'Z').map(long).collect();
        for name in &wanted {
            std::fs::write(top.join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
        }
        std::fs::create_dir(top.join("d")).unwrap();
        let dir = super::super::open_dir(top).unwrap();
        let mut listing = Listing::default();
        let mut found = Vec::new();
        while let Some(entry) = listing.next(dir.as_fd()).unwrap() {
            assert_eq!(entry.kind == Kind::Directory, entry.name == c"d", "{:?}", entry.name);
            found.push((entry.name.to_bytes().to_vec(), entry.next));
        }
        let names: BTreeSet<Vec<u8>> = found.iter().map(|(name, _)| name.clone()).filter(|n| n != b"d").collect();
        assert_eq!((names, found.len()), (wanted, 53));
        listing.seek(dir.as_fd(), found[39].1).unwrap();
        assert_eq!(listing.next(dir.as_fd()).unwrap().unwrap().name.to_bytes(), found[40].0);
    }
}
