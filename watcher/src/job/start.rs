//! Handing a job to glue: the startup file, its secrets, and the environment files.

use std::io::{self, Read};

use latebind_contract::bytes::ByteString;
use latebind_contract::command::UMASK_DEFAULT;
use latebind_contract::encoding::{Bytes32, Key, sha256_hex};
use latebind_contract::layout::{
    self, ACCOUNT, ENV_FILE_MAX, ENV_FILES_BYTES_MAX, ENV_PREFIX, STARTUP, STARTUP_MAX, STREAMS,
};
use latebind_contract::startup::{EnvFile, EnvMode, Object, Startup, Stream, is_home};
use latebind_contract::words::{self, About};

use nix::sys::stat::fstat;

use super::relay::{Route, Routes, kept_routes};
use super::{Bound, Request, Secrets};
use crate::bind::{Failure, Reason};
use crate::layout::IO;
use crate::slot::Slot;
use crate::tree;

/// A startup file that is ready to be put, and what proves the record that will answer it.
pub struct Prepared {
    /// The file's bytes.
    pub file: Vec<u8>,
    /// What proves the record.
    pub secrets: Secrets,
}

fn fresh() -> io::Result<(Key, Bytes32)> {
    let (mut key, mut nonce) = (Box::new([0; 32]), [0; 32]);
    latebind_linux::sys::random(key.as_mut())?;
    latebind_linux::sys::random(&mut nonce)?;
    Ok((Key::new(key), Bytes32::new(nonce)))
}

/// How the streams of a job without a client reach it.
pub fn kept(request: &Request) -> Routes {
    kept_routes(request.stdin.as_ref().map(|_| format!("{IO}/stdin")))
}

/// What the startup file says of stream `n`.
fn stream(n: usize, routes: &Routes) -> Option<Stream> {
    let name = STREAMS.get(n).copied().unwrap_or_default().to_owned();
    let fifo = |keep_open| Some(Stream { fifo: Some(name), keep_open, ..Stream::default() });
    match routes.get(n)? {
        Route::Null => None,
        Route::File(path) => Some(Stream { file: Some(path.clone()), append: n > 0, ..Stream::default() }),
        Route::Relay(_) => fifo(false),
        Route::Keep => fifo(true),
    }
}

/// A job's directory, which may be written `.` or `./x`: its own, or beneath.
fn absolute(cwd: &ByteString, own: &str) -> ByteString {
    match cwd.as_bytes() {
        b"." => own.into(),
        [b'.', b'/', beneath @ ..] => [own.as_bytes(), b"/", beneath].concat().into(),
        _ => cwd.clone(),
    }
}

/// Makes the startup file for one start, with a fresh key and nonce.
pub fn prepare(slot: &Slot, bound: &Bound, request: &Request, routes: &Routes) -> Result<Prepared, Failure> {
    let random = |e: io::Error| Failure::retry(Reason::EngineError, format!("no random numbers: {e}"));
    let (key, nonce) = fresh().map_err(random)?;
    let sandbox = request.sandbox.as_ref().map(|path| format!("{}/{path}", slot.data.path()));
    let account = request.account.clone().unwrap_or_else(|| ACCOUNT.to_owned());
    let mut env = request.env.clone();
    if let Some(sandbox) = &sandbox {
        for name in ["HOME", "TMPDIR"] {
            env.entry(name.to_owned()).or_insert_with(|| sandbox.as_str().into());
        }
        for name in ["USER", "LOGNAME"] {
            env.entry(name.to_owned()).or_insert_with(|| account.as_str().into());
        }
    }
    let home = env.get("HOME").map(|home| home.lossy().into_owned()).filter(|home| is_home(home));
    let env_files = request.env_files.iter().enumerate();
    let own_dir = sandbox.clone().unwrap_or_else(|| format!("{}/{}", slot.data.path(), layout::WORK));
    let cwd = request.cwd.as_ref().map(|cwd| absolute(cwd, &own_dir));
    let startup = Startup {
        version: latebind_contract::VERSION,
        job: request.id.clone(),
        nonce: nonce.clone(),
        key: key.clone(),
        incarnation: bound.incarnation.clone(),
        argv: request.argv.clone(),
        cwd: cwd.or(sandbox.map(ByteString::from)),
        env_mode: request.env_mode,
        env_files: env_files.map(|(n, f)| EnvFile { name: format!("{ENV_PREFIX}{n}"), format: f.format }).collect(),
        env: Object(env.into_iter().collect()),
        uid: slot.uid,
        gid: slot.gid,
        groups: Vec::new(),
        umask: request.umask.clone().unwrap_or_else(|| UMASK_DEFAULT.into()),
        stdin: stream(0, routes),
        stdout: stream(1, routes),
        stderr: stream(2, routes),
        rlimits: request.rlimits.clone(),
        terminal: request.terminal,
        exec: request.exec,
        links: request.links.clone(),
        passwd: request.passwd,
        account,
        home,
        stop: request.stop,
        timeout_s: request.timeout_s,
        grace_s: request.grace_s,
        kill_s: request.kill_s,
    };
    // Glue checks the same again; here it comes back with the job still unclaimed.
    startup
        .check(slot.ids(bound.kill_uid), &bound.incarnation)
        .map_err(|invalid| Failure::hold(Reason::InvalidJob, invalid.to_string()))?;
    let unwritable = || Failure::hold(Reason::InvalidJob, "the startup file cannot be written as JSON");
    let file = startup.file().ok_or_else(unwritable)?;
    if file.len() as u64 > STARTUP_MAX {
        let message = format!("the startup file would have {} bytes, more than {STARTUP_MAX}", file.len());
        return Err(Failure::hold(Reason::InvalidJob, message));
    }
    let startup_sha256 = sha256_hex(&file);
    let secrets =
        Secrets { job: request.id.clone(), key, nonce, incarnation: bound.incarnation.clone(), startup_sha256 };
    Ok(Prepared { file, secrets })
}

