//! The watcher: beside a pilot, it binds images, starts jobs, watches them, and believes only verified records.
//!
//! Data goes one way: a source hands over a job ([`source`]); the core ([`serve`]) gives it a slot; [`job`] takes it
//! through stage, bind, start, run, collect, clean; [`bind`] changes the slot's image and proves what then runs there;
//! the report goes back to the source.
#![forbid(unsafe_code)]

pub mod bind;
pub mod caller;
pub mod check;
pub mod child;
pub mod clean;
pub mod docker_options;
pub mod finding;
pub mod helper;
pub mod ipc;
pub mod job;
pub mod keys;
pub mod layout;
pub mod metrics;
#[cfg(test)]
mod no_threads;
pub mod pace;
pub mod pages;
pub mod pids;
pub mod pilot;
pub mod random;
pub mod reason;
pub mod reference;
pub mod run;
pub mod serve;
pub mod size;
pub mod slot;
pub mod source;
pub mod stop;
pub mod store;
pub mod terminal;
pub mod text;
pub mod tree;
pub mod views;
pub mod volume_failure;
pub mod web;
