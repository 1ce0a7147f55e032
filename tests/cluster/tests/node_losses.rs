//! Watcher, pilot, glue and payload container are killed in mid-job: each job has one result, what is lost is said at
//! once and never taken for the job's own end, and the slot serves the next job.

use latebind_tests::pod::Signal;
use std::time::{Duration, Instant};

use latebind_cluster_tests::inside::{Inside, until_let_go};
use latebind_cluster_tests::pilot::{Options, Pilot, debian, probe};
use latebind_cluster_tests::{cluster, eventually, needs};
use watcher::bind::Class;
use watcher::job::Report;

const LIMIT: Duration = Duration::from_secs(60);
/// The kernel says it at once, the kubelet looks once a second; the rest is for a busy machine.
const SAID_WITHIN: Duration = Duration::from_secs(8);

fn pilot() -> (Pilot, Inside) {
    let pilot = Options::new().spool(&[]).start();
    let inside = pilot.inside();
    (pilot, inside)
}

/// A job during which the pilot's container is started again has its one result, of its first attempt.
fn the_job_goes_on_without_the_pilot(lose: impl FnOnce(&Pilot)) {
    let (pilot, inside) = pilot();
    pilot.put("long", &until_let_go());
    inside.runs("long.1", 0);
    let (before, payload) = (pilot.container_id("pilot"), pilot.container_id("payload"));
    lose(&pilot);
    pilot.replaced("pilot", &before, LIMIT);
    inside.let_go(0);
    let outcome = pilot.result("long");
    outcome.is_good();
    assert_eq!((outcome.text("stdout").as_str(), outcome.report.attempt), ("begun\nended\n", 1));
    assert_eq!(outcome.container(), payload, "it ran in the container that it was started in");
    pilot.job("next", &debian("cat /etc/debian_version")).is_good();
}

#[test]
fn a_watcher_killed_while_the_job_runs_is_resumed() {
    needs("1.20 or later; node");
    the_job_goes_on_without_the_pilot(|pilot| pilot.kill_main_process("pilot"));
}

#[test]
fn a_pilot_container_killed_while_the_job_runs_is_resumed() {
    needs("1.20 or later; node");
    the_job_goes_on_without_the_pilot(|pilot| cluster().node().kill_all(&pilot.container_id("pilot"), Signal::SIGKILL));
}

#[test]
fn a_watcher_killed_in_mid_bind_finds_its_way_back() {
    needs("1.20 or later; node");
    let (pilot, inside) = pilot();
    let main = pilot.main_process("pilot");
    pilot.put("bound", &debian("echo ran; cat /etc/debian_version"));
    inside.reaches("bound.1", "binding");
    cluster().node().kill(&[main], Signal::SIGKILL);
    let outcome = pilot.result("bound");
    outcome.is_good();
    let stdout = outcome.text("stdout");
    assert!(stdout.starts_with("ran\n12.") && stdout.matches("ran").count() == 1, "{stdout}");
    pilot.job("next", &probe(&["hello"])).is_good();
}

fn is_lost(report: &Report) {
    assert_eq!(report.class, Class::Retry, "{report:#?}");
    assert!(["GlueLost", "ContainerLost"].contains(&report.reason.as_str()), "{report:#?}");
    assert!(!report.verified && report.record.is_none() && report.exit_code.is_none() && report.signal.is_none());
    assert!(!report.message.is_empty(), "{report:#?}");
}

/// The payload container, lost in mid-job in several ways, one after the other. A job is put again by the spool, and
/// then ends.
#[test]
fn glue_or_its_container_killed_while_the_job_runs() {
    needs("1.20 or later; node");
    let (pilot, inside) = pilot();
    let mut containers = Vec::new();
    for (name, what) in [("glue", "glue alone"), ("container", "every process of the container")] {
        pilot.put(name, &until_let_go());
        let job = inside.runs(&format!("{name}.1"), 0);
        let container = pilot.container_id("payload");
        let glue = cluster().node().main_process(&container);
        let began = Instant::now();
        if name == "glue" {
            cluster().node().kill(&[glue], Signal::SIGKILL);
        } else {
            cluster().node().kill_all(&container, Signal::SIGKILL);
        }
        let first = pilot.attempt_within(name, 1, SAID_WITHIN);
        println!("{what}: {} after {:?}", first.reason, began.elapsed());
        is_lost(&first);
        assert!(!cluster().node().lives(job), "{what}: what the lost job has left still runs");
        inside.runs(&format!("{name}.2"), 0);
        inside.let_go(0);
        let outcome = pilot.result(name);
        outcome.is_good();
        assert_eq!((outcome.report.attempt, outcome.text("stdout").as_str()), (2, "begun\nended\n"), "{what}");
        assert_ne!(outcome.container(), container, "{what}");
        containers.push(container);
    }
    let next = pilot.job("next", &debian("cat /etc/debian_version"));
    assert!(next.is_good().text("stdout").starts_with("12."), "{}", next.text("stdout"));
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

/// Who runs `watcher run` gets the loss as a failure that is not the job's, and can run the next one.
#[test]
fn a_loss_under_run_is_no_result_of_the_job() {
    needs("1.20 or later; node");
    let pilot = Pilot::start();
    let inside = pilot.inside();
    let running = pilot.spawn(&["--name", "lost", &cluster().image("busybox"), "--", "sleep", "60"]);
    eventually("the job runs", LIMIT, || (inside.glue(0)["phase"] == "running").then_some(()));
    pilot.kill_main_process("payload");
    let ran = running.finish(LIMIT);
    assert_eq!(ran.code, Some(125), "{}", ran.err());
    assert!(["GlueLost (retry)", "ContainerLost (retry)"].iter().any(|s| ran.err().contains(s)), "{}", ran.err());
    let next = pilot.run(&[&cluster().image("debian"), "--", "cat", "/etc/debian_version"]);
    assert!(next.code == Some(0) && next.out().starts_with("12."), "{}{}", next.out(), next.err());
}
