//! Why a job ended as it did: one word for each reason, and what each word may mean to the pilot. Every reason that a
//! report, a bind answer, a hold or a metric can carry is here; `docs/protocol.md` prints the same as a table.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::cut;

/// What an ending means to the pilot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The job ran, and this is its result.
    Final,
    /// Not what the job did: it should run again, elsewhere or later.
    Retry,
    /// It will fail again until its user changes something.
    Hold,
}

impl Class {
    /// As reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Retry => "retry",
            Self::Hold => "hold",
        }
    }
}

/// Declares [`Reason`] from one list, so that no table beside it can miss a variant. The first class is the usual one.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $($class:ident)+;)+) => {
        /// Why a job ended, or a bind failed. The text form is the variant's name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
            /// Nothing is known yet, or the word is one of another version.
            #[serde(other)]
            Unknown,
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)+ Self::Unknown];

            /// As reports have it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                    Self::Unknown => "Unknown",
                }
            }

            /// The classes that a failure of this reason may have; the first is the usual one.
            pub fn classes(self) -> &'static [Class] {
                match self {
                    $(Self::$name => &[$(Class::$class),+],)+
                    Self::Unknown => &[Class::Retry],
                }
            }
        }
    };
}

reasons! {
    /// The job exited with 0.
    Completed: Final;
    /// The job exited with another code.
    Error: Final;
    /// A signal ended the job.
    Signaled: Final;
    /// The job's wall limit passed.
    TimedOut: Final;
    /// The job used too much of something.
    LimitExceeded: Final;

    /// The job took all of its container's memory, whether the kernel ended it or the watcher, just before.
    OutOfMemory: Hold;
    /// The program is not in the image.
    CommandNotFound: Hold;
    /// The program is there and cannot be executed; to be tried again where it cannot be read.
    CommandNotExecutable: Hold Retry;
    /// An argument or a variable, or all of them, are longer than the kernel takes.
    ArgumentTooLong: Hold;
    /// An environment file, the working directory or a resource limit cannot be used.
    EnvironmentError: Hold;
    /// A file for standard input, output or error cannot be used.
    StdioError: Hold;
    /// A field of the startup file cannot be used; to be tried again where the start was interrupted.
    StartupError: Hold Retry;
    /// The job's description cannot be understood or breaks a rule.
    InvalidJob: Hold;
    /// An input is missing, a link or a device; to be tried again where somebody holds it closed for the moment.
    InputUnusable: Hold Retry;
    /// The job's result could not be delivered to its place in the spool.
    DeliveryFailed: Hold;
    /// The image does not exist.
    ImageNotFound: Hold;
    /// The pod's allow list or an admission plugin refuses the image.
    ImageNotAllowed: Hold;
    /// The registry refuses to hand out the image.
    ImageAccessDenied: Hold;
    /// The image's name is malformed.
    InvalidImageName: Hold;
    /// The image is for another architecture or operating system.
    WrongArchitecture: Hold;
    /// The image carries an annotation or a label that a runtime or engine acts upon.
    ImageControlsEngine: Hold;
    /// No container can be made of the image.
    CreateContainerError: Hold;
    /// What runs in the new container is not proven to be our glue with our volumes.
    MountProofFailed: Hold;
    /// The new container ended by itself before its glue was ready.
    ContainerCannotRun: Hold;
    /// The cluster put another image into the pod than the one asked for.
    ImageRewritten: Hold;
    /// The new container cannot be told from one of the old image.
    ImageNotProven: Hold Retry;
    /// The API server calls the patch invalid; to be tried again where it forbids it to this pilot.
    PatchRefused: Hold Retry;

    /// The registry asks for fewer requests.
    RegistryBusy: Retry;
    /// The registry is away or fails.
    RegistryUnavailable: Retry;
    /// The image was not there in time.
    PullTimeout: Retry;
    /// No container of the image has run, so its content is not known.
    ImageUnknown: Retry;
    /// Somebody else changed the container's image meanwhile.
    ImageChanged: Retry;
    /// The API server gives no answer, or cannot serve.
    ApiUnavailable: Retry;
    /// The pod kept changing between being read and being patched.
    Conflict: Retry;
    /// The pod is being deleted.
    PodDeleted: Retry;
    /// The pod has ended.
    PodEnded: Retry;
    /// Another pod has the name, or none.
    PodLost: Retry;
    /// The pod's manifest is not one in which jobs can run.
    PodUnfit: Retry;
    /// The kubelet evicted the pod.
    Evicted: Retry;
    /// The kubelet made room for a critical pod.
    Preempting: Retry;
    /// The pod's `activeDeadlineSeconds` have passed.
    DeadlineExceeded: Retry;
    /// The node is lost to its cluster.
    NodeLost: Retry;
    /// The node is shutting down, and admits no pod.
    NodeShutdown: Retry;
    /// The node is shutting down, and ended the pod.
    Terminated: Retry;
    /// The pod's manifest lacks something that the container needs, a Secret say.
    CreateContainerConfigError: Retry;
    /// The new container was killed, stopped or removed before its glue was ready, or the container is gone.
    ContainerLost: Retry;
    /// Glue is gone, and left no record.
    GlueLost: Retry;
    /// Glue gives no sign.
    GlueSilent: Retry;
    /// Glue and watcher do not fit together.
    VersionMismatch: Retry;
    /// The machine was short of memory, processes, descriptors or disk for the start.
    ResourceShortage: Retry;
    /// A volume has no room.
    VolumeFull: Retry;
    /// A slot's volume has no room for inputs that would fit into it, since others have taken it: no attempt of the
    /// job.
    VolumeHeld: Retry;
    /// The job's state could not be kept or read.
    StateLost: Retry;
    /// Glue was told to stop, not by the watcher.
    Stopped: Retry;
    /// Pilot or client ended the job.
    Cancelled: Retry;
    /// The pilot was lost with all that it knew of the attempt.
    PilotLost: Retry;
    /// There is no record, or it is not to be believed.
    RecordRefused: Retry;
    /// Glue refused the startup file as a whole.
    StartupRefused: Retry;
    /// The verified record says that the job was not started, and not why.
    NotStarted: Retry;
    /// Glue could not give the job its rights.
    PrivilegeError: Retry;
    /// The engine did not do what it was asked for.
    EngineError: Retry;
    /// The engine could not start the container.
    StartError: Retry;
    /// A request to `latebind-host` was not one of its protocol.
    BadRequest: Retry;
    /// The slot that had the job does not exist any more.
    SlotLost: Retry;
    /// No slot of this pilot is large enough for the job.
    SlotTooSmall: Retry;
    /// The slot could not be filled with the job's files.
    StagingError: Retry;
    /// The streams of the job could not be passed on.
    RelayFailed: Retry;
    /// IPC objects of the job could not be removed.
    CleaningFailed: Retry;
    /// The kill routine itself failed.
    KillFailed: Retry;
    /// Processes of an earlier job, or this one, could not be ended.
    Unkillable: Retry;
}

