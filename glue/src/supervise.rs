//! From a claimed job to its end: start, reap, time out, stop, end what is left.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::libc::{ECANCELED, ETIMEDOUT};
use nix::sys::signal::Signal;

use crate::claim::Claimed;
use crate::events::{Event, Events, signal_name};
use crate::log;
use crate::rootfs::Changes;
use crate::start::{self, Started, Starting, failure};
use latebind_contract::order::{START_WITHIN, Stop};
use latebind_contract::record::{Failure, Processes, Stage, Usage, Used};
use latebind_contract::time::wall as wall_clock;
use latebind_linux::cgroup::{self, Whereabouts};
use latebind_linux::error::errno_of;
use latebind_linux::kill::Routine;
use latebind_linux::sys::{self, Reaped};
use latebind_linux::volume::Dir;

/// How long a child whose start has failed may take to end by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// The kernel needs time to take apart what was killed, whatever an order says.
const KILL_LEAST_S: f64 = 1.0;
/// Children that are reaped before anything else is looked at: a job may make them faster than they are reaped.
const REAPED_AT_ONCE: u32 = 256;

/// What the supervision of every job of a slot needs.
pub struct Slot<'a> {
    /// Its number.
    pub number: u32,
    /// `ctl/`.
    pub ctl: &'a Dir,
    /// `data/`.
    pub data: &'a Dir,
    /// Our own binary, open.
    pub program: BorrowedFd<'a>,
    /// Whether jobs run under the filter of system calls.
    pub filtered: bool,
    /// Which cgroup is the container's own.
    pub whereabouts: &'a Whereabouts,
    /// Signals and notifications.
    pub events: &'a Events,
    /// How to end what is left.
    pub routine: &'a Routine<'a>,
}

/// Why a job was ended before its main process ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its wall limit passed.
    TimedOut,
    /// Glue was told to stop.
    Stopped,
}

/// Everything that is known once a job is over.
pub struct End {
    /// Why it was not started.
    pub failure: Option<Failure>,
    /// Who ended it, if not itself.
    pub ended: Option<Ended>,
    /// How the main process ended.
    pub main: Option<Reaped>,
    /// When the program ran: wall clock, and monotonic.
    pub started: Option<(std::time::SystemTime, Instant)>,
    /// When it was over.
    pub over: (std::time::SystemTime, Instant),
    /// Resources.
    pub usage: Usage,
    /// What the cgroup counted.
    pub cgroup: Option<latebind_contract::record::CgroupUse>,
    /// What became of the processes.
    pub processes: Processes,
    /// What could not be done though the job ran.
    pub warnings: Vec<String>,
    /// Whether glue is to end after this: it was told to stop, or the image's root is not as it was.
    pub stop: bool,
}

struct Supervision<'a> {
    slot: &'a Slot<'a>,
    claimed: &'a mut Claimed,
    end: End,
    main: Option<i32>,
    /// See [`Started::attendant`].
    attendant: i32,
    /// When the soft kill was sent, if it was.
    soft_kill: Option<Instant>,
    counting_killed: bool,
    /// How long the kill routine may take.
    kill_within: Duration,
}

/// Takes in the main process's ID once the program runs. Where it fails, supervision ends with its error.
pub type OnStart<'a> = dyn FnMut(i32) -> io::Result<()> + 'a;

/// Runs one claimed job to its end.
pub fn run(slot: &Slot<'_>, claimed: &mut Claimed, on_start: &mut OnStart<'_>) -> io::Result<End> {
    let now = || (wall_clock(), Instant::now());
    let before = cgroup::read(slot.whereabouts);
    let end = End {
        failure: None,
        ended: None,
        main: None,
        started: None,
        over: now(),
        usage: Usage::default(),
        cgroup: None,
        processes: Processes::default(),
        warnings: Vec::new(),
        stop: false,
    };
    let kill_within = Duration::from_secs_f64(claimed.order.kill_s.max(KILL_LEAST_S));
    let mut changes = Changes::default();
    let mut s = Supervision {
        slot,
        claimed,
        end,
        main: None,
        attendant: 0,
        soft_kill: None,
        counting_killed: false,
        kill_within,
    };
    match s.prepare(&mut changes) {
        Err(failed) => s.end.failure = Some(failed),
        Ok(starting) => s.supervise(starting, on_start)?,
    }
    if s.end.started.is_none() || s.end.main.is_none() {
        s.end.over = now();
    }
    s.end_all_processes()?;
    // No later job may find the root file system changed.
    s.end.stop |= !changes.undo();
    s.end.cgroup = cgroup::read(slot.whereabouts).since(&before);
    Ok(s.end)
}

