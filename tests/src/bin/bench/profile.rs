//! Where the time of one start and one end goes: a timeline of system calls, from perf where there is one, which hardly slows
//! what it looks at, else from strace, which does.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Failed;

/// A tracer of all system calls of a process and of what it makes.
pub struct Timeline {
    child: std::process::Child,
    /// Its name, for the heading.
    pub tool: &'static str,
}

impl Timeline {
    /// Attaches to `pid`, with perf if this machine has one that works.
    pub fn attach(pid: i32, log: &Path) -> Result<Self, Failed> {
        let works = Command::new("perf").args(["trace", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
        let tool = if works.is_ok_and(|s| s.success()) { "perf trace" } else { "strace" };
        let mut command = if tool == "strace" {
            let mut command = Command::new("strace");
            command.args(["-f", "-r", "-T", "-s", "40"]);
            command
        } else {
            let mut command = Command::new("perf");
            command.args(["trace", "--comm"]);
            command
        };
        command.arg("-o").arg(log).args(["-p", &pid.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|e| format!("{tool} can not be run: {e}"))?;
        // Neither says for certain when it has begun.
        std::thread::sleep(Duration::from_millis(1500));
        Ok(Self { child, tool })
    }

    /// Ends the tracer; its lines.
    pub fn lines(mut self, log: &Path) -> Result<Vec<String>, Failed> {
        std::thread::sleep(Duration::from_millis(300));
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0));
        let _ = kill(pid, Signal::SIGINT);
        let _ = self.child.wait();
        let text = std::fs::read_to_string(log).map_err(|e| format!("{}: {e}", log.display()))?;
        Ok(text.lines().map(|l| l.chars().take(150).collect()).collect())
    }
}
