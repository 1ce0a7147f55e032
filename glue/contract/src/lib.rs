//! The contract between glue and watcher: where things lie, what the two say to each other, and how each checks it.
//!
//! Nothing here does input or output, and nothing here is unsafe: both programs, and a fuzzer, use the same code.
#![forbid(unsafe_code)]

pub mod encoding;
pub mod environment;
pub mod layout;
pub mod mounts;
mod numbered;
pub mod object;
pub mod record;
pub mod startup;
pub mod status;
pub mod text;
pub mod time;

/// The only version of the startup file, the record and the status file there is so far.
pub const VERSION: u32 = 1;
