//! Whether a slot is in service. One on which job after job fails before it has started would use up the attempts of
//! all that wait: after three in a row it takes none for a while, which doubles with each further failure, and says so.
//! Failures of one image in a row count once where the image may be the cause: an image must not take the slot from
//! everybody. (A slot in which the placeholder cannot be started takes no job anyway, until it can.)

use std::collections::HashMap;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Core, Shared};
use crate::bind::{Failure, Reason};
use crate::clean;
use crate::job::class::Start;
use crate::slot::{ClientDirs, Slot};

/// So many failures in a row take a slot out of service.
const FAILURES: u32 = 3;
/// First and longest time without a job.
const FOR: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// How often a volume without room is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What is known of a slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// Starts that failed, in a row.
    pub failed: u32,
    /// Until when it takes no job.
    pub until: Option<Instant>,
    /// Why the last one failed.
    pub why: String,
    /// The image of the last one, where it may be why.
    image: Option<String>,
}

impl Service {
    /// Takes in what a job says of its slot; returns for how long it takes no other.
    fn note(&mut self, start: Start) -> Option<Duration> {
        match start {
            Start::Good => *self = Self::default(),
            Start::Bad { why, image } => {
                self.why = why;
                let again = image.is_some() && image == self.image;
                self.image = image;
                if again && self.failed < FAILURES {
                    return None;
                }
                self.failed = self.failed.saturating_add(1);
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
        self.wait_unless_ending(self.lock(), pause);
        self.restoring.fetch_sub(1, Ordering::Relaxed);
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
                self.restoring.fetch_add(1, Ordering::Relaxed);
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
            self.restoring.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(slot = slot.number, "in service again: its data volume has room");
        }
    }

    /// Waits, and says whether the core ends.
    fn wait_unless_ending(&self, shared: MutexGuard<'_, Shared>, pause: Duration) -> bool {
        let waited = self.shared.1.wait_timeout_while(shared, pause, |shared| !shared.ending);
        waited.map_or_else(|e| e.into_inner().0, |(shared, _)| shared).ending
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
        let bad = || Start::Bad { why: "StateLost: x".into(), image: None };
        let seconds = |service: &mut Service| service.note(bad()).map(|d| d.as_secs());
        assert_eq!([seconds(&mut service), seconds(&mut service)], [None, None]);
        assert_eq!(service.note(Start::Unknown), None, "says nothing of the slot");
        let out: Vec<_> = (0..7).map(|_| seconds(&mut service)).collect();
        assert_eq!(out, [10, 20, 40, 80, 160, 300, 300].map(Some));
        assert_eq!(service.note(Start::Good), None);
        assert_eq!(service, Service::default(), "one that works puts it back");
        assert_eq!([seconds(&mut service), seconds(&mut service), seconds(&mut service)], [None, None, Some(10)]);
    }

    #[test]
    fn one_image_alone_does_not_take_a_slot_out() {
        let mut service = Service::default();
        let bad = |image: &str| Start::Bad { why: "GlueSilent: x".into(), image: Some(image.into()) };
        for _ in 0..100 {
            assert_eq!(service.note(bad("r/a:1")), None);
        }
        assert_eq!(service.note(bad("r/b:1")), None, "so many failures of another image count once");
        assert_eq!(service.note(bad("r/b:1")), None);
        assert_eq!(service.note(bad("r/a:1")), Some(FOR.0), "the third in a row that is not its forerunner's again");
        assert_eq!(service.note(bad("r/a:1")), Some(FOR.0 * 2), "until a job starts there");
        assert_eq!(service.note(Start::Good), None);
        assert_eq!([service.note(bad("r/a:1")), service.note(bad("r/a:1")), service.note(bad("r/a:1"))], [None; 3]);
    }
}
