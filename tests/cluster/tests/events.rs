//! Binds that fail, as `kubectl describe pod` shows them: with the component `events`, and without it.

use std::time::Duration;

use latebind_cluster_tests::pilot::{Options, Pilot};
use latebind_cluster_tests::{cluster, eventually, needs};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// An image that is not there, by a digest: the kubelet knows the text of such a bind no second time, so it does not
/// wait.
fn missing() -> String {
    format!("{}@sha256:{}", cluster().image("busybox"), "0".repeat(64))
}

/// Our Events about the pod.
fn events(pilot: &Pilot) -> Vec<Value> {
    let about = format!("involvedObject.kind=Pod,involvedObject.name={},source=latebind", pilot.pod);
    let said = pilot.namespace.ask_json(&["get", "events", "--field-selector", &about]);
    said["items"].as_array().unwrap().clone()
}

/// What `watcher check` says of them.
fn checked(pilot: &Pilot) -> String {
    let said = pilot.exec("pilot", &["watcher", "check"]).out();
    said.lines().find(|line| line.contains("API: create event")).map(str::to_owned).expect(&said)
}

/// Tries an image that is not there.
#[track_caller]
fn try_missing(pilot: &Pilot, image: &str) {
    let ran = pilot.run(&[image, "--", "true"]);
    assert!(ran.code == Some(125) && ran.err().contains("ImageNotFound (hold)"), "{:?}: {}", ran.code, ran.err());
}

#[test]
fn a_bind_that_fails_is_an_event_on_the_pod_and_the_same_again_counts_up() {
    needs("1.20 or later");
    let pilot = Options::new().manifest("deploy + events").start();
    assert_eq!(checked(&pilot), "ok    API: create event: on this pod, for binds that fail; tried without keeping it");
    let missing = missing();
    try_missing(&pilot, &missing);
    let event = eventually("the Event", LIMIT, || events(&pilot).pop());
    let uid = pilot.object()["metadata"]["uid"].clone();
    assert_eq!(
        (&event["involvedObject"]["uid"], &event["type"], &event["count"]),
        (&uid, &"Warning".into(), &1.into())
    );
    let message = event["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("{missing} is not bound to payload (hold): ")), "{message}");

    try_missing(&pilot, &missing);
    eventually("the count", LIMIT, || events(&pilot).iter().any(|e| e["count"] == 2).then_some(()));
    // Another image is another Event.
    let ran = pilot.run(&["UPPER/case:is not a name", "--", "true"]);
    assert_eq!(ran.code, Some(125), "{}", ran.err());
    let all = eventually("another Event", LIMIT, || Some(events(&pilot)).filter(|all| all.len() == 2));
    assert!(all.iter().any(|e| e["reason"] == "InvalidImageName"), "{all:#?}");

    // As people see it.
    let seen = pilot.namespace.ask(&["describe", "pod", &pilot.pod]);
    let line = seen.lines().find(|line| line.contains("ImageNotFound") && line.contains("latebind")).expect(&seen);
    assert!(line.contains("(x2 over") && line.contains(&missing), "{line}");
    // One that has expired is written again.
    let name = event["metadata"]["name"].as_str().unwrap();
    pilot.namespace.ask(&["delete", "event", name]);
    try_missing(&pilot, &missing);
    eventually("an Event in place of the one that is gone", LIMIT, || {
        events(&pilot).iter().any(|e| e["reason"] == "ImageNotFound" && e["count"] == 1).then_some(())
    });

    let ran = pilot.run(&[&cluster().image("busybox"), "--", "echo", "runs"]);
    assert_eq!((ran.code, ran.out().as_str()), (Some(0), "runs\n"), "{}", ran.err());
    assert_eq!((events(&pilot).len(), &pilot.status("pilot")["restartCount"]), (2, &0.into()), "a bind that succeeds");
}

#[test]
fn an_account_that_may_not_write_events_binds_all_the_same_and_says_so_once() {
    needs("1.20 or later");
    let pilot = Options::new().start();
    assert!(checked(&pilot).starts_with("ok    API: create event: not allowed, nor needed"), "{}", checked(&pilot));
    let missing = missing();
    let said = || pilot.log("pilot").matches("the pod gets no Events for binds that fail").count();
    try_missing(&pilot, &missing);
    eventually("the refusal is said", LIMIT, || (said() == 1).then_some(()));
    assert!(pilot.log("pilot").contains("cannot create resource"), "{}", pilot.log("pilot"));
    try_missing(&pilot, &missing);
    let ran = pilot.run(&[&cluster().image("busybox"), "--", "echo", "runs"]);
    assert_eq!((ran.code, ran.out().as_str()), (Some(0), "runs\n"), "{}", ran.err());
    assert_eq!((said(), events(&pilot).len()), (1, 0));
}
