//! `watcher run`: one job from the command line, with the conventions of docker-run(1).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use clap::Args;
use latebind_contract::attach::{self, End};
use signal_hook::consts::{SIGHUP, SIGINT, SIGIO, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::bind::Reason;
use crate::job::{Phase, Report, Request, class};
use crate::serve::client::Client;
use crate::serve::protocol::find;
use crate::terminal;

/// Signals that are passed on to the job.
const PASSED_ON: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, NOBODY_READS];

/// `latebind-host run` says with this that nobody reads its output any more: an engine in between goes on to read ours.
/// The job gets SIGPIPE. That signal itself could come from any of this process's own descriptors.
const NOBODY_READS: i32 = SIGIO;

/// How long a job's attendant may take to be there.
const ATTENDED_WITHIN: Duration = Duration::from_secs(10);
/// How long a terminal's last output may take once its job is over: more than [`terminal::relay`] does.
const SHOWN_WITHIN: Duration = Duration::from_secs(40);

/// What of the user's standard streams a command has.
#[derive(Args, Clone, Copy, Debug)]
pub struct Streams {
    /// Forward standard input.
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal.
    #[arg(short = 't', long = "tty")]
    pub terminal: bool,
}

impl Streams {
    /// Refuses what docker refuses, with its message.
    pub fn check(self) -> io::Result<()> {
        match self {
            Self { interactive: true, terminal: true } if !terminal::is_input_terminal() => {
                Err(io::Error::other("the input device is not a TTY"))
            }
            _ => Ok(()),
        }
    }

    /// The options that ask for them, of these programs and of engines.
    pub fn options(self) -> impl Iterator<Item = &'static str> {
        self.interactive.then_some("--interactive").into_iter().chain(self.terminal.then_some("--tty"))
    }

    /// The variables for an engine's container that say how large its terminal is, where it has one.
    pub fn variables(self) -> impl Iterator<Item = String> {
        self.terminal.then(terminal::variables).into_iter().flatten()
    }

    /// The terminal's size, where there is one.
    pub fn size(self) -> Option<[u16; 2]> {
        self.terminal.then(terminal::size)
    }
}

/// Runs `request` at the core behind `socket`, with this process's standard streams. Returns the report and the exit
/// code for it.
pub fn run(socket: &Path, request: &Request, streams: Streams, verbose: bool) -> io::Result<(Report, i32)> {
    let client = Client::connect(socket)?;
    let mut signals = Signals::new(PASSED_ON)?;
    let passer = client.try_clone()?;
    let job = request.id.clone();
    let last = std::sync::Arc::new(std::sync::atomic::AtomicI32::new(0));
    let noted = last.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever().map(|signal| if signal == NOBODY_READS { SIGPIPE } else { signal }) {
            noted.store(signal, std::sync::atomic::Ordering::Relaxed);
            let _ = passer.signal(&job, signal);
        }
    })?;
    let mut seen = None;
    let fds: Vec<OwnedFd> = if streams.terminal {
        let (meeting, theirs) = UnixStream::pair()?;
        seen = Some(Seen::start(meeting, streams.interactive)?);
        vec![theirs.into()]
    } else {
        [streams.interactive.then_some(0), Some(1), Some(2)]
            .into_iter()
            .flatten()
            .map(|n| latebind_linux::sys::inherited(n).try_clone_to_owned())
            .collect::<io::Result<_>>()?
    };
    let report = submit(&client, request, fds, verbose);
    if let Some(seen) = seen {
        seen.finish();
    }
    let report = report?;
    client.forget(&report.job)?;
    let code = match last.load(std::sync::atomic::Ordering::Relaxed) {
        // Its program never ran.
        signal if signal != 0 && report.reason == Reason::Cancelled && report.exit_code.or(report.signal).is_none() => {
            128 + signal
        }
        _ => class::exit_code(&report),
    };
    Ok((report, code))
}

