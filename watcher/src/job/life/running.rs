//! A job that runs: its record is waited for, its clients are obeyed, and its limits kept.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use latebind_contract::record::Outcome;
use latebind_contract::startup::{START_WITHIN, Stop};
use latebind_contract::status::Status;
use latebind_contract::verify::Refusal;
use latebind_linux::kill::Routine;
use latebind_linux::processes::{Pinned, Proc};
use nix::sys::signal::Signal;

use crate::bind::{Failure, Reason, proof};
use crate::job::attach::Attach;
use crate::job::cgroup::{Counted, Group};
use crate::job::control::ends;
use crate::job::limits::{Crossed, Which};
use crate::job::monitor::{self, Watched};
use crate::job::relay::Relay;
use crate::job::{Phase, class, seconds_of, start, steer};
use crate::keys;

use super::ending::end_processes;
use super::{ENGINE_NOTICES_WITHIN, Life, span, wait};

/// How long glue may take for its record once the job must be over: beyond that nobody is there who could write it.
const RECORD_WITHIN: Duration = Duration::from_secs(60);

/// How long a signal or a cancellation waits for a main process. A start takes a millisecond; one that takes this long
/// hangs, and what is wanted is done to whatever it consists of.
const START_PATIENCE: Duration = Duration::from_secs(1);

/// How often the kill routine is run for a start: there are moments in which nothing of it has the payload's UID yet.
const KILL_AGAIN: Duration = Duration::from_secs(1);

