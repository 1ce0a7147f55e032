//! The startup file, and its first line: what glue does as root for a job, and every check that needs nothing but that.
//!
//! The second line is the [job's part](super::command): bytes that root hashes and hands to stage two, unread.

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
/// How long a start may take, from stage one to the exec of the job's program: the files that it opens may be on a file
/// system that does not answer, and an image may be fetched as it is read.
pub const START_WITHIN: Duration = Duration::from_secs(60);
/// Bound on the final clean-up where the file sets none, in seconds.
pub const KILL_DEFAULT: f64 = 10.0;

/// Most that a refusal says of what is wrong in a line, in characters.
const WHY_MAX: usize = 400;

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
pub(crate) fn invalid(field: &'static str, message: &str) -> Result<(), Invalid> {
    Err(Invalid { field, message: message.to_owned() })
}

/// Reads the first line of a startup file, and finds the second. The message names line and column, never the text
/// around them: that could be the key. Of a value of another type it has the beginning.
pub fn parse(file: &[u8]) -> Result<(Order, &[u8]), Invalid> {
    let refused = |message| Err(Invalid { field: layout::STARTUP, message });
    let mut lines = file.splitn(2, |byte| *byte == b'\n');
    let (Some(first), Some(command)) = (lines.next(), lines.next()) else {
        return refused(String::from("has no second line, which is the job's part"));
    };
    if !first.starts_with(b"{") {
        return refused(String::from("its first line is not a JSON object"));
    }
    let order: Order = match serde_json::from_slice(first) {
        Ok(order) => order,
        Err(e) => {
            let text = e.to_string();
            let why = text.rsplit_once(" at line ").map_or(text.as_str(), |(why, _)| why);
            return refused(format!(
                "not an order of version {}: column {}: {}",
                super::VERSION,
                e.column(),
                ascii(why, WHY_MAX)
            ));
        }
    };
    if order.version != super::VERSION {
        let message = format!("is {}; this glue understands {}", order.version, super::VERSION);
        return Err(Invalid { field: "version", message });
    }
    Ok((order, command))
}

/// Whether `name` is 1 to 128 printable ASCII characters, as a job's name has to be.
pub fn is_job_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| (b' '..=b'~').contains(&b))
}

impl Order {
    /// Checks everything that needs only the order, the slot's numbers and the running incarnation.
    pub fn check(&self, ids: Ids, incarnation: &str) -> Result<(), Invalid> {
        self.check_identity(ids, incarnation)?;
        self.check_files()?;
        check_times(self.timeout_s, self.grace_s, self.kill_s)
    }

    fn check_identity(&self, ids: Ids, incarnation: &str) -> Result<(), Invalid> {
        if !is_job_name(&self.job) {
            return invalid("job", "must be 1 to 128 printable ASCII characters");
        }
        if self.incarnation != incarnation {
            return invalid("incarnation", "is meant for another glue than this one: read status.json again");
        }
        for (field, has, owner, what) in [("uid", self.uid, ids.uid, "owner"), ("gid", self.gid, ids.gid, "group")] {
            if has == 0 || has == u32::MAX {
                return invalid(field, &format!("is {has}, which is or stays root"));
            }
            if has == ids.kill_uid {
                return invalid(field, &format!("is {has}, the slot's kill UID, which no payload may have"));
            }
            if has != owner {
                return invalid(field, &format!("is {has}, but the {what} of work/ is {owner}"));
            }
        }
        if self.groups.len() > 64 {
            return invalid("groups", "has more than 64 entries");
        }
        if self.groups.iter().any(|g| *g == 0 || *g == u32::MAX || *g == ids.kill_uid) {
            return invalid("groups", "has 0, 4294967295 or the slot's kill UID, which no payload may have");
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), Invalid> {
        if self.env_files.len() > layout::ENV_FILES_MAX {
            return invalid("env_files", &format!("has more than {} entries", layout::ENV_FILES_MAX));
        }
        for name in &self.env_files {
            if !name.starts_with(layout::ENV_PREFIX)
                || !layout::is_component(name)
                || name.ends_with(layout::TEMPORARY_SUFFIX)
            {
                return invalid("env_files", "a name must start with \"env.\", have no slash and not end in \".tmp\"");
            }
        }
        // Fields of passwd(5).
        if !is_account(&self.account) {
            return invalid(
                "account",
                "must be 1 to 32 letters, digits, '.', '_' or '-', not beginning with '-' or '.'",
            );
        }
        if self.home.as_ref().is_some_and(|home| !is_home(home)) {
            return invalid("home", "must be an absolute path below 4096 bytes, without ':' and control characters");
        }
        let mut paths: Vec<&str> = self.links.iter().map(|(path, _)| path.as_str()).collect();
        paths.sort_unstable();
        if paths.windows(2).any(|two| two.first() == two.last()) {
            return invalid("links", "a path appears twice");
        }
        for (path, target) in &self.links {
            let beneath = path.strip_prefix('/').is_some_and(layout::is_beneath);
            if !beneath || path == layout::SHARED || path.starts_with("/shared/") {
                return invalid("links", "a path must be absolute, without . or .., and not below /shared");
            }
            if target.is_empty() || target.contains('\0') || target.len() >= 4096 {
                return invalid("links", "a target is empty, has a NUL byte, or is longer than a path can be");
            }
        }
        Ok(())
    }
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
