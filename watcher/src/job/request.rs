//! What a client asks for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use latebind_contract::bytes::ByteString;
use latebind_contract::layout;
use latebind_contract::startup::{EnvFormat, EnvMode, Object, Rlimit, Stop, check_times};
use serde::{Deserialize, Deserializer, Serialize};

use super::binds::Bind;
use super::input::{self, Input};
use super::limits::Limits;
use super::requests::Requests;
use crate::bind::ImageCommand;
use crate::layout::OURS;
use crate::text::{is_harmless, printable};
use crate::tree::pack::Form;

/// Longest name of a job.
const ID_MAX: usize = 128;

/// Longest name of an image: 255 bytes of name, 128 of tag and a digest are the most that means anything.
const IMAGE_MAX: usize = 1024;

/// Most outputs that a job names.
pub const OUTPUTS_MAX: usize = 1_000;
/// Bytes of all their names.
pub const OUTPUT_NAMES_MAX: usize = 64 << 10;

/// What a client asks for. Paths are those of the pilot container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Name of this start of the job, unique within the pilot: letters, digits, `.`, `_`, `-`. Submitting a name again
    /// attaches to the job that has it.
    pub id: String,
    /// The image to run in.
    pub image: String,
    /// Program and arguments; no shell in between. Empty: what the image runs by itself, see `args`.
    #[serde(default)]
    pub argv: Vec<ByteString>,
    /// Arguments for the image's ENTRYPOINT in place of its CMD; empty: its CMD. Only where `argv` is empty.
    #[serde(default)]
    pub args: Vec<ByteString>,
    /// Whose job it is; for `--reuse same-owner`, see [`Request::identity`].
    #[serde(default)]
    pub owner: String,
    /// UID of whoever put the job into a spool, as its file system says. Files that others own are read for it only if
    /// everybody may read them. None: root asks.
    #[serde(default)]
    pub submitter: Option<u32>,
    /// Whether the job shares no container with any other, whoever owns it.
    #[serde(default)]
    pub alone: bool,
    /// Random text of a spool's claim: a job of this name that has another one is not attached to.
    #[serde(default)]
    pub token: String,
    /// Which attempt this is, from 1.
    #[serde(default = "one")]
    pub attempt: u32,
    /// Variables, applied last.
    #[serde(default, deserialize_with = "unique_names")]
    pub env: BTreeMap<String, ByteString>,
    /// Where the environment starts from.
    #[serde(default)]
    pub env_mode: EnvMode,
    /// Environment files, applied in order.
    #[serde(default)]
    pub env_files: Vec<EnvSource>,
    /// Working directory; `work/` where none is given.
    #[serde(default)]
    pub cwd: Option<ByteString>,
    /// File mode creation mask, octal.
    #[serde(default)]
    pub umask: Option<String>,
    /// Resource limits.
    #[serde(default)]
    pub rlimits: Object<Rlimit>,
    /// Rows and columns of a terminal that is the job's standard streams; its client has the other end.
    #[serde(default)]
    pub terminal: Option<[u16; 2]>,
    /// Whether further commands can be started in its container while it runs (`watcher exec`).
    #[serde(default)]
    pub exec: bool,
    /// Symbolic links to make in the image's root: path to target.
    #[serde(default)]
    pub links: Object<String>,
    /// What is to be seen at which path; becomes links once the job has a slot.
    #[serde(default)]
    pub binds: Vec<Bind>,
    /// Whether to add an account line for the payload's UID to the image's passwd and group.
    #[serde(default = "yes")]
    pub passwd: bool,
    /// The payload's name in those lines; `payload` where none is given. It is USER and LOGNAME in a client's sandbox.
    #[serde(default)]
    pub account: Option<String>,
    /// Who gets TERM when the job is to end.
    #[serde(default)]
    pub stop: Stop,
    /// Wall limit in seconds; 0 for none.
    #[serde(default)]
    pub timeout_s: f64,
    /// How much it may use.
    #[serde(default)]
    pub limits: Limits,
    /// Seconds between soft and hard kill.
    #[serde(default = "ten")]
    pub grace_s: f64,
    /// Bound on the final clean-up, seconds.
    #[serde(default = "ten")]
    pub kill_s: f64,
    /// A directory whose content is copied into `work/`.
    #[serde(default)]
    pub inputs: Option<PathBuf>,
    /// Further inputs, after that directory and in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub input_files: Vec<Input>,
    /// A file for standard input.
    #[serde(default)]
    pub stdin: Option<PathBuf>,
    /// Whether the client's own descriptors 0 to 2 are relayed; else output goes to files that are collected.
    #[serde(default)]
    pub relay: bool,
    /// A directory beneath the slot's `data/` that the client has made, of the payload's, and looks after itself:
    /// nothing is staged there, collected or removed. The job starts in it instead of in `work/`.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// What it needs of its slot.
    #[serde(default, skip_serializing_if = "Requests::is_empty")]
    pub requests: Requests,
    /// The slot that it has to have; any where none is given.
    #[serde(default)]
    pub slot: Option<u32>,
    /// Whether the job is a pilot itself: it runs in a slot for such jobs, and its own jobs in the slot that this one
    /// serves.
    #[serde(default)]
    pub pilot_job: bool,
    /// The pilot-job that submitted it. The core sets it.
    #[serde(default)]
    pub parent: Option<String>,
    /// Whether the job ends with its client's connection. The core sets it.
    #[serde(default)]
    pub tied: bool,
    /// A directory for the results; made if need be.
    #[serde(default)]
    pub results: Option<PathBuf>,
    /// Files and directories beneath `work/` that are collected into the results.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// The archive that they are wanted in, instead of a directory.
    #[serde(default)]
    pub outputs_archive: Option<Form>,
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

