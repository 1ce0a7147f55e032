//! What a tool takes while it waits: resident memory, and how often it is woken.

use std::fs;

use crate::Failed;

/// One look at a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident set, in KiB: with the pages of its program that all processes running it share.
    pub rss: u64,
    /// Its proportional share, in KiB.
    pub pss: u64,
    /// Pages that it has alone and has written, in KiB: what one more of it would cost.
    pub dirty: u64,
}

fn read(path: &str) -> Result<String, Failed> {
    fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Memory of a process and of its children, from smaps_rollup.
pub fn memory(pid: i32) -> Result<Memory, Failed> {
    let text = read(&format!("/proc/{pid}/smaps_rollup"))?;
    let dirty = field(&text, "Private_Dirty");
    Ok(Memory { rss: field(&text, "Rss"), pss: field(&text, "Pss"), dirty })
}

/// How often the process gave the processor away or lost it, so far: each wake-up counts once.
pub fn switches(pid: i32) -> Result<u64, Failed> {
    let text = read(&format!("/proc/{pid}/status"))?;
    Ok(field(&text, "voluntary_ctxt_switches") + field(&text, "nonvoluntary_ctxt_switches"))
}
