//! How much a job's report and kept state hold, whatever the job, its image or its client has to say: a pilot that had
//! to hold more would be ended by it, and again after each restart, since what is kept is read again.

use std::fmt::Display;

use super::Report;
use crate::reason::MESSAGE_MAX;
use crate::text::cut;

/// How much of any job is copied in and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyBounds {
    /// Most bytes of a job's inputs and standard input, holes included.
    pub input_bytes: u64,
    /// Most files and directories of them.
    pub input_entries: u64,
    /// Most bytes that are kept and fetched, standard output and error included. A job's own limit may be lower.
    pub output_bytes: u64,
    /// Most files and directories that are fetched.
    pub output_entries: u64,
}

impl Default for CopyBounds {
    fn default() -> Self {
        Self { input_bytes: 64 << 30, input_entries: 1_000_000, output_bytes: 16 << 30, output_entries: 100_000 }
    }
}

/// Most outputs that are named as missing; of the others the report says how many they are.
pub const MISSING_MAX: usize = 100;
/// Longest of these, bytes.
pub const MISSING_TEXT_MAX: usize = 512;
/// Most beginnings of phases; each restart of the watcher adds one.
pub const PHASES_MAX: usize = 64;

impl Report {
    /// Names an output, or an entry of one, that was not fetched.
    pub fn add_missing(&mut self, what: &str, why: &dyn Display) {
        if self.missing_outputs.len() >= MISSING_MAX {
            self.missing_left_out += 1;
            return;
        }
        let mut text = format!("{what}: {why}");
        if text.len() > MISSING_TEXT_MAX {
            // The reason says more than the middle of a long name.
            let mut what = what.to_owned();
            let why = why.to_string();
            cut(&mut what, MISSING_TEXT_MAX.saturating_sub(why.len() + 2).max(64));
            text = format!("{what}: {why}");
            cut(&mut text, MISSING_TEXT_MAX);
        }
        self.missing_outputs.push(text);
    }

    /// Cuts what has grown beyond its bounds.
    pub(super) fn bound(&mut self) {
        cut(&mut self.message, MESSAGE_MAX);
        if self.phases.len() > PHASES_MAX {
            // The first ones and the last ones say most.
            let surplus = self.phases.len() - PHASES_MAX;
            self.phases.drain(PHASES_MAX / 2..PHASES_MAX / 2 + surplus);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Began, Phase, Request};

    #[test]
    fn a_report_is_bounded_whatever_is_said() {
        let mut report = Report::new(&Request::new("a".into()));
        for n in 0..1_000 {
            report.add_missing(&format!("{n}-{}", "ä".repeat(10_000)), &"belongs to another UID");
            report.phases.push(Began { phase: Phase::Binding, at: f64::from(n) });
        }
        report.message = "\u{1F980}".repeat(1 << 20);
        report.bound();
        assert_eq!((report.missing_outputs.len(), report.missing_left_out), (MISSING_MAX, 900));
        let is_cut = |text: &String| text.len() <= MISSING_TEXT_MAX && text.ends_with(" ...: belongs to another UID");
        assert!(report.missing_outputs.iter().all(is_cut), "{:?}", report.missing_outputs);
        assert!(report.message.len() <= MESSAGE_MAX && report.message.ends_with(" ..."));
        assert_eq!((report.phases.len(), report.phases.last().map(|p| p.at)), (PHASES_MAX, Some(999.0)));
        let whole = serde_json::to_vec(&report).map_or(usize::MAX, |bytes| bytes.len());
        assert!(whole < 256 << 10, "{whole}");
    }
}
