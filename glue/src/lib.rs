//! Glue, and the contract that it keeps with the watcher.
pub mod contract;
