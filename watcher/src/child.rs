//! A process of our own program that does one task: waited for with a deadline, heard with a bound.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;

/// How often the process is continued.
const CONTINUE_EVERY_MS: u8 = 50;
/// Longest answer.
const SAID_MAX: usize = 64 << 10;

/// Gives `input` to the process, and reads what it writes to the pipe `from` (its standard output or error) until
/// nothing has that open, at most `within`. Returns that and how the process ended; one that takes longer or says too
/// much is killed. Meanwhile it is continued again and again: a kill routine of the same slot in another container may
/// stop it.
pub fn answer(child: Child, input: &str, from: impl Read + AsFd, within: Duration) -> io::Result<(ExitStatus, String)> {
    let give_up = Instant::now() + within;
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("not done within {within:?}"));
    answer_until(child, input, from, || (Instant::now() >= give_up).then(late))
}

/// The same until `over` says why it cannot go on; that is asked for every 50 ms.
pub fn answer_until(
    mut child: Child,
    input: &str,
    mut from: impl Read + AsFd,
    over: impl Fn() -> Option<io::Error>,
) -> io::Result<(ExitStatus, String)> {
    let pid = child.id() as i32;
    let mut said = Vec::new();
    // The input is smaller than a pipe, so this never waits.
    let sent = child.stdin.take().map_or(Ok(()), |mut to| to.write_all(input.as_bytes()));
    let talked = sent.and_then(|()| {
        loop {
            let mut wait = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
            let readable = match poll(&mut wait, CONTINUE_EVERY_MS) {
                Err(nix::errno::Errno::EINTR) => 0,
                n => n?,
            };
            if readable > 0 {
                let mut part = [0; 4096];
                match from.read(&mut part)? {
                    0 => return Ok(()),
                    n if said.len() + n > SAID_MAX => return Err(io::Error::other("it says too much")),
                    n => said.extend_from_slice(part.get(..n).unwrap_or_default()),
                }
            }
            if let Some(why) = over() {
                return Err(why);
            }
            // Not reaped yet: the number is still the child's.
            let _ = latebind_linux::sys::signal_process(pid, Signal::SIGCONT as i32);
        }
    });
    if talked.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    talked?;
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use std::process::{Command, Stdio};

    fn shell(script: &str, input: &str, within: Duration) -> io::Result<(ExitStatus, String)> {
        let mut command = Command::new("/bin/sh");
        let mut child = command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let from = child.stdout.take().unwrap();
        answer(child, input, from, within)
    }

    #[test]
    fn a_process_that_is_stopped_is_continued_and_one_that_does_not_end_is_ended() {
        let within = Duration::from_secs(60);
        let (status, said) = shell("kill -STOP $$; read -r x; echo \"$x\"; exit 3", "in\n", within).unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(3), "in\n"));
        // What it has forked keeps its output open for longer.
        let e = shell("sleep 60 & sleep 60", "", Duration::from_millis(100)).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        let e = shell("while :; do echo much; done", "", within).unwrap_err();
        assert!(e.to_string().contains("too much"), "{e}");
    }
}
