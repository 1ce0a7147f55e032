//! Who owns the slots, takes jobs and remembers them: the core, and the sockets at which clients reach it.

pub mod client;
pub mod clients;
mod connection;
mod core;
mod holding;
mod holds;
mod lines;
mod mailbox;
mod marks;
mod out_of_service;
pub mod pilot_jobs;
mod placement;
pub mod protocol;
mod queue;
mod quota;
pub mod server;
pub mod service;
pub mod sizes;
mod slots;
mod start;
mod steering;

pub use self::core::Core;
pub use self::mailbox::{Mailbox, News};
pub use self::placement::Placement;
pub use self::start::{Parts, Running};

/// Where the pilot's private volume is mounted.
pub const PRIVATE: &str = "/var/lib/latebind";
