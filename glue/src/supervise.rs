//! From a claimed job to its end: start, reap, time out, stop, end what is left.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::libc::ECANCELED;
use nix::sys::signal::Signal;

use crate::claim::Claimed;
use crate::events::{Event, Events};
use crate::log;
use crate::rootfs::{Accounts, Links};
use crate::start::{self, Started, Starting, failed, failure};
use latebind_contract::layout::{self, Ids};
use latebind_contract::order::{START_WITHIN, Stop};
use latebind_contract::record::{Failure, Outcome, Record, Stage, Used};
use latebind_contract::status::Status;
use latebind_contract::time::{text_of, wall as wall_clock};
use latebind_linux::error::refused;
use latebind_linux::kill::Routine;
use latebind_linux::processes::Proc;
use latebind_linux::sys;
use latebind_linux::volume::Dir;

/// How long a child whose start has failed may take to end by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// The kernel needs time to take apart what was killed, whatever an order says.
const KILL_LEAST_S: f64 = 1.0;
/// Children that are reaped before anything else is looked at: a job may make them faster than they are reaped.
const REAPED_AT_ONCE: u32 = 256;

/// What glue has of its slot from its start on.
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// Whether jobs run under the filter of system calls.
    pub filtered: bool,
    /// Its IDs.
    pub ids: Ids,
    /// `ctl/`.
    pub ctl: Dir,
    /// `data/`.
    pub data: Dir,
    /// `/proc` of the PID namespace.
    pub proc: Proc,
    /// The cgroups text of the container.
    pub cgroup: String,
    /// Signals and notifications.
    pub events: Events,
    /// `watcher.notify`.
    pub notify: OwnedFd,
    /// Our own binary.
    pub program: File,
}

impl Slot {
    /// Replaces `status.json`, and notifies the watcher.
    pub fn put_status(&self, status: &mut Status) -> io::Result<()> {
        status.log_lines_dropped = log::dropped();
        let text = serde_json::to_vec(status).map_err(|e| refused(format_args!("{e}")))?;
        self.ctl.replace(layout::STATUS, &text, 0o600)?;
        // A full FIFO has notified often enough.
        let _ = nix::unistd::write(&self.notify, b"\n");
        Ok(())
    }

    /// How to end what is left.
    fn routine(&self) -> Routine<'_> {
        Routine { proc: &self.proc, ids: self.ids, cgroup: &self.cgroup }
    }
}

struct Supervision<'a> {
    slot: &'a Slot,
    claimed: &'a mut Claimed,
    record: &'a mut Record,
    status: &'a mut Status,
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
    /// Whether glue is to end after this: it was told to stop, or the image's root is not as it was.
    stop: bool,
}

/// Runs one claimed job to its end, and fills in `record`, which says so far that the job was not started, and in
/// `status` which process is the main one. Whether glue is to end after this.
pub fn run(
    slot: &Slot,
    accounts: &mut Accounts,
    claimed: &mut Claimed,
    record: &mut Record,
    status: &mut Status,
) -> io::Result<bool> {
    let kill_within = Duration::from_secs_f64(claimed.order.kill_s.max(KILL_LEAST_S));
    let mut links = Links::default();
    let mut s = Supervision {
        slot,
        claimed,
        record,
        status,
        started: None,
        main: None,
        main_has_ended: false,
        attendant: 0,
        soft_kill: None,
        counting_killed: false,
        kill_within,
        stop: false,
    };
    match s.prepare(&mut links, accounts) {
        Err(failed) => s.record.error = Some(failed),
        Ok(starting) => s.supervise(starting)?,
    }
    if s.started.is_none() || !s.main_has_ended {
        s.is_over();
    }
    s.end_all_processes()?;
    // No later job may find the root file system changed.
    s.stop |= !links.remove();
    Ok(s.stop)
}

