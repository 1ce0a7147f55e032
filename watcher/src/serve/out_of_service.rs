//! What the core does while a slot is out of service: it waits, and says why.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use super::core::{Core, Shared};
use crate::clean;
use crate::job::class::Start;
use crate::slot::{ClientDirs, Slot};

/// How often a volume without room is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl Core {
    /// Takes in how a job in this slot began; where too many did not, waits until it is worth another try.
    pub(super) fn keep_in_service(&self, slot: u32, start: Start) {
        let (pause, service) = {
            let mut shared = self.lock();
            let service = shared.services.entry(slot).or_default();
            let pause = service.note(start);
            service.until = pause.and_then(|pause| Instant::now().checked_add(pause));
            (pause, service.clone())
        };
        let Some(pause) = pause else { return };
        tracing::error!(
            slot,
            failed_starts = service.failed,
            seconds = pause.as_secs(),
            "out of service: jobs in a row could not be started; the last one: {}",
            service.why
        );
        self.set_restoring(slot, true);
        self.wait_unless_ending(self.lock(), pause);
        self.set_restoring(slot, false);
        tracing::warn!(slot, "in service again: the next job shows whether it can be");
    }

    /// Waits while others hold the slot's data volume full, with descriptors of files that are gone: a job that was
    /// given it would lose an attempt by that. A slot that has its pod to itself shares its volume with nobody.
    pub(super) fn await_room(&self, slot: &Slot) {
        let is_shared = self.slots.len() > 1 && self.dirs.get(&slot.number).is_none_or(ClientDirs::is_empty);
        let mut said = false;
        while is_shared && let Ok(Some((used, size))) = clean::held_by_others(slot) {
            let why =
                format!("VolumeHeld: {used} of {size} bytes of its data volume are taken, though nothing is in it");
            if !said {
                tracing::error!(slot = slot.number, "out of service: {why}: another slot's job has files of it open");
                self.set_restoring(slot.number, true);
                said = true;
            }
            let mut shared = self.lock();
            let service = shared.services.entry(slot.number).or_default();
            (service.why, service.until) = (why, Instant::now().checked_add(LOOK_EVERY));
            if self.wait_unless_ending(shared, LOOK_EVERY) {
                break;
            }
        }
        if said {
            self.set_restoring(slot.number, false);
            tracing::warn!(slot = slot.number, "in service again: its data volume has room");
        }
    }

    /// Waits, and says whether the core ends.
    fn wait_unless_ending(&self, shared: MutexGuard<'_, Shared>, pause: Duration) -> bool {
        let waited = self.shared.1.wait_timeout_while(shared, pause, |shared| !shared.ending);
        waited.map_or_else(|e| e.into_inner().0, |(shared, _)| shared).ending
    }
}
