//! Why a payload container does not start, from the kubelet's reason and message to a class.
//!
//! The reasons are the kubelet's (pkg/kubelet/images/types.go, pkg/kubelet/container/sync_result.go); what a registry
//! said is only in the message, as text of the runtime.

use crate::bind::{Class, Failure, Reason};
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

/// Judges a reason and message of `state.waiting`.
pub fn judge(reason: &str, message: &str) -> Verdict {
    match reason {
        "" | "ContainerCreating" | "PodInitializing" => Verdict::Wait,
        "CrashLoopBackOff" => Verdict::BackOff,
        _ => Verdict::Fails(of(reason, message)),
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
    )
}

/// The failure behind a reason and message.
pub fn of(reason: &str, message: &str) -> Failure {
    let (class, name) = match reason {
        "InvalidImageName" => (Class::Hold, Reason::InvalidImageName),
        "ErrImageNeverPull" => (Class::Hold, Reason::ImageNotFound),
        "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => of_pull(message),
        // What the pod's own manifest lacks, a Secret say, is the operator's to mend.
        "CreateContainerConfigError" => (Class::Retry, Reason::CreateContainerConfigError),
        "CreateContainerError" | "RunContainerError" | "StartError" | "ContainerCannotRun" => of_create(message),
        _ => (Class::Retry, Reason::StartError),
    };
    Failure::new(class, name, format!("the kubelet says {reason}: {}", one_line(message)))
}

/// What a registry's or runtime's text means. First what passes by itself: a busy registry may say anything besides.
fn of_pull(message: &str) -> (Class, Reason) {
    let text = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&[" 429", "too many requests", "toomanyrequests"]) {
        (Class::Retry, Reason::RegistryBusy)
    } else if says(&["no space left", "disk quota"]) {
        (Class::Retry, Reason::VolumeFull)
    } else if says(&["no match for platform", "no matching manifest", "exec format error"]) {
        (Class::Hold, Reason::WrongArchitecture)
    } else if says(&[
        " 401",
        " 403",
        "unauthorized",
        "denied",
        "forbidden",
        "no basic auth",
        "authorization failed",
        "authentication required",
    ]) {
        (Class::Hold, Reason::ImageAccessDenied)
    } else if says(&[
        "not found",
        "notfound",
        "manifest unknown",
        "name unknown",
        "manifest_unknown",
        "name_unknown",
        "does not exist",
    ]) {
        (Class::Hold, Reason::ImageNotFound)
    } else if says(&["invalid reference", "couldn't parse image", "invalid checksum digest"]) {
        (Class::Hold, Reason::InvalidImageName)
    } else {
        (Class::Retry, Reason::RegistryUnavailable)
    }
}

/// What a runtime's text about a container that could not be made or started means.
fn of_create(message: &str) -> (Class, Reason) {
    let text = message.to_lowercase();
    let passing = [
        "no space left",
        "deadline exceeded",
        "is reserved for",
        "cannot allocate memory",
        "resource temporarily",
        "connection refused",
        "unavailable",
    ];
    if passing.iter().any(|word| text.contains(word)) {
        (Class::Retry, Reason::StartError)
    } else {
        (Class::Hold, Reason::CreateContainerError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(reason: &str, message: &str) -> (Class, Reason) {
        match judge(reason, message) {
            Verdict::Fails(failure) => (failure.class, failure.reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pulls_that_fail() {
        let table = [
            ("failed to resolve reference \"r/x:1\": r/x:1: not found", Class::Hold, Reason::ImageNotFound),
            ("unexpected status code [manifests 1]: 401 Unauthorized", Class::Hold, Reason::ImageAccessDenied),
            (
                "pull access denied, repository does not exist or may require authorization",
                Class::Hold,
                Reason::ImageAccessDenied,
            ),
            ("unexpected status code: 429 Too Many Requests", Class::Retry, Reason::RegistryBusy),
            ("unexpected status code: 503 Service Unavailable", Class::Retry, Reason::RegistryUnavailable),
            ("dial tcp: connection refused", Class::Retry, Reason::RegistryUnavailable),
            ("no match for platform in manifest: not found", Class::Hold, Reason::WrongArchitecture),
            ("write /x: no space left on device", Class::Retry, Reason::VolumeFull),
        ];
        for (message, class, reason) in table {
            assert_eq!(fails("ErrImagePull", message), (class, reason), "{message}");
        }
    }

    #[test]
    fn other_reasons() {
        assert_eq!(judge("ContainerCreating", ""), Verdict::Wait);
        assert_eq!(judge("CrashLoopBackOff", "back-off 10s"), Verdict::BackOff);
        assert_eq!(fails("InvalidImageName", "x").0, Class::Hold);
        assert_eq!(fails("CreateContainerError", "exec: not found").0, Class::Hold);
        assert_eq!(fails("CreateContainerError", "context deadline exceeded").0, Class::Retry);
        assert_eq!(fails("CreateContainerConfigError", "secret \"x\" not found").0, Class::Retry);
        assert_eq!(fails("SomethingNew", "").0, Class::Retry);
    }

    #[test]
    fn terminals_are_safe() {
        assert!(!of("ErrImagePull", "a\x1b[2Jb").message.contains('\x1b'));
    }
}
