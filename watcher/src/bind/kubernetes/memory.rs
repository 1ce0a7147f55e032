//! What the binder remembers of its binds: what each reference turned out to be, which texts the kubelet has seen
//! lately, and whether a slot's last patch was seen through to its end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The kubelet forgets a container's back-off after twice its longest (pkg/kubelet/kubelet.go, client-go
/// util/flowcontrol).
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Its first wait, doubled each time, and its longest.
const BACK_OFF: (u64, u64) = (10, 300);

/// Most references that are known: jobs choose them.
const IMAGES_MAX: usize = 1024;

/// The memory of one watcher's life.
#[derive(Debug, Default)]
pub struct Memory {
    image_ids: HashMap<String, String>,
    settled: HashMap<u32, String>,
    uses: HashMap<(u32, String), Vec<Instant>>,
}

impl Memory {
    /// The kubelet's image ID for a reference, once it has run.
    pub fn known(&self, image: &str) -> Option<String> {
        self.image_ids.get(image).cloned()
    }

    /// A reference turned out to be this image ID.
    pub fn learn(&mut self, image: &str, image_id: &str) {
        if image_id.is_empty() {
            return;
        }
        if self.image_ids.len() >= IMAGES_MAX && !self.image_ids.contains_key(image) {
            // Any one: its next bind learns it again.
            let forgotten = self.image_ids.keys().next().cloned();
            forgotten.map(|image| self.image_ids.remove(&image));
        }
        self.image_ids.insert(image.to_owned(), image_id.to_owned());
    }

    /// What was learned of a reference holds no more. Whether anything had been.
    pub fn forget(&mut self, image: &str) -> bool {
        self.image_ids.remove(image).is_some()
    }

    /// Whether the slot's container is known to be of this text, which its spec has now: that somebody else has changed
    /// it, the container may not show yet.
    pub fn is_settled(&self, slot: u32, wanted: &str) -> bool {
        self.settled.get(&slot).is_some_and(|settled| settled == wanted)
    }

    /// A new container runs the image of this text.
    pub fn settle(&mut self, slot: u32, reference: &str) {
        self.settled.insert(slot, reference.to_owned());
    }

    /// This text is put into the spec: until its container is seen, the slot may run something else.
    pub fn patched(&mut self, slot: u32, reference: &str) {
        self.settled.remove(&slot);
        self.uses.retain(|_, times| {
            times.retain(|at| at.elapsed() < FORGOTTEN_AFTER);
            !times.is_empty()
        });
        self.uses.entry((slot, reference.to_owned())).or_default().push(Instant::now());
    }

    /// What to say before a text is used again: how long the kubelet may wait, and why a fresh one cannot be made.
    pub fn back_off(&self, slot: u32, reference: &str, why: &str) -> Option<String> {
        let times = self.uses.get(&(slot, reference.to_owned()))?;
        let used = times.iter().filter(|at| at.elapsed() < FORGOTTEN_AFTER).count();
        // The first use again is free.
        let doublings = u32::try_from(used.checked_sub(2)?).unwrap_or(u32::MAX).min(16);
        let wait = BACK_OFF.0.saturating_mul(1 << doublings).min(BACK_OFF.1);
        Some(format!(
            "slot {slot}: the kubelet may wait {wait} s or more before it starts {reference} again (CrashLoopBackOff): this text was used {used} times within 10 minutes, and no fresh one can be made, since {why}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_once_a_text_is_used_again_and_again() {
        let mut memory = Memory::default();
        let mut told = Vec::new();
        for _ in 0..8 {
            told.push(memory.back_off(0, "x:1", "w").map(|t| t.split(" s or").next().map(str::to_owned)));
            memory.patched(0, "x:1");
        }
        let seconds: Vec<_> =
            told.into_iter().map(|t| t.flatten().and_then(|t| t.rsplit(' ').next()?.parse().ok())).collect();
        assert_eq!(seconds, [None, None, Some(10), Some(20), Some(40), Some(80), Some(160), Some(300)]);
        assert_eq!(memory.back_off(1, "x:1", "w"), None);
    }

    #[test]
    fn a_patch_unsettles_its_slot() {
        let mut memory = Memory::default();
        memory.settle(0, "x");
        memory.settle(1, "x");
        memory.patched(0, "x");
        assert!(!memory.is_settled(0, "x") && memory.is_settled(1, "x"));
        assert!(!memory.is_settled(1, "y"), "somebody else has changed the spec");
    }

    #[test]
    fn what_a_name_means_is_learned_and_forgotten() {
        let mut memory = Memory::default();
        memory.learn("x", "");
        assert_eq!(memory.known("x"), None);
        memory.learn("x", "y@sha256:1");
        assert!(memory.forget("x") && !memory.forget("x"));
        assert_eq!(memory.known("x"), None);
    }

    #[test]
    fn no_more_references_are_known_than_may_be() {
        let mut memory = Memory::default();
        for n in 0..2 * IMAGES_MAX {
            let image = format!("x:{n}");
            memory.learn(&image, "y@sha256:1");
            memory.learn(&image, "y@sha256:2");
            assert_eq!(memory.known(&image).as_deref(), Some("y@sha256:2"));
        }
        assert_eq!(memory.image_ids.len(), IMAGES_MAX);
    }
}
