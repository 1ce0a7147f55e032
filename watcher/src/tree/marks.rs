//! What an owner can put on a directory besides files: access control lists, attributes, flags, mode and times. Where a
//! directory has to stay, a mount point, it is taken off again, and what cannot be taken off is an error.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::stat::{Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};

/// Most bytes of names that a file can have (XATTR_LIST_MAX).
const NAMES_MAX: usize = 64 << 10;

/// Flags of an inode (ioctl_iflags(2)) that its owner can set, and that change how files in it are made, kept or found:
/// SECRM, UNRM, SYNC, IMMUTABLE, APPEND, NODUMP, NOATIME, JOURNAL_DATA, NOTAIL, DIRSYNC. Those of the node's
/// administrator stay: compression, PROJINHERIT and project number (quotas), NOCOW, DAX, CASEFOLD.
const FLAGS: u32 = 0x0001_C0FB;

/// Inherit the project number: a directory with another one cannot be moved here.
const PROJECT: u32 = 0x2000_0000;

/// Gives a directory that stays this owner and mode, and takes everything else off it that somebody may have put there.
pub fn take_over(dir: BorrowedFd<'_>, (uid, gid): (u32, u32), mode: u32) -> io::Result<()> {
    // Root's and closed first: whoever still has it open can put nothing there from then on.
    close(dir)?;
    remove_attributes(dir)?;
    remove_flags(dir, FLAGS)?;
    fchown(dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(dir, Mode::from_bits_truncate(mode))?;
    futimens(dir, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW)?;
    let stat = fstat(dir)?;
    if (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (uid, gid, mode) {
        return Ok(());
    }
    let (uid, gid, mode) = (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777);
    Err(io::Error::other(format!("it stays with owner {uid}:{gid} and mode {mode:o}")))
}

/// Makes a directory root's, and closes it to everybody else, also to whom a list names: the mode bounds that.
pub fn close(dir: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fstat(dir)?;
    if (stat.st_uid, stat.st_gid) != (0, 0) {
        fchown(dir, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))?;
    }
    if stat.st_mode & 0o7777 != 0o700 {
        fchmod(dir, Mode::from_bits_truncate(0o700))?;
    }
    Ok(())
}

/// Lets directories of any project number be moved here. Best effort: few file systems know project numbers.
pub fn take_any_project(dir: BorrowedFd<'_>) {
    let _ = remove_flags(dir, PROJECT);
}

/// Attributes that an owner may set; the others are the node's: `security.*`, `trusted.*`.
fn is_the_owners(name: &CStr) -> bool {
    [&b"user."[..], b"system.posix_acl_"].iter().any(|prefix| name.to_bytes().starts_with(prefix))
}

/// Names of the attributes that an owner has set on a file.
pub fn attributes(file: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = vec![0; NAMES_MAX];
    let filled = match latebind_linux::sys::attribute_names(file, &mut names) {
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EOPNOTSUPP)) => return Ok(Vec::new()),
        filled => filled?,
    };
    let mut rest = names.get(..filled).unwrap_or_default();
    let mut found = Vec::new();
    while let Ok(name) = CStr::from_bytes_until_nul(rest) {
        rest = rest.get(name.to_bytes().len() + 1..).unwrap_or_default();
        if is_the_owners(name) {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

fn remove_attributes(file: BorrowedFd<'_>) -> io::Result<()> {
    for name in attributes(file)? {
        latebind_linux::sys::remove_attribute(file, &name)?;
    }
    match attributes(file)?.first() {
        Some(name) => Err(io::Error::other(format!("the attribute {name:?} cannot be removed"))),
        None => Ok(()),
    }
}

fn remove_flags(file: BorrowedFd<'_>, unwanted: u32) -> io::Result<()> {
    let flags = match latebind_linux::sys::inode_flags(file) {
        Ok(flags) if flags & unwanted != 0 => flags,
        // None, or a file system without flags.
        _ => return Ok(()),
    };
    latebind_linux::sys::set_inode_flags(file, flags & !unwanted)?;
    match latebind_linux::sys::inode_flags(file)? & unwanted {
        0 => Ok(()),
        left => Err(io::Error::other(format!("the flags {left:x} cannot be removed"))),
    }
}
