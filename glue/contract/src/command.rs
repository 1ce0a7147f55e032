//! The job's part of a startup file, its second line: what runs, and around what. Read by stage two, as the payload.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bytes::ByteString;
use super::layout;
use super::object::Object;
use super::order::{Invalid, invalid};
use super::text::printable;

/// What runs. Unknown and repeated fields are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Program and arguments; no shell in between.
    pub argv: Vec<ByteString>,
    /// Absolute path, entered after the drop; `null` for `work/`.
    #[serde(default)]
    pub cwd: Option<ByteString>,
    /// Where the environment starts from.
    #[serde(default)]
    pub env_mode: EnvMode,
    /// How the environment files of the order are written, in its order.
    #[serde(default)]
    pub env_formats: Vec<EnvFormat>,
    /// Variables that are applied last.
    #[serde(default)]
    pub env: Object<ByteString>,
    /// File mode creation mask as octal text, such as `022`.
    #[serde(default = "umask_default")]
    pub umask: String,
    /// Standard input; `null` for `/dev/null`.
    #[serde(default)]
    pub stdin: Option<Stream>,
    /// Standard output; `null` for `/dev/null`.
    #[serde(default)]
    pub stdout: Option<Stream>,
    /// Standard error; `null` for `/dev/null`.
    #[serde(default)]
    pub stderr: Option<Stream>,
    /// Resource limits by their Linux names in lower case (`nofile`, `core`, ...).
    #[serde(default)]
    pub rlimits: Object<Rlimit>,
    /// Size of a terminal, which is all three streams then: its rows, times 65536, and its columns. Its master goes to
    /// [`layout::attach`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<u32>,
    /// Whether an attendant starts further commands beside the job (`watcher exec`).
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub exec: bool,
}

/// The umask of a job that names none.
pub const UMASK_DEFAULT: &str = "022";

fn umask_default() -> String {
    UMASK_DEFAULT.to_owned()
}

/// Where the job's environment starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnvMode {
    /// The container's environment, without the variables that describe root ([`super::environment::OF_ROOT`]).
    #[default]
    Inherit,
    /// Nothing.
    Clear,
}

/// How an environment file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnvFormat {
    /// The assignments-only subset of the POSIX shell.
    Sh,
    /// `NAME=value`, separated by NUL bytes.
    Nul,
    /// As `docker run --env-file` reads it.
    Docker,
    /// What `export -p` of a shell has printed.
    Export,
}

impl EnvFormat {
    /// All of them, as they are named.
    pub const NAMES: [(&str, Self); 4] =
        [("sh", Self::Sh), ("nul", Self::Nul), ("docker", Self::Docker), ("export", Self::Export)];

    /// The format and the file of `FORMAT:FILE`; shell assignments where none is named.
    pub fn of_prefix(given: &[u8]) -> (Self, &[u8]) {
        let named = |name: &str| given.strip_prefix(name.as_bytes())?.strip_prefix(b":");
        let mut formats = Self::NAMES.iter();
        formats.find_map(|(name, format)| Some((*format, named(name)?))).unwrap_or((Self::Sh, given))
    }
}

/// One standard stream of the job: either a file or a FIFO.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Path beneath `data/`, opened after the drop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Whether an output file is appended to rather than truncated.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub append: bool,
    /// Name of a FIFO in `ctl/`: `in`, `out` or `err`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fifo: Option<String>,
    /// Whether the job's end of an output FIFO is one for reading, too, so that the job can write, or waits for room,
    /// while no watcher reads: it goes on through a watcher's restart.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub keep_open: bool,
}

/// One resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// Soft limit.
    pub soft: Amount,
    /// Hard limit.
    pub hard: Amount,
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

/// The fields, in the order in which [`Command::check`] looks at them.
pub const FIELDS: [&str; 11] =
    ["command", "argv", "cwd", "env", "env_formats", "terminal", "stdin", "stdout", "stderr", "umask", "rlimits"];

