//! Requests to the API server: one pod, read, patched and watched; what passes by itself is tried again, all else
//! becomes a failure with the server's words.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use kube::api::{ApiResource, Patch, PatchParams, WatchEvent, WatchParams};
use kube::client::ClientBuilder;
use kube::core::Status;
use kube::{Client, Config};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tower::util::MapResponseLayer;

use super::pod::Pod;
use crate::bind::{Failure, Reason};
use crate::pace::{self, Pace};
use crate::text::one_line;

/// How long an API server may be away, or refuse a token that is being renewed, before a bind is given up.
const PATIENCE: Duration = Duration::from_secs(150);

/// Longest time for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// How long the server keeps one watch open, or half of that, by chance: those of many pilots, which a restart of the
/// server ends together, do not end together again. A connection that died without a word is noticed a little later.
const WATCH_FOR: Duration = Duration::from_secs(60);

/// Waits before something is tried again.
const AGAIN: Pace = Pace { first: Duration::from_millis(200), most: Duration::from_secs(5) };

/// Longest wait that the server can ask for.
const ASKED_MAX: Duration = Duration::from_secs(30);

/// How long a server that was away may refuse what it allows: it answers before it has read its roles.
const JUST_BACK: Duration = Duration::from_secs(20);

/// The pilot's own pod at the API server.
#[derive(Clone)]
pub struct Own {
    /// The client.
    pub client: Client,
    pods: kube::Api<Pod>,
    /// The pod's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The pod's UID, from its own environment or else from the first answer: another pod may get the name.
    uid: Arc<OnceLock<String>>,
    reachable: Arc<AtomicBool>,
    // When a request was last not served.
    away: Arc<Mutex<Option<Instant>>>,
    /// What the server last asked to wait.
    asked: Arc<Mutex<Option<Duration>>>,
}

/// What a server that is too busy for a request asks to wait: `Retry-After`, in seconds.
fn asked_by<B>(response: &http::Response<B>) -> Option<Duration> {
    if !matches!(response.status().as_u16(), 429 | 503) {
        return None;
    }
    let seconds = response.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(ASKED_MAX))
}

/// A client that notes what the server asks to wait, which kube's errors do not say.
fn client(config: Config, asked: Arc<Mutex<Option<Duration>>>) -> kube::Result<Client> {
    type Answer = http::Response<Box<kube::client::DynBody>>;
    let note = move |answer: Answer| {
        if let Some(wait) = asked_by(&answer) {
            *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(wait);
        }
        answer
    };
    Ok(ClientBuilder::try_from(config)?.with_layer(&MapResponseLayer::new(note)).build())
}

/// A server's refusal, as text.
fn said(status: &Status) -> String {
    let code = format!("HTTP {} {}", status.code, one_line(&status.reason));
    format!("{} ({})", one_line(&status.message), code.trim_end())
}

/// An error with its causes, as one line.
pub fn text(e: &kube::Error) -> String {
    match e {
        kube::Error::Api(status) => said(status),
        // The layers below tell the cause.
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(inner) = cause {
                let words = inner.to_string();
                if !text.contains(&words) {
                    text = format!("{text}: {words}");
                }
                cause = inner.source();
            }
            one_line(&text)
        }
    }
}

/// Whether trying again can help: the server is away or busy, or has just come back, or a token is about to be renewed.
fn passes(e: &kube::Error, just_back: bool) -> bool {
    match e {
        kube::Error::Api(status) => {
            let busy = matches!(status.code, 401 | 429) || status.code >= 500;
            busy && !is_denied(status) || (just_back && is_rbac(status))
        }
        kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => false,
        _ => true,
    }
}

/// A conflict that says: the pod of this name is another one.
fn is_other_pod(status: &Status) -> bool {
    status.code == 409 && status.message.contains("UID")
}

