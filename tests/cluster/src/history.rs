//! What the kubelet says of a payload container over a time, each word of it: what is over before one asks is not
//! missed.

use std::time::Duration;

use latebind_tests::pod::Running;
use serde_json::Value;

use crate::access::cluster;
use crate::pilot::{Pilot, status_of};

/// A watch of a container's reasons to wait.
pub struct History {
    container: String,
    watch: Running,
}

impl History {
    /// Begins.
    pub fn of(pilot: &Pilot, container: &str) -> Self {
        let mut command = cluster().kubectl();
        command.args(["--namespace", pilot.namespace.name(), "get", "pod", &pilot.pod, "--watch", "-o", "json"]);
        Self { container: container.to_owned(), watch: Running::start(&mut command, Vec::new()) }
    }

    /// Ends; returns the reasons of all versions of the pod in order, empty ones where it did not wait.
    #[track_caller]
    pub fn end(mut self) -> Vec<String> {
        assert_eq!(self.watch.child.try_wait().unwrap(), None, "the watch has ended by itself");
        self.watch.child.kill().unwrap();
        let ran = self.watch.finish(Duration::from_secs(10));
        // The last version may be cut off.
        let versions = serde_json::Deserializer::from_slice(&ran.stdout).into_iter::<Value>().map_while(Result::ok);
        let reason = |pod: Value| {
            let reason = status_of(&pod, &self.container)?["state"]["waiting"]["reason"].clone();
            Some(reason.as_str().unwrap_or_default().to_owned())
        };
        let reasons: Vec<String> = versions.filter_map(reason).collect();
        assert!(reasons.len() > 1, "the watch saw no change: {}", ran.err());
        reasons
    }
}
