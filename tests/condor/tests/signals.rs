//! What users and pools do to jobs: remove, hold, release, vacate, suspend, limit.

use std::time::Duration;

use latebind_condor_tests::{JOB_WITHIN, Job, Pool, status};
use latebind_tests::pod::eventually;

/// How long a job is suspended: long enough to be counted, in whole seconds.
const SUSPENDED_FOR: Duration = Duration::from_secs(3);

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

#[test]
fn removed_held_and_released() {
    let pool = Pool::shared();
    for script in [POLITE, STUBBORN] {
        let job = start(&pool, script, "");
        job.tool(&["condor_rm"]);
        job.comes_to(status::REMOVED);
        pool.nothing_is_left(0);
    }
    let job = start(&pool, "if [ -e /tmp/x ]; then exit 9; fi; echo > begun; sleep 5", "");
    job.tool(&["condor_hold"]);
    job.comes_to(status::HELD);
    pool.nothing_is_left(0);
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
    pool.nothing_is_left(0);
}

#[test]
fn vacated_jobs_run_again() {
    let pool = Pool::shared();
    for (script, tool) in [(POLITE, &["condor_vacate_job"][..]), (STUBBORN, &["condor_vacate_job", "-fast"])] {
        let job = start(&pool, script, "");
        let first = pool.processes(0);
        assert!(first.iter().any(|process| process.contains("singularity")), "no drop-in in {first:#?}");
        job.tool(tool);
        let ad = job.until("started twice", JOB_WITHIN, |ad| ad["NumJobStarts"].as_i64() >= Some(2));
        assert_ne!(ad["JobStatus"], status::COMPLETED, "an evicted job has no result");
        let now = pool.processes(0);
        let left: Vec<_> = first.iter().filter(|process| now.contains(process)).collect();
        assert!(left.is_empty(), "left over from the first start: {left:#?}");
        job.tool(&["condor_rm"]);
        job.comes_to(status::REMOVED);
        pool.nothing_is_left(0);
    }
}

#[test]
fn removed_by_force() {
    let pool = Pool::shared();
    let job = start(&pool, STUBBORN, "leave_in_queue = False\n");
    job.tool(&["condor_rm"]);
    job.tool(&["condor_rm", "-forcex"]);
    pool.nothing_is_left(0);
    pool.shell("echo next", "").ends_with(0);
}

#[test]
fn suspended_and_continued() {
    let pool = Pool::shared();
    let script = "/probe memory 80 600 >/dev/null & echo > begun; \
                  while [ ! -e end ]; do date +%s%N > beat; sleep 0.2; done; kill $!";
    let job = start(&pool, script, "");
    job.until("tracked with all its processes", JOB_WITHIN, |ad| {
        ad["ResidentSetSize_RAW"].as_f64() >= Some(80.0 * 1024.0)
    });
    let beat = || pool.in_pilot("cat $(find /shared/slot/0/data/execute -name beat)");
    job.tool(&["condor_suspend"]);
    job.comes_to(status::SUSPENDED);
    eventually("its processes are stopped", JOB_WITHIN, || {
        let processes = format!("ps -u {} -o stat=,args= | grep '[p]robe memory' || :", pool.uid(0));
        let states = pool.in_pilot(&processes);
        (!states.is_empty() && states.lines().all(|line| line.trim_start().starts_with('T'))).then_some(())
    });
    let before = beat();
    std::thread::sleep(SUSPENDED_FOR);
    assert_eq!(beat(), before, "it went on");
    job.tool(&["condor_continue"]);
    eventually("it goes on", JOB_WITHIN, || (beat() != before).then_some(()));
    pool.in_pilot("find /shared/slot/0/data/execute -name beat -execdir touch end \\;");
    let ad = job.ends_with(0);
    assert_eq!(ad["TotalSuspensions"], 1, "{}", job.text("log"));
    let counted = ad["CumulativeSuspensionTime"].as_f64().unwrap_or(0.0);
    assert!(counted >= SUSPENDED_FOR.as_secs_f64(), "{counted} s");
    let log = job.text("log");
    assert!(log.contains("Job was suspended") && log.contains("Job was unsuspended"), "{log}");
}

#[test]
fn a_limit_of_the_users_own() {
    let pool = Pool::shared();
    let job = start(&pool, POLITE, "allowed_execute_duration = 5\n");
    let ad = job.is_held("allowed execut");
    assert_eq!(ad["HoldReasonCode"], 47);
    pool.nothing_is_left(0);
}
