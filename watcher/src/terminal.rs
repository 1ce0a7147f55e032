//! The user's side of a command in a container: the terminal or the pipes that it is seen through.
//!
//! The other end is the payload's, which may say what it likes, or nothing. So whatever comes from there is bounded and
//! has a deadline, what is neither a terminal nor a pipe is refused, and the user's own descriptors never go there.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use latebind_contract::attach::{End, Kind};
use latebind_linux::{sys, volume};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat, makedev};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGCONT, SIGWINCH};
use signal_hook::iterator::Signals;

/// How long the payload's side may take for a connection, and then for what comes through it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Most bytes that are copied at once.
const PART: usize = 4096;
/// Most bytes that are still shown once the command is over: what a terminal or three pipes can hold.
const LAST_MAX: usize = 1 << 20;
/// How long nothing may come then from a terminal or pipe that somebody still holds open, in milliseconds.
const QUIET_FOR: u16 = 300;
/// How long showing them may take: the user may have stopped the terminal.
const LAST_WITHIN: Duration = Duration::from_secs(30);

/// The variable that has a terminal's rows.
const ROWS: &str = "LINES";
/// The variable that has its columns.
const COLUMNS: &str = "COLUMNS";

/// Whether standard input is a terminal.
pub fn is_input_terminal() -> bool {
    io::IsTerminal::is_terminal(&sys::inherited(0))
}

/// Rows and columns of the user's terminal; 0 where there is none. Docker makes a container's terminal without a size,
/// which it sets at some time after the start: until then they are those of [`variables`], where the caller gave them.
pub fn size() -> [u16; 2] {
    own_size().or_else(|| size_of(|name| std::env::var(name).ok())).unwrap_or_default()
}

/// The size of a standard stream that is a terminal and knows it.
fn own_size() -> Option<[u16; 2]> {
    [1, 0, 2].into_iter().find_map(|n| sys::terminal_size(sys::inherited(n)).ok().filter(|size| *size != [0, 0]))
}

/// The size that these variables say.
fn size_of(variable: impl Fn(&str) -> Option<String>) -> Option<[u16; 2]> {
    Some([variable(ROWS)?.parse().ok()?, variable(COLUMNS)?.parse().ok()?])
}

/// `NAME=VALUE` of the variables that tell a program the size of this process's terminal (POSIX, "Environment
/// Variables"), for an engine to set in a container that gets a terminal.
pub fn variables() -> impl Iterator<Item = String> {
    own_size().into_iter().flat_map(|[rows, columns]| [format!("{ROWS}={rows}"), format!("{COLUMNS}={columns}")])
}

/// A command's descriptors: the master of a terminal, or pipes to its input and from its output and errors.
#[derive(Debug)]
pub enum Streams {
    /// A terminal's master.
    Terminal(OwnedFd),
    /// To standard input, from standard output, from standard error.
    Pipes([OwnedFd; 3]),
}

