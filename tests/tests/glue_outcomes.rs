//! Each outcome that a record can have, and what else it says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::fs;
use std::time::Instant;

use latebind_contract::encoding::sha256_hex;
use latebind_contract::record::{Outcome, Stage};
use latebind_contract::startup::{Amount, Rlimit};
use latebind_contract::status::Phase;
use latebind_tests::job::{errno_name, one};
use latebind_tests::slot::{Slot, WAIT_FOR_GO};
use nix::sys::signal::Signal;

/// Seconds that are enough for a program to start and to prepare for TERM, also on a busy machine.
const TIMEOUT_S: f64 = 3.0;

#[test]
fn an_exit_code_is_the_main_processs_own() {
    let slot = Slot::new("noshell");
    for code in [0, 1, 3, 127, 255] {
        let record = slot.run_args(&["/probe", "exit", &code.to_string()]).record;
        assert_eq!((record.outcome, record.exit_code, record.signal), (Outcome::Exited, Some(code), None));
        assert!(!record.core_dumped && record.error.is_none() && record.warnings.is_empty());
    }
}

#[test]
fn a_signal_is_told_from_an_exit_code() {
    let slot = Slot::new("noshell");
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGABRT, Signal::SIGSEGV, Signal::SIGPIPE] {
        let mut startup = slot.job(&["/probe", "signal", &(signal as i32).to_string()]);
        // Signals that dump core do so only where the limit lets them.
        startup.rlimits = one("core", Rlimit { soft: Amount::Of(0), hard: Amount::Of(0) });
        let record = slot.run(&startup).record;
        assert_eq!((record.outcome, record.signal), (Outcome::Signaled, Some(signal as i32)));
        assert_eq!(record.exit_code, None);
        assert!(!record.core_dumped);
    }
}

#[test]
fn a_record_says_what_it_is_the_record_of() {
    let slot = Slot::new("noshell");
    let mut startup = slot.job(&["/probe", "cpu", "0.3"]);
    startup.job = "a name with \"quotes\" and blanks".into();
    let before = Instant::now();
    let submitted = slot.submit(&startup);
    let record = slot.finish(&submitted).record;
    let longest = before.elapsed().as_secs_f64();
    assert_eq!(
        (record.version, &record.job, &record.nonce),
        (latebind_contract::VERSION, &startup.job, &startup.nonce)
    );
    assert_eq!((&record.incarnation, &record.startup_sha256), (&startup.incarnation, &submitted.sha256));
    assert!(record.wall_s > 0.0 && record.wall_s <= longest, "{} of {longest} s", record.wall_s);
    let used = record.usage.main.user_s + record.usage.main.system_s;
    assert!(used >= 0.29 && used <= longest, "{used} s of processor time in {longest} s");
    assert!(record.usage.main.max_rss_kib > 0);
    assert!(record.usage.tree.user_s >= record.usage.main.user_s);
    assert_eq!((record.processes.reaped, record.processes.left_over_killed, record.processes.unkilled), (1, 0, 0));
    let started = record.started_at.unwrap();
    // The format is of fixed width, so that texts compare as times do.
    assert_eq!((started.len(), record.ended_at.len()), (30, 30));
    assert!(started < record.ended_at && started.ends_with('Z'));
    let binary = fs::read(slot.bin().join("glue")).unwrap();
    assert_eq!(record.glue.sha256, sha256_hex(&binary));
    assert_eq!(record.glue.version, slot.status().glue);
}

#[test]
fn a_timeout_ends_what_honours_term() {
    let slot = Slot::new("noshell");
    let mut startup = slot.job(&["/probe", "term-exit", "7"]);
    (startup.timeout_s, startup.grace_s) = (TIMEOUT_S, 20.0);
    let submitted = slot.submit(&startup);
    slot.await_term_handling(&submitted);
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.exit_code, record.signal), (Outcome::TimedOut, Some(7), None));
}