impl Reason {
    /// The usual class.
    pub fn class(self) -> Class {
        self.classes().first().copied().unwrap_or(Class::Retry)
    }

    /// Whether a failure of this reason may have this class.
    pub fn may_be(self, class: Class) -> bool {
        self.classes().contains(&class)
    }

    /// The reason of a text form; none where it is not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }

    /// The end of a whole pod: the words that the kubelet has for it, and no others. Whatever else a cluster calls it
    /// is [`Reason::PodEnded`].
    ///
    /// Source: the kubelet's `eviction`, `preemption`, `active_deadline` and `nodeshutdown`, and the node lifecycle
    /// controller.
    pub fn of_pod_status(text: &str) -> Self {
        match text {
            "Evicted" => Self::Evicted,
            "Preempting" => Self::Preempting,
            "DeadlineExceeded" => Self::DeadlineExceeded,
            "NodeLost" => Self::NodeLost,
            "NodeShutdown" => Self::NodeShutdown,
            "Terminated" => Self::Terminated,
            _ => Self::PodEnded,
        }
    }

    /// Whether the pod as a whole is at its end, or not fit for any job.
    pub fn is_of_pod(self) -> bool {
        matches!(
            self,
            Self::PodDeleted
                | Self::PodEnded
                | Self::PodLost
                | Self::PodUnfit
                | Self::Evicted
                | Self::Preempting
                | Self::DeadlineExceeded
                | Self::NodeLost
                | Self::NodeShutdown
                | Self::Terminated
        )
    }

    /// Whether a failure that may be the slot's ([`Reason::is_of_slot`]) can also be brought about by an image or a job
    /// alone.
    pub fn may_be_of_image(self) -> bool {
        !matches!(self, Self::KillFailed | Self::StagingError | Self::StateLost | Self::Unkillable)
    }

