//! The binder for Kubernetes: patches the image of a payload container in the pilot's own pod, and nothing else.
//!
//! A bind is one read, one patch, and one watch for as long as it takes. What ends it is a container that did not run
//! before the patch and whose image the kubelet says to be the wanted one; the mount proof and glue's own word come
//! after that.

pub mod api;
mod check;
pub mod clock;
mod events;
mod mark;
mod memory;
mod neighbours;
mod pod;
mod quantity;
pub mod registry;
mod runtime;
pub mod view;
mod waiting;
mod watching;

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use latebind_contract::encoding::hex;
use serde_json::json;
use tokio::runtime::Runtime;

use self::api::Own;
use self::events::Events;
use self::memory::Memory;
use self::pod::Pod;
use self::registry::Registries;
use self::view::Payload;
use self::watching::{Expected, Patched};
use super::{Binder, Class, Container, ContainerState, Failure, ImageCommand, Progress, Reason};
use crate::finding::Finding;
use crate::pace;
use crate::reference::{Reference, of_image_id};
use crate::text::one_line;

/// How long the kubelet may take to tell of a new pod's containers.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

/// How long it takes before the API server is asked again whether it is back, or up to twice as long, by chance: many
/// pilots miss it at the same time.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How often a bind starts over because the pod changed meanwhile; the kubelet's word on a container comes in two or
/// three steps.
const CONFLICTS_MAX: u32 = 10;

/// How the binder is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pod's name; from `LATEBIND_POD_NAME`, or the host name, which Kubernetes sets to it.
    pub pod: String,
    /// Its namespace; from `LATEBIND_POD_NAMESPACE`, or the service account's.
    pub namespace: String,
    /// Its UID, from `LATEBIND_POD_UID`; else that of the first pod which the server shows under this name.
    pub uid: Option<String>,
    /// A proxy to the API server; the proxy variables of the environment are not looked at.
    pub proxy: Option<http::Uri>,
    /// How long a new container may take after the old one has gone.
    pub pull_timeout: Duration,
    /// How registries are asked what an image runs by itself; `None`: they are not.
    pub registries: Option<registry::Options>,
    /// Seconds that a job may need for its end when the pod is deleted; `check` compares them with the grace period.
    pub end_needs: f64,
}

/// The binder.
pub struct Kubernetes {
    options: Options,
    own: Own,
    runtime: Runtime,
    registries: Option<Registries>,
    memory: Mutex<Memory>,
    /// When the server may be asked again whether it is back.
    look_again_at: Mutex<Option<Instant>>,
    /// Held while the pod is being marked. A mark is a version of the pod, so a bind that has read the one before would
    /// have to start over.
    marking: tokio::sync::Mutex<()>,
    /// A slot whose last bind was refused in a way that every other would be.
    doubt: Mutex<Option<u32>>,
    events: Events,
}

impl Kubernetes {
    /// A binder for the pod that this process is in. Asks nothing of the server yet.
    pub fn new(options: Options) -> std::io::Result<Self> {
        let runtime = runtime::start()?;
        let (own, events) = {
            let _inside = runtime.enter();
            let own =
                Own::new(options.namespace.clone(), options.pod.clone(), options.uid.clone(), options.proxy.clone());
            let own = own.map_err(std::io::Error::other)?;
            (own.clone(), Events::start(own))
        };
        Ok(Self {
            registries: options.registries.clone().map(Registries::new),
            options,
            own,
            runtime,
            memory: Mutex::default(),
            look_again_at: Mutex::default(),
            marking: tokio::sync::Mutex::default(),
            doubt: Mutex::default(),
            events,
        })
    }

