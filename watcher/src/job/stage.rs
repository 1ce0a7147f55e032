//! Filling and emptying a slot: `work/`, the files of the standard streams, the relayed FIFOs.
//!
//! All of it happens while no payload of the slot lives, so nobody can exchange a path meanwhile; what an earlier payload
//! left there (links, odd modes) is removed without following anything.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::Path;

use glue::contract::layout;

use super::Request;
use crate::bind::Failure;
use crate::slot::Slot;

/// Directory within `data/` for the files of the standard streams; root's, so that the payload can not exchange them.
pub const IO: &str = "io";

/// How deep a tree of inputs may be.
const DEPTH_MAX: usize = 64;

fn at(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |e| {
        let reason = match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "VolumeFull",
            _ => "StagingError",
        };
        Failure::retry(reason, format!("{what}: {e}"))
    }
}

/// Makes the slot as if no job had ever been there.
pub fn empty(slot: &Slot) -> Result<(), Failure> {
    let work = slot.data_path().join(layout::WORK);
    // The payload may have closed its directory even to itself; root needs no permission, but the next job does.
    fs::set_permissions(&work, Permissions::from_mode(0o700)).map_err(at(work.display()))?;
    chown(&work, Some(slot.uid), Some(slot.gid)).map_err(at(work.display()))?;
    remove_content(&work).map_err(at(work.display()))?;
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

fn remove_content(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Puts the job's inputs into `work/` and makes the files or FIFOs of its standard streams.
pub fn fill(slot: &Slot, request: &Request) -> Result<(), Failure> {
    let work = slot.data_path().join(layout::WORK);
    if let Some(inputs) = &request.inputs {
        copy_tree(inputs, &work, (slot.uid, slot.gid), 0)
            .map_err(|e| at(format!("inputs {} to {}", inputs.display(), work.display()))(e))?;
    }
    let io = slot.data_path().join(IO);
    DirBuilder::new().mode(0o755).create(&io).map_err(at(io.display()))?;
    fs::set_permissions(&io, Permissions::from_mode(0o755)).map_err(at(io.display()))?;
    if let Some(stdin) = &request.stdin {
        let to = io.join("stdin");
        fs::copy(stdin, &to).map_err(|e| Failure::hold("StdinMissing", format!("{}: {e}", stdin.display())))?;
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

/// Copies files and directories; the payload owns the copies. A link is refused: what it means depends on where it is read.
fn copy_tree(from: &Path, to: &Path, (uid, gid): (u32, u32), depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!("{} is nested deeper than {DEPTH_MAX}", from.display())));
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            DirBuilder::new().mode(0o700).create(&to)?;
            copy_tree(&from, &to, (uid, gid), depth + 1)?;
            lchown(&to, Some(uid), Some(gid))?;
        } else if kind.is_file() {
            fs::copy(&from, &to)?;
            let executable = entry.metadata()?.permissions().mode() & 0o111 != 0;
            fs::set_permissions(&to, Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
            lchown(&to, Some(uid), Some(gid))?;
        } else {
            return Err(io::Error::other(format!("{} is neither a file nor a directory", from.display())));
        }
    }
    Ok(())
}
