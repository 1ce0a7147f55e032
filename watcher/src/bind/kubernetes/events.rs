//! Events on the pilot's own pod for binds that fail, so that `kubectl describe pod` shows why. Written by a task of
//! their own, with a deadline and within a rate: nothing waits for them, and nothing depends on them. Where the pilot's
//! account may not write Events, which is so by default, the first refusal ends it.
//!
//! As client-go's recorder writes them: the same again counts up (`x3 over 5m`) where it would be another Event.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Event;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::Status;
use latebind_contract::encoding::hex;
use latebind_contract::time::{text_of, wall};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::api::{Own, text};
use super::view;
use crate::bind::{Failure, Reason};
use crate::finding::Finding;
use crate::text::{cut, one_line, printable};

/// What writes them: its component in an Event, and its name in managed fields and audit logs.
const COMPONENT: &str = "latebind";
const FIELD_MANAGER: &str = "latebind-events";

/// Longest message, in bytes: what the newer API of Events takes (events.k8s.io/v1, `note`).
const MESSAGE_MAX: usize = 1024;

/// The same reason and image within this time counts up.
const SAME_WITHIN: Duration = Duration::from_secs(600);

/// So many writes in an hour, new Events and counts alike. What is counted meanwhile comes with the next write.
const WRITES_MAX: usize = 20;
const HOUR: Duration = Duration::from_secs(3600);

/// So many wait to be written; those beyond are not said.
const WAITING_MAX: usize = 16;

/// Longest time for one write.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// What people are told of a bind that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failed {
    reason: Reason,
    image: String,
    message: String,
}

impl Failed {
    /// Image and message were written by others: they are text on one line, of bounded length.
    fn new(slot: u32, image: &str, failure: &Failure) -> Self {
        let image = if image.is_empty() { "the placeholder".to_owned() } else { printable(image) };
        let (container, class) = (view::container_name(slot), failure.class.name());
        let mut message = format!("{image} is not bound to {container} ({class}): {}", one_line(&failure.message));
        cut(&mut message, MESSAGE_MAX);
        Self { reason: failure.reason, image, message }
    }
}

/// Whether people who look at the pod learn something by this: not of a job that nobody wants any more, of a pod that
/// ends, or of a server that does not answer.
fn is_worth_saying(reason: Reason) -> bool {
    !reason.is_of_pod() && !matches!(reason, Reason::Cancelled | Reason::ApiUnavailable)
}

/// The way to the task that writes.
pub struct Events(mpsc::Sender<Failed>);

impl Events {
    /// Starts the task, in the runtime that this is called in.
    pub fn start(own: Own) -> Self {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write_all(own, waiting));
        Self(sender)
    }

    /// Says that this image was not bound, the placeholder where it is empty; never waits.
    pub fn say(&self, slot: u32, image: &str, failure: &Failure) {
        if is_worth_saying(failure.reason) {
            // Full, or off.
            let _ = self.0.try_send(Failed::new(slot, image, failure));
        }
    }
}

/// What became of a write.
enum Written {
    Done,
    /// Event or namespace do not exist any more.
    Gone,
    /// Not now.
    Failed(String),
    /// Not at all.
    Forbidden(String),
}

async fn write_all(own: Own, mut waiting: mpsc::Receiver<Failed>) {
    let mut said = Said::default();
    while let Some(failed) = waiting.recv().await {
        match write(&own, &mut said, &failed).await {
            Written::Done => {}
            Written::Gone => tracing::debug!("no Event on the pod: its namespace is gone"),
            Written::Failed(why) => tracing::debug!("no Event on the pod: {why}: {}", failed.message),
            Written::Forbidden(why) => {
                tracing::info!(
                    "the pod gets no Events for binds that fail: {why}; deploy/components/events allows them"
                );
                return;
            }
        }
    }
}

async fn write(own: &Own, said: &mut Said, failed: &Failed) -> Written {
    let Some(uid) = own.uid() else { return Written::Failed("the pod's UID is not known".into()) };
    let now = text_of(wall());
    let mut step = said.count(failed, Instant::now());
    if let Some(Step::CountUp(name, count)) = &step {
        match patch(own, name, &counted(failed, *count, &now)).await {
            Written::Gone => {
                said.forget(failed);
                step = said.count(failed, Instant::now());
            }
            written => return written,
        }
    }
    if step.is_none() {
        return Written::Failed(format!("{WRITES_MAX} were written within an hour"));
    }
    let name = name_of(&own.name);
    let written = create(own, &object(&own.namespace, &own.name, uid, &name, failed, &now), false).await;
    if matches!(written, Written::Done) {
        said.created(failed, name, Instant::now());
    }
    written
}

