//! `glue exec`: an ordinary init for any container. It runs one command as its child, hands signals on to it, reaps
//! what is orphaned, and ends with the command's exit code. Nothing of the contract takes part in it: it is root only where
//! it was started so, and signals nothing but its own descendants, by process ID.
//!
//! On a terminal it does what a shell does for a job (glibc manual, "Implementing a Shell"): the command has a process
//! group of its own in the foreground, so that Ctrl-C and Ctrl-Z reach the command and what it started.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, getpgrp, getpid, getsid, setpgid, tcgetpgrp, tcsetpgrp};
use signal_hook::consts::{SIGCHLD, SIGCONT, SIGKILL, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};

use latebind_contract::environment::Environment;
use latebind_linux::processes::Proc;
use latebind_linux::sys::{self, CStrings, Capabilities, Fork};

use crate::log;
use crate::pause::wait_for_signal;
use crate::ready::{Ready, prepare};

/// No command could be run, as docker and timeout(1) have it.
const OWN_FAILURE: i32 = 125;
/// The command is there and cannot be executed, as a shell has it.
const NOT_EXECUTABLE: i32 = 126;
/// There is no such command, as a shell has it.
const NOT_FOUND: i32 = 127;
/// What a shell adds to the number of the signal that ended a command.
const OF_A_SIGNAL: i32 = 128;
/// How long the end of descendants may take that outlive the command.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// What the command line says.
struct Options<'a> {
    /// UID and GID of the command; `None`: they stay as they are.
    ids: Option<(u32, u32)>,
    /// Whether signals go to the command's whole process group.
    group: bool,
    command: Vec<&'a [u8]>,
}

/// Reads `[--uid N --gid N] [--group] [--] COMMAND [ARGUMENT...]`. `None` where it is wrong.
fn options(words: &[OsString]) -> Option<Options<'_>> {
    let (mut uid, mut gid, mut group, mut rest) = (None, None, false, words.iter());
    let number = |word: &OsString| word.to_str()?.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    let first = loop {
        let word = rest.next()?;
        match word.as_bytes() {
            b"--uid" => uid = Some(number(rest.next()?)?),
            b"--gid" => gid = Some(number(rest.next()?)?),
            b"--group" => group = true,
            b"--" => break rest.next()?,
            word if word.starts_with(b"-") => return None,
            _ => break word,
        }
    };
    // With one of them alone the command would keep root's rights by the other.
    let ids = match (uid, gid) {
        (None, None) => None,
        (uid, gid) => Some((uid?, gid?)),
    };
    let command = std::iter::once(first).chain(rest).map(|word| word.as_bytes()).collect();
    Some(Options { ids, group, command })
}

/// Runs `glue exec` with these words. Returns the exit code; `None` where the words are wrong.
pub fn exec(words: &[OsString]) -> Option<i32> {
    let options = options(words)?;
    Some(match Init::start(&options).and_then(|init| init.serve()) {
        Ok(status) => {
            status.code().or(status.signal().map(|signal| OF_A_SIGNAL.saturating_add(signal))).unwrap_or(OWN_FAILURE)
        }
        Err(e) => {
            complain("no command can be run", &e);
            OWN_FAILURE
        }
    })
}

/// For people: this is not a container of ours, whose log a program reads.
fn complain(what: &str, error: &io::Error) {
    let _ = log::print(2, &format!("glue exec: {what}: {error}\n"));
}

struct Init {
    signals: OwnedFd,
    child: Pid,
    group: bool,
}

impl Init {
    fn start(options: &Options<'_>) -> io::Result<Self> {
        // As PID 1 it gets the orphans anyway.
        set_child_subreaper(true)?;
        let ready = ready(&options.command)?;
        let (mask, group) = (SigSet::thread_get_mask()?, getpgrp());
        let signals = sys::signal_fd()?;
        match sys::fork()? {
            Fork::Child => become_command(options, &ready, &mask, group),
            Fork::Parent(child) => {
                let child = Pid::from_raw(child);
                // Here too, so that a signal for the group finds it. The child may have executed already.
                let _ = setpgid(child, child);
                Ok(Self { signals, child, group: options.group })
            }
        }
    }

