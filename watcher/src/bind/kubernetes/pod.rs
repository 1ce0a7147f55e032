//! The fields of a pod that the binder reads (Kubernetes API reference, core/v1 Pod). What is not named here is not
//! read, so that a server which says it in another way is no reason to fail.

use std::collections::BTreeMap;

use kube::core::Object;
use serde::Deserialize;
use serde_json::Value;

/// A pod.
pub type Pod = Object<Spec, Status>;

/// What was asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Regular containers.
    pub containers: Vec<Container>,
    /// Init containers, native sidecars among them.
    pub init_containers: Vec<Container>,
    /// `Always`, `OnFailure` or `Never`.
    pub restart_policy: String,
    /// Whether all containers have one PID namespace.
    pub share_process_namespace: bool,
    /// Seconds from SIGTERM to SIGKILL.
    pub termination_grace_period_seconds: Option<i64>,
    /// The default of its containers.
    pub security_context: SecurityContext,
    /// Whether a token is mounted into each container; the server's default is that it is.
    pub automount_service_account_token: Option<bool>,
}

/// A container as it was asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// `Always` makes an init container a native sidecar.
    pub restart_policy: String,
    /// What takes the place of the image's ENTRYPOINT.
    pub command: Vec<String>,
    /// What takes the place of its CMD.
    pub args: Vec<String>,
    /// What it may use.
    pub resources: Resources,
    /// Who it runs as.
    pub security_context: SecurityContext,
}

/// Who a container runs as; of the pod, the default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityContext {
    /// The image's user where neither container nor pod has it.
    pub run_as_user: Option<u32>,
    /// Whether it has all that the node's root has.
    pub privileged: bool,
    /// Of containers only.
    pub capabilities: Capabilities,
}

/// What a container's capabilities differ in from the engine's usual ones.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// More than these.
    pub add: Vec<String>,
    /// Not these; `ALL`: none but the added ones.
    pub drop: Vec<String>,
}

/// What a container may use.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Quantities by the resource's name.
    pub limits: BTreeMap<String, Value>,
}

/// What the kubelet says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Why the pod is in this phase, where there is a reason: `Evicted`, say.
    pub reason: String,
    /// The same in words.
    pub message: String,
    /// The generation of the spec that this is about; servers from 1.33 on.
    pub observed_generation: Option<i64>,
    /// Of regular containers.
    pub container_statuses: Vec<ContainerStatus>,
    /// Of init containers.
    pub init_container_statuses: Vec<ContainerStatus>,
}

/// What the kubelet says of one container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// The image's content: `name@sha256:...` where it was pulled.
    #[serde(rename = "imageID")]
    pub image_id: String,
    /// `containerd://...`
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Now.
    pub state: State,
    /// Of the container before it.
    pub last_state: State,
}

/// One of three.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct State {
    /// Not yet running.
    pub waiting: Option<Waiting>,
    /// Running.
    pub running: Option<Running>,
    /// Over.
    pub terminated: Option<Terminated>,
}

/// Running; since when is not read.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Running {}

/// Why a container does not run yet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Waiting {
    /// One word.
    pub reason: String,
    /// The story.
    pub message: String,
}

/// How a container ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    /// As it exited, or 128 and the signal's number.
    pub exit_code: i32,
    /// One word.
    pub reason: String,
    /// The story.
    pub message: String,
    /// Since when it ran.
    pub started_at: Option<String>,
    /// Which one.
    #[serde(rename = "containerID")]
    pub container_id: String,
}

impl Terminated {
    /// Whether it is said to have exited with 0 and never ran: a kubelet that is started again takes what it had made
    /// and not yet started for exited (kubelet's `convertToAPIContainerStatuses`), and makes another one.
    pub fn never_ran(&self) -> bool {
        self.exit_code == 0 && self.started_at.as_ref().is_some_and(|at| at.starts_with("1970-01-01T00:00:00"))
    }
}
