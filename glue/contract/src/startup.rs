//! The startup file, version 1: what one job is, and every check that needs nothing but the file itself.

use std::time::Duration;

use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::encoding::{Bytes32, Key};
use super::layout::{self, Ids};
use super::object::{self, Fields};
use super::text::printable;

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

/// One job. Unknown and repeated fields are refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Startup {
    /// Contract version, 1.
    pub version: u32,
    /// The pilot's name for the job: 1 to 128 printable ASCII characters.
    pub job: String,
    /// Fresh for each start; comes back in the record.
    pub nonce: Bytes32,
    /// Signs the record; fresh for each start.
    pub key: Key,
    /// The glue instance this is meant for.
    pub incarnation: String,
    /// Program and arguments; no shell in between.
    pub argv: Vec<String>,
    /// Absolute path, entered after the drop; `null` for `work/`.
    pub cwd: Option<String>,
    /// Where the environment starts from.
    pub env_mode: EnvMode,
    /// Environment files in `ctl/`, applied in order.
    pub env_files: Vec<EnvFile>,
    /// Variables that are applied last.
    pub env: Object<String>,
    /// Payload UID; must equal the owner of `work/`.
    pub uid: u32,
    /// Payload GID; must equal the group of `work/`.
    pub gid: u32,
    /// Supplementary groups, exactly these.
    pub groups: Vec<u32>,
    /// File mode creation mask as octal text, such as `022`.
    pub umask: String,
    /// Standard input; `null` for `/dev/null`.
    pub stdin: Option<Stream>,
    /// Standard output; `null` for `/dev/null`.
    pub stdout: Option<Stream>,
    /// Standard error; `null` for `/dev/null`.
    pub stderr: Option<Stream>,
    /// Resource limits by their Linux names in lower case (`nofile`, `core`, ...).
    pub rlimits: Object<Rlimit>,
    /// Symbolic links that glue makes before the start: absolute path to target.
    pub links: Object<String>,
    /// Whether glue adds a passwd and a group line for the payload UID.
    pub passwd: bool,
    /// Wall limit in seconds; 0 for none, as with timeout(1).
    pub timeout_s: f64,
    /// Seconds between the soft and the hard kill.
    pub grace_s: f64,
    /// Bound on the final clean-up, in seconds.
    pub kill_s: f64,
}

impl Fields for Startup {
    const REQUIRED: &'static str = "version job nonce key incarnation argv uid gid";
    const OPTIONAL: &'static str = "cwd env_mode env_files env groups umask stdin stdout stderr rlimits links passwd timeout_s \
        grace_s kill_s";

    fn initial() -> Self {
        Self {
            version: 0,
            job: String::new(),
            nonce: Bytes32::new([0; 32]),
            key: Key::none(),
            incarnation: String::new(),
            argv: Vec::new(),
            cwd: None,
            env_mode: EnvMode::Inherit,
            env_files: Vec::new(),
            env: Object::default(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            umask: String::from("022"),
            stdin: None,
            stdout: None,
            stderr: None,
            rlimits: Object::default(),
            links: Object::default(),
            passwd: false,
            timeout_s: 0.0,
            grace_s: 0.0,
            kill_s: KILL_DEFAULT,
        }
    }

    fn take<'de, M: MapAccess<'de>>(&mut self, field: &str, from: &mut M) -> Result<(), M::Error> {
        match field {
            "version" => self.version = from.next_value()?,
            "job" => self.job = from.next_value()?,
            "nonce" => self.nonce = from.next_value()?,
            "key" => self.key = from.next_value()?,
            "incarnation" => self.incarnation = from.next_value()?,
            "argv" => self.argv = from.next_value()?,
            "cwd" => self.cwd = from.next_value()?,
            "env_mode" => self.env_mode = from.next_value()?,
            "env_files" => self.env_files = from.next_value()?,
            "env" => self.env = from.next_value()?,
            "uid" => self.uid = from.next_value()?,
            "gid" => self.gid = from.next_value()?,
            "groups" => self.groups = from.next_value()?,
            "umask" => self.umask = from.next_value()?,
            "stdin" => self.stdin = from.next_value()?,
            "stdout" => self.stdout = from.next_value()?,
            "stderr" => self.stderr = from.next_value()?,
            "rlimits" => self.rlimits = from.next_value()?,
            "links" => self.links = from.next_value()?,
            "passwd" => self.passwd = from.next_value()?,
            "timeout_s" => self.timeout_s = from.next_value()?,
            "grace_s" => self.grace_s = from.next_value()?,
            "kill_s" => self.kill_s = from.next_value()?,
            _ => {}
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Startup {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        object::read(from)
    }
}

/// Where the job's environment starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EnvMode {
    /// The container's environment, without the variables that describe root ([`super::environment::OF_ROOT`]).
    #[default]
    Inherit,
    /// Nothing.
    Clear,
}

impl<'de> Deserialize<'de> for EnvMode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(if object::word(from, "inherit clear")? == 0 { Self::Inherit } else { Self::Clear })
    }
}

