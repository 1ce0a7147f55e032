//! System calls that only the watcher makes; glue is built without them.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;

pub use super::payload::set_terminal_size;

use super::checked;

/// A part of what came through a stream socket.
pub struct Received {
    /// How many bytes; 0 at the end.
    pub bytes: usize,
    /// The descriptors that came along, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Whether more descriptors were sent than there was room for; the kernel has closed those.
    pub truncated: bool,
}

/// Room for a header and four descriptors, aligned as a cmsghdr has to be.
const CONTROL: usize = 4;

/// `recvmsg(2)` with the descriptors of SCM_RIGHTS, see unix(7). Whatever the kernel has installed has
/// an owner here, also where the message was cut off: nix hands out none of it then.
#[allow(clippy::unnecessary_cast, reason = "the lengths' type differs between C libraries")]
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Received> {
    let mut control = [0u64; CONTROL];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain numbers and pointers, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = std::mem::size_of_val(&control) as _;
    // SAFETY: the message points to buffers that live through the call, with their exact sizes.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let bytes = checked(n as libc::c_long)? as usize;
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has filled the control buffer and set its length; these macros stay within that length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: a header that is not null is a whole one within the buffer.
    while let Some(found) = unsafe { header.as_ref() } {
        if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: takes a pointer within the buffer and a number.
            let (data, overhead) = unsafe { (libc::CMSG_DATA(header), libc::CMSG_LEN(0) as usize) };
            for n in 0..(found.cmsg_len as usize).saturating_sub(overhead) / std::mem::size_of::<RawFd>() {
                // SAFETY: the header says that there are so many numbers, for which the buffer may not be aligned; the
                // kernel has made
                // each descriptor for this call, so nothing else owns it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(data.cast::<RawFd>().add(n).read_unaligned()) });
            }
        }
        // SAFETY: as for the first one.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Received { bytes, descriptors, truncated: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// The three kinds of System V objects (sysvipc(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemV {
    /// Shared memory.
    Memory,
    /// Semaphores.
    Semaphores,
    /// Message queues.
    Messages,
}

/// Removes a System V object by its ID (IPC_RMID); its owner, its maker, or CAP_SYS_ADMIN may.
pub fn remove_system_v(kind: SystemV, id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no argument beyond the ID.
    let result = unsafe {
        match kind {
            SystemV::Memory => libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            SystemV::Semaphores => libc::semctl(id, 0, libc::IPC_RMID),
            SystemV::Messages => libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()),
        }
    };
    checked(libc::c_long::from(result)).map(drop)
}

/// `getdents64(2)`: the next entries of an open directory, as many as fit; 0 at its end.
pub fn read_directory(dir: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are of one slice, which nothing else uses meanwhile.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    checked(n).map(|n| n as usize)
}

/// `flistxattr(2)`: the names of a file's extended attributes, each with a NUL behind it.
pub fn attribute_names(file: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are of one slice, which nothing else uses meanwhile.
    let n = unsafe { libc::flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    checked(n as libc::c_long).map(|n| n as usize)
}

/// `fremovexattr(2)`.
pub fn remove_attribute(file: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: the name is NUL-terminated and lives through the call.
    checked(libc::c_long::from(unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) })).map(drop)
}

/// The inode's flags (FS_IOC_GETFLAGS of ioctl_iflags(2)).
pub fn inode_flags(file: BorrowedFd<'_>) -> io::Result<u32> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes at most a long, into a local that lives through the call.
    checked(libc::c_long::from(unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS as _, &raw mut flags) }))?;
    Ok(flags as u32)
}

/// Sets the inode's flags (FS_IOC_SETFLAGS of ioctl_iflags(2)).
pub fn set_inode_flags(file: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let flags = libc::c_long::from(flags);
    // SAFETY: the kernel reads at most a long, from a local that lives through the call.
    checked(libc::c_long::from(unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS as _, &raw const flags) }))
        .map(drop)
}

/// Rows and columns of a terminal.
pub fn terminal_size(terminal: BorrowedFd<'_>) -> io::Result<[u16; 2]> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes a struct winsize into a local that lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size) };
    checked(libc::c_long::from(result)).map(|_| [size.ws_row, size.ws_col])
}
