//! Registries that deny, fail or hang, as the kubelet reports them. They are on this machine.

use std::time::Duration;

use latebind_cluster_tests::faulty::{Fault, Faulty};
use latebind_cluster_tests::pilot::{Options, Pilot};
use latebind_cluster_tests::{cluster, eventually, needs};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
const FAILED: [&str; 2] = ["ErrImagePull", "ImagePullBackOff"];

fn idle() -> Pilot {
    Options::new().command(&["/bin/sleep", "1000000"]).start()
}

/// What the kubelet says of an image; only the first failure has the registry's own words.
fn failure(image: &str) -> String {
    let pilot = idle();
    pilot.patch_image("payload", image);
    pilot.waiting("payload", &FAILED, LIMIT);
    eventually("an event that says why", LIMIT, || {
        let events = pilot.namespace.events();
        events
            .into_iter()
            .map(|(_, message)| message)
            .find(|m| m.starts_with("Failed to pull image") && m.contains(image))
    })
}

#[test]
fn an_image_that_wants_a_password() {
    needs("1.20 or later; registries");
    let said = failure(&cluster().denied_image());
    assert!(said.contains("401 Unauthorized") || said.contains("no basic auth credentials"), "{said}");
}

#[test]
fn a_registry_says_what_an_image_runs_by_itself() {
    needs("1.20 or later; node, host network, registries");
    let registry = format!("127.0.0.1:{}", cluster().registry_port());
    let pilot = Options::new().spool(&["--ask-registry", "--plain-http-registry", &registry]).start();
    let image = cluster().image_by_digest("noshell", "1");
    for (name, image) in [("by-digest", image), ("by-tag", cluster().image("noshell"))] {
        let outcome = pilot.job(name, &json!({"image": image, "args": ["hello"]}));
        assert!(outcome.is_good().text("stdout").contains("from a static program"), "{}", outcome.text("stdout"));
    }
}

#[test]
fn a_registry_that_is_asked_too_often() {
    needs("1.20 or later; loopback");
    let registry = Faulty::start(Fault::too_many_requests(1));
    let said = failure(&registry.image());
    assert!(said.contains("429"), "{said}");
    assert!(registry.asked() > 0);
}

#[test]
fn a_registry_that_fails() {
    needs("1.20 or later; loopback");
    for status in [500, 503] {
        let registry = Faulty::start(Fault::Status(status, vec![]));
        let said = failure(&registry.image());
        assert!(said.contains(&status.to_string()), "{said}");
    }
}

#[test]
fn a_registry_that_is_not_there() {
    needs("1.20 or later; loopback");
    let image = Faulty::start(Fault::Hang).image();
    let said = failure(&image);
    assert!(said.contains("connection refused"), "{said}");
}

#[test]
fn a_registry_that_never_answers_keeps_nobody_else_waiting() {
    needs("1.20 or later; node, loopback");
    let registry = Faulty::start(Fault::Hang);
    let pilot = idle();
    let old = pilot.container_id("payload");
    pilot.patch_image("payload", &registry.image());
    eventually("the kubelet has asked", LIMIT, || (registry.asked() > 0).then_some(()));
    eventually("the old container is gone", LIMIT, || cluster().node().processes(&old).is_empty().then_some(()));
    // Nobody says so: until the pull has ended one way or the other, the kubelet reports what was before.
    let status = pilot.status("payload");
    assert!(status["state"]["running"].is_object(), "{status:#}");
    assert_eq!(pilot.container_id("payload"), old);
    let other = idle();
    let before = other.container_id("payload");
    other.patch_image("payload", &cluster().image("stopsignal-winch"));
    other.replaced("payload", &before, LIMIT);
    // A pull that hangs is not ended by a patch: another image is taken once the registry has let go.
    pilot.patch_image("payload", &cluster().image("busybox"));
    drop(registry);
    pilot.replaced("payload", &old, LIMIT);
}
