//! What an error on a slot's volume means for a job.

use std::io;

use crate::reason::{Failure, Reason};

/// Whether a volume had no room.
pub fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What could not be done with something in the slot's volumes.
pub fn failed_at(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |e| {
        let reason = if is_full(&e) { Reason::VolumeFull } else { Reason::StagingError };
        Failure::retry(reason, format!("{what}: {e}"))
    }
}
