//! One slot, one bind after the other: each job in a container of the image that it asked for, quickly, and with few
//! requests to the API server, which its audit log counts.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::Duration;

use latebind_cluster_tests::audit::{Request, count, requests};
use latebind_cluster_tests::history::History;
use latebind_cluster_tests::manifest::container;
use latebind_cluster_tests::pilot::{Options, Pilot};
use latebind_cluster_tests::{cluster, needs};
use latebind_tests::pod::{Outcome, with};
use serde_json::{Value, json};

/// How long a bind may take where nothing has to be fetched: a new container, and up to two looks of the kubelet, of a
/// second each.
const BIND_WITHIN: f64 = 3.0;

fn job(image: &str, argv: &[&str]) -> Value {
    json!({"image": image, "argv": argv})
}

/// A job that lasts long enough for the kubelet to have seen its container.
fn two_seconds(image: &str) -> Value {
    job(image, &["/probe", "sleep", "2"])
}

fn image_id(outcome: &Outcome) -> &str {
    &outcome.report.container.as_ref().unwrap().image_id
}

/// Runs these jobs in turn, all put at once.
fn run_all(pilot: &Pilot, jobs: &[Value]) -> Vec<Outcome> {
    let names: Vec<String> = (0..jobs.len()).map(|n| format!("job-{n:02}")).collect();
    for (name, job) in names.iter().zip(jobs) {
        pilot.put(name, job);
    }
    let outcomes: Vec<Outcome> = names.iter().map(|name| pilot.result(name)).collect();
    for (outcome, job) in outcomes.iter().zip(jobs) {
        outcome.is_good();
        assert_eq!(outcome.report.image, job["image"].as_str().unwrap());
    }
    outcomes
}

fn containers(outcomes: &[Outcome]) -> HashSet<&str> {
    outcomes.iter().map(Outcome::container).collect()
}

/// Fails unless the kubelet never held a container back, by what was seen of its status and by its events.
#[track_caller]
fn was_never_held_back(pilot: &Pilot, history: History) {
    let reasons = history.end();
    assert!(!reasons.iter().any(|reason| reason == "CrashLoopBackOff"), "{reasons:?}");
    for (reason, message) in pilot.namespace.events() {
        assert!(reason != "BackOff", "{message}");
    }
}

/// Fails unless these binds were quick, but for the first ones, which may have had to fetch their images. On a busy
/// machine the kubelet misses a look now and then; the shortest wait of its back-off is 10 s.
#[track_caller]
fn were_quick(outcomes: &[Outcome], first: usize) {
    let binds: Vec<f64> = outcomes.iter().skip(first).map(|o| o.report.durations.bind).collect();
    let over = |limit: f64| binds.iter().filter(|bind| **bind > limit).count();
    assert!(over(BIND_WITHIN) <= binds.len() / 9 && over(2.0 * BIND_WITHIN) == 0, "binds, in seconds: {binds:?}");
}

/// Fails unless these requests were no more than three for each bind, besides its watch; and none but these.
#[track_caller]
fn were_few(requests: &[Request]) {
    let (binds, watches) = (count(requests, "patch"), count(requests, "watch"));
    assert!(binds > 0, "{requests:?}");
    assert!(requests.len() - watches <= 3 * binds, "{binds} binds: {requests:#?}");
    // One that the server ended in between is opened again.
    assert!(watches <= 2 * binds, "{binds} binds: {requests:#?}");
    for request in requests {
        assert!(["get", "patch", "watch"].contains(&request.verb.as_str()), "{request:?}");
        assert!(request.verb != "watch" || request.uri.contains("fieldSelector=metadata.name%3D"), "{request:?}");
    }
}

#[test]
fn five_jobs_in_four_images_of_one_slot() {
    needs("1.20 or later; node, parts");
    let pilot = Options::new().spool(&[]).start();
    let before = requests(&pilot.namespace).len();
    let names = ["busybox", "debian", "noshell", "stopsignal-winch", "busybox"];
    let look = ["/bin/cat", "/etc/debian_version"];
    let jobs: Vec<Value> = names
        .iter()
        .map(|name| job(&cluster().image(name), if *name == "debian" { &look } else { &["/probe", "hello"] }))
        .collect();
    let outcomes = run_all(&pilot, &jobs);
    for (name, outcome) in names.iter().zip(&outcomes) {
        assert!(image_id(outcome).ends_with(&cluster().digest(name)), "{name}: {}", image_id(outcome));
        let said = outcome.text("stdout");
        assert!(said.contains(if *name == "debian" { "12." } else { "from a static program" }), "{name}: {said}");
    }
    assert_eq!(containers(&outcomes).len(), 5, "each job has a container of its own");
    assert_eq!(pilot.status("pilot")["restartCount"], 0);

    // When nothing waits, the placeholder comes back; and after that nobody asks the server for anything.
    let glue = cluster().digest("glue");
    pilot.until("the placeholder is back", Duration::from_secs(60), |pod| {
        let status = latebind_cluster_tests::pilot::status_of(pod, "payload")?;
        let image_id = status["imageID"].as_str()?;
        (status["state"]["running"].is_object() && image_id.ends_with(&glue)).then_some(())
    });
    let all = requests(&pilot.namespace);
    were_few(&all[before..]);
    assert!(count(&all[before..], "patch") <= names.len() + 1, "{all:#?}");
    assert_eq!(count(&all, "list"), 0, "{all:#?}");
    sleep(Duration::from_secs(10));
    let later = requests(&pilot.namespace);
    assert_eq!(later.len(), all.len(), "a pilot without work asks for {:#?}", &later[all.len()..]);
}