/// What the server itself says about a pod that it forbids: the message without `pods "NAME" is forbidden: `.
fn of_forbidden(message: &str) -> &str {
    let rest = message.strip_prefix("pods \"").and_then(|rest| rest.split_once("\" is forbidden: "));
    rest.filter(|(name, _)| !name.contains('"')).map_or(message, |(_, rest)| rest)
}

/// An admission plugin's refusal of this very patch, whatever code it came with: a webhook chooses one, or 400 is taken
/// for it (apiserver/pkg/admission/plugin/webhook/errors); a ValidatingAdmissionPolicy says 422. The server's own words
/// begin the message; the plugin's follow, and may hold the image's name.
fn is_denied(status: &Status) -> bool {
    let words = of_forbidden(&status.message);
    let of_webhook = |rest: &str| rest.split_once('"').is_some_and(|(_, rest)| rest.starts_with(" denied the request"));
    words.strip_prefix("admission webhook \"").is_some_and(of_webhook)
        || words.starts_with("ValidatingAdmissionPolicy '")
            && words.split(':').next().is_some_and(|own| own.ends_with(" denied request"))
}

/// RBAC's own words: `User "u" cannot patch resource "pods" in API group`; a webhook may say that something cannot be,
/// too.
fn is_rbac(status: &Status) -> bool {
    let user = of_forbidden(&status.message).strip_prefix("User \"");
    user.and_then(|rest| rest.split_once("\" cannot ")).is_some_and(|(_, rest)| {
        let (verb, rest) = rest.split_once(' ').unwrap_or_default();
        verb.bytes().all(|b| b.is_ascii_lowercase()) && rest.starts_with("resource \"")
    })
}

/// What a refused patch or read means. An admission plugin refuses this image; RBAC refuses whatever is asked.
fn refusal(what: &str, e: &kube::Error) -> Failure {
    let message = format!("{what}: {}", text(e));
    match e {
        kube::Error::Api(status) if is_denied(status) => Failure::hold(Reason::ImageNotAllowed, message),
        kube::Error::Api(status) if status.code == 404 || is_other_pod(status) => {
            Failure::retry(Reason::PodLost, message)
        }
        kube::Error::Api(status) if status.code == 409 => Failure::retry(Reason::Conflict, message),
        kube::Error::Api(status) if status.code == 403 && !is_rbac(status) => {
            Failure::hold(Reason::ImageNotAllowed, message)
        }
        kube::Error::Api(status) if matches!(status.code, 400 | 422) => Failure::hold(Reason::PatchRefused, message),
        kube::Error::Api(status) if status.code == 403 => Failure::retry(Reason::PatchRefused, message),
        _ => Failure::retry(Reason::ApiUnavailable, message),
    }
}

impl Own {
    /// The pod `name` (with this UID, where it is known), through the service account's token and the server of the
    /// environment; a proxy only where one is given.
    pub fn new(namespace: String, name: String, uid: Option<String>, proxy: Option<http::Uri>) -> Result<Self, String> {
        let mut config = Config::incluster().map_err(|e| {
            format!("no access to the API server: {e}; the pod needs the service account's token at /var/run/secrets/kubernetes.io/serviceaccount, for the pilot container")
        })?;
        config.proxy_url = proxy;
        config.connect_timeout = Some(Duration::from_secs(5));
        // Ours: it goes on for longer, and says what it waits for.
        config.default_retry = false;
        let asked = Arc::default();
        let client =
            client(config, Arc::clone(&asked)).map_err(|e| format!("no client for the API server: {}", text(&e)))?;
        // Only the fields that are read here are decoded: see `pod`.
        let kind = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let pods = kube::Api::namespaced_with(client.clone(), &namespace, &kind);
        let uid = Arc::new(uid.map_or_else(OnceLock::new, OnceLock::from));
        Ok(Self {
            client,
            pods,
            name,
            namespace,
            uid,
            reachable: Arc::new(AtomicBool::new(true)),
            away: Arc::default(),
            asked,
        })
    }

