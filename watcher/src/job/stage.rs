//! Filling and emptying a slot: `work/`, the files of the standard streams, scratch volumes.
//!
//! A slot is emptied while nobody but us and our glue can reach it, and what an earlier payload left there (links, odd modes) is
//! removed without following anything. It is filled while its image is being bound, so root in the new container may be the
//! image's for a moment: everything goes by descriptors that lead nowhere out of the volume, and what was filled is used only
//! after the mount proof, with which no foreign program can have been there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use glue::contract::layout;
use glue::volume::open_beneath;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::Request;
use crate::bind::{Failure, Reason};
use crate::slot::Slot;
use crate::tree;

/// Directory within `data/` for the files of the standard streams; root's, so that the payload can not exchange them.
pub const IO: &str = "io";

/// Whether a volume had no room.
pub fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn at(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |e| {
        let reason = if is_full(&e) { Reason::VolumeFull } else { Reason::StagingError };
        Failure::retry(reason, format!("{what}: {e}"))
    }
}

/// What the job brought along can not be used; unless it is only that the volume is full, its user has to change it.
fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    move |e| match e {
        e if is_full(&e) => at(path.display())(e),
        e => Failure::hold(Reason::InputUnusable, format!("{}: {e}", path.display())),
    }
}

fn own(fd: &impl AsFd, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(fchmod(fd, Mode::from_bits_truncate(mode))?)
}

fn open_dir(slot: &Slot, name: &str) -> io::Result<OwnedFd> {
    slot.data.open_beneath(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)
}

/// Makes the slot as if no job had ever been there.
pub fn empty(slot: &Slot) -> Result<(), Failure> {
    let work = open_dir(slot, layout::WORK).map_err(at(layout::WORK))?;
    // The payload may have closed its directory even to itself; root needs no permission, but the next job does.
    own(&work, slot.uid, slot.gid, 0o700).map_err(at(layout::WORK))?;
    tree::remove_content(work.as_fd()).map_err(at(layout::WORK))?;
    match open_dir(slot, IO) {
        Ok(io) => {
            tree::remove_content(io.as_fd()).map_err(at(IO))?;
            unlinkat(slot.data.as_fd(), IO, UnlinkatFlags::RemoveDir).map_err(|e| at(IO)(e.into()))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(at(IO)(e)),
    }
    for scratch in &slot.scratch {
        let shown = scratch.path();
        tree::remove_content(scratch.as_fd()).map_err(at(shown))?;
        // As /tmp and /dev/shm are: everybody may write, nobody may take away what is another's.
        own(&scratch.as_fd(), 0, 0, 0o1777).map_err(at(shown))?;
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

/// A sandbox of the client's has to be a directory of the payload's within the slot; what is in it is the client's business.
pub fn demand_sandbox(slot: &Slot, path: &str) -> Result<(), Failure> {
    let invalid = |why: String| Failure::hold(Reason::InvalidJob, format!("sandbox {path:?} beneath data/: {why}"));
    let open = open_dir(slot, path).map_err(|e| invalid(e.to_string()))?;
    let stat = nix::sys::stat::fstat(&open).map_err(|e| invalid(e.to_string()))?;
    if stat.st_uid != slot.uid {
        return Err(invalid(format!("is of UID {}, not of the payload's {}", stat.st_uid, slot.uid)));
    }
    Ok(())
}

/// Puts the job's inputs into `work/` and makes the files of its standard streams.
pub fn fill(slot: &Slot, request: &Request) -> Result<(), Failure> {
    if let Some(inputs) = &request.inputs {
        let from = tree::open_dir(inputs).map_err(unusable(inputs))?;
        let to = open_dir(slot, layout::WORK).map_err(at(layout::WORK))?;
        tree::copy_content(from.as_fd(), to.as_fd(), (slot.uid, slot.gid)).map_err(unusable(inputs))?;
    }
    mkdirat(slot.data.as_fd(), IO, Mode::from_bits_truncate(0o755)).map_err(|e| at(IO)(e.into()))?;
    let io = open_dir(slot, IO).map_err(at(IO))?;
    fchmod(&io, Mode::from_bits_truncate(0o755)).map_err(|e| at(IO)(e.into()))?;
    let make = |name: &str| {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        open_beneath(io.as_fd(), name, flags, 0o600).map(File::from).map_err(at(name))
    };
    if let Some(stdin) = &request.stdin {
        let mut from = tree::open_file(stdin).map_err(unusable(stdin))?;
        let mut to = make("stdin")?;
        io::copy(&mut from, &mut to).map_err(unusable(stdin))?;
        own(&to, slot.uid, slot.gid, 0o400).map_err(at("stdin"))?;
    }
    if !request.relay {
        for name in ["stdout", "stderr"] {
            own(&make(name)?, slot.uid, slot.gid, 0o600).map_err(at(name))?;
        }
    }
    Ok(())
}
