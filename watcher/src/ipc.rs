//! IPC objects that outlive the processes of one user ID, found and removed in the namespaces of the process that asks.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use glue::sys::{SystemV, remove_system_v};

use crate::tree;

/// Where POSIX shared memory and POSIX message queues are files.
const DIRECTORIES: [&str; 2] = ["/dev/shm", "/dev/mqueue"];
/// The tables of `/proc/sysvipc` (proc_sysvipc(5)).
const TABLES: [(&str, SystemV); 3] =
    [("shm", SystemV::Memory), ("sem", SystemV::Semaphores), ("msg", SystemV::Messages)];

/// Removes the files of `uid` in `/dev/shm` and `/dev/mqueue`, following no link. They may lie in directories that only root
/// can change.
pub fn remove_files(uid: u32) {
    for dir in DIRECTORIES {
        remove_owned(dir, uid);
    }
}

/// The System V objects that `uid` owns or has made.
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

/// Whether `uid` still has a file in `/dev/shm` or `/dev/mqueue`.
pub fn has_files(uid: u32) -> bool {
    let entries = DIRECTORIES.into_iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    entries.into_iter().any(|entry| entry.path().symlink_metadata().is_ok_and(|m| m.uid() == uid))
}

fn remove_owned(dir: &str, uid: u32) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Ok(metadata) = path.symlink_metadata()
            && metadata.uid() == uid
        {
            let _ = if metadata.is_dir() {
                tree::open_dir(&path)
                    .and_then(|dir| tree::remove_content(dir.as_fd()))
                    .and_then(|()| fs::remove_dir(&path))
            } else {
                fs::remove_file(&path)
            };
        }
    }
}

/// The second column of the rows whose `uid` or `cuid` column is `uid`.
fn owned_ids(table: &str, uid: u32) -> Vec<i32> {
    let mut lines = table.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let columns = ["uid", "cuid"].map(|wanted| names.iter().position(|name| *name == wanted));
    let uid = uid.to_string();
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
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
                     3 9 600 20000 1 1 0 0 0 0 0\n";
        assert_eq!(owned_ids(table, 20_000), [7, 8]);
        assert!(owned_ids("", 1).is_empty());
    }
}
