//! The sizes of the slots, and which job fits into which one.

use std::collections::BTreeMap;

use super::pilot_jobs::PilotJobSlots;
use crate::job::{Request, Requests, SlotSize};
use crate::size::Bytes;

/// Variable with the processors of each slot; `_<n>` behind it: of slot n.
pub const CPUS: &str = "LATEBIND_CPUS";
/// The same for its memory, in bytes.
pub const MEMORY: &str = "LATEBIND_MEMORY";
/// The same for its GPUs.
pub const GPUS: &str = "LATEBIND_GPUS";

/// Name of the variable that says this of one slot.
pub fn variable(of: &str, slot: u32) -> String {
    format!("{of}_{slot}")
}

/// The size of each slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sizes(BTreeMap<u32, (SlotSize, f64)>);

impl Sizes {
    /// Of slots with these sizes, from slot 0 on.
    pub fn new(sizes: &[SlotSize]) -> Self {
        let cpus: f64 = sizes.iter().filter_map(|size| size.cpus).sum();
        let memory: f64 = sizes.iter().filter_map(|size| size.memory).map(|memory| memory as f64).sum();
        let share = |part: Option<f64>, of: f64| part.map_or(f64::INFINITY, |part| part / of.max(f64::MIN_POSITIVE));
        let of = |size: &SlotSize| share(size.cpus, cpus) + share(size.memory.map(|memory| memory as f64), memory);
        Self((0..).zip(sizes.iter().map(|size| (*size, of(size)))).collect())
    }

    /// As the environment says them, for so many slots.
    pub fn from_environment(slots: u32, get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let said = |of: &str, slot: u32| {
            let own = variable(of, slot);
            let given = |name: &str| get(name).filter(|value| !value.is_empty()).map(|value| (name.to_owned(), value));
            given(&own).or_else(|| given(of))
        };
        let size = |slot: u32| {
            let cpus = said(CPUS, slot).map(|(name, value)| match value.parse::<f64>() {
                Ok(cpus) if cpus.is_finite() && cpus >= 0.0 => Ok(cpus),
                _ => Err(format!("{name} is {value:?}: give a number of processors")),
            });
            let memory = said(MEMORY, slot)
                .map(|(name, value)| value.parse::<Bytes>().map(|bytes| bytes.0).map_err(|e| format!("{name}: {e}")));
            let gpus = said(GPUS, slot).map(|(name, value)| {
                value.parse::<u32>().map_err(|_| format!("{name} is {value:?}: give a whole number of GPUs"))
            });
            let (cpus, memory, gpus) = (cpus.transpose()?, memory.transpose()?, gpus.transpose()?.unwrap_or(0));
            Ok(SlotSize { cpus: cpus.filter(|n| *n > 0.0), memory: memory.filter(|n| *n > 0), gpus })
        };
        Ok(Self::new(&(0..slots).map(size).collect::<Result<Vec<_>, String>>()?))
    }

    /// Whether a job that needs this can run in the slot.
    pub fn fits(&self, slot: u32, requests: &Requests) -> bool {
        self.0.get(&slot).is_none_or(|(size, _)| size.fits(requests))
    }

    /// Whether the slot `a` is smaller than `b`: it has fewer GPUs, or as many and a smaller share of all processors
    /// and of all memory, added up.
    pub(super) fn is_smaller(&self, a: u32, b: u32) -> bool {
        let weight = |slot: u32| self.0.get(&slot).map_or((0, f64::INFINITY), |(size, share)| (size.gpus, *share));
        weight(a) < weight(b)
    }

    /// Whether not all slots have one size.
    pub(super) fn differ(&self) -> bool {
        let mut sizes = self.0.values().map(|(size, _)| size);
        let first = sizes.next();
        sizes.any(|size| Some(size) != first)
    }

    /// The slot's size, for people.
    pub fn describe(&self, slot: u32) -> String {
        self.0.get(&slot).map(|(size, _)| *size).unwrap_or_default().to_string()
    }

