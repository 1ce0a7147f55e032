//! A pod as the binder reads it: one payload container's part of its spec and status, found by name.

use super::pod::{ContainerStatus, Pod, Terminated};
use super::quantity;
use crate::bind::Reason;
use crate::text::one_line;

/// Name of the init container that installs glue; its image is the placeholder.
pub const INSTALL: &str = "install";

/// The name of a slot's payload container: `payload` for slot 0, `payload-N` for the others.
pub fn container_name(slot: u32) -> String {
    if slot == 0 { "payload".into() } else { format!("payload-{slot}") }
}

/// Where a payload container stands in the pod's spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Under `containers`: the paper's shape, on any server.
    Regular,
    /// Under `initContainers` with `restartPolicy: Always` (KEP-753; 1.32 and later, as `watcher check` says): the
    /// pilot's end is the pod's end.
    Sidecar,
}

impl Shape {
    /// The field of the pod's spec that lists such containers.
    pub fn field(self) -> &'static str {
        match self {
            Self::Regular => "containers",
            Self::Sidecar => "initContainers",
        }
    }
}

/// How a container's life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its ID.
    pub id: String,
    /// Its exit code.
    pub code: i32,
    /// The kubelet's word: `Completed`, `Error`, `OOMKilled`, `StartError`, ...
    pub reason: String,
    /// What else is known.
    pub message: String,
}

/// One payload container in one version of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Where it stands.
    pub shape: Shape,
    /// The image in the spec.
    pub wanted: String,
    /// `imagePullPolicy`.
    pub pull_policy: String,
    /// The ID of the container that is or was there, without the runtime's prefix.
    pub id: String,
    /// The kubelet's ID of its image.
    pub image_id: String,
    /// Whether it runs.
    pub running: bool,
    /// Why it does not, in the kubelet's words: reason and message.
    pub waiting: Option<(String, String)>,
    /// How it ended, if it has.
    pub ended: Option<Ended>,
    /// How the one before it ended.
    pub last: Option<Ended>,
}

/// What counts of the pod as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.generation`; servers before 1.33 count none for pods.
    pub generation: Option<i64>,
    /// The generation that the kubelet's status is about; `None` where the server does not say.
    pub observed: Option<i64>,
    /// What ends the pod: a reason of ours, and the message.
    pub ends: Option<(Reason, String)>,
}

/// An ID without the runtime's name before it.
fn bare(id: &str) -> String {
    id.split_once("://").map_or(id, |(_, bare)| bare).to_owned()
}

fn ended(state: Option<&Terminated>) -> Option<Ended> {
    let state = state.filter(|state| !state.never_ran())?;
    Some(Ended {
        id: bare(&state.container_id),
        code: state.exit_code,
        reason: state.reason.clone(),
        message: state.message.clone(),
    })
}

fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().find(|c| c.name == name)
}

/// The pod as a whole.
pub fn whole(pod: &Pod) -> Whole {
    let status = pod.status.as_ref();
    let text = |field: Option<&String>| field.cloned().unwrap_or_default();
    let ends = match status.map(|s| (s, s.phase.as_str())) {
        Some((status, phase @ ("Failed" | "Succeeded"))) => {
            let why = if status.reason.is_empty() { String::new() } else { format!(" ({})", status.reason) };
            let message = one_line(format!("the pod is {phase}{why}. {}", status.message).trim_end());
            Some((Reason::of_pod_status(&status.reason), message))
        }
        _ => pod
            .metadata
            .deletion_timestamp
            .as_ref()
            .map(|at| (Reason::PodDeleted, format!("the pod is being deleted; its grace period ends at {}", at.0))),
    };
    Whole {
        uid: text(pod.metadata.uid.as_ref()),
        version: text(pod.metadata.resource_version.as_ref()),
        generation: pod.metadata.generation,
        observed: status.and_then(|s| s.observed_generation),
        ends,
    }
}

