//! The volumes of a pod on the host: made before its containers, removed after them.

use crate::container::PodShape;
use crate::failure::{Context, Failure, failure};
use crate::mountinfo::unescaped;
use crate::place::{PodPlace, directory};
use crate::uids::PodIds;
use latebind_contract::layout::{self, Ids};
use latebind_contract::mounts;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;
use watcher::store::{put_file, put_file_of_several};
use watcher::tree::{self, Deadline};

/// Size of `ctl/`, as on Kubernetes. A payload cannot write there; what glue and watcher write is small.
const CTL_OPTIONS: &str = "size=16m,mode=0700";

/// How long removing a pod's files may take.
const REMOVED_WITHIN: Duration = Duration::from_secs(300);

/// Makes all directories of a pod, mounts what lies in memory, and gives each slot's volumes the owners and modes that
/// `glue install` gives them.
pub fn make(shape: &PodShape, ids: &PodIds) -> Result<(), Failure> {
    let PodShape { place, slots, data_size, .. } = shape;
    directory(place.top(), 0o700)?;
    volume(&place.bin(), 0o755)?;
    for path in [place.private(), place.bind(), place.logs(), place.pidfiles()] {
        directory(&path, 0o700)?;
    }
    for slot in 0..*slots {
        let ctl = place.ctl(slot);
        directory(&ctl, 0o700)?;
        mount_memory(&ctl, MsFlags::MS_NOEXEC, CTL_OPTIONS)?;
        volume(&place.data(slot), 0o755)?;
        if let Some(bytes) = data_size {
            // Jobs run programs from there.
            mount_memory(&place.data(slot), MsFlags::empty(), &format!("size={bytes},mode=0755"))?;
        }
        if shape.is_for_pilot_jobs(slot) {
            volume(&place.clients(slot), 0o755)?;
        }
        let work = place.data(slot).join(layout::WORK);
        directory(&work, 0o700)?;
        let Ids { uid, gid, .. } = ids.of(slot);
        chown(&work, Some(uid), Some(gid)).context(|| format!("cannot give {} to the payload", work.display()))?;
    }
    Ok(())
}

fn mount_memory(at: &Path, flags: MsFlags, options: &str) -> Result<(), Failure> {
    mount(Some("latebind"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | flags, Some(options))
        .context(|| format!("cannot mount a file system in memory at {}", at.display()))
}

/// A directory with this mode, whatever the umask is.
fn volume(path: &Path, mode: u32) -> Result<(), Failure> {
    directory(path, mode)?;
    fs::set_permissions(path, Permissions::from_mode(mode)).context(|| format!("cannot open {}", path.display()))
}

/// Puts the binary that another pod's `glue install` wrote into the volume, if there is one of this image.
pub fn install_known(place: &PodPlace, known: &Path) -> io::Result<bool> {
    match fs::read(known) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        program => {
            put_file_of_several(&place.bin().join(layout::GLUE_NAME), &program?, layout::GLUE_MODE).map(|()| true)
        }
    }
}

/// Remembers the binary that `glue install` wrote.
pub fn remember_glue(place: &PodPlace, known: &Path) -> io::Result<()> {
    // Under a name of this pod's first: another pod may do the same just now. Not as an extension, which a temporary
    // file has another one in place of.
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let own = known.with_file_name(format!("{}-{}", name(known), name(place.top())));
    put_file(&own, &fs::read(place.bin().join(layout::GLUE_NAME))?, 0o400)?;
    fs::rename(own, known)
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
    let reading = || "cannot read /proc/self/mountinfo".to_owned();
    let table = fs::read("/proc/self/mountinfo").context(reading)?;
    let mounted = mounts::parse(&String::from_utf8_lossy(&table)).context(reading)?;
    // The last one mounted is the topmost.
    for point in mounted.iter().rev().map(|mount| unescaped(&mount.point)).filter(|p| Path::new(p).starts_with(top)) {
        umount2(point.as_str(), MntFlags::MNT_DETACH).context(|| format!("cannot unmount {point}"))?;
    }
    // A job that ended with its pod has left there what it liked: more levels than can be recursed into, say.
    tree::remove_tree(top, &Deadline::within(REMOVED_WITHIN)).context(|| format!("cannot remove {}", top.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn pods_that_remember_a_glue_at_once_do_not_meet() {
        let scratch = tempfile::tempdir().unwrap();
        let known = scratch.path().join("0123abcd");
        std::thread::scope(|scope| {
            for pod in 0..8 {
                let place = PodPlace::at(scratch.path().join(format!("pod-{pod}")).to_str().unwrap());
                fs::create_dir_all(place.bin()).unwrap();
                fs::write(place.bin().join(layout::GLUE_NAME), "glue").unwrap();
                let known = &known;
                scope.spawn(move || (0..5).for_each(|_| remember_glue(&place, known).unwrap()));
            }
        });
        assert_eq!(fs::read_to_string(&known).unwrap(), "glue");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 9, "eight pods and what they remember");
    }

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
        tree::remove_tree(&top, &Deadline::within(REMOVED_WITHIN)).unwrap();
        assert!(!top.exists());
    }
}
