//! A slot as the core serves it: job after job, and the placeholder in between.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::bind::{Failure, Progress, Reason, proof};
use crate::clean;
use crate::job::control::Control;
use crate::job::life::{self, After, JobContext, SlotReservation};
use crate::job::{Phase, State};
use crate::slot::{ClientDirs, Slot, dirty_mark};
use crate::store::Store;
use crate::tree::Deadline;

use super::core::Core;

/// How long to wait before the placeholder is bound again.
const RESTORE_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Opens a slot, and says whose its jobs are: `given` by whoever made the pod, or written down the first time, before
/// any image was bound. Later a foreign root may have changed the owner, and closed the volumes to us. Then there is no
/// slot until it is restored.
pub(super) fn open_slot(
    number: u32,
    owners: &Store,
    given: Option<(u32, u32)>,
) -> io::Result<(Option<Slot>, (u32, u32))> {
    let (name, opened) = (number.to_string(), Slot::open(number));
    let known = owners.contains(&name);
    let kept = owners.get_or_set_aside::<(u32, u32)>(&name);
    if known && kept.is_none() {
        // What was written down is unreadable: an image may have run here, so the volumes are reset before the slot is
        // used.
        owners.put(&dirty_mark(number), &true)?;
    }
    if let Some(owner) = given.filter(|owner| kept != Some(*owner)) {
        owners.put(&name, &owner)?; // the private volume is new, or had another pod before
    }
    let Some(owner) = given.or(kept) else {
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
pub(super) fn client_dirs(number: u32, slot: Option<&Slot>, owners: &Store) -> io::Result<ClientDirs> {
    let name = format!("{number}-dirs");
    match (owners.get_or_set_aside(&name), slot) {
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
        (shared.ending || shared.next_for(self.1, self.0.pilot_jobs, &self.0.sizes).is_some())
            .then(|| "there is work again".to_owned())
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

impl Core {
    /// The slot with nothing foreign in it; `None` when the core ends before that. An earlier watcher may have been
    /// ended by what it was about to refuse.
    pub(super) fn settled(
        &self,
        number: u32,
        slot: Option<Slot>,
        owner: (u32, u32),
        first: &mut Vec<String>,
    ) -> Option<Slot> {
        let under_way = first.last().cloned();
        if let Some(slot) = slot {
            let state = under_way.as_ref().and_then(|name| Some(self.lock().jobs.get(name)?.state.clone()));
            let known = match state {
                // It has a container of its own, which was proven.
                Some(state) if state.bound.is_some() => true,
                // Nothing there is touched: it may be a foreign root's, and a patch may still be on its way.
                Some(state) if state.phase != Phase::Staging => false,
                _ => self.is_known(&slot) && self.is_as_it_was(&slot),
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
            self.give_up(&name, Failure::retry(Reason::Cancelled, "told to end before it had started"));
            self.has_served(number);
        }
        self.restore(number, owner, None)
    }

    pub(super) fn serve_slot(&self, mut slot: Slot, mut first: Vec<String>) {
        let mut held: Option<SlotReservation> = None;
        // A glue that has run no job stands in a container that was bound for none.
        let mut placeholder =
            !self.settings.placeholder_when_idle || slot.status().is_ok_and(|s| s.is_some_and(|s| s.job.is_none()));
        loop {
            let name = match first.pop() {
                Some(name) => {
                    self.lock().serving.insert(slot.number, name.clone());
                    self.shared.1.notify_all(); // a larger slot may have left its job to this one
                    name
                }
                None => match self.take_queued(held.is_some(), &mut placeholder, &slot) {
                    Some(name) => name,
                    None => return,
                },
            };
            placeholder = !self.settings.placeholder_when_idle;
            let after = self.serve_job(&slot, &name, held);
            self.has_served(slot.number);
            held = after.held;
            if after.needs_placeholder {
                match self.restore(slot.number, (slot.uid, slot.gid), None) {
                    Some(reset) => slot = reset,
                    None => return,
                }
                placeholder = true;
            }
            self.keep_in_service(slot.number, after.start);
            self.await_room(&slot);
        }
    }

    /// Whether what runs in the container can be ours: an earlier watcher may have left there what it would not have
    /// believed either.
    fn is_known(&self, slot: &Slot) -> bool {
        let state = self.binder.state(slot.number).map_err(|e| e.to_string());
        let looked = state.and_then(|s| proof::look_at_any(slot.number, &s.id).map_err(|e| e.to_string()));
        if let Err(why) = &looked {
            tracing::warn!(slot = slot.number, "what runs in the payload container is not known to be glue: {why}");
        }
        looked.is_ok()
    }

    /// Whether the volumes are as they were before there was any image: an earlier watcher may have been ended before
    /// it had reset what an image without a mount proof left.
    fn is_as_it_was(&self, slot: &Slot) -> bool {
        let dirs = self.dirs.get(&slot.number);
        let found = slot.client_dirs().unwrap_or_default();
        let changed: Vec<_> =
            dirs.into_iter().flatten().filter(|(name, owner)| found.get(*name) != Some(owner)).collect();
        if !changed.is_empty() {
            tracing::warn!(slot = slot.number, "directories of its clients are not as they were: {changed:?}");
        }
        changed.is_empty() && !self.slots_kept.contains(&dirty_mark(slot.number))
    }

    /// Brings the placeholder back and resets the volumes, however long it takes: no job is given a slot in which a
    /// foreign program may be root, or on which it has left its marks. `None` when the core ends, or `job`, which waits
    /// for it, is not wanted any more.
    fn restore(&self, number: u32, (uid, gid): (u32, u32), job: Option<&str>) -> Option<Slot> {
        let end = UntilTheEnd { core: self, job: job.and_then(|name| self.control(name)) };
        self.set_restoring(number, true);
        let mut restored = None;
        let dirs = self.dirs.get(&number).cloned().unwrap_or_default();
        while end.stop_wanted().is_none() {
            let bound = self.binder.bind(number, "", &end);
            let tried = bound.map_err(|e| format!("the placeholder cannot be bound: {e}")).and_then(|_| {
                let stop = || end.stop_wanted();
                let deadline = Deadline::within(self.settings.clean_within).unless(&stop);
                let reset = clean::reset(number, (uid, gid), &dirs, &deadline);
                let slot = reset.map_err(|e| format!("its volumes cannot be reset: {e}"))?;
                let ids = slot.ids(life::kill_uid(&*self.binder, &self.slots_kept, number));
                let cleaned = self.binder.clean_ipc(number, ids, false);
                cleaned.map(|()| slot).map_err(|e| format!("its last job's {}", e.message))
            });
            match tried {
                Ok(slot) => {
                    if let Err(e) = self.slots_kept.remove(&dirty_mark(number)) {
                        tracing::warn!(slot = number, "it will be reset again after a restart: {e}");
                    }
                    tracing::info!(slot = number, "the placeholder is back, and the slot's volumes are reset");
                    restored = Some(slot);
                    break;
                }
                Err(e) => tracing::warn!(slot = number, "no job yet, {e}"),
            }
            std::thread::sleep(RESTORE_AGAIN_AFTER);
        }
        self.set_restoring(number, false);
        restored
    }

    /// The next job's name; `None` when the core ends. While there is none, the slot goes back to the placeholder after
    /// a while, unless its container may serve a next job of the same owner.
    fn take_queued(&self, holds: bool, placeholder: &mut bool, slot: &Slot) -> Option<String> {
        let (mut idle_since, mut idle_after) = (Instant::now(), self.settings.idle_after);
        let mut shared = self.lock();
        loop {
            if shared.ending {
                return None;
            }
            if let Some(name) = shared.take_next(slot.number, self.pilot_jobs, &self.sizes) {
                // Another slot may have left it, and what is behind it, to this one.
                self.shared.1.notify_all();
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

    fn serve_job(&self, slot: &Slot, name: &str, held: Option<SlotReservation>) -> After {
        let taken =
            self.lock().jobs.get_mut(name).map(|job| (job.state.clone(), job.control.clone(), job.streams.take()));
        let Some((mut state, control, streams)) = taken else { return After { held, ..After::default() } };
        let on_phase = |state: &State| self.note(name, state);
        let context = JobContext {
            slot,
            binder: self.binder.as_ref(),
            states: &self.states,
            slots: &self.slots_kept,
            payload_uids: &self.uids,
            settings: &self.settings,
            control: &control,
            on_phase: &on_phase,
        };
        // Whatever is said while the job has the slot says whose it is.
        let _named = tracing::error_span!("job", job = name, slot = slot.number).entered();
        life::live(&context, &mut state, streams, held)
    }
}