/// Default of what a job has unless it says otherwise; `job.json` has the same.
pub(crate) const fn yes() -> bool {
    true
}

const fn one() -> u32 {
    1
}

/// Default of its times, in seconds.
pub(crate) const fn ten() -> f64 {
    10.0
}

impl Request {
    /// One of this name that asks for nothing yet.
    pub fn new(id: String) -> Self {
        Self {
            id,
            image: String::new(),
            argv: Vec::new(),
            args: Vec::new(),
            owner: String::new(),
            submitter: None,
            alone: false,
            token: String::new(),
            attempt: one(),
            env: BTreeMap::new(),
            env_mode: EnvMode::default(),
            env_files: Vec::new(),
            cwd: None,
            umask: None,
            rlimits: Object::default(),
            terminal: None,
            exec: false,
            links: Object::default(),
            binds: Vec::new(),
            passwd: true,
            account: None,
            stop: Stop::default(),
            timeout_s: 0.0,
            limits: Limits::default(),
            grace_s: ten(),
            kill_s: ten(),
            inputs: None,
            input_files: Vec::new(),
            stdin: None,
            relay: false,
            sandbox: None,
            requests: Requests::default(),
            slot: None,
            pilot_job: false,
            parent: None,
            tied: false,
            results: None,
            outputs: Vec::new(),
            outputs_archive: None,
        }
    }

    /// Whose job it is, as far as a container may be used again. A UID comes from a spool alone, so that no name that
    /// another client gives is the same. `None`: nobody's, which shares nothing.
    pub fn identity(&self) -> Option<(Option<u32>, String)> {
        let is_nobodys = self.alone || (self.submitter.is_none() && self.owner.is_empty());
        (!is_nobodys).then(|| (self.submitter, self.owner.clone()))
    }

    /// Checks what can be checked before the job has a slot; glue checks the rest.
    pub fn check(&self) -> Result<(), String> {
        if !is_id(&self.id) {
            return Err(format!(
                "job name {:?}: use 1 to {ID_MAX} letters, digits, '.', '_' or '-', not starting with '.'",
                printable(&self.id)
            ));
        }
        if self.image.is_empty() {
            return Err("no image is given".into());
        }
        // What else is wrong with a name, the engine says. This would reach terminals, or fill the pod's own object.
        if self.image.len() > IMAGE_MAX || self.image.contains(|c| !is_harmless(c)) {
            return Err(format!(
                "the image's name has control or invisible characters, or more than {IMAGE_MAX} bytes"
            ));
        }
        if self.argv.first().is_some_and(|program| program.as_bytes().is_empty()) {
            return Err("argv: its first element, the program, is empty".into());
        }
        if !self.argv.is_empty() && !self.args.is_empty() {
            return Err("argv is the whole command, and args are for the image's ENTRYPOINT: give one of them".into());
        }
        if self.terminal.is_some() && (self.relay || self.stdin.is_some()) {
            return Err("a terminal is all three standard streams: none of them can be something else".into());
        }
        check_times(self.timeout_s, self.grace_s, self.kill_s).map_err(|e| e.to_string())?;
        if let Some(bad) = self.outputs.iter().find(|o| !layout::is_beneath(o)) {
            return Err(format!("output {bad:?}: must be a path beneath work/, without . or .."));
        }
        let (count, bytes) = (self.outputs.len(), self.outputs.iter().map(String::len).sum::<usize>());
        if count > OUTPUTS_MAX || bytes > OUTPUT_NAMES_MAX {
            return Err(format!(
                "{count} outputs with {bytes} bytes of names: at most {OUTPUTS_MAX} and {OUTPUT_NAMES_MAX}; name a directory"
            ));
        }
        if self.outputs_archive.is_some() && self.outputs.is_empty() {
            return Err("outputs_archive: no outputs are named that could be in it".into());
        }
        input::check(&self.input_files)?;
        if let Some(sandbox) = &self.sandbox {
            let first = sandbox.split('/').next().unwrap_or_default();
            if !layout::is_beneath(sandbox) || OURS.contains(&first) {
                return Err(format!("sandbox {sandbox:?}: must be a directory of the client's beneath data/"));
            }
            if self.inputs.is_some() || !self.input_files.is_empty() || !self.outputs.is_empty() {
                return Err("a job in its client's own sandbox has no inputs and outputs to be copied".into());
            }
        }
        if self.pilot_job && !self.requests.is_empty() {
            return Err(
                "requests: a pilot-job has a slot for such jobs, whatever it needs; its own jobs may have them".into(),
            );
        }
        self.requests.check()?;
        self.limits.check()
    }

