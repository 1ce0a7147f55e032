//! Whether a slot is in service. One on which job after job fails before it has started would use up the attempts of
//! all that wait: after three in a row it takes none for a while, which doubles with each further failure, and says so.
//! Failures of one image in a row count once where the image may be the cause: an image must not take the slot from
//! everybody. (A slot in which the placeholder cannot be started takes no job anyway, until it can.)

use std::collections::HashMap;
use std::time::{Duration, Instant};

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
    /// The image of the last one, where it may be why.
    image: Option<String>,
}

impl Service {
    /// Takes in what a job says of its slot; returns for how long it takes no other.
    pub(super) fn note(&mut self, start: Start) -> Option<Duration> {
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
