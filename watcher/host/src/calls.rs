//! Calls of an engine's program: bounded in time and in what they say, and ended when everything is to end.

use crate::hung_start;
use crate::pidfd::Process;
use crate::threads;
use nix::sys::signal::Signal;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// Longest time that a call may take that has no limit of its own.
pub const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Longest time that the start of a payload container may take: an image can make the engine hang (with a FIFO as
/// `/etc/passwd`).
pub const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest time that a pull may take.
pub const PULL_LIMIT: Duration = Duration::from_secs(30 * 60);
/// How long a call under way may go on when everything is to end: podman killed half-way through making a container
/// leaves files that nobody finds again.
const CLOSING_PATIENCE: Duration = Duration::from_secs(5);
/// How often a call under way looks whether everything is to end.
const CLOSING_TICK: Duration = Duration::from_millis(50);
/// Most bytes of an answer. What an image says of itself is in some of them.
const SAID_MAX: usize = 1 << 20;
/// How Go's runtime begins to say why it ends a program.
const FATAL: [&str; 4] = ["runtime/cgo: ", "runtime: failed ", "fatal error: ", "panic: "];
/// Longest line of progress that is shown in one piece, in bytes.
const LINE_MAX: u64 = 16 << 10;

/// An engine's program, and how it is called.
#[derive(Debug, Default)]
pub struct Calls {
    /// Its path.
    pub program: PathBuf,
    /// Before every subcommand.
    pub options: Vec<OsString>,
    /// Variables that are taken out of its environment.
    pub unset: &'static [&'static str],
    /// Variables that it is given.
    pub set: Vec<(&'static str, OsString)>,
    /// Its working directory: some versions of podman's monitor leave a file there.
    pub directory: PathBuf,
    closing: AtomicBool,
    /// Calls under way that [`Calls::close`] ends.
    under_way: AtomicUsize,
}

/// Why a call did not succeed.
#[derive(Debug)]
pub enum CallError {
    /// The engine refused.
    Failed {
        /// Its exit code, none if a signal ended it.
        code: Option<i32>,
        /// What it wrote to its standard error.
        text: String,
    },
    /// Its answer is larger than what is read.
    TooMuchOutput,
    /// It took longer than the limit, and was killed.
    TookTooLong(Duration),
    /// Everything is being ended.
    Closing,
    /// It could not be started or waited for.
    Broken(io::Error),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { code: Some(_), text } if !text.is_empty() => f.write_str(text),
            Self::Failed { code: Some(code), .. } => write!(f, "the engine ended with code {code} and said nothing"),
            Self::Failed { code: None, text } => write!(f, "the engine was killed by a signal; it had said: {text}"),
            Self::TooMuchOutput => write!(f, "the engine's answer is larger than {SAID_MAX} bytes"),
            Self::TookTooLong(limit) => {
                write!(f, "the engine did not answer within {} s and was ended", limit.as_secs())
            }
            Self::Closing => f.write_str("the pod is being ended"),
            Self::Broken(e) => write!(f, "the engine cannot be run: {e}"),
        }
    }
}

impl Calls {
    /// Calls of `program`, whose working directory is `directory`.
    pub fn new(program: PathBuf, directory: PathBuf) -> Self {
        Self { program, directory, ..Self::default() }
    }

    /// The program with its options; the caller adds the subcommand.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for name in self.unset {
            command.env_remove(name);
        }
        // What it says is read by this program.
        command.envs(self.set.iter().map(|(name, value)| (name, value))).env("LC_ALL", "C.UTF-8");
        command.args(&self.options);
        command
    }

    /// As [`Calls::command`], with the working directory.
    pub fn beside(&self) -> Command {
        let mut command = self.command();
        command.current_dir(&self.directory);
        command
    }

    /// As [`Calls::beside`], in a process group of its own: Ctrl-C is for us to act on, and an engine half-way through
    /// a start is not to be hit.
    pub fn apart(&self) -> Command {
        let mut command = self.beside();
        command.process_group(0);
        command
    }

    /// From now on nothing new is started, and calls under way are ended.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// Waits for the end of the calls that were under way at [`Calls::close`], so that none makes a container behind
    /// the back of whoever removes them all.
    pub fn wait_for_calls(&self) {
        let end = Instant::now() + 2 * CLOSING_PATIENCE;
        while self.under_way.load(Ordering::SeqCst) > 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether [`Calls::close`] was called.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// What it prints, if it succeeds within `limit`.
    pub fn call<S: AsRef<OsStr>>(&self, arguments: &[S], limit: Duration) -> Result<String, CallError> {
        self.counted(|| self.answer(arguments, limit, true, false))
    }

    /// As [`Calls::call`], and also after [`Calls::close`]: for what ends a pod.
    pub fn call_to_end<S: AsRef<OsStr>>(&self, arguments: &[S], limit: Duration) -> Result<String, CallError> {
        self.answer(arguments, limit, false, false)
    }

    /// As [`Calls::call`], with its progress on our standard error.
    pub fn call_with_progress<S: AsRef<OsStr>>(&self, arguments: &[S], limit: Duration) -> Result<String, CallError> {
        self.counted(|| self.answer(arguments, limit, true, true))
    }

    fn counted<T>(&self, call: impl FnOnce() -> T) -> T {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let answer = call();
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    fn answer<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        limit: Duration,
        stops_when_closing: bool,
        shows_progress: bool,
    ) -> Result<String, CallError> {
        if stops_when_closing && self.is_closing() {
            return Err(CallError::Closing);
        }
        let began = Instant::now();
        let mut command = self.apart();
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // An engine is not started before it can be read from, since it would have to be killed half-way.
        let (read_stdout, stdout) = read_aside(false).map_err(CallError::Broken)?;
        let (read_stderr, stderr) = read_aside(shows_progress).map_err(CallError::Broken)?;
        let mut child = command.spawn().map_err(CallError::Broken)?;
        let _ = child.stdout.take().map(|pipe| read_stdout.send(pipe));
        let _ = child.stderr.take().map(|pipe| read_stderr.send(pipe));
        // A pull has nothing to lose.
        let patience = if limit == PULL_LIMIT { Duration::ZERO } else { CLOSING_PATIENCE };
        let ended = wait(&child, limit, patience, || stops_when_closing && self.is_closing());
        if !matches!(ended, Ok(Wait::Ended)) {
            let _ = child.kill();
        }
        let status = child.wait().map_err(CallError::Broken)?;
        let stdout = taken(&stdout);
        let stderr = taken(&stderr);
        let verb = arguments.first().map(|a| a.as_ref().to_string_lossy().into_owned());
        tracing::debug!(?verb, ms = began.elapsed().as_millis(), code = status.code(), "engine");
        match ended.map_err(CallError::Broken)? {
            Wait::TookTooLong => Err(CallError::TookTooLong(limit)),
            Wait::Closing => Err(CallError::Closing),
            Wait::Ended if status.success() && stdout.len() > SAID_MAX => Err(CallError::TooMuchOutput),
            Wait::Ended if status.success() => Ok(String::from_utf8_lossy(&stdout).into_owned()),
            Wait::Ended => {
                Err(CallError::Failed { code: status.code(), text: essence(&String::from_utf8_lossy(&stderr)) })
            }
        }
    }
}