/// For `watcher check`, of the pod that was just read: whether Events can be written, tried without keeping one. Where
/// they may not, nothing is wrong: that is so by default.
pub async fn finding(own: &Own) -> Finding {
    let what = "API: create event";
    let tried = Failure::retry(Reason::PodLost, "watcher check tries whether this can be written, and keeps nothing");
    let (failed, name) = (Failed::new(0, "", &tried), name_of(&own.name));
    let uid = own.uid().unwrap_or_default();
    let event = object(&own.namespace, &own.name, uid, &name, &failed, &text_of(wall()));
    let component = "deploy/components/events";
    match create(own, &event, true).await {
        Written::Done => Finding::good(what, "on this pod, for binds that fail; tried without keeping it"),
        Written::Forbidden(_) => {
            let finding = format!("not allowed, nor needed: binds that fail are in the log alone ({component})");
            Finding::good(what, &finding)
        }
        Written::Failed(why) => Finding::warning(what, &why, "see what the server says, or do without that right"),
        Written::Gone => Finding::warning(what, "the namespace is gone", "make it, and the pilot in it, again"),
    }
}

/// A name that no other Event has: as the kubelet's, the pod's and a number.
fn name_of(pod: &str) -> String {
    let mut number = [0; 8];
    // Without random bytes the server finds the name taken, or not.
    let _ = latebind_linux::sys::random(&mut number);
    // A name has at most 253 characters, ASCII like that of a pod.
    let pod: String = pod.chars().take(200).collect();
    format!("{}.{}", pod.trim_end_matches(['.', '-']), hex(&number))
}

fn object(namespace: &str, pod: &str, uid: &str, name: &str, failed: &Failed, now: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod, "uid": uid},
        "type": "Warning",
        "reason": failed.reason.as_str(),
        "message": failed.message,
        "source": {"component": COMPONENT},
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
    })
}

fn counted(failed: &Failed, count: u32, now: &str) -> Value {
    json!({"count": count, "lastTimestamp": now, "message": failed.message})
}

fn events(own: &Own) -> kube::Api<DynamicObject> {
    // Nothing of the answer is read.
    kube::Api::namespaced_with(own.client.clone(), &own.namespace, &ApiResource::erase::<Event>(&()))
}

async fn create(own: &Own, event: &Value, dry_run: bool) -> Written {
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), dry_run };
    match serde_json::from_value::<DynamicObject>(event.clone()) {
        Ok(event) => answered(own, timeout(WRITTEN_WITHIN, events(own).create(&params, &event)).await),
        Err(e) => Written::Failed(e.to_string()),
    }
}

async fn patch(own: &Own, name: &str, change: &Value) -> Written {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    answered(own, timeout(WRITTEN_WITHIN, events(own).patch(name, &params, &Patch::Merge(change))).await)
}

fn answered<T, E>(own: &Own, answer: Result<kube::Result<T>, E>) -> Written {
    match answer {
        Ok(Ok(_)) => Written::Done,
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Written::Gone,
        Ok(Err(e)) => match &e {
            // A server that has just come back may not have read its roles yet.
            kube::Error::Api(status) if is_forbidden(status) && !own.is_just_back() => Written::Forbidden(text(&e)),
            _ => Written::Failed(text(&e)),
        },
        Err(_) => Written::Failed(format!("no answer within {WRITTEN_WITHIN:?}")),
    }
}

/// Whether the account may not do this at all: `events is forbidden: User "u" cannot create resource "events"`, or
/// `events "n" is forbidden: User ...`. A quota or a namespace that is being deleted forbid in other words.
fn is_forbidden(status: &Status) -> bool {
    let rest = status.message.strip_prefix("events ").unwrap_or_default();
    let why = rest.split_once("is forbidden: ").map_or("", |(_, why)| why);
    status.code == 403 && why.starts_with("User \"")
}

/// What to do about a bind that failed.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    New,
    /// The Event of this name, to this count.
    CountUp(String, u32),
}

/// What was said lately.
#[derive(Debug, Default)]
struct Said {
    events: HashMap<(Reason, String), Counted>,
    writes: VecDeque<Instant>,
}

#[derive(Debug)]
struct Counted {
    name: String,
    count: u32,
    last: Instant,
}

impl Said {
    /// Counts it, and says what to write; `None` where enough has been written. There is never more to remember than
    /// was written within the hour.
    fn count(&mut self, failed: &Failed, now: Instant) -> Option<Step> {
        self.events.retain(|_, event| now.saturating_duration_since(event.last) < SAME_WITHIN);
        while self.writes.front().is_some_and(|at| now.saturating_duration_since(*at) >= HOUR) {
            self.writes.pop_front();
        }
        let event = self.events.get_mut(&(failed.reason, failed.image.clone()));
        let step = event.map_or(Step::New, |event| {
            (event.count, event.last) = (event.count.saturating_add(1), now);
            Step::CountUp(event.name.clone(), event.count)
        });
        if self.writes.len() >= WRITES_MAX {
            return None;
        }
        self.writes.push_back(now);
        Some(step)
    }

    fn forget(&mut self, failed: &Failed) {
        self.events.remove(&(failed.reason, failed.image.clone()));
    }