/// What a failed start says, with the job's own names in it.
pub fn message(failure: &latebind_contract::record::Failure, request: &Request) -> String {
    let name = |file: &super::EnvSource| file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = request.env_files.iter().map(name).collect();
    let env_files: Vec<&str> = names.iter().map(String::as_str).collect();
    let limits: Vec<&str> = request.rlimits.0.iter().map(|(name, _)| name.as_str()).collect();
    let files = ["stdin", "stdout", "stderr"].map(|name| format!("{IO}/{name}"));
    let path = request.env.get("PATH").map(ByteString::lossy);
    let about = About {
        program: &request.argv.first().map(ByteString::lossy).unwrap_or_default(),
        path: path.as_deref(),
        inherits: request.env_mode == EnvMode::Inherit,
        cwd: &request.cwd.as_ref().map_or("work/".into(), ByteString::lossy),
        long_variables: &words::long_variables(
            request.env.iter().map(|(name, value)| (name.as_str(), value.as_bytes().len())),
        ),
        env_files: &env_files,
        limits: &limits,
        streams: files.each_ref().map(|file| Some(file.as_str())),
    };
    words::message(failure, &about)
}

/// Puts environment files and startup file, then notifies glue.
pub fn hand_over(slot: &Slot, request: &Request, file: &[u8]) -> Result<(), Failure> {
    let mut all = 0;
    for (n, source) in request.env_files.iter().enumerate() {
        let shown = source.path.display();
        let mut text = Vec::new();
        tree::open_file(&source.path)
            .and_then(|file| {
                tree::check_reader(&fstat(&file)?, request.submitter)?;
                file.take(ENV_FILE_MAX + 1).read_to_end(&mut text)
            })
            .map_err(|e| Failure::hold(Reason::EnvironmentError, format!("{shown}: {e}")))?;
        if text.len() as u64 > ENV_FILE_MAX {
            return Err(Failure::hold(Reason::EnvironmentError, format!("{shown} has more than {ENV_FILE_MAX} bytes")));
        }
        // Else the job would fill the volume, and the slot would be blamed for it.
        all += text.len() as u64;
        if all > ENV_FILES_BYTES_MAX {
            let message = format!("{shown}: the environment files have more than {ENV_FILES_BYTES_MAX} bytes in all");
            return Err(Failure::hold(Reason::EnvironmentError, message));
        }
        slot.ctl.replace(&format!("{ENV_PREFIX}{n}"), &text, 0o600).map_err(put_failed)?;
    }
    slot.ctl.replace(STARTUP, file, 0o600).map_err(put_failed)?;
    slot.notify().map_err(put_failed)
}

fn put_failed(e: io::Error) -> Failure {
    Failure::retry(Reason::VolumeFull, format!("the job cannot be handed over: {e}"))
}
