//! Directories in the spool that are root's alone. What others have set on a directory (owner, mode, ACL) must not
//! decide who may write in what root makes there.

use std::ffi::CStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};

use crate::tree;

/// Extended attributes that grant rights to others; a directory's default ACL becomes the ACL of all that is made in it
/// (acl(5)).
const ACLS: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];

/// Mode bits that let others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

fn at(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

fn remove_acls(dir: &OwnedFd, path: &Path) -> io::Result<()> {
    for name in ACLS {
        if glue::sys::has_xattr(dir.as_fd(), name)? {
            glue::sys::remove_xattr(dir.as_fd(), name)?;
            tracing::warn!(
                "{}: {} removed: root's directories grant nothing to others",
                path.display(),
                name.to_string_lossy()
            );
        }
    }
    Ok(())
}

/// The spool's own top directory: root's. If others may write there, they must not be able to rename what is root's: it
/// becomes sticky.
pub fn check_top(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path).map_err(at(path))?;
    let top = fs::File::open(path).map_err(at(path))?;
    let stat = fstat(&top)?;
    if stat.st_uid != 0 {
        return Err(not_roots(path, stat.st_uid));
    }
    if stat.st_mode & OTHERS_WRITE != 0 && stat.st_mode & Mode::S_ISVTX.bits() == 0 {
        fchmod(&top, Mode::from_bits_truncate(stat.st_mode) | Mode::S_ISVTX).map_err(|e| at(path)(e.into()))?;
        tracing::warn!("{}: made sticky, since others may write there", path.display());
    }
    Ok(())
}

fn not_roots(path: &Path, uid: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{} belongs to UID {uid}, who could exchange what root puts there: move it away, or make it root's if \
             nobody else has put anything into it",
            path.display()
        ),
    )
}

/// Creates one of root's directories if it is missing; otherwise takes away what others were granted on it. A directory
/// of somebody else, or a symbolic link, is refused.
pub fn ensure(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at(path)(e)),
        _ => {}
    }
    let dir = tree::open_dir(path).map_err(at(path))?;
    let uid = fstat(&dir)?.st_uid;
    if uid != 0 {
        return Err(not_roots(path, uid));
    }
    remove_acls(&dir, path).map_err(at(path))?;
    let mode = fstat(&dir)?.st_mode;
    if mode & OTHERS_WRITE != 0 {
        fchmod(&dir, Mode::from_bits_truncate(mode & !OTHERS_WRITE)).map_err(|e| at(path)(e.into()))?;
        tracing::warn!("{}: mode {:o} let others write there; changed", path.display(), mode & 0o7777);
    }
    Ok(())
}

/// Creates a directory that must not exist yet: root's, mode 0755, without any ACL.
pub fn create(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path).map_err(at(path))?;
    let made = tree::open_dir(path).and_then(|dir| {
        remove_acls(&dir, path)?;
        fchown(&dir, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))?;
        Ok(fchmod(&dir, Mode::from_bits_truncate(0o755))?)
    });
    made.map_err(at(path)).inspect_err(|_| {
        let _ = fs::remove_dir(path);
    })
}

/// Creates a directory of root's own, unless it is there already.
pub fn create_if_missing(path: &Path) -> io::Result<()> {
    match create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Whether this is a directory that root alone can have made and filled.
pub fn is_roots(path: &Path) -> bool {
    let stat = tree::open_dir(path).and_then(|dir| Ok(fstat(&dir)?));
    stat.is_ok_and(|stat| stat.st_uid == 0 && stat.st_mode & OTHERS_WRITE == 0)
}
