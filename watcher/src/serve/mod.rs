//! The core: owns the slots, takes jobs, and keeps every state where a restart finds it again.

pub mod client;
pub mod clients;
mod connection;
mod holds;
mod lines;
mod mailbox;
mod marks;
pub mod protocol;
mod quota;
pub mod server;
pub mod service;
mod slots;
mod steering;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub use self::mailbox::{Mailbox, News};
use self::slots::{client_dirs, open_slot};
use crate::bind::{Binder, Class, Failure, Reason};
use crate::job::control::Control;
use crate::job::life::Settings;
use crate::job::relay::Streams;
use crate::job::{Phase, Request, State, now, uptime};
use crate::metrics::Metrics;
use crate::slot::{ClientDirs, Slot};
use crate::store::Store;

/// Where the pilot's private volume is mounted.
pub const PRIVATE: &str = "/var/lib/latebind";

/// One job as the core holds it.
struct Job {
    state: State,
    control: Arc<Control>,
    streams: Option<Streams>,
    listeners: Vec<Arc<Mailbox>>,
}

#[derive(Default)]
struct Shared {
    jobs: HashMap<String, Job>,
    /// Names of jobs that are just being written down.
    arriving: HashSet<String>,
    queue: VecDeque<String>,
    services: service::Services,
    ending: bool,
    holds: holds::Holds,
}

impl Shared {
    /// Where in the queue the next job stands that this slot may have.
    fn next_for(&self, slot: u32) -> Option<usize> {
        let fits = |job: &Job| job.state.request.slot.is_none_or(|wanted| wanted == slot);
        self.queue.iter().position(|name| self.jobs.get(name).is_none_or(fits))
    }
}

/// The core. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Core {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    states: Store,
    /// What is written down of slots.
    slots_kept: Store,
    settings: Arc<Settings>,
    binder: Arc<dyn Binder>,
    restoring: Arc<AtomicUsize>,
    slots: Vec<u32>,
    metrics: Arc<Metrics>,
    marks: Arc<marks::Marks>,
    /// Payload UIDs of the slots.
    uids: Arc<BTreeMap<u32, u32>>,
    /// Directories for clients' sandboxes in each slot.
    dirs: Arc<BTreeMap<u32, ClientDirs>>,
}

/// The threads of a running core.
pub struct Running {
    core: Core,
    threads: Vec<JoinHandle<()>>,
}

/// What a core is made of.
pub struct Parts {
    /// The slots to serve.
    pub slots: Vec<u32>,
    /// The private volume.
    pub private: PathBuf,
    /// How images are bound.
    pub binder: Arc<dyn Binder>,
    /// How jobs are treated.
    pub settings: Settings,
    /// Whether what an earlier watcher left unfinished is ended rather than gone on with: its client is gone.
    pub drop_unfinished: bool,
}