    fn remember<T>(&self, with: impl FnOnce(&mut Memory) -> T) -> T {
        with(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Binds; again where the pod has changed between reading and patching.
    async fn bind(&self, slot: u32, image: &str, progress: &dyn Progress) -> Result<Container, Failure> {
        for _ in 0..CONFLICTS_MAX {
            match self.bind_as_read(slot, image, progress).await {
                Err(failure) if failure.reason == Reason::Conflict => {
                    tracing::debug!(slot, "{failure}; reading the pod again")
                }
                bound => return bound,
            }
        }
        let message = format!("the pod changed {CONFLICTS_MAX} times between being read and being patched");
        Err(Failure::retry(Reason::Conflict, message))
    }

    async fn bind_as_read(&self, slot: u32, image: &str, progress: &dyn Progress) -> Result<Container, Failure> {
        let name = view::container_name(slot);
        let wrong_pod = |why: String| Failure::retry(Reason::PodUnfit, why);
        drop(self.marking.lock().await);
        let mut pod = self.told(self.own.get().await?, &name).await?;
        let mut before = view::payload(&pod, &name).map_err(wrong_pod)?;
        let (placeholder, its_image_id) = view::placeholder(&pod).map_err(wrong_pod)?;
        let image = if image.is_empty() { placeholder.as_str() } else { image };
        if image == placeholder && !its_image_id.is_empty() {
            self.remember(|m| m.learn(image, &its_image_id));
        }
        let at_rest = |m: &Memory, now: &Payload| {
            // What the slot's container is, is known: it was seen through here, or is the placeholder, as the spec has
            // it.
            let is_placeholder = now.wanted == placeholder && now.image_id == its_image_id;
            now.running
                && !now.image_id.is_empty()
                && (m.is_settled(slot, &now.wanted) || is_placeholder && !watching::is_gone(&now.id))
        };
        let mut plan = self.plan(image, &before, self.remember(|m| at_rest(m, &before)))?;
        // A container of the wanted image has to differ from one of the old by something; and a text that stands in the
        // spec already is not a change to the kubelet. In both cases the placeholder comes in between.
        if image != placeholder && (!plan.expected.is_clear() || plan.reference == before.wanted) {
            Box::pin(self.bind(slot, &placeholder, progress)).await?;
            pod = self.own.get().await?;
            before = view::payload(&pod, &name).map_err(wrong_pod)?;
            plan = self.plan(image, &before, self.remember(|m| at_rest(m, &before)))?;
        }
        if image == placeholder && plan.reference == before.wanted {
            // No change to the kubelet either: what runs there, or comes up next, is the placeholder already.
            before.id.clear();
            before.last = None;
        }
        let bound = self.change(slot, image, &view::whole(&pod), &before, plan, progress).await;
        // Where a tag that is bound for the first time has the content that ran before under its digest, nothing tells
        // the two apart; after the placeholder something does.
        let is_not_proven = bound.as_ref().is_err_and(|e| e.reason == Reason::ImageNotProven);
        if is_not_proven && before.wanted != placeholder && image != placeholder {
            progress
                .note(&format!("slot {slot}: {image} seems to be what ran before; bound again after the placeholder"));
            Box::pin(self.bind(slot, &placeholder, progress)).await?;
            return Box::pin(self.bind(slot, image, progress)).await;
        }
        // What a tag meant when it was first bound may be gone from the registry since, and the tag mean something
        // else.
        let is_gone = bound.as_ref().is_err_and(|e| e.reason == Reason::ImageNotFound);
        let is_tag = image != placeholder && Reference::parse(image).is_ok_and(|r| r.digest.is_none());
        if is_gone && is_tag && self.remember(|m| m.forget(image)) {
            progress.note(&format!("slot {slot}: what {image} was before is not there any more; it is resolved again"));
            return Box::pin(self.bind(slot, image, progress)).await;
        }
        bound
    }

    /// The pod, once the kubelet has told the server of its containers: a pilot runs a moment before that.
    async fn told(&self, mut pod: Pod, name: &str) -> Result<Pod, Failure> {
        let give_up = Instant::now() + TOLD_WITHIN;
        let mut changes = self.own.follow(view::whole(&pod).version);
        while !view::is_told(&pod, name) && view::whole(&pod).ends.is_none() && Instant::now() < give_up {
            if let Some(next) = changes.next(Duration::from_millis(250)).await? {
                pod = next;
            }
        }
        Ok(pod)
    }

    /// Whether the pod could be patched: checked again after a bind that was refused for more than its image.
    async fn look_again(&self, doubt: Option<u32>) -> Result<(), Failure> {
        let pod = self.own.get_once().await?;
        let Some(slot) = doubt else { return Ok(()) };
        if let Some((reason, message)) = view::whole(&pod).ends {
            return Err(Failure::retry(reason, message));
        }
        let seen = view::payload(&pod, &view::container_name(slot)).map_err(|e| Failure::retry(Reason::PodUnfit, e))?;
        check::try_patch(&self.own, &pod, slot, &seen).await
    }

    /// Patches, and waits for what comes of it.
    async fn change(
        &self,
        slot: u32,
        image: &str,
        whole: &view::Whole,
        before: &Payload,
        plan: Plan,
        progress: &dyn Progress,
    ) -> Result<Container, Failure> {
        let name = view::container_name(slot);
        if let Some((reason, message)) = &whole.ends {
            return Err(Failure::retry(*reason, message.clone()));
        }
        if let Some(note) = self.remember(|m| m.back_off(slot, &plan.reference, plan.why_not_fresh)) {
            progress.note(&note);
        }
        let was_settled = self.remember(|m| m.is_settled(slot, &before.wanted));
        self.remember(|m| m.patched(slot, &plan.reference));
        // A container whose image cannot be fetched will not come back in between.
        let stuck = before.waiting.as_ref().is_some_and(|(reason, _)| waiting::is_about_pulling(reason));
        let old_is_gone = !stuck && (!before.running || watching::is_gone(&before.id));
        // The UID makes it a patch of this very pod, never of a successor that has its name.
        let mut patch = json!({
            "metadata": {"uid": whole.uid},
            "spec": {before.shape.field(): [{"name": name, "image": plan.reference}]},
        });
        // Where nothing but the difference from the old image tells the new one, nobody may have put another in
        // between.
        if plan.expected.digest.is_none() && plan.expected.image_id.is_none() {
            patch["metadata"]["resourceVersion"] = json!(whole.version);
        }
        let patched_at = Instant::now();
        let pod = self.own.patch(&patch, false).await.inspect_err(|failure| {
            if failure.reason == Reason::Conflict && was_settled {
                self.remember(|m| m.settle(slot, &before.wanted)); // nothing was changed
            }
        })?;
        let after = view::payload(&pod, &name).map_err(|e| Failure::retry(Reason::PodUnfit, e))?;
        let mut reference = plan.reference.clone();
        if after.wanted != reference {
            reference = accept_rewritten(&plan, after.wanted)?;
            progress.note(&format!(
                "the cluster has rewritten {} to {reference}: the same digest, so it is taken",
                plan.reference
            ));
        }
        let now = view::whole(&pod);
        let patched = Patched {
            slot,
            name: &name,
            reference: &reference,
            expected: &plan.expected,
            uid: &now.uid,
            generation: now.generation,
            before,
            old_is_gone,
            patched_at,
            pull_timeout: self.options.pull_timeout,
        };
        let found = patched.follow(pod, self.own.follow(now.version), progress).await?;
        self.remember(|m| {
            m.settle(slot, &reference);
            m.learn(image, &found.image_id);
        });
        let shown = if reference == image { String::new() } else { reference };
        Ok(Container { id: found.id, image: image.to_owned(), image_id: found.image_id, reference: shown })
    }

    /// What to put into the spec for this image, and what the kubelet's image ID must then be.
    fn plan(&self, image: &str, before: &Payload, at_rest: bool) -> Result<Plan, Failure> {
        let image_id = self.remember(|m| m.known(image));
        let mut expected = Expected { digest: None, image_id: image_id.clone(), or_another: at_rest };
        let as_it_is = |expected, why| Ok(Plan { reference: image.to_owned(), expected, why_not_fresh: why });
        let Ok(parsed) = Reference::parse(image) else {
            // The kubelet says what is wrong with it.
            return as_it_is(expected, "it cannot be read");
        };
        let mut mark = [0; 6];
        latebind_linux::sys::random(&mut mark)
            .map_err(|e| Failure::retry(Reason::EngineError, format!("no random numbers: {e}")))?;
        if let Some(digest) = &parsed.digest {
            expected.digest = Some(digest.clone());
            return Ok(Plan { reference: parsed.fresh(digest, &hex(&mark)), expected, why_not_fresh: "" });
        }
        match image_id.as_deref().map(of_image_id) {
            None => as_it_is(expected, "its digest is not known yet"),
            Some(None) => as_it_is(expected, "the image was imported, not pulled, so it has no digest"),
            // Only under the name that it was pulled by does the node have it; under another it would be pulled again.
            Some(Some((name, _))) if name != parsed.repository() => {
                as_it_is(expected, "the node knows its content under another name")
            }
            Some(Some(_)) if before.pull_policy == "Never" => as_it_is(expected, "imagePullPolicy is Never"),
            Some(Some((_, digest))) => {
                Ok(Plan { reference: parsed.fresh(digest, &hex(&mark)), expected, why_not_fresh: "" })
            }
        }
    }

    async fn end_of(&self, slot: u32, container: &str, within: Duration) -> Result<ContainerState, Failure> {
        let name = view::container_name(slot);
        let give_up = Instant::now() + within;
        let mut pod = self.own.get_once().await?;
        let mut follow = self.own.follow(view::whole(&pod).version);
        loop {
            let state = state_in(&pod, &name)?;
            let found = ending(&pod, &name, container);
            if found.is_some() || state.id != container || Instant::now() >= give_up {
                return Ok(found.unwrap_or(state));
            }
            loop {
                let left = give_up.saturating_duration_since(Instant::now());
                match follow.next(left.min(Duration::from_millis(250))).await? {
                    Some(next) => {
                        pod = next;
                        break;
                    }
                    None if left.is_zero() => return state_in(&pod, &name),
                    None => {}
                }
            }
        }
    }
}

/// Waits until nobody wants the bind any more; returns why.
async fn until_unwanted(progress: &dyn Progress) -> String {
    loop {
        if let Some(why) = progress.stop_wanted() {
            return why;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A failure that is not of this image, and that a next job would have as well: the pod is another's or ends, or this
/// pilot may not patch it.
fn is_any_images(failure: &Failure) -> bool {
    failure.class == Class::Retry && (failure.reason == Reason::PatchRefused || failure.reason.is_of_pod())
}

/// What goes into the spec.
struct Plan {
    reference: String,
    expected: Expected,
    why_not_fresh: &'static str,
}

/// An admission plugin may send pulls elsewhere; only a digest says that the content is still what was asked for.
fn accept_rewritten(plan: &Plan, wanted: String) -> Result<String, Failure> {
    let asked = Reference::parse(&plan.reference).ok().and_then(|r| r.digest);
    let got = Reference::parse(&wanted).ok().and_then(|r| r.digest);
    if asked.is_some() && asked == got {
        return Ok(wanted);
    }
    Err(Failure::hold(
        Reason::ImageRewritten,
        format!(
            "the cluster made {} of {}: what that holds is not known. Ask for the image by digest, or for the name that the cluster wants",
            one_line(&wanted),
            plan.reference
        ),
    ))
}

/// What a version of the pod says of the container now.
fn state_in(pod: &Pod, name: &str) -> Result<ContainerState, Failure> {
    let seen = view::payload(pod, name).map_err(|e| Failure::retry(Reason::PodUnfit, e))?;
    let ended = seen.ended.as_ref();
    Ok(ContainerState {
        id: seen.id.clone(),
        running: seen.running,
        exit_code: ended.map(|e| i64::from(e.code)),
        oom_killed: ended.is_some_and(|e| e.reason == "OOMKilled"),
        memory_limit: view::memory_limit(pod, name),
        said: ended.map(said).unwrap_or_default(),
        pod_ends: view::whole(pod).ends,
    })
}

fn said(ended: &view::Ended) -> String {
    one_line(format!("{} {}", ended.reason, ended.message).trim())
}

/// What a version of the pod says of the end of one container, if it knows of that.
fn ending(pod: &Pod, name: &str, container: &str) -> Option<ContainerState> {
    let seen = view::payload(pod, name).ok()?;
    let ended = [seen.ended, seen.last].into_iter().flatten().find(|e| e.id == container)?;
    Some(ContainerState {
        id: container.to_owned(),
        running: false,
        exit_code: Some(i64::from(ended.code)),
        oom_killed: ended.reason == "OOMKilled",
        memory_limit: view::memory_limit(pod, name),
        said: said(&ended),
        pod_ends: view::whole(pod).ends,
    })
}

impl Binder for Kubernetes {
    fn bind(&self, slot: u32, image: &str, progress: &dyn Progress) -> Result<Container, Failure> {
        let bound = pin!(Self::bind(self, slot, image, progress));
        let unwanted = pin!(until_unwanted(progress));
        // A patch may be under way when it is dropped: the memory then does not call the slot settled.
        match self.runtime.block_on(select(bound, unwanted)) {
            Either::Left((bound, _)) => {
                let mut doubt = self.doubt.lock().unwrap_or_else(PoisonError::into_inner);
                match &bound {
                    Ok(_) => *doubt = None,
                    Err(e) if is_any_images(e) => *doubt = Some(slot),
                    Err(_) => {}
                }
                // Of a job's image its life says it, since the mount proof belongs to the bind.
                if let Some(failure) = bound.as_ref().err().filter(|_| image.is_empty()) {
                    self.events.say(slot, image, failure);
                }
                bound
            }
            Either::Right((why, _)) => Err(Failure::not_started(&why)),
        }
    }

    fn say_failed(&self, slot: u32, image: &str, failure: &Failure) {
        self.events.say(slot, image, failure);
    }

    fn image_id(&self, image: &str) -> Result<String, Failure> {
        self.remember(|m| m.known(image)).ok_or_else(|| {
            Failure::retry(
                Reason::ImageUnknown,
                format!("no container of {image} has run yet, so its content is not known"),
            )
        })
    }

    fn says_commands(&self) -> bool {
        self.registries.is_some()
    }

    fn command(&self, container: &Container, progress: &dyn Progress) -> Result<ImageCommand, Failure> {
        let Some(registries) = &self.registries else { return Err(ImageCommand::unknown(&container.image)) };
        let asked = pin!(registries.command(&container.image, &container.image_id));
        let unwanted = pin!(until_unwanted(progress));
        match self.runtime.block_on(select(asked, unwanted)) {
            Either::Left((command, _)) => command,
            Either::Right((why, _)) => Err(Failure::not_started(&why)),
        }
    }

    fn state(&self, slot: u32) -> Result<ContainerState, Failure> {
        let pod = self.runtime.block_on(self.own.get_once())?;
        state_in(&pod, &view::container_name(slot))
    }

    fn end_of(&self, slot: u32, container: &str, within: Duration) -> Result<ContainerState, Failure> {
        let silent = || Failure::retry(Reason::ApiUnavailable, "the API server did not answer in time");
        let end =
            async { tokio::time::timeout(within + LOOK_AGAIN, Self::end_of(self, slot, container, within)).await };
        self.runtime.block_on(end).unwrap_or_else(|_| Err(silent()))
    }

    fn ready(&self) -> Result<(), Failure> {
        let doubt = *self.doubt.lock().unwrap_or_else(PoisonError::into_inner);
        if self.own.was_reachable() && doubt.is_none() {
            return Ok(());
        }
        let mut look_again_at = self.look_again_at.lock().unwrap_or_else(PoisonError::into_inner);
        if look_again_at.is_some_and(|at| Instant::now() < at) {
            return Err(Failure::retry(
                Reason::ApiUnavailable,
                "the API server did not answer, or refused the last patch",
            ));
        }
        *look_again_at = Some(Instant::now() + pace::at_least(LOOK_AGAIN));
        self.runtime.block_on(self.look_again(doubt))?;
        *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    fn check(&self, slots: &[u32]) -> Vec<Finding> {
        self.runtime.block_on(check::lines(&self.own, slots, self.options.end_needs))
    }

    fn mark(&self, busy: bool) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let _marking = self.marking.lock().await;
            mark::mark(&self.own, busy).await
        })
    }

    fn pod_waits_for_glue(&self) -> bool {
        let pod = self.runtime.block_on(self.own.get());
        pod.is_ok_and(|pod| view::ends_by_exits(&pod))
    }
}
