//! One of a client's descriptors, used so that neither reading nor writing it can make the watcher wait.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::stat::{SFlag, fstat, major, minor};

use super::keep::Kept;
use crate::text::has_hung_up;

/// What a descriptor is, as far as waiting is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A file, or a device that always answers.
    Ready,
    /// A pipe or a terminal.
    Waits,
    /// A socket.
    Socket,
}

/// The memory devices null, zero, full, random and urandom, by their minor numbers (major 1).
const ALWAYS_READY: [u64; 5] = [3, 5, 7, 8, 9];

fn kind_of(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let stat = fstat(fd)?;
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => return Ok(Kind::Ready),
        SFlag::S_IFIFO => return Ok(Kind::Waits),
        SFlag::S_IFSOCK => return Ok(Kind::Socket),
        SFlag::S_IFCHR => match (major(stat.st_rdev), minor(stat.st_rdev)) {
            (1, n) if ALWAYS_READY.contains(&n) => return Ok(Kind::Ready),
            // Virtual and serial terminals, the console, the slaves of pseudo-terminals.
            (4 | 136..=143, _) | (5, 1) => return Ok(Kind::Waits),
            _ => {}
        },
        _ => {}
    }
    Err(io::Error::other("is neither a file, a pipe, a socket nor a terminal"))
}

fn flags_of(fd: BorrowedFd<'_>) -> io::Result<OFlag> {
    Ok(OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?))
}

/// Refuses a descriptor that is of no use as a standard stream.
pub fn check(fd: BorrowedFd<'_>, reads: bool) -> io::Result<()> {
    kind_of(fd)?;
    let flags = flags_of(fd)?;
    // With O_PATH the client may have no right to the file at all.
    if flags.contains(OFlag::O_PATH) {
        return Err(io::Error::other("is open as a path only"));
    }
    let other = if reads { OFlag::O_WRONLY } else { OFlag::O_RDONLY };
    if flags & OFlag::O_ACCMODE == other {
        return Err(io::Error::other(if reads { "is not open for reading" } else { "is not open for writing" }));
    }
    Ok(())
}

/// A client's descriptor that never blocks.
#[derive(Debug)]
pub enum Endpoint {
    /// Used as it is, with the client's own position; or under an open file description of our own that does not block.
    File(File),
    /// Each call says that it is not to wait.
    Socket(OwnedFd),
    /// Kept for a job that has no client.
    Kept(Kept),
    /// Nobody is at the other end.
    Gone,
}

impl Endpoint {
    /// Takes over a client's descriptor. O_NONBLOCK belongs to the open file, which the client shares and must not find
    /// changed: so a pipe or terminal is opened once more, with the rights that the client's descriptor has and no
    /// others.
    pub fn new(fd: OwnedFd, reads: bool) -> io::Result<Self> {
        check(fd.as_fd(), reads)?;
        match kind_of(fd.as_fd())? {
            Kind::Ready => Ok(Self::File(fd.into())),
            Kind::Socket => Ok(Self::Socket(fd)),
            Kind::Waits => {
                let mode = flags_of(fd.as_fd())? & OFlag::O_ACCMODE;
                let opened = OpenOptions::new()
                    .read(mode != OFlag::O_WRONLY)
                    .write(mode != OFlag::O_RDONLY)
                    .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
                    .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
                match opened {
                    Ok(file) => Ok(Self::File(file)),
                    Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(Self::Gone), // a named pipe without a reader
                    Err(e) => Err(e),
                }
            }
        }
    }

    /// Reads what is there; `Ok(0)` at the end.
    pub fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(bytes),
            Self::Socket(socket) => Ok(recv(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT)?),
            Self::Kept(_) | Self::Gone => Ok(0),
        }
    }

    /// Writes what there is room for.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Socket(socket) => {
                Ok(send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
            }
            Self::Kept(kept) => kept.write(bytes),
            Self::Gone => Ok(bytes.len()),
        }
    }

    /// What to poll, unless nobody is there.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File(file) => Some(file.as_fd()),
            Self::Socket(socket) => Some(socket.as_fd()),
            Self::Kept(_) | Self::Gone => None,
        }
    }

    /// Whether nobody reads any more what is written.
    pub fn has_hung_up(&self) -> bool {
        self.as_fd().map_or_else(|| matches!(self, Self::Gone), has_hung_up)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use nix::unistd::pipe2;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_clients_own_pipe_stays_as_it_was_and_ours_does_not_block() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let client = write.try_clone().unwrap();
        let mut to = Endpoint::new(write, false).unwrap();
        while to.write(&[0; 4096]).is_ok() {}
        assert_eq!(to.write(&[0; 4096]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(!flags_of(client.as_fd()).unwrap().contains(OFlag::O_NONBLOCK));
        assert!(!flags_of(read.as_fd()).unwrap().contains(OFlag::O_NONBLOCK));
        drop(read);
        let mut broken = Endpoint::new(client, false).unwrap();
        assert_eq!(broken.write(&[0; 1]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut socket = Endpoint::new(ours.into(), false).unwrap();
        while socket.write(&[0; 4096]).is_ok() {}
        assert_eq!(socket.write(&[0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(socket.write(&[0; 1]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_descriptor_gives_no_right_that_its_client_does_not_have() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        assert!(check(read.as_fd(), false).is_err() && check(write.as_fd(), true).is_err());
        let path = format!("/proc/self/fd/{}", write.as_raw_fd());
        let only_a_path = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path).unwrap();
        assert!(Endpoint::new(only_a_path.into(), true).is_err_and(|e| e.to_string().contains("path only")));
        let directory = File::open("/").unwrap();
        assert!(Endpoint::new(directory.into(), true).is_err());
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        assert!(check(event.as_fd(), true).is_err());
        assert!(check(File::open("/dev/null").unwrap().as_fd(), true).is_ok());
    }
}
