//! Calls of podman, on a storage and with a configuration of this program's own.

use crate::config;
use crate::failure::{Context, Failure, failure};
use crate::guard;
use crate::pidfd::Process;
use crate::place::Place;
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
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

/// Longest line of it that is shown in one piece, in bytes.
const LINE_MAX: u64 = 16 << 10;

/// Variables that would send podman to other storage, other settings or another host.
const FOREIGN: [&str; 9] = [
    "CONTAINERS_CONF",
    "CONTAINERS_CONF_OVERRIDE",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINER_CONNECTION",
    "CONTAINER_HOST",
    "NOTIFY_SOCKET",
    "STORAGE_DRIVER",
    "STORAGE_OPTS",
    "BUILDAH_ISOLATION",
];

/// Podman, on our storage.
#[derive(Debug)]
pub struct Engine {
    podman: PathBuf,
    place: Place,
    /// What podman takes for the runtime of payload containers.
    guard: PathBuf,
    closing: AtomicBool,
    /// Calls under way that [`Engine::close`] ends.
    under_way: AtomicUsize,
}

/// Why a call of podman did not succeed.
#[derive(Debug)]
pub enum CallError {
    /// Podman said no.
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
            Self::Failed { code: Some(code), .. } => write!(f, "podman ended with code {code} and said nothing"),
            Self::Failed { code: None, text } => write!(f, "podman was killed by a signal; it had said: {text}"),
            Self::TooMuchOutput => write!(f, "podman's answer is larger than {SAID_MAX} bytes"),
            Self::TookTooLong(limit) => write!(f, "podman did not answer within {} s and was ended", limit.as_secs()),
            Self::Closing => f.write_str("the pod is being ended"),
            Self::Broken(e) => write!(f, "podman cannot be run: {e}"),
        }
    }
}

/// How the root file systems of containers are mounted; `images/podman` has the same.
const STORAGE: &str = "--storage-opt=overlay.mountopt=nodev";

impl Engine {
    /// Finds podman and writes its configuration.
    pub fn open(place: Place) -> Result<Self, Failure> {
        let podman = config::in_path("podman")
            .ok_or_else(|| failure("podman is not installed, and latebind-host runs on it: apt-get install podman"))?;
        if config::in_path("conmon").is_none() && !PathBuf::from("/usr/libexec/podman/conmon").exists() {
            return Err(failure("conmon, which podman needs, is not installed: apt-get install conmon"));
        }
        let runtime = config::write(&place)?;
        let guard = guard::install(&place, runtime)
            .context(|| format!("cannot put the runtime's guard at {}", place.guard(runtime).display()))?;
        Ok(Self { podman, place, guard, closing: AtomicBool::new(false), under_way: AtomicUsize::new(0) })
    }

    /// The guard, as podman is to call it.
    pub fn guard(&self) -> &Path {
        &self.guard
    }

