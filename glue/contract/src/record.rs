//! The exit record: a JSON Web Signature (RFC 7515) in compact form, HS256, signed with the key of the startup file.
//!
//! HS256 is a MAC: the record is evidence for whoever made the key, and whoever holds the key can forge it.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::encoding::{Bytes32, Key, base64url};

/// The `typ` of a record's header.
pub const TYPE: &str = "latebind-record+jws";
/// The only algorithm that is accepted.
pub const ALGORITHM: &str = "HS256";

/// How many numbers the report of a failed start has; what they mean depends on what is reported ([`super::report`]).
pub const NUMBERS: usize = 5;

/// Protected header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Always `HS256`.
    pub alg: String,
    /// Always `latebind-record+jws`.
    pub typ: String,
    /// The job's name, to find the key by.
    pub kid: String,
}

/// How a job came to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The main process exited by itself.
    Exited,
    /// A signal ended the main process.
    Signaled,
    /// The wall limit of the startup file passed.
    TimedOut,
    /// Glue was told to stop while the job ran.
    Stopped,
    /// The job's program never ran.
    #[default]
    NotStarted,
}

/// Where a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Checking the startup file, links, accounts, or making the process.
    Startup,
    /// Environment files, limits, umask, working directory.
    Environment,
    /// Dropping privileges, or reading back that they are gone.
    Privileges,
    /// Opening the standard streams.
    Stdio,
    /// Finding and executing the program.
    Exec,
}

/// Why a job was not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Where it failed.
    pub stage: Stage,
    /// Error number of Linux, 0 where none applies.
    pub errno: i32,
    /// What, where, and what to do, in glue's words; empty where one of the start's processes reported the failure.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// PATH of the container, for a program that could not be executed. It is the image's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What one of the start's processes reported: the kind and its numbers ([`super::report`]). They have the
    /// payload's UID, so nothing that they say is text; [`super::words`] has the words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<(u8, [u32; NUMBERS])>,
}

/// Resources that processes used, as wait4(2) reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// CPU time in user mode, seconds.
    pub user_s: f64,
    /// CPU time in the kernel, seconds.
    pub system_s: f64,
    /// Largest resident set of any one process, KiB.
    pub max_rss_kib: u64,
    /// Blocks of 512 bytes read from storage.
    pub read_blocks: u64,
    /// Blocks of 512 bytes written to storage.
    pub written_blocks: u64,
    /// Page faults that needed storage.
    pub major_faults: u64,
}

/// Usage of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// The main process and the children that it waited for.
    pub main: Used,
    /// All that glue reaped. A lower bound: a parent that ignores SIGCHLD hides its children.
    pub tree: Used,
}

/// What became of the job's processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// Processes that glue reaped, the main process included.
    pub reaped: u64,
    /// Processes that outlived the main process and were killed.
    pub left_over_killed: u64,
    /// Processes that could not be ended within `kill_s`.
    pub unkilled: u64,
}

/// Which glue wrote the record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlueIdentity {
    /// Its version.
    pub version: String,
    /// SHA-256 of the running binary, lower-case hex.
    pub sha256: String,
}

/// The signed payload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Contract version, 2.
    pub version: u32,
    /// The job that this is the record of.
    pub job: String,
    /// The nonce of its startup file.
    pub nonce: Bytes32,
    /// The glue instance that ran it.
    pub incarnation: String,
    /// SHA-256 of its startup file, lower-case hex.
    pub startup_sha256: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Exit code of the main process, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended the main process, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel reported a core dump.
    pub core_dumped: bool,
    /// Why it was not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// When the program ran, RFC 3339 UTC; absent where it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When the main process was reaped, or the start given up, RFC 3339 UTC.
    pub ended_at: String,
    /// Seconds between the two, by the monotonic clock.
    pub wall_s: f64,
    /// Resources used.
    pub usage: Usage,
    /// What became of the processes.
    pub processes: Processes,
    /// Whether the jobs of this glue run under its filter of system calls; absent where a glue had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<bool>,
    /// Things that were asked for and could not be done, though the job ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Which glue wrote this.
    pub glue: GlueIdentity,
}

/// HMAC-SHA-256 (RFC 2104) of `text`.
pub(crate) fn mac(key: &Key, text: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.bytes()).ok()?;
    mac.update(text);
    Some(mac)
}

/// The record as a compact JWS, signed with `key`. `None` where it cannot be written as JSON, which no record is.
pub fn sign(record: &Record, key: &Key) -> Option<String> {
    let header = Header { alg: ALGORITHM.into(), typ: TYPE.into(), kid: record.job.clone() };
    let mut text = base64url(&serde_json::to_vec(&header).ok()?);
    text.push('.');
    text.push_str(&base64url(&serde_json::to_vec(record).ok()?));
    let signature = mac(key, text.as_bytes())?.finalize().into_bytes();
    text.push('.');
    text.push_str(&base64url(&signature));
    Some(text)
}
