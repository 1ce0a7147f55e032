//! One job's life in a slot: stage, bind, start, run, collect, clean. Each step is written down before it is taken, so
//! that a restarted watcher goes on where the last one was, and a job has exactly one result.

mod binding;
mod ending;
mod running;

pub(crate) use self::binding::kill_uid;

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::bind::{Binder, Failure, ImageCommand, Reason};
use crate::clean;
use crate::job::attach::Attach;
use crate::job::binds;
use crate::job::bounds::CopyBounds;
use crate::job::cgroup::{Counters, Group};
use crate::job::control::Control;
use crate::job::download::Web;
use crate::job::limits::{Bytes, Limits};
use crate::job::relay::{Relay, Streams};
use crate::job::{Began, Bound, PayloadHas, Phase, State, class, now, rfc3339, stage, uptime};
use crate::slot::Slot;
use crate::store::Store;
use crate::tree::{Deadline, Over};
use crate::volume_failure::is_full;

/// How long an engine may take to notice that a container has ended; the kubelet looks once a second.
const ENGINE_NOTICES_WITHIN: Duration = Duration::from_secs(3);

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
    /// What payload containers have of the operator's.
    pub payload_has: Vec<PayloadHas>,
    /// Longest time that any job is given between TERM and KILL, and for the final clean-up, seconds: the pilot's
    /// maxima are kept that much later.
    pub max_grace_s: f64,
    /// See `max_grace_s`.
    pub max_kill_s: f64,
    /// How much of a job's inputs and outputs is copied.
    pub copy: CopyBounds,
    /// How long copying a job's inputs may take, and fetching its outputs.
    pub copy_within: Duration,
    /// How long a job's end waits for its slot to be cleaned.
    pub clean_within: Duration,
    /// What may be downloaded as inputs.
    pub web: Web,
    /// How large a slot's data volume is, where its file system does not say so.
    pub disk_size: Option<Bytes>,
}

/// What one job needs from its surroundings.
pub struct JobContext<'a> {
    /// The slot.
    pub slot: &'a Slot,
    /// How images are bound.
    pub binder: &'a dyn Binder,
    /// Where states are kept.
    pub states: &'a Store,
    /// What is kept of slots.
    pub slots: &'a Store,
    /// Payload UIDs of all slots, with the slot of each.
    pub payload_uids: &'a BTreeMap<u32, u32>,
    /// How jobs are treated.
    pub settings: &'a Settings,
    /// What clients want of this job.
    pub control: &'a Arc<Control>,
    /// Is told of each new phase.
    pub on_phase: &'a dyn Fn(&State),
}

/// What a slot still holds from its last job.
#[derive(Clone, Debug)]
pub struct SlotReservation {
    /// The container.
    pub bound: Bound,
    /// Whose jobs may use it again: see [`crate::job::Request::identity`].
    pub owner: Option<(Option<u32>, String)>,
}

/// What a job leaves of its slot.
#[derive(Debug, Default)]
pub struct After {
    /// The container, where a next job of the same owner may use it.
    pub held: Option<SlotReservation>,
    /// Whether something unproven may run there: the placeholder has to come first.
    pub needs_placeholder: bool,
    /// What the job says of the slot.
    pub start: class::Start,
}

/// Takes a job to its end, from whatever phase its state is in.
pub fn live(
    context: &JobContext<'_>,
    state: &mut State,
    streams: Option<Streams>,
    held: Option<SlotReservation>,
) -> After {
    let mut life = Life {
        context,
        state,
        relay: None,
        attach: None,
        streams,
        glue: None,
        resumed: false,
        held,
        needs_placeholder: false,
        group: None,
        counters: None,
    };
    life.resumed = !matches!(life.state.phase, Phase::Queued | Phase::Staging);
    let request = &mut life.state.request;
    request.grace_s = request.grace_s.min(context.settings.max_grace_s);
    request.kill_s = request.kill_s.min(context.settings.max_kill_s);
    life.state.slot = Some(context.slot.number);
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
    while context.control.next_steer().is_some() {} // who still waits for an answer learns that it is over
    context.control.dismiss_clients();
    let start = class::start_of(&life.state.report);
    After { held: life.held, needs_placeholder: life.needs_placeholder, start }
}

