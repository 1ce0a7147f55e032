//! A namespace for one test, deleted after it with everything inside.

use std::io::Write;

use latebind_tests::pod::{Ran, unique};
use serde_json::{Value, json};

use crate::access::cluster;
use crate::turn::Turn;

/// The label of every namespace that a test makes.
pub const LABEL: &str = "latebind.dev/test";

/// A namespace of one test.
pub struct Namespace {
    name: String,
    // Given back after the namespace has been seen off.
    _turn: Turn,
}

impl Namespace {
    /// A new one, beside those of other tests.
    pub fn new() -> Self {
        Self::make(Turn::take(false))
    }

    /// A new one of a test that has the cluster to itself, to stop a part of it.
    pub fn alone() -> Self {
        Self::make(Turn::take(true))
    }

    fn make(turn: Turn) -> Self {
        let name = unique("t");
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": &name, "labels": {LABEL: "yes"}}});
        cluster().ask_with_input(&["create", "-f", "-"], object.to_string());
        Self { name, _turn: turn }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls kubectl in this namespace, to its end, whatever that is.
    pub fn call(&self, arguments: &[&str]) -> Ran {
        cluster().call(&[&["--namespace", &self.name], arguments].concat())
    }

    /// Calls kubectl in this namespace, and fails if it fails.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> String {
        cluster().ask(&[&["--namespace", &self.name], arguments].concat())
    }

    /// The same, with an answer in JSON.
    #[track_caller]
    pub fn ask_json(&self, arguments: &[&str]) -> Value {
        cluster().ask_json(&[&["--namespace", &self.name], arguments].concat())
    }

    /// Makes objects; what they say of a namespace has to be this one.
    #[track_caller]
    pub fn create(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        cluster().ask_with_input(&["--namespace", &self.name, "create", "-f", "-"], list.to_string());
    }

    /// A pod as it is now; `None` if there is none of that name.
    #[track_caller]
    pub fn pod(&self, name: &str) -> Option<Value> {
        let said = self.ask(&["get", "pod", name, "--ignore-not-found", "-o", "json"]);
        (!said.trim().is_empty()).then(|| serde_json::from_str(&said).unwrap())
    }

    /// Has the kubelet look at a pod. The one of 1.20.2 sees that a startup probe has passed when something else makes it
    /// look: with luck at once, else after more than a minute.
    pub fn remind(&self, pod: &str) {
        let mark = format!("latebind.dev/looked-at={}", unique("at"));
        self.call(&["annotate", "pod", pod, "--overwrite", &mark]);
    }

    /// The events of the namespace: reason and message, oldest first.
    #[track_caller]
    pub fn events(&self) -> Vec<(String, String)> {
        let said = self.ask_json(&["get", "events", "--sort-by=.metadata.creationTimestamp"]);
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        said["items"].as_array().unwrap().iter().map(|e| (text(e, "reason"), text(e, "message"))).collect()
    }

    /// What there is to know when a test has failed.
    fn describe(&self) -> String {
        let part = |title: &str, arguments: &[&str]| {
            let ran = self.call(arguments);
            format!("---- {title}\n{}{}\n", ran.out(), ran.err())
        };
        let mut text = part("pods", &["get", "pods", "-o", "yaml"]);
        text += &part("events", &["get", "events", "--sort-by=.metadata.creationTimestamp"]);
        let pods = self.call(&["get", "pods", "-o", "json"]).out();
        let pods: Value = serde_json::from_str(&pods).unwrap_or_default();
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            for (kind, status) in [("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")] {
                for container in pod["spec"][kind].as_array().into_iter().flatten() {
                    let container = container["name"].as_str().unwrap_or_default();
                    let mut statuses = pod["status"][status].as_array().into_iter().flatten();
                    let restarted = statuses.any(|s| s["name"] == container && s["restartCount"] != 0);
                    if restarted {
                        text += &part(
                            &format!("log of {name}, {container}, the one before"),
                            &["logs", "--previous", "--tail=200", name, "-c", container],
                        );
                    }
                    text +=
                        &part(&format!("log of {name}, {container}"), &["logs", "--tail=400", name, "-c", container]);
                }
            }
        }
        text
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A panic in here would end the whole test program: another thread's must not reach us.
        let text = std::thread::panicking().then(|| std::panic::catch_unwind(|| self.describe()));
        if let Some(Ok(text)) = text {
            let _ =
                writeln!(std::io::stderr(), "==== namespace {}\n{text}==== end of namespace {}", self.name, self.name);
        }
        if std::env::var_os("LATEBIND_KEEP").is_some() {
            let _ = writeln!(std::io::stderr(), "namespace {} is kept", self.name);
            return;
        }
        let _ = std::panic::catch_unwind(|| {
            // The namespace first: in one that is going, no controller makes a new pod for each that goes.
            cluster().call(&["delete", "namespace", &self.name, "--wait=false"]);
            self.call(&["delete", "pods", "--all", "--wait=false", "--grace-period=1"])
        });
    }
}
