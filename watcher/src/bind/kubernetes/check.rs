//! What `watcher check` asks the API server: each right by using it, without changing anything.

use serde_json::json;

use super::api::Own;
use super::clock::clock;
use super::events;
use super::neighbours;
use super::pod::{Container, Pod};
use super::view::{self, Payload, Shape};
use crate::bind::{Failure, Reason};
use crate::finding::Finding;
use crate::reference::digest_of;

/// The Role that the shipped manifests give.
const ROLE: &str = "give the pod's service account the verbs get, watch and patch on pods (deploy/base/rbac.yaml)";

/// The first version that restarts a sidecar whose image changes (kubernetes PR 126525).
const SIDECAR_SINCE: (u32, u32) = (1, 32);

/// All lines; `end_needs` are the seconds that a job may need for its end.
pub async fn lines(own: &Own, slots: &[u32], end_needs: f64) -> Vec<Finding> {
    let pod = own.get_once().await;
    let named = |pod: &Pod| format!("{}/{} ({})", own.namespace, own.name, view::whole(pod).uid);
    let mut lines = vec![Finding::of("API: get pod", pod.as_ref().map(named), ROLE)];
    let Ok(pod) = pod else { return lines };
    let watched = own.try_watch(&view::whole(&pod).version).await;
    lines.push(Finding::of("API: watch pod", watched.map(|()| "with fieldSelector metadata.name".into()), ROLE));
    for slot in slots {
        lines.extend(of_slot(own, &pod, *slot).await);
    }
    if slots.len() > 1 {
        let finding = "an image that puts a mount over glue is root in its payload container until that is noticed, and reaches the other slots' containers";
        lines.push(Finding::warning(
            "slots",
            finding,
            "have images of users that do not trust each other in pods of their own",
        ));
    }
    lines.push(events::finding(own).await);
    let placeholder = view::placeholder(&pod).map(|(image, _)| image);
    lines.push(Finding::of("placeholder", placeholder, "name the init container that runs `glue install` install"));
    lines.extend(of_pod(&pod, end_needs));
    lines.extend(neighbours::lines(&pod, slots));
    lines.push(time(own).await);
    lines
}

async fn of_slot(own: &Own, pod: &Pod, slot: u32) -> Vec<Finding> {
    let name = view::container_name(slot);
    let fix = "name the payload container of slot 0 payload, that of slot N payload-N, and set LATEBIND_SLOTS to their number";
    let seen = view::payload(pod, &name);
    let shape = seen.as_ref().map(|seen| match seen.shape {
        Shape::Regular => format!("{name}, a regular container"),
        Shape::Sidecar => format!("{name}, a native sidecar: the pilot's end is the pod's end"),
    });
    let mut lines = vec![Finding::of(&format!("slot {slot}: container"), shape, fix)];
    let Ok(seen) = seen else { return lines };
    if seen.shape == Shape::Sidecar {
        lines.push(sidecar(slot, own.server_version().await));
    }
    let tried = try_patch(own, pod, slot, &seen).await.map(|()| format!("image of {name}, tried without keeping it"));
    lines.push(Finding::of("API: patch pod", tried, ROLE));
    if let Some(why) = refuses(pod, &seen) {
        let fix = format!(
            "put right the mount, volume or privilege that glue names there; all that it said is in the log of {name}"
        );
        lines.push(Finding::fail(&format!("slot {slot}: glue"), &why, &fix));
    }
    if seen.pull_policy == "Always" {
        let finding = "imagePullPolicy is Always: each bind asks the registry, also for an image that the node has";
        lines.push(Finding::warning(&format!("slot {slot}: pulls"), finding, "set imagePullPolicy: IfNotPresent"));
    }
    lines
}

/// Whether the kubelet looks at the image of a sidecar that runs: not before 1.32 (kubernetes/kubernetes#121333). A
/// kubelet is never newer than its server.
fn sidecar(slot: u32, server: Result<(u32, u32), Failure>) -> Finding {
    let what = format!("slot {slot}: sidecar");
    let fix = "make the payload a regular container, as deploy/job-before-1.32 has it";
    match server {
        Ok(version @ (major, minor)) if version < SIDECAR_SINCE => Finding::fail(
            &what,
            &format!("the server is {major}.{minor}, whose kubelet never binds an image to a running sidecar"),
            fix,
        ),
        Ok((major, minor)) => {
            Finding::good(&what, &format!("the server is {major}.{minor}; the kubelet has to be 1.32 or later too"))
        }
        Err(e) => Finding::warning(&what, &e.to_string(), "make sure that server and kubelet are 1.32 or later"),
    }
}

/// Whether glue has refused to work even in the placeholder: then it will in every image, and that is no job's fault.
fn refuses(pod: &Pod, seen: &Payload) -> Option<String> {
    let (placeholder, image_id) = view::placeholder(pod).ok()?;
    let digest = digest_of(&image_id);
    let is_placeholder = seen.wanted == placeholder || digest.is_some() && digest_of(&seen.wanted) == digest;
    let ended = [&seen.ended, &seen.last]
        .into_iter()
        .flatten()
        .find(|ended| ended.code == latebind_contract::layout::REFUSED_CODE)?;
    (is_placeholder && !seen.running).then(|| format!("refuses to work (exit code {}) {}", ended.code, ended.message))
}

