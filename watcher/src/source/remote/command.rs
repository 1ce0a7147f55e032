//! A source that is two commands of the operator's. They run as root of the pilot container; what the first one prints
//! is somebody's job, and is bounded and checked as such.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{Answer, JobSource, Over, SourceError, TimeLimit};
use crate::source::JOB_FILE_MAX;

/// Exit code of a command that has no job now.
const NOTHING: i32 = 1;
/// So much of the end of standard error is kept for the log.
const ERROR_KEPT: usize = 2 << 10;
/// How long a command that takes too long has between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);
/// How often a command under way is looked at for the end of the pilot.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The commands, and how long each may take.
#[derive(Clone, Debug)]
pub struct Commands {
    /// Prints a job, or ends with 1 where there is none.
    pub fetch: String,
    /// Takes a result.
    pub report: String,
    /// For the first one.
    pub fetch_within: Duration,
    /// For the second one.
    pub report_within: Duration,
}

impl JobSource for Commands {
    fn fetch(&self, dir: &Path, limit: &TimeLimit) -> Result<Answer, SourceError> {
        let mut command = shell(&self.fetch, &[dir.as_os_str()]);
        command.current_dir(dir).env("LATEBIND_JOB_DIR", dir);
        let ran = run(&mut command, self.fetch_within, limit).map_err(|e| SourceError::new(format!("--fetch: {e}")))?;
        match ran.status.code() {
            Some(0) => Ok(Answer::Job(ran.stdout)),
            Some(NOTHING) => Ok(Answer::Nothing(None)),
            _ => Err(SourceError::new(format!("--fetch: {}", ran.said()))),
        }
    }

    fn report(&self, over: &Over<'_>, limit: &TimeLimit) -> Result<(), SourceError> {
        let (name, class) = (OsStr::new(over.name), OsStr::new(over.report.class.name()));
        let mut command = shell(&self.report, &[over.result.as_os_str(), name, class]);
        command
            .current_dir(over.result)
            .env("LATEBIND_RESULT", over.result)
            .env("LATEBIND_JOB", name)
            .env("LATEBIND_CLASS", class)
            .env("LATEBIND_REASON", over.report.reason.as_str())
            .env("LATEBIND_ATTEMPT", over.report.attempt.to_string());
        let ran =
            run(&mut command, self.report_within, limit).map_err(|e| SourceError::new(format!("--report: {e}")))?;
        if ran.status.success() { Ok(()) } else { Err(SourceError::new(format!("--report: {}", ran.said()))) }
    }
}

/// A line of shell, with what it gets as `$1` and so on.
fn shell(line: &str, arguments: &[&OsStr]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line, "latebind"]).args(arguments);
    command
}

/// A command that has ended.
#[derive(Debug)]
struct Ran {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ran {
    /// How it ended and what it said, for the log.
    fn said(&self) -> String {
        let words = String::from_utf8_lossy(&self.stderr);
        match words.trim() {
            "" => format!("{}", self.status),
            words => format!("{}: {words}", self.status),
        }
    }
}

/// Runs a command to its end, in a process group of its own, of which nothing is left then.
fn run(command: &mut Command, within: Duration, limit: &TimeLimit) -> io::Result<Ran> {
    let began = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    // The child is reaped last: until then the number is that of the group.
    let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let heard = listen(&mut child, group, || limit.left(began, within));
    if heard.is_err() {
        let _ = killpg(group, Signal::SIGTERM);
        let _ = has_ended(&child, GRACE);
    }
    let _ = killpg(group, Signal::SIGKILL);
    // It may have left its group.
    let _ = child.kill();
    let status = child.wait()?;
    let (stdout, stderr) = heard?;
    Ok(Ran { status, stdout, stderr })
}

fn millis(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)
}

fn has_ended(child: &Child, within: Duration) -> io::Result<bool> {
    let process = latebind_linux::sys::pidfd_open(i32::try_from(child.id()).map_err(io::Error::other)?)?;
    let mut wait = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut wait, millis(within))? > 0)
}

/// Reads what the command writes until it has ended, and what is in the pipes then. What it leaves behind in its group is
/// killed before that: it could go on writing.
fn listen(child: &mut Child, group: Pid, left: impl Fn() -> Duration) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let process = latebind_linux::sys::pidfd_open(i32::try_from(child.id()).map_err(io::Error::other)?)?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut has_ended = false;
    loop {
        let left = left();
        if left.is_zero() {
            let ended = "has ended, and what it has left behind goes on writing";
            let why = if has_ended { ended } else { "has not ended in its time, and was killed" };
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        let mut waits = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        waits.extend(out.iter().map(|from| PollFd::new(from.as_fd(), PollFlags::POLLIN)));
        waits.extend(err.iter().map(|from| PollFd::new(from.as_fd(), PollFlags::POLLIN)));
        match poll(&mut waits, millis(if has_ended { Duration::ZERO } else { left.min(LOOK_EVERY) })) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = waits.iter().map(|wait| wait.any().unwrap_or(false)).collect();
        let is_ready = |n: usize| ready.get(n).copied().unwrap_or(false);
        let (from_out, from_err) = (is_ready(1) && out.is_some(), is_ready(1 + usize::from(out.is_some())));
        if has_ended && !from_out && !from_err {
            return Ok((stdout, stderr));
        }
        if is_ready(0) && !has_ended {
            has_ended = true;
            let _ = killpg(group, Signal::SIGKILL);
        }
        if from_out && !read_some(&mut out, &mut stdout)? {
            out = None;
        }
        if from_err && !read_some(&mut err, &mut stderr)? {
            err = None;
        }
        if stdout.len() as u64 > JOB_FILE_MAX {
            return Err(io::Error::other(format!("has printed more than {JOB_FILE_MAX} bytes, and was killed")));
        }
        stderr.drain(..stderr.len().saturating_sub(ERROR_KEPT));
    }
}

