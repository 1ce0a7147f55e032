//! Targets `environment-sh` and `environment-nul`: the two formats of environment files.
//!
//! What is accepted means what a shell makes of it, or what env(1) does.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use latebind_contract::environment::{Environment, SyntaxError, apply_nul, apply_sh};

use crate::input::Input;
use crate::shells::{Shells, starting_environments};

/// One set of shells for each starting environment; they go on from input to input.
static SHELLS: Mutex<BTreeMap<usize, Shells>> = Mutex::new(BTreeMap::new());

/// The first byte chooses the environment that the file starts from, the rest is the file.
pub fn sh(data: &[u8]) {
    let mut input = Input::new(data);
    let starts = starting_environments();
    let which = input.below(starts.len());
    let mut env = Environment::new();
    for (name, value) in &starts[which] {
        env.set(name.as_bytes(), value);
    }
    let before = env.clone();
    let text = input.rest();
    match apply_sh(&mut env, text) {
        Err(refused) => is_message(&refused, text),
        Ok(()) => {
            let mut shells = SHELLS.lock().unwrap_or_else(|e| e.into_inner());
            let shells = shells.entry(which).or_insert_with(|| Shells::start(&starts[which]));
            if let Err(different) = shells.agree(text, &env) {
                panic!("start {which}: {different}");
            }
            keeps_its_order(&before, &env);
        }
    }
}

/// The input is the file.
pub fn nul(data: &[u8]) {
    let mut env = Environment::new();
    // In the order of their names, as `Command` passes them on.
    env.set(b"A", b"1");
    env.set(b"BEFORE", b"2");
    let before = env.clone();
    match apply_nul(&mut env, data) {
        Err(refused) => is_message(&refused, data),
        Ok(()) => {
            keeps_its_order(&before, &env);
            // What the kernel takes of one argument.
            if data.len() < 100_000 {
                assert_eq!(of_env(&before, data), env.iter().map(owned).collect::<Vec<_>>());
            }
        }
    }
}

fn owned((name, value): (&[u8], &[u8])) -> (Vec<u8>, Vec<u8>) {
    (name.to_vec(), value.to_vec())
}

/// What env(1) makes of the same entries, in its order.
fn of_env(before: &Environment, data: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let entries = data.strip_suffix(b"\0").unwrap_or(data).split(|b| *b == 0).filter(|_| !matches!(data, b"" | b"\0"));
    let mut command = Command::new("/usr/bin/env");
    command.arg("--").env_clear().stdin(Stdio::null());
    // A name that begins with '-' is not an option, since "--" is before it.
    for (name, value) in before.iter() {
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    }
    command.args(entries.map(OsStr::from_bytes)).args(["/usr/bin/env", "-0"]);
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = output.stdout.strip_suffix(b"\0").unwrap_or(&output.stdout);
    let halves = |entry: &[u8]| {
        let equals = entry.iter().position(|b| *b == b'=').unwrap();
        (entry[..equals].to_vec(), entry[equals + 1..].to_vec())
    };
    printed.split(|b| *b == 0).map(halves).collect()
}

/// A variable that was there before keeps its place, and nothing is there twice.
fn keeps_its_order(before: &Environment, after: &Environment) {
    let names = |env: &Environment| env.iter().map(|(name, _)| name.to_vec()).collect::<Vec<_>>();
    let (before, after) = (names(before), names(after));
    assert_eq!(after.get(..before.len()), Some(before.as_slice()));
    let mut sorted = after.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), after.len(), "a variable is there twice");
}

/// A refusal points into the file and does not repeat it.
fn is_message(refused: &SyntaxError, text: &[u8]) {
    assert!(refused.line >= 1 && refused.column >= 1);
    assert!(refused.line <= text.len() + 1 && refused.column <= text.len() + 1, "{refused}: outside of the file");
    let message = refused.to_string();
    assert!(message.len() < 300 && !message.contains(char::is_control), "{message}");
}
