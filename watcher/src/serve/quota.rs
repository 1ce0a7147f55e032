//! How many connections there may be: each kind of client has its own share, so that none can take another's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Whose connection it is, for its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Root,
    /// The payload UID of a slot.
    Slot(u32),
    /// Another UID. All of them have one share.
    Other,
}

/// How many connections each kind may have at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// Root.
    pub(super) root: usize,
    /// The payload UID of each slot.
    pub(super) slot: usize,
    /// All others together.
    pub(super) others: usize,
    /// Each other UID.
    pub(super) other: usize,
}

/// Counts connections.
pub(super) struct Quota {
    shares: Shares,
    slots: Arc<BTreeMap<u32, u32>>,
    /// By UID, since the others are also counted one by one.
    taken: Mutex<BTreeMap<(Kind, u32), usize>>,
}

impl Quota {
    /// None yet; `slots` has the slot of each payload UID.
    pub(super) fn new(shares: Shares, slots: Arc<BTreeMap<u32, u32>>) -> Arc<Self> {
        Arc::new(Self { shares, slots, taken: Mutex::default() })
    }

    /// A permit for one more connection of this UID, while there are fewer than its share.
    pub(super) fn take(self: &Arc<Self>, uid: u32) -> Result<Permit, String> {
        let kind = match (uid, self.slots.get(&uid)) {
            (0, _) => Kind::Root,
            (_, Some(slot)) => Kind::Slot(*slot),
            (_, None) => Kind::Other,
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_kind: usize = taken.iter().filter(|((other, _), _)| *other == kind).map(|(_, n)| n).sum();
        let (of_uid, Shares { root, slot, others, other }) =
            (taken.get(&(kind, uid)).copied().unwrap_or(0), self.shares);
        let (for_kind, for_uid) = match kind {
            Kind::Root => (root, root),
            Kind::Slot(_) => (slot, slot),
            Kind::Other => (others, other),
        };
        if of_kind >= for_kind || of_uid >= for_uid {
            return Err(format!("UID {uid} has {of_uid} connections here, and may not have more just now"));
        }
        *taken.entry((kind, uid)).or_default() += 1;
        drop(taken);
        Ok(Permit { quota: self.clone(), key: (kind, uid) })
    }
}

/// One connection of a share; gives it back when dropped.
pub(super) struct Permit {
    quota: Arc<Quota>,
    key: (Kind, u32),
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = taken.get_mut(&self.key) {
            *n -= 1;
            if *n == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn no_kind_of_client_takes_anothers_share() {
        let shares = Shares { root: 2, slot: 3, others: 4, other: 3 };
        let quota = Quota::new(shares, Arc::new(BTreeMap::from([(20_000, 0), (20_001, 1)])));
        let all = |uid: u32| -> Vec<Permit> { std::iter::from_fn(|| quota.take(uid).ok()).take(100).collect() };
        let slot = all(20_000);
        let others: Vec<_> = [1000, 1001, 1002].into_iter().flat_map(all).collect();
        assert_eq!((slot.len(), others.len()), (3, 4));
        assert_eq!((all(20_001).len(), all(0).len()), (3, 2), "these find their own share");
        drop(slot);
        assert_eq!(all(20_000).len(), 3, "and what was given back can be had again");
        drop(others);
        assert_eq!(all(1002).len(), 3);
        assert!(quota.taken.lock().unwrap().is_empty());
    }
}
