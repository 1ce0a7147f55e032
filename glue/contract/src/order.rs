//! The startup file, and its first line: what glue does as root for a job, and every check that needs nothing but that.
//!
//! The second line is the [job's part](super::command): bytes that root hashes and hands to stage two, unread.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::encoding::{Bytes32, Key, ascii};
use super::layout::{self, Ids};

/// Longest wall limit, in seconds: ten years.
pub const TIMEOUT_MAX: f64 = 315_360_000.0;
/// Longest grace period between the soft and the hard kill, in seconds: one day.
pub const GRACE_MAX: f64 = 86_400.0;
/// Longest bound on the final clean-up, in seconds.
pub const KILL_MAX: f64 = 600.0;
/// How long a start may take, from the supervisor to the exec of the job's program: the files that it opens may be on
/// a file system that does not answer, and an image may be fetched as it is read.
pub const START_WITHIN: Duration = Duration::from_secs(60);
/// Bound on the final clean-up where the file sets none, in seconds.
pub const KILL_DEFAULT: f64 = 10.0;

/// Most that a refusal says of what is wrong in a line, in characters.
const WHY_MAX: usize = 400;
/// What serde_json puts between an error and its place, which counts lines from the order alone.
const AT: &[u8] = b" at line ";

/// What root does for one job. Unknown and repeated fields are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Contract version, 2.
    pub version: u32,
    /// The pilot's name for the job: 1 to 128 printable ASCII characters.
    pub job: String,
    /// Fresh for each start; comes back in the record.
    pub nonce: Bytes32,
    /// Signs the record; fresh for each start.
    pub key: Key,
    /// The glue instance this is meant for.
    pub incarnation: String,
    /// Payload UID; must equal the owner of `work/`.
    pub uid: u32,
    /// Payload GID; must equal the group of `work/`.
    pub gid: u32,
    /// Supplementary groups, exactly these.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Names of environment files in `ctl/`, which stage two gets open, in this order.
    #[serde(default)]
    pub env_files: Vec<String>,
    /// Which of the standard streams are FIFOs in `ctl/`, named [`layout::STREAMS`].
    #[serde(default)]
    pub fifos: [bool; 3],
    /// Symbolic links that glue makes before the start: absolute path to target. What has such a path is moved aside
    /// until the job is over.
    #[serde(default)]
    pub links: Vec<(String, String)>,
    /// Whether glue adds a passwd and a group line for the payload UID.
    #[serde(default)]
    pub passwd: bool,
    /// The payload's name in those lines.
    #[serde(default = "account_default")]
    pub account: String,
    /// Its home directory there; `work/` where none is given.
    #[serde(default)]
    pub home: Option<String>,
    /// Who gets TERM when the job is to end.
    #[serde(default)]
    pub stop: Stop,
    /// Wall limit in seconds; 0 for none, as with timeout(1).
    #[serde(default)]
    pub timeout_s: f64,
    /// Seconds between the soft and the hard kill.
    #[serde(default)]
    pub grace_s: f64,
    /// Bound on the final clean-up, in seconds.
    #[serde(default = "kill_default")]
    pub kill_s: f64,
}

/// Which of a job's processes get TERM, before all that is left is killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// The main process.
    #[default]
    Main,
    /// The main process's group: what a shell without job control started is in it too.
    Group,
    /// All processes.
    All,
}

fn account_default() -> String {
    String::from(layout::ACCOUNT)
}

fn kill_default() -> f64 {
    KILL_DEFAULT
}

/// Why a startup file is refused: which field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The field, or the name of the file for the file as a whole.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl core::fmt::Display for Invalid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

#[cold]
#[inline(never)]
pub(crate) fn invalid<T>(field: &'static str, message: &str) -> Result<T, Invalid> {
    Err(Invalid { field, message: message.to_owned() })
}

