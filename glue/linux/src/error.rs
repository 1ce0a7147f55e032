//! Errors that say what, where and how to repair it, as `io::Error`: a text, and the errno that caused it.
//!
//! Texts come as `format_args!`, so that each of the many places that can fail costs little more than its text.
#![forbid(unsafe_code)]

use core::fmt;
use std::io;

#[derive(Debug)]
struct ContextError {
    text: String,
    errno: i32,
}

/// An error without an errno.
#[cold]
#[inline(never)]
pub fn refused(text: fmt::Arguments<'_>) -> io::Error {
    io::Error::other(ContextError { text: text.to_string(), errno: 0 })
}

/// `what`, and the error that caused it.
#[cold]
#[inline(never)]
pub fn error(what: fmt::Arguments<'_>, cause: &io::Error) -> io::Error {
    io::Error::new(cause.kind(), ContextError { text: format!("{what}: {cause}"), errno: errno_of(cause) })
}

/// The errno of an error, also of one that [`error`] made; 0 where there is none.
pub fn errno_of(e: &io::Error) -> i32 {
    let told = || e.get_ref().and_then(|inner| inner.downcast_ref::<ContextError>()).map(|told| told.errno);
    e.raw_os_error().or_else(told).unwrap_or(0)
}

/// Longest message, in bytes: far below what a record may have.
pub const MESSAGE_MAX: usize = 2000;

/// A text as far as a record or a status can hold it.
pub fn cut(mut text: String) -> String {
    text.truncate((0..=MESSAGE_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0));
    text
}

impl fmt::Display for ContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ContextError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_stays_with_the_text() {
        let denied = io::Error::from_raw_os_error(nix::libc::EACCES);
        let outer = error(format_args!("b"), &error(format_args!("a"), &denied));
        assert_eq!((outer.kind(), errno_of(&outer)), (io::ErrorKind::PermissionDenied, nix::libc::EACCES));
        assert_eq!(outer.to_string(), format!("b: a: {denied}"));
        assert_eq!(errno_of(&refused(format_args!("no"))), 0);
    }
}
