//! Which processes are there?

use std::fs;

/// The IDs of all processes of the PID namespace, in the order of `/proc`: ascending.
pub fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