    /// Whether the last request was answered.
    pub fn was_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Whether the server was away a moment ago: it may then refuse what it allows.
    pub fn is_just_back(&self) -> bool {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < JUST_BACK)
    }

    /// Notes that a request was not served; returns whether trying again can help.
    fn was_refused(&self, e: &kube::Error) -> bool {
        let can_help = passes(e, self.is_just_back());
        if passes(e, false) {
            *self.away.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        self.reachable.store(!can_help, Ordering::Relaxed); // else that was an answer
        can_help
    }

    /// How long to wait after a request was not served so often in a row: longer and longer, by chance, and after what
    /// the server asks for, if that was its answer. Many pilots meet the same outage.
    fn wait(&self, times: u32) -> Duration {
        AGAIN.wait(times, None) + self.take_asked().map_or(Duration::ZERO, pace::at_least)
    }

    /// What the server asked for last. It is taken before each request too: what an answer said for which nobody waited
    /// says nothing of the next one.
    fn take_asked(&self) -> Option<Duration> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// One request, again and again while that can help.
    async fn ask<T, F>(&self, what: &str, patience: Duration, request: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let (give_up, mut times) = (Instant::now() + patience, 0);
        loop {
            self.take_asked();
            let error = match timeout(ANSWER_WITHIN, request()).await {
                Ok(Ok(answer)) => {
                    self.reachable.store(true, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(e)) => e,
                Err(_) => kube::Error::Service(format!("no answer within {ANSWER_WITHIN:?}").into()),
            };
            times += 1;
            let wait = self.wait(times);
            let left = give_up.saturating_duration_since(Instant::now());
            if !self.was_refused(&error) || left.is_zero() {
                return Err(refusal(what, &error));
            }
            tracing::warn!("{what}: {}; trying again", text(&error));
            sleep(wait.min(left)).await;
        }
    }

    /// The pod now.
    pub async fn get(&self) -> Result<Pod, Failure> {
        self.own_one(self.ask("the pod cannot be read", PATIENCE, || self.pods.get(&self.name)).await?)
    }

    /// The pod now, or the reason why not, asked once.
    pub async fn get_once(&self) -> Result<Pod, Failure> {
        self.own_one(self.ask("the pod cannot be read", Duration::ZERO, || self.pods.get(&self.name)).await?)
    }

    /// Only ever the pod that this process is in. A pilot that was cut off may find its successor under its name, and
    /// must leave that alone.
    fn own_one(&self, pod: Pod) -> Result<Pod, Failure> {
        let found = pod.metadata.uid.as_deref().unwrap_or_default();
        let ours = self.uid.get_or_init(|| found.to_owned());
        if ours == found {
            return Ok(pod);
        }
        let message =
            format!("the name {} belongs to another pod now: its UID is {found}, this one's was {ours}", self.name);
        Err(Failure::retry(Reason::PodLost, message))
    }

    /// Changes the pod; returns it as the server then has it.
    pub async fn patch(&self, patch: &Value, dry_run: bool) -> Result<Pod, Failure> {
        let params = PatchParams { dry_run, field_manager: Some("latebind".into()), ..PatchParams::default() };
        let patience = if dry_run { Duration::ZERO } else { PATIENCE };
        let patch = Patch::Strategic(patch);
        self.ask("the pod cannot be patched", patience, || self.pods.patch(&self.name, &params, &patch)).await
    }

    /// The same, asked once and for nothing that a job waits for: what comes of it does not say whether the server is
    /// there. Under a name of its own, so that an audit log tells it from the binds.
    pub async fn patch_once(&self, patch: &Value) -> Result<(), Failure> {
        let params = PatchParams { field_manager: Some("latebind-state".into()), ..PatchParams::default() };
        let patch = Patch::Strategic(patch);
        match timeout(ANSWER_WITHIN, self.pods.patch(&self.name, &params, &patch)).await {
            Ok(answer) => answer.map(drop).map_err(|e| refusal("the pod cannot be patched", &e)),
            Err(_) => Err(Failure::retry(Reason::ApiUnavailable, format!("no answer within {ANSWER_WITHIN:?}"))),
        }
    }

    /// Major and minor version of the server.
    pub async fn server_version(&self) -> Result<(u32, u32), Failure> {
        let client = self.pods.clone().into_client();
        let version =
            self.ask("the server's version cannot be read", Duration::ZERO, || client.apiserver_version()).await?;
        // Some distributions write the minor version as "32+".
        let number = |text: &str| text.trim_end_matches('+').parse().unwrap_or(0);
        Ok((number(&version.major), number(&version.minor)))
    }

    /// The pod's UID, once it is known.
    pub fn uid(&self) -> Option<&str> {
        self.uid.get().map(String::as_str)
    }

    /// What changes from `version` on, or, where that is empty, the pod as the server knows it and what changes then;
    /// only of this pod, since no more is allowed.
    async fn watch(&self, version: &str) -> kube::Result<BoxStream<'static, kube::Result<WatchEvent<Pod>>>> {
        let params = WatchParams::default()
            .fields(&format!("metadata.name={}", self.name))
            .timeout(u32::try_from(pace::up_to(WATCH_FOR).as_secs()).unwrap_or(60));
        Ok(self.pods.watch(&params, version).await?.boxed())
    }

    /// Whether a watch is allowed: opens one and closes it again.
    pub async fn try_watch(&self, version: &str) -> Result<(), Failure> {
        self.ask("the pod cannot be watched", Duration::ZERO, || self.watch(version)).await.map(drop)
    }

    /// Follows the pod's changes from `version` on.
    pub fn follow(&self, version: String) -> Follow {
        Follow {
            own: self.clone(),
            seen: number_of(&version),
            version,
            stream: None,
            opened: Instant::now(),
            away_since: None,
            times: 0,
            short: 0,
        }
    }
}