impl Core {
    /// Opens slots and states, takes up what an earlier watcher left, and starts a thread for each slot.
    pub fn start(parts: Parts) -> io::Result<Running> {
        let marks = marks::Marks::start(parts.binder.clone())?;
        let owners = Store::open(parts.private.join("slots"))?;
        let open = |number: &u32| {
            let given = parts.binder.ids(*number).map_err(io::Error::other)?;
            let opened = open_slot(*number, &owners, given.map(|ids| (ids.uid, ids.gid)));
            let (slot, owner) = opened.map_err(|e| io::Error::new(e.kind(), format!("slot {number}: {e}")))?;
            Ok((*number, slot, owner))
        };
        let slots: Vec<(u32, Option<Slot>, (u32, u32))> = parts.slots.iter().map(open).collect::<io::Result<_>>()?;
        let mut dirs = BTreeMap::new();
        for (number, slot, _) in &slots {
            dirs.insert(*number, client_dirs(*number, slot.as_ref(), &owners)?);
        }
        let core = Self {
            marks,
            shared: Arc::default(),
            states: Store::open(parts.private.join("jobs"))?,
            slots_kept: owners,
            settings: Arc::new(parts.settings),
            binder: parts.binder,
            restoring: Arc::default(),
            slots: parts.slots.clone(),
            metrics: Arc::default(),
            dirs: Arc::new(dirs),
            uids: Arc::new(slots.iter().map(|(number, _, owner)| (owner.0, *number)).collect()),
        };
        if core.uids.len() < slots.len() {
            return Err(io::Error::other(
                "two slots have the same payload UID: `glue install` has to give each its own",
            ));
        }
        let mut resumed: HashMap<u32, Vec<String>> = HashMap::new();
        for name in core.states.names()? {
            let Some(mut state) = core.states.get_or_set_aside::<State>(&name) else { continue };
            if state.phase == Phase::Done && state.request.tied {
                // Its client has gone.
                if let Err(e) = core.states.remove(&name) {
                    tracing::warn!(job = %name, "not forgotten: {e}");
                }
                continue;
            }
            let control = Arc::new(Control::new()?);
            if state.phase != Phase::Done {
                tracing::info!(job = %name, phase = ?state.phase, slot = state.slot, "taken up again after a restart");
                if state.request.tied {
                    control.abandon("the watcher was started again");
                } else if parts.drop_unfinished {
                    control.cancel("its client is gone");
                }
            }
            match (state.phase, state.slot) {
                (Phase::Done, _) => {}
                (Phase::Queued, _) | (_, None) => {
                    state.phase = Phase::Queued;
                    core.lock().queue.push_back(name.clone());
                }
                (_, Some(slot)) => {
                    resumed.entry(slot).or_default().push(name.clone());
                }
            }
            core.lock().jobs.insert(name, Job { state, control, streams: None, listeners: Vec::new() });
        }
        core.marks.set(!resumed.is_empty());
        let mut threads = Vec::new();
        for (number, slot, owner) in slots {
            let (core, mut first) = (core.clone(), resumed.remove(&number).unwrap_or_default());
            let thread = std::thread::Builder::new().name(format!("slot-{number}"));
            threads.push(thread.spawn(move || {
                if let Some(slot) = core.settled(number, slot, owner, &mut first) {
                    core.serve_slot(slot, first);
                }
            })?);
        }
        // Slots that the pod does not have any more: their jobs are lost, and somebody waits for that answer.
        for name in resumed.into_values().flatten() {
            core.give_up(&name, Failure::retry(Reason::SlotLost, "the slot that had the job does not exist any more"));
        }
        Ok(Running { core, threads })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job, or attaches to the one that has this name. News are posted to the mailbox, the last one is
    /// [`News::Over`].
    pub fn submit(
        &self,
        request: Request,
        streams: Option<Streams>,
        to: &Arc<Mailbox>,
    ) -> Result<Arc<Control>, String> {
        request.check()?;
        if let Some(number) = request.slot.filter(|n| self.uids.values().all(|known| known != n)) {
            return Err(format!("there is no slot {number}"));
        }
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
        let kept = self.states.put(&id, &state).map_err(|e| format!("the job cannot be kept: {e}"));
        let control = kept.and_then(|()| Control::new().map(Arc::new).map_err(|e| e.to_string()));
        let mut shared = self.lock();
        shared.arriving.remove(&id);
        let control = control?;
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
        let shared = self.lock();
        shared.jobs.get(id).is_some_and(|job| job.state.report.verified && job.state.report.class == Class::Final)
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

    /// How many slots cannot be given a job just now.
    pub fn restoring(&self) -> usize {
        self.restoring.load(Ordering::Relaxed)
    }

    /// Takes over a job's new state and tells its listeners.
    fn note(&self, name: &str, state: &State) {
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
        let has_slot = |job: &Job| !matches!(job.state.phase, Phase::Queued | Phase::Done);
        self.marks.set(shared.jobs.values().any(has_slot));
        drop(shared);
        if unwanted && let Err(e) = self.forget(name) {
            tracing::warn!(job = name, "not forgotten: {e}");
        }
    }

    /// Ends a job that no slot can go on with.
    fn give_up(&self, name: &str, failure: Failure) {
        let Some(mut state) = self.lock().jobs.get(name).map(|job| job.state.clone()) else { return };
        (state.phase, state.since, state.since_up, state.secrets) = (Phase::Done, now(), uptime(), None);
        let report = &mut state.report;
        (report.class, report.reason, report.message) = (failure.class, failure.reason, failure.message);
        if let Err(e) = self.states.put(name, &state) {
            tracing::error!(job = name, "the job's state cannot be kept: {e}");
        }
        self.note(name, &state);
    }
}

impl Running {
    /// The core.
    pub fn core(&self) -> Core {
        self.core.clone()
    }

    /// Lets jobs under way come to their end, takes no more, and waits for that.
    pub fn finish(self) {
        self.core.lock().ending = true;
        self.core.shared.1.notify_all();
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