    /// Where everything lies.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Podman with our storage and configuration; the caller adds the subcommand.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.podman);
        for name in FOREIGN {
            command.env_remove(name);
        }
        command.env("CONTAINERS_CONF", self.place.engine_conf());
        // What podman says is read by this program.
        command.env("LC_ALL", "C.UTF-8");
        command.arg("--root").arg(self.place.root()).arg("--runroot").arg(self.place.runroot());
        // Podman itself opens files of an image as the host's root, such as its /etc/passwd: never a device.
        command.arg(STORAGE);
        // Else some distributions mount the host's subscriptions in every container.
        command.arg("--default-mounts-file=/dev/null");
        command
    }

    /// From now on nothing new is started, and calls under way are ended.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// Waits for the end of the calls that were under way at [`Engine::close`], so that none makes a container behind
    /// the back of whoever removes them all.
    pub fn wait_for_calls(&self) {
        let end = Instant::now() + 2 * CLOSING_PATIENCE;
        while self.under_way.load(Ordering::SeqCst) > 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether [`Engine::close`] was called.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// What podman prints, if it succeeds within `limit`.
    pub fn call<S: AsRef<OsStr>>(&self, arguments: &[S], limit: Duration) -> Result<String, CallError> {
        self.counted(|| self.answer(arguments, limit, true, false))
    }

    /// As [`Engine::call`], and also after [`Engine::close`]: for what ends a pod.
    pub fn call_to_end<S: AsRef<OsStr>>(&self, arguments: &[S], limit: Duration) -> Result<String, CallError> {
        self.answer(arguments, limit, false, false)
    }

    /// As [`Engine::call`], with podman's progress on our standard error.
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
        let mut command = self.command();
        // A process group of its own: Ctrl-C is for us to act on, and podman half-way through a start is not to be hit.
        // Some versions of its monitor leave a file in the working directory.
        command.current_dir(self.place.run());
        command.args(arguments).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(CallError::Broken)?;
        let stdout = read_aside(child.stdout.take(), false);
        let stderr = read_aside(child.stderr.take(), shows_progress);
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
        tracing::debug!(?verb, ms = began.elapsed().as_millis(), code = status.code(), "podman");
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

    /// Kills a container's processes, where there is such a container.
    pub fn kill(&self, name: &str) {
        if let Err(e) = self.call_to_end(&["kill", "--signal", "KILL", name], CALL_LIMIT) {
            tracing::debug!(container = name, "not killed: {e}");
        }
    }

    /// Removes the pod's containers, running or not: the `base`, with those that live in its namespaces, then whatever
    /// else has the pod's label. Podman 5 may say that it removed a container and leave it: so they are listed.
    pub fn remove_pod(&self, base: &str, label: &str) -> Result<(), Failure> {
        let filter = format!("label={label}");
        let list = ["ps", "--all", "--external=false", "--filter", filter.as_str(), "--format={{.Names}}"];
        let mut names = base.to_owned();
        for _ in 0..4 {
            let remove = ["rm", "--force", "--time", "0", "--ignore", "--depend"].into_iter().chain(names.lines());
            // One of them may have been removed by itself meanwhile.
            let removed = self.call_to_end(&remove.collect::<Vec<_>>(), CALL_LIMIT);
            let left = self.call_to_end(&list, CALL_LIMIT).context(|| "cannot list containers".into())?;
            if left.trim().is_empty() {
                return Ok(());
            }
            tracing::debug!(left, ?removed, "containers are left");
            // Never together with those that depend on it.
            names = if left.lines().any(|name| name == base) { base.to_owned() } else { left };
        }
        Err(failure(format!("cannot remove the containers labelled {label}: {} are left", names.replace('\n', ", "))))
    }
}

enum Wait {
    Ended,
    TookTooLong,
    Closing,
}

fn wait(child: &Child, limit: Duration, patience: Duration, closing: impl Fn() -> bool) -> io::Result<Wait> {
    let process = Process::open(i32::try_from(child.id()).map_err(io::Error::other)?)?;
    let end = Instant::now() + limit;
    loop {
        if process.ended_within(CLOSING_TICK.min(end.saturating_duration_since(Instant::now())))? {
            return Ok(Wait::Ended);
        }
        if closing() {
            if process.ended_within(patience)? {
                return Ok(Wait::Ended);
            }
            // On TERM podman gives back its locks; the caller kills what does not obey.
            process.signal(Signal::SIGTERM)?;
            process.ended_within(Duration::from_secs(2))?;
            return Ok(Wait::Closing);
        }
        if Instant::now() >= end {
            return Ok(Wait::TookTooLong);
        }
    }
}

/// Reads in a thread, so that podman never waits for us, and we never wait for whoever inherited its pipe.
fn read_aside(from: Option<impl Read + Send + 'static>, shows_progress: bool) -> Receiver<Vec<u8>> {
    let (to, said) = mpsc::channel();
    if let Some(mut from) = from {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut first = from.by_ref().take(SAID_MAX as u64 + 1);
            let _ = if shows_progress { show(first, &mut bytes) } else { first.read_to_end(&mut bytes) };
            let _ = to.send(bytes);
            let _ = io::copy(&mut from, &mut io::sink());
        });
    }
    said
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

