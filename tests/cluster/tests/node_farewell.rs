//! The pod is deleted, evicted or torn away in mid-job: the job goes back to the spool, and the next pod of that name
//! runs it to its end.

use std::time::{Duration, Instant};

use latebind_cluster_tests::manifest::container;
use latebind_cluster_tests::pilot::{Options, Pilot, START_WITHIN, shell};
use latebind_cluster_tests::{cluster, eventually, needs};
use latebind_tests::pod::look_into;
use serde_json::{Value, json};
use watcher::bind::Class;

const GRACE: Duration = Duration::from_secs(30);

const JOB: &str = "echo begun; sleep 8; echo ended";

fn in_mid_job() -> (Pilot, String) {
    let pilot = Options::new().spool(&["--name", "pilot"]).start();
    pilot.put("moved", &shell(JOB));
    pilot.inside().runs("moved.1", 0);
    let uid = pilot.object()["metadata"]["uid"].as_str().unwrap().to_owned();
    (pilot, uid)
}

fn another_pod_ends_it(pilot: &Pilot, uid: &str) {
    pilot.until("another pod of the name", START_WITHIN, |pod| (pod["metadata"]["uid"] != uid).then_some(()));
    pilot.ready();
    let outcome = pilot.result("moved");
    outcome.is_good();
    assert_eq!((outcome.text("stdout").as_str(), outcome.report.attempt), ("begun\nended\n", 2));
    assert!(look_into(&pilot.spool(), "moved").is_some_and(|o| o.place == "done"));
}

/// What is told to end has its grace period, and uses it to put the job back.
fn goes_back_in_time(end: impl FnOnce(&Pilot)) {
    let (pilot, uid) = in_mid_job();
    let began = Instant::now();
    end(&pilot);
    let first = pilot.attempt_within("moved", 1, GRACE);
    println!("{} after {:?}", first.reason, began.elapsed());
    assert_eq!(first.class, Class::Retry, "{first:#?}");
    assert!(["Cancelled", "Stopped", "PodDeleted"].contains(&first.reason.as_str()), "{first:#?}");
    another_pod_ends_it(&pilot, &uid);
}

fn delete(pilot: &Pilot) {
    let grace = format!("--grace-period={}", GRACE.as_secs());
    pilot.namespace.ask(&["delete", "pod", &pilot.pod, "--wait=false", &grace]);
}

#[test]
fn a_pod_that_is_deleted() {
    needs("1.20 or later; node");
    goes_back_in_time(delete);
}

/// What `kubectl drain` does to each pod of a node.
#[track_caller]
fn evict(pilot: &Pilot) {
    let (namespace, pod) = (pilot.namespace.name(), &pilot.pod);
    // Each is all that some servers know.
    let api = if cluster().server() < (1, 22) { "policy/v1beta1" } else { "policy/v1" };
    let eviction = json!({"apiVersion": api, "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace}, "deleteOptions": {"gracePeriodSeconds": GRACE.as_secs()}});
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction");
    cluster().ask_with_input(&["create", "--raw", &path, "-f", "-"], eviction.to_string());
}

#[test]
fn a_pod_that_is_evicted() {
    needs("1.20 or later; node");
    goes_back_in_time(evict);
}

/// A pod of a Job is ended in mid-job: the Job makes another, and completes with what that has done. Returns the Job's
/// status.
fn a_job_goes_on_in_another_pod(manifest: &str, end: impl FnOnce(&Pilot)) -> Value {
    // The manifest's own arguments, with less patience.
    let impatient = |spec: &mut Value| {
        for argument in container(spec, "pilot")["args"].as_array_mut().unwrap().iter_mut().filter(|a| *a == "60") {
            *argument = json!("3");
        }
    };
    let mut pilot = Options::new().manifest(manifest).spool_volume().change(impatient).start();
    pilot.put("moved", &shell(JOB));
    pilot.inside().runs("moved.1", 0);
    let first = pilot.pod.clone();
    end(&pilot);
    assert_eq!(pilot.attempt_within("moved", 1, GRACE).class, Class::Retry);
    pilot.pod = eventually("another pod of the Job", START_WITHIN, || {
        let pods = pilot.namespace.ask_json(&["get", "pods", "-l", "job-name=latebind"]);
        let mut names = pods["items"].as_array()?.iter().filter_map(|pod| pod["metadata"]["name"].as_str());
        names.find(|name| *name != first).map(str::to_owned)
    });
    let outcome = pilot.result("moved");
    outcome.is_good();
    assert_eq!((outcome.text("stdout").as_str(), outcome.report.attempt), ("begun\nended\n", 2));
    assert_eq!(pilot.ended(START_WITHIN), "Succeeded");
    eventually("the Job has ended", START_WITHIN, || {
        let job = pilot.namespace.ask_json(&["get", "job", "latebind"]);
        let ended = |c: &Value| ["Complete", "Failed"].iter().any(|t| c["type"] == *t) && c["status"] == "True";
        job["status"]["conditions"].as_array()?.iter().any(ended).then(|| job["status"].clone())
    })
}

/// Its Job allows no failure, and takes this for none.
fn is_no_failure(end: impl FnOnce(&Pilot)) {
    let status = a_job_goes_on_in_another_pod("deploy/job", end);
    assert_eq!((&status["succeeded"], &status["failed"]), (&json!(1), &Value::Null), "{status:#}");
}

#[test]
fn a_pod_of_a_job_that_is_evicted() {
    needs("1.32 or later; node");
    is_no_failure(evict);
}

/// Nothing of it says that it was disrupted.
#[test]
fn a_pod_of_a_job_that_is_deleted() {
    needs("1.32 or later; node");
    is_no_failure(delete);
}

#[test]
fn a_pod_of_a_job_before_1_32_that_is_evicted() {
    needs("1.20 or later; node");
    let status = a_job_goes_on_in_another_pod("deploy/job-before-1.32", evict);
    assert_eq!(status["succeeded"], 1, "{status:#}");
}

/// Nobody is left to put it back: the next pilot of the name finds it claimed.
#[test]
fn a_pod_that_is_torn_away() {
    needs("1.20 or later; node");
    let (pilot, uid) = in_mid_job();
    pilot.namespace.ask(&["delete", "pod", &pilot.pod, "--wait=false", "--grace-period=0", "--force"]);
    another_pod_ends_it(&pilot, &uid);
    assert_eq!(pilot.attempt("moved", 1).class, Class::Retry);
}
