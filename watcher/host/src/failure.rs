//! What went wrong, told to the person who called: what, where, how to repair it.

use std::fmt;

/// Ends the program with code 125, as an engine's own failures do.
#[derive(Debug)]
pub struct Failure(String);

/// A failure with this message.
pub fn failure(message: impl Into<String>) -> Failure {
    Failure(message.into())
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Adds what was being done to an error of the operating system.
pub trait Context<T> {
    /// `doing()` says what was tried, and on what.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| Failure(format!("{}: {e}", doing())))
    }
}