struct Life<'a> {
    context: &'a JobContext<'a>,
    state: &'a mut State,
    relay: Option<Relay>,
    /// Where terminals and attendants are met, while the job runs.
    attach: Option<Attach>,
    streams: Option<Streams>,
    /// Tells when the glue of the bound container ends.
    glue: Option<OwnedFd>,
    /// Whether an earlier watcher may have done a part of this phase.
    resumed: bool,
    held: Option<SlotReservation>,
    /// Whether something may run in the container that was not proven: until the placeholder is back, nothing of the
    /// slot is touched.
    needs_placeholder: bool,
    /// What the container counts; opened while glue can be looked into.
    group: Option<Group>,
    /// Of that, the counters, which are read once more when the job is over.
    counters: Option<Arc<Counters>>,
}

fn not_kept(what: &str, e: &std::io::Error) -> Failure {
    let reason = if is_full(e) { Reason::VolumeFull } else { Reason::StateLost };
    Failure::retry(reason, format!("{what} cannot be kept in the private volume: {e}"))
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
        self.state.report.bound();
        if next == Phase::Done {
            self.state.report.finished_at = rfc3339(self.state.since);
            self.state.secrets = None; // the key has done its work
        }
        match next {
            // The report of a job that is over is its only result until it is delivered.
            Phase::Done => self.say_if_lost(self.save()),
            _ => self.save_or_say(),
        }
        (self.context.on_phase)(self.state);
    }

    /// Writes the state down. What must not be done twice waits for that.
    fn save(&self) -> Result<(), Failure> {
        self.context.states.put(&self.state.request.id, self.state).map_err(|e| not_kept("the job's state", &e))
    }

    /// For what can be done again: the job goes on; what is lost is the way back after a restart. Does not wait for the
    /// disk, which a payload can keep busy.
    fn save_or_say(&self) {
        let saved = self.context.states.put_unsynced(&self.state.request.id, self.state);
        self.say_if_lost(saved.map_err(|e| not_kept("the job's state", &e)));
    }

    fn say_if_lost(&self, saved: Result<(), Failure>) {
        if let Err(e) = saved {
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
        self.state.request.check().map_err(|e| Failure::hold(Reason::InvalidJob, e))?;
        if self.state.request.argv.is_empty() && !self.context.binder.says_commands() {
            return Err(ImageCommand::unknown(&self.state.request.image));
        }
        let data = Path::new(self.context.slot.data.path());
        let (request, has) = (&mut self.state.request, &self.context.settings.payload_has);
        binds::resolve(std::mem::take(&mut request.binds), &mut request.links, data, has)
            .map_err(|e| Failure::hold(Reason::InvalidJob, e))?;
        let most = &self.context.settings.limits;
        self.state.report.limits = self.state.request.limits.within(most);
        self.state.request.timeout_s = self.state.report.limits.wall(self.state.request.timeout_s);
        self.end_leftovers()?;
        if let Some(sandbox) = &self.state.request.sandbox {
            stage::demand_sandbox(self.context.slot, sandbox)?;
        }
        self.empty()?;
        Ok(Phase::Binding)
    }

    /// Empties the slot for this job.
    fn empty(&mut self) -> Result<(), Failure> {
        let control = self.context.control;
        let stop = || control.stop_wanted();
        let deadline = Deadline::within(self.context.settings.clean_within).unless(&stop);
        let emptied = clean::empty(self.context.slot, &deadline);
        // What is left is no job's: it is removed before the next one has the slot.
        self.needs_placeholder |= emptied.is_err();
        match (emptied, deadline.over()) {
            (Err(_), Some(Over::Stopped(why))) => Err(Failure::not_started(&why)),
            (emptied, _) => emptied,
        }
    }

    fn refuse_cancelled(&self) -> Result<(), Failure> {
        match self.context.control.stop_wanted() {
            Some(why) => Err(Failure::not_started(&why)),
            None => Ok(()),
        }
    }

    fn bound(&self) -> Result<&Bound, Failure> {
        self.state.bound.as_ref().ok_or_else(|| Failure::retry(Reason::StateLost, "the job's state names no container"))
    }
}

/// A length of time in seconds, which may come from a kept state. Whatever is none must not end the watcher again and
/// again.
fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(10))
}

/// Waits until one of the descriptors is readable, or the time is over.
fn wait<const N: usize>(fds: [BorrowedFd<'_>; N], timeout: Option<Duration>) {
    let millis = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX).saturating_add(1));
    let mut wait = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let _ = poll(&mut wait, PollTimeout::try_from(millis).unwrap_or(PollTimeout::NONE));
}
