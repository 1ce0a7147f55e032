//! The Role of the pilot's account: each of its verbs is needed, and `watcher check` names the one that is missing.

use std::time::Duration;

use latebind_cluster_tests::pilot::Pilot;
use latebind_cluster_tests::{cluster, eventually, needs};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);
const VERBS: [&str; 3] = ["get", "watch", "patch"];

/// Gives the account these verbs on its pod, and waits until the server goes by that.
#[track_caller]
fn allow(pilot: &Pilot, verbs: &[&str]) {
    let patch = json!([{"op": "replace", "path": "/rules/0/verbs", "value": verbs}]);
    pilot.namespace.ask(&["patch", "role", "latebind-pilot", "--type=json", "-p", &patch.to_string()]);
    let user = format!("--as=system:serviceaccount:{}:latebind-pilot", pilot.namespace.name());
    let own = format!("pods/{}", pilot.pod);
    for verb in VERBS {
        let wanted = if verbs.contains(&verb) { "yes" } else { "no" };
        eventually(&format!("{verb}: {wanted}"), LIMIT, || {
            let said = pilot.namespace.call(&["auth", "can-i", verb, &own, &user]).out();
            said.trim().starts_with(wanted).then_some(())
        });
    }
}

/// What `watcher check` calls bad.
#[track_caller]
fn bad(pilot: &Pilot) -> Vec<String> {
    let ran = pilot.exec("pilot", &["watcher", "check"]);
    let bad: Vec<String> = ran.out().lines().filter(|line| line.contains("FAIL")).map(str::to_owned).collect();
    assert_eq!(ran.code, Some(i32::from(!bad.is_empty())), "{}{}", ran.out(), ran.err());
    bad
}

#[test]
fn each_verb_of_the_role_is_needed_and_named_where_it_is_missing() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    let image = cluster().image("busybox");
    assert_eq!(bad(&pilot), [""; 0]);
    for missing in VERBS {
        let others: Vec<&str> = VERBS.into_iter().filter(|verb| *verb != missing).collect();
        allow(&pilot, &others);
        let bad = bad(&pilot);
        let words = format!("cannot {missing} resource");
        assert!(bad.len() == 1 && bad[0].contains(&format!("API: {missing} pod")), "without {missing}: {bad:#?}");
        assert!(bad[0].contains(&words) && bad[0].contains("rbac.yaml"), "without {missing}: {bad:#?}");

        let ran = pilot.run(&[&image, "--", "true"]);
        assert_eq!(ran.code, Some(125), "without {missing}: {}", ran.err());
        let said = ran.err();
        assert!(said.contains("PatchRefused (retry)") && said.contains(&words), "without {missing}: {said}");

        allow(&pilot, &VERBS);
        let ran = pilot.run(&[&image, "--", "echo", "runs"]);
        assert_eq!((ran.code, ran.out().as_str()), (Some(0), "runs\n"), "with {missing} again: {}", ran.err());
    }
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}
