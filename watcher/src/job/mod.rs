//! One job: what is asked for, how far it is, and what came of it.

pub mod cgroup;
pub mod class;
pub mod collect;
pub mod control;
pub mod disk;
pub mod life;
pub mod limits;
pub mod monitor;
pub mod relay;
pub mod stage;
pub mod start;
pub mod steer;
pub mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;

use glue::contract::encoding::Bytes32;
use glue::contract::layout;
use glue::contract::record::{Record, Refusal};
use glue::contract::startup::{EnvFormat, EnvMode, Object, Rlimit};
use serde::{Deserialize, Serialize};

use crate::bind::{Class, Container};

/// Longest name of a job.
const ID_MAX: usize = 128;

/// Longest name of an image: 255 bytes of name, 128 of tag and a digest are the most that means anything.
const IMAGE_MAX: usize = 1024;

/// What a client asks for. Paths are those of the pilot container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Name of this start of the job, unique within the pilot: letters, digits, `.`, `_`, `-`. Submitting a name again
    /// attaches to the job that has it.
    pub id: String,
    /// The image to run in.
    pub image: String,
    /// Program and arguments; no shell in between.
    pub argv: Vec<String>,
    /// Whose job it is; for `--reuse same-owner`.
    #[serde(default)]
    pub owner: String,
    /// Which attempt this is, from 1.
    #[serde(default = "one")]
    pub attempt: u32,
    /// Variables, applied last.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where the environment starts from.
    #[serde(default)]
    pub env_mode: EnvMode,
    /// Environment files, applied in order.
    #[serde(default)]
    pub env_files: Vec<EnvSource>,
    /// Working directory; `work/` where none is given.
    #[serde(default)]
    pub cwd: Option<String>,
    /// File mode creation mask, octal.
    #[serde(default)]
    pub umask: Option<String>,
    /// Resource limits.
    #[serde(default)]
    pub rlimits: Object<Rlimit>,
    /// Symbolic links to make in the image's root: path to target.
    #[serde(default)]
    pub links: Object<String>,
    /// Whether to add an account line for the payload's UID to the image's passwd and group.
    #[serde(default)]
    pub passwd: bool,
    /// Wall limit in seconds; 0 for none.
    #[serde(default)]
    pub timeout_s: f64,
    /// How much it may use.
    #[serde(default)]
    pub limits: limits::Limits,
    /// Seconds between soft and hard kill.
    #[serde(default = "ten")]
    pub grace_s: f64,
    /// Bound on the final clean-up, seconds.
    #[serde(default = "ten")]
    pub kill_s: f64,
    /// A directory whose content is copied into `work/`.
    #[serde(default)]
    pub inputs: Option<PathBuf>,
    /// A file for standard input.
    #[serde(default)]
    pub stdin: Option<PathBuf>,
    /// Whether the client's own descriptors 0 to 2 are relayed; else output goes to files that are collected.
    #[serde(default)]
    pub relay: bool,
    /// A directory beneath the slot's `data/` that the client has made, of the payload's, and looks after itself: nothing is
    /// staged there, collected or removed. The job starts in it instead of in `work/`.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// The slot that it has to have; any where none is given.
    #[serde(default)]
    pub slot: Option<u32>,
    /// Whether the job ends with its client's connection. The core sets it.
    #[serde(default)]
    pub tied: bool,
    /// A directory for the results; made if need be.
    #[serde(default)]
    pub results: Option<PathBuf>,
    /// Files and directories beneath `work/` that are collected into the results.
    #[serde(default)]
    pub outputs: Vec<String>,
}

/// An environment file in the pilot container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvSource {
    /// Its path.
    pub path: PathBuf,
    /// How it is written.
    pub format: EnvFormat,
}

const fn one() -> u32 {
    1
}

const fn ten() -> f64 {
    10.0
}

impl Request {
    /// Checks what can be checked before the job has a slot; glue checks the rest.
    pub fn check(&self) -> Result<(), String> {
        if !is_id(&self.id) {
            return Err(format!(
                "job name {:?}: use 1 to {ID_MAX} letters, digits, '.', '_' or '-', not starting with '.'",
                glue::contract::startup::printable(&self.id)
            ));
        }
        if self.image.is_empty() {
            return Err("no image is given".into());
        }
        // What else is wrong with a name, the engine says. This would reach terminals, or fill the pod's own object.
        if self.image.len() > IMAGE_MAX || self.image.contains(char::is_control) {
            return Err(format!("the image's name has control characters or more than {IMAGE_MAX} bytes"));
        }
        if self.argv.first().is_none_or(String::is_empty) {
            return Err("no program is given: an image's own ENTRYPOINT is not known here, so argv is required".into());
        }
        if let Some(bad) = self.outputs.iter().find(|o| !layout::is_beneath(o)) {
            return Err(format!("output {bad:?}: must be a path beneath work/, without . or .."));
        }
        if let Some(sandbox) = &self.sandbox {
            let first = sandbox.split('/').next().unwrap_or_default();
            if !layout::is_beneath(sandbox) || [layout::WORK, stage::IO].contains(&first) {
                return Err(format!("sandbox {sandbox:?}: must be a directory of the client's beneath data/"));
            }
            if self.inputs.is_some() || !self.outputs.is_empty() {
                return Err("a job in its client's own sandbox has no inputs and outputs to be copied".into());
            }
        }
        self.limits.check()
    }

