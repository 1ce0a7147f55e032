//! Work that must be done under the payload's rights, by a process of its own: `watcher helper ...`.
//!
//! The watcher has threads and is root; the kill routine forks and gives up its rights. So each such task is a fresh process,
//! which knows nothing of keys and ends when the task is done.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use glue::contract::layout::Ids;
use glue::kill::{Routine, take_ids};
use glue::processes::Proc;
use glue::sys::{SystemV, remove_system_v};

use crate::tree;

/// Ends every process of the payload UID in the container with these cgroups. Returns how many still live.
pub fn kill(ids: Ids, cgroup: &str, within: Duration) -> io::Result<u64> {
    let said = call("kill", ids, &format!("{} {cgroup}", within.as_millis()))?;
    said.trim().parse().map_err(|_| io::Error::other(format!("the kill helper said {said:?}")))
}

/// Removes the POSIX and System V IPC objects of the payload UID.
pub fn clean_ipc(ids: Ids) -> io::Result<()> {
    call("clean-ipc", ids, "").map(drop)
}

fn call(task: &str, ids: Ids, input: &str) -> io::Result<String> {
    let numbers = [ids.uid, ids.gid, ids.kill_uid].map(|n| n.to_string());
    let mut child = Command::new("/proc/self/exe")
        .arg("helper")
        .arg(task)
        .args(numbers)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut to) = child.stdin.take() {
        to.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("the helper for {task} ended with {}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The helper's side: `task` with the slot's numbers, the rest on standard input. Returns what to print.
pub fn main(task: &str, ids: Ids) -> io::Result<String> {
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    match task {
        "kill" => {
            let (millis, cgroup) = input.split_once(' ').ok_or_else(|| io::Error::other("no cgroups were given"))?;
            let within = Duration::from_millis(millis.parse().map_err(io::Error::other)?);
            let proc = Proc::open()?;
            Routine { proc: &proc, ids, cgroup }.run(Instant::now() + within).map(|left| left.to_string())
        }
        "clean-ipc" => {
            // Files in /dev/shm and /dev/mqueue may lie in directories that only root can change; the System V calls know
            // an object's owner only.
            remove_owned("/dev/shm", ids.uid);
            remove_owned("/dev/mqueue", ids.uid);
            take_ids(ids)?;
            remove_all_system_v(ids.uid);
            Ok(String::new())
        }
        other => Err(io::Error::other(format!("there is no task {other}"))),
    }
}

/// Removes entries of `dir` that belong to `uid`, no link followed.
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

/// Removes what `/proc/sysvipc` (proc_sysvipc(5)) lists as owned or made by `uid`.
fn remove_all_system_v(uid: u32) {
    let kinds = [("shm", SystemV::Memory), ("sem", SystemV::Semaphores), ("msg", SystemV::Messages)];
    for (name, kind) in kinds {
        let text = fs::read_to_string(format!("/proc/sysvipc/{name}")).unwrap_or_default();
        for id in owned_ids(&text, uid) {
            let _ = remove_system_v(kind, id);
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
