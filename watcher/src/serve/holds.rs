//! Which slots' last jobs are to be held, and how often a slot has failed in a row: what a batch system has to know to
//! act on an ending that is not the job's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::mailbox::{Mailbox, News};
use super::protocol::Hold;

/// What slots hold, who follows that, and failures in a row.
#[derive(Default)]
pub(super) struct Holds {
    /// Of each slot, each with the connection that it lasts as long as; the last one counts.
    pub(super) now: BTreeMap<u32, Vec<(Arc<Mailbox>, Hold)>>,
    pub(super) followers: Vec<Arc<Mailbox>>,
    pub(super) failures: BTreeMap<u32, i32>,
}

impl Holds {
    pub(super) fn of(&self, slot: u32) -> Option<Hold> {
        self.now.get(&slot)?.last().map(|(_, hold)| hold.clone())
    }

    /// Changes what a slot holds, and tells the followers.
    pub(super) fn change(&mut self, slot: u32, change: impl FnOnce(&mut Vec<(Arc<Mailbox>, Hold)>)) {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use crate::bind::Reason;

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
