//! A pilot that serves a spool, which is a directory of the node.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use latebind_cluster_tests::pilot::{Options, START_WITHIN, probe, shell};
use latebind_cluster_tests::{cluster, eventually, needs};
use serde_json::{Value, json};

#[test]
fn jobs_of_a_spool_end_with_their_results() {
    needs("1.20 or later; node");
    let pilot = Options::new().spool(&[]).start();
    let good = pilot.job("good", &shell("echo from the job"));
    good.is_good();
    assert_eq!(good.text("stdout"), "from the job\n");
    pilot.job("without-a-shell", &probe(&["hello"])).is_good();
    pilot.job("bad", &shell("exit 3")).is("final", "Error");
}

#[test]
fn two_slots_run_two_jobs_at_once() {
    needs("1.20 or later; node");
    let pilot = Options::new().slots(2).spool(&[]).start();
    // Each waits for the other's processes, which it sees since the pod has one PID namespace: alone neither would end.
    let script = |own: u32, other: u32| {
        format!(
            "sleep 1000{own} & while ! grep -qaz '^1000{other}$' /proc/[0-9]*/cmdline 2>/dev/null; do sleep 0.1; done; sleep 1"
        )
    };
    pilot.put("a", &shell(&script(1, 2)));
    pilot.put("b", &shell(&script(2, 1)));
    for name in ["a", "b"] {
        pilot.result(name).is_good();
    }
    assert_ne!(pilot.container_id("payload"), pilot.container_id("payload-1"));
    // The placeholder may be on its way back just now.
    let runs = || !cluster().node().processes(&pilot.container_id("payload-1")).is_empty();
    eventually("payload-1 runs", START_WITHIN, || runs().then_some(()));
}

#[test]
fn account_files_that_are_traps_are_left_alone() {
    needs("1.20 or later; node");
    let pilot = Options::new().spool(&[]).start();
    let mut job = shell("stat -c %s /etc/target; [ -L /etc/passwd ] && echo still a link");
    job["image"] = cluster().image("passwd-link").into();
    job["passwd"] = true.into();
    let outcome = pilot.job("trap", &job);
    assert_eq!(outcome.is_good().text("stdout"), "10\nstill a link\n", "what /etc/passwd leads to has grown");
    let warnings = &outcome.report.record.as_ref().unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

/// So that a bind serves many of the short jobs.
const REUSE: &[&str] = &["--reuse", "same-owner"];

#[test]
fn twenty_pods_share_a_spool_and_none_of_its_jobs_is_lost_or_run_twice() {
    needs("1.20 or later; node, files");
    let (pods, jobs) = (20, 2000);
    let first = Options::new().spool(REUSE).without_waiting().start();
    let spool = first.spool_here();
    let shared = spool.clone();
    let others: Vec<_> = (1..pods)
        .map(|_| {
            let shared = shared.clone();
            let to_shared = move |spec: &mut Value| {
                let volumes = spec["volumes"].as_array_mut().unwrap();
                let of_spool = volumes.iter_mut().find(|volume| volume["name"] == "spool").unwrap();
                of_spool["hostPath"]["path"] = json!(shared);
            };
            Options::new().spool(REUSE).change(to_shared).without_waiting().start()
        })
        .collect();
    let image = cluster().image("busybox");
    latebind_tests::rate::put(&spool, jobs, &image).unwrap();
    eventually("all jobs are done", Duration::from_secs(900), || {
        (fs::read_dir(spool.join("done")).ok()?.count() >= jobs).then_some(())
    });
    let found = watcher::views::results::find(&spool).unwrap();
    let names: BTreeSet<&str> = found.reports.iter().map(|(_, report)| report.job.as_str()).collect();
    assert_eq!((found.reports.len(), names.len()), (jobs, jobs), "each once: {:?}", found.unreadable);
    assert!(found.reports.iter().all(|(_, report)| report.verified && report.attempt == 1));
    let pilots: BTreeSet<&str> = found.reports.iter().map(|(_, report)| report.pilot.as_str()).collect();
    assert_eq!(pilots.len(), pods, "each pod had some");
    drop(others);
}
