//! From the patch to the new container: which of the pod's versions prove the bind, and which end it.

use std::time::{Duration, Instant};

use super::api::Follow;
use super::pod::Pod;
use super::view::{self, Ended, Payload};
use super::waiting::{self, Verdict};
use crate::bind::{ContainerState, Failure, Progress, Reason, message, proof};
use crate::job::class;
use crate::reference::digest_of;
use crate::text::one_line;

/// How often the world beside the watch is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long the old container may be gone before that is called a pull.
const QUICK: Duration = Duration::from_secs(1);
/// A container of the old image, started in the last moment, is ended by the kubelet within a second or so.
const OLD_IMAGE_LIVES: Duration = Duration::from_secs(10);
/// How long a container is watched that came after its forerunner had ended by itself: the kubelet may have started it
/// before it saw the patch, and then ends it again.
const CALM: Duration = Duration::from_millis(1500);
/// How long a back-off lasts that is worth a word.
const BACK_OFF_IS_REAL: Duration = Duration::from_secs(2);
/// How long the kubelet may take to end the old container, which glue does at once.
const END_WITHIN: Duration = Duration::from_secs(90);

/// By what the wanted image is told in the kubelet's image ID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Its digest.
    pub digest: Option<String>,
    /// What its image ID was before.
    pub image_id: Option<String>,
    /// Whether any other than the old container's will do: where nothing but the old image and the wanted one can come.
    pub or_another: bool,
}

impl Expected {
    /// Whether a container of the wanted image can be told from one of the old image at all.
    pub fn is_clear(&self) -> bool {
        self.digest.is_some() || self.image_id.is_some() || self.or_another
    }

    /// Whether this image ID is the wanted one's; `before` is that of the old container.
    fn is_met(&self, image_id: &str, before: &str) -> bool {
        let digest = digest_of(image_id);
        let is_known = |known: &String| known == image_id || digest.is_some() && digest_of(known) == digest;
        digest.is_some() && digest == self.digest.as_deref()
            || self.image_id.as_ref().is_some_and(is_known)
            || self.or_another && !image_id.is_empty() && !before.is_empty() && image_id != before
    }
}

/// A container that runs the wanted image, or another.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Its ID.
    pub id: String,
    /// Its image ID.
    pub image_id: String,
}

/// A patch under way.
pub struct Patched<'a> {
    /// The slot.
    pub slot: u32,
    /// The container's name.
    pub name: &'a str,
    /// The image in the spec since the patch.
    pub reference: &'a str,
    /// What its image ID has to be.
    pub expected: &'a Expected,
    /// The pod's UID.
    pub uid: &'a str,
    /// The pod's generation since the patch.
    pub generation: Option<i64>,
    /// What the container was before.
    pub before: &'a Payload,
    /// Whether the old container had ended before the patch.
    pub old_is_gone: bool,
    /// When it was patched.
    pub patched_at: Instant,
    /// How long a new container may take after the old one has gone.
    pub pull_timeout: Duration,
}

/// What one version of the pod says.
#[derive(Debug, PartialEq, Eq)]
enum Says {
    Nothing,
    BackOff(String),
    /// A new container, but not of the wanted image: the kubelet will end it.
    OldImage(Found),
    Found(Found),
    Fails(Failure),
}

/// Whether no process of the container is left.
pub fn is_gone(container: &str) -> bool {
    container.is_empty() || !proof::has_process(container)
}

