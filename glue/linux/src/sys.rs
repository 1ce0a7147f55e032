//! All unsafe code of glue as root: thin wrappers around system calls, each with the reason why it is sound.
//! `supervisor` has those that a job's supervisor makes, `payload` those of stage two, and `watcher` those that only
//! the watcher makes.
//!
//! A wrapper turns -1 into an error and adds nothing else. What `nix` offers safely is used from there instead.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

mod init;
mod payload;
mod supervisor;
#[cfg(feature = "watcher")]
mod watcher;

pub use init::{restore_sigpipe, signal_group};
pub use payload::{
    close_range, environment, exec, install_filter, is_traceable, keys_are_refused, new_session, open_terminal,
    reset_signals, send_descriptors, set_rlimit, take_terminal,
};
pub use supervisor::{CStrings, duplicate_to, exec_fd, has_children, pidfd_open, signal_pidfd, stop_all_of};
#[cfg(feature = "watcher")]
pub use watcher::*;

/// `PROC_SUPER_MAGIC` of statfs(2).
pub const PROC_MAGIC: i64 = 0x9fa0;

/// The result of a system call that answers -1 for an error.
fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes over a descriptor that the kernel has just made.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = checked(result)?;
    // SAFETY: the kernel returned this descriptor to us just now, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A borrowed descriptor by its number, for the few that are inherited by number (0 to 2, and stage two's).
pub fn inherited(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the callers name descriptors that the process was started with and never closes while borrowed; a closed
    // one would only make the next call fail with EBADF.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Which side of a fork this is.
pub enum Fork {
    /// The new process.
    Child,
    /// The old process, with the new one's ID.
    Parent(i32),
}

/// `fork(2)`. Glue has one thread, so the child may do whatever the parent may.
///
/// The C library's own, not a bare `clone(2)`: musl keeps the thread's ID, and after a bare clone `abort()` and
/// `raise()` in the child would send their signal to the parent.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: the callers have one thread: no lock can be held by another one, which the child would not have.
    match checked(libc::c_long::from(unsafe { libc::fork() }))? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// What wait4(2) said of one process.
pub struct Reaped {
    /// Its process ID.
    pub pid: i32,
    /// How it ended.
    pub status: ExitStatus,
    /// What it and the children that it waited for used.
    pub usage: libc::rusage,
}

/// `wait4(2)` without blocking. `Ok(None)`: there are children, and none has ended. ECHILD: there are no children.
pub fn reap(pid: i32) -> io::Result<Option<Reaped>> {
    wait(pid, 0)
}

/// As [`reap`], and says too when one was stopped.
pub fn reap_or_stopped(pid: i32) -> io::Result<Option<Reaped>> {
    wait(pid, libc::WUNTRACED)
}

fn wait(pid: i32, options: i32) -> io::Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals that live through the call.
    let found = unsafe { libc::wait4(pid, &raw mut status, options | libc::WNOHANG | libc::__WALL, &raw mut usage) };
    let pid = checked(libc::c_long::from(found))? as i32;
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(Reaped { pid, status: ExitStatus::from_raw(status), usage }))
}

/// `_exit(2)`: ends the process without running anything else of it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no requirement and does not return.
    unsafe { libc::_exit(code) }
}

/// The kernel's own signal set: bit n-1 is signal n. The C library's would leave out the three that it reserves.
const EVERY_SIGNAL: u64 = u64::MAX;
const KERNEL_SET_SIZE: usize = 8;

fn set_signal_mask(mask: u64) -> io::Result<()> {
    let how = libc::SIG_SETMASK;
    // SAFETY: the set lives through the call and has the size that is given; no old mask is asked for.
    checked(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const mask, 0usize, KERNEL_SET_SIZE) })?;
    Ok(())
}

/// Blocks every signal that can be blocked, and returns a signalfd (`signalfd4(2)`) to read them from.
pub fn signal_fd() -> io::Result<OwnedFd> {
    let mask = EVERY_SIGNAL;
    set_signal_mask(mask)?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set lives through the call and has the size that is given.
    owned(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, KERNEL_SET_SIZE, flags) })
}

/// One signal as it came through a signalfd.
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// Who sent it, 0 for the kernel or a process of an outer PID namespace.
    pub sender: u32,
    /// The si_code of sigaction(2): CLD_* where a child changed, SI_USER for kill(2).
    pub code: i32,
}

