//! One job's life in a slot: stage, bind, start, run, collect, clean. Each step is written down before it is taken, so that a
//! restarted watcher goes on where the last one was, and a job has exactly one result.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use glue::contract::layout;
use glue::contract::record::{Outcome, Refusal};
use glue::contract::status::Status;
use glue::processes::{Pinned, Proc};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::cgroup::Group;
use super::control::Control;
use super::limits::{Bytes, Crossed, Limits, Which};
use super::monitor::{self, Watched};
use super::relay::{Relay, Streams};
use super::{Began, Bound, Phase, State, class, collect, now, rfc3339, seconds_of, stage, start, steer, uptime};
use crate::bind::{Binder, Class, Failure, Progress, Unattended, proof};
use crate::slot::Slot;
use crate::store::Store;
use crate::{helper, keys};

/// How long an engine may take to notice that a container has ended; the kubelet looks once a second.
const ENGINE_NOTICES_WITHIN: Duration = Duration::from_secs(3);

/// How long glue may take for its record once the job must be over: beyond that nobody is there who could write it.
const RECORD_WITHIN: Duration = Duration::from_secs(60);

/// How often a job's image is bound for one attempt. An image's root can kill the pilot before the mount proof: a restarted one
/// must not do the same over and over again.
const BINDS_MAX: u32 = 2;

/// How containers are used for more than one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Reuse {
    /// A fresh container for each job.
    #[default]
    Never,
    /// The same container for the same owner and image, one job after the other.
    SameOwner,
}

/// How the core treats jobs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Container reuse.
    pub reuse: Reuse,
    /// How long a new container's glue may take until it says that it is ready.
    pub ready_within: Duration,
    /// Whether a slot without work goes back to the placeholder.
    pub placeholder_when_idle: bool,
    /// How long it is without work before that: a job that comes sooner does not wait for two binds.
    pub idle_after: Duration,
    /// Where keys are kept, if they are.
    pub keep_keys: Option<std::path::PathBuf>,
    /// How much any job may use.
    pub limits: Limits,
    /// How large a slot's data volume is, where its file system does not say so.
    pub disk_size: Option<Bytes>,
}

/// Everything that one job's life needs from around it.
pub struct Around<'a> {
    /// The slot.
    pub slot: &'a Slot,
    /// How images are bound.
    pub binder: &'a dyn Binder,
    /// Where states are kept.
    pub states: &'a Store,
    /// How jobs are treated.
    pub settings: &'a Settings,
    /// What clients want of this job.
    pub control: &'a Arc<Control>,
    /// Is told of each new phase.
    pub on_phase: &'a dyn Fn(&State),
}

/// What a slot still holds from its last job.
#[derive(Clone, Debug)]
pub struct Held {
    /// The container.
    pub bound: Bound,
    /// Whose jobs may use it again.
    pub owner: String,
}

/// What a job leaves of its slot.
#[derive(Debug, Default)]
pub struct After {
    /// The container, where a next job of the same owner may use it.
    pub held: Option<Held>,
    /// Whether something unproven may run there: the placeholder has to come first.
    pub needs_placeholder: bool,
    /// What the job says of the slot.
    pub start: class::Start,
}

/// Takes a job to its end, from whatever phase its state is in.
pub fn live(around: &Around<'_>, state: &mut State, streams: Option<Streams>, held: Option<Held>) -> After {
    let mut life = Life {
        around,
        state,
        relay: None,
        streams,
        glue: None,
        resumed: false,
        held,
        needs_placeholder: false,
        group: None,
    };
    life.resumed = !matches!(life.state.phase, Phase::Queued | Phase::Staging);
    life.state.slot = Some(around.slot.number);
    life.state.report.slot = life.state.slot;
    while life.state.phase != Phase::Done {
        let step = match life.state.phase {
            Phase::Queued => Ok(Phase::Staging),
            Phase::Staging => life.stage(),
            Phase::Binding | Phase::Pulling => life.bind(),
            Phase::Starting => life.start(),
            Phase::Running => life.run(),
            Phase::Collecting => life.collect(),
            Phase::Cleaning => life.clean(),
            Phase::Done => Ok(Phase::Done),
        };
        let next = step.unwrap_or_else(|failure| life.failed(failure));
        life.enter(next);
    }
    while around.control.next_steer().is_some() {} // who still waits for an answer learns that it is over
    let start = class::start_of(&life.state.report);
    After { held: life.held, needs_placeholder: life.needs_placeholder, start }
}