    fn created(&mut self, failed: &Failed, name: String, now: Instant) {
        self.events.insert((failed.reason, failed.image.clone()), Counted { name, count: 1, last: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::{HOSTILE, assert_harmless};

    fn failed(image: &str) -> Failed {
        Failed::new(0, image, &Failure::hold(Reason::ImageNotFound, "the kubelet says ErrImagePull: not found"))
    }

    fn minutes(n: u64) -> Duration {
        Duration::from_secs(60 * n)
    }

    #[test]
    fn an_event_says_what_failed_on_which_pod() {
        let event = object("ns", "latebind-0", "u", "latebind-0.1", &failed("r/x:1"), "2026-01-01T00:00:00Z");
        let about = json!({"apiVersion": "v1", "kind": "Pod", "namespace": "ns", "name": "latebind-0", "uid": "u"});
        assert_eq!((&event["involvedObject"], &event["metadata"]["namespace"]), (&about, &json!("ns")));
        assert_eq!(
            (&event["type"], &event["reason"], &event["count"]),
            (&json!("Warning"), &json!("ImageNotFound"), &json!(1))
        );
        let message = "r/x:1 is not bound to payload (hold): the kubelet says ErrImagePull: not found";
        assert_eq!(event["message"], message);
        let placeholder = Failed::new(1, "", &Failure::retry(Reason::GlueSilent, "m"));
        assert_eq!(placeholder.message, "the placeholder is not bound to payload-1 (retry): m");
    }

    #[test]
    fn what_others_wrote_is_text_of_bounded_length() {
        let long = HOSTILE.repeat(1000);
        let failed = Failed::new(0, &long, &Failure::retry(Reason::RegistryUnavailable, long.clone()));
        assert_harmless(&failed.message);
        assert_eq!(failed.message.lines().count(), 1);
        assert!(failed.message.len() <= MESSAGE_MAX && failed.image.chars().count() < 210, "{}", failed.message.len());
        let name = name_of(&"p-".repeat(126));
        assert!(name.len() <= 253 && !name.contains("-."), "{name}");
        assert_ne!(name_of("p"), name_of("p"));
    }

    #[test]
    fn the_same_again_counts_up_and_later_it_is_new() {
        let (mut said, began) = (Said::default(), Instant::now());
        assert_eq!(said.count(&failed("a"), began), Some(Step::New));
        said.created(&failed("a"), "n".into(), began);
        assert_eq!(said.count(&failed("a"), began + minutes(9)), Some(Step::CountUp("n".into(), 2)));
        assert_eq!(said.count(&failed("b"), began + minutes(9)), Some(Step::New), "another image");
        let other = Failed { reason: Reason::PullTimeout, ..failed("a") };
        assert_eq!(said.count(&other, began + minutes(9)), Some(Step::New), "another reason");
        assert_eq!(said.count(&failed("a"), began + minutes(18)), Some(Step::CountUp("n".into(), 3)));
        assert_eq!(said.count(&failed("a"), began + minutes(28)), Some(Step::New));
        said.created(&failed("a"), "m".into(), began + minutes(28));
        said.forget(&failed("a"));
        assert_eq!(said.count(&failed("a"), began + minutes(28)), Some(Step::New), "it has expired at the server");
    }

    #[test]
    fn no_more_is_written_than_the_rate_allows_and_counts_go_on() {
        let (mut said, began) = (Said::default(), Instant::now());
        let same = failed("same");
        said.created(&same, "n".into(), began);
        for n in 0..WRITES_MAX {
            let failed = failed(&n.to_string());
            assert_eq!(said.count(&failed, began), Some(Step::New), "{n}");
            said.created(&failed, n.to_string(), began);
        }
        for n in 0..1000 {
            assert_eq!(said.count(&failed(&format!("more-{n}")), began + minutes(1)), None);
        }
        assert!(said.events.len() <= WRITES_MAX + 1);
        for minute in (5..60).step_by(5) {
            assert_eq!(said.count(&same, began + minutes(minute)), None);
        }
        assert_eq!(said.count(&same, began + minutes(60)), Some(Step::CountUp("n".into(), 13)));
        assert_eq!(said.events.len(), 1, "the others are forgotten");
    }

    #[test]
    fn only_a_missing_right_ends_it() {
        let of = |code, message: &str| is_forbidden(&Status::failure(message, "R").with_code(code));
        let user =
            "User \"system:serviceaccount:n:latebind-pilot\" cannot create resource \"events\" in API group \"\"";
        assert!(of(403, &format!("events is forbidden: {user} in the namespace \"n\"")));
        assert!(of(403, &format!("events \"latebind-0.1\" is forbidden: {user}")));
        assert!(!of(403, "events \"x\" is forbidden: exceeded quota: q, requested: count/events=1"));
        assert!(!of(
            403,
            "events \"x\" is forbidden: unable to create new content in namespace n because it is being terminated"
        ));
        assert!(!of(500, &format!("events is forbidden: {user}")));
    }

    #[test]
    fn cancelled_jobs_and_pods_that_end_make_no_event() {
        for reason in [Reason::ImageNotFound, Reason::MountProofFailed, Reason::PatchRefused, Reason::GlueSilent] {
            assert!(is_worth_saying(reason), "{reason}");
        }
        for reason in [Reason::Cancelled, Reason::PodDeleted, Reason::Evicted, Reason::ApiUnavailable] {
            assert!(!is_worth_saying(reason), "{reason}");
        }
    }
}
