//! The core: takes jobs, queues them, and keeps every state where a restart finds it again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::mailbox::{Mailbox, News};
use super::pilot_jobs::PilotJobSlots;
use super::sizes::Sizes;
use super::{holds, marks, protocol, service};
use crate::bind::{Binder, Class, Failure};
use crate::job::control::Control;
use crate::job::life::Settings;
use crate::job::relay::Streams;
use crate::job::{Phase, Request, State, now, uptime};
use crate::metrics::Metrics;
use crate::slot::ClientDirs;
use crate::store::Store;

/// One job as the core holds it.
pub(super) struct Job {
    pub(super) state: State,
    pub(super) control: Arc<Control>,
    pub(super) streams: Option<Streams>,
    pub(super) listeners: Vec<Arc<Mailbox>>,
}

#[derive(Default)]
pub(super) struct Shared {
    pub(super) jobs: HashMap<String, Job>,
    /// Names of jobs that are just being written down.
    pub(super) arriving: HashSet<String>,
    pub(super) queue: VecDeque<String>,
    /// The job that each slot has.
    pub(super) serving: BTreeMap<u32, String>,
    /// The slots that wait for one.
    pub(super) waiting: BTreeSet<u32>,
    /// The slots that cannot be given one just now.
    pub(super) restoring: BTreeSet<u32>,
    pub(super) services: service::Services,
    pub(super) ending: bool,
    pub(super) holds: holds::Holds,
}

impl Shared {
    /// Whether the job's record is verified and its class is final.
    pub(super) fn has_final_result(&self, id: &str) -> bool {
        self.jobs.get(id).is_some_and(|job| job.state.report.verified && job.state.report.class == Class::Final)
    }
}

/// The core. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Core {
    pub(super) shared: Arc<(Mutex<Shared>, Condvar)>,
    pub(super) states: Store,
    /// What is written down of slots.
    pub(super) slots_kept: Store,
    pub(super) settings: Arc<Settings>,
    pub(super) binder: Arc<dyn Binder>,
    pub(super) slots: Vec<u32>,
    pub(super) pilot_jobs: PilotJobSlots,
    /// How large each slot is.
    pub(super) sizes: Arc<Sizes>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) marks: Arc<marks::Marks>,
    /// Payload UIDs of the slots.
    pub(super) uids: Arc<BTreeMap<u32, u32>>,
    /// Directories for clients' sandboxes in each slot.
    pub(super) dirs: Arc<BTreeMap<u32, ClientDirs>>,
}

impl Core {
    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what cannot be run here, however long it waits.
    pub fn check(&self, request: &Request) -> Result<(), String> {
        request.check()?;
        if let Some(number) = request.slot.filter(|n| self.uids.values().all(|known| known != n)) {
            return Err(format!("there is no slot {number}"));
        }
        self.pilot_jobs.check(request)?;
        self.check_size(request)
    }

    /// Refuses what is larger than every slot that it could have: another pilot may have a larger one.
    pub fn check_size(&self, request: &Request) -> Result<(), String> {
        self.sizes.check(request, self.pilot_jobs)
    }

    /// Takes a job, or attaches to the one that has this name. News are posted to the mailbox, the last one is
    /// [`News::Over`].
    pub fn submit(
        &self,
        request: Request,
        streams: Option<Streams>,
        to: &Arc<Mailbox>,
    ) -> Result<Arc<Control>, String> {
        self.check(&request)?;
        let id = request.id.clone();
        {
            let mut shared = self.lock();
            let is_another = |job: &&Job| !request.token.is_empty() && job.state.request.token != request.token;
            if let Some(job) = shared.jobs.get(&id).filter(is_another) {
                // A job of the spool that had this name earlier: its report must never be taken for this one's.
                if job.state.phase != Phase::Done {
                    return Err(format!("another job of the name {id} is under way"));
                }
                shared.jobs.remove(&id); // what was kept of it is replaced below
            }
            if let Some(job) = shared.jobs.get_mut(&id) {
                if job.state.phase == Phase::Done {
                    to.post(News::Over(Box::new(job.state.report.clone())));
                } else if to.post(News::Phase(id, job.state.phase)) {
                    job.listeners.push(to.clone());
                }
                return Ok(job.control.clone());
            }
            if !shared.arriving.insert(id.clone()) {
                return Err(format!("{id} is just being taken: ask again"));
            }
        }
        // Nobody else waits meanwhile: a disk may take its time.
        let state = State::new(request);
        // A job of a spool is on disk as a claim: after a power loss it is submitted again. Before it can run, its
        // state is on disk in any case.
        let put = if state.request.token.is_empty() { Store::put } else { Store::put_unsynced };
        let kept = put(&self.states, &id, &state).map_err(|e| format!("the job cannot be kept: {e}"));
        let control = kept.and_then(|()| Control::new().map(Arc::new).map_err(|e| e.to_string()));
        let mut shared = self.lock();
        shared.arriving.remove(&id);
        let control = control?;
        if state.request.parent.as_ref().is_some_and(|parent| !shared.is_pilot_job(parent)) {
            drop(shared);
            self.states.remove(&id).map_err(|e| e.to_string())?;
            return Err("the pilot-job that it is for is over".into());
        }
        to.post(News::Phase(id.clone(), state.phase));
        let job = Job { state, control: control.clone(), streams, listeners: vec![to.clone()] };
        shared.jobs.insert(id.clone(), job);
        shared.queue.push_back(id);
        drop(shared);
        self.shared.1.notify_all(); // it may be for one slot alone
        Ok(control)
    }

    /// What clients may want of a job under way.
    pub fn control(&self, id: &str) -> Option<Arc<Control>> {
        self.lock().jobs.get(id).map(|job| job.control.clone())
    }

