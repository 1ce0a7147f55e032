//! Commands in the machine of `make test-v2`.

use std::ffi::OsStr;
use std::process::{Command, Output};

/// Runs a command to its end.
///
/// # Panics
///
/// Where it cannot be run.
pub fn output<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs a command that has to succeed; what it printed to standard output.
///
/// # Panics
///
/// Where it fails, with what it printed.
pub fn succeed<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = output(program, arguments);
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    assert!(output.status.success(), "{program} {}: {}", words.join(" "), shown(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How a command ended and what it printed, for a message.
pub fn shown(output: &Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{stdout}{stderr}", output.status)
}
