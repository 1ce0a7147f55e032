//! What HTCondor sees of a job's use, and what comes of too much of it.

use latebind_condor_tests::{JOB_WITHIN, Pool};
use serde_json::Value;

#[test]
fn memory_and_processor_are_those_of_the_payload() {
    let pool = Pool::shared();
    // 300 MB that are held, and 12 s of processor time, which the shell uses itself and counts.
    let script = "/probe memory 300 600 >/dev/null & ticks=0; \
                  while [ $ticks -lt 1200 ]; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
                  set -- $(cat /proc/$$/stat); ticks=$((${14} + ${15})); done; \
                  echo > done; while [ ! -e end ]; do sleep 0.2; done; echo $ticks";
    let job = pool.shell(script, "");
    let cpu_of = |ad: &Value| ad["RemoteUserCpu"].as_f64().unwrap_or(0.0) + ad["RemoteSysCpu"].as_f64().unwrap_or(0.0);
    job.sandbox_has(0, "done");
    // The tracker looks now and then.
    job.until("accounted for", JOB_WITHIN, |ad| cpu_of(ad) >= 12.0 * 0.9 - 1.0);
    pool.in_pilot("find /shared/slot/0/data/execute -name done -execdir touch end \\;");
    let ad = job.ends_with(0);
    let rss = ad["ResidentSetSize_RAW"].as_f64().unwrap_or(0.0) / 1024.0;
    let cpu = cpu_of(&ad);
    let truth = job.text("out").trim().parse::<f64>().unwrap() / 100.0;
    assert!((270.0..=330.0).contains(&rss), "resident set size {rss} MB");
    // HTCondor drops what is not a whole second, of user and of system time.
    assert!(truth * 0.9 - 1.0 <= cpu && cpu <= truth * 1.1, "processor time {cpu} s of {truth} s");
}

#[test]
fn too_much_for_the_slot_is_held_with_the_limit() {
    let pool = Pool::shared();
    let job = pool.shell("/probe memory 985 60", "");
    let ad = job.is_held("memory");
    assert_eq!((&ad["HoldReasonCode"], &ad["HoldReasonSubCode"]), (&21.into(), &102.into()));
    // HTCondor's policy, or the watcher's limit, which is the same: whoever looks first.
    let reason = ad["HoldReason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("memory usage exceeded the 972 MB of its slot")
            || reason.contains("of memory, its limit is 973M; the payload container has 1024 MB"),
        "{reason}"
    );
}

#[test]
fn what_the_kernel_kills_for_memory_is_held_with_the_limit() {
    let pool = Pool::shared();
    let job = pool.shell("exec /probe memory 3000 1", "");
    let ad = job.until("held", JOB_WITHIN, |ad| ad["JobStatus"] == 5);
    let reason = ad["HoldReason"].as_str().unwrap_or_default().to_owned();
    assert_eq!((&ad["HoldReasonCode"], &ad["HoldReasonSubCode"]), (&21.into(), &102.into()), "{reason}");
    assert!(reason.contains("1024 MB") || reason.contains("memory usage exceeded"), "{reason}");
    // The next job has the slot as if nothing had been.
    pool.shell("echo fine", "").ends_with(0);
}
