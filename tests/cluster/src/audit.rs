//! What pilots have asked the API server for, by its own audit log (tests/cluster/up.sh says what is in it). Our own
//! cluster only.

use serde_json::Value;

use crate::access::cluster;
use crate::namespace::Namespace;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// As RBAC has it: `get`, `list`, `watch`, `patch`, ...
    pub verb: String,
    /// Path and query.
    pub uri: String,
}

/// All requests of a namespace's service accounts so far, in order, but for [`marks`]. The server writes each down
/// before it answers.
pub fn requests(namespace: &Namespace) -> Vec<Request> {
    all(namespace).into_iter().filter(|r| !is_mark(r)).collect()
}

/// The patches that mark the pod as idle or busy.
pub fn marks(namespace: &Namespace) -> Vec<Request> {
    all(namespace).into_iter().filter(is_mark).collect()
}

fn is_mark(request: &Request) -> bool {
    request.verb == "patch" && request.uri.contains("fieldManager=latebind-state")
}

fn all(namespace: &Namespace) -> Vec<Request> {
    let log = cluster().node().log("audit");
    let user = format!("system:serviceaccount:{}:", namespace.name());
    let ours = log.lines().filter(|line| line.contains(&user));
    ours.map(|line| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("the audit log: {e}: {line}"));
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        Request { verb: text("verb"), uri: text("requestURI") }
    })
    .collect()
}

/// How many of them have this verb.
pub fn count(requests: &[Request], verb: &str) -> usize {
    requests.iter().filter(|r| r.verb == verb).count()
}