    /// Makes the image's own command the job's, with `args` in place of its CMD. Where the program is the image's, so is
    /// the working directory, unless the job names one or has a client's sandbox. `/` is none: some programs that build
    /// images write it where nobody has named a directory.
    ///
    /// # Errors
    ///
    /// Where neither image nor job names a program.
    pub fn take_command(&mut self, command: ImageCommand) -> Result<(), String> {
        let ImageCommand { entrypoint, cmd, workdir } = command;
        let is_images = !entrypoint.is_empty() || self.args.is_empty();
        let args = std::mem::take(&mut self.args);
        let args = if args.is_empty() { cmd.into_iter().map(ByteString::from).collect() } else { args };
        self.argv = entrypoint.into_iter().map(ByteString::from).chain(args).collect();
        if self.argv.first().is_none_or(|program| program.as_bytes().is_empty()) {
            let image = printable(&self.image);
            return Err(format!("no program is given, and {image} has neither ENTRYPOINT nor CMD: name it in argv"));
        }
        if is_images && self.cwd.is_none() && self.sandbox.is_none() && workdir.len() > 1 && workdir.starts_with('/') {
            self.cwd = Some(workdir.into());
        }
        Ok(())
    }

    /// What a client that is not root may not ask for: the core, which is root, would read and write files for it.
    pub fn check_unprivileged(&self) -> Result<(), String> {
        let paths = [
            ("inputs", self.inputs.is_some()),
            ("input_files", !self.input_files.is_empty()),
            ("stdin", self.stdin.is_some()),
            ("results", self.results.is_some()),
            ("env_files", !self.env_files.is_empty()),
            ("outputs", !self.outputs.is_empty()),
            // It would decide who gets a container that was used before.
            ("owner", !self.owner.is_empty()),
            ("submitter", self.submitter.is_some()),
            // Its slot's own are a slot's; it could be any other pilot's.
            ("pilot_job", self.pilot_job),
            ("parent", self.parent.is_some()),
        ];
        match paths.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(format!("{field}: only root may give this; pass descriptors and use a sandbox")),
            None if !self.relay => Err("relay has to be true: nobody would fetch the output".into()),
            None => Ok(()),
        }
    }
}

/// A JSON object as a map, for `serde(deserialize_with)`.
///
/// # Errors
///
/// Where a name is repeated.
pub fn unique_names<'de, D: Deserializer<'de>, V: Deserialize<'de>>(from: D) -> Result<BTreeMap<String, V>, D::Error> {
    Object::deserialize(from).map(|object| object.0.into_iter().collect())
}

/// A path as people write it, `./a//b/`, as [`layout::is_beneath`] takes it.
pub fn plain_path(path: &str) -> String {
    let mut plain = path;
    while let Some(rest) = plain.strip_prefix("./") {
        plain = rest.trim_start_matches('/');
    }
    let parts: Vec<&str> = plain.split('/').collect();
    // An absolute path stays one, to be refused.
    let kept = parts.iter().enumerate().filter(|(n, part)| *n == 0 || !matches!(**part, "" | "."));
    kept.map(|(_, part)| *part).collect::<Vec<_>>().join("/")
}

/// Whether `id` can name a job, and a file.
pub fn is_id(id: &str) -> bool {
    (1..=ID_MAX).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
