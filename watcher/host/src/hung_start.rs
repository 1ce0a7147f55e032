//! Starts that never end. To start a container, crun looks whether its first process is there, and then opens the
//! writing end of a FIFO that this process reads (`libcrun_container_start`): where the process is killed in between,
//! by the kernel for memory or by somebody, crun waits for a reader for ever. Podman waits for crun, and keeps the
//! container's lock, for which each list of containers waits.

use crate::pidfd::Process;
use nix::sys::signal::Signal;
use std::fs;
use std::iter;
use std::time::Duration;
use watcher::pids::pids;

/// The runtime's subcommand.
const START: &str = "start";
/// Most generations between the engine's client and the runtime: there may be scripts of the site's.
const GENERATIONS: usize = 8;

/// Ends each process beneath the engine's client that is to start a container, which then is a failure of that start to
/// the client. Docker's daemon has the runtime beneath itself: with docker nothing is ended.
pub fn end_beneath(client: &Process) {
    let is_start = |pid| is_beneath(pid, client.pid()) && has_word(pid, START);
    for pid in pids().filter(|pid| is_start(*pid)) {
        // Held, and looked at again: the numbers may have become those of others meanwhile.
        if let Ok(runtime) = Process::open(pid)
            && is_start(pid)
            && matches!(client.ended_within(Duration::ZERO), Ok(false))
        {
            tracing::warn!(pid, "the runtime hangs in the start of a container, and is ended");
            let _ = runtime.signal(Signal::SIGKILL);
        }
    }
}

fn is_beneath(pid: i32, ancestor: i32) -> bool {
    iter::successors(parent(pid), |pid| parent(*pid)).take(GENERATIONS).any(|pid| pid == ancestor)
}

/// Not by `/proc/<pid>/task/<tid>/children`, which some kernels do not have.
fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

fn has_word(pid: i32, word: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|b| *b == 0).any(|of_line| of_line == word.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::Instant;

    #[test]
    fn of_what_is_beneath_the_client_a_start_alone_is_ended() {
        let script = "exec 3<&0; sh -c 'read x <&3' attach & (sh -c 'read x <&3' start; exit 7) & wait $!";
        // They read until this goes.
        let mut client = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::of(&client).unwrap();
        let with = |word| pids().find(|pid| is_beneath(*pid, process.pid()) && has_word(*pid, word));
        let until = Instant::now() + Duration::from_secs(60);
        while with("attach").is_none() || with(START).is_none() {
            assert!(Instant::now() < until, "they do not start");
            thread::sleep(Duration::from_millis(2));
        }
        let other = Process::open(with("attach").unwrap()).unwrap();
        end_beneath(&process);
        assert!(process.ended_within(Duration::from_secs(60)).unwrap());
        assert!(!other.ended_within(Duration::ZERO).unwrap());
        assert_eq!(client.wait().unwrap().code(), Some(7));
    }
}
