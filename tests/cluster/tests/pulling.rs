//! Images that cannot be had, as the kubelet reports them: what the binder has to tell apart.

use std::time::Duration;

use latebind_cluster_tests::pilot::{Options, Pilot};
use latebind_cluster_tests::{cluster, needs};

const LIMIT: Duration = Duration::from_secs(60);
const FAILED: [&str; 2] = ["ErrImagePull", "ImagePullBackOff"];

fn idle() -> Pilot {
    Options::new().command(&["/bin/sleep", "1000000"]).start()
}

#[test]
fn an_image_that_is_not_there() {
    needs("1.20 or later");
    let pilot = idle();
    let old = pilot.container_id("payload");
    pilot.patch_image("payload", &cluster().missing_image());
    let (_, message) = pilot.waiting("payload", &["ErrImagePull"], LIMIT);
    assert!(message.contains("not found"), "{message}");
    // The container before was ended first.
    let state = pilot.status("payload")["state"].clone();
    assert!(state["running"].is_null(), "{state}");
    pilot.waiting("payload", &["ImagePullBackOff"], LIMIT);
    // A good image ends the waiting.
    pilot.patch_image("payload", &cluster().image("busybox"));
    pilot.replaced("payload", &old, LIMIT);
}

#[test]
fn a_digest_that_is_not_there() {
    needs("1.20 or later");
    let pilot = idle();
    let nothing = "0".repeat(64);
    pilot.patch_image("payload", &format!("{}@sha256:{nothing}", cluster().image("busybox")));
    let (_, message) = pilot.waiting("payload", &FAILED, LIMIT);
    assert!(message.contains("not found") || message.contains(&nothing), "{message}");
}

#[test]
fn a_name_that_is_none() {
    needs("1.20 or later");
    let pilot = idle();
    pilot.patch_image("payload", "UPPER/case:is not a name");
    let (_, message) = pilot.waiting("payload", &["InvalidImageName"], LIMIT);
    assert!(!message.is_empty());
}
