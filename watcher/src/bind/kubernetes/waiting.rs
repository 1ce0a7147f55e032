//! Why a payload container does not start, from the kubelet's reason and message to a class.
//!
//! The reasons are the kubelet's (pkg/kubelet/images/types.go, pkg/kubelet/container/sync_result.go); what a registry
//! said is only in the message, as text of the runtime, which also holds what the user wrote: see
//! [`crate::bind::message`].

use crate::bind::message::Message;
use crate::bind::{Failure, Reason};
use crate::text::one_line;

/// What a waiting container means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It will come without further help.
    Wait,
    /// It waits out the kubelet's back-off after an earlier container with the same image text.
    BackOff,
    /// It will not come, or not soon.
    Fails(Failure),
}

/// Judges a reason and message of `state.waiting`; `image` is the container's, as the spec has it.
pub fn judge(reason: &str, message: &str, image: &str) -> Verdict {
    match reason {
        "" | "ContainerCreating" | "PodInitializing" => Verdict::Wait,
        "CrashLoopBackOff" => Verdict::BackOff,
        _ => Verdict::Fails(of(reason, message, image)),
    }
}

/// Whether this is about fetching an image: only then its message can name which one.
pub fn is_about_pulling(reason: &str) -> bool {
    matches!(
        reason,
        "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed"
    )
}

/// The failure behind a reason and message. The reason decides; the message only where the reason leaves it open, and
/// then as [`Message`] reads it.
pub fn of(reason: &str, message: &str, image: &str) -> Failure {
    let said = || Message::read(message, image);
    let name = match reason {
        "InvalidImageName" => Reason::InvalidImageName,
        "ErrImageNeverPull" => Reason::ImageNotFound,
        "SignatureValidationFailed" => Reason::ImageNotAllowed,
        "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => {
            said().of_pull().unwrap_or(Reason::RegistryUnavailable)
        }
        "CreateContainerConfigError" => Reason::CreateContainerConfigError,
        "CreateContainerError" | "RunContainerError" | "StartError" | "ContainerCannotRun" if !said().is_passing() => {
            Reason::CreateContainerError
        }
        _ => Reason::StartError,
    };
    Failure::new(name.class(), name, format!("the kubelet says {}: {}", one_line(reason), one_line(message)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "a test ends where it fails")]
    use super::*;
    use crate::bind::Class;

    fn fails(reason: &str, message: &str) -> (Class, Reason) {
        match judge(reason, message, "r/denied-app:1") {
            Verdict::Fails(failure) => (failure.class, failure.reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_kubelets_reason_decides_before_its_message() {
        assert_eq!(judge("ContainerCreating", "", "x"), Verdict::Wait);
        assert_eq!(judge("CrashLoopBackOff", "back-off 10s", "x"), Verdict::BackOff);
        assert_eq!(fails("InvalidImageName", "x: 503 y"), (Class::Hold, Reason::InvalidImageName));
        assert_eq!(fails("ErrImageNeverPull", "x: denied"), (Class::Hold, Reason::ImageNotFound));
        assert_eq!(fails("SignatureValidationFailed", "x"), (Class::Hold, Reason::ImageNotAllowed));
        assert_eq!(fails("CreateContainerError", "exec: not found"), (Class::Hold, Reason::CreateContainerError));
        assert_eq!(fails("CreateContainerError", "context deadline exceeded").1, Reason::StartError);
        let missing = "secret \"x\" not found";
        assert_eq!(fails("CreateContainerConfigError", missing), (Class::Retry, Reason::CreateContainerConfigError));
        assert_eq!(fails("SomethingNew", ""), (Class::Retry, Reason::StartError));
    }

    #[test]
    fn a_pull_that_fails_is_judged_by_its_cause_and_not_by_the_images_name() {
        let message = |cause: &str| format!("failed to resolve reference \"docker.io/r/denied-app:1\": x: {cause}");
        assert_eq!(
            fails("ErrImagePull", &message("503 Service Unavailable")),
            (Class::Retry, Reason::RegistryUnavailable)
        );
        assert_eq!(fails("ErrImagePull", &message("429 Too Many Requests")), (Class::Retry, Reason::RegistryBusy));
        assert_eq!(fails("ImagePullBackOff", &message("403 Forbidden")), (Class::Hold, Reason::ImageAccessDenied));
        assert_eq!(fails("ErrImagePull", &message("not found")), (Class::Hold, Reason::ImageNotFound));
        assert_eq!(fails("ErrImagePull", "").1, Reason::RegistryUnavailable);
    }

    #[test]
    fn control_characters_stay_out_of_messages() {
        assert!(!of("ErrImagePull", "a\x1b[2Jb", "x").message.contains('\x1b'));
    }
}
