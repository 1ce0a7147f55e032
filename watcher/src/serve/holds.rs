//! Which slots' last jobs are to be held, and how often a slot has failed in a row: what a batch system has to know to act on an
//! ending that is not the job's own.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Core;
use super::protocol::{Hold, Tell};
use crate::bind::{Class, Reason};
use crate::job::Report;

/// Wait after the first failure, seconds; doubles with each in a row.
const BACK_OFF_FIRST: f64 = 5.0;
/// Longest wait.
const BACK_OFF_MAX: f64 = 300.0;

/// What slots hold, who follows that, and failures in a row.
#[derive(Default)]
pub(super) struct Holds {
    now: BTreeMap<u32, Hold>,
    followers: Vec<Sender<Tell>>,
    failures: BTreeMap<u32, i32>,
}

impl Core {
    /// A slot's job is to be held, or that is over.
    pub(super) fn hold(&self, slot: u32, hold: Option<Hold>) {
        let mut shared = self.lock();
        let before = match &hold {
            Some(hold) => shared.holds.now.insert(slot, hold.clone()),
            None => shared.holds.now.remove(&slot),
        };
        if before != hold {
            shared.holds.followers.retain(|follower| follower.send(Tell::Hold { slot, hold: hold.clone() }).is_ok());
        }
    }

    /// What all slots hold now, and each change from now on.
    pub(super) fn follow_holds(&self) -> Receiver<Tell> {
        let (tell, told) = channel();
        let mut shared = self.lock();
        for slot in self.uids.values() {
            let hold = shared.holds.now.get(slot).cloned();
            let _ = tell.send(Tell::Hold { slot: *slot, hold });
        }
        shared.holds.followers.push(tell);
        told
    }

    /// How long this slot's client should wait before it has the job tried again: longer with each failure of ours in a row.
    pub(super) fn back_off(&self, slot: u32, report: &Report) -> f64 {
        let mut shared = self.lock();
        let failures = shared.holds.failures.entry(slot).or_default();
        match (report.class, report.reason) {
            (Class::Retry, Reason::Cancelled) => 0.0,
            (Class::Retry, _) => {
                *failures = failures.saturating_add(1);
                (BACK_OFF_FIRST * 2f64.powi(*failures - 1)).min(BACK_OFF_MAX)
            }
            (Class::Final | Class::Hold, _) => {
                *failures = 0;
                0.0
            }
        }
    }
}