/// Patches the image that is there already, and nothing is kept: allowed or refused as a real one would be.
pub async fn try_patch(own: &Own, pod: &Pod, slot: u32, seen: &Payload) -> Result<(), Failure> {
    let patch = json!({
        "metadata": {"uid": view::whole(pod).uid},
        "spec": {seen.shape.field(): [{"name": view::container_name(slot), "image": seen.wanted}]},
    });
    own.patch(&patch, true).await.map(drop)
}

fn of_pod(pod: &Pod, end_needs: f64) -> Vec<Finding> {
    let spec = &pod.spec;
    let shared = match spec.share_process_namespace {
        true => Ok("shareProcessNamespace".to_owned()),
        _ => Err("shareProcessNamespace is not set"),
    };
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    let what = "grace period";
    let grace = if (grace as f64) < end_needs {
        let finding = format!(
            "{grace} s, but the end of a job and its results may need {end_needs} s: jobs of a drained node may get no word"
        );
        Finding::warning(what, &finding, "raise terminationGracePeriodSeconds")
    } else {
        Finding::good(what, &format!("{grace} s, a job's end may need {end_needs} s"))
    };
    // What the kubelet takes for done it does not start again, also with another image: measured, docs/kubernetes.md.
    let is_told = |c: &Container| c.command.iter().chain(&c.args).any(|word| word == "--stop-code");
    let stays_done = spec.containers.iter().any(|c| view::is_payload(&c.name) && !is_told(c));
    let regular = spec.containers.iter().any(|c| view::is_payload(&c.name));
    let restarts = match spec.restart_policy.as_str() {
        "Never" if regular => Some("with restartPolicy Never a payload container that has exited never comes back"),
        "OnFailure" if stays_done => Some(
            "with restartPolicy OnFailure a glue that exits with 0 does not come back after an image that could not be fetched",
        ),
        _ => None,
    };
    let restarts = restarts.map(|finding| {
        Finding::fail(
            "restart policy",
            finding,
            "set restartPolicy: Always, or OnFailure with `glue run --stop-code 143`, or make the payload a native \
             sidecar (1.32 and later)",
        )
    });
    let token = match spec.automount_service_account_token {
        Some(false) => Finding::good("service account token", "not mounted into every container"),
        _ => Finding::warning(
            "service account token",
            "may be mounted into the payload container too (automountServiceAccountToken is not false)",
            "set automountServiceAccountToken: false and project the token into the pilot container alone",
        ),
    };
    [Some(Finding::of("processes", shared, "set shareProcessNamespace: true")), Some(grace), restarts, Some(token)]
        .into_iter()
        .flatten()
        .collect()
}

/// The server's clock, by its Date header (RFC 9110), against ours.
async fn time(own: &Own) -> Finding {
    let ask = async {
        let request = http::Request::get("/version").body(kube::client::Body::empty())?;
        let answer = own.client.send(request).await?;
        let date =
            answer.headers().get(http::header::DATE).and_then(|d| d.to_str().ok()).unwrap_or_default().to_owned();
        Ok::<String, Box<dyn std::error::Error + Send + Sync>>(date)
    };
    match ask.await {
        Ok(date) => clock(&date),
        Err(e) => Finding::of(
            "clock",
            Err::<String, _>(Failure::retry(Reason::ApiUnavailable, e.to_string())),
            "see the lines above",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use crate::finding::Grade;

    #[test]
    fn a_sidecar_needs_a_kubelet_that_restarts_it_for_another_image() {
        assert!(sidecar(0, Ok((1, 31))).grade == Grade::Fail && sidecar(0, Ok((0, 0))).grade == Grade::Fail);
        assert!(sidecar(0, Ok((1, 32))).grade == Grade::Good && sidecar(0, Ok((2, 0))).grade == Grade::Good);
        let unknown = sidecar(0, Err(Failure::retry(Reason::ApiUnavailable, "no answer")));
        assert!(unknown.grade == Grade::Warning && unknown.to_string().contains("1.32"));
    }

    #[test]
    fn a_glue_that_refuses_the_pod_is_told_from_one_that_refuses_an_image() {
        let seen = |image: &str, running: bool, code: i32| {
            let state =
                if running { json!({"running": {}}) } else { json!({"waiting": {"reason": "CrashLoopBackOff"}}) };
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {},
                "spec": {"initContainers": [{"name": "install", "image": "g:1"}], "containers": [{"name": "payload", "image": image}]},
                "status": {
                    "initContainerStatuses": [{"name": "install", "imageID": format!("g@sha256:{}", "a".repeat(64))}],
                    "containerStatuses": [{"name": "payload", "state": state, "lastState": {"terminated": {"exitCode": code}}}],
                },
            }))
            .unwrap();
            refuses(&pod, &view::payload(&pod, "payload").unwrap()).is_some()
        };
        assert!(seen("g:1", false, 3));
        assert!(seen(&format!("g:latebind-0@sha256:{}", "a".repeat(64)), false, 3));
        assert!(!seen("g:1", true, 3) && !seen("g:1", false, 0) && !seen("other:1", false, 3));
    }
}
