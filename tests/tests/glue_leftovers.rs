//! Whatever a job leaves behind is ended within `kill_s`, and nobody else is hurt.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::time::Duration;

use latebind_contract::record::{Outcome, Record};
use latebind_tests::processes::Process;
use latebind_tests::slot::{Shape, Slot};
use latebind_tests::waiting::{LIMIT, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// As the probe demands it for what reaches every process of a UID.
const IN_A_CONTAINER: &str = "--i-am-in-a-container";

/// Runs a job that leaves processes behind, and checks that all of them are ended in time.
fn all_are_ended(slot: &Slot, argv: &[&str]) -> Record {
    let mut startup = slot.job(argv);
    startup.kill_s = 15.0;
    let record = slot.finish_at_most(Duration::from_secs(60), &slot.submit(&startup)).record;
    // Within `kill_s`, else glue gives up and says how many are left.
    assert_eq!(record.processes.unkilled, 0, "{:?} {}", record.processes, slot.log());
    let left = slot.processes_of_the_payload();
    assert!(left.is_empty(), "{} processes are left: {left:?}", left.len());
    record
}

/// Two processes of the payload's UID in another container: one that runs, and one that is stopped.
struct Bystanders {
    runs: i32,
    is_stopped: i32,
}

impl Bystanders {
    fn new(slot: &mut Slot, user: &str) -> Self {
        let script = "sleep 1000 & exec sleep 1001";
        let (_, runs) = slot.neighbour("busybox", user, &[], &["/bin/sh", "-c", script]);
        let child = within(LIMIT, "the bystander's child", || {
            let pids = std::fs::read_to_string(format!("/proc/{runs}/task/{runs}/children")).ok()?;
            let child: i32 = pids.split_whitespace().next()?.parse().ok()?;
            Process::look(child).filter(|p| p.command == "sleep 1000").map(|p| p.pid)
        });
        within(LIMIT, "the bystander", || Process::look(runs).filter(|p| p.command == "sleep 1001").map(drop));
        kill(Pid::from_raw(child), Signal::SIGSTOP).unwrap();
        let bystanders = Self { runs, is_stopped: child };
        within(LIMIT, "a stopped bystander", || (bystanders.states() == ('S', 'T')).then_some(()));
        bystanders
    }

    fn states(&self) -> (char, char) {
        let state = |pid| Process::look(pid).map_or('-', |process| process.state);
        (state(self.runs), state(self.is_stopped))
    }

    fn are_unharmed(&self) {
        // A sleeper that was just continued runs for a moment, before it sleeps on.
        let states = within(LIMIT, "a bystander at rest", || Some(self.states()).filter(|states| states.0 != 'R'));
        assert_eq!(states, ('S', 'T'), "one runs, one was stopped before and still is");
    }
}

#[test]
fn a_process_that_goes_on_without_its_main_thread_is_ended() {
    let mut slot = Slot::installed();
    slot.start(&Shape::of("busybox"));
    slot.await_ready();
    let record = all_are_ended(&slot, &["/probe", "headless"]);
    assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(0)), "{record:?}");
    assert_eq!(record.processes.left_over_killed, 1, "{:?}", record.processes);
}

#[test]
fn daemons_of_their_own_session_that_ignore_term_are_ended() {
    let mut slot = Slot::new("noshell");
    let bystanders = Bystanders::new(&mut slot, "20000:20000");
    let record = all_are_ended(&slot, &["/probe", "daemons", "20"]);
    assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(0)));
    assert_eq!(record.processes.left_over_killed, 20);
    bystanders.are_unharmed();
    slot.prove_that_it_serves();
    bystanders.are_unharmed();
}

#[test]
fn loops_of_kill_stop_and_continue_of_everything_are_ended() {
    let mut slot = Slot::new("noshell");
    // A payload can reach its own UID everywhere in the pod; here it is glue and everybody else who must not be hurt.
    let bystanders = Bystanders::new(&mut slot, "21000:21000");
    for _ in 0..5 {
        let record = all_are_ended(&slot, &["/probe", "kill-loop", IN_A_CONTAINER, "6"]);
        assert!(matches!(record.outcome, Outcome::Exited | Outcome::Signaled), "{:?}", record.outcome);
        bystanders.are_unharmed();
    }
    slot.prove_that_it_serves();
}