/// The payload container of this name; an error names what is missing.
pub fn payload(pod: &Pod, name: &str) -> Result<Payload, String> {
    let spec = &pod.spec;
    let regular = spec.containers.iter().find(|c| c.name == name).map(|c| (Shape::Regular, c));
    let sidecar = || spec.init_containers.iter().find(|c| c.name == name).map(|c| (Shape::Sidecar, c));
    let (shape, container) = regular.or_else(sidecar).ok_or_else(|| format!("the pod has no container {name}"))?;
    if shape == Shape::Sidecar && container.restart_policy != "Always" {
        return Err(format!(
            "{name} is an init container without restartPolicy: Always (a server before 1.29 drops that field): there it has to be a regular container"
        ));
    }
    let status = status_of(pod, name);
    let state = status.map(|s| &s.state);
    let waiting = state.and_then(|s| s.waiting.as_ref()).map(|w| (w.reason.clone(), w.message.clone()));
    Ok(Payload {
        shape,
        wanted: container.image.clone(),
        pull_policy: container.image_pull_policy.clone(),
        id: status.map(|s| bare(&s.container_id)).unwrap_or_default(),
        image_id: status.map(|s| s.image_id.clone()).unwrap_or_default(),
        running: state.is_some_and(|s| s.running.is_some()),
        waiting,
        ended: ended(state.and_then(|s| s.terminated.as_ref())),
        last: ended(status.and_then(|s| s.last_state.terminated.as_ref())),
    })
}

/// The memory that a container may use, in bytes, where the spec says it.
pub fn memory_limit(pod: &Pod, name: &str) -> Option<u64> {
    let mut all = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let limits = &all.find(|container| container.name == name)?.resources.limits;
    quantity::bytes(limits.get("memory")?.as_str()?)
}

/// Whether the pod completes once all its containers have exited with 0, payload containers among them.
pub fn ends_by_exits(pod: &Pod) -> bool {
    matches!(pod.spec.restart_policy.as_str(), "OnFailure" | "Never")
        && pod.spec.containers.iter().any(|c| is_payload(&c.name))
}

/// Whether a container of this name is a payload container.
pub fn is_payload(name: &str) -> bool {
    name == "payload" || name.strip_prefix("payload-").is_some_and(|n| n.parse::<u32>().is_ok())
}

/// Whether the kubelet has said what became of this container and of the one that installed glue.
pub fn is_told(pod: &Pod, name: &str) -> bool {
    let is_to_come = |reason: &str| matches!(reason, "" | "ContainerCreating" | "PodInitializing");
    let has_a_fate = |status: &ContainerStatus| {
        !status.container_id.is_empty() || status.state.waiting.as_ref().is_some_and(|w| !is_to_come(&w.reason))
    };
    status_of(pod, name).is_some_and(has_a_fate) && status_of(pod, INSTALL).is_some_and(|s| !s.image_id.is_empty())
}