/// The next pending signal of a signalfd, if there is one.
pub fn next_signal(fd: BorrowedFd<'_>) -> io::Result<Option<Signal>> {
    // SAFETY: signalfd_siginfo is plain numbers, for which all zeroes is a value.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is a local of exactly the size that is given.
    let read = unsafe { libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size) };
    match checked(read as libc::c_long) {
        Ok(n) if n as usize == size => {
            Ok(Some(Signal { number: info.ssi_signo as i32, sender: info.ssi_pid, code: info.ssi_code }))
        }
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

fn prctl(option: i32, a: libc::c_ulong, b: libc::c_ulong) -> io::Result<libc::c_long> {
    // SAFETY: the options used here take numbers only.
    checked(libc::c_long::from(unsafe { libc::prctl(option, a, b, 0 as libc::c_ulong, 0 as libc::c_ulong) }))
}

/// Empties the ambient and the bounding set, so that no exec of this process and of all that come of it gives a
/// capability: neither can grow again. Needs CAP_SETPCAP.
pub fn end_exec_capabilities() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0)?;
    // A number that the kernel does not know ends them.
    for cap in (0..64).take_while(|cap| prctl(libc::PR_CAPBSET_READ, *cap, 0).is_ok()) {
        prctl(libc::PR_CAPBSET_DROP, cap, 0)?;
        if prctl(libc::PR_CAPBSET_READ, cap, 0)? != 0 {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    Ok(())
}

/// Permitted, effective and inheritable capabilities of this process as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What it may use.
    pub effective: u64,
    /// What it may take up.
    pub permitted: u64,
    /// What it may hand on through execve.
    pub inheritable: u64,
}

/// Header of capget(2) and capset(2): _LINUX_CAPABILITY_VERSION_3, and 0 for this process. Its data are the lower
/// halves of effective, permitted and inheritable, then the upper ones.
const CAP_HEADER: [u32; 2] = [0x2008_0522, 0];

/// `capget(2)` of this process.
pub fn capabilities() -> io::Result<Capabilities> {
    let (mut header, mut data) = (CAP_HEADER, [0u32; 6]);
    // SAFETY: header and data have the layout of version 3 and live through the call.
    checked(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) })?;
    let both = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let [e0, p0, i0, e1, p1, i1] = data;
    Ok(Capabilities { effective: both(e0, e1), permitted: both(p0, p1), inheritable: both(i0, i1) })
}

/// `capset(2)` of this process.
pub fn set_capabilities(to: Capabilities) -> io::Result<()> {
    let masks = [to.effective, to.permitted, to.inheritable];
    let (mut header, data) = (CAP_HEADER, [masks.map(|mask| mask as u32), masks.map(|mask| (mask >> 32) as u32)]);
    // SAFETY: header and data have the layout of version 3 and live through the call.
    checked(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) })?;
    Ok(())
}

// The C library's own functions for these three change the IDs of all threads, with signals and locks. Here there is
// one.

/// `setgroups(2)`.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length are of one slice; gid_t is u32 on Linux.
    checked(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// Whether the supplementary groups are exactly `groups`, in any order; allocates nothing.
pub fn groups_are(groups: &[u32]) -> io::Result<bool> {
    let mut has = [0u32; 128];
    // SAFETY: pointer and length are of one local array.
    let n = checked(libc::c_long::from(unsafe { libc::getgroups(has.len() as i32, has.as_mut_ptr()) }))?;
    let has = has.get(..n as usize).unwrap_or_default();
    Ok(has.iter().all(|g| groups.contains(g)) && groups.iter().all(|g| has.contains(g)))
}

/// `setresgid(2)` with the same number three times.
pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    checked(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    Ok(())
}

/// `setresuid(2)`.
pub fn set_uids(real: u32, effective: u32, saved: u32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, real, effective, saved) })?;
    Ok(())
}

/// Real, effective and saved UID.
pub fn uids() -> io::Result<[u32; 3]> {
    let ids = nix::unistd::getresuid()?;
    Ok([ids.real, ids.effective, ids.saved].map(nix::unistd::Uid::as_raw))
}

/// Real, effective and saved GID.
pub fn gids() -> io::Result<[u32; 3]> {
    let ids = nix::unistd::getresgid()?;
    Ok([ids.real, ids.effective, ids.saved].map(nix::unistd::Gid::as_raw))
}

/// `kill(2)` of one process. Never of a group or of all: 0 and negative numbers are refused.
pub fn signal_process(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the call takes numbers only.
    checked(libc::c_long::from(unsafe { libc::kill(pid, signal) }))?;
    Ok(())
}