/// Takes the connection that the core sends through `meeting`, whose other end it was given. `Ok(None)` where there is
/// none to be had. Waits `within`, or as long as the core holds the other end.
pub fn connection(meeting: &UnixStream, within: Option<Duration>) -> io::Result<Option<UnixStream>> {
    meeting.set_read_timeout(within)?;
    let received = sys::receive(meeting.as_fd(), &mut [0]);
    match received {
        Ok(received) => Ok(received.descriptors.into_iter().next().map(UnixStream::from)),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sends what a command is to be.
pub fn ask(connection: &UnixStream, request: &[u8]) -> io::Result<()> {
    connection.set_write_timeout(Some(ANSWERS_WITHIN))?;
    (&mut &*connection).write_all(request)
}

/// Takes a command's descriptors, and refuses what they cannot be.
pub fn streams(connection: &UnixStream) -> io::Result<Streams> {
    connection.set_read_timeout(Some(ANSWERS_WITHIN))?;
    let mut kind = [0];
    let received = sys::receive(connection.as_fd(), &mut kind)?;
    let wrong = || io::Error::other("what answers in the job's container is not its attendant");
    if received.bytes == 0 {
        return Err(io::Error::other("the job has ended, or its attendant has"));
    }
    if received.bytes == 1 && kind == [b'e'] && received.descriptors.is_empty() {
        return Err(failed(connection));
    }
    let is = |fd: &OwnedFd, kind: SFlag| {
        fstat(fd).is_ok_and(|stat| {
            // A terminal's master, and nothing else, is /dev/ptmx.
            volume::is(&stat, kind) && (kind != SFlag::S_IFCHR || stat.st_rdev == makedev(5, 2))
        })
    };
    let of_kind = |fds: &[OwnedFd], kind| fds.iter().all(|fd| is(fd, kind));
    let streams = match (kind, received.descriptors) {
        ([kind], mut fds) if kind == Kind::Terminal as u8 && fds.len() == 1 && of_kind(&fds, SFlag::S_IFCHR) => {
            Streams::Terminal(fds.pop().ok_or_else(wrong)?)
        }
        ([kind], fds) if kind == Kind::Pipes as u8 && of_kind(&fds, SFlag::S_IFIFO) => {
            Streams::Pipes(fds.try_into().map_err(|_| wrong())?)
        }
        _ => return Err(wrong()),
    };
    Ok(streams)
}

/// The error number behind an `e` that has been read.
fn failed(mut connection: &UnixStream) -> io::Error {
    let mut number = [0; 4];
    match connection.read_exact(&mut number) {
        Ok(()) => io::Error::from_raw_os_error(i32::from_le_bytes(number)),
        Err(e) => e,
    }
}

/// How a command has ended; `None` where its container is gone, or the job. Waits as long as the command runs: one that
/// has closed all that it shows may go on.
pub fn end(mut connection: &UnixStream) -> Option<End> {
    let mut bytes = [0; 5];
    let (kind, number) = bytes.split_at_mut(1);
    connection.set_read_timeout(None).ok()?;
    connection.read_exact(kind).ok()?;
    connection.set_read_timeout(Some(ANSWERS_WITHIN)).ok()?;
    connection.read_exact(number).ok()?;
    End::parse(bytes)
}

/// The user's terminal while what is typed goes to a command's terminal as it is.
#[derive(Clone, Default)]
pub struct Raw(Arc<Mutex<Option<Termios>>>);

impl Raw {
    /// Makes the terminal at standard input raw, where there is one and `is_wanted`.
    pub fn begin(&self, is_wanted: bool) -> io::Result<()> {
        if is_wanted && is_input_terminal() {
            *self.before() = Some(tcgetattr(sys::inherited(0))?);
            self.again()?;
        }
        Ok(())
    }

    fn before(&self) -> std::sync::MutexGuard<'_, Option<Termios>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After the user's shell had the terminal.
    fn again(&self) -> io::Result<()> {
        // Held until it is done: whoever restores the terminal meanwhile does so after that.
        let before = self.before();
        let Some(mut settings) = before.clone() else { return Ok(()) };
        cfmakeraw(&mut settings);
        Ok(tcsetattr(sys::inherited(0), SetArg::TCSANOW, &settings)?)
    }

    /// Makes the terminal what it was. Once is enough.
    pub fn restore(&self) {
        if let Some(before) = self.before().take() {
            let _ = tcsetattr(sys::inherited(0), SetArg::TCSANOW, &before);
        }
    }
}

/// The settings of the user's terminal, which are restored when this goes.
pub struct Before(Option<Termios>);

impl Before {
    /// As they are now.
    pub fn take() -> Self {
        Self(tcgetattr(sys::inherited(0)).ok())
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(sys::inherited(0), SetArg::TCSANOW, before);
        }
    }
}

/// Keeps the command's terminal as large as the user's, for as long as this process lives.
fn follow_size(master: OwnedFd, raw: Raw) -> io::Result<()> {
    let mut signals = Signals::new([SIGWINCH, SIGCONT])?;
    std::thread::Builder::new().name("size".into()).spawn(move || {
        for signal in signals.forever() {
            if signal == SIGCONT {
                let _ = raw.again();
            }
            let _ = sys::set_terminal_size(master.as_fd(), size());
        }
    })?;
    Ok(())
}

/// One direction: what was read waits until it can be written.
struct Flow {
    from: OwnedFd,
    to: OwnedFd,
    part: Vec<u8>,
    /// From the command to the user.
    is_output: bool,
}

impl Flow {
    fn new(from: OwnedFd, to: OwnedFd, is_output: bool) -> Self {
        Self { from, to, part: Vec::new(), is_output }
    }

    /// What it waits for.
    fn waits_for(&self) -> PollFd<'_> {
        if self.part.is_empty() {
            PollFd::new(self.from.as_fd(), PollFlags::POLLIN)
        } else {
            PollFd::new(self.to.as_fd(), PollFlags::POLLOUT)
        }
    }

    /// Goes one step, which was waited for. Says how many bytes were read; `None`: it is at its end.
    fn step(&mut self) -> Option<usize> {
        let mut read = 0;
        if self.part.is_empty() {
            let mut bytes = [0; PART];
            match nix::unistd::read(&self.from, &mut bytes) {
                Ok(n) if n > 0 => {
                    self.part.extend(bytes.get(..n).unwrap_or_default());
                    read = n;
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return Some(0),
                // A terminal whose last user has gone says EIO.
                _ => return None,
            }
        }
        match nix::unistd::write(&self.to, &self.part) {
            Ok(n) => drop(self.part.drain(..n)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Nobody reads it any more: what it comes from sees that.
            Err(_) => return None,
        }
        Some(read)
    }
}

/// Copies between the user and the command until `over` can be read, and then what is there; or until the command has
/// closed everything that it shows. `interactive`: whether it gets what the user types.
pub fn relay(streams: Streams, interactive: bool, raw: &Raw, over: &impl AsFd) -> io::Result<()> {
    let user = |n: i32| sys::inherited(n).try_clone_to_owned();
    let does_not_block = |fd: &OwnedFd| -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        Ok(fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)?)
    };
    let mut flows = Vec::new();
    match streams {
        Streams::Terminal(master) => {
            does_not_block(&master)?;
            follow_size(master.try_clone()?, raw.clone())?;
            // It may have changed since the command was asked for.
            sys::set_terminal_size(master.as_fd(), size())?;
            if interactive {
                flows.push(Flow::new(user(0)?, master.try_clone()?, false));
            }
            flows.push(Flow::new(master, user(1)?, true));
        }
        Streams::Pipes([input, output, errors]) => {
            [&input, &output, &errors].into_iter().try_for_each(does_not_block)?;
            if interactive {
                flows.push(Flow::new(user(0)?, input, false));
            }
            flows.push(Flow::new(output, user(1)?, true));
            flows.push(Flow::new(errors, user(2)?, true));
        }
    }
    let (mut give_up, mut left): (Option<Instant>, _) = (None, LAST_MAX);
    while flows.iter().any(|flow| flow.is_output) {
        let mut polled: Vec<PollFd<'_>> = flows.iter().map(Flow::waits_for).collect();
        if give_up.is_none() {
            polled.push(PollFd::new(over.as_fd(), PollFlags::POLLIN));
        }
        // Once it is over only what is there counts, and what could not be written yet. Its end is waited for: of a
        // terminal the kernel hands on what was written a moment later.
        let is_empty = flows.iter().filter(|flow| flow.is_output).all(|flow| flow.part.is_empty());
        let timeout = match give_up {
            None => PollTimeout::NONE,
            Some(_) if is_empty => PollTimeout::from(QUIET_FOR),
            Some(at) => PollTimeout::try_from(at.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX),
        };
        if poll(&mut polled, timeout).is_err() {
            continue;
        }
        let ready: Vec<bool> = polled.iter().map(|one| one.any().unwrap_or(false)).collect();
        let mut ready = ready.into_iter();
        let mut moved = false;
        flows.retain_mut(|flow| {
            if ready.next() != Some(true) {
                return true;
            }
            let read = flow.step();
            if flow.is_output {
                moved = true;
                left = if give_up.is_some() { left.saturating_sub(read.unwrap_or(0)) } else { left };
            }
            read.is_some()
        });
        // Behind the flows' is that of `over`.
        if ready.next() == Some(true) {
            give_up = Some(Instant::now() + LAST_WITHIN);
            flows.retain(|flow| flow.is_output);
        } else if give_up.is_some_and(|at| !moved && is_empty || left == 0 || Instant::now() >= at) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use std::fs::File;

    /// What a client makes of this, sent by the payload's side.
    fn sent(bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<Streams> {
        let (client, payload) = UnixStream::pair().unwrap();
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if !bytes.is_empty() {
            sys::send_descriptors(payload.as_fd(), bytes, &descriptors).unwrap();
        }
        drop(payload);
        streams(&client)
    }

    fn pipes() -> [OwnedFd; 3] {
        let ((a, b), (c, _)) = (nix::unistd::pipe().unwrap(), nix::unistd::pipe().unwrap());
        [a, b, c]
    }

    #[test]
    fn a_size_is_that_of_both_variables() {
        let of = |rows: Option<&str>, columns: Option<&str>| {
            size_of(|name| if name == ROWS { rows } else { columns }.map(str::to_owned))
        };
        assert_eq!(of(Some("33"), Some("77")), Some([33, 77]));
        for (rows, columns) in
            [(None, Some("77")), (Some("33"), None), (Some("x"), Some("77")), (Some("-1"), Some("7"))]
        {
            assert_eq!(of(rows, columns), None);
        }
    }

    #[test]
    fn only_a_terminal_or_three_pipes_are_taken_from_the_payloads_side() {
        let (master, slave) = sys::open_terminal([24, 80]).unwrap();
        assert_eq!(sys::terminal_size(slave.as_fd()).unwrap(), [24, 80]);
        let [one, two, three] = pipes();
        let file = || OwnedFd::from(File::open("/etc/passwd").unwrap());
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(matches!(sent(b"t", &[master.try_clone().unwrap()]), Ok(Streams::Terminal(_))));
        assert!(matches!(sent(b"p", &pipes()), Ok(Streams::Pipes(_))));
        let bad: [(&[u8], Vec<OwnedFd>); 9] = [
            (b"", vec![]),
            (b"t", vec![]),
            (b"t", vec![slave]),
            (b"t", vec![null()]),
            (b"t", vec![file()]),
            (b"p", vec![one, two]),
            (b"p", vec![three, file(), null()]),
            (b"p", vec![master]),
            (b"?", pipes().into()),
        ];
        for (bytes, descriptors) in bad {
            assert!(sent(bytes, &descriptors).is_err(), "{bytes:?} {descriptors:?}");
        }
    }

    #[test]
    fn a_command_that_was_not_made_says_why() {
        let error = sent(&End::Failed(nix::libc::EAGAIN).bytes(), &[]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EAGAIN));
    }
}
