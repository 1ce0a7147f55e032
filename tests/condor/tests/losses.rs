//! Whatever is killed in the middle of a job: the job runs again, is never taken for done, and nothing of it is left
//! behind.

use latebind_condor_tests::{Pool, podman, status};

#[test]
fn the_watcher() {
    let pool = Pool::shared();
    let job = pool.begun();
    pool.in_pilot("kill -9 $(pgrep -x watcher)");
    job.runs_again("the watcher");
}

#[test]
fn glue() {
    let pool = Pool::shared();
    let job = pool.begun();
    pool.in_pilot("kill -9 $(pgrep -f '^/shared/bin/glue run')");
    job.runs_again("Lost");
}

#[test]
fn the_container() {
    let pool = Pool::shared();
    let job = pool.begun();
    let killed = podman(&["kill", &pool.payload(0)]).output().unwrap();
    assert!(killed.status.success(), "{killed:?}");
    job.runs_again("Lost");
}

#[test]
fn the_container_told_to_stop() {
    let pool = Pool::shared();
    let job = pool.begun();
    pool.in_pilot("kill -TERM $(pgrep -f '^/shared/bin/glue run')");
    job.runs_again("Stopped");
}

#[test]
fn the_starter() {
    let pool = Pool::shared();
    let job = pool.begun();
    pool.in_pilot("kill -9 $(pgrep -x condor_starter)");
    job.runs_again("");
}

#[test]
fn the_drop_in() {
    // HTCondor takes its end for the job's: so it is the job's at once.
    let pool = Pool::shared();
    let job = pool.begun();
    pool.in_pilot("kill -9 $(pgrep -x singularity)");
    pool.nothing_is_left(0);
    let ad = job.comes_to(status::COMPLETED);
    assert_eq!((&ad["ExitBySignal"], &ad["ExitSignal"]), (&true.into(), &9.into()));
    pool.shell("echo next", "").ends_with(0);
}
