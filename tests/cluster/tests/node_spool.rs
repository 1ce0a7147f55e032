//! A pilot that serves a spool, which is a directory of the node.

use latebind_cluster_tests::pilot::{Options, probe, shell};
use latebind_cluster_tests::{cluster, needs};

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
    assert!(!cluster().node().processes(&pilot.container_id("payload-1")).is_empty());
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
