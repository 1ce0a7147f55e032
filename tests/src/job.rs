//! A startup file as a watcher would write it, and what comes back.

use std::fs::File;
use std::io::Read;

use latebind_contract::encoding::{Bytes32, Key, sha256_hex};
use latebind_contract::record::{Failure, Record};
use latebind_contract::startup::{EnvMode, Object, Startup, Stream};
use latebind_contract::verify::{Expected, Refusal, verify};
use latebind_contract::words::{self, About};
use serde_json::{Map, Value, json};

/// `N` bytes from the kernel.
///
/// # Panics
/// If there are none.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("/dev/urandom can be read");
    bytes
}

/// A job with a key and a nonce of its own, its streams in `work/`, and all else as it is when nothing is said.
pub fn new(argv: &[&str], uid: u32, gid: u32, incarnation: &str) -> Startup {
    Startup {
        version: latebind_contract::VERSION,
        job: "test job".into(),
        nonce: Bytes32::new(random()),
        key: Key::new(Box::new(random())),
        incarnation: incarnation.into(),
        argv: argv.iter().map(|word| (*word).into()).collect(),
        cwd: None,
        env_mode: EnvMode::Inherit,
        env_files: Vec::new(),
        env: Object::default(),
        uid,
        gid,
        groups: Vec::new(),
        umask: "022".into(),
        stdin: None,
        stdout: file("work/stdout"),
        stderr: file("work/stderr"),
        rlimits: Object::default(),
        terminal: None,
        exec: false,
        links: Object::default(),
        passwd: false,
        account: latebind_contract::layout::ACCOUNT.into(),
        home: None,
        stop: latebind_contract::startup::Stop::default(),
        timeout_s: 0.0,
        grace_s: 0.0,
        kill_s: 10.0,
    }
}

/// A stream that is a file beneath `data/`.
pub fn file(path: &str) -> Option<Stream> {
    Some(Stream { file: Some(path.into()), append: false, fifo: None, keep_open: false })
}

/// A stream that is a FIFO in `ctl/`.
pub fn fifo(name: &str) -> Option<Stream> {
    Some(Stream { file: None, append: false, fifo: Some(name.into()), keep_open: false })
}

/// A JSON object with one entry.
pub fn one<V>(name: &str, value: V) -> Object<V> {
    Object(vec![(name.into(), value)])
}

/// Symbolic name of a failure's error number, such as `ENOENT`; empty where none applies.
pub fn errno_name(failure: &Failure) -> String {
    match failure.errno {
        0 => String::new(),
        n => format!("{:?}", nix::errno::Errno::from_raw(n)),
    }
}

/// A job that was handed to glue.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// What was asked for.
    pub startup: Startup,
    /// SHA-256 of the file.
    pub sha256: String,
}

impl Submitted {
    /// As it stands in `bytes`.
    pub fn new(startup: &Startup, bytes: &[u8]) -> Self {
        Self { startup: startup.clone(), sha256: sha256_hex(bytes) }
    }

    /// Checks a record as a watcher does, and puts words to what it reports of a failed start.
    pub fn check(&self, jws: Option<&[u8]>) -> Result<Record, Refusal> {
        let Startup { key, job, nonce, incarnation, .. } = &self.startup;
        let mut record = verify(jws, &Expected { key, job, nonce, incarnation, startup_sha256: &self.sha256 })?;
        if let Some(failure) = &mut record.error {
            failure.message = About::of(&self.startup, |about| words::message(failure, about));
        }
        Ok(record)
    }
}

/// A job that is over.
#[derive(Debug)]
pub struct Finished {
    /// Its record, checked.
    pub record: Record,
    /// The record as glue wrote it.
    pub jws: Vec<u8>,
    /// What it wrote on standard output, where that was `work/stdout`.
    pub out: String,
    /// What it wrote on standard error, where that was `work/stderr`.
    pub err: String,
}

/// Fields of the job's part of a startup file; `env_files` is in both parts.
pub const COMMAND_FIELDS: [&str; 11] =
    ["argv", "cwd", "env_mode", "env", "umask", "stdin", "stdout", "stderr", "rlimits", "terminal", "exec"];

/// A startup file of these fields, which a [`Startup`] has in one object: each goes into the part that has it, whatever
/// its value is.
pub fn file_of(fields: &Value) -> Vec<u8> {
    let (mut order, mut command) = (Map::new(), Map::new());
    let mut fifos = [false; 3];
    for (name, value) in fields.as_object().into_iter().flatten() {
        match name.as_str() {
            "env_files" if value.is_array() => {
                let of = |field: &str| value.as_array().into_iter().flatten().map(|file| file[field].clone()).collect();
                order.insert(name.clone(), Value::Array(of("name")));
                command.insert("env_formats".into(), Value::Array(of("format")));
            }
            "links" if value.is_object() => {
                let pairs = value.as_object().into_iter().flatten().map(|(path, target)| json!([path, target]));
                order.insert(name.clone(), pairs.collect());
            }
            field if COMMAND_FIELDS.contains(&field) => {
                for (n, stream) in ["stdin", "stdout", "stderr"].iter().enumerate() {
                    if field == *stream {
                        fifos[n] = value.get("fifo").is_some_and(|fifo| !fifo.is_null());
                    }
                }
                command.insert(name.clone(), value.clone());
            }
            _ => {
                order.insert(name.clone(), value.clone());
            }
        }
    }
    order.insert("fifos".into(), fifos.as_slice().into());
    format!("{}\n{}", Value::Object(order), Value::Object(command)).into_bytes()
}
