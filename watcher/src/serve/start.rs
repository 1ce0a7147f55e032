//! How a core begins, with what an earlier watcher has left, and how it ends.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::core::{Core, Job};
use super::marks;
use super::pilot_jobs::PilotJobSlots;
use super::sizes::Sizes;
use super::slots::{client_dirs, open_slot};
use crate::bind::{Binder, Failure, Reason};
use crate::job::control::Control;
use crate::job::life::Settings;
use crate::job::{Phase, State};
use crate::slot::Slot;
use crate::store::Store;

/// The threads of a running core.
pub struct Running {
    core: Core,
    threads: Vec<JoinHandle<()>>,
}

/// What a core is made of.
pub struct Parts {
    /// The slots to serve.
    pub slots: Vec<u32>,
    /// Which of them are for pilot-jobs.
    pub pilot_jobs: PilotJobSlots,
    /// How large they are.
    pub sizes: Sizes,
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
            slots: parts.slots.clone(),
            pilot_jobs: parts.pilot_jobs,
            sizes: Arc::new(parts.sizes),
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
        // Before any slot takes a job that another one's pilot-job keeps from it.
        let first = resumed.iter().filter_map(|(slot, names)| Some((*slot, names.last()?.clone())));
        core.lock().serving.extend(first);
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
