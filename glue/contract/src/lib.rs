//! The contract between glue and watcher: where things lie, what the two say to each other, and how each checks it.
//!
//! What only the watcher needs is behind the feature `watcher`, without which glue is built.
//!
//! Nothing here does input or output, and nothing here is unsafe: both programs, and a fuzzer, use the same code.
#![forbid(unsafe_code)]

pub mod attach;
pub mod bytes;
pub mod command;
pub mod encoding;
pub mod environment;
pub mod exec_reason;
pub mod layout;
pub mod mounts;
mod numbered;
pub mod object;
pub mod order;
pub mod record;
pub mod report;
#[cfg(feature = "watcher")]
pub mod startup;
pub mod status;
pub mod text;
pub mod time;
#[cfg(feature = "watcher")]
pub mod verify;
#[cfg(feature = "watcher")]
pub mod words;

/// The version of the startup file, the record and the status file; `docs/protocol.md` says when it changes.
pub const VERSION: u32 = 2;
