//! One job: what is asked for, how far it is, and what came of it.

pub mod attach;
mod binds;
pub mod board;
pub mod bounds;
pub mod cgroup;
pub mod class;
mod clock;
pub mod collect;
pub mod control;
pub mod disk;
pub mod download;
pub mod input;
pub mod life;
pub mod limits;
pub mod matches;
pub mod monitor;
pub mod relay;
mod request;
mod requests;
pub mod stage;
pub mod start;
pub mod steer;
pub mod usage;

pub use self::binds::{Bind, PayloadHas};
pub use self::clock::{now, rfc3339, seconds_of, uptime};
pub use self::input::Input;
pub use self::request::{EnvSource, Request, is_id, plain_path, unique_names};
pub(crate) use self::request::{ten, yes};
pub use self::requests::{Fit, Requests, SlotSize};

use latebind_contract::encoding::{Bytes32, Key};
use latebind_contract::record::Record;
use latebind_contract::verify::Refusal;
use serde::{Deserialize, Serialize};

use crate::bind::{Class, Container, Reason};

/// How far a job is. Each step is written down before it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waits for a slot.
    Queued,
    /// The slot is cleaned and filled.
    Staging,
    /// The image is being bound.
    Binding,
    /// The old container is gone, the new one's image is being fetched. Shown, not kept: a restarted watcher binds
    /// again.
    Pulling,
    /// The startup file is being handed over.
    Starting,
    /// Handed over; waiting for the record.
    Running,
    /// The record is in hand; outputs are fetched.
    Collecting,
    /// The slot is cleaned.
    Cleaning,
    /// Over; the report is ready.
    Done,
}

impl Phase {
    /// As reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Staging => "staging",
            Self::Binding => "binding",
            Self::Pulling => "pulling",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Collecting => "collecting",
            Self::Cleaning => "cleaning",
            Self::Done => "done",
        }
    }
}

/// A container whose glue has been proven.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The container.
    pub container: Container,
    /// Its glue's incarnation.
    pub incarnation: String,
    /// Its glue's process ID.
    pub pid: i32,
    /// The slot's kill UID, as its glue says.
    pub kill_uid: u32,
    /// The cgroups of its processes.
    pub cgroup: String,
}

/// What proves the record of one start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// Name of the job, as in the startup file.
    pub job: String,
    /// Signs the record.
    pub key: Key,
    /// Comes back in the record.
    pub nonce: Bytes32,
    /// The glue it was meant for.
    pub incarnation: String,
    /// SHA-256 of the startup file, lower-case hex.
    pub startup_sha256: String,
}

/// Seconds that each phase took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    /// Waiting for a slot.
    pub queued: f64,
    /// Cleaning the slot, and filling it, which goes on while the image is bound.
    pub stage: f64,
    /// Changing the image, up to the mount proof; pulling included.
    pub bind: f64,
    /// Of that, waiting for the image to be fetched.
    #[serde(default)]
    pub pull: f64,
    /// Handing the job over, up to the notification.
    pub start: f64,
    /// From the notification to the record.
    pub run: f64,
    /// Verifying and fetching.
    pub collect: f64,
    /// Cleaning the slot.
    pub clean: f64,
}

