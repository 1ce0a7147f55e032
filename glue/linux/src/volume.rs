//! The slot's directories, and files beneath them: opened by descriptor, without following anything, then checked.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::{error, refused};
use latebind_contract::layout;

/// Whether a file is of this type.
pub fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// Whether a file is root's, without any of the mode bits `forbidden`.
pub fn is_roots(stat: &FileStat, forbidden: u32) -> bool {
    stat.st_uid == 0 && stat.st_mode & forbidden == 0
}

/// `openat(2)`, close-on-exec.
pub fn open_at(dir: BorrowedFd<'_>, path: impl AsRef<[u8]>, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(openat(dir, path.as_ref(), flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// An open directory of a volume.
pub struct Dir {
    fd: OwnedFd,
    path: String,
}

impl Dir {
    /// Opens an absolute directory component by component, following no link. Every parent has to be root's and
    /// writable by root alone, so that nobody can exchange one for another.
    pub fn open(path: &str) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let mut dir = Self { fd: open_at(AT_FDCWD, "/", flags)?, path: String::new() };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if !dir.path.is_empty() {
                dir.demand_root_only(0o022)?;
            }
            let path = format!("{}/{name}", dir.path);
            let fd = open_at(dir.as_fd(), name, flags)
                .map_err(|e| error(format_args!("{path} cannot be opened as a directory, no link followed"), &e))?;
            dir = Self { fd, path };
        }
        Ok(dir)
    }

    /// Its descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its path, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Owner, mode and so on of the directory itself.
    pub fn stat(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.fd)?)
    }

    /// Refuses a directory that is not root's, or that has any of the mode bits `forbidden`.
    pub fn demand_root_only(&self, forbidden: u32) -> io::Result<()> {
        let stat = self.stat()?;
        if is_roots(&stat, forbidden) {
            return Ok(());
        }
        Err(refused(format_args!(
            "{} has owner {} and mode {:o}: it must be root's and closed to others ({:o}), else the payload could \
             exchange what lies in it. Run `glue install` in an init container, and do not use an image that ships \
             this directory",
            self.path,
            stat.st_uid,
            stat.st_mode & 0o7777,
            0o777 & !forbidden,
        )))
    }

    /// Owner, mode and so on of an entry, no link followed.
    pub fn stat_of(&self, name: &str) -> io::Result<FileStat> {
        Ok(fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Opens a path beneath this directory; no link, no other mount, nothing above.
    pub fn open_beneath(&self, path: impl AsRef<[u8]>, flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
        open_beneath(self.as_fd(), path, flags, mode)
    }

    /// Opens a file that root wrote, for reading, and checks what it is.
    pub fn open_file(&self, name: &str, most: u64) -> io::Result<File> {
        let fd = self.open_beneath(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
        let stat = fstat(&fd)?;
        let refuse = |why: core::fmt::Arguments<'_>| Err(refused(format_args!("{}/{name} {why}", self.path)));
        if !is(&stat, SFlag::S_IFREG) {
            return refuse(format_args!("is not a regular file: put a file there"));
        }
        if !is_roots(&stat, 0o022) || stat.st_nlink != 1 {
            let (owner, mode, names) = (stat.st_uid, stat.st_mode & 0o7777, stat.st_nlink);
            return refuse(format_args!("is not root's alone (owner {owner}, mode {mode:o}, {names} names)"));
        }
        if u64::try_from(stat.st_size).unwrap_or(u64::MAX) > most {
            return refuse(format_args!("has {} bytes, more than {most}", stat.st_size));
        }
        Ok(File::from(fd))
    }

    /// The content of a file that root wrote, read into one buffer of its final size so that no copy is left behind.
    pub fn read_file(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let mut file = self.open_file(name, most)?;
        let size = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        let mut bytes = vec![0; size];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Puts a file in one step: written under a temporary name, then renamed.
    pub fn replace(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let temporary = format!("{name}{}", layout::TEMPORARY_SUFFIX);
        self.remove(&temporary)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let written = self.open_beneath(&temporary, flags, mode).and_then(|fd| File::from(fd).write_all(bytes));
        let put = written.and_then(|()| self.rename(&temporary, name));
        put.map_err(|e| {
            let _ = self.remove(&temporary);
            error(format_args!("{}/{name} cannot be written", self.path), &e)
        })
    }

    /// Gives an entry another name; what had that name is gone.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Removes an entry, if it is there; a directory only if it is empty.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let mut result = unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir);
        if result == Err(Errno::EISDIR) {
            result = unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir);
        }
        match result {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(error(format_args!("{}/{name} cannot be removed", self.path), &e.into())),
        }
    }

    /// Names of the entries, those that are no UTF-8 left out.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = nix::dir::Dir::openat(&self.fd, ".", flags, Mode::empty())?;
        let names = dir.iter().filter_map(|entry| Some(entry.ok()?.file_name().to_str().ok()?.to_owned()));
        Ok(names.filter(|name| name != "." && name != "..").collect())
    }

    /// Opens a FIFO for reading and writing, so that it never ends; makes it where there is none that is root's alone.
    pub fn open_fifo(&self, name: &str) -> io::Result<OwnedFd> {
        if !self.stat_of(name).is_ok_and(|stat| is(&stat, SFlag::S_IFIFO) && is_roots(&stat, 0o022)) {
            self.remove(name)?;
            nix::unistd::mkfifoat(&self.fd, name, Mode::from_bits_truncate(0o600))
                .map_err(|e| error(format_args!("the FIFO {}/{name} cannot be made", self.path), &e.into()))?;
        }
        self.open_beneath(name, OFlag::O_RDWR | OFlag::O_NONBLOCK, 0)
    }
}

/// What can be read from here on.
pub fn read_whole(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut part = [0; 1024];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(bytes),
            n => bytes.extend_from_slice(part.get(..n).unwrap_or_default()),
        }
    }
}

/// `openat2(2)` beneath `dir` without links and other mounts; where openat2 is unavailable (an old kernel, a
/// seccomp filter), component by component with the same checks.
pub fn open_beneath(dir: BorrowedFd<'_>, path: impl AsRef<[u8]>, flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
    let path = path.as_ref();
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    // openat2 refuses a mode for what is not made.
    let mode = if flags.contains(OFlag::O_CREAT) { mode } else { 0 };
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(flags).mode(Mode::from_bits_retain(mode)).resolve(resolve);
    match openat2(dir, path, how) {
        // EPERM is what some engines' seccomp filters answer for a call they do not know.
        Err(Errno::ENOSYS | Errno::EPERM) => open_by_components(dir, path, flags, mode),
        result => Ok(result?),
    }
}

/// The fallback of [`open_beneath`]. A mount of the same device is the one thing it does not notice.
pub fn open_by_components(dir: BorrowedFd<'_>, path: impl AsRef<[u8]>, flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
    let path = path.as_ref();
    if !layout::is_beneath(path) {
        return Err(io::Error::from_raw_os_error(libc::EXDEV));
    }
    let mut at = open_at(dir, ".", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let device = fstat(&at)?.st_dev;
    let mut names = path.split(|byte| *byte == b'/');
    let last = names.next_back().unwrap_or_default();
    for name in names {
        at = open_at(at.as_fd(), name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?;
    }
    let fd = openat(&at, last, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::from_bits_retain(mode))?;
    if fstat(&fd)?.st_dev != device {
        return Err(io::Error::from_raw_os_error(libc::EXDEV));
    }
    Ok(fd)
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
