//! A job's environment, and the four formats of environment files that change it.
//!
//! Stage two of glue parses these files as the payload user. They are the one place where a pilot's habit of writing
//! shell meets an image that may have none, so the rule is: what is accepted means exactly what `sh` would have made
//! of it, and all else is an error.

mod lists;
mod problem;
mod shell;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use lists::{apply_docker, apply_export};
pub use problem::Problem;
pub use shell::apply_sh;

use problem::STEPS_MAX;

/// Variables of the container that describe root and are never inherited by a job.
pub const OF_ROOT: [&str; 5] = ["HOME", "USER", "LOGNAME", "PWD", "OLDPWD"];

/// Variables in the order in which they were first set. A name or value is any run of bytes: what the container's
/// environment has is passed on as it is, whether or not a shell could have made it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where each name is in `entries`: a job may set hundreds of thousands, and its start has a deadline.
    index: BTreeMap<Vec<u8>, usize>,
}

impl Environment {
    /// An environment without variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of `name`, where it is set.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.entries.get(*self.index.get(name)?).map(|(_, value)| value.as_slice())
    }

    /// Sets `name`; a variable that is set already keeps its place and loses its value.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        if let Some((_, old)) = self.index.get(name).and_then(|at| self.entries.get_mut(*at)) {
            *old = value.to_vec();
            return;
        }
        self.index.insert(name.to_vec(), self.entries.len());
        self.entries.push((name.to_vec(), value.to_vec()));
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// How many variables are set.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no variable is set.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The name and the value of `NAME=VALUE`. `None` where there is no `=`.
pub fn halves(variable: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = variable.iter().position(|byte| *byte == b'=')?;
    Some((variable.get(..at)?, variable.get(at.saturating_add(1)..)?))
}

/// Why an environment file is refused, and where. The caller adds the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line, from 1; in the format `nul` the number of the entry.
    pub line: usize,
    /// Byte within the line or entry, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: Problem,
    /// The byte that is in the way, where the problem is one byte; else 0.
    pub byte: u8,
}

impl core::fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        self.problem.write(self.byte, f)
    }
}

impl core::error::Error for SyntaxError {}

/// Applies a file of NAME=value entries that are separated by NUL bytes; the last NUL may be missing. Nothing in an
/// entry is special. An entry without a name or without '=' is refused, with its number as the line.
///
/// On an error the environment has what stood before it, and is of no use.
pub fn apply_nul(env: &mut Environment, text: &[u8]) -> Result<(), SyntaxError> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Ok(());
    }
    for (n, entry) in text.split(|b| *b == 0).enumerate() {
        let refuse = |problem| Err(SyntaxError { line: n.saturating_add(1), column: 1, problem, byte: 0 });
        if n >= STEPS_MAX {
            return refuse(Problem::TooMany);
        }
        match halves(entry) {
            Some(([], _)) => return refuse(Problem::EntryWithoutName),
            Some((name, value)) => env.set(name, value),
            None => return refuse(Problem::EntryWithoutEquals),
        }
    }
    Ok(())
}
