//! Glue, the first process of a late-bound payload container, and the contract that it keeps with the watcher.
//!
//! Start reading at [`run`]; what a security review looks for is in [`stage_one`] (the privilege drop), [`kill`] (the
//! kill
//! routine), [`volume`] (every privileged open), [`claim`] (the key) and [`sys`] (all unsafe code).

pub mod cgroup;
pub mod claim;
pub mod contract;
pub mod error;
pub mod events;
pub mod exec_failure;
pub mod exec_reason;
pub mod filter;
pub mod install;
pub mod kill;
pub mod log;
pub mod names;
pub mod pause;
pub mod processes;
pub mod report;
pub mod rootfs;
pub mod run;
pub mod stage_one;
pub mod stage_two;
pub mod start;
pub mod supervise;
pub mod sys;
pub mod volume;
