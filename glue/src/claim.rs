//! Claiming one job: reading the startup file once, taking it away, and keeping its key where nobody else can read it.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use latebind_contract::encoding::{Key, sha256_hex};
use latebind_contract::layout::{self, Ids};
use latebind_contract::order::{self, Invalid, Order, is_env_file};
use latebind_contract::status::Refused;
use latebind_linux::error::{cut, error};
use latebind_linux::volume::Dir;
use nix::sys::prctl::set_dumpable;
use zeroize::Zeroizing;

/// A job that glue has taken on.
pub struct Claimed {
    /// What root does for the job, its key taken out.
    pub order: Order,
    /// The job's part of the startup file, which root does not read.
    pub command: Vec<u8>,
    /// Signs the record.
    pub key: Key,
    /// The whole startup file, until its digest is known and it is overwritten: it has the key.
    pub file: Zeroizing<Vec<u8>>,
    /// The environment files, open.
    pub env_files: Vec<OwnedFd>,
    /// What is wrong with the file, so that nothing will be started.
    pub invalid: Option<Invalid>,
}

/// What looking for a startup file found.
pub enum Claim {
    /// There is none.
    Nothing,
    /// There is one that cannot be read, has no key that can be used, or is meant for another glue. The caller removes
    /// it.
    Refused(Refused),
    /// A job.
    Job(Box<Claimed>),
}

/// Looks for a startup file, reads it, and opens the environment files that it names. The caller says so in the status,
/// and only then [`take`]s it. From before it is opened, this process is not dumpable; the caller makes it so again.
pub fn look(ctl: &Dir, ids: Ids, incarnation: &str) -> io::Result<Claim> {
    if ctl.stat_of(layout::STARTUP).is_err() {
        return Ok(Claim::Nothing);
    }
    set_dumpable(false)?;
    let file = match ctl.read_file(layout::STARTUP, layout::STARTUP_MAX) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(e) => return Ok(refused(String::new(), e.to_string())),
    };
    let (order, command, key) = match separate(&file) {
        Ok(parts) => parts,
        Err(invalid) => return Ok(refused(sha256_hex(&file), invalid.to_string())),
    };
    let opened = order.check(ids, incarnation).and_then(|()| open_env_files(ctl, &order));
    let (env_files, invalid) = opened.map_or_else(|invalid| (Vec::new(), Some(invalid)), |files| (files, None));
    if let Some(not_ours) = invalid.as_ref().filter(|i| i.field == "incarnation") {
        return Ok(refused(sha256_hex(&file), not_ours.to_string()));
    }
    Ok(Claim::Job(Box::new(Claimed { order, command, key, file, env_files, invalid })))
}

/// Takes a startup file apart. Once that is overwritten, the key that is returned is the only copy of its bytes.
fn separate(file: &[u8]) -> Result<(Order, Vec<u8>, Key), Invalid> {
    let (mut order, command) = order::parse(file)?;
    let key = std::mem::take(&mut order.key);
    Ok((order, command.to_vec(), key))
}

fn open_env_files(ctl: &Dir, order: &Order) -> Result<Vec<OwnedFd>, Invalid> {
    let open = |name: &String| {
        let failed = |e| error(format_args!("{name} cannot be used"), &e).to_string();
        let opened = ctl.open_file(name, layout::ENV_FILE_MAX);
        opened.map(OwnedFd::from).map_err(|e| Invalid { field: "env_files", message: failed(e) })
    };
    order.env_files.iter().map(open).collect()
}

/// Removes the startup file and its environment files: they may hold secrets, and are for this job alone.
pub fn take(ctl: &Dir, order: &Order) -> io::Result<()> {
    ctl.remove(layout::STARTUP)?;
    order.env_files.iter().filter(|name| is_env_file(name)).try_for_each(|name| ctl.remove(name))
}

fn refused(startup_sha256: String, message: String) -> Claim {
    Claim::Refused(Refused { startup_sha256, errno: 0, message: cut(message) })
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