    /// Whether the fault lies in the slot or its node, and meets the next job as well.
    pub fn is_of_slot(self) -> bool {
        matches!(
            self,
            Self::EngineError
                | Self::GlueSilent
                | Self::KillFailed
                | Self::PrivilegeError
                | Self::ResourceShortage
                | Self::StagingError
                | Self::StartError
                | Self::StartupRefused
                | Self::StateLost
                | Self::Unkillable
                | Self::VersionMismatch
                | Self::VolumeFull
                | Self::VolumeHeld
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Longest message of a failure or a report, bytes.
pub const MESSAGE_MAX: usize = 4 << 10;

/// Why something could not be done, in a form that a pilot can act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it means to the pilot.
    pub class: Class,
    /// Why, in one word.
    pub reason: Reason,
    /// Why, for people, with the engine's error message.
    pub message: String,
}

impl Failure {
    /// A job that has not run, and is not wanted any more for this reason.
    pub fn not_started(why: &str) -> Self {
        Self::retry(Reason::Cancelled, format!("{why}, before it had started"))
    }

    /// A failure of this class, which has to be one of the reason's. A message is as long as an engine makes it: what
    /// is beyond [`MESSAGE_MAX`] is cut off.
    pub fn new(class: Class, reason: Reason, message: impl Into<String>) -> Self {
        debug_assert!(reason.may_be(class), "{reason} is never {}", class.name());
        let mut message = message.into();
        cut(&mut message, MESSAGE_MAX);
        Self { class, reason, message }
    }

    /// A failure that goes away by trying again.
    pub fn retry(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Class::Retry, reason, message)
    }

    /// A failure that stays until the user changes something.
    pub fn hold(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Class::Hold, reason, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn a_reason_is_serialised_as_its_name_and_an_unknown_one_is_read() {
        for reason in Reason::ALL {
            let text = serde_json::to_string(reason).unwrap();
            assert_eq!(text, format!("\"{reason}\""));
            assert_eq!(serde_json::from_str::<Reason>(&text).unwrap(), *reason);
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        }
        assert_eq!(serde_json::from_str::<Reason>("\"OfAnotherVersion\"").unwrap(), Reason::Unknown);
        assert_eq!(Reason::parse("OfAnotherVersion"), None);
    }

    #[test]
    fn a_message_has_an_end() {
        let long = Failure::retry(Reason::EngineError, "\u{20ac}".repeat(MESSAGE_MAX * 2)).message;
        assert!(long.len() <= MESSAGE_MAX && long.ends_with("..."));
        assert_eq!(Failure::retry(Reason::EngineError, "short").message, "short");
    }

    #[test]
    fn only_known_words_of_a_cluster_are_reasons() {
        assert_eq!(Reason::of_pod_status("Evicted"), Reason::Evicted);
        for word in ["", "Completed", "OutOfMemory", "Evicted\x1b[2J", "OutOfcpu"] {
            assert_eq!(Reason::of_pod_status(word), Reason::PodEnded, "{word}");
        }
        let of_pod = Reason::ALL.iter().filter(|r| r.is_of_pod());
        assert!(of_pod.clone().all(|r| r.class() == Class::Retry) && of_pod.count() == 10);
    }

    /// The rows of the tables below a heading: the words in backquotes of one column, with those of another.
    fn table(text: &str, heading: &str, words: usize, classes: usize) -> BTreeMap<String, BTreeSet<String>> {
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let section = text.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
        for row in section.lines().filter(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            for word in cells[words].split('`').skip(1).step_by(2) {
                found.entry(word.to_owned()).or_default().insert(cells[classes].to_owned());
            }
        }
        found
    }

    #[test]
    fn the_protocols_table_and_the_reasons_are_the_same() {
        let documented = table(include_str!("../../docs/protocol.md"), "\n## What an ending means\n", 2, 3);
        let ours: BTreeMap<String, BTreeSet<String>> = Reason::ALL
            .iter()
            .map(|r| (r.to_string(), r.classes().iter().map(|class| class.name().to_owned()).collect()))
            .collect();
        assert_eq!(documented, ours);
    }

    #[test]
    fn operators_find_each_reason_in_their_table() {
        let documented = table(include_str!("../../docs/operations.md"), "\n## What fails, and what to do\n", 2, 2);
        let results = [Reason::Completed, Reason::Error, Reason::Signaled];
        let ours = Reason::ALL.iter().filter(|reason| !results.contains(reason));
        let missing: Vec<&Reason> = ours.filter(|reason| !documented.contains_key(reason.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
