//! Which job of the queue a slot gets, and what a pilot-job keeps from others: see [`super::pilot_jobs`].

use super::core::{Core, Job, Shared};
use super::pilot_jobs::PilotJobSlots;
use super::sizes::Sizes;
use crate::job::Phase;

fn may_have(job: &Job, slot: u32) -> bool {
    job.state.request.slot.is_none_or(|wanted| wanted == slot)
}

/// Whether a payload slot may have the job, and is large enough.
fn fits(job: &Job, slot: u32, sizes: &Sizes) -> bool {
    may_have(job, slot) && sizes.fits(slot, &job.state.request.requests)
}

/// Whether the job's own processes may run.
fn runs(job: &Job) -> bool {
    matches!(job.state.phase, Phase::Starting | Phase::Running)
}

impl Shared {
    /// Where in the queue the next job is that this slot may have. A job for which a smaller slot is free is left to
    /// that.
    pub(super) fn next_for(&self, slot: u32, slots: PilotJobSlots, sizes: &Sizes) -> Option<usize> {
        let of = |name: &String| self.jobs.get(name).map(|job| (job, &job.state.request));
        if let Some(served) = slots.served_by(slot) {
            // It would only wait for the job there.
            let is_free = !self.serving.contains_key(&served);
            let is_next = |name| of(name).is_some_and(|(job, request)| request.pilot_job && may_have(job, slot));
            return is_free.then(|| self.queue.iter().position(is_next)).flatten();
        }
        let pilot_slot = slots.serving(slot);
        if let Some(pilot_job) = pilot_slot.and_then(|slot| self.serving.get(&slot)) {
            let is_its = |name| of(name).is_some_and(|(_, request)| request.parent.as_ref() == Some(pilot_job));
            return self.queue.iter().position(is_its);
        }
        for (at, name) in self.queue.iter().enumerate() {
            let Some((job, request)) = of(name) else { return Some(at) };
            if request.pilot_job {
                // It came before all that are behind it, and gets this slot as soon as its own has taken it.
                if pilot_slot.is_some_and(|slot| self.waiting.contains(&slot) && may_have(job, slot)) {
                    return None;
                }
            } else if request.parent.is_none()
                && fits(job, slot, sizes)
                && !self.smaller_is_free(job, slot, slots, sizes)
            {
                return Some(at);
            }
        }
        None
    }

    /// Whether a payload slot can be given a job: neither it nor the slot of its pilot-job has one.
    pub(super) fn is_free(&self, slot: u32, slots: PilotJobSlots, has_job: impl Fn(u32) -> bool) -> bool {
        !self.restoring.contains(&slot) && !has_job(slot) && !slots.serving(slot).is_some_and(has_job)
    }

    /// Whether a payload slot that is smaller than this one is free, so that its thread waits for a job or is about to,
    /// and may have this one.
    fn smaller_is_free(&self, job: &Job, slot: u32, slots: PilotJobSlots, sizes: &Sizes) -> bool {
        let has_job = |slot: u32| self.serving.contains_key(&slot);
        let mut smaller = (0..slots.payloads()).filter(|other| sizes.is_smaller(*other, slot));
        smaller.any(|other| self.is_free(other, slots, has_job) && fits(job, other, sizes))
    }

    /// Takes the next job for a slot, or notes that the slot waits for one.
    pub(super) fn take_next(&mut self, slot: u32, slots: PilotJobSlots, sizes: &Sizes) -> Option<String> {
        let name = self.next_for(slot, slots, sizes).and_then(|at| self.queue.remove(at));
        match &name {
            Some(name) => {
                self.waiting.remove(&slot);
                self.serving.insert(slot, name.clone());
            }
            None => drop(self.waiting.insert(slot)),
        }
        name
    }

    /// Whether the pilot-job of this name runs, so that jobs may be submitted for it.
    pub(super) fn is_pilot_job(&self, name: &str) -> bool {
        self.jobs.get(name).is_some_and(|job| job.state.request.pilot_job && runs(job))
    }

    /// Ends all that runs for a pilot-job that is over.
    pub(super) fn abandon_jobs_of(&self, name: &str) {
        let of = |job: &&Job| job.state.request.parent.as_deref() == Some(name) && job.state.phase != Phase::Done;
        self.jobs.values().filter(of).for_each(|job| job.control.abandon("its pilot-job is over"));
    }
}

