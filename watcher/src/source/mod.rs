//! Where jobs come from.

mod claimed;
mod job_file;
mod listing;
mod own_dir;
mod queue;
pub mod spool;

pub use claimed::Claimed;
pub use queue::Queue;
