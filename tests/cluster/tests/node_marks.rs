//! The watcher says whether its pod has work, where everybody looks: a label, and the cost of its deletion. One patch
//! for each change, by the API server's audit log.

use std::time::Duration;

use latebind_cluster_tests::audit::marks;
use latebind_cluster_tests::needs;
use latebind_cluster_tests::pilot::{Options, Pilot, shell};

const LIMIT: Duration = Duration::from_secs(60);

#[track_caller]
fn is_marked(pilot: &Pilot, state: &str, cost: &str) {
    pilot.until(&format!("the pod is marked {state}"), LIMIT, |pod| {
        let metadata = &pod["metadata"];
        let found = (
            metadata["labels"]["latebind.dev/state"].as_str()?,
            metadata["annotations"]["controller.kubernetes.io/pod-deletion-cost"].as_str()?,
        );
        (found == (state, cost)).then_some(())
    });
}

#[test]
fn a_pod_is_idle_or_busy() {
    needs("1.20 or later; node, parts");
    let pilot = Options::new().spool(&[]).start();
    is_marked(&pilot, "idle", "0");
    for name in ["first", "second"] {
        pilot.put(name, &shell("sleep 3; echo ran"));
    }
    is_marked(&pilot, "busy", "1000");
    for name in ["first", "second"] {
        assert_eq!(pilot.result(name).is_good().report.attempt, 1, "a mark came in between");
    }
    is_marked(&pilot, "idle", "0");
    // Two jobs in a row are one piece of work.
    let marks = marks(&pilot.namespace);
    assert_eq!(marks.len(), 3, "{marks:#?}");
}

#[test]
fn a_pod_that_may_not_be_marked_serves_all_the_same() {
    needs("1.20 or later; node");
    let pilot = Options::new().spool(&[]).start();
    is_marked(&pilot, "idle", "0");
    // While a job runs, nothing else is asked for.
    pilot.put("long", &shell("sleep 20; echo ran"));
    is_marked(&pilot, "busy", "1000");
    let role = r#"[{"op":"replace","path":"/rules/0/verbs","value":["get","watch"]}]"#;
    pilot.namespace.ask(&["patch", "role", "latebind-pilot", "--type=json", "-p", role]);
    let outcome = pilot.result("long");
    assert_eq!(outcome.is_good().text("stdout"), "ran\n");
    latebind_cluster_tests::eventually("the refusal is said", LIMIT, || {
        pilot.log("pilot").contains("is not marked as idle or busy").then_some(())
    });
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
    let role = r#"[{"op":"replace","path":"/rules/0/verbs","value":["get","watch","patch"]}]"#;
    pilot.namespace.ask(&["patch", "role", "latebind-pilot", "--type=json", "-p", role]);
    assert_eq!(pilot.job("next", &shell("echo ran")).is_good().text("stdout"), "ran\n");
    is_marked(&pilot, "busy", "1000");
    is_marked(&pilot, "idle", "0");
}
