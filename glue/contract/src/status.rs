//! `status.json`: what glue is doing, written by root into a directory that only root can enter.

use serde::{Deserialize, Serialize};

use super::encoding::Bytes32;

/// What glue is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Waits for its first startup file.
    #[default]
    Ready,
    /// A job is claimed: it starts, runs, or is being ended.
    Running,
    /// The last job's record is written; waits for the next startup file.
    Done,
}

/// A startup file of which there is no record: it had no usable key, was meant for another glue, or no process could be
/// made for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// SHA-256 of the file as it was read, lower-case hex; empty where it could not be read.
    pub startup_sha256: String,
    /// Error number for which no process could be made for its job; 0 where the file itself is refused.
    #[serde(default)]
    pub errno: i32,
    /// What is wrong.
    pub message: String,
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Contract versions that this glue understands.
    pub contract: Vec<u32>,
    /// What glue is doing.
    pub phase: Phase,
    /// This life of glue: 32 hexadecimal digits that it made at its start.
    pub incarnation: String,
    /// Glue's process ID in the PID namespace of the pod.
    pub pid: i32,
    /// Glue's version.
    pub glue: String,
    /// The slot's payload UID, from the owner of `work/`.
    pub uid: u32,
    /// The slot's payload GID, from the owner of `work/`.
    pub gid: u32,
    /// The slot's kill UID.
    pub kill_uid: u32,
    /// Name of the job that runs or ran last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Nonce of the startup file that was claimed last. It is put before that file is removed, so that at each moment
    /// one of the two says that the job was handed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Bytes32>,
    /// Process ID of the job's main process, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main_pid: Option<i32>,
    /// The last startup file that was refused without a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// Lines of glue's own log that could not be written, so far.
    pub log_lines_dropped: u64,
}
