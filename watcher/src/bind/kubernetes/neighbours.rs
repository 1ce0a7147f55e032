//! The pod's containers beside pilot and payload, which are in its PID namespace too: whether they keep apart from both.

use super::pod::{Container, Pod, SecurityContext};
use super::view;
use crate::finding::Finding;
use crate::slot::Slot;

/// Who a container is, as far as the manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    /// The image decides.
    Unknown,
    Root,
    Other(u32),
}

fn user(container: &SecurityContext, pod: &SecurityContext) -> User {
    match container.run_as_user.or(pod.run_as_user) {
        None => User::Unknown,
        Some(0) => User::Root,
        Some(uid) => User::Other(uid),
    }
}

/// One finding for each container that is not pilot, payload or over by the time that they run.
pub fn lines(pod: &Pod, slots: &[u32]) -> Vec<Finding> {
    let open = slots.iter().filter_map(|number| Slot::open(*number).ok());
    let taken: Vec<(u32, String)> = open
        .flat_map(|slot| {
            let kill_uid = slot.status().ok().flatten().map(|status| status.kill_uid);
            let payload = (slot.uid, format!("the payload UID of slot {}", slot.number));
            let kill = kill_uid.map(|uid| (uid, format!("the kill UID of slot {}", slot.number)));
            [Some(payload), kill].into_iter().flatten()
        })
        .collect();
    neighbours(pod).into_iter().map(|container| of(container, &pod.spec.security_context, &taken)).collect()
}

fn neighbours(pod: &Pod) -> Vec<&Container> {
    let is_own = |c: &&Container| view::is_payload(&c.name) || c.name == "pilot";
    let regular = pod.spec.containers.iter();
    // A pilot may have any name; the only other container is the pilot.
    let others: Vec<&Container> = regular.filter(|c| !is_own(c)).collect();
    let has_pilot = pod.spec.containers.iter().any(|c| c.name == "pilot");
    let others = if has_pilot || others.len() > 1 { others } else { Vec::new() };
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always" && !is_own(c));
    others.into_iter().chain(sidecars).collect()
}

fn of(container: &Container, pod: &SecurityContext, taken: &[(u32, String)]) -> Finding {
    let what = format!("container {}", container.name);
    let own = &container.security_context;
    let fix = "give it a runAsUser of its own, drop ALL capabilities, and allow no privilege escalation";
    let drops_all = own.capabilities.drop.iter().any(|name| name == "ALL") && own.capabilities.add.is_empty();
    match user(own, pod) {
        User::Other(uid) => match taken.iter().find(|(other, _)| *other == uid) {
            Some((_, whose)) => {
                let finding =
                    format!("runs as user {uid}, which is {whose}: jobs reach its processes, and glue ends them");
                Finding::fail(&what, &finding, fix)
            }
            None if own.privileged => Finding::warning(&what, "is privileged: it can do what the node can", fix),
            None => Finding::good(&what, &format!("runs as user {uid}, apart from pilot and payload")),
        },
        User::Root if drops_all => Finding::warning(&what, "runs as root: it can end pilot and glue", fix),
        User::Root => Finding::warning(
            &what,
            "runs as root with capabilities: it can read whatever the pilot can, its token too",
            fix,
        ),
        User::Unknown => Finding::warning(&what, "runs as whatever user its image says", fix),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use serde_json::{Value, json};

    use super::*;
    use crate::finding::Grade;

    fn pod(extra: &Value, init: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": {
            "securityContext": {"runAsUser": 0},
            "containers": [{"name": "payload"}, {"name": "pilot"}, extra],
            "initContainers": [{"name": "install"}, init],
        }, "status": {}}))
        .unwrap()
    }

    #[test]
    fn a_container_of_its_own_user_is_good_and_others_are_named() {
        let taken = [(20_000, "the payload UID of slot 0".to_owned())];
        let grade = |context: Value| {
            let pod = pod(&json!({"name": "extra", "securityContext": context}), &json!({"name": "over"}));
            let found = neighbours(&pod);
            assert_eq!(found.len(), 1);
            of(found[0], &pod.spec.security_context, &taken)
        };
        let drops = json!({"drop": ["ALL"]});
        assert_eq!(grade(json!({"runAsUser": 30_000, "capabilities": drops})).grade, Grade::Good);
        assert_eq!(grade(json!({"runAsUser": 30_000, "privileged": true})).grade, Grade::Warning);
        let payloads = grade(json!({"runAsUser": 20_000}));
        assert!(payloads.grade == Grade::Fail && payloads.finding.contains("payload UID of slot 0"), "{payloads}");
        assert!(grade(json!({})).finding.contains("its token too"), "the pod's user is the default");
        assert!(grade(json!({"capabilities": drops})).finding.contains("end pilot and glue"));
    }

    #[test]
    fn sidecars_count_and_the_only_other_container_is_the_pilot() {
        let sidecar = json!({"name": "extra", "restartPolicy": "Always"});
        assert_eq!(neighbours(&pod(&json!({"name": "payload-1"}), &sidecar))[0].name, "extra");
        let mut named_otherwise = pod(&json!({"name": "payload-1"}), &json!({"name": "over"}));
        named_otherwise.spec.containers[1].name = "glidein".into();
        assert!(neighbours(&named_otherwise).is_empty());
    }
}