/// Reads the job's part. The message names line and column; of a value of another type it has the beginning.
pub fn parse(text: &[u8]) -> Result<Command, Invalid> {
    serde_json::from_slice(text).map_err(|e| Invalid {
        field: "command",
        message: format!("not a job's part of version {}: {}", super::VERSION, printable(&e.to_string())),
    })
}

impl Command {
    /// The standard streams.
    pub fn streams(&self) -> [&Option<Stream>; 3] {
        [&self.stdin, &self.stdout, &self.stderr]
    }

    /// Rows and columns of the terminal.
    pub fn terminal_size(&self) -> Option<[u16; 2]> {
        self.terminal.map(|size| [(size >> 16) as u16, size as u16])
    }

    /// Checks everything that needs only the command, and of the order which streams are FIFOs and how many environment
    /// files there are.
    pub fn check(&self, fifos: [bool; 3], env_files: usize) -> Result<(), Invalid> {
        self.check_command()?;
        if self.env_formats.len() != env_files {
            return invalid("env_formats", "needs one format for each environment file of the order");
        }
        self.check_streams(fifos)?;
        self.check_limits()
    }

    fn check_command(&self) -> Result<(), Invalid> {
        match self.argv.first() {
            None => return invalid("argv", "is empty: it needs at least the program"),
            Some(program) if program.as_bytes().is_empty() => return invalid("argv", "the program's name is empty"),
            Some(_) => {}
        }
        if self.argv.iter().any(ByteString::has_nul) {
            return invalid("argv", "has a NUL byte, which no argument can carry");
        }
        if let Some(cwd) = &self.cwd
            && (!cwd.as_bytes().starts_with(b"/") || cwd.has_nul() || cwd.as_bytes().len() >= 4096)
        {
            return invalid("cwd", "must be an absolute path below 4096 bytes, or null for work/");
        }
        for (name, value) in &self.env.0 {
            if name.is_empty() || name.contains(['=', '\0']) || value.has_nul() {
                return invalid("env", "a name is empty or has '=' or NUL, or a value has NUL");
            }
        }
        Ok(())
    }

    fn check_streams(&self, fifos: [bool; 3]) -> Result<(), Invalid> {
        if self.terminal.is_some() && self.streams().into_iter().any(Option::is_some) {
            return invalid("terminal", "is all three streams: none of them can be something else");
        }
        let streams = [("stdin", &self.stdin, 0), ("stdout", &self.stdout, 1), ("stderr", &self.stderr, 2)];
        for (field, stream, n) in streams {
            let fifo = stream.as_ref().is_some_and(|stream| stream.fifo.is_some());
            if fifos.get(n) != Some(&fifo) {
                return invalid(field, "is a FIFO in one part of the startup file and not in the other");
            }
            let Some(stream) = stream else { continue };
            if stream.keep_open && (n == 0 || !fifo) {
                return invalid(field, "\"keep_open\" goes with the \"fifo\" of an output alone");
            }
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
                return invalid("rlimits", &format!("\"{}\" is not a limit of Linux", printable(name)));
            }
            if limit.soft > limit.hard {
                return invalid("rlimits", &format!("{name}: the soft limit is above the hard limit"));
            }
        }
        Ok(())
    }

    /// The umask as a number; `None` where its text is not 1 to 4 octal digits of at most 0777.
    pub fn umask_bits(&self) -> Option<u32> {
        let text = self.umask.as_str();
        if text.is_empty() || text.len() > 4 || !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            return None;
        }
        u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777)
    }
}

/// Names of the resource limits in lower case, in the order of Linux's numbers (`asm-generic/resource.h`).
pub const RLIMITS: [&str; 16] = [
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

/// Linux's number of a resource limit, by its name in lower case.
pub fn rlimit_number(name: &str) -> Option<u32> {
    RLIMITS.iter().position(|n| *n == name).and_then(|n| u32::try_from(n).ok())
}
