//! Making a slot as if no job had ever been there, whatever the last one has left and whoever may still add to it.
//!
//! The directories that a payload owns are not cleaned but replaced: what it has put on them, lists, attributes and
//! flags, goes with them, and whoever still has one open has nothing of the next job's. Mount points have to stay, so
//! everything is taken off them. Each step can be the last one of a watcher that is killed: the next one begins again,
//! and finds a `work/` at any time.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use latebind_contract::layout;
use latebind_linux::volume::{Dir, is_roots};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, mkdirat};

use crate::bind::Failure;
use crate::job::disk::Disk;
use crate::layout::{IO, NEXT, TRASH};
use crate::random::random_hex;
use crate::slot::{ClientDirs, Slot};
use crate::tree::{self, Deadline, marks};
use crate::volume_failure::{failed_at, is_full};

/// As /tmp and /dev/shm are, but for the payload alone: another slot's could otherwise write there, if it was given a
/// descriptor.
const SCRATCH_MODE: u32 = 0o1770;

/// Makes the slot as if no job had ever been there.
pub fn empty(slot: &Slot, deadline: &Deadline<'_>) -> Result<(), Failure> {
    renew(slot.data.as_fd(), (slot.uid, slot.gid), deadline).map_err(failed_at(layout::WORK))?;
    for scratch in &slot.scratch {
        let emptied = marks::close(scratch.as_fd())
            .and_then(|()| tree::remove_content(scratch.as_fd(), deadline))
            .and_then(|()| marks::take_over(scratch.as_fd(), (0, slot.gid), SCRATCH_MODE));
        emptied.map_err(failed_at(scratch.path()))?;
    }
    for name in [layout::STARTUP, layout::RECORD].into_iter().chain(layout::STREAMS) {
        slot.ctl.remove(name).map_err(failed_at(name))?;
    }
    for name in slot.ctl.names().map_err(failed_at("ctl/"))? {
        if name.starts_with(layout::ENV_PREFIX) {
            slot.ctl.remove(&name).map_err(failed_at(&name))?;
        }
    }
    Ok(())
}

/// Resets a dirty slot's volumes to what `glue install` has made of them, and opens the slot. Root of an image that was
/// not proven may have left anything there, and no later glue would work on it. Call only while the placeholder runs.
pub fn reset(number: u32, owner: (u32, u32), dirs: &ClientDirs, deadline: &Deadline<'_>) -> io::Result<Slot> {
    let (ctl, data) = (Dir::open(&layout::ctl(number))?, Dir::open(&layout::data(number))?);
    reset_volumes(ctl.as_fd(), data.as_fd(), owner, dirs, deadline)?;
    Slot::open(number)
}

/// Makes a slot's volumes again what `glue install` has made of them, and what clients have made for their sandboxes.
pub fn reset_volumes(
    ctl: BorrowedFd<'_>,
    data: BorrowedFd<'_>,
    (uid, gid): (u32, u32),
    dirs: &ClientDirs,
    deadline: &Deadline<'_>,
) -> io::Result<()> {
    marks::take_over(ctl, (0, 0), 0o700)?;
    marks::take_over(data, (0, 0), 0o755)?;
    // The placeholder's glue may be there by now, and these are its own then.
    tree::remove_others(ctl, deadline, &|name, stat| {
        let kind = match name.strip_suffix(layout::TEMPORARY_SUFFIX).unwrap_or(name) {
            layout::STATUS => SFlag::S_IFREG,
            layout::GLUE_NOTIFY | layout::WATCHER_NOTIFY => SFlag::S_IFIFO,
            _ => return false,
        };
        tree::is(stat, kind) && is_roots(stat, 0o022)
    })?;
    let is_dir = |stat: &FileStat| tree::is(stat, SFlag::S_IFDIR);
    tree::remove_others(data, deadline, &|name, stat| {
        (name == layout::WORK || dirs.contains_key(name)) && is_dir(stat)
    })?;
    for (name, (owner, group)) in dirs {
        let dir = make(data, &CString::new(name.as_str())?)?;
        marks::take_over(dir.as_fd(), (*owner, *group), 0o755)?;
        // Sandboxes stay, since their clients are there; whatever else is in it, a client might follow.
        tree::remove_others(dir.as_fd(), deadline, &|_, stat| is_dir(stat) && [uid, *owner].contains(&stat.st_uid))?;
    }
    renew(data, (uid, gid), deadline)
}

/// Gives `data/` a fresh `work/`, and removes the last one and the files of its standard streams.
fn renew(data: BorrowedFd<'_>, owner: (u32, u32), deadline: &Deadline<'_>) -> io::Result<()> {
    let trash = make(data, &CString::new(TRASH)?)?;
    marks::close(trash.as_fd())?;
    marks::take_any_project(trash.as_fd());
    discard(data, &CString::new(IO)?, trash.as_fd())?;
    match renew_work(data, owner, trash.as_fd()) {
        // There is no room for a directory before the last job's files are gone.
        Err(e) if is_full(&e) => {
            tree::remove_content(trash.as_fd(), deadline)?;
            // The payload's own until another one is there: a glue that starts now looks for its owner.
            let work = open(data, &CString::new(layout::WORK)?)?;
            tree::remove_content(work.as_fd(), deadline)?;
            renew_work(data, owner, trash.as_fd())?;
        }
        renewed => renewed?,
    }
    tree::remove_content(trash.as_fd(), deadline)
}

fn renew_work(data: BorrowedFd<'_>, owner: (u32, u32), trash: BorrowedFd<'_>) -> io::Result<()> {
    let (work, next) = (CString::new(layout::WORK)?, CString::new(NEXT)?);
    discard(data, &next, trash)?;
    let made = make(data, &next)?;
    // It may have been given something by `data/`, too.
    marks::take_over(made.as_fd(), owner, 0o700)?;
    match latebind_linux::sys::rename(data, &work, &next, nix::libc::RENAME_EXCHANGE) {
        Ok(()) => discard(data, &next, trash),
        // There is none, or the file system cannot exchange: then a watcher that is killed here leaves none behind, and
        // the next one has the volumes made again.
        Err(_) => {
            discard(data, &work, trash)?;
            Ok(renameat(data, next.as_c_str(), data, work.as_c_str())?)
        }
    }
}

/// Moves an entry of `data/` where it is removed, if it is there: in one step, so that its name is free.
fn discard(data: BorrowedFd<'_>, name: &CStr, trash: BorrowedFd<'_>) -> io::Result<()> {
    match renameat(data, name, trash, random_hex::<8>()?.as_str()) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn make(data: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    match mkdirat(data, name, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => open(data, name),
        Err(e) => Err(e.into()),
    }
}

fn open(data: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(data, name, flags, Mode::empty())?)
}

/// Bytes that are taken in a volume of its own, and its size, where more than a quarter of it is taken though nothing
/// is in it:
/// files without a name that somebody else has open. Only for an empty slot that no client keeps sandboxes in.
pub fn held_by_others(slot: &Slot) -> io::Result<Option<(u64, u64)>> {
    let mut disk = Disk::open(slot.number, None)?;
    let Some(size) = disk.size else { return Ok(None) };
    Ok(disk.used()?.filter(|used| *used > size / 4).map(|used| (used, size)))
}

#[cfg(test)]
#[path = "clean_tests.rs"]
mod tests;