/// The placeholder: the image of the init container that installs glue, and what the kubelet says its content is.
pub fn placeholder(pod: &Pod) -> Result<(String, String), String> {
    let install = pod.spec.init_containers.iter().find(|c| c.name == INSTALL);
    let image = install.map(|c| c.image.clone());
    let image =
        image.ok_or_else(|| format!("the pod has no init container {INSTALL}, whose image is the placeholder"))?;
    let image_id = status_of(pod, INSTALL).map(|s| s.image_id.clone()).unwrap_or_default();
    Ok((image, image_id))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value, status: Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"uid": "u", "resourceVersion": "7"}, "spec": spec, "status": status}),
        )
        .unwrap()
    }

    #[test]
    fn the_memory_limit_of_a_container_is_read_where_it_is_a_quantity() {
        let limit = |limits: serde_json::Value| {
            let pod = serde_json::json!({"metadata": {}, "spec": {"containers": [
                {"name": "payload", "resources": {"limits": limits}}, {"name": "pilot"}]}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!((memory_limit(&pod, "pilot"), memory_limit(&pod, "payload-1")), (None, None));
            memory_limit(&pod, "payload")
        };
        assert_eq!(limit(serde_json::json!({"cpu": "1", "memory": "512Mi"})), Some(512 << 20));
        assert_eq!(limit(serde_json::json!({"cpu": "1"})), None);
        assert_eq!(limit(serde_json::json!({"memory": 5})), None);
    }

    #[test]
    fn a_container_that_never_ran_has_not_ended() {
        let of = |code: i32, started: &str| {
            let state = json!({"terminated": {"exitCode": code, "containerID": "c://new", "startedAt": started}});
            let status =
                json!({"name": "payload", "image": "x", "imageID": "q", "containerID": "c://new", "state": state});
            let pod =
                pod(json!({"containers": [{"name": "payload", "image": "i"}]}), json!({"containerStatuses": [status]}));
            payload(&pod, "payload").unwrap().ended.map(|ended| ended.code)
        };
        assert_eq!(of(0, "1970-01-01T00:00:00Z"), None);
        assert_eq!(of(0, "2026-01-01T00:00:00Z"), Some(0));
        // What the runtime could not start.
        assert_eq!(of(128, "1970-01-01T00:00:00Z"), Some(128));
    }

    #[test]
    fn a_regular_one_and_a_sidecar_are_found_by_name() {
        let running = json!({"name": "payload", "image": "x", "imageID": "q@sha256:1", "containerID": "containerd://abc",
            "ready": true, "restartCount": 1, "state": {"running": {}},
            "lastState": {"terminated": {"exitCode": 0, "reason": "Completed", "containerID": "containerd://old"}}});
        let regular = pod(
            json!({"containers": [{"name": "pilot"}, {"name": "payload", "image": "i"}]}),
            json!({"containerStatuses": [running]}),
        );
        let found = payload(&regular, "payload").unwrap();
        assert_eq!((found.shape, found.id.as_str(), found.running), (Shape::Regular, "abc", true));
        assert_eq!((found.wanted.as_str(), found.last.unwrap().id.as_str()), ("i", "old"));
        let sidecar = pod(
            json!({"containers": [{"name": "pilot"}],
                   "initContainers": [{"name": "install", "image": "g"}, {"name": "payload", "image": "i", "restartPolicy": "Always"}]}),
            json!({"initContainerStatuses": [running]}),
        );
        let found = payload(&sidecar, "payload").unwrap();
        assert_eq!((found.shape, found.id.as_str()), (Shape::Sidecar, "abc"));
        assert_eq!(placeholder(&sidecar).unwrap(), ("g".to_owned(), String::new()));
        assert!(payload(&sidecar, "payload-1").unwrap_err().contains("no container payload-1"));
    }

    #[test]
    fn a_new_pod_is_told_of_a_moment_late() {
        let spec = json!({"containers": [{"name": "payload"}], "initContainers": [{"name": "install"}]});
        let installed = json!([{"name": "install", "imageID": "q@sha256:1"}]);
        let told = |installed: &Value, payload: Value| {
            let status = json!({"initContainerStatuses": installed, "containerStatuses": [payload]});
            is_told(&pod(spec.clone(), status), "payload")
        };
        let waits = |reason: &str| json!({"name": "payload", "state": {"waiting": {"reason": reason}}});
        let runs = json!({"name": "payload", "containerID": "containerd://a", "state": {"running": {}}});
        assert!(told(&installed, runs.clone()) && told(&installed, waits("ErrImagePull")));
        assert!(!told(&installed, waits("PodInitializing")) && !told(&json!([{"name": "install"}]), runs));
        assert!(!is_told(&pod(spec.clone(), json!({})), "payload"));
    }

    #[test]
    fn an_old_server_drops_what_makes_a_sidecar() {
        let dropped = pod(json!({"containers": [], "initContainers": [{"name": "payload", "image": "i"}]}), json!({}));
        assert!(payload(&dropped, "payload").unwrap_err().contains("1.29"));
    }

    #[test]
    fn the_pods_end_is_told_in_the_kubelets_words() {
        let evicted =
            pod(json!({"containers": []}), json!({"phase": "Failed", "reason": "Evicted", "message": "disk"}));
        assert_eq!(whole(&evicted).ends, Some((Reason::Evicted, "the pod is Failed (Evicted). disk".into())));
        assert_eq!(whole(&pod(json!({"containers": []}), json!({"phase": "Running"}))).ends, None);
    }
}
