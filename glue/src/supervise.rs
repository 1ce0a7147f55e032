//! A job's supervisor: start, reap, time out, stop, end what is left, sign the record.
//!
//! It is a process of its own for each job, a fork of glue that has given root up ([`crate::privilege_drop`]). It may
//! signal the payload, and has the key; the payload can neither signal nor trace it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::libc::{ECANCELED, ETIMEDOUT};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use zeroize::Zeroize;

use crate::claim::Claimed;
use crate::events::Event;
use crate::log;
use crate::prepare::{About, Identity, Prepared, Slot, seconds};
use crate::start::{self, Started, Starting, failed, failure};
use latebind_contract::order::{START_WITHIN, Stop};
use latebind_contract::record::{Failure, GlueIdentity, Outcome, Record, Stage, Used, sign};
use latebind_contract::time::{text_of, wall as wall_clock};
use latebind_linux::error::{error, refused};
use latebind_linux::kill::{KillLock, Routine};
use latebind_linux::sys;

/// How long a child whose start has failed may take to end by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// The kernel needs time to take apart what was killed, whatever an order says.
const KILL_LEAST: Duration = Duration::from_secs(1);
/// Children that are reaped before anything else is looked at: a job may make them faster than they are reaped.
const REAPED_AT_ONCE: u32 = 256;
/// How often to check whether processes that were sent TERM beside the main process are gone: while their parents live,
/// this process is not their reaper.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Stage two may have been put on this processor, and moves to an idle one with its exec only: so it gets so far before
/// anything else is done here.
const LET_IT_RUN: Duration = Duration::from_micros(30);

/// What a start fails with where something was left over that cannot be ended.
const STRAYS: &str = "the payload's processes";

struct Supervision<'a> {
    slot: &'a Slot,
    claimed: &'a mut Claimed,
    prepared: &'a mut Prepared,
    /// Has the digest of the startup file once the job's program may run.
    from_root: File,
    /// Where the main process's ID and the record go.
    say: File,
    record: Record,
    /// When the program ran.
    started: Option<Instant>,
    main: Option<i32>,
    /// Whether the main process has ended.
    main_has_ended: bool,
    /// See [`Started::attendant`].
    attendant: i32,
    /// When the soft kill was sent, if it was.
    soft_kill: Option<Instant>,
    counting_killed: bool,
    /// How long the kill routine may take.
    kill_within: Duration,
    /// Whether root was told to stop.
    stop: bool,
}

/// Runs one claimed job to its end in a fork of glue that has given root up, and says what root has to know. Ends this
/// process.
pub fn run(
    slot: &Slot,
    claimed: &mut Claimed,
    prepared: &mut Prepared,
    identity: &Identity<'_>,
    root: OwnedFd,
    say: OwnedFd,
) -> ! {
    let supervise = || -> io::Result<()> {
        claimed.file.zeroize();
        prctl::set_child_subreaper(true)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?; // a change of IDs takes that away, so only now
        if nix::unistd::getppid().as_raw() != identity.pid {
            return Err(refused(format_args!("glue has ended")));
        }
        sys::set_blocking(say.as_fd())?;
        let kill_within = seconds(claimed.order.kill_s).max(KILL_LEAST);
        let record = first_record(slot, claimed, prepared, identity);
        let mut supervision = Supervision {
            slot,
            claimed,
            prepared,
            from_root: File::from(root),
            say: File::from(say),
            record,
            started: None,
            main: None,
            main_has_ended: false,
            attendant: 0,
            soft_kill: None,
            counting_killed: false,
            kill_within,
            stop: false,
        };
        supervision.run()?;
        supervision.sign()
    };
    let code = supervise().map_or_else(
        |e| {
            log::error(format_args!("the job's supervisor gives up: {e}"));
            1
        },
        |()| 0,
    );
    sys::exit_now(code)
}

/// The record as far as it is known before the start. It says that the job was not started.
fn first_record(slot: &Slot, claimed: &Claimed, prepared: &mut Prepared, identity: &Identity<'_>) -> Record {
    Record {
        version: latebind_contract::VERSION,
        job: claimed.order.job.clone(),
        nonce: claimed.order.nonce.clone(),
        incarnation: identity.incarnation.into(),
        seccomp: Some(slot.filtered),
        warnings: std::mem::take(&mut prepared.warnings),
        glue: GlueIdentity { version: env!("CARGO_PKG_VERSION").into(), sha256: identity.sha256.into() },
        ..Record::default()
    }
}

