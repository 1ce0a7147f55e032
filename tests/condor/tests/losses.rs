//! Whatever is killed in the middle of a job: the job runs again, is never taken for done, and nothing of it is left behind.

use latebind_condor_tests::{JOB_WITHIN, Job, Pool, podman, status};

#[track_caller]
fn begun(pool: &Pool) -> Job<'_> {
    // Only its first start waits for the loss, however long that takes.
    let script = "echo > begun; grep -q '^NumJobStarts = [1-9]' \"$_CONDOR_JOB_AD\" || sleep 1000; echo whole";
    let job = pool.shell(script, "");
    job.sandbox_has(0, "begun");
    job
}

/// The job is given back with these words in its log, runs again, and ends well.
#[track_caller]
fn runs_again(job: &Job<'_>, words: &str) {
    job.until("started again", JOB_WITHIN, |ad| ad["NumJobStarts"].as_i64() >= Some(2));
    let log = job.text("log");
    assert!(log.contains(words), "no {words:?} in {log}");
    job.ends_with(0);
    assert_eq!(job.text("out"), "whole\n");
}

#[test]
fn the_watcher() {
    let pool = Pool::shared();
    let job = begun(&pool);
    pool.in_pilot("kill -9 $(pgrep -x watcher)");
    runs_again(&job, "the watcher");
}

#[test]
fn glue() {
    let pool = Pool::shared();
    let job = begun(&pool);
    pool.in_pilot("kill -9 $(pgrep -f '^/shared/bin/glue run')");
    runs_again(&job, "Lost");
}

#[test]
fn the_container() {
    let pool = Pool::shared();
    let job = begun(&pool);
    let killed = podman(&["kill", &pool.payload(0)]).output().unwrap();
    assert!(killed.status.success(), "{killed:?}");
    runs_again(&job, "Lost");
}

#[test]
fn the_container_told_to_stop() {
    let pool = Pool::shared();
    let job = begun(&pool);
    pool.in_pilot("kill -TERM $(pgrep -f '^/shared/bin/glue run')");
    runs_again(&job, "Stopped");
}

#[test]
fn the_starter() {
    let pool = Pool::shared();
    let job = begun(&pool);
    pool.in_pilot("kill -9 $(pgrep -x condor_starter)");
    runs_again(&job, "");
}

#[test]
fn the_drop_in() {
    // HTCondor takes its end for the job's: so it is the job's at once.
    let pool = Pool::shared();
    let job = begun(&pool);
    pool.in_pilot("kill -9 $(pgrep -x singularity)");
    pool.nothing_is_left(0);
    let ad = job.comes_to(status::COMPLETED);
    assert_eq!((&ad["ExitBySignal"], &ad["ExitSignal"]), (&true.into(), &9.into()));
    pool.shell("echo next", "").ends_with(0);
}
