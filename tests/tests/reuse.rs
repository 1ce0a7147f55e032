//! `--reuse same-owner` keeps a container for the next job of the same owner and image, and nothing of the last one in
//! it; `never`, which is the default, makes a new one each time.

use latebind_tests::pod::{BUSYBOX, DEBIAN, Options, Pod, Signal, kill, podman, shell, unique, with};
use serde_json::{Value, json};

fn of(owner: &str, job: Value) -> Value {
    with(job, "owner", json!(owner))
}

fn same_owner() -> Pod {
    Options::new().pilot(&["--reuse", "same-owner"]).start()
}

const LEAVE: &str =
    "touch left .hidden; mkdir d; touch d/e; ln -s /etc/passwd l; /probe daemons 2; touch /tmp/of-this-container";
const LOOK: &str = "ls -A; ls /tmp; ps -o user,args | grep '[p]robe daemons'; true";

#[test]
fn the_same_owner_has_the_same_container_and_a_clean_sandbox() {
    let pod = same_owner();
    let first = pod.job("first", &of("alice", shell(LEAVE)));
    let second = pod.job("second", &of("alice", shell(LOOK)));
    first.is_good();
    second.is_good();
    assert_eq!(first.container(), second.container());
    assert!(!first.report.reused_container && second.report.reused_container);
    // /tmp is the container's and stays, as the owner was told; work/ and processes do not.
    assert_eq!(second.text("stdout"), "of-this-container\n");
    assert_ne!(first.report.record.as_ref().unwrap().nonce, second.report.record.as_ref().unwrap().nonce);
    assert!(second.report.durations.bind < first.report.durations.bind);
}

#[test]
fn another_owner_has_another_container() {
    let pod = same_owner();
    let first = pod.job("first", &of("alice", shell(LEAVE)));
    let second = pod.job("second", &of("bob", shell(LOOK)));
    let third = pod.job("third", &of("alice", shell(LOOK)));
    for outcome in [&first, &second, &third] {
        outcome.is_good();
        assert!(!outcome.report.reused_container);
    }
    assert_ne!(first.container(), second.container());
    assert_ne!(second.container(), third.container());
    assert_ne!(first.container(), third.container());
    assert_eq!((second.text("stdout"), third.text("stdout")), (String::new(), String::new()));
}

#[test]
fn nobodys_jobs_share_nothing() {
    let pod = same_owner();
    let first = pod.job("first", &shell(LEAVE));
    let second = pod.job("second", &of("", shell(LOOK)));
    assert_ne!(first.is_good().container(), second.is_good().container());
    assert_eq!(second.text("stdout"), "");
}

#[test]
fn another_image_is_another_container() {
    let pod = same_owner();
    let first = pod.job("first", &of("alice", shell("true")));
    let second = pod
        .job("second", &of("alice", json!({"image": DEBIAN, "argv": ["/bin/bash", "-c", "cat /etc/debian_version"]})));
    assert_ne!(first.is_good().container(), second.is_good().container());
    assert!(second.text("stdout").starts_with("12."));
}

#[test]
fn a_name_that_means_another_image_by_now_is_another_container() {
    let pod = same_owner();
    let name = format!("localhost/latebind-test/{}:1", unique("moving"));
    let tag = |image: &str| assert!(podman(&["tag", image, &name]).status.success());
    tag(BUSYBOX);
    let run = |job: &str| {
        pod.job(job, &of("alice", json!({"image": name, "argv": ["/bin/sh", "-c", "test -e /etc/debian_version"]})))
    };
    let first = run("first");
    tag(DEBIAN);
    let second = run("second");
    // With the name twice: with one alone, podman takes all the image's names away.
    assert!(podman(&["untag", &name, &name]).status.success());
    first.is("final", "Error");
    second.is_good();
    assert_ne!(first.container(), second.container());
}

#[test]
fn a_container_that_was_lost_is_not_used_again() {
    let pod = same_owner();
    let first = pod.job("first", &of("alice", shell("true")));
    first.is_good();
    kill(pod.main_process(&pod.payload_role(0)), Signal::SIGKILL);
    let second = pod.job("second", &of("alice", shell("true")));
    second.is_good();
    assert_eq!(second.report.attempt, 1);
    assert_ne!(first.container(), second.container());
}

#[test]
fn never_means_a_new_container_for_each_job() {
    for options in [Options::new(), Options::new().pilot(&["--reuse", "never"])] {
        let pod = options.start();
        let first = pod.job("first", &of("alice", shell(LEAVE)));
        let second = pod.job("second", &of("alice", shell(LOOK)));
        assert_ne!(first.is_good().container(), second.is_good().container());
        assert!(!second.report.reused_container);
        assert_eq!(second.text("stdout"), "");
    }
}
