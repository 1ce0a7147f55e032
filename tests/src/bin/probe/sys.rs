//! The system calls that std has no safe form of. All unsafe code of the probe is here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, pid_t};

/// The program's start. Its arguments are taken from here: musl does not hand them to std in any other way.
#[cfg(not(test))]
// SAFETY: the C library looks for a function of this name and form, and there is no other.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const libc::c_char) -> c_int {
    use std::os::unix::ffi::OsStrExt;
    let count = usize::try_from(argc).unwrap_or(0);
    let arguments = (0..count).map(|n| {
        // SAFETY: argv has argc pointers to terminated strings, which live as long as the process.
        let word = unsafe { CStr::from_ptr(*argv.add(n)) };
        std::ffi::OsStr::from_bytes(word.to_bytes()).to_owned()
    });
    crate::start(arguments.collect())
}

fn result(n: c_int) -> io::Result<c_int> {
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n) }
}

/// `None` in the child.
pub fn fork() -> io::Result<Option<pid_t>> {
    // SAFETY: the probe never starts a thread, so that the child may go on as any program.
    let pid = result(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

/// Makes a process beside this one, of the same parent; it ends at once.
pub fn make_brother() {
    // SAFETY: as fork(2) but for the parent: no memory is shared, and the child does nothing but end.
    unsafe {
        if libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) == 0 {
            libc::_exit(0);
        }
    }
}

/// Ends at once, without flushing what the parent's buffers held at the fork.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: takes a number, does not return.
    unsafe { libc::_exit(code) }
}

/// Ends this thread alone, also if it leads others: the process goes on, and its leader shows as a zombie.
pub fn exit_thread() -> ! {
    // SAFETY: exit(2) of the thread; its stack is not used again.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    exit_now(0)
}

pub fn kill(pid: pid_t, signal: c_int) -> io::Result<()> {
    // SAFETY: takes two numbers.
    result(unsafe { libc::kill(pid, signal) }).map(drop)
}

pub fn setsid() -> io::Result<()> {
    // SAFETY: takes nothing.
    result(unsafe { libc::setsid() }).map(drop)
}

pub fn parent() -> pid_t {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getppid() }
}

pub fn real_uid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getuid() }
}

/// Waits for one child (-1: any); `None` where there is none.
pub fn wait(pid: pid_t) -> Option<pid_t> {
    let mut status = 0;
    // SAFETY: status outlives the call.
    result(unsafe { libc::waitpid(pid, &mut status, 0) }).ok()
}

pub fn ignore(signal: c_int) {
    // SAFETY: SIG_IGN is a valid disposition of any signal that has one; an error leaves things as they are.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

pub fn default(signal: c_int) {
    // SAFETY: as for `ignore`.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Blocks `signal`, so that [`await_signal`] can take it.
pub fn block(signal: c_int) {
    // SAFETY: the set is initialised by sigemptyset before it is read, and outlives both calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Waits for `signal`, which [`block`] blocked.
pub fn await_signal(signal: c_int) {
    // SAFETY: as for `block`; `got` outlives the call.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        let mut got = 0;
        libc::sigwait(&set, &mut got);
    }
}

/// The kernel sends `signal` when the parent ends.
pub fn signal_at_parents_end(signal: c_int) {
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0, 0, 0) };
}

pub fn dumpable() -> c_int {
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }
}

/// A pipe's reading and writing end.
pub fn pipe() -> io::Result<(std::fs::File, std::fs::File)> {
    let mut ends = [-1; 2];
    // SAFETY: the array has the two places that pipe2 writes.
    result(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both are open, and nothing else owns them.
    Ok(unsafe { (std::fs::File::from_raw_fd(ends[0]), std::fs::File::from_raw_fd(ends[1])) })
}

/// Soft and hard limit.
pub fn limit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call. The type of the first argument differs between C libraries.
    result(unsafe { libc::getrlimit(resource as _, &mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

pub fn set_real_effective_saved_uid(uid: u32) -> io::Result<()> {
    // SAFETY: takes numbers.
    result(unsafe { libc::setresuid(uid, uid, uid) }).map(drop)
}

pub fn ptrace_attach(pid: pid_t) -> io::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_ATTACH reads neither address nor data.
    let n = unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, nothing, nothing) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads one byte of another process's memory at an address that need not be one of its own: rights are looked at
/// first.
pub fn read_memory(pid: pid_t) -> io::Result<()> {
    let mut byte = 0u8;
    let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(4096), iov_len: 1 };
    // SAFETY: both lists have one entry; the kernel writes at most the one byte here, and only looks at the other
    // process.
    let n = unsafe { libc::process_vm_readv(pid, &here, 1, &there, 1, 0) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets another process have a second of CPU time and no more (prlimit(2)).
pub fn limit_cpu_time(pid: pid_t) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: the limit lives through the call, and no old one is asked for.
    result(unsafe { libc::prlimit(pid, libc::RLIMIT_CPU, &limit, std::ptr::null_mut()) }).map(drop)
}

/// Takes another process's descriptor.
pub fn take_descriptor(pid: pid_t, fd: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers.
    let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: takes numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for this process, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// How a process was met that was attached to.
pub enum Traced {
    /// It stays stopped until [`stop_tracing`].
    Stopped,
    /// It ended, with this code where it did so by itself.
    Ended(Option<c_int>),
}

/// Attaches to a process, and has it stop.
pub fn trace_stopped(pid: pid_t) -> io::Result<Traced> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE takes options as a number in place of data, and no address.
    if unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, nothing, nothing) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut status = 0;
    // SAFETY: PTRACE_INTERRUPT reads neither address nor data; status outlives the wait.
    let waited = unsafe {
        libc::ptrace(libc::PTRACE_INTERRUPT, pid, nothing, nothing);
        libc::waitpid(pid, &mut status, libc::__WALL)
    };
    if waited < 0 || !libc::WIFSTOPPED(status) {
        return Ok(Traced::Ended((waited == pid && libc::WIFEXITED(status)).then(|| libc::WEXITSTATUS(status))));
    }
    Ok(Traced::Stopped)
}

/// Lets a process go that [`trace_stopped`] has stopped.
pub fn stop_tracing(pid: pid_t) {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_DETACH reads neither address nor data.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, nothing, nothing) };
}

