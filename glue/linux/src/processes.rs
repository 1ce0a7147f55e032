//! What `/proc` says of processes: whose they are, which container they are in, whether they live.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;

use crate::error::refused;
pub use crate::proc::Proc;
use crate::sys;
use crate::volume::open_at;

/// Bytes of what `/proc` says of one process, in nearly all cases.
const SMALL: usize = 4096;

/// One process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its ID.
    pub pid: i32,
    /// Its real UID.
    pub uid: u32,
    /// The state letter of proc_pid_status(5): R, S, D, T, t, Z, X, I.
    pub state: char,
    /// Its threads, one that has ended and leads others included.
    pub threads: u32,
}

impl Process {
    /// Whether it can still do anything. A main thread that has ended shows as a zombie while others of its process
    /// run.
    pub fn lives(&self) -> bool {
        !self.main_thread_has_ended() || self.threads > 1
    }

    fn main_thread_has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Whether it is stopped by a signal.
    pub fn is_stopped(&self) -> bool {
        self.state == 'T'
    }
}

/// What `/proc/<pid>/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Whether it has executed no program since it was forked (PF_FORKNOEXEC of the kernel's `linux/sched.h`).
    pub no_exec_yet: bool,
    /// When it started, in ticks since the machine did.
    pub start: u64,
}

impl Proc {
    /// As [`Proc::cgroup`], for a process that may go on without its main thread: that thread's own entry then says
    /// nothing (with cgroup version 1 it says `/`), so a thread that runs is asked.
    pub fn cgroup_of(&self, process: &Process) -> io::Result<String> {
        if !process.main_thread_has_ended() {
            return self.cgroup(process.pid);
        }
        let pid = process.pid;
        for tid in self.numbers_in(&format!("{pid}/task"))? {
            let thread = format!("{pid}/task/{tid}");
            let runs = self.read(&format!("{thread}/status")).ok().and_then(|text| parse_status(tid, &text));
            if runs.is_some_and(|thread| !thread.main_thread_has_ended()) {
                return self.read(&format!("{thread}/cgroup"));
            }
        }
        Err(io::Error::from_raw_os_error(nix::libc::ESRCH))
    }

    /// Entries of a directory beneath `/proc` whose names are numbers, in its order.
    fn numbers_in(&self, path: &str) -> io::Result<Vec<i32>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = nix::dir::Dir::openat(self.as_fd(), path, flags, nix::sys::stat::Mode::empty())?;
        let mut numbers = Vec::new();
        for entry in dir.iter() {
            if let Some(number) = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
                numbers.push(number);
            }
        }
        Ok(numbers)
    }

    /// The process with this ID, or `None` where there is none any more.
    pub fn process(&self, pid: i32) -> Option<Process> {
        parse_status(pid, &self.read_small(&format!("{pid}/status"), &mut [0; SMALL]).ok()?)
    }

    /// What `/proc/<pid>/stat` says.
    pub fn stat(&self, pid: i32) -> io::Result<Stat> {
        parse_stat(&self.read_small(&format!("{pid}/stat"), &mut [0; SMALL])?)
            .ok_or_else(|| refused(format_args!("/proc/{pid}/stat cannot be understood")))
    }

    /// Whether all UIDs and GIDs of a process are these.
    pub fn has_ids(&self, pid: i32, uid: u32, gid: u32) -> io::Result<bool> {
        let mut bytes = [0; SMALL];
        let text = self.read_small(&format!("{pid}/status"), &mut bytes)?;
        let all = |name: &str, id: u32| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_ascii_whitespace().filter(|n| n.parse() == Ok(id)).count() == 4
        };
        Ok(all("Uid:", uid) && all("Gid:", gid))
    }

    /// As [`Proc::read`], of a file that mostly fits into `bytes`, and that the kernel then gives at once: a look at
    /// all processes reads one for each.
    fn read_small<'a>(&self, path: &str, bytes: &'a mut [u8]) -> io::Result<Cow<'a, str>> {
        let length = File::from(open_at(self.as_fd(), path, OFlag::O_RDONLY)?).read(bytes)?;
        match bytes.get(..length) {
            Some(text) if length < bytes.len() => Ok(String::from_utf8_lossy(text)),
            _ => self.read(path).map(Cow::Owned),
        }
    }

    /// The processes with real UID `uid` that live, in ascending order of their IDs.
    pub fn of_uid(&self, uid: u32) -> io::Result<Vec<Process>> {
        let mut found = Vec::new();
        // "." is opened again each time: the position in a directory belongs to the open file.
        for pid in self.numbers_in(".")? {
            if let Some(process) = self.process(pid)
                && process.uid == uid
                && process.lives()
            {
                found.push(process);
            }
        }
        Ok(found)
    }
}