/// A copy of `fd` with a number of at least `least`, close-on-exec.
pub fn duplicate_above(fd: BorrowedFd<'_>, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    owned(libc::c_long::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) }))
}

/// Clears O_NONBLOCK.
pub fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    Ok(fcntl(fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map(drop)?)
}

/// Fills at most 256 bytes, which the kernel gives at once and whole, from its random source (getrandom(2)), not from a
/// file that an image could have put there.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: pointer and length are of one slice.
    let n = checked(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } as libc::c_long)?;
    if n as usize == bytes.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The type of the file system that `fd` is on (statfs(2), `f_type`).
pub fn file_system_type(fd: BorrowedFd<'_>) -> io::Result<i64> {
    #[allow(clippy::unnecessary_cast, reason = "f_type is another integer type with other C libraries")]
    Ok(nix::sys::statfs::fstatfs(fd)?.filesystem_type().0 as i64)
}

/// `renameat2(2)` within one directory: `flags` is RENAME_EXCHANGE (the two change places) or RENAME_NOREPLACE.
pub fn rename(dir: BorrowedFd<'_>, from: &CStr, to: &CStr, flags: u32) -> nix::Result<()> {
    let fd = dir.as_raw_fd();
    // SAFETY: both names are NUL-terminated and live through the call.
    let result = unsafe { libc::syscall(libc::SYS_renameat2, fd, from.as_ptr(), fd, to.as_ptr(), flags) };
    nix::errno::Errno::result(result).map(drop)
}

/// This program's own headers, which the kernel maps with it, and what is added to their addresses.
fn program_headers() -> Option<(u64, &'static [libc::Elf64_Phdr])> {
    // SAFETY: getauxval takes a number only; the kernel gives each program its own program headers.
    let (headers, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    if headers == 0 {
        return None;
    }
    // SAFETY: AT_PHDR and AT_PHNUM describe this program's own headers, which stay mapped and unchanged while it runs.
    let table = unsafe { std::slice::from_raw_parts(headers as *const libc::Elf64_Phdr, count as usize) };
    // They are in the first page of the file. (PT_PHDR would say where, but not every linker writes it.)
    let first = table.iter().find(|header| header.p_type == libc::PT_LOAD && header.p_offset == 0)?;
    Some(((headers / PAGE * PAGE).wrapping_sub(first.p_vaddr), table))
}

const PAGE: u64 = 4096;

/// Makes the relocated constants of this program read-only, as a dynamic loader would (PT_GNU_RELRO of elf(5)): the
/// start code of a static program in musl relocates, but leaves that out. What cannot be done is left as it is.
pub fn protect_relocations() {
    let Some((base, table)) = program_headers() else { return };
    for relro in table.iter().filter(|header| header.p_type == libc::PT_GNU_RELRO) {
        let start = base.wrapping_add(relro.p_vaddr);
        let (first, end) = (start / PAGE * PAGE, start.wrapping_add(relro.p_memsz) / PAGE * PAGE);
        if first < end {
            // SAFETY: the linker laid these pages out for this: nothing writes there once relocation is over, which is
            // before main.
            unsafe { libc::mprotect(first as *mut libc::c_void, (end - first) as usize, libc::PROT_READ) };
        }
    }
}

/// `ppoll(2)` without a timeout, for a wait that may take hours. Before that it unmaps the pages of this program's code
/// and constants (madvise(2), MADV_DONTNEED): the kernel maps those that are used next from the file again, each with
/// its neighbours. So all that comes between is here.
#[inline(never)]
pub fn wait_for_long(fds: &mut [nix::poll::PollFd<'_>]) -> nix::Result<()> {
    let mut parts = [(0, 0); 4];
    if let Some((base, table)) = program_headers() {
        let read_only = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        for (part, header) in parts.iter_mut().zip(table.iter().filter(read_only)) {
            *part = (base.wrapping_add(header.p_vaddr) / PAGE * PAGE, header.p_memsz);
        }
    }
    for (start, length) in parts {
        // SAFETY: these pages are mapped from the file and were never written to, so that reading them again gives the
        // same bytes.
        unsafe { libc::syscall(libc::SYS_madvise, start, length, libc::MADV_DONTNEED) };
    }
    // SAFETY: a PollFd is a struct pollfd; pointer and number are of one slice. No time and no signals are given.
    let result = unsafe { libc::syscall(libc::SYS_ppoll, fds.as_mut_ptr(), fds.len(), 0usize, 0usize, 0usize) };
    nix::errno::Errno::result(result).map(drop)
}

#[cfg(test)]
#[path = "sys_tests.rs"]
mod tests;
