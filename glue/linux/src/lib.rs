//! What glue and watcher need of Linux: system calls, files of the volumes, processes, cgroups, and the kill routine.
//!
//! All unsafe code is in [`sys`]; every other module forbids it.

#[cfg(feature = "watcher")]
pub mod cgroup;
pub mod error;
pub mod filter;
pub mod kill;
pub mod proc;
pub mod processes;
pub mod sys;
pub mod volume;
