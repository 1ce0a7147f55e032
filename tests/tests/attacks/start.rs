//! The start of a job: whoever has the payload's UID gets hold of no process that glue listens to, and no record is
//! made to say what did not happen.
//!
//! `LATEBIND_ATTACK_TRIES=100000` (`make attack-start N=100000`) tries as often; without it some thousand times, which
//! takes seconds. A try is one call against a process that was there: ptrace, its memory, its descriptors, a signal.

use std::fs;

use latebind_contract::record::{Outcome, Record, Stage};
use latebind_contract::startup::START_WITHIN;
use latebind_tests::engine::call;
use latebind_tests::job::errno_name;
use latebind_tests::slot::{Slot, said};
use latebind_tests::waiting::{LIMIT, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What `probe mark` exits with.
const EXIT_CODE: i32 = 42;
/// Starts between two looks at what was tried.
const BATCH: u32 = 60;

/// How many tries there are to be of each kind.
fn wanted() -> u64 {
    let number =
        std::env::var("LATEBIND_ATTACK_TRIES").ok().map(|n| n.parse().expect("LATEBIND_ATTACK_TRIES is a number"));
    number.unwrap_or(3000)
}

/// What was tried, and what of it was won.
#[derive(Default)]
struct Tally {
    starts: u64,
    tries: u64,
    unclear: u64,
    by: std::collections::BTreeMap<String, u64>,
}

impl Tally {
    /// Adds what the probe says in its last line.
    ///
    /// # Panics
    /// If it has caught anything.
    fn add(&mut self, answer: &Value) {
        assert_eq!(answer["caught"], serde_json::json!([]), "{answer}");
        self.tries += answer["tries"].as_u64().unwrap();
        self.unclear += answer["unclear"].as_u64().unwrap();
        for (name, count) in answer["by"].as_object().unwrap() {
            *self.by.entry(name.clone()).or_default() += count.as_u64().unwrap();
        }
    }

    fn tell(&self, what: &str) {
        let Self { starts, tries, unclear, by } = self;
        eprintln!("{what}: {starts} starts, {tries} tries, none won, {unclear} unclear: {by:?}");
    }
}

fn last_line(text: &str) -> Value {
    text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| panic!("no answer: {text}"))
}

#[test]
fn a_job_catches_nothing_from_its_first_instruction_on() {
    let slot = Slot::new("busybox");
    let mut tally = Tally::default();
    while tally.tries < wanted() {
        let finished = slot.run_args(&["/probe", "catch-first", "4"]);
        assert_eq!(finished.record.exit_code, Some(EXIT_CODE), "{:?} {}", finished.record, finished.err);
        let mut answer = last_line(&finished.out);
        // Here a try is one on a number that a process of the start had a moment ago, too.
        answer["tries"] = (answer["tries"].as_u64().unwrap() + answer["nobody"].as_u64().unwrap()).into();
        tally.add(&answer);
        tally.starts += 1;
    }
    tally.tell("as the job");
    slot.prove_that_it_serves();
}

/// A process of the payload's UID in another container of the pod, which no kill routine of glue's reaches.
struct Catcher {
    name: String,
    pid: i32,
}

impl Catcher {
    fn start(slot: &mut Slot, mode: &str) -> Self {
        let user = format!("{}:{}", slot.uid, slot.gid);
        let (name, pid) = slot.neighbour("busybox", &user, &[], &["/probe", "catch-all-along", mode]);
        within(LIMIT, "the catcher", || said(&call(&["logs", &name])).contains("ready").then_some(()));
        Self { name, pid }
    }

    /// Ends it, and returns what it has to say.
    fn stop(self) -> Value {
        kill(Pid::from_raw(self.pid), Signal::SIGTERM).expect("the catcher lives");
        within(LIMIT, "the catcher's end", || {
            let state = latebind_tests::engine::podman(&["inspect", "--format={{.State.Status}}", &self.name]);
            (state == "exited").then_some(())
        });
        last_line(&said(&call(&["logs", &self.name])))
    }
}

/// What the job itself says of whether it ran.
fn has_run(slot: &Slot) -> bool {
    fs::exists(slot.work().join("mark")).unwrap()
}

/// The messages that a start which somebody has ended may have: glue's own, each of them.
fn is_glues_own(record: &Record) -> bool {
    let Some(error) = &record.error else { return false };
    let known = [
        "the start was cut off before the program ran (out of memory, or killed)",
        "the wall limit passed before the program ran",
    ];
    let hung = errno_name(error) == "ETIMEDOUT" && error.message.starts_with("the program did not run within 60 s: ");
    (error.stage == Stage::Startup && known.contains(&error.message.as_str())) || hung
}