/// Whether this signal, which is blocked, waits.
pub fn is_pending(signal: c_int) -> bool {
    // SAFETY: the set is written by sigpending before it is read, and outlives both calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigpending(&mut set) == 0 && libc::sigismember(&set, signal) == 1
    }
}

/// Takes a lease for writing (F_SETLEASE of fcntl(2)): everybody else's open waits until it is given back.
pub fn lease(file: &std::fs::File) -> io::Result<()> {
    // SAFETY: takes numbers.
    result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) }).map(drop)
}

pub fn set_xattr(path: &str, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: both texts are terminated, and the value is given with its length.
    result(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

pub fn make_fifo(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: the string is terminated and outlives the call.
    result(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }).map(drop)
}

/// A character device 0:0, as overlay file systems mark what was removed.
pub fn make_whiteout(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: the string is terminated and outlives the call.
    result(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o644, 0) }).map(drop)
}

/// Exchanges what two names of the current directory stand for, in one step.
pub fn exchange(one: &CStr, other: &CStr) -> io::Result<()> {
    let here = libc::AT_FDCWD;
    // SAFETY: both strings are terminated and outlive the call.
    let n =
        unsafe { libc::syscall(libc::SYS_renameat2, here, one.as_ptr(), here, other.as_ptr(), libc::RENAME_EXCHANGE) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub fn shared_memory(key: c_int) -> io::Result<c_int> {
    // SAFETY: takes numbers.
    result(unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | 0o600) })
}

pub fn semaphores(key: c_int) -> io::Result<c_int> {
    // SAFETY: takes numbers.
    result(unsafe { libc::semget(key, 1, libc::IPC_CREAT | 0o600) })
}

pub fn message_queue(key: c_int) -> io::Result<c_int> {
    // SAFETY: takes numbers.
    result(unsafe { libc::msgget(key, libc::IPC_CREAT | 0o600) })
}

pub fn posix_message_queue(name: &CStr) -> io::Result<c_int> {
    // SAFETY: the name is terminated; a null attribute pointer asks for the defaults.
    result(unsafe {
        libc::mq_open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, std::ptr::null_mut::<libc::mq_attr>())
    })
}

/// Flags that an owner can set, and that its file system need not do anything for: NODUMP and NOATIME of
/// ioctl_iflags(2).
pub const MARK_FLAGS: u32 = 0x40 | 0x80;

pub fn set_attribute(file: &std::fs::File, name: &CStr, value: &[u8]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the name is terminated, pointer and length are of one slice, and both outlive the call.
    result(unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

/// Each with a NUL behind it.
pub fn attribute_names(file: &std::fs::File) -> io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd;
    let mut names = vec![0u8; 64 << 10];
    // SAFETY: pointer and length are of one vector, which outlives the call.
    let n = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(n).map_err(|_| io::Error::last_os_error())?);
    Ok(names)
}

pub fn inode_flags(file: &std::fs::File) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes at most a long, into a local that outlives the call.
    result(unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS as _, &raw mut flags) })?;
    Ok(flags as u32)
}

pub fn set_inode_flags(file: &std::fs::File, flags: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let flags = libc::c_long::from(flags);
    // SAFETY: the kernel reads at most a long, from a local that outlives the call.
    result(unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS as _, &raw const flags) }).map(drop)
}

fn number(n: libc::c_long) -> io::Result<i64> {
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n) }
}

/// `KEY_SPEC_USER_KEYRING` of keyctl(2): belongs to the UID, in whatever process, container and pod.
const USER_KEYRING: libc::c_long = -4;
const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SET_PERMISSIONS: libc::c_long = 5;
const DESCRIBE: libc::c_long = 6;
const CLEAR: libc::c_long = 7;
const LINK: libc::c_long = 8;
const READ: libc::c_long = 11;

