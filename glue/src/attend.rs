//! What stage two leaves beside a job that asks for it: an attendant, which starts further commands in the job's
//! container for `watcher exec`.
//!
//! It has the job's UID, environment and rights, and nothing more. The job can end it, stop it, or speak in its place:
//! what a client of it sees is the payload's word. Glue does not listen to it, and ends it with the job.
//!
//! It always holds one connection to the watcher's socket. The watcher gives that to a client; the client's request is
//! the first that comes through it, and a process of its own then serves this client, while the attendant makes the
//! next connection.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;

use crate::ready::{Limits, Ready, prepare};
use latebind_contract::attach::{End, Kind, REQUEST_MAX, Request};
use latebind_contract::environment::{Environment, halves};
use latebind_contract::layout;
use latebind_linux::sys::{self, Fork};

/// How long to wait before a connection is tried again, in milliseconds: the watcher is being started again.
const AGAIN_AFTER: u16 = 1000;

/// What every command has from the job.
pub struct Job {
    /// Its slot.
    pub slot: u32,
    /// Its main process.
    pub main: i32,
    /// Its environment.
    pub env: Environment,
    /// Its resource limits.
    pub limits: Limits,
}

/// Connects to the watcher's socket and hands on the master of a new terminal, which is the standard streams then.
pub fn open_terminal(slot: u32, size: [u16; 2]) -> io::Result<()> {
    let (master, slave) = sys::open_terminal(size)?;
    let to = UnixStream::connect(layout::attach(slot))?;
    sys::send_descriptors(to.as_fd(), &[Kind::Terminal as u8], &[master.as_fd()])?;
    (0..3).try_for_each(|n| sys::duplicate_to(slave.as_fd(), n))
}

/// Serves clients until the job's main process has ended.
pub fn serve(job: Job) -> ! {
    let _ = attend(job);
    sys::exit_now(0)
}

fn attend(job: Job) -> io::Result<()> {
    SigSet::empty().thread_set_mask()?; // glue has blocked all signals, and the job may end this
    // Nothing of the job's is held open, and nothing keeps glue from seeing the start's end.
    sys::close_range(0, RawFd::MAX, false)?;
    let main = sys::pidfd_open(job.main)?;
    // The first is it already; what is opened from here on is none of the standard streams.
    (1..3).try_for_each(|n| sys::duplicate_to(main.as_fd(), n))?;
    sys::new_session()?;
    let path = layout::attach(job.slot);
    loop {
        let connection = UnixStream::connect(&path).ok();
        let timeout = if connection.is_some() { PollTimeout::NONE } else { PollTimeout::from(AGAIN_AFTER) };
        let asks = connection.as_ref().map_or(main.as_fd(), AsFd::as_fd);
        let [over, asked, _] = wait([main.as_fd(), asks, asks], timeout);
        if over {
            return Ok(());
        }
        while matches!(sys::reap(-1), Ok(Some(_))) {}
        // Where no process can be made, the client sees its connection end.
        if let (true, Some(connection)) = (asked, connection)
            && let Ok(Fork::Child) = sys::fork()
        {
            return serve_client(job, main.as_fd(), &connection);
        }
    }
}

/// Waits until one of these is readable or has ended; says which.
fn wait(fds: [BorrowedFd<'_>; 3], timeout: PollTimeout) -> [bool; 3] {
    let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let _ = poll(&mut polled, timeout);
    polled.map(|one| one.any().unwrap_or(false))
}

/// Runs one client's command to its end.
fn serve_client(job: Job, main: BorrowedFd<'_>, mut client: &UnixStream) -> io::Result<()> {
    let mut length = [0; 4];
    client.read_exact(&mut length)?;
    let mut body = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX).min(REQUEST_MAX)];
    client.read_exact(&mut body)?;
    let end = match Request::parse(&body) {
        Some(request) => {
            run(job, main, client.as_fd(), &request).unwrap_or_else(|e| End::Failed(e.raw_os_error().unwrap_or(0)))
        }
        None => End::Failed(nix::libc::EINVAL),
    };
    sys::send_descriptors(client.as_fd(), &end.bytes(), &[])
}

fn run(job: Job, main: BorrowedFd<'_>, client: BorrowedFd<'_>, request: &Request<'_>) -> io::Result<End> {
    let Job { mut env, limits, .. } = job;
    if !request.cwd.is_empty() {
        env.set(b"PWD", request.cwd);
    }
    for variable in &request.env {
        if let Some((name, value)) = halves(variable) {
            env.set(name, value);
        }
    }
    let ready = prepare(&request.argv, &env, limits)?;
    let (mut theirs, mut own) = (Vec::with_capacity(3), Vec::with_capacity(3));
    let kind = if let Some(size) = request.terminal {
        let (master, slave) = sys::open_terminal(size)?;
        theirs.push(master);
        own.push(slave);
        Kind::Terminal
    } else {
        for n in 0..3 {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            let (one, other) = if n == 0 { (read, write) } else { (write, read) };
            own.push(one);
            theirs.push(other);
        }
        Kind::Pipes
    };
    let child = match sys::fork()? {
        Fork::Child => sys::exit_now(become_command(&ready, &own, request)),
        Fork::Parent(pid) => pid,
    };
    drop(own);
    let ended = sys::pidfd_open(child)?;
    let fds: Vec<BorrowedFd<'_>> = theirs.iter().map(AsFd::as_fd).collect();
    let mut listens = sys::send_descriptors(client, &[kind as u8], &fds).is_ok();
    drop(theirs);
    loop {
        let [over, done, gone] = wait([main, ended.as_fd(), if listens { client } else { main }], PollTimeout::NONE);
        if over {
            sys::exit_now(0) // glue ends what is left
        }
        if done {
            let Some(reaped) = sys::reap(child)? else { continue };
            return Ok(match reaped.status.signal() {
                Some(signal) => End::Signaled(signal),
                None => End::Exited(reaped.status.code().unwrap_or(0)),
            });
        }
        if gone {
            // As where a terminal is closed. The command may go on; the job's end is its own.
            listens = false;
            let _ = sys::signal_process(child, nix::libc::SIGHUP);
        }
    }
}

/// The command's process, up to its exec. Returns the exit code for there being none, as a shell has it.
fn become_command(ready: &Ready, streams: &[OwnedFd], request: &Request<'_>) -> i32 {
    let settle = || -> io::Result<()> {
        // A terminal is all three.
        for (stream, n) in streams.iter().chain(streams).chain(streams).zip(0..3) {
            sys::duplicate_to(stream.as_fd(), n)?;
        }
        sys::close_range(3, RawFd::MAX, false)?;
        sys::new_session()?;
        if request.terminal.is_some() {
            sys::take_terminal()?;
        }
        sys::reset_signals()?;
        ready.set_limits().map_err(|(_, e)| e)?;
        if !request.cwd.is_empty() {
            nix::unistd::chdir(request.cwd)?;
        }
        Ok(())
    };
    let error = match settle() {
        Ok(()) => ready.exec().1,
        Err(e) => e,
    };
    let is_missing = error.raw_os_error() == Some(nix::libc::ENOENT);
    let name = request.argv.first().copied().unwrap_or_default();
    for part in [name, if is_missing { b": not found\n" } else { b": cannot be executed\n" }] {
        let _ = nix::unistd::write(sys::inherited(2), part);
    }
    if is_missing { 127 } else { 126 }
}
