//! What the integration tests share: slots and pods on real containers, and how to look at them from outside.
//!
//! Everything here has a limit in time and ends a test by panicking: a test fails, it never hangs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "this is test code: it ends a test by panicking, and reports by printing"
)]

pub mod engine;
pub mod exchange;
pub mod fault;
pub mod job;
pub mod made_image;
pub mod pod;
pub mod processes;
pub mod rate;
pub mod registry;
pub mod scratch;
pub mod shortage;
pub mod slot;
pub mod terminal;
pub mod tracer;
pub mod waiting;
pub mod web;
