//! Faults at the steps of a job: what is killed and when, and what has to be true of the job in the end. Shared by the
//! tests on podman and on Kubernetes.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::pod::Outcome;
use crate::waiting::deadline;

/// A part of a pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The watcher's own process.
    Watcher,
    /// Glue's.
    Glue,
    /// All of the payload container.
    PayloadContainer,
    /// All of the pilot container.
    PilotContainer,
}

impl Target {
    /// Whether it ends the pilot container.
    pub fn is_of_the_pilot(self) -> bool {
        matches!(self, Self::Watcher | Self::PilotContainer)
    }
}

/// All of them.
pub const TARGETS: [Target; 4] = [Target::Watcher, Target::Glue, Target::PayloadContainer, Target::PilotContainer];

/// A job's steps in their order, as the watcher writes them down.
pub const STEPS: [&str; 8] = ["queued", "staging", "binding", "starting", "running", "collecting", "cleaning", "done"];

/// Each step with each target alone, and with each pair of them.
pub const CASES: u64 = 8 * (4 + 16);

/// Step and targets of the `n`th fault. A few of them meet each step and different targets: 57 is one more than a
/// multiple of 8, and has no factor in common with the number of cases.
pub fn case(n: u64, seed: u64) -> (usize, Vec<Target>) {
    let case = (n * 57 + seed) % CASES;
    let (step, combination) = ((case % 8) as usize, (case / 8) as usize);
    let targets = match combination.checked_sub(4) {
        None => vec![TARGETS[combination]],
        Some(pair) => vec![TARGETS[pair / 4], TARGETS[pair % 4]],
    };
    (step, targets)
}

/// Waits until a job, whose phase is asked for, has come to a step, or is beyond it; says whether it has.
pub fn comes_to(step: usize, within: Duration, phase: impl Fn() -> Option<String>) -> bool {
    let (give_up, mut seen) = (deadline(within), false);
    while Instant::now() < give_up {
        let phase = phase();
        let at = phase.as_deref().and_then(|phase| STEPS.iter().position(|name| *name == phase));
        // What is delivered is forgotten.
        if at.is_some_and(|at| at >= step) || seen && phase.is_none() {
            return true;
        }
        seen |= phase.is_some();
        thread::sleep(Duration::from_micros(200));
    }
    false
}

/// Where in the spool a job is.
pub fn places(spool: &Path, name: &str) -> Vec<String> {
    let claimed = fs::read_dir(spool.join("claimed")).into_iter().flatten().flatten().map(|e| e.path());
    let all = ["new", "retry", "done", "held"].iter().map(|place| spool.join(place)).chain(claimed);
    let entries = all.flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten()).map(|e| e.path());
    let own = entries.filter(|path| {
        path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n == name || n.starts_with(&format!("{name}.")))
    });
    own.map(|p| p.strip_prefix(spool).unwrap().display().to_string()).collect()
}

/// The job, which says its name, has run well, with a record; and it is reported once and is nowhere else.
#[track_caller]
pub fn is_reported_once(outcome: &Outcome, spool: &Path, name: &str) {
    let report = &outcome.is_good().report;
    let record = report.record.as_ref().unwrap_or_else(|| panic!("good without a record: {report:#?}"));
    assert_eq!(record.job, report.job);
    // What the job wrote while no watcher ran goes with a container that is killed then; it has to be said. It is said
    // too where an earlier watcher had taken all of it, since nobody can know that.
    let (stdout, all) = (outcome.text("stdout"), format!("{name}\n"));
    let may_be_missing = report.missing_outputs.iter().any(|line| line.starts_with("stdout: "));
    assert!(stdout == all || may_be_missing && stdout.is_empty(), "{stdout:?}: {report:#?}");
    assert!(outcome.dir.join("result/record.jws").is_file());
    thread::sleep(Duration::from_millis(20));
    assert_eq!(places(spool, name), [format!("done/{name}")], "the job is in one place");
}

/// A number in the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|s| s.parse().ok())
}

/// Says something past the test harness, which would keep it to itself.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