/// Waits until root lets the job's program run, and takes in the digest of the startup file. Root usually has written
/// it by now. If root has ended, so does this process.
fn await_root(root: &mut File, record: &mut Record) -> io::Result<()> {
    let mut digest = [0; 64];
    if record.startup_sha256.is_empty() {
        root.read_exact(&mut digest)?;
        record.startup_sha256 = String::from_utf8_lossy(&digest).into_owned();
    }
    Ok(())
}

impl Supervision<'_> {
    fn run(&mut self) -> io::Result<()> {
        match self.prepare() {
            Err(failed) => self.record.error = Some(failed),
            Ok(starting) => self.supervise(starting)?,
        }
        if self.started.is_none() || !self.main_has_ended {
            self.is_over();
        }
        self.end_all_processes()
    }

    /// Signs the record and hands it to root.
    fn sign(&mut self) -> io::Result<()> {
        if let Some(failed) = &self.record.error {
            let kind = failed.reported.map_or(0, |(kind, _)| u32::from(kind));
            log::line(format_args!("job not started: {} (errno {}, report {kind})", failed.message, failed.errno));
        }
        await_root(&mut self.from_root, &mut self.record)?;
        let jws = sign(&self.record, &self.claimed.key);
        self.claimed.key.wipe();
        let jws = jws.ok_or_else(|| refused(format_args!("the record cannot be written as JSON")))?;
        if self.started.is_none() {
            self.say.write_all(&0i32.to_le_bytes())?;
        }
        self.say.write_all(jws.as_bytes())
    }

    /// How to end what is left.
    fn routine(&self) -> Routine<'_> {
        Routine { proc: &self.slot.proc, ids: self.slot.ids, cgroup: &self.slot.cgroup }
    }

    /// Ends all processes of the payload in the container. How many are left.
    fn kill(&self) -> io::Result<u64> {
        let deadline = Instant::now() + self.kill_within;
        let lock = KillLock::in_slot(self.slot.ctl.as_fd(), deadline)?;
        self.routine().run(&lock, deadline)
    }

    /// Makes stage two.
    fn prepare(&mut self) -> Result<Starting, Failure> {
        if let Some(problem) = self.prepared.problem.take() {
            let stage = match problem.about {
                About::Startup => Stage::Startup,
                About::Environment => Stage::Environment,
                About::Streams => Stage::Stdio,
                About::Privileges => Stage::Privileges,
            };
            return Err(failure(stage, problem.errno, format_args!("{}", problem.message)));
        }
        start::begin(self.slot, self.claimed, self.prepared)
    }

    /// Ends what was left in the container from before: until the child is released, only this start's own processes
    /// have the payload's UID there. Their parent is stage two, or, once that has ended, this process.
    fn end_strays(&self, stage_two: i32) -> io::Result<()> {
        let parents = [stage_two, i32::try_from(std::process::id()).unwrap_or(0)];
        let routine = self.routine();
        let is_own = |pid| pid == stage_two || routine.proc.stat(pid).is_ok_and(|stat| parents.contains(&stat.parent));
        let deadline = Instant::now() + self.kill_within;
        let mut is_first = true;
        loop {
            let strays: Vec<i32> = routine.inside()?.into_iter().map(|p| p.pid).filter(|pid| !is_own(*pid)).collect();
            if strays.is_empty() {
                return Ok(());
            }
            if std::mem::take(&mut is_first) {
                log::warn(format_args!("processes of the payload were there before the job: ending them"));
            }
            if Instant::now() >= deadline {
                let timed_out = io::Error::from_raw_os_error(ETIMEDOUT);
                return Err(error(format_args!("{} of them cannot be ended", strays.len()), &timed_out));
            }
            strays.into_iter().for_each(|pid| routine.signal_one(pid, true, Signal::SIGKILL));
            std::thread::yield_now();
        }
    }

    fn supervise(&mut self, starting: Starting) -> io::Result<()> {
        let limit = self.claimed.order.timeout_s;
        let wall = (limit > 0.0).then(|| Instant::now() + seconds(limit));
        std::thread::sleep(LET_IT_RUN);
        let ended_strays = self.end_strays(starting.stage_two());
        let (Started { child, failure, attendant }, ended) = match ended_strays.map_err(failed(Stage::Startup, STRAYS))
        {
            Ok(()) => self.await_exec(starting, wall)?,
            Err(failure) => (starting.cut_off(&self.slot.proc, failure), None),
        };
        (self.main, self.attendant) = (child, attendant);
        self.record.error = failure;
        if let Some(main) = child.filter(|_| self.record.error.is_none()) {
            self.record.started_at = Some(text_of(wall_clock()));
            self.started = Some(Instant::now());
            self.say.write_all(&main.to_le_bytes())?;
            if let Some(why) = ended {
                self.soft_kill(why);
            }
        }
        self.await_end(wall)
    }

    /// Follows a start to its end, which a stop, the wall limit and a deadline of its own can bring. Also returns the
    /// outcome to use if the program runs all the same.
    fn await_exec(&mut self, mut starting: Starting, wall: Option<Instant>) -> io::Result<(Started, Option<Outcome>)> {
        let (events, proc) = (&self.slot.events, &self.slot.proc);
        let last = Instant::now() + START_WITHIN;
        let deadline = wall.map_or(last, |wall| wall.min(last));
        let mut given_up: Option<(Failure, Option<Outcome>)> = None;
        loop {
            let mut await_root = || await_root(&mut self.from_root, &mut self.record);
            match starting.advance(&self.claimed.order, proc, &mut await_root) {
                Ok(Some(started)) => return Ok((started, given_up.and_then(|(_, ended)| ended))),
                Ok(None) => {}
                Err(e) => given_up = Some((failed(Stage::Startup, "the start cannot be followed")(e), None)),
            }
            // Only now: the program may have come to run just before its start was given up.
            if let Some((failure, ended)) = given_up {
                self.record.outcome = ended.unwrap_or(Outcome::NotStarted);
                return Ok((starting.cut_off(proc, failure), ended.or(Some(Outcome::Stopped))));
            }
            let not_run = |why| failure(Stage::Startup, ECANCELED, format_args!("{why} before the program ran"));
            given_up = match events.next(false, starting.pipe(), Some(deadline))? {
                Event::Child | Event::Readable => None,
                Event::Stop(_) => {
                    self.stop = true;
                    Some((not_run("told to stop"), Some(Outcome::Stopped)))
                }
                Event::Deadline if wall == Some(deadline) => {
                    Some((not_run("the wall limit passed"), Some(Outcome::TimedOut)))
                }
                Event::Deadline => Some((starting.hangs(), None)),
            };
        }
    }

    /// Follows the main process to its end. A child that did not come to run the job's program is about to end.
    fn await_end(&mut self, wall: Option<Instant>) -> io::Result<()> {
        let failed = self.record.error.is_some();
        let over = failed.then(|| Instant::now() + ENDS_WITHIN);
        loop {
            let more = self.reap();
            // Only now: what has ended by itself was not stopped.
            if self.stop && !failed && !self.main_has_ended {
                self.soft_kill(Outcome::Stopped);
            }
            if self.main.is_none() || self.main_has_ended && !self.others_have_grace() {
                return Ok(());
            }
            let hard = self.soft_kill.map(|at| at + seconds(self.claimed.order.grace_s));
            let deadline = over.or(hard).or(wall);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if failed || hard.is_some() {
                    return Ok(()); // the kill routine follows
                }
                self.soft_kill(Outcome::TimedOut);
                continue;
            }
            // With more to reap, what else has happened is looked at and not waited for.
            let soon = match (more, self.main_has_ended) {
                (true, _) => Some(Instant::now()),
                (false, true) => Some(Instant::now() + LOOK_EVERY),
                (false, false) => None,
            };
            let until = [soon, deadline].into_iter().flatten().min();
            if let Event::Stop(_) = self.slot.events.next(false, None, until)? {
                self.stop = true;
            }
        }
    }

    /// Whether what was sent TERM beside a main process that has ended may still end by itself.
    fn others_have_grace(&mut self) -> bool {
        if self.claimed.order.stop == Stop::Main || self.record.error.is_some() || !sys::has_children() {
            return false;
        }
        // As long as any of a group lives, no other has its number.
        let group = self.main.filter(|_| self.claimed.order.stop == Stop::Group);
        if self.routine().members(group).is_ok_and(|members| members.is_empty()) {
            return false;
        }
        // It may be the watcher that has sent it.
        if self.record.signal == Some(Signal::SIGTERM as i32) {
            self.soft_kill.get_or_insert_with(Instant::now);
        }
        self.soft_kill.is_some()
    }

    /// TERM to the main process, or to more as the order says; then grace.
    fn soft_kill(&mut self, why: Outcome) {
        if self.soft_kill.is_some() {
            return;
        }
        self.soft_kill = Some(Instant::now());
        self.record.outcome = why;
        if let Some(pid) = self.main {
            let _ = match self.claimed.order.stop {
                Stop::Main => sys::signal_process(pid, Signal::SIGTERM as i32),
                Stop::Group => self.routine().signal(Some(pid), Signal::SIGTERM),
                Stop::All => self.routine().signal(None, Signal::SIGTERM),
            };
        }
    }

    /// Takes in children that have ended; whether there may be more of them.
    fn reap(&mut self) -> bool {
        for _ in 0..REAPED_AT_ONCE {
            let Ok(Some(reaped)) = sys::reap(-1) else { return false };
            let used = used(&reaped.usage);
            add(&mut self.record.usage.tree, &used);
            self.record.processes.reaped += 1;
            let is_left = ![self.main, Some(self.attendant)].contains(&Some(reaped.pid));
            if self.counting_killed && reaped.status.signal() == Some(Signal::SIGKILL as i32) && is_left {
                self.record.processes.left_over_killed += 1;
            }
            if Some(reaped.pid) == self.main {
                self.record.usage.main = used;
                self.main_ended(reaped.status);
            }
        }
        true
    }

    /// The main process has ended like this; without the job's program having run, that says nothing of the job.
    fn main_ended(&mut self, status: ExitStatus) {
        self.main_has_ended = true;
        self.is_over();
        if self.record.error.is_some() {
            return;
        }
        (self.record.exit_code, self.record.signal) = (status.code(), status.signal());
        self.record.core_dumped = status.core_dumped();
        if self.record.outcome == Outcome::NotStarted {
            self.record.outcome = if status.signal().is_some() { Outcome::Signaled } else { Outcome::Exited };
        }
    }

    /// The job is over now, or its start is.
    fn is_over(&mut self) {
        self.record.ended_at = text_of(wall_clock());
        self.record.wall_s = self.started.map_or(0.0, |at| at.elapsed().as_secs_f64());
    }

    /// After this, no process of the job lives, or those that do are counted.
    fn end_all_processes(&mut self) -> io::Result<()> {
        self.reap();
        // This process is the reaper of all its descendants: without a child there is no process of the job.
        if !sys::has_children() {
            return Ok(());
        }
        self.counting_killed = true;
        let deadline = Instant::now() + self.kill_within;
        let mut unkilled = self.kill()?;
        // The kernel may still be busy with taking apart what was killed.
        loop {
            let more = self.reap();
            if !more && !sys::has_children() {
                unkilled = 0;
                break;
            }
            if Instant::now() >= deadline {
                unkilled = unkilled.max(1);
                break;
            }
            if !more {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        self.record.processes.unkilled = unkilled;
        if unkilled > 0 {
            log::error(format_args!(
                "{unkilled} processes of the job could not be ended; glue will exit to end the container"
            ));
        }
        Ok(())
    }
}

fn used(usage: &nix::libc::rusage) -> Used {
    let seconds = |t: nix::libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    let count = |n: nix::libc::c_long| u64::try_from(n).unwrap_or(0);
    Used {
        user_s: seconds(usage.ru_utime),
        system_s: seconds(usage.ru_stime),
        max_rss_kib: count(usage.ru_maxrss),
        read_blocks: count(usage.ru_inblock),
        written_blocks: count(usage.ru_oublock),
        major_faults: count(usage.ru_majflt),
    }
}

fn add(sum: &mut Used, more: &Used) {
    sum.user_s += more.user_s;
    sum.system_s += more.system_s;
    sum.max_rss_kib = sum.max_rss_kib.max(more.max_rss_kib);
    sum.read_blocks += more.read_blocks;
    sum.written_blocks += more.written_blocks;
    sum.major_faults += more.major_faults;
}
