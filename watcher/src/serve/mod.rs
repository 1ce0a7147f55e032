//! The core: owns the slots, takes jobs, and keeps every state where a restart finds it again.

pub mod client;
pub mod clients;
mod holds;
mod marks;
pub mod protocol;
pub mod server;
pub mod service;
mod steering;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bind::{Binder, Failure, Progress, proof};
use crate::job::control::Control;
use crate::job::life::{self, After, Around, Held, Settings};
use crate::job::relay::Streams;
use crate::job::{Phase, Report, Request, State, now, uptime};
use crate::metrics::Metrics;
use crate::slot::{ClientDirs, Slot};
use crate::store::Store;

/// Where the pilot's private volume is mounted.
pub const PRIVATE: &str = "/var/lib/latebind";

/// How long to wait before the placeholder is bound again.
const RESTORE_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// What clients are told of a job.
#[derive(Clone, Debug)]
pub enum News {
    /// It has come to this phase.
    Phase(Phase),
    /// It is over.
    Over(Box<Report>),
}

/// One job as the core holds it.
struct Job {
    state: State,
    control: Arc<Control>,
    streams: Option<Streams>,
    listeners: Vec<std::sync::mpsc::Sender<News>>,
}

#[derive(Default)]
struct Shared {
    jobs: HashMap<String, Job>,
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
            let opened = open_slot(*number, &owners);
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
            let mut state: State = match core.states.get(&name) {
                Ok(Some(state)) => state,
                Ok(None) => continue,
                Err(e) => {
                    tracing::error!(job = %name, "its state can not be read and is put aside: {e}");
                    let path = core.states.path(&name);
                    std::fs::rename(&path, path.with_extension("unreadable"))?;
                    continue;
                }
            };
            if state.phase == Phase::Done && state.request.tied {
                core.states.remove(&name)?; // whom it was for has gone
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
            core.give_up(&name, Failure::retry("SlotLost", "the slot that had the job does not exist any more"));
        }
        Ok(Running { core, threads })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job, or attaches to the one that has this name. News arrive on the receiver, the last one is [`News::Over`].
    pub fn submit(
        &self,
        request: Request,
        streams: Option<Streams>,
    ) -> Result<std::sync::mpsc::Receiver<News>, String> {
        request.check()?;
        if let Some(number) = request.slot.filter(|n| self.uids.values().all(|known| known != n)) {
            return Err(format!("there is no slot {number}"));
        }
        let (tell, news) = std::sync::mpsc::channel();
        let mut shared = self.lock();
        if let Some(job) = shared.jobs.get_mut(&request.id) {
            if job.state.phase == Phase::Done {
                let _ = tell.send(News::Over(Box::new(job.state.report.clone())));
            } else {
                let _ = tell.send(News::Phase(job.state.phase));
                job.listeners.push(tell);
            }
            return Ok(news);
        }
        let id = request.id.clone();
        let state = State::new(request);
        self.states.put(&id, &state).map_err(|e| format!("the job can not be kept: {e}"))?;
        let control = Arc::new(Control::new().map_err(|e| e.to_string())?);
        let _ = tell.send(News::Phase(state.phase));
        shared.jobs.insert(id.clone(), Job { state, control, streams, listeners: vec![tell] });
        shared.queue.push_back(id);
        drop(shared);
        self.shared.1.notify_all(); // it may be for one slot alone
        Ok(news)
    }

    /// What clients may want of a job under way.
    pub fn control(&self, id: &str) -> Option<Arc<Control>> {
        self.lock().jobs.get(id).map(|job| job.control.clone())
    }