impl Supervision<'_> {
    /// Everything before the fork.
    fn prepare(&mut self, links: &mut Links, accounts: &mut Accounts) -> Result<Starting, Failure> {
        if let Some(invalid) = &self.claimed.invalid {
            let stage = if invalid.field == "env_files" { Stage::Environment } else { Stage::Startup };
            return Err(failure(stage, 0, format_args!("{invalid}")));
        }
        self.end_strays().map_err(failed(Stage::Startup, "the payload's processes"))?;
        let (slot, order) = (self.slot, &self.claimed.order);
        let settled = accounts.settle(order, slot.number);
        self.stop = settled.is_err(); // the next container's image is as it was made
        self.record.warnings = settled.map_err(failed(Stage::Startup, "the payload's account"))?;
        links.make(&order.links).map_err(failed(Stage::Startup, "links"))?;
        start::begin(self.claimed, slot.number, slot.program.as_fd(), slot.filtered, &slot.ctl, &slot.data)
    }

    /// Nothing of an earlier job, and nobody who would like to be traced: the payload's UID starts alone.
    fn end_strays(&self) -> io::Result<()> {
        let routine = self.slot.routine();
        if routine.inside()?.is_empty() {
            return Ok(());
        }
        log::warn(format_args!("processes of the payload UID were in the container before the job: ending them"));
        match routine.run(Instant::now() + self.kill_within)? {
            0 => Ok(()),
            n => Err(refused(format_args!("{n} of them cannot be ended"))),
        }
    }

    fn supervise(&mut self, starting: Starting) -> io::Result<()> {
        let limit = self.claimed.order.timeout_s;
        let wall = (limit > 0.0).then(|| Instant::now() + Duration::from_secs_f64(limit));
        let (Started { child, failure, attendant }, ended) = self.await_exec(starting, wall)?;
        (self.main, self.attendant) = (child, attendant);
        self.record.error = failure;
        if child.is_some() && self.record.error.is_none() {
            self.record.started_at = Some(text_of(wall_clock()));
            self.started = Some(Instant::now());
            self.status.main_pid = child;
            self.slot.put_status(self.status)?;
            if let Some(why) = ended {
                self.soft_kill(why);
            }
        }
        self.await_end(wall)
    }

    /// Follows a start to its end, which a stop, the wall limit and a deadline of its own can bring. Besides what came
    /// of it: who ends a program that runs all the same.
    fn await_exec(&mut self, mut starting: Starting, wall: Option<Instant>) -> io::Result<(Started, Option<Outcome>)> {
        let (events, proc) = (&self.slot.events, &self.slot.proc);
        let last = Instant::now() + START_WITHIN;
        let deadline = wall.map_or(last, |wall| wall.min(last));
        let mut given_up: Option<(Failure, Option<Outcome>)> = None;
        loop {
            match starting.advance(&self.claimed.order, proc) {
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
            given_up = match events.next(true, starting.pipe(), Some(deadline))? {
                Event::Pipe | Event::Child | Event::Notified => None,
                Event::Stop(signal) => {
                    self.is_to_stop(signal);
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
            let hard = self.soft_kill.map(|at| at + Duration::from_secs_f64(self.claimed.order.grace_s));
            let deadline = over.or(hard).or(wall);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if failed || hard.is_some() {
                    return Ok(()); // the kill routine follows
                }
                self.soft_kill(Outcome::TimedOut);
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
        if self.claimed.order.stop == Stop::Main || self.record.error.is_some() || !has_children() {
            return false;
        }
        // As long as any of a group lives, no other has its number.
        let group = self.main.filter(|_| self.claimed.order.stop == Stop::Group);
        if self.slot.routine().members(group).is_ok_and(|members| members.is_empty()) {
            return false;
        }
        // It may be the watcher that has sent it.
        if self.record.signal == Some(Signal::SIGTERM as i32) {
            self.soft_kill.get_or_insert_with(Instant::now);
        }
        self.soft_kill.is_some()
    }

    /// A signal has said so.
    fn is_to_stop(&mut self, signal: i32) {
        log::line(format_args!("told to stop by signal {signal}"));
        self.stop = true;
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
                Stop::Group => self.slot.routine().signal(Some(pid), Signal::SIGTERM),
                Stop::All => self.slot.routine().signal(None, Signal::SIGTERM),
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
        // Glue is the reaper of all its descendants: without a child there is no process of the job.
        if !has_children() {
            return Ok(());
        }
        self.counting_killed = true;
        let deadline = Instant::now() + self.kill_within;
        let mut unkilled = self.slot.routine().run(deadline)?;
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
        self.record.processes.unkilled = unkilled;
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
