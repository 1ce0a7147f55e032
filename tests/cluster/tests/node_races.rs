//! Whatever happens in the moment of a bind, no job ever runs in another image than its own: somebody else patches the
//! pod, the container ends near the patch, jobs are shorter than the kubelet's look.

use std::thread::sleep;
use std::time::Duration;

use latebind_cluster_tests::patcher::Patcher;
use latebind_cluster_tests::pilot::{Options, Pilot, debian, shell};
use latebind_cluster_tests::{cluster, needs};
use latebind_tests::pod::Outcome;
use serde_json::{Value, json};
use watcher::bind::{Class, Reason};

/// A job that ends well in its own image alone, and that image.
fn job(number: usize) -> (Value, &'static str) {
    if number & 1 == 0 {
        (debian("cat /etc/debian_version"), "debian")
    } else {
        (shell("[ ! -e /etc/debian_version ] && busybox echo busybox"), "busybox")
    }
}

#[track_caller]
fn ran_in(outcome: &Outcome, image: &str, case: &str) {
    assert_eq!(outcome.class(), ("final", "Completed"), "{case}: {:#?}", outcome.report);
    let stdout = outcome.text("stdout");
    assert!(stdout.starts_with(if image == "debian" { "12." } else { "busybox" }), "{case}: {stdout}");
    let container = outcome.report.container.as_ref().unwrap();
    assert!(container.image_id.ends_with(&cluster().digest(image)), "{case}: {container:?}");
}

/// Earlier attempts have failed by what was done to them, and have no result.
#[track_caller]
fn earlier_ones_are_no_results(pilot: &Pilot, name: &str, outcome: &Outcome) -> Vec<Reason> {
    let reports = (1..outcome.report.attempt).map(|number| pilot.attempt(name, number));
    let mut reasons = Vec::new();
    for report in reports {
        assert_eq!(report.class, Class::Retry, "{name}: {report:#?}");
        assert!(report.exit_code.is_none(), "{name}: {report:#?}");
        reasons.push(report.reason);
    }
    reasons
}

#[test]
fn somebody_else_patches_the_same_container() {
    needs("1.20 or later; node");
    let pilot = Options::new().spool(&["--max-attempts", "6"]).start();
    let inside = pilot.inside();
    let path = format!("/api/v1/namespaces/{}/pods/{}", pilot.namespace.name(), pilot.pod);
    let patcher = Patcher::start();
    let patch = |image: &str| {
        let image = cluster().image(image);
        patcher.patch(&path, &json!({"spec": {"containers": [{"name": "payload", "image": image}]}}));
    };
    let mut changed = 0;
    // Before the job is put, and so many milliseconds after its bind has begun: before our patch, between it and the
    // container, and in the job.
    for (number, after) in
        [None, Some(0), Some(5), Some(15), Some(40), Some(100), Some(200), Some(400)].into_iter().enumerate()
    {
        let (wanted, image) = job(number);
        let other = job(number + 1).1;
        let name = format!("patched-{number}");
        let case = format!("{other} in place of {image}, {after:?} ms after the bind began");
        if after.is_none() {
            patch(other);
        }
        pilot.put(&name, &wanted);
        if let Some(after) = after {
            inside.reaches(&format!("{name}.1"), "binding");
            sleep(Duration::from_millis(after));
            patch(other);
        }
        let outcome = pilot.result(&name);
        ran_in(&outcome, image, &case);
        let reasons = earlier_ones_are_no_results(&pilot, &name, &outcome);
        changed += reasons.iter().filter(|r| **r == Reason::ImageChanged).count();
        println!("{case}: {reasons:?}");
    }
    assert!(changed > 0, "no patch has met a bind: nothing was tried");
}

#[test]
fn the_container_ends_shortly_before_the_patch() {
    needs("1.20 or later; node");
    let pilot = Options::new().spool(&["--max-attempts", "6"]).start();
    for (number, before) in [0, 100, 200, 300, 450, 600].into_iter().enumerate() {
        let (wanted, image) = job(number);
        let name = format!("ended-{number}");
        // Of the last job's image or the placeholder: the kubelet is about to start that once more.
        pilot.kill_main_process("payload");
        sleep(Duration::from_millis(before));
        let outcome = pilot.job(&name, &wanted);
        let case = format!("{image}, put {before} ms after the container's end");
        ran_in(&outcome, image, &case);
        println!("{case}: {:?}", earlier_ones_are_no_results(&pilot, &name, &outcome));
    }
}

/// Each bind follows so closely that the kubelet's word about the container before is still on its way.
#[test]
fn jobs_that_are_shorter_than_the_kubelets_look() {
    needs("1.20 or later; node");
    let pilot = Options::new().slots(1).spool(&[]).start();
    let jobs = 8;
    for number in 0..jobs {
        pilot.put(&format!("short-{number}"), &job(number).0);
    }
    let mut containers = Vec::new();
    for number in 0..jobs {
        let outcome = pilot.result(&format!("short-{number}"));
        ran_in(&outcome, job(number).1, &format!("job {number}"));
        assert_eq!(outcome.report.attempt, 1, "{:#?}", outcome.report);
        containers.push(outcome.container().to_owned());
    }
    containers.sort();
    containers.dedup();
    assert_eq!(containers.len(), jobs, "each had a container of its own");
}