struct Life<'a> {
    around: &'a Around<'a>,
    state: &'a mut State,
    relay: Option<Relay>,
    streams: Option<Streams>,
    /// Tells when the glue of the bound container ends.
    glue: Option<OwnedFd>,
    /// Whether an earlier watcher may have done a part of this phase.
    resumed: bool,
    held: Option<Held>,
    /// Whether something may run in the container that was not proven: until the placeholder is back, nothing of the slot is touched.
    needs_placeholder: bool,
    /// What the container counts; opened while glue can be looked into.
    group: Option<Group>,
}

/// A bind as it goes on: tells its listeners, and is given up when the job is not wanted any more.
struct Following<'a> {
    around: &'a Around<'a>,
    state: &'a State,
    pulling_since: Cell<Option<Instant>>,
}

impl Progress for Following<'_> {
    fn pulling(&self) {
        self.pulling_since.set(Some(Instant::now()));
        (self.around.on_phase)(&State { phase: Phase::Pulling, ..self.state.clone() });
    }

    fn note(&self, text: &str) {
        tracing::warn!(job = %self.state.request.id, "{text}");
    }

    fn stop_wanted(&self) -> Option<String> {
        self.around.control.settle();
        self.around.control.stop_wanted()
    }
}

impl Life<'_> {
    /// Notes how long the last phase took, and the next one before anything of it is done.
    fn enter(&mut self, next: Phase) {
        let took = (uptime() - self.state.since_up).max(0.0);
        let durations = &mut self.state.report.durations;
        match self.state.phase {
            Phase::Queued => durations.queued += took,
            Phase::Staging => durations.stage += took,
            Phase::Binding | Phase::Pulling => durations.bind += took,
            Phase::Starting => durations.start += took,
            Phase::Running => durations.run += took,
            Phase::Collecting => durations.collect += took,
            Phase::Cleaning => durations.clean += took,
            Phase::Done => {}
        }
        self.state.phase = next;
        (self.state.since, self.state.since_up) = (now(), uptime());
        self.state.report.phases.push(Began { phase: next, at: self.state.since });
        if next == Phase::Done {
            self.state.report.finished_at = rfc3339(self.state.since);
            self.state.secrets = None; // the key has done its work
        }
        self.save_or_say();
        (self.around.on_phase)(self.state);
    }

    /// Writes the state down. What must not be done twice waits for that.
    fn save(&self) -> Result<(), Failure> {
        self.around.states.put(&self.state.request.id, self.state).map_err(|e| {
            let reason = if stage::is_full(&e) { "VolumeFull" } else { "StateLost" };
            Failure::retry(reason, format!("the job's state can not be kept in the private volume: {e}"))
        })
    }

    /// For what can be done again: the job goes on; what is lost is the way back after a restart.
    fn save_or_say(&self) {
        if let Err(e) = self.save() {
            tracing::error!(job = %self.state.request.id, "{e}");
        }
    }

    /// A phase that failed: the report says why, and the slot is cleaned for the next job.
    fn failed(&mut self, failure: Failure) -> Phase {
        let report = &mut self.state.report;
        tracing::warn!(job = %report.job, slot = report.slot, reason = %failure.reason, "{}", failure.message);
        (report.class, report.reason, report.message) = (failure.class, failure.reason, failure.message);
        match self.state.phase {
            Phase::Cleaning => {
                // A slot that could not be cleaned must not be used again as it is.
                self.held = None;
                Phase::Done
            }
            Phase::Running if self.state.request.results.is_some() => Phase::Collecting,
            _ => Phase::Cleaning,
        }
    }

    fn stage(&mut self) -> Result<Phase, Failure> {
        self.refuse_cancelled()?;
        self.state.request.check().map_err(|e| Failure::hold("InvalidJob", e))?;
        let most = &self.around.settings.limits;
        self.state.request.timeout_s = most.wall(self.state.request.timeout_s);
        self.state.report.limits = self.state.request.limits.within(most);
        self.end_leftovers()?;
        if let Some(sandbox) = &self.state.request.sandbox {
            stage::demand_sandbox(self.around.slot, sandbox)?;
        }
        stage::empty(self.around.slot)?;
        Ok(Phase::Binding)
    }

    fn refuse_cancelled(&self) -> Result<(), Failure> {
        match self.around.control.stop_wanted() {
            Some(why) => Err(Failure::retry("Cancelled", format!("{why}, before it had started"))),
            None => Ok(()),
        }
    }

    /// Processes of the payload UID that an earlier, lost job may have left, wherever but in the pilot's own container: while
    /// one of them lives, it could exchange what is put into `work/`.
    fn end_leftovers(&self) -> Result<(), Failure> {
        let slot = self.around.slot;
        let unreadable = |e: std::io::Error| Failure::retry("EngineError", format!("/proc: {e}"));
        let proc = Proc::open().map_err(unreadable)?;
        let own = proc.cgroup(std::process::id() as i32).map_err(unreadable)?;
        let kill_uid = slot.status().ok().flatten().map_or(layout::DEFAULT_KILL_UID + slot.number, |s| s.kill_uid);
        for process in proc.of_uid(slot.uid).map_err(unreadable)? {
            let Ok(cgroup) = proc.cgroup_of(&process) else { continue };
            if cgroup != own {
                tracing::warn!(slot = slot.number, pid = process.pid, "left over from an earlier job");
                end_in(slot, kill_uid, &cgroup, Duration::from_secs_f64(self.state.request.kill_s))?;
            }
        }
        Ok(())
    }

    fn bind(&mut self) -> Result<Phase, Failure> {
        if self.resumed {
            self.refuse_cancelled()?;
        }
        if self.state.binds >= BINDS_MAX {
            let message = format!(
                "the pilot was ended {} times while {} was being bound: its image may have done that",
                self.state.binds, self.state.request.image
            );
            return Err(Failure::retry("PilotLost", message));
        }
        let slot = self.around.slot;
        let request = &self.state.request;
        let held = self.held.take().filter(|held| {
            self.around.settings.reuse == Reuse::SameOwner
                && !request.owner.is_empty()
                && held.owner == request.owner
                && held.bound.container.image == request.image
                // Asked anew each time: a name may mean another image by now.
                && self.around.binder.image_id(&request.image).is_ok_and(|id| id == held.bound.container.image_id)
        });
        if self.resumed {
            stage::empty(slot)?; // an earlier watcher may have filled it in part
        }
        if let Some(held) = held
            && let Ok(glue) = proof::prove(held.bound.pid, slot.number, &held.bound.container.id)
            && slot.status().is_ok_and(|s| s.is_some_and(|s| s.incarnation == held.bound.incarnation))
        {
            stage::fill(slot, request)?;
            self.state.report.reused_container = true;
            self.take_bound(held.bound, glue);
            return Ok(Phase::Starting);
        }
        let before = slot.status().ok().flatten().map(|status| status.incarnation);
        slot.silence_chime();
        self.state.binds += 1;
        self.save()?;
        let request = &self.state.request;
        self.needs_placeholder = true; // until the mount proof, root in the new container may be the image's
        let following = Following { around: self.around, state: self.state, pulling_since: Cell::new(None) };
        let mut bound_to = None;
        let (bound, staged) = std::thread::scope(|scope| {
            let stage = scope.spawn(|| {
                let began = Instant::now();
                stage::fill(slot, request).map(|()| began.elapsed())
            });
            let bound = self.around.binder.bind(slot.number, &request.image, &following).and_then(|container| {
                let proven = wait_for_glue(self.around, &container, before.as_deref());
                bound_to = Some(container);
                proven
            });
            let staged =
                stage.join().unwrap_or_else(|_| Err(Failure::retry("StagingError", "the staging thread ended")));
            (bound, staged)
        });
        let pulled = following.pulling_since.get().map_or(0.0, |since| since.elapsed().as_secs_f64());
        self.state.report.durations.pull += pulled;
        if pulled > 0.0 {
            self.state.report.phases.push(Began { phase: Phase::Pulling, at: now() - pulled });
        }
        self.state.report.container = bound_to;
        let (bound, glue) = bound?;
        self.needs_placeholder = false;
        self.take_bound(bound, glue);
        self.state.report.durations.stage += staged?.as_secs_f64();
        Ok(Phase::Starting)
    }

    fn take_bound(&mut self, bound: Bound, glue: OwnedFd) {
        self.state.report.container = Some(bound.container.clone());
        self.held = Some(Held { bound: bound.clone(), owner: self.state.request.owner.clone() });
        self.state.bound = Some(bound);
        self.glue = Some(glue);
    }

    fn bound(&self) -> Result<&Bound, Failure> {
        self.state.bound.as_ref().ok_or_else(|| Failure::retry("StateLost", "the job's state names no container"))
    }

    /// Hands the job over exactly once. When an earlier watcher was interrupted here, either the startup file is still there,
    /// or glue's status names its nonce, or it was never put.
    fn start(&mut self) -> Result<Phase, Failure> {
        let slot = self.around.slot;
        if self.resumed && self.state.secrets.is_some() {
            self.pin_glue()?;
            if slot.has_startup() {
                slot.ring().map_err(|e| Failure::retry("VolumeFull", e.to_string()))?;
                return Ok(Phase::Running);
            }
            if self.was_claimed() {
                return Ok(Phase::Running);
            }
        }
        self.refuse_cancelled()?;
        if self.glue.is_none() {
            self.pin_glue()?;
        }
        let routes = self.streams.take().map(|s| s.routes(slot, self.state.request.sandbox.is_some()));
        let bound = self.bound()?;
        let prepared = start::prepare(slot, bound, &self.state.request, routes.as_ref())?;
        if let Some(dir) = &self.around.settings.keep_keys {
            keys::keep(dir, &prepared.secrets)
                .map_err(|e| Failure::retry("VolumeFull", format!("{}: {e}", dir.display())))?;
        }
        self.state.secrets = Some(prepared.secrets);
        self.group = Group::open(self.bound()?.pid);
        self.state.memory_size = self.group.as_ref().and_then(|g| g.memory_limit);
        self.save()?; // before the file is put: from here on a restarted watcher can prove its record
        slot.ctl.remove(layout::RECORD).map_err(|e| Failure::retry("VolumeFull", e.to_string()))?;
        if let Some(routes) = routes {
            let relay = Relay::start(slot, routes);
            self.relay = Some(relay.map_err(|e| Failure::retry("RelayFailed", format!("streams: {e}")))?);
        }
        self.state.rung_at = Some(now());
        start::hand_over(slot, &self.state.request, &prepared.file)?;
        Ok(Phase::Running)
    }

    fn was_claimed(&self) -> bool {
        let nonce = self.state.secrets.as_ref().map(|s| &s.nonce);
        self.around.slot.status().is_ok_and(|status| status.is_some_and(|s| s.nonce.as_ref() == nonce))
    }

    /// A handle on the glue that the state names, or the certainty that it is gone.
    fn pin_glue(&mut self) -> Result<(), Failure> {
        let bound = self.bound()?;
        let pidfd = glue::sys::pidfd_open(bound.pid).ok();
        // Which process this is was proven when it was bound; that its number has not passed on, its container says.
        let same = Proc::open().and_then(|p| p.cgroup(bound.pid)).is_ok_and(|cgroup| cgroup == bound.cgroup);
        match pidfd.filter(|_| same) {
            Some(pidfd) => self.glue = Some(pidfd),
            None => return Err(self.lost()),
        }
        Ok(())
    }

    /// Waits for the record, the end of glue, or a client's wish.
    fn run(&mut self) -> Result<Phase, Failure> {
        if self.glue.is_none()
            && let Err(lost) = self.pin_glue()
        {
            // Glue may have ended after it had written the record.
            return if self.take_record()? { Ok(Phase::Collecting) } else { Err(lost) };
        }
        let slot = self.around.slot;
        let mut hard_kill: Option<Instant> = None;
        let mut give_up = self.over_at_last();
        let mut started = false;
        let _watching = self.watch();
        loop {
            slot.silence_chime();
            if self.take_record()? {
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
                self.relay.iter_mut().for_each(Relay::job_has_started);
            }
            hard_kill = self.obey(main, hard_kill)?;
            hard_kill = self.keep_within_limits(main, hard_kill);
            if hard_kill.is_some_and(|at| Instant::now() >= at) {
                hard_kill = None;
                end_processes(slot, self.bound()?, Duration::from_secs_f64(self.state.request.kill_s))?;
                give_up = Some(Instant::now() + RECORD_WITHIN);
            }
            if give_up.is_some_and(|at| Instant::now() >= at) {
                self.state.report.refusal = Some(Refusal::Missing);
                let message = "the job must be over for a minute, and its glue, which lives, has said nothing";
                return Err(Failure::retry("GlueSilent", message));
            }
            let next = hard_kill.into_iter().chain(give_up).min();
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            wait(
                [slot.chime(), self.around.control.woken(), self.glue.as_ref().map_or(slot.chime(), AsFd::as_fd)],
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

    /// Watches the payload's processes. Without that the job still runs; only its limits do not hold.
    fn watch(&mut self) -> Option<monitor::Watching> {
        let bound = self.state.bound.as_ref()?;
        let watched = Watched {
            slot: self.around.slot.number,
            ids: self.around.slot.ids(bound.kill_uid),
            cgroup: bound.cgroup.clone(),
            glue: bound.pid,
            group: self.group.take(),
            memory_size: self.state.memory_size,
            disk_size: self.around.settings.disk_size.map(|b| b.0),
            limits: self.state.request.limits.within(&self.around.settings.limits),
        };
        let started = monitor::start(watched, self.around.control);
        if let Err(e) = &started {
            tracing::error!(job = %self.state.request.id, slot = self.around.slot.number, "is not watched, its limits do not hold: {e}");
        }
        self.state.report.limits = self.around.control.board.limits();
        started.ok()
    }

    /// A job that has crossed a limit gets TERM, and what is left after the grace gets KILL; at once, where the kernel would
    /// soon end something of its own choice.
    fn keep_within_limits(&mut self, main: Option<i32>, hard_kill: Option<Instant>) -> Option<Instant> {
        let Some((crossed, at_once)) = self.around.control.board.crossed() else { return hard_kill };
        if self.state.report.limit.is_none() && self.state.cancelled.is_none() {
            tracing::warn!(job = %self.state.request.id, slot = self.around.slot.number, "{crossed}");
            self.state.report.limit = Some(crossed);
            self.save_or_say();
            self.end_softly(main);
            let grace = Duration::from_secs_f64(if at_once { 0.0 } else { self.state.request.grace_s });
            return Some(Instant::now() + grace);
        }
        if at_once { hard_kill.map(|at| at.min(Instant::now())) } else { hard_kill }
    }

    /// TERM to the main process, which may have been stopped.
    fn end_softly(&self, main: Option<i32>) {
        self.signal_main(main, Signal::SIGTERM as i32);
        if let Some(bound) = &self.state.bound {
            let _ = steer::all(self.around.slot.ids(bound.kill_uid), &bound.cgroup, Signal::SIGCONT as i32);
        }
    }

    /// What the report says of usage, from the monitor and from the record.
    fn take_usage(&mut self) {
        let Some(mut summary) = self.around.control.board.summary() else { return };
        if let Some(record) = &self.state.report.record {
            summary.add_record(record);
        }
        self.state.report.usage = Some(summary);
    }

    fn nonce(&self) -> Option<&glue::contract::encoding::Bytes32> {
        self.state.secrets.as_ref().map(|s| &s.nonce)
    }

    /// A startup file that glue did not take says why in its status.
    fn refused_startup(&self, status: Option<&Status>) -> Result<(), Failure> {
        let ours = self.state.secrets.as_ref().map(|s| s.startup_sha256.as_str());
        match status.and_then(|s| s.refused.as_ref()) {
            Some(refused) if Some(refused.startup_sha256.as_str()) == ours => {
                Err(Failure::retry("StartupRefused", format!("glue refused the startup file: {}", refused.message)))
            }
            _ => Ok(()),
        }
    }

    /// Passes signals on to the job's main process; a cancelled job gets TERM, and what is left after the grace gets KILL.
    fn obey(&mut self, main: Option<i32>, hard_kill: Option<Instant>) -> Result<Option<Instant>, Failure> {
        self.around.control.settle();
        let cancelled = self.around.control.cancelled();
        if main.is_none() {
            return Ok(hard_kill); // the wishes wait until there is somebody to send them to
        }
        while let Some(signal) = self.around.control.next_signal() {
            self.signal_main(main, signal);
        }
        while let Some(wish) = self.around.control.next_steer() {
            let bound = self.bound()?;
            let sent = steer::all(self.around.slot.ids(bound.kill_uid), &bound.cgroup, wish.signal);
            let _ = wish.done.send(sent.map_err(|e| e.to_string()));
        }
        let at_once = self.around.control.at_once();
        if let Some(why) = cancelled
            && self.state.cancelled.is_none()
        {
            self.state.cancelled = Some(why);
            self.save_or_say();
            if at_once {
                return Ok(Some(Instant::now()));
            }
            self.end_softly(main);
            return Ok(Some(Instant::now() + Duration::from_secs_f64(self.state.request.grace_s)));
        }
        Ok(hard_kill.map(|at| if at_once { at.min(Instant::now()) } else { at }))
    }

    fn signal_main(&self, main: Option<i32>, signal: i32) {
        let Some(main) = main else { return };
        let (Ok(pinned), Ok(proc)) = (Pinned::new(main), Proc::open()) else { return };
        // Pinned first, then looked at: the number can not have passed to a stranger in between.
        let is_payload = proc.process(main).is_some_and(|p| p.uid == self.around.slot.uid)
            && self.state.bound.as_ref().is_some_and(|b| proc.cgroup(main).is_ok_and(|c| c == b.cgroup));
        if let Ok(signal) = Signal::try_from(signal)
            && is_payload
        {
            let _ = pinned.signal(signal);
        }
    }

    /// Reads the record and verifies it. `Ok(false)`: there is none yet.
    fn take_record(&mut self) -> Result<bool, Failure> {
        let refused = |refusal: Refusal| Failure::retry("RecordRefused", refusal.to_string());
        let Some(bytes) = self.around.slot.record().map_err(|e| Failure::retry("RecordRefused", e.to_string()))? else {
            return Ok(false);
        };
        let Some(secrets) = &self.state.secrets else { return Err(refused(Refusal::BadSignature)) };
        let report = &mut self.state.report;
        match keys::check(Some(&bytes), secrets) {
            Ok(record) => {
                report.verified = true;
                (report.exit_code, report.signal) = (record.exit_code, record.signal);
                if record.outcome == Outcome::TimedOut {
                    let at = record.ended_at.clone();
                    let limit = self.state.request.timeout_s;
                    report.limit = Some(Crossed { which: Which::Wall, limit, value: record.wall_s, at });
                }
                let (class, reason, message) =
                    class::of_record(&record, self.state.cancelled.as_deref(), report.limit.as_ref());
                (report.class, report.reason, report.message) = (class, reason.to_owned(), message);
                let started = record.started_at.as_deref().and_then(seconds_of);
                report.start_latency_ms = started.zip(self.state.rung_at).map(|(at, rung)| (at - rung) * 1e3);
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

    /// What is to be said when glue is gone and there is no record.
    fn lost(&mut self) -> Failure {
        self.take_usage();
        self.state.report.refusal = Some(Refusal::Missing);
        self.held = None;
        // The engine may take a moment to notice what the kernel has already said.
        let container = self.state.bound.as_ref().map_or("", |b| b.container.id.as_str());
        let state = self.around.binder.end_of(self.around.slot.number, container, ENGINE_NOTICES_WITHIN).ok();
        class::of_loss(state.as_ref())
    }

    fn collect(&mut self) -> Result<Phase, Failure> {
        // A verified record says that nothing of the job lives; after a loss that has to be made sure of. Before the relays
        // end: whoever still lives could keep them open.
        if !self.state.report.verified || self.state.report.record.as_ref().is_some_and(|r| r.processes.unkilled > 0) {
            self.end_job_processes();
        }
        if let Some(relay) = self.relay.take() {
            relay.finish();
        }
        let record = self.state.record_jws.clone();
        let collected =
            collect::collect(self.around.slot, &self.state.request, record.as_deref(), &mut self.state.report);
        if let Err(e) = collected {
            self.state.report.missing_outputs.push(format!("results: {e}"));
        }
        Ok(Phase::Cleaning)
    }

    fn clean(&mut self) -> Result<Phase, Failure> {
        if self.needs_placeholder {
            // Not touched while a foreign root may be in it; the core brings the placeholder back before the next job has it.
            self.held = None;
            return Ok(Phase::Done);
        }
        self.end_job_processes();
        if let Some(relay) = self.relay.take() {
            relay.finish();
        }
        let slot = self.around.slot;
        if let Some(bound) = &self.state.bound {
            let ids = slot.ids(bound.kill_uid);
            let cleaned = helper::clean_ipc(ids);
            self.note(cleaned.map_err(|e| Failure::retry("CleaningFailed", format!("IPC objects: {e}"))));
        }
        self.note(stage::empty(slot));
        let report = &self.state.report;
        if self.glue.as_ref().is_none_or(proof::has_ended) || report.class == Class::Retry {
            self.held = None; // whatever was short there, the next attempt does not find it again
        }
        // Something may lie in its volumes that is no job's, and that the usual cleaning leaves alone.
        self.needs_placeholder |= report.class == Class::Retry && report.reason == "VolumeFull";
        Ok(Phase::Done)
    }

    /// Ends what is left of the job; what can not be ended loses its container, and so the engine has to end it.
    fn end_job_processes(&mut self) {
        let slot = self.around.slot;
        let Some(bound) = self.state.bound.clone() else { return };
        let within = Duration::from_secs_f64(self.state.request.kill_s);
        if let Err(e) = end_processes(slot, &bound, within) {
            self.note(Err(e));
            self.note(self.around.binder.bind(slot.number, "", &Unattended).map(drop));
            self.note(end_processes(slot, &bound, within));
        }
    }

    /// Trouble while cleaning does not change the job's result; it only costs the slot its container.
    fn note(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.held = None;
            tracing::warn!(job = %self.state.request.id, slot = self.around.slot.number, "cleaning: {failure}");
        }
    }
}

/// Ends what is left of the payload UID in the container, and makes sure of it.
fn end_processes(slot: &Slot, bound: &Bound, within: Duration) -> Result<(), Failure> {
    let inside = || {
        let proc = Proc::open()?;
        let all = proc.of_uid(slot.uid)?;
        Ok::<bool, std::io::Error>(all.iter().any(|p| proc.cgroup_of(p).is_ok_and(|c| c == bound.cgroup)))
    };
    if inside().is_ok_and(|any| !any) {
        return Ok(());
    }
    end_in(slot, bound.kill_uid, &bound.cgroup, within)
}

/// Runs the kill routine for the slot's payload in one container.
fn end_in(slot: &Slot, kill_uid: u32, cgroup: &str, within: Duration) -> Result<(), Failure> {
    let left = helper::kill(slot.ids(kill_uid), cgroup, within)
        .map_err(|e| Failure::retry("KillFailed", format!("the payload's processes: {e}")))?;
    match left {
        0 => Ok(()),
        n => Err(Failure::retry("Unkillable", format!("{n} processes of an earlier or this job could not be ended"))),
    }
}

/// Waits until the container's glue says `ready` under a new incarnation and has passed the mount proof.
fn wait_for_glue(
    around: &Around<'_>,
    container: &crate::bind::Container,
    before: Option<&str>,
) -> Result<(Bound, OwnedFd), Failure> {
    let slot = around.slot;
    let give_up = Instant::now() + around.settings.ready_within;
    loop {
        slot.silence_chime();
        around.control.settle();
        // Wrong mounts show with whatever runs there; waiting for a glue that an image keeps away would be in vain.
        proof::look_at_any(slot.number, &container.id)?;
        let status = slot.status().ok().flatten().filter(|s| Some(s.incarnation.as_str()) != before);
        let proc = Proc::open().map_err(|e| Failure::retry("EngineError", e.to_string()))?;
        if let Some(status) = status
            && let Ok(cgroup) = proc.cgroup(status.pid)
            && proof::is_of_container(&cgroup, &container.id)
        {
            if !status.contract.contains(&glue::contract::VERSION) {
                let message = format!("glue {} speaks contract {:?}", status.glue, status.contract);
                return Err(Failure::retry("VersionMismatch", message));
            }
            if (status.uid, status.gid) != (slot.uid, slot.gid) {
                return Err(Failure::retry("VersionMismatch", "glue and watcher see different owners of work/"));
            }
            slot.ids(status.kill_uid).check().map_err(|e| Failure::retry("VersionMismatch", e))?;
            let glue = proof::prove(status.pid, slot.number, &container.id)?;
            let (incarnation, pid, kill_uid) = (status.incarnation, status.pid, status.kill_uid);
            return Ok((Bound { container: container.clone(), incarnation, pid, kill_uid, cgroup }, glue));
        }
        if let Some(why) = around.control.stop_wanted() {
            return Err(Failure::retry("Cancelled", format!("{why}, before it had started")));
        }
        // The engine said that it runs: so either it is to be seen, or it has ended since.
        if !proof::has_process(&container.id)
            && let Ok(state) = around.binder.end_of(slot.number, &container.id, ENGINE_NOTICES_WITHIN)
            && !(state.running && state.id == container.id)
        {
            return Err(class::of_end_before_ready(&state));
        }
        if Instant::now() >= give_up {
            let message = format!("the new container's glue said nothing within {:?}", around.settings.ready_within);
            return Err(Failure::retry("GlueSilent", message));
        }
        // The chime wakes at once; the short wait is for an image that keeps glue from ringing it.
        wait([slot.chime(), around.control.woken(), slot.chime()], Some(Duration::from_millis(50)));
    }
}

/// Waits until one of the descriptors is readable, or the time is over.
fn wait(fds: [BorrowedFd<'_>; 3], timeout: Option<Duration>) {
    let millis = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX).saturating_add(1));
    let mut wait = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let _ = poll(&mut wait, PollTimeout::try_from(millis).unwrap_or(PollTimeout::NONE));
}
