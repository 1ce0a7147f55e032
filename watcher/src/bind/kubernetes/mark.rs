//! Marks the pilot's own pod as idle or busy: a label for people and selectors, and the annotation by which a
//! ReplicaSet's controller chooses the pods that it ends first.

use serde_json::{Value, json};

use super::api::Own;
use crate::bind::Failure;

/// The label.
const STATE: &str = "latebind.dev/state";
/// The annotation (kubernetes.io, "Pod deletion cost"): the lowest goes first, and 0 is what a pod without it has.
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// One request, whatever comes of it.
pub async fn mark(own: &Own, busy: bool) -> Result<(), Failure> {
    own.patch_once(&patch(own.uid(), busy)).await
}

fn patch(uid: Option<&str>, busy: bool) -> Value {
    let (state, cost) = if busy { ("busy", "1000") } else { ("idle", "0") };
    let mut metadata = json!({"labels": {STATE: state}, "annotations": {COST: cost}});
    // Of this very pod, never of a successor that has its name.
    if let Some(uid) = uid {
        metadata["uid"] = json!(uid);
    }
    json!({"metadata": metadata})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_label_and_annotation_is_changed() {
        let busy = patch(Some("u"), true);
        let wanted = json!({"metadata": {"uid": "u", "labels": {"latebind.dev/state": "busy"},
            "annotations": {"controller.kubernetes.io/pod-deletion-cost": "1000"}}});
        assert_eq!(busy, wanted);
        assert_eq!(patch(None, false)["metadata"]["labels"][STATE], "idle");
        assert!(patch(None, false)["metadata"]["uid"].is_null());
    }
}
