//! What a job needs of its slot, and what a slot has.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::usage::bytes;
use crate::size::Bytes;

/// What a job needs: it gets a slot that has at least so much. What is left out does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requests {
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Memory of the payload container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// GPUs of the payload container. Without them a slot with GPUs does as well as any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
}

impl Requests {
    /// Whether any slot will do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether they make sense.
    pub fn check(&self) -> Result<(), String> {
        match self.cpus {
            Some(cpus) if !cpus.is_finite() || cpus < 0.0 => {
                Err("requests: cpus must be a number of processors, 0 or more".into())
            }
            _ => Ok(()),
        }
    }
}

/// What a slot's payload container may use: processors and memory without a limit where nothing is said, but no GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SlotSize {
    /// Processors.
    pub cpus: Option<f64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// GPUs that it was given.
    pub gpus: u32,
}

impl SlotSize {
    /// Whether a job that needs this can run in such a slot.
    pub fn fits(&self, requests: &Requests) -> bool {
        let cpus = requests.cpus.is_none_or(|wanted| self.cpus.is_none_or(|has| wanted <= has));
        let memory = requests.memory.is_none_or(|wanted| self.memory.is_none_or(|has| wanted.0 <= has));
        cpus && memory && requests.gpus.is_none_or(|wanted| wanted <= self.gpus)
    }
}

/// Processors, bytes and GPUs, for people.
fn described(cpus: Option<f64>, memory: Option<u64>, gpus: u32) -> String {
    let cpus = cpus.map(|cpus| format!("{cpus} processors"));
    let memory = memory.map(|memory| format!("{} of memory", bytes(memory)));
    let gpus = (gpus > 0).then(|| format!("{gpus} GPU{}", if gpus == 1 { "" } else { "s" }));
    let mut said: Vec<String> = [cpus, memory, gpus].into_iter().flatten().collect();
    match said.pop() {
        None => "no limit".into(),
        Some(last) if said.is_empty() => last,
        Some(last) => format!("{} and {last}", said.join(", ")),
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&described(self.cpus, self.memory.map(|memory| memory.0), self.gpus.unwrap_or(0)))
    }
}

impl fmt::Display for SlotSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&described(self.cpus, self.memory, self.gpus))
    }
}

/// Whether, and when, a pilot can run a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// A slot that is large enough is free.
    Now,
    /// A slot is large enough, and has another job.
    Later,
    /// No slot is large enough.
    Never,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn a_slot_fits_what_needs_no_more_than_it_has() {
        let slot = SlotSize { cpus: Some(2.0), memory: Some(1 << 30), gpus: 0 };
        let wants = |text: &str| serde_json::from_str::<Requests>(text).unwrap();
        for (text, fits) in [
            ("{}", true),
            (r#"{"cpus":2,"memory":"1G"}"#, true),
            (r#"{"cpus":0.5}"#, true),
            (r#"{"cpus":2.5}"#, false),
            (r#"{"memory":1073741825}"#, false),
        ] {
            assert_eq!(slot.fits(&wants(text)), fits, "{text}");
            assert!(SlotSize::default().fits(&wants(text)), "{text}");
        }
        assert!(wants(r#"{"cpus":-1}"#).check().is_err() && wants(r#"{"cpus":0}"#).check().is_ok());
        assert!(serde_json::from_str::<Requests>(r#"{"cpu":1}"#).is_err());
        assert_eq!(wants(r#"{"cpus":2,"memory":"1G"}"#).to_string(), "2 processors and 1.0G of memory");
        let all = r#"{"cpus":2,"memory":"1G","gpus":1}"#;
        assert_eq!(wants(all).to_string(), "2 processors, 1.0G of memory and 1 GPU");
        assert_eq!(wants(r#"{"gpus":2}"#).to_string(), "2 GPUs");
        assert_eq!(wants("{}").to_string(), "no limit");
    }

    #[test]
    fn a_slot_has_the_gpus_that_it_is_said_to_have_and_no_others() {
        let wants = |text: &str| serde_json::from_str::<Requests>(text).unwrap();
        let with = |gpus| SlotSize { gpus, ..SlotSize::default() };
        for (text, none, two) in [
            (r#"{"gpus":0}"#, true, true),
            (r#"{"gpus":1}"#, false, true),
            (r#"{"gpus":2,"cpus":9}"#, false, true),
            (r#"{"gpus":3}"#, false, false),
        ] {
            assert_eq!((with(0).fits(&wants(text)), with(2).fits(&wants(text))), (none, two), "{text}");
        }
        for bad in [r#"{"gpus":-1}"#, r#"{"gpus":0.5}"#, r#"{"gpus":"all"}"#] {
            assert!(serde_json::from_str::<Requests>(bad).is_err(), "{bad}");
        }
    }
}