/// Reads the first line of a startup file, and finds the second. The message names line and column, never the text
/// around them: that could be the key. Of a value of another type it has the beginning.
pub fn parse(file: &[u8]) -> Result<(Order, &[u8]), Invalid> {
    let mut lines = file.splitn(2, |byte| *byte == b'\n');
    let (Some(first), Some(command)) = (lines.next(), lines.next()) else {
        return invalid(layout::STARTUP, "has no second line, which is the job's part");
    };
    if !first.starts_with(b"{") {
        return invalid(layout::STARTUP, "its first line is not a JSON object");
    }
    match serde_json::from_slice::<Order>(first) {
        Ok(order) if order.version == super::VERSION => Ok((order, command)),
        Ok(Order { version, .. }) => {
            invalid("version", &format!("is {version}; this glue understands {}", super::VERSION))
        }
        Err(e) => {
            let (text, column) = (e.to_string(), e.column());
            let end = text.as_bytes().windows(AT.len()).rposition(|part| part == AT);
            let why = ascii(end.and_then(|end| text.get(..end)).unwrap_or(&text), WHY_MAX);
            invalid(layout::STARTUP, &format!("not an order of version {}: column {column}: {why}", super::VERSION))
        }
    }
}

/// Whether `name` is 1 to 128 printable ASCII characters, as a job's name has to be.
pub fn is_job_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| (b' '..=b'~').contains(&b))
}

impl Order {
    /// Checks everything that needs only the order, the slot's numbers and the running incarnation.
    pub fn check(&self, ids: Ids, incarnation: &str) -> Result<(), Invalid> {
        let can_be_payloads = |id: u32| ![0, u32::MAX, ids.kill_uid].contains(&id);
        let groups = self.groups.len() <= 64 && self.groups.iter().all(|id| can_be_payloads(*id));
        let names = self.env_files.len() <= layout::ENV_FILES_MAX && self.env_files.iter().all(|n| is_env_file(n));
        let paths: BTreeSet<&str> = self.links.iter().map(|(path, _)| path.as_str()).collect();
        let target = |target: &str| !target.is_empty() && target.len() < 4096 && !target.contains('\0');
        // Whether it holds, the field, and what it has to be. The first that does not hold is the answer.
        let demands = [
            (is_job_name(&self.job), "job", "must be 1 to 128 printable ASCII characters"),
            (self.incarnation == incarnation, "incarnation", "is not this glue's: read status.json again"),
            (
                can_be_payloads(self.uid) && self.uid == ids.uid,
                "uid",
                "must be the slot's: the owner of work/, not root",
            ),
            (
                can_be_payloads(self.gid) && self.gid == ids.gid,
                "gid",
                "must be the slot's: the group of work/, not root",
            ),
            (groups, "groups", "must be at most 64, without 0, 4294967295 and the slot's kill UID"),
            (names, "env_files", "must be at most 16 names \"env.*\" without a slash, none of them ending in \".tmp\""),
            (is_account(&self.account), "account", "must be 1 to 32 of a-z A-Z 0-9 . _ -, not beginning with - or ."),
            (self.home.as_deref().is_none_or(is_home), "home", "must be an absolute path without ':' and controls"),
            (paths.len() == self.links.len(), "links", "a path appears twice"),
            (
                paths.iter().all(|path| is_link(path)),
                "links",
                "a path is not absolute, has . or .., or is below /shared",
            ),
            (self.links.iter().all(|(_, to)| target(to)), "links", "a target is empty, too long, or has a NUL byte"),
        ];
        match demands.iter().find(|(holds, ..)| !holds) {
            Some((_, field, message)) => invalid(field, message),
            None => check_times(self.timeout_s, self.grace_s, self.kill_s),
        }
    }
}

/// Whether `name` can be an environment file's in `ctl/`.
pub fn is_env_file(name: &str) -> bool {
    layout::is_component(name) && name.starts_with(layout::ENV_PREFIX) && !name.ends_with(layout::TEMPORARY_SUFFIX)
}

/// Whether glue may make a link at `path`.
fn is_link(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(layout::is_beneath) && !layout::is_shared(path)
}

/// Whether `name` can be the payload's in passwd and group.
pub fn is_account(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=32).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with(['-', '.'])
}

/// Whether `path` can be the home directory in a passwd line.
pub fn is_home(path: &str) -> bool {
    path.starts_with('/') && path.len() < 4096 && !path.contains(|c: char| c == ':' || c.is_control())
}

/// Whether the fields of these names are lengths of time within their bounds, in seconds.
pub fn check_times(timeout_s: f64, grace_s: f64, kill_s: f64) -> Result<(), Invalid> {
    let times = [("timeout_s", timeout_s, TIMEOUT_MAX), ("grace_s", grace_s, GRACE_MAX), ("kill_s", kill_s, KILL_MAX)];
    for (field, value, most) in times {
        if !(0.0..=most).contains(&value) {
            return invalid(field, &format!("must be a number from 0 to {} seconds", most as u64));
        }
    }
    Ok(())
}