    /// Wants all jobs under way ended.
    pub fn cancel_all(&self, why: &str) {
        let shared = self.lock();
        shared.jobs.values().filter(|job| job.state.phase != Phase::Done).for_each(|job| job.control.cancel(why));
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

    /// Forgets a job that is over: whoever asked for it has its report.
    pub fn forget(&self, id: &str) -> Result<(), String> {
        let mut shared = self.lock();
        match shared.jobs.get(id).map(|job| job.state.phase) {
            None => return Ok(()),
            Some(Phase::Done) => {}
            Some(phase) => return Err(format!("{id} is not over but {phase:?}")),
        }
        self.states.remove(id).map_err(|e| e.to_string())?;
        shared.jobs.remove(id);
        Ok(())
    }

    /// The slot with nothing foreign in it; `None` when the core ends before that. An earlier watcher may have been ended by what it was
    /// about to refuse.
    fn settled(&self, number: u32, slot: Option<Slot>, owner: (u32, u32), first: &mut Vec<String>) -> Option<Slot> {
        let under_way = first.last().cloned();
        if let Some(slot) = slot {
            let state = under_way.as_ref().and_then(|name| Some(self.lock().jobs.get(name)?.state.clone()));
            let known = match state {
                // It has a container of its own, which was proven.
                Some(state) if state.bound.is_some() => true,
                // Nothing there is touched: it may be a foreign root's, and a patch may still be on its way.
                Some(state) if state.phase != Phase::Staging => false,
                _ => self.is_known(&slot),
            };
            if known {
                return Some(slot);
            }
        }
        if let Some(slot) = self.restore(number, owner, under_way.as_deref()) {
            return Some(slot);
        }
        if let Some(name) = under_way.filter(|_| !self.lock().ending) {
            first.pop();
            self.give_up(&name, Failure::retry("Cancelled", "told to end before it had started"));
        }
        self.restore(number, owner, None)
    }

    fn serve_slot(&self, mut slot: Slot, mut first: Vec<String>) {
        let mut held: Option<Held> = None;
        // A glue that has run no job stands in a container that was bound for none.
        let mut placeholder =
            !self.settings.placeholder_when_idle || slot.status().is_ok_and(|s| s.is_some_and(|s| s.job.is_none()));
        loop {
            let name = match first.pop() {
                Some(name) => name,
                None => match self.take_queued(held.is_some(), &mut placeholder, &slot) {
                    Some(name) => name,
                    None => return,
                },
            };
            placeholder = !self.settings.placeholder_when_idle;
            let after = self.serve_job(&slot, &name, held);
            held = after.held;
            if after.needs_placeholder {
                match self.restore(slot.number, (slot.uid, slot.gid), None) {
                    Some(mended) => slot = mended,
                    None => return,
                }
                placeholder = true;
            }
            self.keep_in_service(slot.number, after.start);
        }
    }

    /// Whether what runs in the container can be ours: an earlier watcher may have left there what it would not have believed either.
    fn is_known(&self, slot: &Slot) -> bool {
        let state = self.binder.state(slot.number).map_err(|e| e.to_string());
        let looked = state.and_then(|s| proof::look_at_any(slot.number, &s.id).map_err(|e| e.to_string()));
        if let Err(why) = &looked {
            tracing::warn!(slot = slot.number, "what runs in the payload container is not known to be glue: {why}");
        }
        looked.is_ok()
    }

    /// Brings the placeholder back and mends the volumes, however long it takes: no job is given a slot in which a foreign program
    /// may be root, or on which it has left its marks. `None` when the core ends, or `job`, which waits for it, is not wanted any more.
    fn restore(&self, number: u32, (uid, gid): (u32, u32), job: Option<&str>) -> Option<Slot> {
        let end = UntilTheEnd { core: self, job: job.and_then(|name| self.control(name)) };
        self.restoring.fetch_add(1, Ordering::Relaxed);
        let mut mended = None;
        let dirs = self.dirs.get(&number).cloned().unwrap_or_default();
        while end.stop_wanted().is_none() {
            let bound = self.binder.bind(number, "", &end);
            let tried = bound.map_err(|e| format!("the placeholder can not be bound: {e}")).and_then(|_| {
                Slot::mend(number, uid, gid, &dirs).map_err(|e| format!("its volumes can not be mended: {e}"))
            });
            match tried {
                Ok(slot) => {
                    mended = Some(slot);
                    break;
                }
                Err(e) => tracing::warn!(slot = number, "no job yet, {e}"),
            }
            std::thread::sleep(RESTORE_AGAIN_AFTER);
        }
        self.restoring.fetch_sub(1, Ordering::Relaxed);
        mended
    }

    /// How many slots can not be given a job just now.
    pub fn restoring(&self) -> usize {
        self.restoring.load(Ordering::Relaxed)
    }

    /// The next job's name; `None` when the core ends. While there is none, the slot goes back to the placeholder after a while,
    /// unless its container may serve a next job of the same owner.
    fn take_queued(&self, holds: bool, placeholder: &mut bool, slot: &Slot) -> Option<String> {
        let (mut idle_since, mut idle_after) = (Instant::now(), self.settings.idle_after);
        let mut shared = self.lock();
        loop {
            if shared.ending {
                return None;
            }
            if let Some(name) = shared.next_for(slot.number).and_then(|at| shared.queue.remove(at)) {
                return Some(name);
            }
            if *placeholder || holds && self.settings.reuse == life::Reuse::SameOwner {
                shared = self.shared.1.wait(shared).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let left = idle_after.saturating_sub(idle_since.elapsed());
            if !left.is_zero() {
                shared =
                    self.shared.1.wait_timeout(shared, left).map_or_else(|e| e.into_inner().0, |(shared, _)| shared);
                continue;
            }
            drop(shared);
            match self.binder.bind(slot.number, "", &UntilWork(self, slot.number)) {
                Ok(_) => *placeholder = true,
                Err(e) => {
                    tracing::info!(slot = slot.number, "the placeholder is not bound: {e}");
                    (idle_since, idle_after) = (Instant::now(), idle_after.max(RESTORE_AGAIN_AFTER));
                }
            }
            shared = self.lock();
        }
    }

    fn serve_job(&self, slot: &Slot, name: &str, held: Option<Held>) -> After {
        let taken =
            self.lock().jobs.get_mut(name).map(|job| (job.state.clone(), job.control.clone(), job.streams.take()));
        let Some((mut state, control, streams)) = taken else { return After { held, ..After::default() } };
        let on_phase = |state: &State| self.note(name, state);
        let around = Around {
            slot,
            binder: self.binder.as_ref(),
            states: &self.states,
            settings: &self.settings,
            control: &control,
            on_phase: &on_phase,
        };
        // Whatever is said while the job has the slot says whose it is.
        let _named = tracing::error_span!("job", job = name, slot = slot.number).entered();
        life::live(&around, &mut state, streams, held)
    }

    /// Takes over a job's new state and tells its listeners.
    fn note(&self, name: &str, state: &State) {
        let mut shared = self.lock();
        let Some(job) = shared.jobs.get_mut(name) else { return };
        job.state = state.clone();
        let has_slot = |job: &Job| !matches!(job.state.phase, Phase::Queued | Phase::Done);
        self.marks.set(shared.jobs.values().any(has_slot));
        let Some(job) = shared.jobs.get_mut(name) else { return };
        if state.phase == Phase::Done && state.request.tied && job.listeners.is_empty() {
            // Taken up again after a restart: its client went with the watcher that had it, and nobody else will ask.
            shared.jobs.remove(name);
            if let Err(e) = self.states.remove(name) {
                tracing::warn!(job = name, "not forgotten: {e}");
            }
            return;
        }
        let news = match state.phase {
            Phase::Done => {
                let report = &state.report;
                tracing::info!(job = name, slot = state.slot, class = ?report.class, reason = %report.reason, "over");
                self.metrics.over(report);
                News::Over(Box::new(report.clone()))
            }
            phase => {
                tracing::debug!(job = name, slot = state.slot, ?phase, "goes on");
                News::Phase(phase)
            }
        };
        job.listeners.retain(|listener| listener.send(news.clone()).is_ok());
        if state.phase == Phase::Done {
            job.listeners.clear();
        }
    }

    /// Ends a job that no slot can go on with.
    fn give_up(&self, name: &str, failure: Failure) {
        let Some(mut state) = self.lock().jobs.get(name).map(|job| job.state.clone()) else { return };
        (state.phase, state.since, state.since_up, state.secrets) = (Phase::Done, now(), uptime(), None);
        let report = &mut state.report;
        (report.class, report.reason, report.message) = (failure.class, failure.reason, failure.message);
        if let Err(e) = self.states.put(name, &state) {
            tracing::error!(job = name, "the job's state can not be kept: {e}");
        }
        self.note(name, &state);
    }
}

/// Opens a slot, and says whose its jobs are. That is written down the first time, before any image was bound: later a foreign root
/// may have changed it, and closed the volumes to us. Then there is no slot until it is restored.
fn open_slot(number: u32, owners: &Store) -> io::Result<(Option<Slot>, (u32, u32))> {
    let (name, opened) = (number.to_string(), Slot::open(number));
    let Some(owner) = owners.get::<(u32, u32)>(&name)? else {
        let slot = opened?;
        let owner = (slot.uid, slot.gid);
        owners.put(&name, &owner)?;
        return Ok((Some(slot), owner));
    };
    let slot = match opened {
        Ok(slot) if (slot.uid, slot.gid) == owner => Some(slot),
        Ok(slot) => {
            tracing::warn!(slot = number, "its work/ belongs to UID {}, not to {} as at first", slot.uid, owner.0);
            None
        }
        Err(e) => {
            tracing::warn!(slot = number, "{e}");
            None
        }
    };
    Ok((slot, owner))
}

/// The directories that the slot's clients have for their sandboxes, as they were the first time.
fn client_dirs(number: u32, slot: Option<&Slot>, owners: &Store) -> io::Result<ClientDirs> {
    let name = format!("{number}-dirs");
    match (owners.get(&name)?, slot) {
        (Some(dirs), _) => Ok(dirs),
        (None, Some(slot)) => {
            let dirs = slot.client_dirs()?;
            owners.put(&name, &dirs)?;
            Ok(dirs)
        }
        (None, None) => Ok(ClientDirs::new()),
    }
}

/// The placeholder of an idle slot is not waited for when there is work again.
struct UntilWork<'a>(&'a Core, u32);

impl Progress for UntilWork<'_> {
    fn stop_wanted(&self) -> Option<String> {
        let shared = self.0.lock();
        (shared.ending || shared.next_for(self.1).is_some()).then(|| "there is work again".to_owned())
    }
}

/// The placeholder that has to come back, unless the watcher ends or the job that it is for.
struct UntilTheEnd<'a> {
    core: &'a Core,
    /// The job that waits for it, if any.
    job: Option<Arc<Control>>,
}

impl Progress for UntilTheEnd<'_> {
    fn stop_wanted(&self) -> Option<String> {
        let ending = self.core.lock().ending.then(|| "the watcher ends".to_owned());
        ending.or_else(|| self.job.as_ref()?.stop_wanted())
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
