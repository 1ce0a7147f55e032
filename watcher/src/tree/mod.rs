//! Trees of files that others made: listed, counted, copied and removed by descriptors and bytes, following nothing,
//! within bounds of memory, descriptors and time.

pub mod copy;
pub mod decompress;
pub mod listing;
pub mod marks;
pub mod pack;
pub mod remove;
pub mod unpack;
pub mod walk;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

pub use latebind_linux::volume::is;

pub use self::remove::{remove_content, remove_others, remove_tree};

/// Opens a directory that is not a link itself.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Opens a regular file that is not a link itself, for reading.
pub fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, Mode::empty())?;
    if is(&fstat(&fd)?, SFlag::S_IFREG) { Ok(File::from(fd)) } else { Err(io::Error::other("is not a regular file")) }
}

/// Refuses what `reader` cannot read for itself: a file of somebody else that not everybody may read. Root reads for a
/// user what the user has put somewhere, and that may be another's file, which was only linked or moved there. `None`:
/// root reads for itself.
pub fn check_reader(stat: &FileStat, reader: Option<u32>) -> io::Result<()> {
    let all = if is(stat, SFlag::S_IFDIR) { 0o005 } else { 0o004 };
    match reader {
        Some(uid) if uid != 0 && uid != stat.st_uid && stat.st_mode & all != all => {
            let why = format!("belongs to UID {}, and UID {uid} may not read it", stat.st_uid);
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
        _ => Ok(()),
    }
}

/// Until when work on files that others made may go on: for some time, and while it is wanted.
#[derive(Clone, Copy)]
pub struct Deadline<'a> {
    within: Duration,
    end: Option<Instant>,
    stop: &'a (dyn Fn() -> Option<String> + Sync),
}

/// Why work has to end before it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// Its time has passed.
    Time(Duration),
    /// It is not wanted any more, for this reason.
    Stopped(String),
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(within) => write!(f, "not done within {} s", within.as_secs_f64()),
            Self::Stopped(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Over {}

impl Deadline<'static> {
    /// From now on.
    pub fn within(within: Duration) -> Self {
        Self { within, end: Instant::now().checked_add(within), stop: &|| None }
    }
}

impl<'a> Deadline<'a> {
    /// The same, or as soon as `stop` gives a reason.
    pub fn unless<'b>(self, stop: &'b (dyn Fn() -> Option<String> + Sync)) -> Deadline<'b> {
        Deadline { stop, within: self.within, end: self.end }
    }

    /// How much time is left, whether or not it is wanted.
    pub fn left(&self) -> Duration {
        self.end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()))
    }

    /// Why the work has to end now, if it has to.
    pub fn over(&self) -> Option<Over> {
        if self.end.is_some_and(|end| Instant::now() >= end) {
            return Some(Over::Time(self.within));
        }
        (self.stop)().map(Over::Stopped)
    }

    /// The same as an error.
    pub fn check(&self) -> io::Result<()> {
        self.over().map_or(Ok(()), |over| Err(io::Error::other(over)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_not_opened() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        symlink("/etc", top.join("dir")).unwrap();
        symlink("/etc/passwd", top.join("file")).unwrap();
        assert!(open_dir(&top.join("dir")).is_err() && open_file(&top.join("file")).is_err());
    }

    #[test]
    fn work_ends_with_its_time_or_when_it_is_not_wanted() {
        let long = Deadline::within(Duration::MAX);
        assert_eq!(long.over(), None);
        assert_eq!(long.unless(&|| Some("enough".into())).over(), Some(Over::Stopped("enough".into())));
        let none = Deadline::within(Duration::ZERO);
        assert!(none.check().is_err_and(|e| e.to_string().contains("not done within 0 s")));
    }
}
