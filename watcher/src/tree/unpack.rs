//! Unpacking archives that others made, into a directory and never out of it: names are checked, each step is taken
//! beneath the directory without following links, and bytes, entries, levels and the ratio to the archive are bounded.
//!
//! Only the helper with the payload's rights does this: whatever is wrong here, or in a library, is wrong with no more
//! than the rights of the job.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};

use latebind_linux::volume::open_beneath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use serde::{Deserialize, Serialize};

use super::copy::{DEPTH_MAX, stays_within};
use super::decompress::{Bounded, Form, reader};
use super::is;
use crate::text;

/// What comes out of an archive may be so many times its size, beyond what any archive may have.
pub const RATIO_MAX: u64 = 250;
/// What any archive may have, however small it is.
pub const RATIO_FREE: u64 = 64 << 20;
/// Longest target of a link.
const TARGET_MAX: u64 = 4096;
/// Most characters of a name that are shown.
const SHOWN_MAX: usize = 200;
/// Bytes that are copied at once.
const BLOCK: usize = 128 << 10;

/// How much may be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of all files, holes included.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

/// What was unpacked, and why it did not go on, if it did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Bytes of files.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
    /// The failure.
    pub problem: Option<Problem>,
}

/// Why an archive was not unpacked whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// In words, with the name of the entry.
    pub why: String,
    /// The error's number where the directory was at fault and not the archive; 0 where it has none.
    pub at_target: Option<i32>,
}

/// Why an entry cannot be unpacked.
enum Failed {
    Archive(String),
    Target(io::Error),
}

impl Failed {
    fn of_archive(e: impl std::fmt::Display) -> Self {
        Self::Archive(e.to_string())
    }
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Self {
        Self::Target(e)
    }
}

impl From<Errno> for Failed {
    fn from(e: Errno) -> Self {
        Self::Target(e.into())
    }
}

/// Puts a file at `path` beneath `to`, or unpacks it into the directory that is to be there.
pub fn place(file: File, to: OwnedFd, unpack: bool, path: &[u8], limits: Limits) -> Unpacked {
    let mut unpacker = Unpacker { to, left: limits, at: None, shown: String::new() };
    let result = if unpack { unpacker.archive_at(file, path) } else { unpacker.file(file, path) };
    let (bytes, entries) = (limits.bytes - unpacker.left.bytes, limits.entries - unpacker.left.entries);
    let at = |why: String| {
        if unpacker.shown.is_empty() { why } else { format!("{}: {why}", unpacker.shown) }
    };
    let problem = result.err().map(|failed| match failed {
        Failed::Archive(why) => Problem { why: at(text::shown(&why, SHOWN_MAX)), at_target: None },
        Failed::Target(e) => Problem { why: at(e.to_string()), at_target: Some(e.raw_os_error().unwrap_or(0)) },
    });
    Unpacked { bytes, entries, problem }
}

/// A name in an archive as its components; `None` where it leads out, or is nothing that can be made.
fn components(name: &[u8]) -> Option<Vec<&[u8]>> {
    if name.starts_with(b"/") || name.contains(&0) {
        return None;
    }
    let parts: Vec<&[u8]> = name.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    (!parts.iter().any(|part| *part == b"..") && parts.len() <= DEPTH_MAX).then_some(parts)
}

/// What an entry is to become.
enum Kind<'a> {
    Directory,
    File {
        is_program: bool,
        modified: Option<i64>,
        content: &'a mut dyn Read,
    },
    Link(Vec<u8>),
    /// Another name of a file that was unpacked before.
    Name(Vec<u8>),
}

struct Unpacker {
    to: OwnedFd,
    left: Limits,
    /// The last directory that something was put into.
    at: Option<(Vec<u8>, OwnedFd)>,
    /// The entry under way, for messages.
    shown: String,
}

impl Unpacker {
    fn archive_at(&mut self, file: File, path: &[u8]) -> Result<(), Failed> {
        let parts = components(path).ok_or_else(|| Failed::Archive("the place for it leads out of work/".into()))?;
        (self.to, self.at) = (self.directory(&parts)?, None);
        self.archive(file)
    }

    fn file(&mut self, mut file: File, path: &[u8]) -> Result<(), Failed> {
        let found = file.metadata().map_err(Failed::of_archive)?;
        let (is_program, modified) = (found.mode() & 0o111 != 0, Some(found.mtime()));
        file.rewind().map_err(Failed::of_archive)?;
        self.charge()?;
        self.entry(path, Kind::File { is_program, modified, content: &mut file })
    }