impl Core {
    /// The pilot-job that runs in this slot.
    pub(super) fn pilot_job_in(&self, slot: u32) -> Option<String> {
        let shared = self.lock();
        shared.serving.get(&slot).filter(|name| shared.is_pilot_job(name)).cloned()
    }

    /// The slot has no job any more: another one may have waited for that.
    pub(super) fn has_served(&self, slot: u32) {
        self.lock().serving.remove(&slot);
        self.shared.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use std::sync::Arc;

    use super::*;
    use crate::job::control::Control;
    use crate::job::{Request, SlotSize, State};
    use crate::size::Bytes;

    /// A queue of jobs: `p` begins the names of pilot-jobs, `x/` those of jobs of `x`.
    fn queue(names: &[&str]) -> Shared {
        let mut shared = Shared::default();
        for name in names {
            let mut request = Request::new((*name).into());
            request.pilot_job = name.starts_with('p');
            request.parent = name.split_once('/').map(|(parent, _)| parent.into());
            request.pilot_job &= request.parent.is_none();
            let control = Arc::new(Control::new().unwrap());
            let job = Job { state: State::new(request), control, streams: None, listeners: Vec::new() };
            shared.jobs.insert((*name).into(), job);
            shared.queue.push_back((*name).into());
        }
        shared
    }

    #[test]
    fn a_payload_slot_is_its_pilot_jobs_alone_while_that_has_a_slot() {
        let slots = PilotJobSlots::new(2, 1).unwrap();
        let mut shared = queue(&["p", "other", "p/1"]);
        assert_eq!(shared.take_next(1, slots, &Sizes::default()).as_deref(), Some("p"));
        assert_eq!(shared.take_next(0, slots, &Sizes::default()).as_deref(), Some("p/1"), "before what came earlier");
        shared.serving.remove(&0);
        assert_eq!(shared.take_next(0, slots, &Sizes::default()), None, "the next job of `p` is waited for");
        shared.serving.remove(&1);
        assert_eq!(shared.take_next(0, slots, &Sizes::default()).as_deref(), Some("other"));
    }

    #[test]
    fn what_came_first_is_taken_first() {
        let slots = PilotJobSlots::new(2, 1).unwrap();
        let mut shared = queue(&["a", "p", "b"]);
        assert_eq!(shared.take_next(0, slots, &Sizes::default()).as_deref(), Some("a"));
        assert_eq!(shared.take_next(1, slots, &Sizes::default()), None, "its payload slot has a job");
        shared.serving.remove(&0);
        assert_eq!(shared.take_next(0, slots, &Sizes::default()), None, "the pilot-job is next, and its slot waits");
        assert_eq!(shared.take_next(1, slots, &Sizes::default()).as_deref(), Some("p"));
        // Where its own slot takes nothing just now, nobody waits for that.
        let mut shared = queue(&["p", "b"]);
        assert_eq!(shared.take_next(0, slots, &Sizes::default()).as_deref(), Some("b"));
    }

    #[test]
    fn a_job_gets_the_smallest_free_slot_that_is_large_enough() {
        let slots = PilotJobSlots::new(3, 0).unwrap();
        let size = |memory| SlotSize { cpus: Some(1.0), memory: Some(memory), gpus: 0 };
        let sizes = Sizes::new(&[size(40), size(10), size(20)]);
        let mut shared = queue(&["large", "any", "middle", "last"]);
        for (name, memory) in [("large", 30), ("middle", 15)] {
            shared.jobs.get_mut(name).unwrap().state.request.requests.memory = Some(Bytes(memory));
        }
        assert_eq!(shared.take_next(2, slots, &sizes).as_deref(), Some("middle"), "what is before is another slot's");
        assert_eq!(shared.take_next(0, slots, &sizes).as_deref(), Some("large"));
        shared.serving.remove(&0);
        assert_eq!(shared.take_next(0, slots, &sizes), None, "the others are left to the smallest slot");
        assert_eq!(shared.take_next(1, slots, &sizes).as_deref(), Some("any"));
        assert_eq!(shared.take_next(0, slots, &sizes).as_deref(), Some("last"), "a smaller one is not free any more");
        // Nothing is left to a slot that takes nothing just now, nor to one of the same size.
        let mut shared = queue(&["a", "b"]);
        shared.restoring.insert(1);
        assert_eq!(shared.take_next(2, slots, &sizes).as_deref(), Some("a"));
        assert_eq!(shared.take_next(1, slots, &Sizes::new(&[size(1); 3])).as_deref(), Some("b"));
    }
}