/// How an environment file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EnvFormat {
    /// The assignments-only subset of the POSIX shell.
    Sh,
    /// `NAME=value`, separated by NUL bytes.
    Nul,
}

impl<'de> Deserialize<'de> for EnvFormat {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(if object::word(from, "sh nul")? == 0 { Self::Sh } else { Self::Nul })
    }
}

/// One environment file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvFile {
    /// Name in `ctl/`, starting with `env.`.
    pub name: String,
    /// How it is written.
    pub format: EnvFormat,
}

impl Fields for EnvFile {
    const REQUIRED: &'static str = "name format";
    const OPTIONAL: &'static str = "";

    fn initial() -> Self {
        Self { name: String::new(), format: EnvFormat::Sh }
    }

    fn take<'de, M: MapAccess<'de>>(&mut self, field: &str, from: &mut M) -> Result<(), M::Error> {
        match field {
            "name" => self.name = from.next_value()?,
            "format" => self.format = from.next_value()?,
            _ => {}
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for EnvFile {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        object::read(from)
    }
}

/// One standard stream of the job: either a file or a FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stream {
    /// Path beneath `data/`, opened after the drop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Whether an output file is appended to rather than truncated.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub append: bool,
    /// Name of a FIFO in `ctl/`: `in`, `out` or `err`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fifo: Option<String>,
}

impl Fields for Stream {
    const REQUIRED: &'static str = "";
    const OPTIONAL: &'static str = "file append fifo";

    fn initial() -> Self {
        Self { file: None, append: false, fifo: None }
    }

    fn take<'de, M: MapAccess<'de>>(&mut self, field: &str, from: &mut M) -> Result<(), M::Error> {
        match field {
            "file" => self.file = from.next_value()?,
            "append" => self.append = from.next_value()?,
            "fifo" => self.fifo = from.next_value()?,
            _ => {}
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Stream {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        object::read(from)
    }
}

/// One resource limit; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rlimit {
    /// Soft limit.
    pub soft: Amount,
    /// Hard limit.
    pub hard: Amount,
}

impl Fields for Rlimit {
    const REQUIRED: &'static str = "soft hard";
    const OPTIONAL: &'static str = "";

    fn initial() -> Self {
        Self { soft: Amount::Unlimited, hard: Amount::Unlimited }
    }

    fn take<'de, M: MapAccess<'de>>(&mut self, field: &str, from: &mut M) -> Result<(), M::Error> {
        match field {
            "soft" => self.soft = from.next_value()?,
            "hard" => self.hard = from.next_value()?,
            _ => {}
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Rlimit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        object::read(from)
    }
}

/// A number, or `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Amount {
    /// This many.
    Of(u64),
    /// RLIM_INFINITY.
    Unlimited,
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Of(n) => to.serialize_u64(*n),
            Self::Unlimited => to.serialize_str("unlimited"),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Amount;
            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("a whole number or \"unlimited\"")
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<Amount, E> {
                // RLIM_INFINITY itself, given as a number, means the same.
                Ok(if n == u64::MAX { Amount::Unlimited } else { Amount::Of(n) })
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Amount, E> {
                if text == "unlimited" { Ok(Amount::Unlimited) } else { Err(E::custom("not \"unlimited\"")) }
            }
        }
        from.deserialize_any(Either)
    }
}

/// A JSON object in the order it was written; a repeated name is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<V>(pub Vec<(String, V)>);

impl<V> Default for Object<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V: Serialize> Serialize for Object<V> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Object<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries<V>(core::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Object<V>;
            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object<V>, M::Error> {
                let mut entries: Vec<(String, V)> = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                match repeated(entries.iter().map(|(name, _)| name.as_str()).collect()) {
                    Some(name) => Err(M::Error::custom(format_args!("\"{}\" stands twice", printable(name)))),
                    None => Ok(Object(entries)),
                }
            }
        }
        from.deserialize_map(Entries(core::marker::PhantomData))
    }
}

/// The first name, in alphabetical order, that stands there more than once.
fn repeated(mut names: Vec<&str>) -> Option<&str> {
    names.sort_unstable();
    names.windows(2).find_map(|pair| match pair {
        [one, other] if one == other => Some(*one),
        _ => None,
    })
}

/// Why a startup file is refused: which field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The field, or `startup.json` for the file as a whole.
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
fn invalid(field: &'static str, message: &str) -> Result<(), Invalid> {
    Err(Invalid { field, message: message.to_owned() })
}

