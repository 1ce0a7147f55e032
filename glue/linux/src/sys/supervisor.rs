//! System calls of a job's supervisor, which has no privilege but to signal the payload; some are of use to the payload
//! and to the watcher too.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::libc;

use super::{Capabilities, capabilities, checked, owned, uids};

/// Strings and a NULL-terminated array of pointers to them, built before a fork so that nothing is allocated after it.
pub struct CStrings {
    pub(super) pointers: Vec<*const c_char>,
    strings: Vec<CString>,
}

impl CStrings {
    /// Adds one string, put together from its parts. Refuses one that has a NUL byte.
    pub fn push(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let string = CString::new(parts.concat())?;
        // A CString keeps its bytes where they are when it is moved.
        self.pointers.insert(self.strings.len(), string.as_ptr());
        self.strings.push(string);
        Ok(())
    }

    /// The strings, in order.
    pub fn as_slice(&self) -> &[CString] {
        &self.strings
    }
}

impl Default for CStrings {
    fn default() -> Self {
        Self { pointers: vec![std::ptr::null()], strings: Vec::new() }
    }
}

/// The variables of this process's environment: pointers to C strings, and NULL at the end.
pub(super) fn environ() -> *const *const c_char {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: the C library set it at the start of the program, and nothing in this program changes it.
    unsafe { environ }
}

/// `execveat(2)` of an open file, with this process's environment: the program cannot have been exchanged. Returns only
/// with an error.
pub fn exec_fd(file: BorrowedFd<'_>, argv: &CStrings) -> io::Error {
    // SAFETY: both arrays are NULL-terminated and their strings live as long as they do.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.pointers.as_ptr(),
            environ(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Whether this process has any child, running or not yet reaped.
pub fn has_children() -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: neither siginfo nor resources are asked for, the rest are numbers.
    let found = checked(unsafe { libc::syscall(libc::SYS_waitid, libc::P_ALL, 0, 0usize, flags, 0usize) });
    !found.is_err_and(|e| e.raw_os_error() == Some(libc::ECHILD))
}

/// `kill(-1, SIGSTOP)`: stops every process that this one may signal, but itself.
///
/// Refused unless real, effective and saved UID are `kill_uid`, `payload_uid`, `kill_uid`, none of them 0 or 2^32-1,
/// and no capability is left: as root this would stop the machine.
pub fn stop_all_of(payload_uid: u32, kill_uid: u32) -> io::Result<()> {
    let refused = || io::Error::from_raw_os_error(libc::EPERM);
    if [payload_uid, kill_uid].iter().any(|id| *id == 0 || *id == u32::MAX) || payload_uid == kill_uid {
        return Err(refused());
    }
    if uids()? != [kill_uid, payload_uid, kill_uid] || capabilities()? != Capabilities::default() {
        return Err(refused());
    }
    // SAFETY: the call takes numbers only; whom it reaches was just checked.
    checked(libc::c_long::from(unsafe { libc::kill(-1, libc::SIGSTOP) }))?;
    Ok(())
}

/// `pidfd_open(2)`: a handle on a process that does not pass to another one with the same number.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// `pidfd_send_signal(2)`.
pub fn signal_pidfd(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is given, the rest are numbers.
    checked(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, 0usize, 0) })?;
    Ok(())
}

/// `dup2(2)`: `to` becomes a copy of `from`, without close-on-exec.
pub fn duplicate_to(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: the call takes numbers only; `to` is one of the fixed low numbers that nothing owns as an OwnedFd.
    checked(libc::c_long::from(unsafe { libc::dup2(from.as_raw_fd(), to) }))?;
    Ok(())
}