enum Wait {
    Ended,
    TookTooLong,
    Closing,
}

fn wait(child: &Child, limit: Duration, patience: Duration, closing: impl Fn() -> bool) -> io::Result<Wait> {
    let process = Process::of(child)?;
    let end = Instant::now() + limit;
    loop {
        if process.ended_within(CLOSING_TICK.min(end.saturating_duration_since(Instant::now())))? {
            return Ok(Wait::Ended);
        }
        if closing() {
            if process.ended_within(patience)? {
                return Ok(Wait::Ended);
            }
            hung_start::end_beneath(&process);
            // On TERM it gives back its locks; the caller kills what does not obey.
            process.signal(Signal::SIGTERM)?;
            process.ended_within(Duration::from_secs(2))?;
            return Ok(Wait::Closing);
        }
        if Instant::now() >= end {
            // It would go on without the client.
            hung_start::end_beneath(&process);
            return Ok(Wait::TookTooLong);
        }
    }
}

/// Reads in a thread, so that the engine never waits for us, and we never wait for whoever inherited its pipe. Returns
/// where the thread is sent the pipe, and what has come from it.
fn read_aside<R: Read + Send + 'static>(shows_progress: bool) -> io::Result<(Sender<R>, Receiver<Vec<u8>>)> {
    let (to, said) = mpsc::channel();
    let read = move |mut from: R| {
        let mut bytes = Vec::new();
        let mut first = from.by_ref().take(SAID_MAX as u64 + 1);
        let _ = if shows_progress { show(first, &mut bytes) } else { first.read_to_end(&mut bytes) };
        let _ = to.send(bytes);
        let _ = io::copy(&mut from, &mut io::sink());
    };
    Ok((threads::start_before("engine-says", read)?, said))
}

/// Shows each line as it comes, but for errors: those are for a message of ours. A registry's words are among them.
fn show(from: impl Read, all: &mut Vec<u8>) -> io::Result<usize> {
    let mut from = BufReader::new(from);
    loop {
        let begin = all.len();
        let n = from.by_ref().take(LINE_MAX).read_until(b'\n', all)?;
        let line = String::from_utf8_lossy(all.get(begin..).unwrap_or_default()).into_owned();
        if n == 0 {
            return Ok(all.len());
        }
        if !line.starts_with("Error:") {
            watcher::text::complain(&line);
        }
    }
}

fn taken(said: &Receiver<Vec<u8>>) -> Vec<u8> {
    said.recv_timeout(Duration::from_secs(1)).unwrap_or_default()
}

/// What matters of an engine's standard error: its error, which comes last; else all that is not a warning. Whatever
/// lines follow the first of an error belong to it, as a name in an image may have line ends. Of an engine that broke
/// down, not the state of its threads.
fn essence(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let error = lines.iter().position(|line| line.starts_with("Error:"));
    let is_fatal = |line: &&&str| FATAL.iter().any(|begin| line.starts_with(begin));
    let chosen: Vec<&str> = match (error.and_then(|at| lines.get(at..)), lines.iter().find(is_fatal)) {
        (Some(error), _) => error.to_vec(),
        (None, Some(why)) => vec![why],
        (None, None) => lines.into_iter().filter(|line| !line.contains("level=warning")).collect(),
    };
    chosen.join("; ").trim_start_matches("Error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_essence_of_what_podman_says() {
        let said =
            "time=\"x\" level=warning msg=\"Failed to remove cgroup\"\nTrying to pull x...\nError: no such image\n";
        assert_eq!(essence(said), "no such image");
        assert_eq!(essence("time level=warning msg\nsomething else\n"), "something else");
        assert_eq!(essence(""), "");
        let broken =
            "runtime/cgo: pthread_create failed: Resource temporarily unavailable\nSIGABRT: abort\ngoroutine 0";
        assert_eq!(essence(broken), "runtime/cgo: pthread_create failed: Resource temporarily unavailable");
        let two = "Error: open /a\nError: no space left on device\nlevel=warning/b: not a directory\n";
        assert_eq!(
            essence(two),
            "open /a; Error: no space left on device; level=warning/b: not a directory",
            "a name with line ends cuts nothing off"
        );
    }
}
