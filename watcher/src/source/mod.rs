//! Where jobs come from.

mod claimed;
mod job_file;
mod listing;
mod needs;
mod own_dir;
mod queue;
pub mod remote;
pub mod spool;

pub use claimed::Claimed;
pub(crate) use claimed::JOB_FILE_MAX;
pub use listing::may_look_again;
pub use queue::Queue;
