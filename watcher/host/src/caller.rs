//! What this program has from whoever started it: a umask and limits that are meant for the caller's own files and
//! children, and that would reach the pod's directories and containers.

use crate::failure::{Context, Failure, failure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use std::sync::OnceLock;

/// Fewest open files that a pod can do with, its engine's programs and glue included.
const OPEN_FILES_MIN: u64 = 128;
/// How many are asked for where the caller has fewer, which only root may.
const OPEN_FILES: u64 = 4096;

static UMASK: OnceLock<u32> = OnceLock::new();

/// Sets right what the caller has left. To be called once.
pub fn settle() -> Result<(), Failure> {
    // Payloads, whose user IDs are others, go through directories that are made here.
    let _ = UMASK.set(umask(Mode::S_IWGRP | Mode::S_IWOTH).bits());
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context(|| "cannot read the limit on open files".into())?;
    let set = |most| setrlimit(Resource::RLIMIT_NOFILE, most, most);
    if set(hard.max(OPEN_FILES)).is_ok() {
        return Ok(());
    }
    if hard < OPEN_FILES_MIN {
        return Err(failure(format!(
            "this shell may open {hard} files at once (ulimit -Hn), and a pod needs {OPEN_FILES_MIN}: raise the limit"
        )));
    }
    set(hard).context(|| format!("cannot raise the limit on open files to {hard}"))
}

/// The mode of a directory that the caller gets, by the caller's own umask.
pub fn directory_mode() -> u32 {
    0o777 & !UMASK.get().copied().unwrap_or(0o022)
}
