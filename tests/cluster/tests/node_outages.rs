//! A part of the cluster goes away for a while; the pod's containers go on.

use std::time::Duration;

use latebind_cluster_tests::pilot::{Options, Pilot};
use latebind_cluster_tests::{cluster, eventually, needs};

const LIMIT: Duration = Duration::from_secs(60);

fn idle(options: Options) -> Pilot {
    options.command(&["/bin/sleep", "1000000"]).start()
}

#[test]
fn glue_that_is_killed_is_started_again() {
    needs("1.20 or later; node");
    let pilot = idle(Options::new());
    let old = pilot.container_id("payload");
    let before = eventually("glue is ready", LIMIT, || Some(pilot.glue(0)).filter(|s| s["phase"] == "ready"));
    pilot.kill_main_process("payload");
    pilot.replaced("payload", &old, LIMIT);
    eventually("another glue is ready", LIMIT, || {
        Some(pilot.glue(0)).filter(|s| s["phase"] == "ready" && s["incarnation"] != before["incarnation"])
    });
    assert_eq!(pilot.status("payload")["restartCount"], 1);
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

#[test]
fn containers_outlive_the_kubelet() {
    needs("1.20 or later; node, parts");
    let pilot = idle(Options::new().alone());
    let (id, process) = (pilot.container_id("payload"), pilot.main_process("payload"));
    cluster().node().restart("kubelet");
    assert_eq!(pilot.main_process("payload"), process);
    // The new kubelet has taken the pod over, and does what it is told.
    pilot.patch_image("payload", &cluster().image("busybox"));
    pilot.replaced("payload", &id, LIMIT);
}

#[test]
fn containers_outlive_the_api_server() {
    needs("1.20 or later; node, parts");
    let pilot = idle(Options::new().alone());
    let (id, process) = (pilot.container_id("payload"), pilot.main_process("payload"));
    let outage = cluster().node().stop("kube-apiserver");
    assert_ne!(cluster().call(&["get", "--raw", "/readyz"]).code, Some(0));
    assert!(!cluster().node().processes(&id).is_empty());
    outage.end();
    assert_eq!((pilot.container_id("payload"), pilot.main_process("payload")), (id, process));
}

#[test]
fn an_api_server_that_hangs_comes_back() {
    needs("1.20 or later; node, parts");
    let pilot = idle(Options::new().alone());
    let outage = cluster().node().freeze("kube-apiserver");
    let ran = cluster().call(&["get", "--raw", "/readyz", "--request-timeout=2s"]);
    assert_ne!(ran.code, Some(0), "{}", ran.out());
    outage.end();
    assert_eq!(pilot.status("payload")["restartCount"], 0);
}