impl Patched<'_> {
    /// Waits for the new container, a failure, or the end of patience. `first` is the pod as the patch has left it.
    pub async fn follow(&self, first: Pod, mut changes: Follow, progress: &dyn Progress) -> Result<Found, Failure> {
        let mut first = Some(first);
        let mut gone_since: Option<Instant> = None;
        let mut old_image: Option<(Found, Instant)> = None;
        let mut candidate: Option<(Found, Instant)> = None;
        let (mut pulling, mut backed_off) = (false, false);
        let mut back_off: Option<(Instant, String)> = None;
        // From when the kubelet's time counts; and whether the server was asked once it was over.
        let (mut counted_from, mut asked) = (self.patched_at, false);
        loop {
            let pod = match first.take() {
                Some(first) => Some(first),
                None => changes.next(TICK).await?,
            };
            let says = pod.map_or(Says::Nothing, |pod| self.read(&pod));
            match says {
                Says::Found(found) if self.old_is_gone => match &candidate {
                    Some((earlier, _)) if earlier.id == found.id => {}
                    _ => candidate = Some((found, Instant::now())),
                },
                Says::Found(found) => return Ok(found),
                Says::Fails(failure) => return Err(failure),
                Says::BackOff(message) => {
                    back_off = Some((Instant::now(), message));
                    old_image = None; // that one has ended; the wait may be longer than it could have lived
                }
                Says::OldImage(old) => {
                    candidate = None;
                    old_image.get_or_insert_with(|| (old, Instant::now()));
                }
                Says::Nothing => {}
            }
            // For a moment the kubelet also says so after a failed pull, and then starts the container all the same.
            if let Some((since, message)) = &back_off
                && since.elapsed() >= BACK_OFF_IS_REAL
                && !backed_off
            {
                backed_off = true;
                progress.note(&format!("slot {}: the kubelet waits: {message}", self.slot));
            }
            if let Some((_, since)) = &candidate
                && since.elapsed() >= CALM
                && let Some((found, _)) = candidate.take()
            {
                return Ok(found);
            }
            // Once it has ended, its successor may take as long as any.
            old_image = old_image.filter(|(old, _)| !is_gone(&old.id));
            if let Some((old, _)) = old_image.as_ref().filter(|(_, since)| since.elapsed() >= OLD_IMAGE_LIVES) {
                return Err(self.wrong_image(&old.image_id));
            }
            if gone_since.is_none() && is_gone(&self.before.id) {
                (gone_since, asked) = (Some(Instant::now()), false);
            }
            let is_over = match gone_since {
                Some(since) => since.elapsed() >= self.pull_timeout,
                None => counted_from.elapsed() >= END_WITHIN,
            };
            if is_over && !asked {
                first = changes.read_again().await?;
                // Nor could the kubelet see the patch while the server was away.
                asked = gone_since.is_some() || !changes.was_away(counted_from);
                if !asked {
                    counted_from = Instant::now();
                }
                continue;
            }
            match gone_since {
                Some(since) if is_over => {
                    let message = format!(
                        "{} was not there {} s after the old container had gone: the node may still be fetching it (--pull-timeout)",
                        self.reference,
                        since.elapsed().as_secs()
                    );
                    return Err(Failure::retry(Reason::PullTimeout, message));
                }
                Some(since) if since.elapsed() >= QUICK && !pulling && !backed_off && candidate.is_none() => {
                    pulling = true;
                    progress.pulling();
                }
                None if is_over => {
                    let message = format!(
                        "the kubelet did not end the old container within {} s of the patch",
                        END_WITHIN.as_secs()
                    );
                    return Err(Failure::retry(Reason::EngineError, message));
                }
                _ => {}
            }
        }
    }

    fn wrong_image(&self, image_id: &str) -> Failure {
        let message = format!(
            "the container that came after the patch to {} has image {image_id}, which cannot be told from that of the one before: ask for the image by digest",
            self.reference
        );
        // Else the slot goes to the placeholder first, and the next try starts from what is known.
        if self.expected.or_another {
            Failure::hold(Reason::ImageNotProven, message)
        } else {
            Failure::retry(Reason::ImageNotProven, message)
        }
    }

    fn read(&self, pod: &Pod) -> Says {
        let whole = view::whole(pod);
        if whole.uid != self.uid {
            return Says::Fails(Failure::retry(Reason::PodLost, "another pod has this name now"));
        }
        if let Some((reason, message)) = whole.ends {
            return Says::Fails(Failure::retry(reason, message));
        }
        let now = match view::payload(pod, self.name) {
            Ok(now) => now,
            Err(why) => return Says::Fails(Failure::retry(Reason::PodUnfit, why)),
        };
        if now.wanted != self.reference {
            let message =
                format!("somebody else changed the container's image from {} to {}", self.reference, now.wanted);
            return Says::Fails(Failure::retry(Reason::ImageChanged, one_line(&message)));
        }
        if whole.observed.zip(self.generation).is_some_and(|(observed, ours)| observed < ours) {
            return Says::Nothing; // the kubelet has not seen the patch
        }
        self.judge(&now)
    }

    fn judge(&self, now: &Payload) -> Says {
        let before = self.before;
        let is_new =
            |id: &str| !id.is_empty() && id != before.id && before.last.as_ref().is_none_or(|last| last.id != id);
        if let Some((reason, message)) = &now.waiting {
            // The same words as before the patch are about the image before it; and so are those that name another one.
            let stale = now.waiting == before.waiting
                || waiting::is_about_pulling(reason) && !message.is_empty() && !message::names(message, self.reference);
            return match waiting::judge(reason, message, self.reference) {
                _ if stale => Says::Nothing,
                Verdict::Wait => Says::Nothing,
                // Ours it is that ended, not the one before.
                Verdict::BackOff => match now.last.as_ref().filter(|last| is_new(&last.id)) {
                    Some(last) if self.is_wanted(&now.image_id) => Says::Fails(ended_at_once(last, self.reference)),
                    _ => Says::BackOff(one_line(message)),
                },
                Verdict::Fails(failure) => Says::Fails(failure),
            };
        }
        if !is_new(&now.id) {
            return Says::Nothing;
        }
        if !self.is_wanted(&now.image_id) {
            return Says::OldImage(Found { id: now.id.clone(), image_id: one_line(&now.image_id) });
        }
        if now.running {
            return Says::Found(Found { id: now.id.clone(), image_id: now.image_id.clone() });
        }
        now.ended.as_ref().map_or(Says::Nothing, |ended| Says::Fails(ended_at_once(ended, self.reference)))
    }

    fn is_wanted(&self, image_id: &str) -> bool {
        self.expected.is_met(image_id, &self.before.image_id)
    }
}

