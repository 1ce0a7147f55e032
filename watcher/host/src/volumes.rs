//! The volumes of a pod on the host: made before its containers, removed after them.

use crate::failure::{Context, Failure, failure};
use crate::place::{PodPlace, directory};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use watcher::tree::{self, Deadline};

/// Size of `ctl/`, as on Kubernetes. A payload cannot write there; what glue and watcher write is small.
const CTL_OPTIONS: &str = "size=16m,mode=0755";

/// How long removing a pod's files may take.
const REMOVED_WITHIN: Duration = Duration::from_secs(300);

/// Makes all directories of a pod, and mounts what lies in memory. `glue install` sets owners and modes.
pub fn make(place: &PodPlace, slots: u32, data_size: Option<u64>) -> Result<(), Failure> {
    directory(place.top(), 0o700)?;
    directory(&place.bin(), 0o755)?;
    for path in [place.private(), place.bind(), place.logs(), place.pidfiles()] {
        directory(&path, 0o700)?;
    }
    for slot in 0..slots {
        let ctl = place.ctl(slot);
        directory(&ctl, 0o755)?;
        directory(&place.data(slot), 0o755)?;
        mount_memory(&ctl, MsFlags::MS_NOEXEC, CTL_OPTIONS)?;
        if let Some(bytes) = data_size {
            // Jobs run programs from there.
            mount_memory(&place.data(slot), MsFlags::empty(), &format!("size={bytes},mode=0755"))?;
        }
    }
    Ok(())
}

fn mount_memory(at: &Path, flags: MsFlags, options: &str) -> Result<(), Failure> {
    mount(Some("latebind"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | flags, Some(options))
        .context(|| format!("cannot mount a file system in memory at {}", at.display()))
}

/// Makes a private volume that the user named what it has to be: root's alone.
pub fn own_private(path: &Path) -> Result<(), Failure> {
    directory(path, 0o700)?;
    let said = || format!("cannot use {} as the pilot's private volume", path.display());
    let about = fs::symlink_metadata(path).context(said)?;
    if !about.is_dir() || about.uid() != 0 {
        return Err(failure(format!("{}: it must be a directory of root's; chown it, or name another", said())));
    }
    fs::set_permissions(path, Permissions::from_mode(0o700)).context(said)
}

/// Unmounts and removes all of it.
pub fn remove(place: &PodPlace) -> Result<(), Failure> {
    let top = place.top();
    let table = fs::read("/proc/self/mountinfo").context(|| "cannot read /proc/self/mountinfo".into())?;
    // The last one mounted is the topmost.
    for point in mount_points(&table).into_iter().rev().filter(|p| p.starts_with(top)) {
        umount2(&point, MntFlags::MNT_DETACH).context(|| format!("cannot unmount {}", point.display()))?;
    }
    match remove_tree(top) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failure(format!("cannot remove {}: {e}", top.display()))),
        _ => Ok(()),
    }
}

/// A job that ended with its pod has left there what it liked: more levels than can be recursed into, say.
fn remove_tree(top: &Path) -> io::Result<()> {
    let dir = tree::open_dir(top)?;
    tree::remove_content(dir.as_fd(), &Deadline::within(REMOVED_WITHIN))?;
    fs::remove_dir(top)
}

/// The fifth field of each line of a mountinfo, unescaped.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    let field = |line: &[u8]| line.split(|b| *b == b' ').nth(4).map(unescaped);
    table.split(|b| *b == b'\n').filter_map(field).collect()
}

/// Blank, tab, line end and backslash stand as three octal digits in mountinfo.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        };
        match (first, after.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn a_tree_that_is_too_deep_to_recurse_into_is_removed() {
        use nix::fcntl::{OFlag, openat};
        use nix::sys::stat::{Mode, mkdirat};
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("pod");
        fs::create_dir(&top).unwrap();
        let mut at = tree::open_dir(&top).unwrap();
        for _ in 0..20_000 {
            mkdirat(&at, "d", Mode::from_bits_truncate(0o700)).unwrap();
            at = openat(&at, "d", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn mount_points_are_read() {
        let table = b"22 1 0:20 / /proc rw - proc proc rw\n23 1 0:21 / /a\\040b\\134c rw - tmpfs x rw\n";
        assert_eq!(mount_points(table), [PathBuf::from("/proc"), PathBuf::from("/a b\\c")]);
    }
}