/// Reads `State:` and the real UID out of a `/proc/<pid>/status` text.
pub fn parse_status(pid: i32, status: &str) -> Option<Process> {
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim_ascii_start);
    Some(Process {
        pid,
        state: field("State:")?.chars().next()?,
        uid: field("Uid:")?.split_ascii_whitespace().next()?.parse().ok()?,
        threads: field("Threads:")?.parse().ok()?,
    })
}

/// Reads parent (4), group (5), flags (9) and start (22) of proc_pid_stat(5). The name, which may hold anything, ends
/// at the last parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    const FORK_NO_EXEC: u32 = 0x40;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let flags: u32 = fields.nth(3)?.parse().ok()?;
    let start = fields.nth(12)?.parse().ok()?;
    Some(Stat { parent, group, no_exec_yet: flags & FORK_NO_EXEC != 0, start })
}

/// A process that was pinned by a pidfd before it was looked at, so that a signal cannot reach a successor of its
/// number.
pub struct Pinned {
    pid: i32,
    pidfd: Option<OwnedFd>,
}

impl Pinned {
    /// Pins the process. Kernels before 5.3 have no pidfd, and engines of their time may refuse it: there the number
    /// itself is used.
    pub fn new(pid: i32) -> io::Result<Self> {
        match sys::pidfd_open(pid) {
            Ok(pidfd) => Ok(Self { pid, pidfd: Some(pidfd) }),
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOSYS | nix::libc::EPERM)) => {
                Ok(Self { pid, pidfd: None })
            }
            Err(e) => Err(e),
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.pidfd {
            Some(pidfd) => sys::signal_pidfd(pidfd.as_fd(), signal as i32),
            None => sys::signal_process(self.pid, signal as i32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let text = "Name:\ta\nUmask:\t0022\nState:\tT (stopped)\nTgid:\t9\nUid:\t5\t6\t7\t8\nThreads:\t2\n";
        assert_eq!(parse_status(9, text), Some(Process { pid: 9, uid: 5, state: 'T', threads: 2 }));
        assert_eq!(parse_status(9, "State:\tR\n"), None);
    }

    #[test]
    fn stat_is_read_whatever_the_name_is() {
        let rest = "S 4 5 6 7 8 4194368 10 11 12 13 14 15 16 17 18 19 20 21 2222 23 24";
        let stat = Some(Stat { parent: 4, group: 5, no_exec_yet: true, start: 2222 });
        assert_eq!(parse_stat(&format!("9 (a) {rest}")), stat);
        assert_eq!(parse_stat(&format!("9 (a b) R 1 (c)) {rest}")), stat);
        assert_eq!(parse_stat("9 (a) S 4 5"), None);
        let proc = Proc::open().ok();
        let own = proc.as_ref().and_then(|p| p.stat(std::process::id() as i32).ok());
        assert!(own.is_some_and(|own| !own.no_exec_yet && own.start > 0), "{own:?}");
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        let has = |uid, gid| proc.as_ref().and_then(|p| p.has_ids(std::process::id() as i32, uid, gid).ok());
        assert_eq!((has(uid, gid), has(uid + 1, gid), has(uid, gid + 1)), (Some(true), Some(false), Some(false)));
    }

    #[test]
    fn what_is_longer_than_usual_is_read_whole() {
        let proc = Proc::open().unwrap();
        let whole = proc.read("self/status").unwrap();
        let name = whole.lines().next().unwrap();
        for size in [0, 1, whole.len() / 2, 2 * whole.len()] {
            let mut bytes = vec![0; size];
            let text = proc.read_small("self/status", &mut bytes).unwrap();
            assert!(text.starts_with(name) && text.contains("\nThreads:") && text.ends_with('\n'), "{size}: {text}");
        }
        assert_eq!(
            proc.read_small("0/status", &mut [0; 9]).map_err(|e| e.raw_os_error()),
            Err(Some(nix::libc::ENOENT))
        );
    }

    #[test]
    fn a_process_lives_as_long_as_any_of_its_threads() {
        let lives = |state, threads| Process { pid: 1, uid: 1, state, threads }.lives();
        assert!(lives('S', 1) && lives('T', 1) && lives('Z', 2));
        assert!(!lives('Z', 1) && !lives('X', 1));
    }

    #[test]
    fn the_real_proc_knows_this_process() {
        let proc = Proc::open().ok();
        let pid = std::process::id() as i32;
        let own = proc.as_ref().and_then(|p| p.process(pid));
        assert!(own.is_some_and(|p| p.lives()));
        let uid = own.map_or(u32::MAX, |p| p.uid);
        let found = proc.and_then(|p| p.of_uid(uid).ok()).unwrap_or_default();
        assert!(found.iter().any(|p| p.pid == pid));
    }
}