fn submit(client: &Client, request: &Request, fds: Vec<OwnedFd>, verbose: bool) -> io::Result<Report> {
    let borrowed: Vec<&dyn AsFd> = fds.iter().map(|fd| fd as &dyn AsFd).collect();
    client.run(request, &borrowed, |phase| {
        if verbose && phase != Phase::Done {
            tracing::info!(job = %request.id, ?phase, "goes on");
        }
    })
}

/// A job's terminal, as the user sees it.
struct Seen {
    raw: terminal::Raw,
    /// Closed once the job is over.
    over: OwnedFd,
    ended: Receiver<()>,
}

impl Seen {
    /// Waits for the terminal in the background: until it is there, Ctrl-C is a signal of the user's own terminal.
    fn start(meeting: UnixStream, interactive: bool) -> io::Result<Self> {
        let raw = terminal::Raw::default();
        let (is_over, over) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (ends, ended) = channel();
        let own = raw.clone();
        std::thread::Builder::new().name("terminal".into()).spawn(move || {
            let shown = || -> io::Result<()> {
                let Some(connection) = terminal::connection(&meeting, None)? else { return Ok(()) };
                let streams = terminal::streams(&connection)?;
                own.begin(interactive)?;
                terminal::relay(streams, interactive, &own, &is_over)
            };
            if let Err(e) = shown() {
                own.restore();
                crate::text::complain(&format!("watcher: the job's terminal: {e}"));
            }
            let _ = ends.send(());
        })?;
        Ok(Self { raw, over, ended })
    }

    /// Shows what is left, and gives the user's terminal back.
    fn finish(self) {
        drop(self.over);
        let _ = self.ended.recv_timeout(SHOWN_WITHIN);
        self.raw.restore();
    }
}

/// What `watcher exec` runs beside a job.
#[derive(Debug)]
pub struct Command<'a> {
    /// The job, as a person names it; `.`: the only one that runs.
    pub job: &'a str,
    /// Program and arguments.
    pub argv: Vec<&'a [u8]>,
    /// `NAME=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// Where it starts; the job's own directory where it is empty.
    pub cwd: &'a [u8],
}

/// Starts a command in the container of a running job, with this process's standard streams. Returns its exit code.
pub fn exec(socket: &Path, command: &Command<'_>, streams: Streams) -> io::Result<i32> {
    streams.check()?;
    let request = attach::Request {
        terminal: streams.size(),
        cwd: command.cwd,
        env: command.env.iter().map(Vec::as_slice).collect(),
        argv: command.argv.clone(),
    };
    let request = request.bytes().ok_or_else(|| {
        io::Error::other(format!("the command is empty, has a NUL, or more than {} bytes", attach::REQUEST_MAX))
    })?;
    let client = Client::connect(socket)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}: does a watcher run here?", socket.display())))?;
    let job = find(&client.jobs()?, command.job).map_err(io::Error::other)?;
    let (meeting, theirs) = UnixStream::pair()?;
    client.exec(&job, &theirs)?;
    drop(theirs);
    let connection = terminal::connection(&meeting, Some(ATTENDED_WITHIN))?.ok_or_else(|| {
        io::Error::other(format!("the attendant of {job} does not answer: has the job ended, or ended it?"))
    })?;
    terminal::ask(&connection, &request)?;
    let shown = terminal::streams(&connection)?;
    let raw = terminal::Raw::default();
    // The command hears of it as where a terminal is closed.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let own = raw.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            own.restore();
            std::process::exit(128 + signal);
        }
    })?;
    raw.begin(streams.interactive && streams.terminal)?;
    let relayed = terminal::relay(shown, streams.interactive, &raw, &connection);
    raw.restore();
    relayed?;
    match terminal::end(&connection) {
        Some(End::Exited(code)) => Ok(code),
        Some(End::Signaled(signal)) => Ok(128 + signal),
        Some(End::Failed(errno)) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other(format!("{job} has ended, and with it this command"))),
    }
}
