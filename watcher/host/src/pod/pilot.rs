//! The pilot of a pod: started, followed, and started again where it failed.

use super::{Life, SIGNAL_TICK, STOPPED};
use crate::calls::CallError;
use crate::container::Role;
use crate::failure::{Context, Failure, failure};
use crate::hung_start;
use crate::main_process::MainProcess;
use crate::pidfd::Process;
use crate::threads;
use nix::sys::signal::Signal;
use std::fs;
use std::io::{self, IsTerminal};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Exit code for a pilot that the engine could not start, as `docker run` has it.
const NOT_STARTED: u8 = 125;
/// First wait before a pilot that failed is started again; doubles each time.
const RESTART_DELAY: Duration = Duration::from_millis(200);
/// A pilot that lived this long before it failed has its restarts back.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// How often a pilot that is being started is looked for: one that takes all of its memory at once lives for some 30
/// ms.
const START_TICK: Duration = Duration::from_millis(2);
/// How long after the pilot's end its start may go on.
const START_OVERDUE: Duration = Duration::from_secs(10);

impl Life {
    /// Runs the pilot until it succeeds, is told to stop, or has failed too often.
    pub(super) fn pilot(&self) -> Result<u8, Failure> {
        let mut tries = 0;
        loop {
            let began = Instant::now();
            let code = self.pilot_life()?;
            let lived = began.elapsed();
            if lived >= GOOD_LIFE {
                tries = 0;
            }
            if code == 0 || self.stopping.load(Ordering::SeqCst) || tries >= self.restarts {
                return Ok(code);
            }
            let delay = RESTART_DELAY.saturating_mul(1 << tries.min(10));
            tries += 1;
            tracing::warn!(
                code,
                ?lived,
                ?delay,
                "the pilot failed and is started again, try {tries} of {}",
                self.restarts
            );
            let until = Instant::now() + delay;
            while Instant::now() < until {
                if self.stopping.load(Ordering::SeqCst) {
                    return Ok(code);
                }
                thread::sleep(SIGNAL_TICK);
            }
        }
    }