#[test]
fn the_same_image_ten_times_in_containers_of_their_own() {
    needs("1.20 or later; node, parts");
    let pilot = Options::new().spool(&["--reuse", "never"]).start();
    let (history, before) = (History::of(&pilot, "payload"), requests(&pilot.namespace).len());
    let image = cluster().image_by_digest("busybox", "1");
    let outcomes = run_all(&pilot, &vec![two_seconds(&image); 10]);
    were_quick(&outcomes, 1);
    assert_eq!(containers(&outcomes).len(), 10);
    was_never_held_back(&pilot, history);
    were_few(&requests(&pilot.namespace)[before..]);
}

#[test]
fn the_same_image_ten_times_for_one_owner_in_one_container() {
    needs("1.20 or later; node, parts");
    let pilot = Options::new().spool(&["--reuse", "same-owner"]).start();
    let (history, before) = (History::of(&pilot, "payload"), requests(&pilot.namespace).len());
    let image = cluster().image_by_digest("busybox", "1");
    let outcomes = run_all(&pilot, &vec![with(two_seconds(&image), "owner", json!("one")); 10]);
    were_quick(&outcomes, 1);
    assert_eq!(containers(&outcomes).len(), 1);
    assert_eq!(outcomes.iter().filter(|o| o.report.reused_container).count(), 9);
    assert_eq!(count(&requests(&pilot.namespace)[before..], "patch"), 1);
    // Somebody else's job does not run there.
    let other = pilot.job("other", &with(two_seconds(&image), "owner", json!("two")));
    assert_ne!(other.is_good().container(), outcomes[0].container());
    was_never_held_back(&pilot, history);
}

/// Two images in turn, ten times each.
#[track_caller]
fn in_turn(one: &str, another: &str) {
    let pilot = Options::new().spool(&[]).start();
    let (history, before) = (History::of(&pilot, "payload"), requests(&pilot.namespace).len());
    let jobs: Vec<Value> = (0..20).map(|n| two_seconds(if n % 2 == 0 { one } else { another })).collect();
    let outcomes = run_all(&pilot, &jobs);
    were_quick(&outcomes, 2);
    assert_eq!(containers(&outcomes).len(), 20);
    for (n, outcome) in outcomes.iter().enumerate() {
        let digest = cluster().digest(["busybox", "noshell"][n % 2]);
        assert!(image_id(outcome).ends_with(&digest), "job {n}: {}", image_id(outcome));
    }
    was_never_held_back(&pilot, history);
    were_few(&requests(&pilot.namespace)[before..]);
}

#[test]
fn two_images_in_turn_by_digest() {
    needs("1.20 or later; node, parts");
    in_turn(&cluster().image_by_digest("busybox", "1"), &cluster().image_by_digest("noshell", "1"));
}

#[test]
fn two_images_in_turn_by_tag() {
    needs("1.20 or later; node, parts");
    // From the second time on the watcher knows their digests.
    in_turn(&cluster().image("busybox"), &cluster().image("noshell"));
}

#[test]
fn the_same_content_by_digest_and_then_by_tag_is_proven_by_way_of_the_placeholder() {
    needs("1.20 or later; node");
    let pilot = Options::new().spool(&[]).start();
    let by_digest = cluster().image_by_digest("debian", "first");
    let jobs = [two_seconds(&by_digest), two_seconds(&cluster().image("debian")), two_seconds(&by_digest)];
    let jobs = jobs.map(|mut job| {
        job["argv"] = json!(["sleep", "2"]);
        job
    });
    let outcomes = run_all(&pilot, &jobs);
    assert!(outcomes.iter().all(|outcome| outcome.report.attempt == 1), "{outcomes:?}");
    assert_eq!(outcomes[0].report.container.as_ref().unwrap().image_id, image_id(&outcomes[1]));
}

#[test]
fn an_image_without_a_digest_has_to_wait_and_that_is_said_before() {
    needs("1.20 or later; node");
    let image = cluster().node().import();
    let never = |spec: &mut Value| container(spec, "payload")["imagePullPolicy"] = json!("Never");
    let pilot = Options::new().spool(&[]).change(never).start();
    let said = || -> Vec<Value> {
        let lines: Vec<Value> = pilot.log("pilot").lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.into_iter().filter(|l| l.to_string().contains("the kubelet may wait")).collect()
    };
    let mut warned = None;
    for n in 0..4 {
        let name = format!("job-{n}");
        let outcome = pilot.job(&name, &job(&image.name, &["/program", "sleep", "2"]));
        outcome.is_good();
        let bind = outcome.report.durations.bind;
        let words = said().into_iter().find(|l| {
            l["fields"]["job"].as_str().is_some_and(|j| j.starts_with(&name)) && l.to_string().contains(&image.name)
        });
        match words {
            None => assert!(bind < 10.0 || warned.is_some(), "{name} waited {bind} s without a word"),
            Some(words) => {
                assert!(
                    words.to_string().contains("so it has no digest") && words.to_string().contains("CrashLoopBackOff"),
                    "{words}"
                );
                warned = Some(bind);
                break;
            }
        }
    }
    // The kubelet counts by what ended; that the wait was real is its word.
    let bind = warned.expect("no wait was announced in four binds of the same text");
    assert!(bind > 5.0, "announced, and then the bind took {bind} s");
    assert!(pilot.namespace.events().iter().any(|(reason, _)| reason == "BackOff"));
}
