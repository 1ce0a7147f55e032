//! What outlives a process: System V IPC, POSIX message queues and shared memory.

use std::fs;

use serde_json::json;

use crate::{say, sys};

const KEY: i32 = 0x6c61_7465;
const SHARED_MEMORY_FILE: &str = "/dev/shm/latebind-probe";

/// Leaves one of each kind behind.
pub fn create() -> Result<i32, String> {
    let report = |kind: &str, result: std::io::Result<i32>| {
        let error = result.as_ref().err().map(ToString::to_string);
        say(&json!({"created": kind, "ok": result.is_ok(), "id": result.ok(), "error": error}));
    };
    report("shm", sys::shared_memory(KEY));
    report("sem", sys::semaphores(KEY));
    report("msg", sys::message_queue(KEY));
    report("mqueue", sys::posix_message_queue(c"/latebind-probe"));
    report("file", fs::write(SHARED_MEMORY_FILE, "left behind\n").map(|()| 0));
    let directory = format!("{SHARED_MEMORY_FILE}.d/deep");
    report("directory", fs::create_dir_all(&directory).and_then(|()| fs::write(directory + "/file", "")).map(|()| 0));
    Ok(0)
}

/// What is visible, with its owner.
pub fn list() -> Result<i32, String> {
    for kind in ["shm", "sem", "msg"] {
        let table = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let head = lines.next().unwrap_or_default();
        for line in lines {
            let field =
                |name: &str| head.iter().position(|column| *column == name).and_then(|at| line.get(at)).copied();
            let number = |name: &str| field(name).and_then(|text| text.parse::<i64>().ok());
            let id = ["shmid", "semid", "msqid"].into_iter().find_map(number);
            say(&json!({"kind": kind, "key": number("key"), "id": id, "uid": number("uid"), "cuid": number("cuid")}));
        }
    }
    for (kind, directory) in [("file", "/dev/shm"), ("mqueue", "/dev/mqueue")] {
        use std::os::unix::fs::MetadataExt;
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let uid = entry.metadata().map(|file| file.uid()).ok();
            say(&json!({"kind": kind, "name": entry.file_name().to_string_lossy(), "uid": uid}));
        }
    }
    Ok(0)
}
