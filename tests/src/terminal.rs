//! A user at a terminal: a program with a pseudo-terminal of its own, what it shows, and what is typed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};

use crate::pod::{JOB_WITHIN, eventually};
use crate::waiting::deadline;

/// A program at a terminal.
pub struct Terminal {
    /// The program.
    pub child: Child,
    master: File,
    slave: OwnedFd,
    before: Termios,
    seen: Vec<u8>,
}

impl Terminal {
    /// Starts a program in a session of its own, whose controlling terminal is a new one of this size.
    pub fn start(command: &Command, size: [u16; 2]) -> Self {
        let pty = openpty(None, None).unwrap();
        latebind_linux::sys::set_terminal_size(pty.master.as_fd(), size).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let mut at_terminal = Command::new("setsid");
        at_terminal.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            at_terminal.env(name, value);
        }
        let end = || pty.slave.try_clone().unwrap();
        let child = at_terminal.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { child, master: pty.master.into(), slave: pty.slave, before, seen: Vec::new() }
    }

    /// What it has shown so far.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Waits until it has shown this since the last time; returns all since then.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> String {
        self.within(text, JOB_WITHIN).unwrap_or_else(|| panic!("{text:?} is not in {:?}", self.seen()))
    }

    fn within(&mut self, text: &str, limit: Duration) -> Option<String> {
        let give_up = deadline(limit);
        loop {
            let seen = self.seen();
            if let Some(at) = seen.find(text) {
                self.seen = seen.as_bytes()[at + text.len()..].to_vec();
                return Some(seen[..at + text.len()].to_owned());
            }
            let left = give_up.checked_duration_since(Instant::now())?;
            let mut wait = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            poll(&mut wait, PollTimeout::try_from(left + Duration::from_millis(1)).unwrap()).unwrap();
            if wait[0].any() == Some(true) {
                let mut bytes = [0; 4096];
                let n = self.master.read(&mut bytes).unwrap_or(0);
                self.seen.extend(&bytes[..n]);
            }
        }
    }

    /// Types.
    pub fn types(&self, text: &str) {
        (&self.master).write_all(text.as_bytes()).unwrap();
    }

    /// Types a key again and again, until this is shown: it may come before somebody is there whom it is for.
    pub fn types_until(&mut self, key: &str, text: &str) -> String {
        let mut shown = None;
        eventually(text, JOB_WITHIN, || {
            self.types(key);
            shown = self.within(text, Duration::from_millis(200));
            shown.clone()
        })
    }

    /// Makes the terminal another size.
    pub fn resize(&self, size: [u16; 2]) {
        latebind_linux::sys::set_terminal_size(self.master.as_fd(), size).unwrap();
    }

    /// Whether what is typed goes through as it is.
    pub fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave)
            .unwrap()
            .local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// Waits for the program's end, and demands that its terminal is as it was. Returns its exit code.
    #[track_caller]
    pub fn end(&mut self) -> Option<i32> {
        let give_up = deadline(JOB_WITHIN);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < give_up, "it does not end: {:?}", self.seen());
            // What it shows has to be read meanwhile.
            self.within("\0", Duration::from_millis(20));
        };
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(
            (after.local_flags, after.input_flags, after.output_flags, after.control_chars),
            (self.before.local_flags, self.before.input_flags, self.before.output_flags, self.before.control_chars),
            "the terminal is not as it was"
        );
        status.code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