    fn archive(&mut self, mut file: File) -> Result<(), Failed> {
        let size = file.metadata().map_err(Failed::of_archive)?.len();
        let most = size.saturating_mul(RATIO_MAX).saturating_add(RATIO_FREE);
        let mut begin = [0; 6];
        let n = file.read_at(&mut begin, 0).map_err(Failed::of_archive)?;
        file.rewind().map_err(Failed::of_archive)?;
        let why = format!("unpacks to more than {RATIO_MAX} times its {size} bytes");
        match Form::of(begin.get(..n).unwrap_or_default()) {
            Form::Zip => self.zip(file, most, &why),
            form => self.tar(Bounded::new(reader(form, file), most, why)),
        }
    }

    fn tar(&mut self, mut from: impl Read) -> Result<(), Failed> {
        let mut archive = tar::Archive::new(&mut from);
        for entry in archive.entries().map_err(Failed::of_archive)? {
            let mut entry = entry.map_err(Failed::of_archive)?;
            let name = entry.path_bytes().into_owned();
            let target = entry.link_name_bytes().map(|target| target.into_owned());
            let (mode, modified) = (entry.header().mode().unwrap_or(0o644), entry.header().mtime().ok());
            let kind = entry.header().entry_type();
            self.begin(&name)?;
            let kind = match (kind, target) {
                (tar::EntryType::Directory, _) => Kind::Directory,
                (tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse, _) => Kind::File {
                    is_program: mode & 0o111 != 0,
                    modified: modified.and_then(|at| i64::try_from(at).ok()),
                    content: &mut entry,
                },
                (tar::EntryType::Symlink, Some(target)) => Kind::Link(target),
                (tar::EntryType::Link, Some(target)) => Kind::Name(target),
                // What `git archive` begins with: it says something of the archive, and is no entry.
                (tar::EntryType::XGlobalHeader, _) => continue,
                (kind, _) => {
                    return Err(Failed::Archive(format!("is neither a file, a directory nor a link: {kind:?}")));
                }
            };
            self.entry(&name, kind)?;
        }
        self.shown.clear();
        // Whatever the checksum at its end covers.
        io::copy(&mut from, &mut io::sink()).map_err(Failed::of_archive)?;
        Ok(())
    }

    fn zip(&mut self, file: File, most: u64, why: &str) -> Result<(), Failed> {
        let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(Failed::of_archive)?;
        let mut left = most;
        for n in 0..archive.len() {
            let mut entry = archive.by_index(n).map_err(Failed::of_archive)?;
            let name = entry.name_raw().to_owned();
            self.begin(&name)?;
            let mode = entry.unix_mode().unwrap_or(0o644);
            let kind_bits = mode & SFlag::S_IFMT.bits();
            let mut bounded = Bounded::new(&mut entry, left, why.to_owned());
            let kind = if name.ends_with(b"/") {
                Kind::Directory
            } else if kind_bits == SFlag::S_IFLNK.bits() {
                let mut target = Vec::new();
                (&mut bounded).take(TARGET_MAX + 1).read_to_end(&mut target).map_err(Failed::of_archive)?;
                Kind::Link(target)
            } else if kind_bits == 0 || kind_bits == SFlag::S_IFREG.bits() {
                Kind::File { is_program: mode & 0o111 != 0, modified: None, content: &mut bounded }
            } else {
                return Err(Failed::Archive("is neither a file, a directory nor a link".into()));
            };
            self.entry(&name, kind)?;
            left = bounded.left();
        }
        Ok(())
    }

    /// Notes the entry for messages, and charges it.
    fn begin(&mut self, name: &[u8]) -> Result<(), Failed> {
        self.shown = text::shown(&String::from_utf8_lossy(name), SHOWN_MAX);
        self.charge()
    }

    fn charge(&mut self) -> Result<(), Failed> {
        let left = self.left.entries.checked_sub(1);
        self.left.entries =
            left.ok_or_else(|| Failed::Archive("there are more entries than may be unpacked".into()))?;
        Ok(())
    }

