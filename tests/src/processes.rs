//! The processes of a container, as the machine's own /proc has them.

use std::fs;

use nix::sys::signal::Signal;

/// One process at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its ID where the test runs.
    pub pid: i32,
    /// Its ID in the pod's PID namespace.
    pub pid_in_pod: i32,
    /// State letter of proc_pid_status(5).
    pub state: char,
    /// Real, effective, saved and file system UID.
    pub uids: Vec<u32>,
    /// Its arguments, with blanks between them.
    pub command: String,
}

impl Process {
    /// The process with this ID, if there is one.
    pub fn look(pid: i32) -> Option<Self> {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some(Self {
            pid,
            pid_in_pod: field("NSpid:")?.split_whitespace().last()?.parse().ok()?,
            state: field("State:")?.chars().next()?,
            uids: field("Uid:")?.split_whitespace().filter_map(|uid| uid.parse().ok()).collect(),
            command: String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " "),
        })
    }

    /// Whether it blocks, ignores or catches this signal by now.
    pub fn handles(&self, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let sets = ["SigBlk:", "SigIgn:", "SigCgt:"].map(|name| {
            let text = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            u64::from_str_radix(text.trim(), 16).unwrap_or(0)
        });
        sets.iter().any(|set| set & (1 << (signal as i32 - 1)) != 0)
    }

    /// Whether a signal that was sent to it waits to be taken.
    pub fn has_pending_signals(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let sets = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
        sets.into_iter().any(|set| set.trim().bytes().any(|digit| digit != b'0'))
    }

    /// Whether it is a payload's: all its UIDs are one that payloads can have. (A job's supervisor has two, glue
    /// root's.)
    pub fn is_payload(&self) -> bool {
        self.uids.first().is_some_and(|uid| *uid >= 20_000 && self.uids.iter().all(|other| other == uid))
    }

    /// Whether it can still do anything.
    pub fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// Every process ID there is.
pub fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The control groups of a process: the same text for all processes of a container.
pub fn cgroup(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()
}

/// The living processes with these control groups.
pub fn in_cgroup(cgroup: &str) -> Vec<Process> {
    let inside = all_pids().into_iter().filter(|pid| self::cgroup(*pid).as_deref() == Some(cgroup));
    inside.filter_map(Process::look).filter(Process::lives).collect()
}
