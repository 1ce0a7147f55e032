//! Patches by one request each, which take a few milliseconds; kubectl takes a hundred.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use latebind_tests::pod::{Running, Scratch, eventually};
use serde_json::Value;

use crate::access::cluster;

/// `kubectl proxy` on a socket of this test's own, until it is dropped.
pub struct Patcher {
    proxy: Option<Running>,
    socket: PathBuf,
    _scratch: Scratch,
}

impl Patcher {
    /// Starts it.
    #[track_caller]
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let socket = scratch.path().join("api");
        let mut kubectl = cluster().kubectl();
        kubectl.arg("proxy").arg("--unix-socket").arg(&socket);
        let proxy = Running::start(&mut kubectl, Vec::new());
        eventually("kubectl proxy listens", Duration::from_secs(30), || socket.exists().then_some(()));
        Self { proxy: Some(proxy), socket, _scratch: scratch }
    }

    /// Changes an object by a strategic merge patch.
    ///
    /// # Panics
    /// With what the server said, if it refused.
    #[track_caller]
    pub fn patch(&self, path: &str, patch: &Value) {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "20", "--noproxy", "*"]);
        curl.arg("--unix-socket").arg(&self.socket);
        curl.args(["-X", "PATCH", "-H", "Content-Type: application/strategic-merge-patch+json", "-d"]);
        curl.arg(patch.to_string()).arg(format!("http://localhost{path}"));
        let ran = Running::start(&mut curl, Vec::new()).finish(Duration::from_secs(30));
        assert_eq!(ran.code, Some(0), "PATCH {path}: {}{}", ran.out(), ran.err());
    }
}

impl Drop for Patcher {
    fn drop(&mut self) {
        if let Some(mut proxy) = self.proxy.take() {
            let _ = proxy.child.kill();
            let _ = proxy.child.wait();
        }
    }
}