    /// Refuses a job for which no slot that it could have is large enough.
    pub fn check(&self, request: &Request, slots: PilotJobSlots) -> Result<(), String> {
        let requests = &request.requests;
        let may_have = |slot: u32| request.slot.is_none_or(|wanted| wanted == slot) && self.fits(slot, requests);
        if requests.is_empty() || (0..slots.payloads()).any(may_have) {
            return Ok(());
        }
        let which = request.slot.map_or("no slot of this pilot".into(), |slot| format!("slot {slot} is not"));
        let is = if request.slot.is_none() { " is" } else { "" };
        Err(format!("{which}{is} large enough for this job, which requests {requests}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn sizes_are_those_of_the_environment() {
        let variables = [
            ("LATEBIND_CPUS", "1"),
            ("LATEBIND_MEMORY", "1073741824"),
            ("LATEBIND_CPUS_1", "4"),
            ("LATEBIND_MEMORY_1", "8G"),
            ("LATEBIND_MEMORY_2", "0"),
        ];
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let sizes = Sizes::from_environment(3, get).unwrap();
        let wants = |cpus, memory| Requests { cpus: Some(cpus), memory: Some(Bytes(memory)), gpus: None };
        let fitting = |requests| (0..3).filter(|slot| sizes.fits(*slot, &requests)).collect::<Vec<_>>();
        assert_eq!(fitting(wants(1.0, 1 << 30)), [0, 1, 2]);
        assert_eq!(fitting(wants(4.0, 8 << 30)), [1]);
        assert_eq!(fitting(wants(1.0, 9 << 30)), [2], "its memory has no limit");
        assert!(sizes.is_smaller(0, 1) && sizes.is_smaller(1, 2) && !sizes.is_smaller(0, 0));
        assert_eq!(sizes.describe(1), "4 processors and 8.0G of memory");
        for (name, bad) in [
            ("LATEBIND_CPUS_0", "many"),
            ("LATEBIND_MEMORY", "lots"),
            ("LATEBIND_CPUS", "-1"),
            ("LATEBIND_GPUS_0", "all"),
        ] {
            let get = |asked: &str| (asked == name).then(|| bad.to_owned());
            assert!(Sizes::from_environment(1, get).unwrap_err().starts_with(name), "{name}");
        }
    }

    #[test]
    fn a_slot_with_gpus_is_larger_than_any_without() {
        let get = |name: &str| match name {
            "LATEBIND_GPUS_0" => Some("1".to_owned()),
            "LATEBIND_CPUS_1" | "LATEBIND_CPUS_2" => Some("8".to_owned()),
            _ => None,
        };
        let sizes = Sizes::from_environment(3, get).unwrap();
        let fitting = |gpus| {
            let requests = Requests { gpus: Some(gpus), ..Requests::default() };
            (0..3).filter(|slot| sizes.fits(*slot, &requests)).collect::<Vec<_>>()
        };
        assert_eq!((fitting(0), fitting(1), fitting(2)), (vec![0, 1, 2], vec![0], vec![]));
        assert!(sizes.is_smaller(1, 0) && sizes.is_smaller(2, 0) && !sizes.is_smaller(0, 1) && !sizes.is_smaller(1, 2));
        assert!(sizes.differ() && sizes.describe(0) == "1 GPU");
    }

    #[test]
    fn a_job_larger_than_every_slot_is_refused() {
        let small = SlotSize { cpus: Some(1.0), memory: Some(100), gpus: 0 };
        let sizes = Sizes::new(&[small, SlotSize { cpus: Some(2.0), ..small }, SlotSize::default()]);
        let slots = PilotJobSlots::new(3, 1).unwrap();
        let check = |cpus: f64, slot: Option<u32>| {
            let requests = Requests { cpus: Some(cpus), ..Requests::default() };
            sizes.check(&Request { requests, slot, ..Request::new("a".into()) }, slots)
        };
        assert!(check(2.0, None).is_ok() && check(2.0, Some(1)).is_ok());
        assert!(check(3.0, None).unwrap_err().starts_with("no slot of this pilot is large enough"));
        assert!(check(2.0, Some(0)).unwrap_err().starts_with("slot 0 is not large enough"));
    }
}