/// Reads what is there. Whether there may be more.
fn read_some(from: &mut Option<impl Read>, to: &mut Vec<u8>) -> io::Result<bool> {
    let Some(from) = from else { return Ok(false) };
    let mut part = [0; 16 << 10];
    let n = match from.read(&mut part) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
        n => n?,
    };
    to.extend_from_slice(part.get(..n).unwrap_or_default());
    Ok(n > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use crate::job::{Report, Request};

    fn commands(fetch: &str, report: &str, within: Duration) -> Commands {
        Commands { fetch: fetch.into(), report: report.into(), fetch_within: within, report_within: within }
    }

    fn fetch(line: &str) -> Result<Answer, SourceError> {
        let scratch = tempfile::tempdir().unwrap();
        commands(line, "", Duration::from_secs(60)).fetch(scratch.path(), &TimeLimit::default())
    }

    #[test]
    fn exit_codes_and_output_say_what_there_is() {
        assert_eq!(fetch("echo job; echo noise >&2"), Ok(Answer::Job(b"job\n".to_vec())));
        assert_eq!(fetch("echo job; exit 1"), Ok(Answer::Nothing(None)));
        let error = fetch("echo the reason >&2; exit 7").unwrap_err();
        assert!(error.why.contains("the reason") && error.why.contains('7'), "{error}");
        assert!(fetch("kill -9 $$").unwrap_err().why.contains("signal: 9"));
        assert!(fetch("/no/such/program").unwrap_err().why.contains("127"));
        let own = "[ \"$PWD\" = \"$1\" ] && [ \"$1\" = \"$LATEBIND_JOB_DIR\" ] && touch data && echo good";
        assert_eq!(fetch(own), Ok(Answer::Job(b"good\n".to_vec())));
        let all = fetch("head -c 1048576 /dev/zero").unwrap();
        assert!(matches!(all, Answer::Job(bytes) if bytes.len() == 1 << 20), "all of it, in whatever parts");
    }

    #[test]
    fn neither_time_nor_output_is_without_bound() {
        let scratch = tempfile::tempdir().unwrap();
        let mark = scratch.path().join("left");
        // It ignores TERM, and so does what it has started.
        let line = format!("trap '' TERM; (sleep 60; touch {}) & echo $! >pids; wait", mark.display());
        let hangs = commands(&line, "", Duration::from_millis(300));
        let error = hangs.fetch(scratch.path(), &TimeLimit::default()).unwrap_err();
        assert!(error.why.contains("its time"), "{error}");
        let pid = std::fs::read_to_string(scratch.path().join("pids")).unwrap();
        let gone = || !Path::new("/proc").join(pid.trim()).join("exe").exists();
        let give_up = Instant::now() + Duration::from_secs(60);
        while !gone() {
            assert!(Instant::now() < give_up, "it is left");
            std::thread::yield_now();
        }
        let error = fetch("cat /dev/zero").unwrap_err();
        assert!(error.why.contains("more than"), "{error}");
        let limit = TimeLimit::default();
        limit.end_at(Instant::now());
        let error = commands("sleep 60", "", Duration::from_secs(60)).fetch(scratch.path(), &limit).unwrap_err();
        assert!(error.why.contains("its time"), "{error}");
    }

    #[test]
    fn what_is_left_in_the_background_is_not_waited_for() {
        assert_eq!(fetch("sleep 60 & echo job"), Ok(Answer::Job(b"job\n".to_vec())));
        assert_eq!(fetch("yes >&2 & echo job"), Ok(Answer::Job(b"job\n".to_vec())));
        // In a session of its own it is out of reach, and is not waited for either; it is heard, or not.
        let scratch = tempfile::tempdir().unwrap();
        let line = "setsid sh -c 'touch up; exec yes >&2' & until [ -e up ]; do :; done; echo job";
        let ended = commands(line, "", Duration::from_secs(1)).fetch(scratch.path(), &TimeLimit::default());
        assert!(ended.is_ok() || ended.is_err_and(|e| e.why.contains("goes on writing")));
    }

    #[test]
    fn a_report_is_known_by_arguments_and_environment() {
        let scratch = tempfile::tempdir().unwrap();
        let report = Report::new(&Request::new("a.1".into()));
        let over = Over { name: "a", result: scratch.path(), report: &report };
        let class = report.class.name();
        let line = format!(
            "test \"$1 $2 $3\" = \"$LATEBIND_RESULT a {class}\" && test \"$1\" = \"$PWD\" && \
             test \"$LATEBIND_JOB $LATEBIND_CLASS $LATEBIND_ATTEMPT\" = 'a {class} 1' && test -n \"$LATEBIND_REASON\""
        );
        let said = commands("", &line, Duration::from_secs(60)).report(&over, &TimeLimit::default());
        assert_eq!(said, Ok(()));
        let refuses = commands("", "echo no >&2; false", Duration::from_secs(60));
        let error = refuses.report(&over, &TimeLimit::default()).unwrap_err();
        assert!(error.why.contains("no"), "{error}");
    }
}
