//! For which jobs there is a free slot: what a pilot asks before it claims one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::core::{Core, Job, Shared};
use super::sizes::Sizes;
use crate::job::{Fit, Phase, Requests};

/// The free payload slots, and what waits for them already.
pub struct Placement {
    sizes: Arc<Sizes>,
    payloads: u32,
    free: BTreeSet<u32>,
    waiting: Vec<(Requests, Option<u32>)>,
    /// Whether there are claimed jobs of which the core has not heard yet.
    has_unheard: bool,
}

impl Placement {
    /// Whether a job that was claimed may still get one slot or another: where slots differ, the next claim waits for
    /// that. Else a job that comes to the core first could get the only slot that is large enough for another one.
    pub fn is_open(&self) -> bool {
        self.has_unheard && self.sizes.differ()
    }

    /// Whether, and when, a further job that needs this would get a slot.
    pub fn fit(&self, requests: &Requests) -> Fit {
        if !(0..self.payloads).any(|slot| self.sizes.fits(slot, requests)) {
            return Fit::Never;
        }
        // Each waiting job gets a slot where that is possible at all; then a way is looked for to place one more.
        let mut taken = BTreeMap::new();
        for job in 0..self.waiting.len() {
            self.place(job, requests, &mut taken, &mut BTreeSet::new());
        }
        let is_placed = self.place(self.waiting.len(), requests, &mut taken, &mut BTreeSet::new());
        if is_placed { Fit::Now } else { Fit::Later }
    }

    /// Gives a job a slot, and moves others out of the way for that if need be. The job behind all that wait is the new
    /// one.
    fn place(&self, job: usize, new: &Requests, taken: &mut BTreeMap<u32, usize>, tried: &mut BTreeSet<u32>) -> bool {
        let (requests, wanted) = self.waiting.get(job).map_or((new, None), |(requests, slot)| (requests, *slot));
        for slot in self.free.iter().copied() {
            let may_have = wanted.is_none_or(|wanted| wanted == slot) && self.sizes.fits(slot, requests);
            if !may_have || !tried.insert(slot) {
                continue;
            }
            let is_free = match taken.get(&slot).copied() {
                None => true,
                Some(other) => self.place(other, new, taken, tried),
            };
            if is_free {
                taken.insert(slot, job);
                return true;
            }
        }
        false
    }
}

impl Shared {
    /// Whether a job has the slot, and does not just leave it with its result.
    fn is_taken(&self, slot: u32) -> bool {
        let Some(name) = self.serving.get(&slot) else { return false };
        let is_cleaning =
            |job: &Job| matches!(job.state.phase, Phase::Cleaning | Phase::Done) && self.has_final_result(name);
        !self.jobs.get(name).is_some_and(is_cleaning)
    }
}

impl Core {
    /// What is free now. `under_way`: names and needs of jobs that were claimed, of which the core may not have heard
    /// yet.
    pub fn placement<'a>(&self, under_way: impl Iterator<Item = (&'a String, &'a Requests)>) -> Placement {
        let shared = self.lock();
        let payloads = self.pilot_jobs.payloads();
        let is_free = |slot: &u32| shared.is_free(*slot, self.pilot_jobs, |slot| shared.is_taken(slot));
        let queued = shared.queue.iter().filter_map(|name| shared.jobs.get(name)).map(|job| &job.state.request);
        // Those of a pilot-job have its slot.
        let queued = queued.filter(|request| request.parent.is_none());
        let mut waiting: Vec<_> =
            queued.map(|request| (request.requests, request.slot.filter(|slot| *slot < payloads))).collect();
        let heard = waiting.len();
        waiting.extend(under_way.filter(|(name, _)| !shared.jobs.contains_key(*name)).map(|(_, r)| (*r, None)));
        Placement {
            sizes: self.sizes.clone(),
            payloads,
            free: (0..payloads).filter(is_free).collect(),
            has_unheard: waiting.len() > heard,
            waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::SlotSize;
    use crate::size::Bytes;

    fn memory(bytes: u64) -> Requests {
        Requests { memory: Some(Bytes(bytes)), ..Requests::default() }
    }

    fn placement(free: &[u32], waiting: &[u64]) -> Placement {
        let size = |memory| SlotSize { cpus: Some(1.0), memory: Some(memory), gpus: 0 };
        Placement {
            sizes: Arc::new(Sizes::new(&[size(10), size(20), size(40)])),
            payloads: 3,
            free: free.iter().copied().collect(),
            waiting: waiting.iter().map(|bytes| (memory(*bytes), None)).collect(),
            has_unheard: false,
        }
    }

    #[test]
    fn a_job_is_claimed_for_a_free_slot_that_is_large_enough() {
        let all = [0, 1, 2];
        assert_eq!(placement(&all, &[]).fit(&memory(40)), Fit::Now);
        assert_eq!(placement(&all, &[]).fit(&memory(41)), Fit::Never);
        assert_eq!(placement(&[0, 1], &[]).fit(&memory(40)), Fit::Later);
        assert_eq!(placement(&[], &[]).fit(&Requests::default()), Fit::Later);
    }

    #[test]
    fn what_waits_already_is_counted_where_it_has_to_go() {
        let all = [0, 1, 2];
        assert_eq!(placement(&all, &[40]).fit(&memory(30)), Fit::Later);
        assert_eq!(placement(&all, &[5, 5]).fit(&memory(40)), Fit::Now, "small ones leave the large slot to it");
        assert_eq!(placement(&all, &[40, 15]).fit(&memory(5)), Fit::Now);
        assert_eq!(placement(&all, &[40, 15]).fit(&memory(15)), Fit::Later);
        assert_eq!(placement(&[0, 1], &[40]).fit(&memory(15)), Fit::Now, "it waits for a slot that has a job");
        assert_eq!(placement(&all, &[5, 5, 5]).fit(&memory(5)), Fit::Later);
    }
}