#[test]
fn a_timeout_kills_what_ignores_term_once_grace_is_over() {
    let slot = Slot::new("noshell");
    let mut startup = slot.job(&["/probe", "ignore-term", "1000"]);
    (startup.timeout_s, startup.grace_s) = (TIMEOUT_S, 0.5);
    let before = Instant::now();
    let submitted = slot.submit(&startup);
    slot.await_term_handling(&submitted);
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.exit_code, record.signal), (Outcome::TimedOut, None, Some(9)));
    assert!(before.elapsed().as_secs_f64() >= TIMEOUT_S + 0.5, "{:?}", before.elapsed());
    assert!(slot.processes_of_the_payload().is_empty());
}

#[test]
fn no_timeout_is_no_limit_and_a_long_one_does_nothing() {
    let slot = Slot::new("noshell");
    for limit in [0.0, 20.0] {
        let mut startup = slot.job(&["/probe", "sleep", "0.3"]);
        startup.timeout_s = limit;
        let record = slot.run(&startup).record;
        assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(0)));
    }
}

#[test]
fn a_stop_of_glue_is_a_stop_of_the_job_and_has_its_exit_code() {
    let slot = Slot::new("noshell");
    let mut startup = slot.job(&["/probe", "term-exit", "9"]);
    startup.grace_s = 20.0;
    let submitted = slot.submit(&startup);
    slot.await_term_handling(&submitted);
    slot.signal(Signal::SIGTERM);
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.exit_code, record.signal), (Outcome::Stopped, Some(9), None));
    assert_eq!(slot.exit_code(), 0);
}

#[test]
fn a_stop_of_glue_kills_what_ignores_term_once_grace_is_over() {
    let slot = Slot::new("noshell");
    let mut startup = slot.job(&["/probe", "ignore-term", "1000"]);
    startup.grace_s = 0.3;
    let submitted = slot.submit(&startup);
    slot.await_term_handling(&submitted);
    let before = Instant::now();
    slot.signal(Signal::SIGTERM);
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.exit_code, record.signal), (Outcome::Stopped, None, Some(9)));
    assert!(before.elapsed().as_secs_f64() >= 0.3, "{:?}", before.elapsed());
    assert_eq!(slot.exit_code(), 0);
}

#[test]
fn a_job_that_never_ran_has_no_start_and_no_end_of_a_process() {
    let slot = Slot::new("noshell");
    let record = slot.run_args(&["/nowhere"]).record;
    assert_eq!(record.outcome, Outcome::NotStarted);
    assert_eq!((record.exit_code, record.signal, record.started_at, record.wall_s), (None, None, None, 0.0));
    let error = record.error.unwrap();
    assert_eq!((error.stage, errno_name(&error).as_str()), (Stage::Exec, "ENOENT"));
}

#[test]
fn one_glue_runs_one_job_after_the_other() {
    let slot = Slot::new("busybox");
    let first = slot.run_args(&["/probe", "exit", "1"]);
    let status = slot.status();
    assert_eq!((status.phase, status.main_pid, status.job.as_deref()), (Phase::Done, None, Some("test job")));
    let mut startup = slot.job(&["/bin/sh", "-c", WAIT_FOR_GO]);
    startup.job = "second".into();
    let submitted = slot.submit(&startup);
    slot.await_start(&submitted);
    let running = slot.status();
    assert_eq!((running.phase, running.job.as_deref()), (Phase::Running, Some("second")));
    assert_eq!(running.incarnation, status.incarnation);
    assert!(!slot.ctl().join("record.jws").exists(), "the first job's record is nobody's any more");
    slot.go();
    let second = slot.finish(&submitted);
    assert_eq!(second.record.exit_code, Some(0));
    assert_ne!(first.jws, second.jws);
}

#[test]
fn a_job_that_was_rung_for_while_another_ran_comes_next() {
    let slot = Slot::new("busybox");
    let first = slot.submit(&slot.job(&["/bin/sh", "-c", WAIT_FOR_GO]));
    slot.await_start(&first);
    let second = slot.submit(&slot.job(&["/probe", "exit", "4"]));
    slot.go();
    // The first one's record goes when the second is claimed, so only the second's is waited for.
    let record = slot.finish(&second).record;
    assert_eq!(record.exit_code, Some(4));
}
