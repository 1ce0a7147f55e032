//! Holds of slots' jobs, as clients give, release and follow them.

use std::sync::Arc;

use super::core::Core;
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