/// A subcommand before its options.
pub fn with_verb(verb: &[&str], options: Vec<String>) -> Vec<String> {
    verb.iter().map(|v| (*v).to_owned()).chain(options).collect()
}

/// What matters of podman's standard error: its error, which comes last; else all that is not a warning. Whatever lines
/// follow the first of an error belong to it, as a name in an image may have line ends.
fn essence(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let error = lines.iter().position(|line| line.starts_with("Error:"));
    let chosen: Vec<&str> = match error.and_then(|at| lines.get(at..)) {
        Some(error) => error.to_vec(),
        None => lines.into_iter().filter(|line| !line.contains("level=warning")).collect(),
    };
    chosen.join("; ").trim_start_matches("Error: ").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use std::fs;

    /// Podman 5.4 with crun, now and then: `rm` names the pause container as removed, succeeds, and leaves it. This one
    /// does so as often as `faults` says.
    const FORGETFUL: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit
while [ "$1" != ps ] && [ "$1" != rm ]; do shift; done
[ "$1" = rm ] || { ls containers; exit; }
echo "$@" >>calls
for name; do
    case $name in
    p-pause)
        rm -f containers/p-pilot containers/p-slot-*
        if [ -s faults ]; then sed -i 1d faults; else rm -f containers/p-pause; fi ;;
    p-*) rm -f "containers/$name" ;;
    esac
done
"#;

    #[test]
    fn what_podman_says_to_have_removed_is_listed_and_removed_again() {
        for (faults, removed) in [("", true), ("x\n", true), ("x\nx\nx\n", true), ("x\nx\nx\nx\n", false)] {
            let dir = tempfile::tempdir().unwrap();
            let podman = dir.path().join("podman");
            // By another process: a file that a thread of this one has open for writing cannot be executed.
            let write = ["-c", "printf %s \"$1\" >\"$0\"; chmod 755 \"$0\"", podman.to_str().unwrap(), FORGETFUL];
            assert!(Command::new("sh").args(write).status().unwrap().success());
            fs::write(dir.path().join("faults"), faults).unwrap();
            fs::create_dir(dir.path().join("containers")).unwrap();
            for name in ["p-pause", "p-pilot", "p-slot-0-1"] {
                fs::write(dir.path().join("containers").join(name), "").unwrap();
            }
            let place = Place::open(&dir.path().join("state")).unwrap();
            let (closing, under_way) = (AtomicBool::new(false), AtomicUsize::new(0));
            let engine = Engine { podman, place, guard: PathBuf::new(), closing, under_way };
            let done = engine.remove_pod("p-pause", "latebind.pod=p");
            let left = fs::read_dir(dir.path().join("containers")).unwrap().count();
            let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
            if removed {
                assert_eq!((done.is_ok(), left), (true, 0), "{faults:?}: {done:?}\n{calls}");
            } else {
                assert!(done.is_err_and(|e| e.to_string().contains("p-pause")), "{calls}");
            }
            let with_others = calls.lines().filter(|call| call.contains("p-pause") && call.contains("p-pilot"));
            assert_eq!(with_others.count(), 0, "the pause container is removed by itself: {calls}");
        }
    }

    #[test]
    fn the_essence_of_what_podman_says() {
        let said =
            "time=\"x\" level=warning msg=\"Failed to remove cgroup\"\nTrying to pull x...\nError: no such image\n";
        assert_eq!(essence(said), "no such image");
        assert_eq!(essence("time level=warning msg\nsomething else\n"), "something else");
        assert_eq!(essence(""), "");
        let two = "Error: open /a\nError: no space left on device\nlevel=warning/b: not a directory\n";
        assert_eq!(
            essence(two),
            "open /a; Error: no space left on device; level=warning/b: not a directory",
            "a name with line ends cuts nothing off"
        );
    }
}
