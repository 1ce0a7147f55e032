//! The link between the program that a user has started and the one that runs in the user's namespace.
//!
//! Between the two is podman, which ends at the first signal and leaves what it has started alone. So the program
//! outside stays: it passes signals on by a socket, one byte for each, and ends with the code that comes back. Whoever
//! waits for it has waited for the pod's end. Where it is lost, the pod is ended.

use crate::failure::{Context, Failure};
use crate::threads;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Pid, getpgrp, getpid, getuid, tcgetpgrp};
use signal_hook::iterator::Signals;
use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Sender};

/// Names the socket, in the abstract namespace, for the program inside.
const NAME: &str = "LATEBIND_LINK";
/// Signals that are passed on.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// Those that a terminal sends to all processes of its foreground group, the one inside among them.
const OF_TERMINALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

enum Event {
    Signal(Signal),
    /// The program inside is there.
    Connected(UnixStream),
    /// It has ended with this code, or without one.
    Ended(Option<u8>),
    /// It never came.
    Absent,
    /// What was started has ended.
    Child(io::Result<ExitStatus>),
}

/// Starts `command`, which is to start this program in the user's namespace, and returns the code of that one. `token`
/// makes the socket's name hard to guess; whoever connects has to be of the same user all the same.
pub fn run(mut command: Command, token: &str) -> Result<u8, Failure> {
    let name = format!("latebind-host-{}-{token}", getpid());
    let address = SocketAddr::from_abstract_name(&name).context(|| "cannot name a socket".into())?;
    let listener = UnixListener::bind_addr(&address).context(|| "cannot make a socket".into())?;
    let mut signals = Signals::new(PASSED_ON.map(|s| s as i32)).context(|| "cannot handle signals".into())?;
    let (to, events) = mpsc::channel();
    let [of_link, of_child] = [to.clone(), to.clone()];
    let said = || "cannot follow podman unshare".to_owned();
    threads::start("link", move || attend(&listener, &of_link)).context(said)?;
    threads::start("signals", move || {
        for number in signals.forever() {
            let known = PASSED_ON.into_iter().find(|signal| *signal as i32 == number);
            let _ = known.map(|signal| to.send(Event::Signal(signal)));
        }
    })
    .context(said)?;
    let wait = threads::start_before("child", move |mut child: Child| {
        let _ = of_child.send(Event::Child(child.wait()));
    });
    let wait = wait.context(said)?;
    // Last of all: podman passes no signal on to what it has started, which would be left alone.
    let child = command.env(NAME, &name).spawn().context(|| "cannot run podman unshare".into())?;
    let _ = wait.send(child);
    let (mut inside, mut waiting, mut status, mut is_over) = (None, Vec::new(), None, false);
    loop {
        let event = events.recv().context(|| "the threads of the link have ended".into())?;
        match event {
            Event::Signal(signal) if OF_TERMINALS.contains(&signal) && is_in_foreground() => {}
            Event::Signal(signal) => waiting.push(signal as i32 as u8),
            Event::Connected(stream) => inside = Some(stream),
            Event::Ended(Some(code)) => return Ok(code),
            Event::Ended(None) | Event::Absent => is_over = true,
            Event::Child(ended) => {
                status = Some(ended.context(|| "cannot wait for podman unshare".into())?);
                // Behind whoever has connected before: it says that nobody will any more.
                drop(UnixStream::connect_addr(&address));
            }
        }
        if let Some(stream) = &mut inside {
            // One that has ended needs no signal.
            let _ = stream.write_all(&std::mem::take(&mut waiting));
        }
        if let Some(status) = status.filter(|_| is_over) {
            return Ok(code_of(status));
        }
    }
}

/// Waits for the program inside, then for its end.
fn attend(listener: &UnixListener, to: &Sender<Event>) {
    for stream in listener.incoming().flatten() {
        match getsockopt(&stream, PeerCredentials) {
            Ok(peer) if peer.pid() == getpid().as_raw() => break,
            Ok(peer) if peer.uid() == getuid().as_raw() => {}
            _ => continue,
        }
        let Ok(mut from) = stream.try_clone() else { break };
        let _ = to.send(Event::Connected(stream));
        let mut code = [0];
        let _ = to.send(Event::Ended(from.read_exact(&mut code).ok().map(|()| code[0])));
        return;
    }
    let _ = to.send(Event::Absent);
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Whether the terminal sends its signals to the process group of this program.
fn is_in_foreground() -> bool {
    File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(&terminal) == Ok(getpgrp()))
}

/// The end of the link in the user's namespace.
#[derive(Debug)]
pub struct Inside(UnixStream);

impl Inside {
    /// Connects, where this program was started by [`run`], and sends to this process what comes.
    pub fn connect() -> Result<Option<Self>, Failure> {
        let Some((stream, mut from)) = connected() else { return Ok(None) };
        threads::start("link", move || {
            let mut number = [0];
            while from.read_exact(&mut number).is_ok() {
                send(i32::from(number[0]));
            }
            send(Signal::SIGTERM as i32);
        })
        .context(|| "cannot take signals from the program outside".into())?;
        Ok(Some(Self(stream)))
    }

    /// Says with which code this program ends.
    pub fn report(mut self, code: u8) {
        let _ = self.0.write_all(&[code]);
    }
}

/// The socket, twice.
fn connected() -> Option<(UnixStream, UnixStream)> {
    let address = SocketAddr::from_abstract_name(env::var_os(NAME)?.as_encoded_bytes()).ok()?;
    let stream = UnixStream::connect_addr(&address).ok()?;
    let from = stream.try_clone().ok()?;
    Some((stream, from))
}

fn send(number: i32) {
    if let Some(signal) = PASSED_ON.into_iter().find(|signal| *signal as i32 == number) {
        let _ = kill(Pid::this(), signal);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn the_code_is_what_was_started_where_nobody_connects() {
        let run = |script: &str, token| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            run(command, token).unwrap()
        };
        assert_eq!(run("exit 7", "a"), 7);
        assert_eq!(run("kill -KILL $$", "b"), 137);
    }
}
