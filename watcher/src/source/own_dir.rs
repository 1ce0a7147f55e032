//! Directories in the spool that are root's alone. What others have set on a directory (owner, mode, ACL) must not
//! decide who may write in what root makes there.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use latebind_linux::volume;
use nix::sys::stat::{Mode, fchmod, fstat};

use crate::tree::{self, marks};

/// Mode bits that let others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// What an NFS server takes root for unless it is told otherwise (`anonuid` in exports(5)).
const NOBODY: u32 = 65534;

fn at(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
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
    let path = path.display();
    let why = if uid == NOBODY {
        format!(
            "{path} belongs to UID {uid}, which is what a file server that trusts no root makes of it: on NFS, export \
             the spool to the pilots' machines with no_root_squash, and remove what was made here"
        )
    } else {
        format!(
            "{path} belongs to UID {uid}, who could exchange what root puts there: move it away, or make it root's if \
             nobody else has put anything into it"
        )
    };
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Creates one of root's directories if it is missing; otherwise takes away what others were granted on it. A directory
/// of somebody else, or a symbolic link, is refused.
pub fn ensure(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at(path)(e)),
        _ => {}
    }
    let dir = tree::open_dir(path).map_err(at(path))?;
    let stat = fstat(&dir)?;
    if stat.st_uid != 0 {
        return Err(not_roots(path, stat.st_uid));
    }
    // What others could write in, or what hands rights on to all that is made in it: a default ACL (acl(5)).
    let attributes = marks::attributes(dir.as_fd()).map_err(at(path))?;
    if stat.st_mode & OTHERS_WRITE != 0 || !attributes.is_empty() {
        let mode = stat.st_mode & 0o7777;
        marks::take_over(dir.as_fd(), (0, stat.st_gid), mode & !OTHERS_WRITE).map_err(at(path))?;
        tracing::warn!("{}: taken from others, who had mode {mode:o} and {attributes:?} on it", path.display());
    }
    Ok(())
}

/// Creates a directory that must not exist yet: root's, mode 0755, without any ACL.
pub fn create(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path).map_err(at(path))?;
    let made = tree::open_dir(path).and_then(|dir| marks::take_over(dir.as_fd(), (0, 0), 0o755));
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
    stat.is_ok_and(|stat| volume::is_roots(&stat, OTHERS_WRITE))
}
