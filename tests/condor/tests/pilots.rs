//! Pilots of their own: two slots at once, and how a pilot ends.

use std::time::Duration;

use latebind_condor_tests::{Pool, status};

#[test]
fn two_slots_do_not_harm_each_other() {
    let pool = Pool::own(2, &[]);
    let lines = "request_memory = 50MB\n";
    let script = "id -u; echo > begun; trap '' TERM; sleep 40; echo whole";
    let (one, other) = (pool.shell(script, lines), pool.shell(script, lines));
    for job in [&one, &other] {
        job.comes_to(status::RUNNING);
    }
    for slot in [0, 1] {
        one.sandbox_has(slot, "begun");
    }
    // A job that has to be killed, with the same loop as its neighbour.
    one.tool(&["condor_rm"]);
    one.comes_to(status::REMOVED);
    other.ends_with(0);
    assert!(other.text("out").ends_with("whole\n"));
    let uid = |job: &latebind_condor_tests::Job<'_>| job.text("out").lines().next().unwrap_or_default().to_owned();
    assert!(["20000", "20001"].contains(&uid(&other).as_str()), "{}", other.text("out"));
    // Told to stop in the middle of a job, the pilot gives the job back and ends well.
    let last = pool.shell("echo > begun; sleep 1000", lines);
    last.comes_to(status::RUNNING);
    assert_eq!(pool.stop(), "0");
}

#[test]
fn a_pilot_without_work_ends_with_0() {
    let pool = Pool::own(1, &["ACCEPT_IDLE_MINUTES=1"]);
    assert_eq!(pool.exit_code(Duration::from_secs(300)), "0");
    assert!(pool.said().contains("the pilot ends"));
}