/// Whether that is known to be another pod than the one with this UID.
fn is_other(pod: &Pod, ours: Option<&str>) -> bool {
    ours.zip(pod.metadata.uid.as_deref()).is_some_and(|(ours, found)| ours != found)
}

/// A resource version as a number, which grows with each change.
fn number_of(version: &str) -> Option<u64> {
    version.parse().ok()
}

/// The pod's changes, over as many watches as it takes.
pub struct Follow {
    own: Own,
    /// From where on to watch; empty where the server has to say it.
    version: String,
    /// The newest version of the pod that was seen.
    seen: Option<u64>,
    stream: Option<BoxStream<'static, kube::Result<WatchEvent<Pod>>>>,
    opened: Instant,
    away_since: Option<Instant>,
    /// How often it could not be opened, in a row.
    times: u32,
    /// How often it ended as soon as it was opened, in a row.
    short: u32,
}

impl Follow {
    /// The next version of the pod; `None` when there is none within `tick`.
    pub async fn next(&mut self, tick: Duration) -> Result<Option<Pod>, Failure> {
        let Some(stream) = &mut self.stream else { return self.open().await };
        match timeout(tick, stream.next()).await {
            Err(_) => {
                if self.opened.elapsed() > WATCH_FOR + ANSWER_WITHIN {
                    self.stream = None; // the server should have ended it: nobody is there any more
                }
                Ok(None)
            }
            Ok(Some(Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod)))) => {
                let version = pod.metadata.resource_version.clone().unwrap_or_default();
                let number = number_of(&version);
                if number.zip(self.seen).is_some_and(|(number, seen)| number <= seen) {
                    return Ok(None); // what a watch without a version begins with, from a cache that may lag behind
                }
                (self.seen, self.version) = (number, version);
                Ok(Some(pod))
            }
            Ok(Some(Ok(WatchEvent::Bookmark(mark)))) => {
                self.version = mark.metadata.resource_version;
                Ok(None)
            }
            // The name's pod before this one.
            Ok(Some(Ok(WatchEvent::Deleted(pod)))) if is_other(&pod, self.own.uid()) => Ok(None),
            Ok(Some(Ok(WatchEvent::Deleted(_)))) => Err(Failure::retry(Reason::PodLost, "the pod was deleted")),
            Ok(Some(Ok(WatchEvent::Error(status)))) => {
                // Most often 410: what happened since is not known any more, so the whole pod is read again.
                tracing::debug!("watch: {}", said(&status));
                self.ended().await?;
                self.read_again().await
            }
            Ok(Some(Err(e))) => {
                tracing::debug!("watch: {}", text(&e));
                self.ended().await
            }
            Ok(None) => self.ended().await,
        }
    }

    /// The stream is over, as each one is some time; one that ends at once must not be opened again without a pause.
    async fn ended(&mut self) -> Result<Option<Pod>, Failure> {
        self.stream = None;
        self.short = if self.opened.elapsed() < Duration::from_secs(1) { self.short.saturating_add(1) } else { 0 };
        if self.short > 0 {
            sleep(AGAIN.wait(self.short, None)).await;
        }
        Ok(None)
    }

    /// Whether a request of this pilot's was not served after `since`: the kubelet may then have heard as little.
    pub fn was_away(&self, since: Instant) -> bool {
        self.own.away.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at >= since)
    }

    /// The pod now, asked for: a server that does not answer may leave a watch open and silent.
    pub async fn read_again(&mut self) -> Result<Option<Pod>, Failure> {
        self.stream = None;
        let pod = self.own.get().await?;
        self.seen = number_of(pod.metadata.resource_version.as_deref().unwrap_or_default());
        // Not the pod's own version, which is that of its last change: a server that was started after that refuses it
        // (410) until the next one.
        self.version.clear();
        Ok(Some(pod))
    }

    async fn open(&mut self) -> Result<Option<Pod>, Failure> {
        self.own.take_asked();
        let error = match timeout(ANSWER_WITHIN, self.own.watch(&self.version)).await {
            Ok(Ok(stream)) => {
                (self.stream, self.opened, self.away_since, self.times) = (Some(stream), Instant::now(), None, 0);
                self.own.reachable.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 410 => return self.read_again().await,
            Ok(Err(e)) => e,
            Err(_) => kube::Error::Service(format!("no answer within {ANSWER_WITHIN:?}").into()),
        };
        let since = *self.away_since.get_or_insert_with(Instant::now);
        let left = PATIENCE.saturating_sub(since.elapsed());
        if !self.own.was_refused(&error) || left.is_zero() {
            return Err(refusal("the pod cannot be watched", &error));
        }
        tracing::warn!("the pod cannot be watched: {}; trying again", text(&error));
        self.times = self.times.saturating_add(1);
        sleep(self.own.wait(self.times).min(left)).await;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bind::Class;

    fn api(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, "R").with_code(code).boxed())
    }

    #[test]
    fn what_passes_and_what_does_not() {
        for code in [401, 429, 500, 503, 504] {
            assert!(passes(&api(code, "x"), false), "{code}");
        }
        for code in [400, 403, 404, 409, 422] {
            assert!(!passes(&api(code, "x"), true), "{code}");
        }
        assert!(!passes(&api(409, "Precondition failed: UID in precondition: 1, UID in object meta: 2"), false));
        assert!(passes(&kube::Error::Service("connection refused".into()), false));
        let rbac = api(403, "pods \"x\" is forbidden: User \"u\" cannot get resource \"pods\"");
        assert!(passes(&rbac, true) && !passes(&rbac, false));
    }

    #[test]
    fn what_a_busy_server_asks_for_is_waited_for_within_bounds() {
        let asked = |code: u16, after: &str| {
            asked_by(&http::Response::builder().status(code).header("Retry-After", after).body(()).unwrap())
        };
        assert_eq!(asked(429, "1"), Some(Duration::from_secs(1)));
        assert_eq!(asked(503, " 7 "), Some(Duration::from_secs(7)));
        assert_eq!(asked(429, "18446744073709551615"), Some(ASKED_MAX));
        for (code, after) in
            [(429, "soon"), (429, "-1"), (429, "Wed, 21 Oct 2026 07:28:00 GMT"), (200, "1"), (409, "1")]
        {
            assert_eq!(asked(code, after), None, "{code} {after}");
        }
    }

    #[test]
    fn the_end_of_an_earlier_pod_of_the_name_is_not_ours() {
        let pod = |uid: Value| {
            let pod = json!({"metadata": {"name": "p", "uid": uid}, "spec": {"containers": []}, "status": {}});
            serde_json::from_value::<Pod>(pod).unwrap()
        };
        let cases = [(json!("a"), Some("b")), (json!("a"), Some("a")), (json!("a"), None), (Value::Null, Some("a"))];
        assert_eq!(cases.map(|(found, ours)| is_other(&pod(found), ours)), [true, false, false, false]);
    }

    #[test]
    fn whose_fault_a_refusal_is() {
        let of = |code, message: &str| {
            let failure = refusal("w", &api(code, message));
            (failure.class, failure.reason)
        };
        let rbac = "pods \"x\" is forbidden: User \"u\" cannot patch resource \"pods\" in API group \"\"";
        assert_eq!(of(403, rbac), (Class::Retry, Reason::PatchRefused));
        assert_eq!(of(403, "admission webhook \"w\" denied the request: no"), (Class::Hold, Reason::ImageNotAllowed));
        assert_eq!(of(403, "denied: this image cannot be used here"), (Class::Hold, Reason::ImageNotAllowed));
        for code in [400, 403, 422, 500] {
            let webhook = "admission webhook \"w.x\" denied the request: images of x only";
            assert_eq!(of(code, webhook), (Class::Hold, Reason::ImageNotAllowed), "{code}");
            assert!(!passes(&api(code, webhook), false), "{code}");
        }
        let policy = "pods \"p\" is forbidden: ValidatingAdmissionPolicy 'x' with binding 'y' denied request: no";
        assert_eq!(of(422, policy), (Class::Hold, Reason::ImageNotAllowed));
        assert_eq!(of(422, "invalid image"), (Class::Hold, Reason::PatchRefused));
        assert_eq!(of(404, "not found"), (Class::Retry, Reason::PodLost));
        // The image's name decides nothing, however it is written.
        for image in [
            "admission webhook \"w\" denied the request: x",
            "pods \"p\" is forbidden: User \"u\" cannot patch resource \"pods\"",
            "ValidatingAdmissionPolicy 'x' denied request: y",
        ] {
            let invalid =
                format!("Pod \"p\" is invalid: spec.containers[0].image: Invalid value: \"{image}\": must not");
            assert_eq!(of(422, &invalid), (Class::Hold, Reason::PatchRefused), "{image}");
            let away = format!("Internal error occurred: failed calling webhook \"w\": {image}");
            assert_eq!(of(500, &away), (Class::Retry, Reason::ApiUnavailable), "{image}");
            let other =
                format!("pods \"p\" is forbidden: image policy webhook backend denied one or more images: {image}");
            assert_eq!(of(403, &other), (Class::Hold, Reason::ImageNotAllowed), "{image}");
            let webhook = format!("admission webhook \"w.x\" denied the request: {image}");
            assert_eq!(of(403, &webhook), (Class::Hold, Reason::ImageNotAllowed), "{image}");
        }
        assert_eq!(of(409, "the object has been modified"), (Class::Retry, Reason::Conflict));
        assert_eq!(of(503, "away"), (Class::Retry, Reason::ApiUnavailable));
        assert!(refusal("w", &api(422, "the words")).message.contains("the words"));
    }
}
