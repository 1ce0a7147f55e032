//! What engines have to know of this machine.

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use std::fs;
use std::path::Path;

/// Whether the unified hierarchy is the one that limits.
pub fn cgroup_v2() -> bool {
    statfs("/sys/fs/cgroup").is_ok_and(|f| f.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Whether this kernel counts swap, so that the engine can set a limit on it.
pub fn swap_is_counted() -> bool {
    if cgroup_v2() {
        // The root of the hierarchy has no limit files; any child shows whether its children would.
        fs::read_dir("/sys/fs/cgroup")
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("memory.swap.max").exists()))
    } else {
        Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
    }
}
