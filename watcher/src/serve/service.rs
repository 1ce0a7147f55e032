//! Whether a slot is in service. One on which job after job fails before it has started would use up the attempts of all that wait:
//! after three in a row it takes none for a while, which doubles with each further failure, and says so.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Core;
use crate::bind::{Failure, Reason};
use crate::job::class::Start;

/// So many failures in a row take a slot out of service.
const FAILURES: u32 = 3;
/// First and longest time without a job.
const FOR: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// What is known of a slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// Starts that failed, in a row.
    pub failed: u32,
    /// Until when it takes no job.
    pub until: Option<Instant>,
    /// Why the last one failed.
    pub why: String,
}

impl Service {
    /// Takes in what a job says of its slot; returns for how long it takes no other.
    fn note(&mut self, start: Start) -> Option<Duration> {
        match start {
            Start::Good => *self = Self::default(),
            Start::Bad(why) => {
                self.failed = self.failed.saturating_add(1);
                self.why = why;
                let doublings = self.failed.checked_sub(FAILURES)?;
                return Some(FOR.0.saturating_mul(1 << doublings.min(16)).min(FOR.1));
            }
            Start::Unknown => {}
        }
        None
    }

    /// Seconds until it takes jobs again.
    pub fn out_s(&self) -> Option<f64> {
        let left = self.until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left.as_secs_f64())
    }
}

/// Of all slots.
pub type Services = HashMap<u32, Service>;

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
        self.restoring.fetch_add(1, Ordering::Relaxed);
        let (shared, changed) = &*self.shared;
        let locked = shared.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_timeout_while(locked, pause, |shared| !shared.ending));
        self.restoring.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!(slot, "in service again: the next job shows whether it can be");
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
        for (name, why) in unwanted {
            self.give_up(&name, Failure::retry(Reason::Cancelled, format!("{why}, before it had started")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_take_a_slot_out_for_longer_and_longer() {
        let mut service = Service::default();
        let bad = || Start::Bad("VolumeFull: x".into());
        let seconds = |service: &mut Service| service.note(bad()).map(|d| d.as_secs());
        assert_eq!([seconds(&mut service), seconds(&mut service)], [None, None]);
        assert_eq!(service.note(Start::Unknown), None, "says nothing of the slot");
        let out: Vec<_> = (0..7).map(|_| seconds(&mut service)).collect();
        assert_eq!(out, [10, 20, 40, 80, 160, 300, 300].map(Some));
        assert_eq!(service.note(Start::Good), None);
        assert_eq!(service, Service::default(), "one that works puts it back");
        assert_eq!([seconds(&mut service), seconds(&mut service), seconds(&mut service)], [None, None, Some(10)]);
    }
}