impl Life<'_> {
    /// Waits for the record, the end of glue, or a client's wish.
    pub(super) fn run(&mut self) -> Result<Phase, Failure> {
        self.resume_output();
        self.resume_attach();
        if self.glue.is_none()
            && let Err(lost) = self.pin_glue()
        {
            // Glue may have ended after it had written the record.
            return if self.take_record()? { Ok(Phase::Collecting) } else { Err(lost) };
        }
        let slot = self.context.slot;
        // An earlier watcher may have begun to end it.
        let ending = self.state.cancelled.is_some() || self.state.report.limit.is_some();
        let mut hard_kill = ending.then(|| Instant::now() + span(self.state.request.grace_s));
        let mut give_up = self.over_at_last();
        let mut started_by = self.started_at_last();
        let (mut started, mut killed, mut wanted_since) = (false, false, None);
        let _watching = self.watch();
        loop {
            slot.clear_notifications();
            let is_over = self.take_record()?;
            // Also of a job that is over: its terminal may still have to be shown.
            if let Some(attach) = &mut self.attach {
                attach.settle(self.context.control);
            }
            if is_over {
                self.attach = None;
                self.context.control.dismiss_clients();
                return Ok(Phase::Collecting);
            }
            if self.glue.as_ref().is_none_or(proof::has_ended) {
                // Its last act may have been the record.
                return if self.take_record()? { Ok(Phase::Collecting) } else { Err(self.lost()) };
            }
            let status = slot.status().ok().flatten();
            self.refused_startup(status.as_ref())?;
            let main = status.filter(|s| s.nonce.as_ref() == self.nonce()).and_then(|s| s.main_pid);
            if main.is_some() && !started {
                started = true;
                started_by = None;
                self.relay.iter_mut().for_each(Relay::job_has_started);
            }
            self.context.control.settle();
            let patience =
                if main.is_some() || self.context.control.at_once() { Duration::ZERO } else { START_PATIENCE };
            let obeys_at = match self.context.control.is_wanted() {
                true => Some(*wanted_since.get_or_insert_with(Instant::now) + patience),
                false => None,
            };
            if obeys_at.is_none_or(|at| Instant::now() >= at) {
                hard_kill = self.obey(main, hard_kill)?;
            }
            hard_kill = self.keep_within_limits(main, hard_kill);
            if hard_kill.is_some_and(|at| Instant::now() >= at) {
                hard_kill = (main.is_none() && !started).then(|| Instant::now() + KILL_AGAIN);
                match end_processes(slot, self.bound()?, span(self.state.request.kill_s)) {
                    // No process can be made for the kill routine. Once the main process has ended glue does it, which
                    // needs none.
                    Err(e) if e.reason == Reason::KillFailed => {
                        tracing::warn!(slot = slot.number, "{e}");
                        self.signal_main(main, Signal::SIGKILL as i32);
                    }
                    ended => ended?,
                }
                if !killed {
                    killed = true;
                    give_up = Some(Instant::now() + RECORD_WITHIN);
                }
            }
            if started_by.is_some_and(|at| Instant::now() >= at) {
                self.state.report.refusal = Some(Refusal::Missing);
                let message =
                    "the job's start must have succeeded or failed by now, and its glue, which lives, has not said so";
                return Err(Failure::retry(Reason::GlueSilent, message));
            }
            if give_up.is_some_and(|at| Instant::now() >= at) {
                self.state.report.refusal = Some(Refusal::Missing);
                let message = "the job must be over for a minute, and its glue, which lives, has said nothing";
                return Err(Failure::retry(Reason::GlueSilent, message));
            }
            let waits_until = obeys_at.filter(|at| *at > Instant::now());
            let next = [hard_kill, give_up, started_by, waits_until].into_iter().flatten().min();
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            wait(
                [
                    slot.notified(),
                    self.context.control.woken(),
                    self.glue.as_ref().map_or(slot.notified(), AsFd::as_fd),
                    self.attach.as_ref().and_then(Attach::as_fd).unwrap_or(slot.notified()),
                ],
                timeout,
            );
        }
    }

    /// When glue must have written a record of a job that has a wall limit.
    fn over_at_last(&self) -> Option<Instant> {
        let request = &self.state.request;
        let seconds = request.timeout_s + request.grace_s + request.kill_s;
        let longest = Duration::try_from_secs_f64(seconds).ok().filter(|_| request.timeout_s > 0.0)?;
        Instant::now().checked_add(longest + RECORD_WITHIN)
    }

    /// When glue must have said of the start that it succeeded or failed; it has a deadline of its own for that.
    fn started_at_last(&self) -> Option<Instant> {
        let longest = START_WITHIN + span(self.state.request.kill_s) + span(self.state.request.kill_s) + RECORD_WITHIN;
        Instant::now().checked_add(longest)
    }

    /// Watches the payload's processes. Without that the job still runs; only its limits do not hold.
    fn watch(&mut self) -> Option<monitor::Watching> {
        let bound = self.state.bound.as_ref()?;
        let watched = Watched {
            slot: self.context.slot.number,
            ids: self.context.slot.ids(bound.kill_uid),
            cgroup: bound.cgroup.clone(),
            glue: bound.pid,
            group: self.group.take(),
            memory_size: self.state.memory_size,
            disk_size: self.context.settings.disk_size.map(|b| b.0),
            limits: self.state.request.limits.within(&self.context.settings.limits),
        };
        let started = monitor::start(watched, self.context.control);
        if let Err(e) = &started {
            tracing::error!(job = %self.state.request.id, slot = self.context.slot.number, "is not watched, its limits do not hold: {e}");
        }
        self.state.report.limits = self.context.control.board.limits();
        started.ok()
    }

    /// A job that has crossed a limit gets TERM, and what is left after the grace gets KILL; at once, where the kernel
    /// would soon end something of its own choice.
    fn keep_within_limits(&mut self, main: Option<i32>, hard_kill: Option<Instant>) -> Option<Instant> {
        let Some((crossed, at_once)) = self.context.control.board.crossed() else { return hard_kill };
        if self.state.report.limit.is_none() && self.state.cancelled.is_none() {
            tracing::warn!(job = %self.state.request.id, slot = self.context.slot.number, "{crossed}");
            self.state.report.limit = Some(crossed);
            self.save_or_say();
            self.end_softly(main);
            // Before the program runs nobody is there to make use of a grace period.
            let grace = span(if at_once || main.is_none() { 0.0 } else { self.state.request.grace_s });
            return Some(Instant::now() + grace);
        }
        if at_once { hard_kill.map(|at| at.min(Instant::now())) } else { hard_kill }
    }

    /// TERM to the main process, or to more as the job wants, which may have been stopped.
    fn end_softly(&self, main: Option<i32>) {
        if self.state.request.stop == Stop::Main {
            self.signal_main(main, Signal::SIGTERM as i32);
        }
        if let Some(bound) = &self.state.bound {
            if let (Stop::Group | Stop::All, Some(_), Ok(proc)) = (self.state.request.stop, main, Proc::open()) {
                let ids = self.context.slot.ids(bound.kill_uid);
                let group = main.filter(|_| self.state.request.stop == Stop::Group);
                let _ = Routine { proc: &proc, ids, cgroup: &bound.cgroup }.signal(group, Signal::SIGTERM);
            }
            let _ = steer::all(
                self.context.slot.number,
                self.context.slot.ids(bound.kill_uid),
                &bound.cgroup,
                Signal::SIGCONT as i32,
            );
        }
    }

    /// What the report says of usage, from the monitor and from the record.
    fn take_usage(&mut self) {
        let Some(mut summary) = self.context.control.board.summary() else { return };
        if let Some(record) = &self.state.report.record {
            summary.add_counted(record, self.state.report.cgroup);
        }
        self.state.report.usage = Some(summary);
    }

    pub(super) fn nonce(&self) -> Option<&latebind_contract::encoding::Bytes32> {
        self.state.secrets.as_ref().map(|s| &s.nonce)
    }

    /// A startup file that glue did not take says why in its status.
    fn refused_startup(&self, status: Option<&Status>) -> Result<(), Failure> {
        let ours = self.state.secrets.as_ref().map(|s| s.startup_sha256.as_str());
        match status.and_then(|s| s.refused.as_ref()) {
            Some(refused) if Some(refused.startup_sha256.as_str()) == ours => {
                let (reason, what) = match refused.errno {
                    0 => (Reason::StartupRefused, "glue refused the startup file"),
                    _ => (Reason::ResourceShortage, "glue could not start the job"),
                };
                Err(Failure::retry(reason, format!("{what}: {}", refused.message)))
            }
            _ => Ok(()),
        }
    }

    /// Passes signals on to the job's main process; a cancelled job gets TERM, and what is left after the grace gets
    /// KILL. A start that hangs has no main process: what would end a program ends the start, without grace, and other
    /// signals wait.
    fn obey(&mut self, main: Option<i32>, hard_kill: Option<Instant>) -> Result<Option<Instant>, Failure> {
        let control = self.context.control;
        while let Some(signal) = main.and_then(|_| control.next_signal()) {
            self.signal_main(main, signal);
        }
        while let Some(wish) = control.next_steer() {
            let bound = self.bound()?;
            let sent =
                steer::all(self.context.slot.number, self.context.slot.ids(bound.kill_uid), &bound.cgroup, wish.signal);
            let _ = wish.done.send(sent.map_err(|e| e.to_string()));
            if main.is_none() && ends(wish.signal) {
                control.cancel(&format!("told to end by signal {}", wish.signal));
            }
        }
        let at_once = control.at_once() || main.is_none();
        let cancelled = if main.is_some() { control.cancelled() } else { control.stop_wanted() };
        if let Some(why) = cancelled
            && self.state.cancelled.is_none()
        {
            self.state.cancelled = Some(why);
            self.save_or_say();
            if at_once {
                return Ok(Some(Instant::now()));
            }
            self.end_softly(main);
            return Ok(Some(Instant::now() + span(self.state.request.grace_s)));
        }
        Ok(hard_kill.map(|at| if control.at_once() { at.min(Instant::now()) } else { at }))
    }

    fn signal_main(&self, main: Option<i32>, signal: i32) {
        let Some(main) = main else { return };
        let (Ok(pinned), Ok(proc)) = (Pinned::new(main), Proc::open()) else { return };
        // Pinned first, then looked at: the number cannot have passed to a stranger in between.
        let is_payload = proc.process(main).is_some_and(|p| p.uid == self.context.slot.uid)
            && self.state.bound.as_ref().is_some_and(|b| proc.cgroup(main).is_ok_and(|c| c == b.cgroup));
        if let Ok(signal) = Signal::try_from(signal)
            && is_payload
        {
            let _ = pinned.signal(signal);
        }
    }

    /// Reads the record and verifies it. `Ok(false)`: there is none yet.
    fn take_record(&mut self) -> Result<bool, Failure> {
        let refused = |refusal: Refusal| Failure::retry(Reason::RecordRefused, refusal.to_string());
        let Some(bytes) =
            self.context.slot.record().map_err(|e| Failure::retry(Reason::RecordRefused, e.to_string()))?
        else {
            return Ok(false);
        };
        self.state.report.cgroup = self.counted();
        let Some(secrets) = &self.state.secrets else { return Err(refused(Refusal::BadSignature)) };
        let report = &mut self.state.report;
        match keys::check(Some(&bytes), secrets) {
            Ok(record) => {
                let failed = record.error.as_ref().map(|failure| start::message(failure, &self.state.request));
                report.verified = true;
                (report.exit_code, report.signal) = (record.exit_code, record.signal);
                // The wall may pass while a job that has crossed another limit is in its grace.
                if record.outcome == Outcome::TimedOut && record.started_at.is_some() && report.limit.is_none() {
                    let at = record.ended_at.clone();
                    let limit = self.state.request.timeout_s;
                    report.limit = Some(Crossed { which: Which::Wall, limit, value: record.wall_s, at });
                }
                let asked = self.state.request.limits.within(&self.context.settings.limits);
                let cancelled = self.state.cancelled.as_deref();
                let oom_kills = report.cgroup.and_then(|counted| counted.oom_kills).unwrap_or(0);
                let (class, reason, message) =
                    class::of_record(&record, oom_kills, failed.as_deref(), cancelled, report.limit.as_ref(), &asked);
                (report.class, report.reason, report.message) = (class, reason, message);
                let started = record.started_at.as_deref().and_then(seconds_of);
                report.start_latency_ms =
                    started.zip(self.state.notified_at).map(|(at, notified)| (at - notified) * 1e3);
                report.record = Some(record);
                self.state.record_jws = String::from_utf8(bytes).ok();
                self.take_usage();
                Ok(true)
            }
            Err(refusal) => {
                report.refusal = Some(refusal);
                Err(refused(refusal))
            }
        }
    }

    /// What the container's cgroup has counted since the job was handed over.
    fn counted(&self) -> Option<Counted> {
        let before = self.state.counted_before?;
        let now = match &self.counters {
            Some(counters) => counters.now(),
            // An earlier watcher had the files open.
            None => {
                let glue = self.glue.as_ref()?;
                let now = Group::open(self.state.bound.as_ref()?.pid)?.counters.now();
                // Which process that was is known only while it lives.
                (!proof::has_ended(glue)).then_some(now)?
            }
        };
        now.since(&before)
    }

    /// What is to be said when glue is gone and there is no record.
    pub(super) fn lost(&mut self) -> Failure {
        self.take_usage();
        self.state.report.refusal = Some(Refusal::Missing);
        self.held = None;
        // The engine may take a moment to notice what the kernel has already said.
        let container = self.state.bound.as_ref().map_or("", |b| b.container.id.as_str());
        let state = self.context.binder.end_of(self.context.slot.number, container, ENGINE_NOTICES_WITHIN).ok();
        let is_wanted = self.state.cancelled.is_some() || self.state.report.limit.is_some();
        let limit = self.state.memory_size.or(state.as_ref().and_then(|state| state.memory_limit));
        let used = self.state.report.usage.as_ref().map(|usage| usage.peak.memory());
        class::of_loss(state.as_ref(), used.zip(limit).filter(|_| !is_wanted))
    }
}
