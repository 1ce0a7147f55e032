//! Which slots' last jobs are to be held, and how often a slot has failed in a row: what a batch system has to know to
//! act on an ending that is not the job's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Core;
use super::mailbox::{Mailbox, News};
use super::protocol::Hold;
use crate::bind::{Class, Reason};
use crate::job::Report;

/// Wait after the first failure, seconds; doubles with each in a row.
const BACK_OFF_FIRST: f64 = 5.0;
/// Longest wait.
const BACK_OFF_MAX: f64 = 300.0;

/// Longest text of a hold, in characters.
const MESSAGE_MAX: usize = 4 << 10;

/// What slots hold, who follows that, and failures in a row.
#[derive(Default)]
pub(super) struct Holds {
    /// Of each slot, each with the connection that it lasts as long as; the last one counts.
    now: BTreeMap<u32, Vec<(Arc<Mailbox>, Hold)>>,
    followers: Vec<Arc<Mailbox>>,
    failures: BTreeMap<u32, i32>,
}

impl Holds {
    fn of(&self, slot: u32) -> Option<Hold> {
        self.now.get(&slot)?.last().map(|(_, hold)| hold.clone())
    }

    /// Changes what a slot holds, and tells the followers.
    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Vec<(Arc<Mailbox>, Hold)>)) {
        let before = self.of(slot);
        let all = self.now.entry(slot).or_default();
        change(all);
        if all.is_empty() {
            self.now.remove(&slot);
        }
        let hold = self.of(slot);
        if before != hold {
            self.followers.retain(|follower| follower.post(News::Hold(slot, hold.clone())));
        }
    }
}

impl Core {
    /// A slot's job is to be held, until [`Core::release`] or another hold of the same connection.
    pub(super) fn hold(&self, slot: u32, connection: &Arc<Mailbox>, hold: &Hold) {
        let hold = Hold { message: hold.message.chars().take(MESSAGE_MAX).collect(), reason: hold.reason };
        self.lock().holds.change(slot, |all| {
            all.retain(|(whose, _)| !Arc::ptr_eq(whose, connection));
            all.push((connection.clone(), hold));
        });
    }

    /// What this connection holds a slot's job for is over.
    pub(super) fn release(&self, slot: u32, connection: &Arc<Mailbox>) {
        self.lock().holds.change(slot, |all| all.retain(|(whose, _)| !Arc::ptr_eq(whose, connection)));
    }

    /// What all slots hold now, and each change from now on, to this connection.
    pub(super) fn follow_holds(&self, connection: &Arc<Mailbox>) {
        let mut shared = self.lock();
        for slot in self.uids.values() {
            connection.post(News::Hold(*slot, shared.holds.of(*slot)));
        }
        if !shared.holds.followers.iter().any(|follower| Arc::ptr_eq(follower, connection)) {
            shared.holds.followers.push(connection.clone());
        }
    }

    /// No change any more.
    pub(super) fn unfollow(&self, connection: &Arc<Mailbox>) {
        self.lock().holds.followers.retain(|follower| !Arc::ptr_eq(follower, connection));
    }

    /// How long this slot's client should wait before it has the job tried again: longer with each failure of ours in a
    /// row.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn a_hold_lasts_as_long_as_its_own_connection() {
        let mailbox = || Arc::new(Mailbox::new().unwrap());
        let (mut holds, follower, one, other) = (Holds::default(), mailbox(), mailbox(), mailbox());
        holds.followers.push(follower.clone());
        let hold = |text: &str| Hold { reason: Reason::InvalidJob, message: text.into() };
        holds.change(3, |all| all.push((one.clone(), hold("one"))));
        holds.change(3, |all| all.push((other.clone(), hold("other"))));
        assert_eq!(holds.of(3), Some(hold("other")));
        holds.change(3, |all| all.retain(|(whose, _)| !Arc::ptr_eq(whose, &other)));
        assert_eq!(holds.of(3), Some(hold("one")), "the end of one connection does not release another's");
        holds.change(3, Vec::clear);
        assert!(holds.now.is_empty());
        assert!(matches!(follower.take().unwrap(), Some(News::Hold(3, None))), "the last state is what it hears");
        follower.close();
        holds.change(3, |all| all.push((one.clone(), hold("one"))));
        assert!(holds.followers.is_empty(), "one that has gone is not kept");
    }
}