impl Durations {
    /// Each with its name, in their order.
    pub fn by_name(&self) -> [(&'static str, f64); 8] {
        [
            ("queued", self.queued),
            ("stage", self.stage),
            ("bind", self.bind),
            ("pull", self.pull),
            ("start", self.start),
            ("run", self.run),
            ("collect", self.collect),
            ("clean", self.clean),
        ]
    }
}

/// What came of a job: exactly one for each attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this form, 1.
    pub version: u32,
    /// The job.
    pub job: String,
    /// Which attempt.
    pub attempt: u32,
    /// The pilot that ran it; empty where a client of the watcher asked for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pilot: String,
    /// The slot it had.
    pub slot: Option<u32>,
    /// The image that was asked for.
    pub image: String,
    /// Where it ran.
    pub container: Option<Container>,
    /// What it means to the pilot.
    pub class: Class,
    /// Why it ended, in one word.
    pub reason: Reason,
    /// The whole story in words.
    pub message: String,
    /// The job's exit code, from a verified record only.
    pub exit_code: Option<i32>,
    /// The signal that ended the job, from a verified record only.
    pub signal: Option<i32>,
    /// Whether there is a record and it is true.
    pub verified: bool,
    /// Why the record was refused, if one was expected.
    pub refusal: Option<Refusal>,
    /// The record's payload, verified.
    pub record: Option<Record>,
    /// How long each phase took.
    pub durations: Durations,
    /// From the notification to the job's exec, milliseconds.
    pub start_latency_ms: Option<f64>,
    /// Whether the container of an earlier job was used again.
    pub reused_container: bool,
    /// Outputs that were collected.
    pub outputs: Vec<String>,
    /// Outputs that were asked for and not collected, each with the reason.
    pub missing_outputs: Vec<String>,
    /// How many more there were than are named.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_left_out: u64,
    /// When it was over, RFC 3339 UTC.
    pub finished_at: String,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<usage::Summary>,
    /// What its container's cgroup has counted, where it can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<cgroup::Counted>,
    /// What it was allowed to use.
    #[serde(default)]
    pub limits: limits::Limits,
    /// The limit that it crossed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<limits::Crossed>,
    /// When each phase began, in their order; a phase that an earlier watcher was in shows again.
    #[serde(default)]
    pub phases: Vec<Began>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The beginning of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Began {
    /// The phase.
    pub phase: Phase,
    /// Seconds since the epoch.
    pub at: f64,
}

impl Report {
    /// A report about a job of which nothing is known yet.
    pub fn new(request: &Request) -> Self {
        Self {
            version: 1,
            job: request.id.clone(),
            attempt: request.attempt,
            pilot: String::new(),
            slot: None,
            image: request.image.clone(),
            container: None,
            class: Class::Retry,
            reason: Reason::Unknown,
            message: String::new(),
            exit_code: None,
            signal: None,
            verified: false,
            refusal: None,
            record: None,
            durations: Durations::default(),
            start_latency_ms: None,
            reused_container: false,
            outputs: Vec::new(),
            missing_outputs: Vec::new(),
            missing_left_out: 0,
            finished_at: String::new(),
            usage: None,
            cgroup: None,
            limits: limits::Limits::default(),
            limit: None,
            phases: Vec::new(),
        }
    }
}

/// A job's whole state, as it is kept in the private volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// What was asked for.
    pub request: Request,
    /// How far it is.
    pub phase: Phase,
    /// Since when, seconds since the epoch.
    pub since: f64,
    /// The same by the clock that never jumps: see [`uptime`].
    #[serde(default)]
    pub since_up: f64,
    /// The slot that it has.
    pub slot: Option<u32>,
    /// How many binds were begun for it.
    #[serde(default)]
    pub binds: u32,
    /// Where it runs.
    pub bound: Option<Bound>,
    /// What proves its record.
    pub secrets: Option<Secrets>,
    /// When glue was notified, seconds since the epoch.
    pub notified_at: Option<f64>,
    /// The memory limit of its container, which a restarted watcher cannot read any more.
    #[serde(default)]
    pub memory_size: Option<u64>,
    /// What its container's cgroup had counted before it was handed over.
    #[serde(default)]
    pub counted_before: Option<cgroup::Counted>,
    /// The record as it was read, once it is verified.
    pub record_jws: Option<String>,
    /// Whether a client asked for its end.
    pub cancelled: Option<String>,
    /// What is known so far.
    pub report: Report,
}

impl State {
    /// A job that was just handed over.
    pub fn new(request: Request) -> Self {
        let report = Report::new(&request);
        Self {
            request,
            phase: Phase::Queued,
            since: now(),
            since_up: uptime(),
            slot: None,
            binds: 0,
            bound: None,
            secrets: None,
            notified_at: None,
            memory_size: None,
            counted_before: None,
            record_jws: None,
            cancelled: None,
            report,
        }
    }
}
