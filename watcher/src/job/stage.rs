//! Filling and emptying a slot: `work/`, the files of the standard streams, the relayed FIFOs.
//!
//! All of it happens while no payload of the slot lives, so nobody can exchange a path meanwhile; what an earlier payload
//! left there (links, odd modes) is removed without following anything.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use glue::contract::layout;

use super::Request;
use crate::bind::Failure;
use crate::slot::Slot;
use crate::tree;

/// Directory within `data/` for the files of the standard streams; root's, so that the payload can not exchange them.
pub const IO: &str = "io";

fn at(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |e| {
        let reason = match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "VolumeFull",
            _ => "StagingError",
        };
        Failure::retry(reason, format!("{what}: {e}"))
    }
}

/// What the job brought along can not be used; unless it is only that the volume is full, its user has to change it.
fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    move |e| match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => at(path.display())(e),
        _ => Failure::hold("InputUnusable", format!("{}: {e}", path.display())),
    }
}

/// Makes the slot as if no job had ever been there.
pub fn empty(slot: &Slot) -> Result<(), Failure> {
    let work = slot.data_path().join(layout::WORK);
    // The payload may have closed its directory even to itself; root needs no permission, but the next job does.
    fs::set_permissions(&work, Permissions::from_mode(0o700)).map_err(at(work.display()))?;
    chown(&work, Some(slot.uid), Some(slot.gid)).map_err(at(work.display()))?;
    let content = tree::open_dir(&work).map_err(at(work.display()))?;
    tree::remove_content(content.as_fd()).map_err(at(work.display()))?;
    let io = slot.data_path().join(IO);
    match fs::remove_dir_all(&io) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(io.display())(e)),
        _ => {}
    }
    for name in [layout::STARTUP, layout::RECORD].into_iter().chain(layout::STREAMS) {
        slot.ctl.remove(name).map_err(at(name))?;
    }
    for name in slot.ctl.names().map_err(at("ctl/"))? {
        if name.starts_with(layout::ENV_PREFIX) {
            slot.ctl.remove(&name).map_err(at(&name))?;
        }
    }
    Ok(())
}

/// Puts the job's inputs into `work/` and makes the files or FIFOs of its standard streams.
pub fn fill(slot: &Slot, request: &Request) -> Result<(), Failure> {
    let work = slot.data_path().join(layout::WORK);
    if let Some(inputs) = &request.inputs {
        let from = tree::open_dir(inputs).map_err(unusable(inputs))?;
        let to = tree::open_dir(&work).map_err(at(work.display()))?;
        tree::copy_content(from.as_fd(), to.as_fd(), (slot.uid, slot.gid)).map_err(unusable(inputs))?;
    }
    let io = slot.data_path().join(IO);
    DirBuilder::new().mode(0o755).create(&io).map_err(at(io.display()))?;
    fs::set_permissions(&io, Permissions::from_mode(0o755)).map_err(at(io.display()))?;
    if let Some(stdin) = &request.stdin {
        let to = io.join("stdin");
        let mut from = tree::open_file(stdin).map_err(unusable(stdin))?;
        File::create_new(&to).and_then(|mut to| io::copy(&mut from, &mut to)).map_err(unusable(stdin))?;
        fs::set_permissions(&to, Permissions::from_mode(0o400)).map_err(at(to.display()))?;
        chown(&to, Some(slot.uid), Some(slot.gid)).map_err(at(to.display()))?;
    }
    if !request.relay {
        for name in ["stdout", "stderr"] {
            let to = io.join(name);
            let made = File::options().write(true).create_new(true).mode(0o600).open(&to);
            made.and_then(|_| chown(&to, Some(slot.uid), Some(slot.gid))).map_err(at(to.display()))?;
        }
    }
    Ok(())
}