    /// Until the command has ended: what else ends is reaped, what else comes is for the command.
    fn serve(&self) -> io::Result<ExitStatus> {
        loop {
            while let Some(signal) = sys::next_signal(self.signals.as_fd())? {
                match signal.number {
                    SIGCHLD => {
                        if let Some(status) = self.reap()? {
                            hand_over(self.child, getpgrp());
                            // How the command has ended is what counts.
                            end_descendants().unwrap_or_else(|e| complain("what the command has left", &e));
                            return Ok(status);
                        }
                    }
                    // This process's own, which is in the background of the command's terminal.
                    SIGTTIN | SIGTTOU => {}
                    SIGCONT => self.go_on(),
                    number => self.send(number),
                }
            }
            wait_for_signal(&self.signals)?;
        }
    }

    /// Reaps all that has ended, up to the command; how that has, if it has.
    fn reap(&self) -> io::Result<Option<ExitStatus>> {
        while let Some(reaped) = sys::reap_or_stopped(-1)? {
            if reaped.pid == self.child.as_raw() {
                match reaped.status.stopped_signal() {
                    Some(signal) => self.stop_too(signal),
                    None => return Ok(Some(reaped.status)),
                }
            }
        }
        Ok(None)
    }

    /// The command was stopped. So is this process, since it is what a shell sees of the job, until it is continued. A
    /// session's leader has no shell that would continue it: there Ctrl-Z has no effect, as for docker's PID 1.
    ///
    /// A command that has stopped because it wanted the terminal goes on where this process has that by now: a shell
    /// sends no SIGCONT to a job in `fg` of which it does not know yet that it was stopped.
    fn stop_too(&self, signal: i32) {
        if [SIGTTIN, SIGTTOU].contains(&signal) && hand_over(getpgrp(), self.child) {
            let _ = sys::signal_group(self.child.as_raw(), SIGCONT);
        } else if getsid(None) != Ok(getpid()) {
            hand_over(self.child, getpgrp());
            // It cannot be blocked: nothing more happens here before SIGCONT, which is then among the signals.
            let _ = sys::signal_process(getpid().as_raw(), SIGSTOP);
        } else if signal == SIGTSTP {
            self.go_on();
        }
    }

    /// Everything that was stopped goes on, in the foreground where a shell has put this process there.
    fn go_on(&self) {
        hand_over(getpgrp(), self.child);
        let _ = sys::signal_group(self.child.as_raw(), SIGCONT);
    }

    fn send(&self, signal: i32) {
        // It has not been reaped, so that the number is its own.
        let _ = match self.group {
            true => sys::signal_group(self.child.as_raw(), signal),
            false => sys::signal_process(self.child.as_raw(), signal),
        };
    }
}

/// Puts the process group `to` into the foreground of the terminal that is standard input, if `from` is there now;
/// whether it is there then. The caller has SIGTTOU blocked, which would stop a process in the background.
fn hand_over(from: Pid, to: Pid) -> bool {
    let terminal = sys::inherited(0);
    tcgetpgrp(terminal) == Ok(from) && tcsetpgrp(terminal, to).is_ok()
}

/// Everything that the child needs; its environment is this process's own, to the byte.
fn ready(command: &[&[u8]]) -> io::Result<Ready> {
    let variables = sys::environment();
    let mut path = Environment::new();
    if let Some(value) = variables.iter().find_map(|variable| variable.strip_prefix(b"PATH=")) {
        path.set(b"PATH", value);
    }
    let mut ready = prepare(command, &path, Vec::new())?;
    ready.env = CStrings::default();
    variables.iter().try_for_each(|variable| ready.env.push(&[variable]))?;
    Ok(ready)
}

