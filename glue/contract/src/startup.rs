//! A startup file as the watcher makes it: one job, both parts in one value.

use serde::Serialize;

use super::bytes::ByteString;
pub use super::command::{Amount, Command, EnvFormat, EnvMode, Rlimit, Stream, rlimit_number};
use super::encoding::{Bytes32, Key};
use super::layout::Ids;
pub use super::object::Object;
pub use super::order::{Invalid, Order, START_WITHIN, Stop, check_times, is_home, is_job_name};

/// One environment file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvFile {
    /// Name in `ctl/`, starting with `env.`.
    pub name: String,
    /// How it is written.
    pub format: EnvFormat,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Startup {
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
    /// Program and arguments; no shell in between.
    pub argv: Vec<ByteString>,
    /// Absolute path, entered after the drop; `null` for `work/`.
    pub cwd: Option<ByteString>,
    /// Where the environment starts from.
    pub env_mode: EnvMode,
    /// Environment files in `ctl/`, applied in order.
    pub env_files: Vec<EnvFile>,
    /// Variables that are applied last.
    pub env: Object<ByteString>,
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
    /// Rows and columns of a terminal in place of the three streams.
    pub terminal: Option<[u16; 2]>,
    /// Whether an attendant starts further commands beside the job.
    pub exec: bool,
    /// Symbolic links that glue makes before the start: absolute path to target.
    pub links: Object<String>,
    /// Whether glue adds a passwd and a group line for the payload UID.
    pub passwd: bool,
    /// The payload's name in those lines.
    pub account: String,
    /// Its home directory there; `work/` where none is given.
    pub home: Option<String>,
    /// Who gets TERM when the job is to end.
    pub stop: Stop,
    /// Wall limit in seconds; 0 for none, as with timeout(1).
    pub timeout_s: f64,
    /// Seconds between the soft and the hard kill.
    pub grace_s: f64,
    /// Bound on the final clean-up, in seconds.
    pub kill_s: f64,
}

impl Startup {
    /// The two parts.
    pub fn parts(&self) -> (Order, Command) {
        let streams = [&self.stdin, &self.stdout, &self.stderr];
        let order = Order {
            version: self.version,
            job: self.job.clone(),
            nonce: self.nonce.clone(),
            key: self.key.clone(),
            incarnation: self.incarnation.clone(),
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
            env_files: self.env_files.iter().map(|file| file.name.clone()).collect(),
            fifos: streams.map(|stream| stream.as_ref().is_some_and(|stream| stream.fifo.is_some())),
            links: self.links.0.clone(),
            passwd: self.passwd,
            account: self.account.clone(),
            home: self.home.clone(),
            stop: self.stop,
            timeout_s: self.timeout_s,
            grace_s: self.grace_s,
            kill_s: self.kill_s,
        };
        let command = Command {
            argv: self.argv.clone(),
            cwd: self.cwd.clone(),
            env_mode: self.env_mode,
            env_formats: self.env_files.iter().map(|file| file.format).collect(),
            env: self.env.clone(),
            umask: self.umask.clone(),
            stdin: self.stdin.clone(),
            stdout: self.stdout.clone(),
            stderr: self.stderr.clone(),
            rlimits: self.rlimits.clone(),
            terminal: self.terminal.map(|[rows, columns]| u32::from(rows) << 16 | u32::from(columns)),
            exec: self.exec,
        };
        (order, command)
    }

    /// The file: order and job's part, each in one line. `None` where it cannot be written as JSON (a time that is not
    /// finite).
    pub fn file(&self) -> Option<Vec<u8>> {
        let (order, command) = self.parts();
        let mut file = serde_json::to_vec(&order).ok()?;
        file.push(b'\n');
        file.extend(serde_json::to_vec(&command).ok()?);
        Some(file)
    }

    /// Checks both parts, as glue and stage two do.
    pub fn check(&self, ids: Ids, incarnation: &str) -> Result<(), Invalid> {
        let (order, command) = self.parts();
        order.check(ids, incarnation)?;
        command.check(order.fifos, order.env_files.len())
    }
}

#[cfg(test)]
#[path = "startup_tests.rs"]
pub(crate) mod tests;
