//! The kernel's `/proc`, and reading a file of it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;

use crate::error::refused;
use crate::sys;
use crate::volume::{open_at, read_whole};

/// An open `/proc` that is known to be the kernel's.
pub struct Proc(OwnedFd);

impl Proc {
    /// Opens `/proc` and checks that it is procfs, whatever an image may have put there.
    pub fn open() -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let proc = open_at(nix::fcntl::AT_FDCWD, "/proc", flags)?;
        if sys::file_system_type(proc.as_fd())? != sys::PROC_MAGIC {
            return Err(refused(format_args!("/proc is not the kernel's: the engine has to mount procfs there")));
        }
        Ok(Self(proc))
    }

    /// Its descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The whole of one file beneath `/proc`. Its length is the kernel's choice: that of a mountinfo has no bound.
    pub fn read(&self, path: &str) -> io::Result<String> {
        let file = File::from(open_at(self.as_fd(), path, OFlag::O_RDONLY)?);
        Ok(String::from_utf8_lossy(&read_whole(&file)?).into_owned())
    }

    /// The cgroups of a process as text: the same for all processes of a container, another for every other container.
    pub fn cgroup(&self, pid: i32) -> io::Result<String> {
        self.read(&format!("{pid}/cgroup"))
    }
}