    /// What a client that is not root may not ask for: the core, which is root, would read and write files for it.
    pub fn check_unprivileged(&self) -> Result<(), String> {
        let paths = [
            ("inputs", self.inputs.is_some()),
            ("stdin", self.stdin.is_some()),
            ("results", self.results.is_some()),
            ("env_files", !self.env_files.is_empty()),
            ("outputs", !self.outputs.is_empty()),
            // It would decide who gets a container that was used before.
            ("owner", !self.owner.is_empty()),
        ];
        match paths.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(format!("{field}: only root may give this; pass descriptors and use a sandbox")),
            None if !self.relay => Err("relay has to be true: nobody would fetch the output".into()),
            None => Ok(()),
        }
    }
}

/// Whether `id` can name a job, and a file.
pub fn is_id(id: &str) -> bool {
    (1..=ID_MAX).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

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
    /// The old container is gone, the new one's image is being fetched. Shown, not kept: a restarted watcher binds again.
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
    pub key: Bytes32,
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
    /// Handing the job over, up to the ring.
    pub start: f64,
    /// From the ring to the record.
    pub run: f64,
    /// Verifying and fetching.
    pub collect: f64,
    /// Cleaning the slot.
    pub clean: f64,
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
    /// The slot it had.
    pub slot: Option<u32>,
    /// The image that was asked for.
    pub image: String,
    /// Where it ran.
    pub container: Option<Container>,
    /// What it means to the pilot.
    pub class: Class,
    /// One CamelCase word on why it ended: `Completed`, `Error`, `TimedOut`, or what went wrong.
    pub reason: String,
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
    /// From the bell to the job's exec, milliseconds.
    pub start_latency_ms: Option<f64>,
    /// Whether the container of an earlier job was used again.
    pub reused_container: bool,
    /// Outputs that were collected.
    pub outputs: Vec<String>,
    /// Outputs that were asked for and not collected, each with the reason.
    pub missing_outputs: Vec<String>,
    /// When it was over, RFC 3339 UTC.
    pub finished_at: String,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<usage::Summary>,
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
            slot: None,
            image: request.image.clone(),
            container: None,
            class: Class::Retry,
            reason: "Unknown".into(),
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
            finished_at: String::new(),
            usage: None,
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
    /// When the bell was rung, seconds since the epoch.
    pub rung_at: Option<f64>,
    /// The memory limit of its container, which a restarted watcher can not read any more.
    #[serde(default)]
    pub memory_size: Option<u64>,
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
            rung_at: None,
            memory_size: None,
            record_jws: None,
            cancelled: None,
            report,
        }
    }
}

/// Seconds since the machine was started, by a clock that nobody sets: the same for each life of a watcher on it.
pub fn uptime() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    time.map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9)
}

/// Seconds since the epoch, to be shown: this clock may jump.
pub fn now() -> f64 {
    glue::contract::time::wall().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A time as RFC 3339 in UTC.
pub fn rfc3339(seconds: f64) -> String {
    glue::contract::time::rfc3339(seconds.floor() as i64, (seconds.fract().max(0.0) * 1e9) as u32)
}

/// Seconds since the epoch of an RFC 3339 text as glue writes it.
pub fn seconds_of(text: &str) -> Option<f64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|n| n.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':').map(|n| n.parse::<f64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    // Days since the epoch, counting years from March so that the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
            - 1
            - 719_468;
    Some(days as f64 * 86_400.0 + hour * 3_600.0 + minute * 60.0 + second)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::{Request, is_id, seconds_of};

    fn request(field: &str, value: serde_json::Value) -> Request {
        let mut job = serde_json::json!({"id": "a", "image": "i", "argv": ["x"], "relay": true});
        job[field] = value;
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn who_is_not_root_gets_no_file_read_or_written_by_root() {
        assert_eq!(request("sandbox", "execute/dir_1".into()).check_unprivileged(), Ok(()));
        for (field, value) in [
            ("inputs", "/etc".into()),
            ("stdin", "/etc/shadow".into()),
            ("results", "/root".into()),
            ("env_files", serde_json::json!([{"path": "/etc/shadow", "format": "sh"}])),
            ("outputs", serde_json::json!(["x"])),
            ("owner", "another".into()),
            ("relay", false.into()),
        ] {
            assert!(request(field, value).check_unprivileged().is_err(), "{field}");
        }
    }

    #[test]
    fn a_sandbox_is_the_clients_own_place_beneath_data() {
        assert_eq!(request("sandbox", "execute/dir_1".into()).check(), Ok(()));
        for bad in ["", "/etc", "..", "a/../b", "work", "work/x", "io", "a//b"] {
            assert!(request("sandbox", bad.into()).check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names() {
        assert!(is_id("a") && is_id("job-1.2_x") && is_id(&"a".repeat(128)));
        assert!(
            !is_id("") && !is_id(".a") && !is_id("a/b") && !is_id("a b") && !is_id("ä") && !is_id(&"a".repeat(129))
        );
    }

    #[test]
    fn image_names_that_would_do_harm_are_refused() {
        let with = |image: &str| {
            let job = serde_json::json!({"id": "a", "image": image, "argv": ["x"]});
            serde_json::from_value::<Request>(job).unwrap().check()
        };
        assert!(with("busybox:1").is_ok() && with("NOT a name").is_ok(), "the engine says what is wrong with it");
        assert!(with("a\u{1b}[2J").is_err() && with(&"a".repeat(1025)).is_err() && with("").is_err());
    }

    #[test]
    fn times_are_read_back() {
        for seconds in [0i64, 951_782_400, 1_709_251_199, 4_102_444_800, 1_795_000_000] {
            let text = glue::contract::time::rfc3339(seconds, 250_000_000);
            assert_eq!(seconds_of(&text), Some(seconds as f64 + 0.25), "{text}");
        }
        assert_eq!(seconds_of("yesterday"), None);
    }
}