/// A container of the wanted image that has ended already.
fn ended_at_once(ended: &Ended, image: &str) -> Failure {
    match ended.reason.as_str() {
        "StartError" | "ContainerCannotRun" => waiting::of(&ended.reason, &ended.message, image),
        _ => class::of_end_before_ready(&ContainerState {
            id: ended.id.clone(),
            exit_code: Some(i64::from(ended.code)),
            oom_killed: ended.reason == "OOMKilled",
            said: one_line(&ended.message),
            ..ContainerState::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::Shape;
    use super::*;

    const A: &str = "r/x@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "r/x@sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn payload(id: &str, image_id: &str) -> Payload {
        Payload {
            shape: Shape::Regular,
            wanted: "r/x:1".into(),
            pull_policy: "IfNotPresent".into(),
            id: id.into(),
            image_id: image_id.into(),
            running: true,
            waiting: None,
            ended: None,
            last: None,
        }
    }

    fn waits(reason: &str, message: &str) -> Payload {
        Payload { running: false, waiting: Some((reason.into(), message.into())), ..payload("old", A) }
    }

    fn judged(before: &Payload, expected: &Expected, now: &Payload) -> Says {
        let patched = Patched {
            slot: 0,
            name: "payload",
            reference: "r/x:1",
            expected,
            uid: "u",
            generation: None,
            before,
            old_is_gone: false,
            patched_at: Instant::now(),
            pull_timeout: Duration::from_secs(1),
        };
        patched.judge(now)
    }

    fn another() -> Expected {
        Expected { or_another: true, ..Expected::default() }
    }

    #[test]
    fn only_a_new_container_of_the_wanted_image_is_found() {
        let old = payload("old", A);
        let digest = Expected { digest: digest_of(B).map(str::to_owned), ..Expected::default() };
        for expected in [&digest, &another()] {
            assert_eq!(judged(&old, expected, &old), Says::Nothing);
            assert!(matches!(judged(&old, expected, &payload("new", A)), Says::OldImage(..)));
            assert!(matches!(judged(&old, expected, &payload("new", B)), Says::Found(_)));
        }
        // The last life of the old container comes up late.
        let before = Payload {
            last: Some(Ended { id: "older".into(), code: 0, reason: String::new(), message: String::new() }),
            ..old.clone()
        };
        assert_eq!(judged(&before, &digest, &payload("older", B)), Says::Nothing);
        // The same content under another name.
        let known = Expected { image_id: Some(A.into()), ..Expected::default() };
        assert!(matches!(judged(&old, &known, &payload("new", &A.replace("r/x", "q/y"))), Says::Found(_)));
        assert!(matches!(judged(&old, &known, &payload("new", B)), Says::OldImage(..)));
        assert!(!Expected::default().is_clear() && another().is_clear());
    }

    #[test]
    fn words_about_another_image_are_not_ours() {
        let old = payload("old", A);
        let says = |message: &str| judged(&old, &another(), &waits("ErrImagePull", message));
        assert_eq!(says("failed to pull \"r/other:1\": not found"), Says::Nothing);
        assert!(matches!(says("failed to pull \"r/x:1\": not found"), Says::Fails(_)));
        let before = waits("ErrImagePull", "failed to pull \"r/x:1\": not found");
        assert_eq!(judged(&before, &another(), &before), Says::Nothing);
        assert!(matches!(judged(&old, &another(), &waits("CrashLoopBackOff", "back-off 10s")), Says::BackOff(_)));
    }

    #[test]
    fn a_container_that_ends_at_once_is_a_failure() {
        let old = payload("old", A);
        let ended = Ended { id: "new".into(), code: 3, reason: "Error".into(), message: "no".into() };
        let now = Payload { running: false, ended: Some(ended.clone()), ..payload("new", B) };
        assert!(matches!(judged(&old, &another(), &now), Says::Fails(_)));
        let again = Payload { last: Some(ended), ended: None, ..waits("CrashLoopBackOff", "back-off 10s") };
        let again = Payload { id: "new".into(), image_id: B.into(), ..again };
        assert!(matches!(judged(&old, &another(), &again), Says::Fails(_)));
    }
}
