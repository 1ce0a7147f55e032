//! IPC objects that outlive the processes of one user ID, found and removed in the namespaces of the process that asks.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use latebind_linux::sys::{SystemV, remove_system_v};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::tree::listing::{Listing, shown};
use crate::tree::{self, Deadline};

/// Where POSIX shared memory and POSIX message queues are files.
const DIRECTORIES: [&str; 2] = ["/dev/shm", "/dev/mqueue"];
/// The tables of `/proc/sysvipc` (proc_sysvipc(5)).
const TABLES: [(&str, SystemV); 3] =
    [("shm", SystemV::Memory), ("sem", SystemV::Semaphores), ("msg", SystemV::Messages)];
/// The mode bit of a shared memory segment that is removed (shmctl(2)).
const SHM_DEST: u32 = 0o1000;

/// Removes the files of `uid` in `/dev/shm` and `/dev/mqueue`, following no link, whatever others have there and add to
/// it.
/// They may lie in directories that only root can change. Fails where one is left.
pub fn remove_files(uid: u32, deadline: &Deadline<'_>) -> io::Result<()> {
    DIRECTORIES.into_iter().map(|dir| remove_owned(dir, uid, deadline)).fold(Ok(()), Result::and)
}

/// The System V objects that `uid` owns or has made, and that are not removed yet.
pub fn system_v_of(uid: u32) -> Vec<(SystemV, i32)> {
    let of_table = |(name, kind): (&str, SystemV)| {
        let text = fs::read_to_string(format!("/proc/sysvipc/{name}")).unwrap_or_default();
        owned_ids(&text, uid).into_iter().map(move |id| (kind, id)).collect::<Vec<_>>()
    };
    TABLES.into_iter().flat_map(of_table).collect()
}

/// Removes System V objects: their owner's process, or their maker's, may.
pub fn remove_all(objects: &[(SystemV, i32)]) {
    for (kind, id) in objects {
        let _ = remove_system_v(*kind, *id);
    }
}

/// Removes the System V objects of `uid`, whose process this has to be. Fails where some are left.
pub fn remove_system_v_of(uid: u32) -> io::Result<()> {
    remove_all(&system_v_of(uid));
    match system_v_of(uid).len() {
        0 => Ok(()),
        n => Err(io::Error::other(format!("{n} System V objects are left"))),
    }
}

fn remove_owned(dir: &str, uid: u32, deadline: &Deadline<'_>) -> io::Result<()> {
    let top = match tree::open_dir(Path::new(dir)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        top => top?,
    };
    let (mut listing, mut failed) = (Listing::default(), None);
    while let Some(entry) = listing.next(top.as_fd())? {
        deadline.check()?;
        if fstatat(&top, entry.name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_uid == uid)
            && let Err(e) = remove_entry(top.as_fd(), entry.name, deadline)
        {
            failed = Some(io::Error::new(e.kind(), format!("{dir}/{}: {e}", shown(entry.name))));
        }
    }
    failed.map_or(Ok(()), Err)
}

fn remove_entry(top: BorrowedFd<'_>, name: &CStr, deadline: &Deadline<'_>) -> io::Result<()> {
    match unlinkat(top, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => {}
        result => return Ok(result?),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = openat(top, name, flags, Mode::empty())?;
    // Its owner stays, so that it is found again, and has no process that could open it.
    fchmod(&dir, Mode::from_bits_truncate(0o700))?;
    tree::remove_content(dir.as_fd(), deadline)?;
    Ok(unlinkat(top, name, UnlinkatFlags::RemoveDir)?)
}

/// The second column of the rows whose `uid` or `cuid` column is `uid`, but for what is removed and only waits for its
/// users.
fn owned_ids(table: &str, uid: u32) -> Vec<i32> {
    let mut lines = table.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let columns = ["uid", "cuid"].map(|wanted| names.iter().position(|name| *name == wanted));
    let perms = names.iter().position(|name| *name == "perms");
    let uid = uid.to_string();
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let mode = perms.and_then(|n| u32::from_str_radix(fields.get(n)?, 8).ok()).unwrap_or(0);
            if mode & SHM_DEST != 0 {
                return None;
            }
            let owned = columns.iter().flatten().any(|n| fields.get(*n) == Some(&uid.as_str()));
            owned.then(|| fields.get(1)?.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::owned_ids;

    #[test]
    fn owners_are_found_by_the_header() {
        let table = "       key      shmid perms  size  cpid  lpid nattch   uid   gid  cuid  cgid\n\
                     1 7 600 4096 1 1 0 20000 20000 20000 20000\n\
                     2 8 600 4096 1 1 0 0 0 20000 0\n\
                     4 6 1600 4096 1 1 1 20000 20000 20000 20000\n\
                     3 9 600 20000 1 1 0 0 0 0 0\n";
        assert_eq!(owned_ids(table, 20_000), [7, 8]);
        assert!(owned_ids("", 1).is_empty());
    }
}