impl Supervision<'_> {
    /// Everything before the fork.
    fn prepare(&mut self, changes: &mut Changes) -> Result<Starting, Failure> {
        if let Some(invalid) = &self.claimed.invalid {
            let stage = if invalid.field == "env_files" { Stage::Environment } else { Stage::Startup };
            return Err(failure(stage, 0, format_args!("{invalid}")));
        }
        // Nothing of an earlier job, and nobody who would like to be traced: the payload's UID starts alone.
        let none_left = || -> io::Result<u64> {
            if self.slot.routine.inside()?.is_empty() {
                return Ok(0);
            }
            log::warn(format_args!("processes of the payload UID were in the container before the job: ending them"));
            self.slot.routine.run(Instant::now() + self.kill_within)
        };
        match none_left() {
            Ok(0) => {}
            Ok(n) => {
                return Err(failure(
                    Stage::Startup,
                    0,
                    format_args!("{n} processes of the payload UID cannot be ended"),
                ));
            }
            Err(e) => return Err(failure(Stage::Startup, errno_of(&e), format_args!("the payload's processes: {e}"))),
        }
        let order = &self.claimed.order;
        changes
            .make_links(&order.links)
            .map_err(|e| failure(Stage::Startup, errno_of(&e), format_args!("links: {e}")))?;
        if order.passwd {
            self.end.warnings = changes.add_account(order, self.slot.number);
        }
        let slot = self.slot;
        start::begin(self.claimed, slot.number, slot.program, slot.filtered, slot.ctl, slot.data)
    }

    fn supervise(&mut self, starting: Starting, on_start: &mut OnStart<'_>) -> io::Result<()> {
        let limit = self.claimed.order.timeout_s;
        let wall = (limit > 0.0).then(|| Instant::now() + Duration::from_secs_f64(limit));
        let (Started { child, failure, attendant }, ended) = self.await_exec(starting, wall)?;
        (self.main, self.attendant) = (child, attendant);
        self.end.failure = failure;
        if let (Some(pid), None) = (child, &self.end.failure) {
            self.end.started = Some((wall_clock(), Instant::now()));
            on_start(pid)?;
            if let Some(why) = ended {
                self.soft_kill(why);
            }
        }
        self.await_end(wall)
    }

    /// Follows a start to its end, which a stop, the wall limit and a deadline of its own can bring. Besides what came
    /// of it:
    /// who ends a program that runs all the same.
    fn await_exec(&mut self, mut starting: Starting, wall: Option<Instant>) -> io::Result<(Started, Option<Ended>)> {
        let (events, proc) = (self.slot.events, self.slot.routine.proc);
        let last = Instant::now() + START_WITHIN;
        let deadline = wall.map_or(last, |wall| wall.min(last));
        let mut given_up: Option<(Failure, Option<Ended>)> = None;
        loop {
            match starting.advance(&self.claimed.order, proc) {
                Ok(Some(started)) => return Ok((started, given_up.and_then(|(_, ended)| ended))),
                Ok(None) => {}
                Err(e) => {
                    let message = format_args!("the start cannot be followed: {e}");
                    given_up = Some((failure(Stage::Startup, errno_of(&e), message), None));
                }
            }
            // Only now: the program may have come to run just before its start was given up.
            if let Some((failure, ended)) = given_up {
                self.end.ended = ended;
                return Ok((starting.cut_off(proc, failure), ended.or(Some(Ended::Stopped))));
            }
            let not_run = |why| failure(Stage::Startup, ECANCELED, format_args!("{why} before the program ran"));
            given_up = match events.next(true, starting.pipe(), Some(deadline))? {
                Event::Pipe | Event::Child | Event::Notified => None,
                Event::Stop(signal) => {
                    self.is_to_stop(signal);
                    Some((not_run("told to stop"), Some(Ended::Stopped)))
                }
                Event::Deadline if wall == Some(deadline) => {
                    Some((not_run("the wall limit passed"), Some(Ended::TimedOut)))
                }
                Event::Deadline => {
                    let (stage, what) = starting.hangs();
                    let within = START_WITHIN.as_secs();
                    let message = format_args!("the program did not run within {within} s: the start hangs in {what}");
                    Some((failure(stage, ETIMEDOUT, message), None))
                }
            };
        }
    }

    /// Follows the main process to its end. A child that did not come to run the job's program is about to end.
    fn await_end(&mut self, wall: Option<Instant>) -> io::Result<()> {
        let failed = self.end.failure.is_some();
        let over = failed.then(|| Instant::now() + ENDS_WITHIN);
        loop {
            let more = self.reap();
            // Only now: what has ended by itself was not stopped.
            if self.end.stop && !failed && self.end.main.is_none() {
                self.soft_kill(Ended::Stopped);
            }
            if self.main.is_none() || self.end.main.is_some() && !self.others_have_grace() {
                return Ok(());
            }
            let hard = self.soft_kill.map(|at| at + Duration::from_secs_f64(self.claimed.order.grace_s));
            let deadline = over.or(hard).or(wall);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if failed || hard.is_some() {
                    return Ok(()); // the kill routine follows
                }
                self.soft_kill(Ended::TimedOut);
                continue;
            }
            // With more to reap, what else has happened is looked at and not waited for.
            let until = if more { Some(Instant::now()) } else { deadline };
            if let Event::Stop(signal) = self.slot.events.next(true, None, until)? {
                self.is_to_stop(signal);
            }
        }
    }

    /// Whether what was sent TERM beside a main process that has ended may still end by itself.
    fn others_have_grace(&mut self) -> bool {
        if self.claimed.order.stop == Stop::Main || self.end.failure.is_some() || !has_children() {
            return false;
        }
        // As long as any of a group lives, no other has its number.
        let group = self.main.filter(|_| self.claimed.order.stop == Stop::Group);
        if self.slot.routine.members(group).is_ok_and(|members| members.is_empty()) {
            return false;
        }
        // It may be the watcher that has sent it.
        if self.end.main.as_ref().is_some_and(|main| main.signal == Some(Signal::SIGTERM as i32)) {
            self.soft_kill.get_or_insert_with(Instant::now);
        }
        self.soft_kill.is_some()
    }

    /// A signal has said so.
    fn is_to_stop(&mut self, signal: i32) {
        log::line(format_args!("told to stop by {}", signal_name(signal)));
        self.end.stop = true;
    }

    /// TERM to the main process, or to more as the order says; then grace.
    fn soft_kill(&mut self, why: Ended) {
        if self.soft_kill.is_some() {
            return;
        }
        self.soft_kill = Some(Instant::now());
        self.end.ended = Some(why);
        if let Some(pid) = self.main {
            let _ = match self.claimed.order.stop {
                Stop::Main => sys::signal_process(pid, Signal::SIGTERM as i32),
                Stop::Group => self.slot.routine.signal(Some(pid), Signal::SIGTERM),
                Stop::All => self.slot.routine.signal(None, Signal::SIGTERM),
            };
        }
    }

    /// Takes in children that have ended; whether there may be more of them.
    fn reap(&mut self) -> bool {
        for _ in 0..REAPED_AT_ONCE {
            let Ok(Some(reaped)) = sys::reap(-1) else { return false };
            let used = used(&reaped.usage);
            add(&mut self.end.usage.tree, &used);
            self.end.processes.reaped += 1;
            let is_left = ![self.main, Some(self.attendant)].contains(&Some(reaped.pid));
            if self.counting_killed && reaped.signal == Some(Signal::SIGKILL as i32) && is_left {
                self.end.processes.left_over_killed += 1;
            }
            if Some(reaped.pid) == self.main {
                self.end.over = (wall_clock(), Instant::now());
                self.end.usage.main = used;
                self.end.main = Some(reaped);
            }
        }
        true
    }

    /// After this, no process of the job lives, or those that do are counted.
    fn end_all_processes(&mut self) -> io::Result<()> {
        self.reap();
        // Glue is the reaper of all its descendants: without a child there is no process of the job.
        if !has_children() {
            return Ok(());
        }
        self.counting_killed = true;
        let deadline = Instant::now() + self.kill_within;
        let mut unkilled = self.slot.routine.run(deadline)?;
        // The kernel may still be busy with taking apart what was killed.
        loop {
            let more = self.reap();
            if !more && !has_children() {
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
        self.end.processes.unkilled = unkilled;
        if unkilled > 0 {
            log::error(format_args!(
                "{unkilled} processes of the job could not be ended; glue will exit to end the container"
            ));
        }
        Ok(())
    }
}

/// Whether this process has any child, running or not yet reaped.
fn has_children() -> bool {
    let options = nix::sys::wait::WaitPidFlag::WEXITED
        | nix::sys::wait::WaitPidFlag::WNOHANG
        | nix::sys::wait::WaitPidFlag::WNOWAIT
        | nix::sys::wait::WaitPidFlag::__WALL;
    !matches!(nix::sys::wait::waitid(nix::sys::wait::Id::All, options), Err(nix::errno::Errno::ECHILD))
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
