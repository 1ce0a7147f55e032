//! Claiming one job: reading the startup file once, taking it away, and keeping its key where nobody else can read it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use latebind_contract::encoding::{Key, sha256_hex};
use latebind_contract::layout::{self, Ids};
use latebind_contract::order::{self, Invalid, Order};
use latebind_contract::status::Refused;
use latebind_linux::error::{cut, error};
use latebind_linux::volume::Dir;
use nix::sys::prctl::set_dumpable;
use zeroize::Zeroize;

/// A job that glue has taken on: from here on there will be a record.
pub struct Claimed {
    /// What root does for the job, its key taken out.
    pub order: Order,
    /// The job's part of the startup file, which root does not read.
    pub command: Vec<u8>,
    /// Signs the record.
    pub key: Key,
    /// SHA-256 of the startup file, lower-case hex.
    pub startup_sha256: String,
    /// The environment files, open.
    pub env_files: Vec<File>,
    /// The FIFOs of its output, once it is started: they keep what nobody has read.
    pub outputs: Vec<OwnedFd>,
    /// What is wrong with the file, so that nothing will be started.
    pub invalid: Option<Invalid>,
}

/// What looking for a startup file found.
pub enum Claim {
    /// There is none.
    Nothing,
    /// There is one without a key that could be used, or it is meant for another glue. The caller removes it.
    Refused(Refused),
    /// A job.
    Job(Box<Claimed>),
}

/// Looks for a startup file and reads it. The caller says so in the status, and only then [`take`]s it. From before it
/// is opened, this process is not dumpable; the caller makes it so
/// again once the key is wiped.
pub fn look(ctl: &Dir, ids: Ids, incarnation: &str) -> io::Result<Claim> {
    if ctl.stat_of(layout::STARTUP).is_err() {
        return Ok(Claim::Nothing);
    }
    set_dumpable(false)?;
    let mut bytes = match ctl.read_file(layout::STARTUP, layout::STARTUP_MAX) {
        Ok(bytes) => bytes,
        Err(e) => return Ok(refused(String::new(), e.to_string())),
    };
    let startup_sha256 = sha256_hex(&bytes);
    let (order, command, key) = match separate(&mut bytes) {
        Ok(both) => both,
        Err(invalid) => return Ok(refused(startup_sha256, invalid.to_string())),
    };
    let invalid = order.check(ids, incarnation).err();
    if let Some(not_ours) = invalid.as_ref().filter(|i| i.field == "incarnation") {
        return Ok(refused(startup_sha256, not_ours.to_string()));
    }
    let (env_files, outputs) = (Vec::new(), Vec::new());
    Ok(Claim::Job(Box::new(Claimed { order, command, key, startup_sha256, env_files, outputs, invalid })))
}

/// Takes a startup file apart and overwrites it. The key that is returned is then the only copy of its bytes.
fn separate(bytes: &mut [u8]) -> Result<(Order, Vec<u8>, Key), Invalid> {
    let parsed = order::parse(bytes).map(|(order, command)| (order, command.to_vec()));
    bytes.zeroize();
    let (mut order, command) = parsed?;
    let key = std::mem::take(&mut order.key);
    Ok((order, command, key))
}

/// Removes the startup file, opens the environment files that it names, and removes those too: they may hold secrets,
/// and are for this job alone.
pub fn take(ctl: &Dir, claimed: &mut Claimed) -> io::Result<()> {
    ctl.remove(layout::STARTUP)?;
    if claimed.invalid.is_some() {
        return Ok(());
    }
    for name in &claimed.order.env_files {
        match ctl.open_file(name, layout::ENV_FILE_MAX) {
            Ok(open) => claimed.env_files.push(open),
            Err(e) => {
                let message = error(format_args!("{name} cannot be used"), &e).to_string();
                claimed.invalid = Some(Invalid { field: "env_files", message });
                break;
            }
        }
    }
    claimed.order.env_files.iter().try_for_each(|name| ctl.remove(name))
}

fn refused(startup_sha256: String, message: String) -> Claim {
    Claim::Refused(Refused { startup_sha256, message: cut(message) })
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
