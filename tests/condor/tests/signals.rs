//! What users and pools do to jobs: remove, hold, release, vacate, suspend, limit.

use std::time::Duration;

use latebind_condor_tests::{JOB_WITHIN, Job, Pool, status};

/// Ends when it is asked to, and says so.
const POLITE: &str = "trap 'echo asked; exit 3' TERM; echo > begun; while :; do sleep 0.2; done";
/// Has to be killed, with what it started.
const STUBBORN: &str = "trap '' TERM; (trap '' TERM; sleep 1000) & echo > begun; while :; do sleep 0.2; done";

#[track_caller]
fn start<'a>(pool: &'a Pool, script: &str, lines: &str) -> Job<'a> {
    let job = pool.shell(script, lines);
    job.sandbox_has(0, "begun");
    job
}

/// No process of the slot's account is there any more, in no container.
#[track_caller]
fn nothing_is_left(pool: &Pool) {
    let mut left = String::new();
    for _ in 0..100 {
        left = pool.in_pilot("ps -u 20000 -o pid=,args= || :");
        if left.trim().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("left over: {left}");
}

#[test]
fn removed_held_and_released() {
    let pool = Pool::shared();
    for script in [POLITE, STUBBORN] {
        let job = start(&pool, script, "");
        job.tool(&["condor_rm"]);
        job.comes_to(status::REMOVED);
        nothing_is_left(&pool);
    }
    let job = start(&pool, "if [ -e /tmp/x ]; then exit 9; fi; echo > begun; sleep 5", "");
    job.tool(&["condor_hold"]);
    job.comes_to(status::HELD);
    nothing_is_left(&pool);
    job.tool(&["condor_release"]);
    job.ends_with(0);
}

#[test]
fn a_signal_of_the_users_choice() {
    let pool = Pool::shared();
    let script = "trap 'echo usr2 > \"$HOME/got\"; exit 0' USR2; echo > begun; while :; do sleep 0.2; done";
    let lines = "kill_sig = SIGUSR2\nwhen_to_transfer_output = ON_EXIT_OR_EVICT\n";
    let job = start(&pool, script, lines);
    job.tool(&["condor_vacate_job"]);
    let ad = job.until("started twice", JOB_WITHIN, |ad| ad["NumJobStarts"].as_i64() >= Some(2));
    assert_eq!(ad["NumJobCompletions"].as_i64().unwrap_or(0), 0);
    job.tool(&["condor_rm"]);
    nothing_is_left(&pool);
}

#[test]
fn vacated_jobs_run_again() {
    let pool = Pool::shared();
    for fast in [&["condor_vacate_job"][..], &["condor_vacate_job", "-fast"]] {
        let job = start(&pool, POLITE, "");
        job.tool(fast);
        let ad = job.until("started twice", JOB_WITHIN, |ad| ad["NumJobStarts"].as_i64() >= Some(2));
        assert_ne!(ad["JobStatus"], status::COMPLETED, "an evicted job has no result");
        job.tool(&["condor_rm"]);
        job.comes_to(status::REMOVED);
        nothing_is_left(&pool);
    }
}

#[test]
fn suspended_and_continued() {
    let pool = Pool::shared();
    let job =
        start(&pool, "i=0; while [ $i -lt 60 ]; do echo > begun; date +%s%N > beat; sleep 0.2; i=$((i+1)); done", "");
    // The tracker has to have seen the job's processes.
    std::thread::sleep(Duration::from_secs(4));
    let beat = || pool.in_pilot("cat /shared/slot/0/data/execute/dir_*/beat");
    job.tool(&["condor_suspend"]);
    job.comes_to(status::SUSPENDED);
    std::thread::sleep(Duration::from_secs(2));
    let (before, later) = (beat(), {
        std::thread::sleep(Duration::from_secs(3));
        beat()
    });
    assert_eq!(before, later, "it went on");
    job.tool(&["condor_continue"]);
    job.ends_with(0);
}

#[test]
fn a_limit_of_the_users_own() {
    let pool = Pool::shared();
    let job = start(&pool, POLITE, "allowed_execute_duration = 5\n");
    let ad = job.is_held("allowed execut");
    assert_eq!(ad["HoldReasonCode"], 47);
    nothing_is_left(&pool);
}