#[test]
fn a_payload_that_stops_everything_is_ended() {
    let mut slot = Slot::new("noshell");
    let bystanders = Bystanders::new(&mut slot, "21000:21000");
    for _ in 0..5 {
        let mut startup = slot.job(&["/probe", "stop-everything", IN_A_CONTAINER, "6"]);
        // It may have stopped its own main process.
        (startup.timeout_s, startup.kill_s) = (1.0, 15.0);
        let record = slot.finish(&slot.submit(&startup)).record;
        assert!(matches!(record.outcome, Outcome::Exited | Outcome::TimedOut), "{:?}", record.outcome);
        assert_eq!(record.processes.unkilled, 0);
        assert!(slot.processes_of_the_payload().is_empty());
        bystanders.are_unharmed();
    }
    slot.prove_that_it_serves();
}

#[test]
fn a_bomb_of_900_processes_is_ended() {
    let mut slot = Slot::with(&Shape::of("noshell").pids(1024));
    let bystanders = Bystanders::new(&mut slot, "20000:20000");
    let record = all_are_ended(&slot, &["/probe", "bomb", "900"]);
    assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(0)));
    assert!(record.processes.left_over_killed >= 450, "{:?}", record.processes);
    bystanders.are_unharmed();
    slot.prove_that_it_serves();
}

#[test]
fn a_bomb_that_has_taken_every_process_there_is_is_ended() {
    let mut slot = Slot::with(&Shape::of("noshell").pids(300));
    let bystanders = Bystanders::new(&mut slot, "20000:20000");
    // More than there is room for: what is killed is replaced at once, and glue can make no process either.
    let record = all_are_ended(&slot, &["/probe", "bomb", "900"]);
    assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(120)), "its main process met the limit");
    assert!(record.processes.left_over_killed > 100, "{:?}", record.processes);
    bystanders.are_unharmed();
    slot.prove_that_it_serves();
}

#[test]
fn a_storm_of_children_that_end_keeps_glue_from_nothing() {
    let slot = Slot::with(&Shape::of("noshell").pids(300));
    // The main process stays: the wall limit ends it.
    let mut stays = slot.job(&["/probe", "storm", "100", "stay"]);
    (stays.timeout_s, stays.grace_s) = (3.0, 1.0);
    let record = slot.finish_at_most(Duration::from_secs(60), &slot.submit(&stays)).record;
    assert_eq!((record.outcome, record.processes.unkilled), (Outcome::TimedOut, 0), "{record:?}");
    assert!(record.processes.reaped > 300, "no storm: {record:?}");
    // It ends by itself: its end is seen, and the rest is ended.
    let record = all_are_ended(&slot, &["/probe", "storm", "100", "leave"]);
    assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(0)));
    assert!(record.processes.left_over_killed >= 100, "{record:?}");
    slot.prove_that_it_serves();
}

#[test]
fn nine_hundred_orphans_are_reaped() {
    let slot = Slot::with(&Shape::of("noshell").pids(1024));
    let record = all_are_ended(&slot, &["/probe", "orphans", "900", "50"]);
    assert_eq!(record.exit_code, Some(0));
    // The main process, and each orphan. Who was between them was the main process's own child.
    assert_eq!((record.processes.reaped, record.processes.left_over_killed), (901, 0));
    assert!(record.usage.tree.max_rss_kib > 0);
}

#[test]
fn a_timeout_ends_the_whole_tree() {
    let slot = Slot::new("busybox");
    let mut startup = slot.job(&["/bin/sh", "-c", "trap '' TERM; sleep 1000 & (sleep 1001 & sleep 1002) & sleep 1003"]);
    (startup.timeout_s, startup.grace_s) = (3.0, 0.3);
    let submitted = slot.submit(&startup);
    slot.await_term_handling(&submitted);
    within(LIMIT, "all sleepers", || {
        let sleepers = slot.processes_of_the_payload();
        (sleepers.iter().filter(|process| process.command.starts_with("sleep ")).count() == 4).then_some(())
    });
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.signal), (Outcome::TimedOut, Some(9)));
    // A shell may have become its last command.
    assert!(record.processes.left_over_killed >= 3, "{:?}", record.processes);
    assert!(slot.processes_of_the_payload().is_empty());
}

#[test]
fn what_runs_under_the_payloads_uid_before_a_job_is_ended_first() {
    let slot = Slot::new("busybox");
    latebind_tests::engine::podman(&["exec", "--detach", "--user=20000:20000", slot.name(), "/bin/sleep", "1000"]);
    let stray = within(LIMIT, "a stray process", || {
        slot.processes_of_the_payload().into_iter().find(|p| p.command.contains("1000"))
    });
    slot.prove_that_it_serves();
    assert!(Process::look(stray.pid).is_none_or(|p| !p.lives() || p.command != stray.command));
}
