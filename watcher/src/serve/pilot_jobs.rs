//! Jobs that are pilots themselves (`pilot_job`): which slots they run in, and which slot the jobs of each one get.
//!
//! Such a job has a slot of its own, and there what every job has: the image that it names, a payload UID, no rights.
//! What it has besides is a socket of the core's, in a directory that no other container has mounted. By it, and by
//! nothing else, it runs jobs in one payload slot, which is nobody else's meanwhile.

use std::path::PathBuf;

use crate::job::Request;

/// Where a pilot-job's container has the directory of its socket.
pub const SOCKET_DIR: &str = "/run/latebind";

/// Name of the socket in it.
pub(super) const SOCKET: &str = "clients.sock";

/// Where the pilot container has that directory of a slot.
pub fn dir_in_pilot(slot: u32) -> PathBuf {
    format!("/clients/slot/{slot}").into()
}

/// Which slots are for pilot-jobs: the last ones. The first of them serves slot 0, the next one slot 1, and so on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PilotJobSlots {
    payloads: u32,
    pilot_jobs: u32,
}

impl PilotJobSlots {
    /// The last `pilot_jobs` of `slots` slots.
    pub fn new(slots: u32, pilot_jobs: u32) -> Result<Self, String> {
        match slots.checked_sub(pilot_jobs).filter(|payloads| pilot_jobs <= *payloads) {
            Some(payloads) => Ok(Self { payloads, pilot_jobs }),
            None => Err(format!("{pilot_jobs} of {slots} slots cannot be for pilot-jobs: each needs one to serve")),
        }
    }

    /// How many slots are for other jobs.
    pub fn payloads(self) -> u32 {
        self.payloads
    }

    /// The slots for pilot-jobs.
    pub fn all(self) -> impl Iterator<Item = u32> {
        (0..self.pilot_jobs).map(move |n| self.payloads + n)
    }

    /// The slot that the jobs of a pilot-job in this slot get; `None`: the slot is not for pilot-jobs.
    pub fn served_by(self, slot: u32) -> Option<u32> {
        slot.checked_sub(self.payloads).filter(|n| *n < self.pilot_jobs)
    }

    /// The slot whose pilot-job gets this payload slot, if there is one.
    pub(super) fn serving(self, payload: u32) -> Option<u32> {
        (payload < self.pilot_jobs).then(|| self.payloads + payload)
    }

    /// Whether the request's slot, if it names one, is of the kind that it needs.
    pub(super) fn check(self, request: &Request) -> Result<(), String> {
        match (request.pilot_job, request.slot.map(|slot| self.served_by(slot).is_some())) {
            (true, _) if self.pilot_jobs == 0 => {
                Err("pilot_job: this pilot has no container for jobs that are pilots themselves".into())
            }
            (true, Some(false)) => Err("pilot_job: the slot that it names is not for such jobs".into()),
            (false, Some(true)) => Err("the slot that it names is for pilot-jobs alone".into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn the_last_slots_are_for_pilot_jobs_and_serve_the_first() {
        let slots = PilotJobSlots::new(5, 2).unwrap();
        assert_eq!((0..6).map(|n| slots.served_by(n)).collect::<Vec<_>>(), [None, None, None, Some(0), Some(1), None]);
        assert_eq!((0..5).map(|n| slots.serving(n)).collect::<Vec<_>>(), [Some(3), Some(4), None, None, None]);
        assert_eq!((slots.payloads(), slots.all().collect::<Vec<_>>()), (3, vec![3, 4]));
        assert_eq!(PilotJobSlots::new(1, 0).unwrap().served_by(0), None);
        assert!(PilotJobSlots::new(2, 2).is_err() && PilotJobSlots::new(1, 2).is_err());
    }

    #[test]
    fn jobs_go_into_slots_of_their_kind() {
        let (some, none) = (PilotJobSlots::new(2, 1).unwrap(), PilotJobSlots::new(2, 0).unwrap());
        let check = |slots: PilotJobSlots, pilot_job: bool, slot: Option<u32>| {
            let request = Request { pilot_job, slot, ..Request::new("a".into()) };
            slots.check(&request).is_ok()
        };
        assert!(check(some, true, None) && check(some, true, Some(1)) && check(some, false, Some(0)));
        assert!(!check(some, true, Some(0)) && !check(some, false, Some(1)) && !check(none, true, None));
        assert!(check(none, false, Some(1)) && check(none, false, None));
    }
}