/// Reads a startup file. The message names line and column, never the text around them: that could be the key. Of a
/// value of another type it has the beginning.
pub fn parse(bytes: &[u8]) -> Result<Startup, Invalid> {
    let startup: Startup = serde_json::from_slice(bytes).map_err(|e| {
        let text = e.to_string();
        let why = text.rsplit_once(" at line ").map_or(text.as_str(), |(why, _)| why);
        let (why, line, column) = (printable(why), e.line(), e.column());
        let message = format!("not a startup file of version 1: line {line}, column {column}: {why}");
        Invalid { field: layout::STARTUP, message }
    })?;
    if startup.version != super::VERSION {
        return Err(Invalid {
            field: "version",
            message: format!("is {}; this glue understands {}", startup.version, super::VERSION),
        });
    }
    Ok(startup)
}

/// Whether `name` is 1 to 128 printable ASCII characters, as a job's name has to be.
pub fn is_job_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| (b' '..=b'~').contains(&b))
}

impl Startup {
    /// Checks everything that needs only the file, the slot's numbers and the running incarnation.
    pub fn check(&self, ids: Ids, incarnation: &str) -> Result<(), Invalid> {
        self.check_identity(ids, incarnation)?;
        self.check_command()?;
        self.check_streams()?;
        self.check_limits()
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

    fn check_command(&self) -> Result<(), Invalid> {
        match self.argv.first() {
            None => return invalid("argv", "is empty: it needs at least the program"),
            Some(program) if program.is_empty() => return invalid("argv", "the program's name is empty"),
            Some(_) => {}
        }
        if self.argv.iter().any(|a| a.contains('\0')) {
            return invalid("argv", "has a NUL byte, which no argument can carry");
        }
        if let Some(cwd) = &self.cwd
            && (!cwd.starts_with('/') || cwd.contains('\0') || cwd.len() >= 4096)
        {
            return invalid("cwd", "must be an absolute path below 4096 bytes, or null for work/");
        }
        if self.env_files.len() > layout::ENV_FILES_MAX {
            return invalid("env_files", &format!("has more than {} entries", layout::ENV_FILES_MAX));
        }
        for file in &self.env_files {
            if !file.name.starts_with(layout::ENV_PREFIX)
                || !layout::is_component(&file.name)
                || file.name.ends_with(layout::TEMPORARY_SUFFIX)
            {
                return invalid("env_files", "a name must start with \"env.\", have no slash and not end in \".tmp\"");
            }
        }
        for (name, value) in &self.env.0 {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return invalid("env", "a name is empty or has '=' or NUL, or a value has NUL");
            }
        }
        for (path, target) in &self.links.0 {
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

    fn check_streams(&self) -> Result<(), Invalid> {
        let streams = [("stdin", &self.stdin, 0), ("stdout", &self.stdout, 1), ("stderr", &self.stderr, 2)];
        for (field, stream, n) in streams {
            let Some(stream) = stream else { continue };
            match (&stream.file, &stream.fifo) {
                (Some(file), None) if !layout::is_beneath(file) => {
                    return invalid(field, "\"file\" must be a relative path beneath data/, without . or ..");
                }
                (Some(_), None) if stream.append && n == 0 => {
                    return invalid(field, "\"append\" has no meaning for an input");
                }
                (Some(_), None) => {}
                (None, Some(_)) if stream.append => return invalid(field, "\"append\" goes with \"file\" alone"),
                (None, Some(fifo)) if layout::STREAMS.get(n) != Some(&fifo.as_str()) => {
                    let name = layout::STREAMS.get(n).copied().unwrap_or_default();
                    return invalid(field, &format!("\"fifo\" must be \"{name}\""));
                }
                (None, Some(_)) => {}
                _ => return invalid(field, "needs exactly one of \"file\" and \"fifo\""),
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Invalid> {
        if self.umask_bits().is_none() {
            return invalid("umask", "must be 1 to 4 octal digits of at most 0777, such as \"022\"");
        }
        for (name, limit) in &self.rlimits.0 {
            if rlimit_number(name).is_none() {
                return invalid("rlimits", &format!("\"{}\" is no limit of Linux", printable(name)));
            }
            if limit.soft > limit.hard {
                return invalid("rlimits", &format!("{name}: the soft limit is above the hard limit"));
            }
        }
        check_times(self.timeout_s, self.grace_s, self.kill_s)
    }

    /// The umask as a number, or `None` where its text is none.
    pub fn umask_bits(&self) -> Option<u32> {
        let text = self.umask.as_str();
        if text.is_empty() || text.len() > 4 || !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            return None;
        }
        u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777)
    }
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

/// Linux's number of a resource limit (`asm-generic/resource.h`), by its name in lower case.
pub fn rlimit_number(name: &str) -> Option<u32> {
    const NAMES: [&str; 16] = [
        "cpu",
        "fsize",
        "data",
        "stack",
        "core",
        "rss",
        "nproc",
        "nofile",
        "memlock",
        "as",
        "locks",
        "sigpending",
        "msgqueue",
        "nice",
        "rtprio",
        "rttime",
    ];
    NAMES.iter().position(|n| *n == name).and_then(|n| u32::try_from(n).ok())
}
