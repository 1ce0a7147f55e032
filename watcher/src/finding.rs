//! One finding of `watcher check`: what was looked at, how good it is, and what to do about it.

use std::fmt::{self, Display};

use crate::text::one_line;

/// How good one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it has to be.
    Good,
    /// Jobs can be run, but not all as well.
    Warning,
    /// No job is to be claimed.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it is.
    pub grade: Grade,
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub finding: String,
    /// What to do about it.
    pub fix: String,
}

impl Finding {
    /// Good with this finding, or failed with this error and fix.
    pub fn of<E: Display>(what: &str, finding: Result<String, E>, fix: &str) -> Self {
        match finding {
            Ok(finding) => Self::good(what, &finding),
            Err(e) => Self::fail(what, &e.to_string(), fix),
        }
    }

    /// As it has to be.
    pub fn good(what: &str, finding: &str) -> Self {
        Self { grade: Grade::Good, what: what.into(), finding: finding.into(), fix: String::new() }
    }

    /// Not as good as it could be.
    pub fn warning(what: &str, finding: &str, fix: &str) -> Self {
        Self { grade: Grade::Warning, what: what.into(), finding: finding.into(), fix: fix.into() }
    }

    /// Not usable.
    pub fn fail(what: &str, finding: &str, fix: &str) -> Self {
        Self { grade: Grade::Fail, what: what.into(), finding: finding.into(), fix: fix.into() }
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Good => "ok",
            Grade::Warning => "warn",
            Grade::Fail => "FAIL",
        };
        write!(f, "{grade:<4}  {}: {}", one_line(&self.what), one_line(&self.finding))?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, "; fix: {}", one_line(&self.fix)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let line = Finding::of::<&str>("API", Err("no\nway\x1b[2J"), "do it");
        assert_eq!(line.to_string(), "FAIL  API: no way?[2J; fix: do it");
        assert_eq!(Finding::good("a", "b").to_string(), "ok    a: b");
    }
}
