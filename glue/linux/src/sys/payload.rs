//! System calls of stage two and the job's process, made with the payload's UID and no privilege.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::libc;

use super::{CStrings, PROC_MAGIC, checked, file_system_type, openat, prctl};

/// `execve(2)`. Returns only with an error.
pub fn exec(path: &CStr, argv: &CStrings, env: &CStrings) -> io::Error {
    // SAFETY: path is NUL-terminated, both arrays are NULL-terminated, and their strings live as long as they do.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Whether others with the same IDs may trace this process, read its memory and its /proc entries (PR_GET_DUMPABLE).
pub fn is_dumpable() -> io::Result<bool> {
    Ok(prctl(libc::PR_GET_DUMPABLE, 0, 0)? == 1)
}

/// Closes every descriptor from `first` to `last`, or only marks them close-on-exec. Allocates nothing.
///
/// Only for processes that are about to exec or exit: it closes what others may think they own.
pub fn close_range(first: RawFd, last: RawFd, only_mark: bool) -> io::Result<()> {
    let flags = if only_mark { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: the call takes numbers only; the caller runs nothing afterwards that relies on one of these descriptors.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return Ok(());
    }
    // Before Linux 5.9 (5.11 for marking), or under a filter that does not know the call.
    close_listed(first, last, only_mark)
}

/// The fallback of [`close_range`]: what `/proc/self/fd` lists. A limit on descriptors says nothing of those above it
/// that were open before it was lowered.
pub(super) fn close_listed(first: RawFd, last: RawFd, only_mark: bool) -> io::Result<()> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let list = openat(nix::fcntl::AT_FDCWD, c"/proc/self/fd", flags, 0)?;
    if file_system_type(list.as_fd())? != PROC_MAGIC {
        return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
    }
    loop {
        // SAFETY: the call takes numbers only.
        checked(unsafe { libc::syscall(libc::SYS_lseek, list.as_raw_fd(), 0, libc::SEEK_SET) })?;
        let mut found = false;
        let mut entries = [0u64; 128];
        loop {
            let (to, size) = (entries.as_mut_ptr(), std::mem::size_of_val(&entries));
            // SAFETY: pointer and size are of one local array, which is aligned for struct linux_dirent64.
            let n = checked(unsafe { libc::syscall(libc::SYS_getdents64, list.as_raw_fd(), to, size) })? as usize;
            // SAFETY: any bytes are u8; the slice is within the array, which the kernel has filled that far.
            let mut rest = unsafe { std::slice::from_raw_parts(entries.as_ptr().cast::<u8>(), n.min(size)) };
            if rest.is_empty() {
                break;
            }
            // struct linux_dirent64: its own length at 16, the name from 19.
            while let Some([low, high]) = rest.get(16..18) {
                let length = usize::from(u16::from_le_bytes([*low, *high])).max(19).min(rest.len());
                let (entry, more) = rest.split_at(length);
                rest = more;
                let name = entry.get(19..).and_then(|name| name.split(|b| *b == 0).next()).unwrap_or_default();
                let number = std::str::from_utf8(name).ok().and_then(|name| name.parse::<RawFd>().ok());
                let Some(fd) = number.filter(|n| (first..=last).contains(n) && *n != list.as_raw_fd()) else {
                    continue;
                };
                found = true;
                // SAFETY: as for `close_range`; the list itself, which is in use, is left out.
                unsafe {
                    if only_mark {
                        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                    } else {
                        libc::close(fd);
                    }
                }
            }
        }
        // What is closed may move what has not been listed yet.
        if only_mark || !found {
            return Ok(());
        }
    }
}

/// `setrlimit(2)` by the kernel's number, with `u64::MAX` for unlimited.
pub fn set_rlimit(number: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = [soft, hard];
    // SAFETY: struct rlimit64 is two 64-bit numbers; the array lives through the call, and no old limit is asked for.
    checked(unsafe { libc::syscall(libc::SYS_prlimit64, 0, number, limit.as_ptr(), 0usize) })?;
    Ok(())
}

/// `setsid(2)`.
pub fn new_session() -> io::Result<()> {
    // SAFETY: the call takes nothing.
    checked(libc::c_long::from(unsafe { libc::setsid() }))?;
    Ok(())
}
