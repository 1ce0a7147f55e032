//! strace, attached to a process and to all that it makes from then on.

use std::io::{BufRead, BufReader, Error, Result, copy, sink};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// An attached strace.
pub struct Tracer {
    child: Child,
    /// It says something of each new process, and would end of a closed pipe.
    said: BufReader<ChildStderr>,
}

impl Tracer {
    /// Attaches to `pid`. `log` gets a line for each call, of the form that `options` ask for.
    pub fn attach(pid: i32, options: &[&str], log: &Path) -> Result<Self> {
        let mut command = Command::new("strace");
        command.args(["-f", "-s", "80"]).args(options).arg("-o").arg(log).args(["-p", &pid.to_string()]);
        let failed = |what: String| Error::other(format!("strace {what}"));
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(|e| failed(format!("cannot be run: {e}")))?;
        let mut said = BufReader::new(child.stderr.take().ok_or_else(|| failed("has no standard error".into()))?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        // It says `Process N attached` when it is.
        if !line.contains("attached") {
            return Err(failed(format!("could not attach to {pid}: {line}")));
        }
        Ok(Self { child, said })
    }

    /// Detaches. The log is whole then.
    pub fn detach(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0)), Signal::SIGINT)?;
        copy(&mut self.said, &mut sink())?;
        self.child.wait().map(drop)
    }
}