    fn entry(&mut self, name: &[u8], kind: Kind<'_>) -> Result<(), Failed> {
        let leads_out = || Failed::Archive(format!("the name leads out of work/, or has more than {DEPTH_MAX} levels"));
        let mut parts = components(name).ok_or_else(leads_out)?;
        let Some(last) = parts.pop() else { return Ok(()) }; // the directory itself
        let last = CString::new(last).map_err(Failed::of_archive)?;
        let levels = parts.len();
        let above = self.directory(&parts)?;
        if matches!(kind, Kind::Directory) {
            let (open, _) = subdirectory(above.as_fd(), &last)?;
            parts.push(last.as_bytes());
            self.at = Some((parts.join(&b'/'), open));
            return Ok(());
        }
        match unlinkat(&above, last.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            // A later entry takes the place of an earlier one, as with tar(1).
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EISDIR | Errno::EPERM) => {
                return Err(Failed::Archive("there is a directory of this name".into()));
            }
            Err(e) => return Err(e.into()),
        }
        match kind {
            Kind::Directory => Ok(()),
            Kind::File { is_program, modified, content } => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
                let file = File::from(open_beneath(above.as_fd(), last.as_bytes(), flags, 0o600)?);
                self.content(content, &file)?;
                // Neither set-user-ID nor anything else that the archive says beyond this.
                fchmod(&file, Mode::from_bits_truncate(if is_program { 0o755 } else { 0o644 }))?;
                if let Some(at) = modified {
                    let _ = futimens(&file, &TimeSpec::UTIME_OMIT, &TimeSpec::new(at, 0));
                }
                Ok(())
            }
            Kind::Link(target) => {
                if target.is_empty() || target.len() as u64 > TARGET_MAX || !stays_within(&target, levels) {
                    return Err(Failed::Archive("is a symbolic link that leads out of work/".into()));
                }
                Ok(symlinkat(std::ffi::OsStr::from_bytes(&target), &above, last.as_c_str())?)
            }
            Kind::Name(of) => self.name(&of, above.as_fd(), &last),
        }
    }

    /// Gives a file that was unpacked another name.
    fn name(&mut self, of: &[u8], above: BorrowedFd<'_>, last: &CString) -> Result<(), Failed> {
        let missing = || Failed::Archive("is a link to what is not a file of the archive".into());
        let mut parts = components(of).ok_or_else(missing)?;
        let name = CString::new(parts.pop().ok_or_else(missing)?).map_err(Failed::of_archive)?;
        let holder = match parts.as_slice() {
            [] => self.to.try_clone()?,
            parts => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
                open_beneath(self.to.as_fd(), parts.join(&b'/'), flags, 0).map_err(|_| missing())?
            }
        };
        let found = fstatat(&holder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if !is(&found, SFlag::S_IFREG) {
            return Err(missing());
        }
        Ok(linkat(&holder, name.as_c_str(), above, last.as_c_str(), AtFlags::empty())?)
    }

    /// Opens a directory beneath the top, and makes what is missing of it. Those are charged: one name may stand for many.
    fn directory(&mut self, parts: &[&[u8]]) -> Result<OwnedFd, Failed> {
        let path = parts.join(&b'/');
        if let Some((last, open)) = &self.at
            && *last == path
        {
            return Ok(open.try_clone()?);
        }
        let mut at = self.to.try_clone()?;
        for part in parts {
            let name = CString::new(*part).map_err(Failed::of_archive)?;
            let (open, made) = subdirectory(at.as_fd(), &name)?;
            at = open;
            if made {
                self.charge()?;
            }
        }
        self.at = Some((path, at.try_clone()?));
        Ok(at)
    }

    fn content(&mut self, from: &mut dyn Read, mut to: &File) -> Result<(), Failed> {
        let mut block = vec![0; BLOCK];
        loop {
            let n = match from.read(&mut block) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                n => n.map_err(Failed::of_archive)?,
            };
            if n == 0 {
                return Ok(());
            }
            let left = self.left.bytes.checked_sub(n as u64);
            self.left.bytes =
                left.ok_or_else(|| Failed::Archive("there are more bytes than may be unpacked".into()))?;
            to.write_all(block.get(..n).unwrap_or_default())?;
        }
    }
}

/// Opens a directory in another one, and makes it where it is missing. Whether it was.
fn subdirectory(at: BorrowedFd<'_>, name: &CString) -> Result<(OwnedFd, bool), Failed> {
    let open = || open_beneath(at, name.as_bytes(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0);
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            mkdirat(at, name.as_c_str(), Mode::from_bits_truncate(0o755))?;
            let made = open()?;
            // Whatever the umask is.
            fchmod(&made, Mode::from_bits_truncate(0o755))?;
            Ok((made, true))
        }
        Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOTDIR | Errno::ELOOP)) => {
            Err(Failed::Archive("a file or link is where a directory has to be".into()))
        }
        opened => Ok((opened?, false)),
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
