//! What HTCondor sees of a job's use, and what comes of too much of it.

use std::time::Duration;

use latebind_condor_tests::{JOB_WITHIN, Pool};

#[test]
fn memory_and_processor_are_those_of_the_payload() {
    let pool = Pool::shared();
    // 300 MB that are held for a while, and 4 s of one processor.
    let job = pool.shell("/probe memory 300 14 & /probe cpu 4; wait", "");
    let ad = job.ends_with(0);
    let rss = ad["ResidentSetSize_RAW"].as_f64().or(ad["ResidentSetSize"].as_f64()).unwrap_or(0.0) / 1024.0;
    let cpu = ad["RemoteUserCpu"].as_f64().unwrap_or(0.0) + ad["RemoteSysCpu"].as_f64().unwrap_or(0.0);
    assert!((270.0..=330.0).contains(&rss), "resident set size {rss} MB\n{}", job.text("out"));
    assert!((3.6..=4.4).contains(&cpu), "processor time {cpu} s\n{}", job.text("out"));
}

#[test]
fn too_much_for_the_slot_is_held_by_policy() {
    let pool = Pool::shared();
    let job = pool.shell("/probe memory 985 60", "");
    let ad = job.is_held("memory usage exceeded");
    assert_eq!((&ad["HoldReasonCode"], &ad["HoldReasonSubCode"]), (&21.into(), &102.into()));
}

#[test]
fn what_the_kernel_kills_for_memory_is_held_with_the_limit() {
    let pool = Pool::shared();
    let job = pool.shell("exec /probe memory 3000 1", "");
    let ad = job.until("held", JOB_WITHIN, |ad| ad["JobStatus"] == 5);
    let reason = ad["HoldReason"].as_str().unwrap_or_default().to_owned();
    assert_eq!((&ad["HoldReasonCode"], &ad["HoldReasonSubCode"]), (&21.into(), &102.into()), "{reason}");
    assert!(reason.contains("1024 MB") || reason.contains("memory usage exceeded"), "{reason}");
    std::thread::sleep(Duration::from_secs(1));
    // The next job has the slot as if nothing had been.
    pool.shell("echo fine", "").ends_with(0);
}