/// The child's side of the fork, which was made in process group `group`. Allocates nothing before its exec has failed.
fn become_command(options: &Options<'_>, ready: &Ready, mask: &SigSet, group: Pid) -> ! {
    if setpgid(Pid::from_raw(0), Pid::from_raw(0)).is_ok() {
        hand_over(group, getpid());
    }
    let prepared = options.ids.map_or(Ok(()), |(uid, gid)| take_ids(uid, gid));
    sys::restore_sigpipe();
    let (what, code, error) = match prepared.and_then(|()| Ok(mask.thread_set_mask()?)) {
        Err(e) => (Cow::Borrowed("UID, GID or signals"), OWN_FAILURE, e),
        Ok(()) => {
            let (_, error) = ready.exec();
            let is_missing = error.raw_os_error() == Some(nix::libc::ENOENT);
            let name = options.command.first().copied().unwrap_or_default();
            (String::from_utf8_lossy(name), if is_missing { NOT_FOUND } else { NOT_EXECUTABLE }, error)
        }
    };
    complain(&what, &error);
    sys::exit_now(code)
}

/// Takes the IDs for good, and proves it: no supplementary group, no capability in use, no way back.
fn take_ids(uid: u32, gid: u32) -> io::Result<()> {
    let own = [uid; 3] == sys::uids()? && [gid; 3] == sys::gids()?;
    if own && uid != 0 {
        return Ok(()); // an ordinary user's own: nothing to take, and no right to
    }
    sys::set_groups(&[])?;
    sys::set_gid(gid)?;
    sys::set_uids(uid, uid, uid)?;
    let hold = sys::uids()? == [uid; 3] && sys::gids()? == [gid; 3] && sys::groups_are(&[])?;
    let none = uid == 0 || (sys::capabilities()?.permitted == Capabilities::default().permitted);
    if hold && none { Ok(()) } else { Err(io::Error::from_raw_os_error(nix::libc::EPERM)) }
}

/// Ends what has outlived the command. Its orphans are this process's children, and so are theirs once they have ended:
/// until there is none. PID 1 leaves that to the kernel.
fn end_descendants() -> io::Result<()> {
    if getpid() == Pid::from_raw(1) {
        return Ok(());
    }
    let proc = Proc::open()?;
    let give_up = Instant::now() + ENDED_WITHIN;
    while Instant::now() < give_up {
        // Of one thread, which is all there is (proc_pid_task(5), "children").
        let children = proc.read(&format!("self/task/{}/children", getpid()))?;
        for pid in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
            // Not reaped, so that the number is its own.
            let _ = sys::signal_process(pid, SIGKILL);
        }
        loop {
            match sys::reap(-1) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return Ok(()), // ECHILD: there is none
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("processes that outlive it do not end"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_command_line_is_options_and_then_a_command_whatever_that_looks_like() {
        for (text, ids, group, command) in [
            ("true", None, false, &["true"][..]),
            ("-- --uid 1", None, false, &["--uid", "1"]),
            ("--uid 1 --gid 2 -- a --uid", Some((1, 2)), false, &["a", "--uid"]),
            ("--group --gid 0 --uid 0 a -- b", Some((0, 0)), true, &["a", "--", "b"]),
        ] {
            let words = words(text);
            let read = options(&words).unwrap();
            let wanted: Vec<&[u8]> = command.iter().map(|word| word.as_bytes()).collect();
            assert_eq!((read.ids, read.group, read.command), (ids, group, wanted), "{text}");
        }
    }

    #[test]
    fn a_command_line_without_a_command_or_with_half_of_the_ids_is_refused() {
        for text in [
            "--",
            "--uid 1 true",
            "--gid 1 true",
            "--uid",
            "--uid x --gid 1 true",
            "--uid -1 --gid 1 true",
            "-x true",
            "--uid 4294967295 --gid 1 true",
            "--uid 4294967296 --gid 1 true",
            "--uid 1 --gid 1",
        ] {
            assert!(options(&words(text)).is_none(), "{text}");
        }
        assert!(options(&[]).is_none());
    }
}