    fn pilot_life(&self) -> Result<u8, Failure> {
        if self.engine().calls().is_closing() {
            return Err(failure("the pod is being ended"));
        }
        let name = self.pilot_spec().name();
        let pidfile = self.shape().place.pidfile(&Role::Pilot.to_string());
        match fs::remove_file(&pidfile) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(failure(format!("cannot remove {}: {e}", pidfile.display())));
            }
            _ => {}
        }
        let mut command = self.engine().attach(&name, self.pilot.interactive, self.pilot.terminal);
        // It has a process group of its own, from which reading a terminal is not allowed: so we do.
        let relay = self.pilot.interactive && !self.pilot.terminal && io::stdin().is_terminal();
        command.stdin(match (self.pilot.interactive, relay) {
            (false, _) => Stdio::null(),
            (true, true) => Stdio::piped(),
            (true, false) => Stdio::inherit(),
        });
        // The engine's client makes it raw, and may be ended before it has made it what it was.
        let _before = self.pilot.terminal.then(watcher::terminal::Before::take);
        let status = match self.run_engine(command, relay) {
            // Without a process or a thread for it now: another job may have used them up for a while.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                tracing::warn!(error = %e, "the pilot cannot be started");
                return Ok(NOT_STARTED);
            }
            status => status.context(|| "cannot run the engine".into())?,
        };
        // Whoever stops a service by a signal to all of its processes ends the engine's client, not the pilot.
        let left_early = self.stopping.load(Ordering::SeqCst) || self.pilot_process().is_some();
        match status.code() {
            Some(0) => Ok(0),
            // The engine's own failures have these codes too.
            Some(125..=127) | None => self.pilot_code(&name),
            Some(_) if left_early => self.pilot_code(&name),
            Some(code) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        }
    }

    /// Runs the engine's client to its end; where `relays`, with what comes on our standard input.
    fn run_engine(&self, mut command: Command, relays: bool) -> io::Result<ExitStatus> {
        // It stays behind in its read when the pilot has ended, and ends with this process.
        let relay = |mut to: ChildStdin| drop(io::copy(&mut io::stdin(), &mut to));
        let client = &OnceLock::new();
        thread::scope(|scope| {
            let (ended, end) = mpsc::channel::<()>();
            threads::start_scoped(scope, "pilot", move || self.follow(client, &end))?;
            let relay = relays.then(|| threads::start_before("stdin", relay)).transpose()?;
            // Last of all, since it cannot be taken back.
            let mut child = command.spawn()?;
            let _ = Process::of(&child).map(|process| client.set(process));
            let _ = relay.zip(child.stdin.take()).map(|(relay, to)| relay.send(to));
            let status = child.wait();
            drop(ended);
            self.pass_on_hang_up();
            status
        })
    }

    /// The engine's client has ended, maybe since nobody reads what it passes on. The engine goes on to read from the
    /// pilot, so one command's watcher is told.
    fn pass_on_hang_up(&self) {
        if self.pilot.arguments.first().is_some_and(|verb| verb == "run")
            && watcher::text::is_output_closed()
            && let Some(main) = self.pilot_process()
        {
            let _ = main.signal(Signal::SIGIO);
        }
    }

    /// Follows the pilot from its start to its end, and ends a start that goes on after that. `end` is closed when the
    /// engine's client has ended.
    fn follow(&self, client: &OnceLock<Process>, end: &Receiver<()>) {
        let pidfile = self.shape().place.pidfile(&Role::Pilot.to_string());
        let mut gone_since = None;
        loop {
            if let Some(main) = self.pilot_process() {
                self.look_for_oom(&main);
                break;
            }
            if end.recv_timeout(START_TICK) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            // It may have ended before it was seen.
            if pidfile.exists() && gone_since.get_or_insert_with(Instant::now).elapsed() >= START_OVERDUE {
                break;
            }
        }
        if end.recv_timeout(START_OVERDUE) == Err(RecvTimeoutError::Timeout) {
            client.get().map(hung_start::end_beneath);
        }
    }

    /// Waits for the pilot's end, and says where the kernel ended anything of it for memory: its exit code would not
    /// say so, and the engine removes the control group soon after.
    fn look_for_oom(&self, main: &MainProcess) {
        while matches!(main.ended_within(GOOD_LIFE), Ok(false)) {}
        if main.oom_killed() == Some(true) {
            let size = self.shape().pilot_limits(&self.pilot).memory;
            tracing::error!(
                memory = size.map(tracing::field::display),
                "the kernel ended processes of the pilot container for memory; give it more with --pilot-memory"
            );
        }
    }

    /// The pilot's exit code where podman's is not known to be that.
    fn pilot_code(&self, name: &str) -> Result<u8, Failure> {
        loop {
            let state = match self.engine().state(name) {
                Ok(Some(state)) => state,
                Ok(None) => {
                    tracing::warn!("somebody has removed the pilot container: another one is made");
                    self.create_pilot_again()?;
                    return Ok(NOT_STARTED);
                }
                Err(CallError::Closing) => return Err(failure("the pod is being ended")),
                Err(e) => return Err(failure(format!("cannot ask for the pilot's exit code: {e}"))),
            };
            match state.status.as_str() {
                "exited" | "stopped" => return Ok(u8::try_from(state.exit_code).unwrap_or(u8::MAX)),
                "running" => {
                    // Its output is lost, but it is not over.
                    if let Some(main) = self.pilot_process() {
                        main.ended_within(Duration::from_secs(3600)).context(|| "cannot wait for the pilot".into())?;
                    }
                    thread::sleep(SIGNAL_TICK);
                }
                _ if self.stopping.load(Ordering::SeqCst) => return Ok(STOPPED),
                other => {
                    tracing::warn!("the pilot container could not be started and is \"{other}\": another one is made");
                    self.create_pilot_again()?;
                    return Ok(NOT_STARTED);
                }
            }
        }
    }
}
