//! The pod as it is shipped: it comes up, glue waits in its payload container, and each container has what it should
//! have.

use std::time::Duration;

use latebind_cluster_tests::pilot::{Options, Pilot};
use latebind_cluster_tests::{cluster, eventually, needs};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);

/// A pilot that does nothing: what is looked at is the pod.
fn idle() -> Pilot {
    Options::new().command(&["/bin/sleep", "1000000"]).start()
}

#[test]
fn install_ends_and_glue_waits() {
    needs("1.20 or later");
    let pilot = idle();
    assert_eq!(pilot.status("install")["state"]["terminated"]["exitCode"], 0);
    let glue = eventually("glue is ready", LIMIT, || Some(pilot.glue(0)).filter(|s| s["phase"] == "ready"));
    assert_eq!((&glue["uid"], &glue["gid"]), (&json!(20000), &json!(20000)), "{glue}");
    // In the pod's PID namespace, which both containers share; and of the container that the kubelet names.
    let pid = glue["pid"].as_i64().unwrap();
    let of_glue = pilot.shell(&format!("tr '\\0' ' ' </proc/{pid}/cmdline; cat /proc/{pid}/cgroup"));
    assert!(of_glue.starts_with("/shared/bin/glue run --slot 0 "), "{of_glue}");
    assert!(of_glue.contains(&pilot.container_id("payload")), "{of_glue}");
}

#[test]
fn glue_is_silent_until_there_is_something_to_say() {
    needs("1.20 or later");
    let pilot = idle();
    eventually("glue is ready", LIMIT, || Some(pilot.glue(0)).filter(|s| s["phase"] == "ready"));
    assert_eq!(pilot.status("payload")["restartCount"], 0);
    let (install, payload) = (pilot.log("install"), pilot.log("payload"));
    assert!(!install.contains("error") && !payload.contains("error"), "install: {install}\npayload: {payload}");
}

#[test]
fn the_volumes_are_roots_and_the_token_the_pilots() {
    needs("1.20 or later");
    let pilot = idle();
    let look = |path: &str| pilot.shell(&format!("stat -L -c '%u:%g %a' {path}")).trim().to_owned();
    assert_eq!(look("/shared/slot/0/ctl"), "0:0 700");
    assert_eq!(look("/shared/slot/0/data"), "0:0 755");
    assert_eq!(look("/shared/slot/0/data/work"), "20000:20000 700");
    assert_eq!(look("/shared/bin/glue"), "0:0 511");
    // The kubelet makes it 0600 where all containers have the same runAsUser, whatever defaultMode says.
    let token = look("/var/run/secrets/kubernetes.io/serviceaccount/token");
    assert!(["0:0 400", "0:0 600"].contains(&token.as_str()), "{token}");
    let mounts = |container: &str| {
        let pod = pilot.object();
        let all =
            pod["spec"]["containers"].as_array().unwrap().iter().find(|c| c["name"] == container).unwrap().clone();
        let mut paths: Vec<String> = all["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["mountPath"].as_str().unwrap().to_owned())
            .collect();
        paths.sort();
        paths
    };
    // As the server has it, which would have added a default token.
    assert_eq!(mounts("payload"), ["/dev/shm", "/shared/bin", "/shared/slot/0/ctl", "/shared/slot/0/data", "/tmp"]);
    assert!(mounts("pilot").contains(&"/var/run/secrets/kubernetes.io/serviceaccount".to_owned()));
}

#[test]
fn the_pilots_account_may_do_what_it_needs_and_no_more() {
    needs("1.20 or later");
    let pilot = idle();
    let user = format!("system:serviceaccount:{}:latebind-pilot", pilot.namespace.name());
    let may = |verb: &str, what: &str| {
        let ran = pilot.namespace.call(&["auth", "can-i", verb, what, &format!("--as={user}")]);
        ran.out().trim() == "yes"
    };
    let own = format!("pods/{}", pilot.pod);
    for verb in ["get", "watch", "patch"] {
        assert!(may(verb, &own), "{verb} {own}");
        assert!(!may(verb, "pods/another"), "{verb} pods/another");
    }
    for verb in ["list", "delete", "create", "update"] {
        assert!(!may(verb, &own), "{verb} {own}");
    }
    for what in ["secrets", "configmaps", "nodes"] {
        assert!(!may("get", what), "get {what}");
    }
}

#[test]
fn a_second_slot_has_a_glue_and_a_uid_of_its_own() {
    needs("1.20 or later");
    let pilot = Options::new().slots(2).command(&["/bin/sleep", "1000000"]).start();
    for slot in [0, 1] {
        let glue = eventually("glue is ready", LIMIT, || Some(pilot.glue(slot)).filter(|s| s["phase"] == "ready"));
        assert_eq!(glue["uid"], json!(20000 + slot), "{glue}");
    }
    assert_ne!(pilot.container_id("payload"), pilot.container_id("payload-1"));
}

#[test]
fn the_payload_gets_another_image_and_the_same_glue() {
    needs("1.20 or later");
    let pilot = idle();
    let before = eventually("glue is ready", LIMIT, || Some(pilot.glue(0)).filter(|s| s["phase"] == "ready"));
    let old = pilot.container_id("payload");
    // A tag that does not exist: with a digest the engine does not look for it.
    pilot.patch_image("payload", &cluster().image_by_digest("busybox", "never-pushed"));
    pilot.replaced("payload", &old, LIMIT);
    let glue = eventually("a new glue is ready", LIMIT, || {
        Some(pilot.glue(0)).filter(|s| s["phase"] == "ready" && s["incarnation"] != before["incarnation"])
    });
    let status = pilot.status("payload");
    assert!(status["imageID"].as_str().unwrap().ends_with(&cluster().digest("busybox")), "{status:#}");
    assert_eq!(glue["glue"], before["glue"]);
    // The pilot has not noticed.
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
    assert!(pilot.exec("payload", &["/bin/busybox", "true"]).code == Some(0), "the image is busybox now");
}
