//! System calls of stage two and the job's process, made with the payload's UID and no privilege.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::libc;

use super::supervisor::{CStrings, environ};
use super::{KERNEL_SET_SIZE, PROC_MAGIC, checked, file_system_type, owned, set_signal_mask};
use crate::volume::open_at;

/// `execve(2)`. Returns only with an error.
pub fn exec(path: &CStr, argv: &CStrings, env: &CStrings) -> io::Error {
    // SAFETY: path is NUL-terminated, both arrays are NULL-terminated, and their strings live as long as they do.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// The variables of this process's environment, `NAME=value`, as they are.
pub fn environment() -> Vec<&'static [u8]> {
    let mut variables = Vec::new();
    let mut at = environ();
    // SAFETY: the array ends with NULL, and its strings with NUL; both live as long as the process.
    while let Some(variable) = unsafe { (!at.is_null() && !(*at).is_null()).then(|| CStr::from_ptr(*at)) } {
        variables.push(variable.to_bytes());
        // SAFETY: this element was not the last.
        at = unsafe { at.add(1) };
    }
    variables
}

/// Gives every signal its default disposition and unblocks all of them, as a program expects to be started.
pub fn reset_signals() -> io::Result<()> {
    // struct kernel_sigaction: handler, flags, restorer, mask.
    let default: [u64; 4] = [libc::SIG_DFL as u64, 0, 0, 0];
    for signal in 1..=64 {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: the array has the layout and the set size that the kernel expects, and lives through the call.
            checked(unsafe {
                libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0usize, KERNEL_SET_SIZE)
            })?;
        }
    }
    set_signal_mask(0)
}

/// Puts this process, and all that come of it, under a filter of system calls (seccomp(2)). Needs no_new_privs.
pub fn install_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // Without the flag older kernels slow every filtered process down, against attacks that this filter is no defence
    // against.
    for flags in [libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0] {
        let how = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the program and the instructions that it points to live through the call, which only reads them.
        match checked(unsafe { libc::syscall(libc::SYS_seccomp, how, flags, &raw const program) }) {
            Ok(_) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && flags != 0 => {} // before Linux 4.17
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// Whether the kernel refuses this process to look at keys, as it does under the filter: a call without an effect,
/// whose error is another one where nothing stands in its way.
pub fn keys_are_refused() -> bool {
    // SAFETY: there is no operation with this number, so nothing is read or written.
    let refused = checked(unsafe { libc::syscall(libc::SYS_keyctl, -1, 0, 0, 0, 0) });
    refused.is_err_and(|e| matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)))
}

/// Whether others with this process's IDs may look into it: PR_GET_DUMPABLE(2const) says 1. It says 2, for root alone,
/// where the system has that in place of 0 for what executes an unreadable file (`fs.suid_dumpable`, proc_sys_fs(5)).
pub fn is_traceable() -> io::Result<bool> {
    // SAFETY: the call takes numbers only.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
    Ok(checked(libc::c_long::from(dumpable))? == 1)
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
    let list = open_at(nix::fcntl::AT_FDCWD, "/proc/self/fd", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
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

/// TIOCGPTPEER of ioctl_tty(2): opens the other end of a terminal, whatever lies at `/dev/pts`.
const TIOCGPTPEER: i32 = 0x5441;

/// A new terminal of this size: its master, and its slave. None becomes the controlling terminal.
pub fn open_terminal([rows, columns]: [u16; 2]) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = open_at(nix::fcntl::AT_FDCWD, "/dev/ptmx", flags)?;
    let (fd, locked) = (master.as_raw_fd(), 0i32);
    // SAFETY: the kernel reads one int from a local that lives through the call.
    checked(libc::c_long::from(unsafe { libc::ioctl(fd, libc::TIOCSPTLCK as _, &raw const locked) }))?;
    set_terminal_size(master.as_fd(), [rows, columns])?;
    // SAFETY: the call takes numbers only.
    let slave = owned(libc::c_long::from(unsafe { libc::ioctl(fd, TIOCGPTPEER as _, flags.bits()) }))?;
    Ok((master, slave))
}

/// Makes the terminal at descriptor 0 the controlling one of this process's session.
pub fn take_terminal() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    checked(libc::c_long::from(unsafe { libc::ioctl(0, libc::TIOCSCTTY as _, 0) })).map(drop)
}

/// Tells a terminal its size, by either end: whoever runs in it gets SIGWINCH where that is another one.
pub fn set_terminal_size(terminal: BorrowedFd<'_>, [rows, columns]: [u16; 2]) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads a struct winsize from a local that lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) };
    checked(libc::c_long::from(result)).map(drop)
}

/// Sends bytes, and at most three descriptors with them (SCM_RIGHTS of unix(7)). Without SIGPIPE.
#[allow(clippy::unnecessary_cast, reason = "the lengths' type differs between C libraries")]
pub fn send_descriptors(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    // Room for a header and four numbers, aligned as a cmsghdr has to be.
    let mut control = [0u64; 4];
    let size = std::mem::size_of_val(descriptors);
    // SAFETY: takes a number only.
    let (length, space) = unsafe { (libc::CMSG_LEN(size as u32), libc::CMSG_SPACE(size as u32)) };
    if space as usize > std::mem::size_of_val(&control) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain numbers and pointers, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = space as _;
    }
    // SAFETY: where there is a control buffer, its first header is in it, and it has room for that and these numbers, as
    // was looked at.
    if let Some(header) = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_mut() } {
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        header.cmsg_len = length as _;
        for (n, fd) in descriptors.iter().enumerate() {
            // SAFETY: as above.
            unsafe { libc::CMSG_DATA(header).cast::<RawFd>().add(n).write_unaligned(fd.as_raw_fd()) };
        }
    }
    // SAFETY: the message points to buffers that live through the call, with their exact sizes.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    checked(n as libc::c_long).map(drop)
}
