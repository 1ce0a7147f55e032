//! `job.json`, as users write it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use latebind_contract::bytes::ByteString;
use latebind_contract::layout::is_component;
use latebind_contract::startup::{EnvFormat, EnvMode, Object, Rlimit, Stop};
use serde::Deserialize;

use crate::job::download::Download;
use crate::job::limits::Limits;
use crate::job::{EnvSource, Input, Request, Requests, plain_path, ten, unique_names, yes};
use crate::tree::pack::Form;

/// `job.json`. Unknown fields are refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// The job's name, for sources that have no other place for it.
    #[serde(default)]
    name: Option<String>,
    image: String,
    #[serde(default)]
    argv: Vec<ByteString>,
    #[serde(default)]
    args: Vec<ByteString>,
    #[serde(default)]
    owner: String,
    #[serde(default, deserialize_with = "unique_names")]
    env: BTreeMap<String, ByteString>,
    #[serde(default)]
    env_mode: EnvMode,
    /// Names of files beside job.json.
    #[serde(default)]
    env_files: Vec<EnvName>,
    #[serde(default)]
    cwd: Option<ByteString>,
    #[serde(default)]
    umask: Option<String>,
    #[serde(default)]
    rlimits: Object<Rlimit>,
    #[serde(default)]
    exec: bool,
    #[serde(default)]
    pilot_job: bool,
    #[serde(default)]
    links: Object<String>,
    #[serde(default = "yes")]
    passwd: bool,
    #[serde(default)]
    stop: Stop,
    #[serde(default)]
    timeout_s: f64,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    requests: Requests,
    #[serde(default = "ten")]
    grace_s: f64,
    #[serde(default = "ten")]
    kill_s: f64,
    /// Name of a file beside job.json.
    #[serde(default)]
    stdin: Option<String>,
    #[serde(default)]
    outputs: Vec<String>,
    #[serde(default)]
    outputs_archive: Option<Form>,
    #[serde(default)]
    inputs: Vec<InputFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvName {
    name: String,
    format: EnvFormat,
}

/// One of `inputs`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InputFile {
    /// Name of a file beside job.json, or a URL with the checksum of what is there.
    #[serde(default)]
    file: Option<String>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    sha256: Option<String>,
    /// Whether it is an archive whose content is wanted.
    #[serde(default)]
    unpack: bool,
    /// Where it goes beneath `work/`: by its own name, or into `work/` itself, where nothing is said.
    #[serde(default)]
    to: Option<String>,
}

impl InputFile {
    fn input(&self, beside: impl Fn(&str) -> Result<PathBuf, String>) -> Result<Input, String> {
        let path = self.file.as_deref().map(beside).transpose()?;
        let download = match (&self.url, &self.sha256) {
            (Some(url), Some(sha256)) => Some(Download { url: url.clone(), sha256: sha256.clone() }),
            (None, None) => None,
            _ => return Err("inputs: url and sha256 belong together".into()),
        };
        let address = self.url.as_deref().unwrap_or_default();
        let last = address.split(['?', '#']).next().and_then(|path| path.rsplit('/').next());
        let own = self.file.as_deref().or(last).filter(|_| !self.unpack).unwrap_or_default();
        let to = self.to.as_deref().map_or_else(|| own.to_owned(), plain_path);
        let to = if self.unpack && to == "." { String::new() } else { to };
        Ok(Input { path, download, unpack: self.unpack, to })
    }
}

impl JobFile {
    /// The name that the file gives the job, if it does.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The job as the core takes it: `base` with what this file says. Files are those of `submitted`, the user's own
    /// directory.
    pub fn request(self, base: Request, submitted: &Path) -> Result<Request, String> {
        let beside = |name: &str| -> Result<PathBuf, String> {
            if is_component(name) {
                Ok(submitted.join(name))
            } else {
                Err(format!("{name:?} is not the name of a file beside job.json"))
            }
        };
        let env_files = self.env_files.iter().map(|f| Ok(EnvSource { path: beside(&f.name)?, format: f.format }));
        let inputs = submitted.join("inputs");
        let input_files = self.inputs.iter().map(|input| input.input(beside));
        Ok(Request {
            image: self.image,
            argv: self.argv,
            args: self.args,
            owner: self.owner,
            env: self.env,
            env_mode: self.env_mode,
            env_files: env_files.collect::<Result<_, String>>()?,
            cwd: self.cwd,
            umask: self.umask,
            rlimits: self.rlimits,
            exec: self.exec,
            pilot_job: self.pilot_job,
            links: self.links,
            passwd: self.passwd,
            stop: self.stop,
            timeout_s: self.timeout_s,
            limits: self.limits,
            requests: self.requests,
            grace_s: self.grace_s,
            kill_s: self.kill_s,
            input_files: input_files.collect::<Result<_, String>>()?,
            inputs: inputs.symlink_metadata().is_ok().then_some(inputs),
            stdin: self.stdin.as_deref().map(beside).transpose()?,
            outputs_archive: self.outputs_archive,
            outputs: self.outputs.iter().map(|path| plain_path(path)).collect(),
            ..base
        })
    }
}