/// Makes a keyring that everything may be done with, as the process's own.
pub fn join_session_keyring(name: &CStr) -> io::Result<i64> {
    // SAFETY: the name is terminated and outlives the call.
    let ring = number(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    // SAFETY: takes numbers.
    number(unsafe { libc::syscall(libc::SYS_keyctl, SET_PERMISSIONS, ring, 0x3f3f_3f3f) })?;
    Ok(ring)
}

/// Leaves it to all processes of the UID.
pub fn link_to_user_keyring(ring: i64) -> io::Result<i64> {
    // SAFETY: takes numbers.
    number(unsafe { libc::syscall(libc::SYS_keyctl, LINK, ring, USER_KEYRING) })
}

/// Leaves a key to all processes of the UID.
pub fn add_key(name: &CStr) -> io::Result<i64> {
    let (kind, secret) = (c"user", b"secret");
    // SAFETY: both names are terminated, the secret has the length that is given, and all outlive the call.
    let key = unsafe {
        libc::syscall(libc::SYS_add_key, kind.as_ptr(), name.as_ptr(), secret.as_ptr(), secret.len(), USER_KEYRING)
    };
    number(key)
}

/// What is in the UID's keyring: a description of each key.
pub fn user_keyring() -> io::Result<Vec<String>> {
    let mut keys = [0i32; 256];
    let size = std::mem::size_of_val(&keys);
    // SAFETY: the kernel writes at most the size that is given.
    let bytes = number(unsafe { libc::syscall(libc::SYS_keyctl, READ, USER_KEYRING, keys.as_mut_ptr(), size) })?;
    let count = usize::try_from(bytes).unwrap_or(0) / 4;
    Ok(keys.iter().take(count).filter_map(|key| describe(*key).ok()).collect())
}

fn describe(key: i32) -> io::Result<String> {
    let mut text = [0u8; 1024];
    // SAFETY: the kernel writes at most the size that is given.
    let length = unsafe { libc::syscall(libc::SYS_keyctl, DESCRIBE, key, text.as_mut_ptr(), text.len()) };
    let length = usize::try_from(number(length)?).unwrap_or(0).clamp(1, text.len()) - 1;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// Takes everything out of the UID's keyring.
pub fn clear_user_keyring() -> io::Result<i64> {
    // SAFETY: takes numbers.
    number(unsafe { libc::syscall(libc::SYS_keyctl, CLEAR, USER_KEYRING) })
}

/// The errno of a call whose arguments are all -1, which is nothing to any of those that are tried; 0 where it
/// succeeds.
pub fn call_in_vain(call: libc::c_long) -> c_int {
    // SAFETY: -1 is neither an address that can be used nor a descriptor; the kernel answers with an error.
    let result = unsafe { libc::syscall(call, -1, -1, -1, -1, -1, -1) };
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

/// The errnos of calls that would make a namespace, each made in a child, and of calls that look like them and do not.
pub fn namespace_calls() -> Vec<(&'static str, c_int)> {
    let in_child = |call: &dyn Fn() -> libc::c_long| {
        let Ok(pid) = fork() else { return -1 };
        let Some(pid) = pid else {
            let errno = if call() < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
            exit_now(errno);
        };
        let mut status = 0;
        // SAFETY: status outlives the call.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
    };
    // SAFETY of all: numbers only; a child that is made has its own copy of the memory, and ends at once.
    let clone = |flags: c_int| {
        // SAFETY: as above.
        let result = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
        if result == 0 {
            exit_now(0);
        }
        result
    };
    // SAFETY: as above.
    let unshare = |flags: c_int| unsafe { libc::syscall(libc::SYS_unshare, flags) };
    // SAFETY: as above.
    let clone3 = || unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
    // SAFETY: as above.
    let x32 = || unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) };
    vec![
        ("clone(NEWUSER)", in_child(&|| clone(libc::CLONE_NEWUSER))),
        ("clone(NEWNET)", in_child(&|| clone(libc::CLONE_NEWNET))),
        ("unshare(NEWUSER)", in_child(&|| unshare(libc::CLONE_NEWUSER))),
        ("unshare(NEWUSER|NEWNS)", in_child(&|| unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS))),
        ("clone3", in_child(&clone3)),
        ("x32", in_child(&x32)),
        ("clone", in_child(&|| clone(0))),
        ("unshare(FILES)", in_child(&|| unshare(libc::CLONE_FILES | libc::CLONE_FS))),
    ]
}

/// `getpid` by the kernel's way for 32-bit programs.
#[cfg(target_arch = "x86_64")]
pub fn call_as_32_bit() -> i64 {
    let answer: i64;
    // SAFETY: the call takes nothing and changes no memory; the kernel may change r8 to r11 on this way.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") 20i64 => answer, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    answer
}

/// There is no such way.
#[cfg(not(target_arch = "x86_64"))]
pub fn call_as_32_bit() -> i64 {
    -1
}

/// The C library's way to end a program that cannot go on.
pub fn abort() -> ! {
    // SAFETY: takes nothing, does not return.
    unsafe { libc::abort() }
}

/// Waits for a child, and says which signal has ended it.
pub fn signal_that_ended(pid: pid_t) -> Option<c_int> {
    let mut status = 0;
    // SAFETY: status outlives the call.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}