    /// Wants a job ended, if it is under way.
    pub fn cancel(&self, id: &str, why: &str) {
        if let Some(control) = self.control(id) {
            control.cancel(why);
            self.drop_unwanted();
        }
    }

    /// Wants all jobs under way ended.
    pub fn cancel_all(&self, why: &str) {
        let shared = self.lock();
        shared.jobs.values().filter(|job| job.state.phase != Phase::Done).for_each(|job| job.control.cancel(why));
        drop(shared);
        self.drop_unwanted();
    }

    /// Name, phase, slot and image of all jobs.
    pub fn jobs(&self) -> Vec<protocol::JobLine> {
        let shared = self.lock();
        let mut lines: Vec<_> = shared
            .jobs
            .values()
            .map(|job| protocol::JobLine {
                job: job.state.request.id.clone(),
                phase: job.state.phase,
                slot: job.state.slot,
                image: job.state.request.image.clone(),
            })
            .collect();
        lines.sort_by(|a, b| a.job.cmp(&b.job));
        lines
    }

    /// Whether the job's record is verified and its class is final, so that only the cleaning of its slot is left.
    pub fn has_final_result(&self, id: &str) -> bool {
        self.lock().has_final_result(id)
    }

    /// Whether the job has been given a slot, or is over.
    pub fn has_begun(&self, id: &str) -> bool {
        self.lock().jobs.get(id).is_some_and(|job| job.state.phase != Phase::Queued)
    }

    /// Forgets a job that is over: whoever asked for it has its report.
    pub fn forget(&self, id: &str) -> Result<(), String> {
        match self.lock().jobs.get(id).map(|job| job.state.phase) {
            None => return Ok(()),
            Some(Phase::Done) => {}
            Some(phase) => return Err(format!("{id} is not over but {phase:?}")),
        }
        self.states.remove(id).map_err(|e| e.to_string())?;
        self.lock().jobs.remove(id);
        Ok(())
    }

    /// Notes whether a slot cannot be given a job. A spool's jobs are counted by the others alone: a pilot-job takes
    /// up the slot that it serves.
    pub(super) fn set_restoring(&self, slot: u32, is_restored: bool) {
        let mut shared = self.lock();
        match is_restored {
            _ if self.pilot_jobs.served_by(slot).is_some() => {}
            true => drop(shared.restoring.insert(slot)),
            false => drop(shared.restoring.remove(&slot)),
        }
        drop(shared);
        self.shared.1.notify_all(); // a larger slot may have left its job to this one
    }

    /// How many slots cannot be given a job just now.
    pub fn restoring(&self) -> usize {
        self.lock().restoring.len()
    }

    /// Takes over a job's new state and tells its listeners.
    pub(super) fn note(&self, name: &str, state: &State) {
        let over = state.phase == Phase::Done;
        if over {
            let report = &state.report;
            tracing::info!(job = name, slot = state.slot, class = ?report.class, reason = %report.reason, "over");
            self.metrics.over(report);
        } else {
            tracing::debug!(job = name, slot = state.slot, phase = ?state.phase, "goes on");
        }
        let mut shared = self.lock();
        let Some(job) = shared.jobs.get_mut(name) else { return };
        job.state = state.clone();
        let news = || match state.phase {
            Phase::Done => News::Over(Box::new(state.report.clone())),
            phase => News::Phase(name.to_owned(), phase),
        };
        job.listeners.retain(|listener| listener.post(news()));
        // Its client has gone, perhaps with an earlier watcher, and nobody else will ask.
        let unwanted = over && state.request.tied && job.listeners.is_empty();
        if over {
            job.listeners.clear();
        }
        // From here on nothing of it runs that could want their results.
        let leaves_jobs =
            state.request.pilot_job && matches!(state.phase, Phase::Collecting | Phase::Cleaning | Phase::Done);
        if leaves_jobs {
            shared.abandon_jobs_of(name);
        }
        let has_slot = |job: &Job| !matches!(job.state.phase, Phase::Queued | Phase::Done);
        self.marks.set(shared.jobs.values().any(has_slot));
        drop(shared);
        if leaves_jobs {
            self.drop_unwanted();
        }
        if unwanted && let Err(e) = self.forget(name) {
            tracing::warn!(job = name, "not forgotten: {e}");
        }
    }

    /// Ends a job that no slot can go on with.
    pub(super) fn give_up(&self, name: &str, failure: Failure) {
        let Some(mut state) = self.lock().jobs.get(name).map(|job| job.state.clone()) else { return };
        (state.phase, state.since, state.since_up, state.secrets) = (Phase::Done, now(), uptime(), None);
        let report = &mut state.report;
        (report.class, report.reason, report.message) = (failure.class, failure.reason, failure.message);
        if let Err(e) = self.states.put(name, &state) {
            tracing::error!(job = name, "the job's state cannot be kept: {e}");
        }
        self.note(name, &state);
    }

    /// Jobs that wait and are not wanted any more need no slot to hear that.
    pub(super) fn drop_unwanted(&self) {
        let mut unwanted = Vec::new();
        {
            let mut shared = self.lock();
            let shared = &mut *shared;
            shared.queue.retain(|name| {
                let why = shared.jobs.get(name).and_then(|job| job.control.stop_wanted());
                let keep = why.is_none();
                unwanted.extend(why.map(|why| (name.clone(), why)));
                keep
            });
        }
        if !unwanted.is_empty() {
            self.shared.1.notify_all(); // a slot may have left what is behind it to another one
        }
        for (name, why) in unwanted {
            self.give_up(&name, Failure::not_started(&why));
        }
    }
}
