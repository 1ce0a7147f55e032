//! A startup file as a watcher would write it, and what comes back.

use std::fs::File;
use std::io::Read;

use latebind_contract::encoding::{Bytes32, Key, sha256_hex};
use latebind_contract::record::{Expected, Record, Refusal, verify};
use latebind_contract::startup::{EnvMode, Object, Startup, Stream};

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
        version: 1,
        job: "test job".into(),
        nonce: Bytes32::new(random()),
        key: Key::new(Box::new(random())),
        incarnation: incarnation.into(),
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
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
        links: Object::default(),
        passwd: false,
        timeout_s: 0.0,
        grace_s: 0.0,
        kill_s: 10.0,
    }
}

/// A stream that is a file beneath `data/`.
pub fn file(path: &str) -> Option<Stream> {
    Some(Stream { file: Some(path.into()), append: false, fifo: None })
}

/// A stream that is a FIFO in `ctl/`.
pub fn fifo(name: &str) -> Option<Stream> {
    Some(Stream { file: None, append: false, fifo: Some(name.into()) })
}

/// A JSON object with one entry.
pub fn one<V>(name: &str, value: V) -> Object<V> {
    Object(vec![(name.into(), value)])
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

    /// Checks a record as a watcher does.
    pub fn check(&self, jws: Option<&[u8]>) -> Result<Record, Refusal> {
        let Startup { key, job, nonce, incarnation, .. } = &self.startup;
        verify(jws, &Expected { key, job, nonce, incarnation, startup_sha256: &self.sha256 })
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
