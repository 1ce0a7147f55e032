//! Why no container was bound, as the bind protocol says it.

use crate::engine::CallError;
use std::fmt;
pub use watcher::bind::{Class, Reason};

/// Why no container was bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whether another try may do.
    pub class: Class,
    /// One word, of the bind protocol.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// An error that the user has to correct.
    pub fn hold(reason: Reason, message: impl Into<String>) -> Self {
        Self { class: Class::Hold, reason, message: message.into() }
    }

    /// An error that may not occur again.
    pub fn retry(reason: Reason, message: impl Into<String>) -> Self {
        Self { class: Class::Retry, reason, message: message.into() }
    }

    /// The engine itself is what failed.
    pub fn engine(doing: &str, e: &CallError) -> Self {
        Self::retry(Reason::EngineError, format!("{doing}: {e}"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}
