//! Glue's log: lines on standard error that can neither block nor end it.
//!
//! A reader that stopped reading, or a pipe that somebody made non-blocking, must not stop the supervision of a job. What
//! can not be written at once is dropped and counted; the count is in `status.json`.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, IntoRawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::fcntl::OFlag;

use crate::sys;

static FD: AtomicI32 = AtomicI32::new(2);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Opens standard error a second time, non-blocking: the flag belongs to the open file, so the one that others share stays
/// as it is. Where that can not be done (a socket), lines go to the shared one.
pub fn open_non_blocking() {
    let path = c"/proc/self/fd/2";
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_APPEND;
    if let Ok(fd) = sys::openat(nix::fcntl::AT_FDCWD, path, flags.bits(), 0) {
        // Above the numbers that stage two gets its descriptors on.
        if let Ok(high) = sys::duplicate_above(fd.as_fd(), 100) {
            FD.store(high.into_raw_fd(), Ordering::Relaxed);
        }
    }
}

/// Writes one line, with the program's name before it.
pub fn line(text: core::fmt::Arguments<'_>) {
    // A line stays one line, and an escape sequence in a file name stays text.
    let mut line = format!("glue: {text}").replace(char::is_control, "?");
    line.push('\n');
    match sys::write_raw(FD.load(Ordering::Relaxed), line.as_bytes()) {
        Ok(n) if n == line.len() => {}
        _ => {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Lines that could not be written so far.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}