/// A record says what happened, whatever somebody of the payload's UID did meanwhile. `disturbed`: signals were sent.
fn is_true(slot: &Slot, record: &Record, disturbed: bool) {
    let ran = has_run(slot);
    match record.outcome {
        Outcome::Exited => assert!(ran && record.exit_code == Some(EXIT_CODE) && record.error.is_none(), "{record:#?}"),
        // The program was executed, and then ended as whoever has its UID may end it.
        Outcome::Signaled => {
            assert!(disturbed && record.signal == Some(9) && record.started_at.is_some(), "{record:#?}")
        }
        Outcome::NotStarted => assert!(disturbed && !ran && is_glues_own(record), "it ran: {ran}\n{record:#?}"),
        Outcome::TimedOut => {
            let of_a_start = record.started_at.is_none();
            assert!(disturbed && (!of_a_start || !ran && is_glues_own(record)), "it ran: {ran}\n{record:#?}");
        }
        Outcome::Stopped => panic!("{record:#?}"),
    }
}

/// Starts one job while a catcher is there.
fn start_beside(slot: &Slot, timeout_s: f64, disturbed: bool) -> Record {
    let _ = fs::remove_file(slot.work().join("mark"));
    let mut startup = slot.job(&["/probe", "mark-file", "mark", "0.005"]);
    startup.timeout_s = timeout_s;
    let record = slot.finish_at_most(LIMIT + START_WITHIN, &slot.submit(&startup)).record;
    is_true(slot, &record, disturbed);
    record
}

/// Starts jobs while a catcher is there.
fn starts_beside(slot: &mut Slot, mode: &str, count: u32, timeout_s: f64, tally: &mut Tally) {
    let catcher = Catcher::start(slot, mode);
    for _ in 0..count {
        start_beside(slot, timeout_s, mode != "look");
        tally.starts += 1;
    }
    tally.add(&catcher.stop());
}

#[test]
fn a_process_of_the_same_uid_looks_into_no_start() {
    let mut slot = Slot::new("busybox");
    let mut tally = Tally::default();
    while tally.tries < wanted() {
        starts_beside(&mut slot, "look", BATCH, 0.0, &mut tally);
    }
    tally.tell("looking");
    slot.prove_that_it_serves();
}

#[test]
fn a_process_of_the_same_uid_that_signals_makes_no_record_untrue() {
    let mut slot = Slot::new("busybox");
    let mut tally = Tally::default();
    let kinds = ["ptrace", "memory", "descriptor", "stop", "continue", "kill"];
    // Which signal is sent is thrown with dice, so that a few more starts may be needed for one of each.
    let mut more = 50;
    while tally.tries < wanted() || more > 0 && !kinds.iter().all(|kind| tally.by.contains_key(*kind)) {
        more -= i32::from(tally.tries >= wanted());
        starts_beside(&mut slot, "signal", BATCH, 5.0, &mut tally);
    }
    for kind in kinds {
        assert!(tally.by.contains_key(kind), "{kind} was not tried: {:?}", tally.by);
    }
    tally.tell("signalling");
    slot.prove_that_it_serves();
}

#[test]
fn a_start_that_somebody_holds_ends_at_the_wall_limit() {
    let mut slot = Slot::new("busybox");
    let mut tally = Tally::default();
    starts_beside(&mut slot, "hold", 5, 0.5, &mut tally);
    tally.tell("holding");
    slot.prove_that_it_serves();
}

#[test]
fn a_start_that_somebody_holds_ends_by_its_own_deadline() {
    let mut slot = Slot::new("busybox");
    let catcher = Catcher::start(&mut slot, "hold");
    // It does not always come in time to hold one, and may hold the program itself, which the wall limit ends.
    let wall = (START_WITHIN + LIMIT / 2).as_secs_f64();
    let held = (0..50).map(|_| start_beside(&slot, wall, true)).find(|record| record.outcome == Outcome::NotStarted);
    let record = held.expect("a start that is held");
    assert_eq!((record.outcome, record.error.map(|e| errno_name(&e))), (Outcome::NotStarted, Some("ETIMEDOUT".into())));
    assert_eq!(record.processes.unkilled, 0);
    let mut tally = Tally { starts: 1, ..Tally::default() };
    tally.add(&catcher.stop());
    tally.tell("holding until the deadline");
    slot.prove_that_it_serves();
}
