//! What a hostile client does to the watcher's sockets. What is open stays so until standard input ends.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::json;

use crate::{say, sys};

fn connect(path: &str) -> Result<UnixStream, String> {
    sys::ignore(libc::SIGPIPE);
    UnixStream::connect(path).map_err(|e| format!("{path}: {e}"))
}

/// Keeps everything open until whoever started this has seen enough.
fn until_told() {
    let _ = io::stdin().read_to_end(&mut Vec::new());
}

/// Opens so many connections and says this on each, without the end of the line where it has none.
pub fn flood(path: &str, count: u64, text: &str) -> Result<i32, String> {
    let mut open = Vec::new();
    for _ in 0..count {
        let mut stream = connect(path)?;
        // One that was refused may be closed already.
        let _ = stream.write_all(text.as_bytes());
        open.push(stream);
    }
    say(&json!({"connected": open.len()}));
    until_told();
    Ok(0)
}

/// Sends lines with so many descriptors each, on one connection after the other where the last one was closed.
pub fn descriptors(path: &str, lines: u64, each: u64, text: &str) -> Result<i32, String> {
    let file = File::open("/dev/zero").map_err(|e| e.to_string())?;
    let numbers = vec![file.as_raw_fd(); usize::try_from(each).unwrap_or(0)];
    let (line, rights) = (format!("{text}\n"), [ControlMessage::ScmRights(&numbers)]);
    let (mut stream, mut connections) = (connect(path)?, 1);
    for _ in 0..lines {
        let parts = [IoSlice::new(line.as_bytes())];
        if sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None).is_err() {
            (stream, connections) = (connect(path)?, connections + 1);
        }
    }
    say(&json!({"sent": lines * each, "connections": connections}));
    until_told();
    Ok(0)
}

/// Says this again and again, and never reads; says once it was dropped.
pub fn silent(path: &str, text: &str) -> Result<i32, String> {
    let mut stream = connect(path)?;
    let line = format!("{text}\n");
    while stream.write_all(line.as_bytes()).is_ok() {}
    say(&json!({"dropped": true}));
    Ok(0)
}

/// Says this, without the end of the line, and prints what comes until the end of the connection.
pub fn half(path: &str, text: &str) -> Result<i32, String> {
    let mut stream = connect(path)?;
    stream.write_all(text.as_bytes()).map_err(|e| e.to_string())?;
    let mut said = String::new();
    stream.read_to_string(&mut said).map_err(|e| e.to_string())?;
    say(&json!({"dropped": true, "said": said}));
    Ok(0)
}
