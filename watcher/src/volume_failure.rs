//! What an error on a slot's volume means for a job.

use std::io;

use nix::errno::Errno;

use crate::reason::{Failure, Reason};

/// Whether a volume had no room.
pub fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an error of reading something is the machine's or the file system's, and may pass: no fault of whoever owns
/// what was to be read.
pub fn may_pass(e: &io::Error) -> bool {
    const PASSING: [Errno; 6] =
        [Errno::EINTR, Errno::EIO, Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ETIMEDOUT];
    e.raw_os_error().is_some_and(|errno| PASSING.contains(&Errno::from_raw(errno)))
}

/// What could not be done with something in the slot's volumes.
pub fn failed_at(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |e| {
        let reason = if is_full(&e) { Reason::VolumeFull } else { Reason::StagingError };
        Failure::retry(reason, format!("{what}: {e}"))
    }
}
