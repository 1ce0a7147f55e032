//! Targets `environment-sh`, `environment-nul`, `environment-docker` and `environment-export`: the formats of
//! environment files.
//!
//! What is accepted means what a shell makes of it, or env(1), or docker.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use latebind_contract::environment::{Environment, SyntaxError, apply_docker, apply_export, apply_nul, apply_sh};

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
    let Some((before, env)) = applied(apply_nul, data) else { return };
    // What the kernel takes of one argument.
    if data.len() < 100_000 {
        assert_eq!(of_env(&before, data), env.iter().map(owned).collect::<Vec<_>>());
    }
}

/// Applies a file to two variables, in the order of their names, as `Command` passes them on. Those, and what became of
/// them, where the file was accepted.
fn applied(
    apply: fn(&mut Environment, &[u8]) -> Result<(), SyntaxError>,
    data: &[u8],
) -> Option<(Environment, Environment)> {
    let mut before = Environment::new();
    before.set(b"A", b"1");
    before.set(b"BEFORE", b"2");
    let mut env = before.clone();
    if let Err(refused) = apply(&mut env, data) {
        is_message(&refused, data);
        return None;
    }
    keeps_its_order(&before, &env);
    Some((before, env))
}

/// The input is a file for docker's `--env-file`.
pub fn docker(data: &[u8]) {
    let Some((_, env)) = applied(apply_docker, data) else { return };
    let text = std::str::from_utf8(data).expect("what is not UTF-8 is refused");
    let mut wanted: BTreeMap<&str, &str> = BTreeMap::from([("A", "1"), ("BEFORE", "2")]);
    for line in text.strip_prefix('\u{feff}').unwrap_or(text).split('\n') {
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if !line.is_empty() && !line.starts_with('#') {
            let (name, value) = line.split_once('=').expect("a name alone is refused");
            wanted.insert(name, value);
        }
    }
    let wanted: BTreeMap<_, _> =
        wanted.iter().map(|(name, value)| owned((name.as_bytes(), value.as_bytes()))).collect();
    assert_eq!(env.iter().map(owned).collect::<BTreeMap<_, _>>(), wanted);
}

/// Variables that are bash's own: it refuses to set them, or has values of its own for them.
fn is_bashs_own(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 18] = [
        b"PWD",
        b"OLDPWD",
        b"SHLVL",
        b"_",
        b"UID",
        b"EUID",
        b"PPID",
        b"SHELLOPTS",
        b"RANDOM",
        b"SRANDOM",
        b"SECONDS",
        b"LINENO",
        b"HISTCMD",
        b"DIRSTACK",
        b"FUNCNAME",
        b"GROUPS",
        b"OPTIND",
        b"POSIXLY_CORRECT",
    ];
    NAMES.contains(&name) || [&b"BASH"[..], b"COMP_", b"EPOCH"].iter().any(|start| name.starts_with(start))
}

/// The input is what `export -p` has printed.
pub fn export(data: &[u8]) {
    let Some((_, env)) = applied(apply_export, data) else { return };
    // What bash has printed of an integer, or in one case of letters, it would print so again; other values it changes.
    let changes = |flags: &[u8]| flags.iter().take_while(|b| b.is_ascii_alphabetic()).any(|b| b"ilu".contains(b));
    if data.windows(9).enumerate().any(|(at, part)| part == b"declare -" && changes(&data[at + 9..])) {
        return;
    }
    // bash marks what it has quoted by these two bytes, and loses some of those that were there before.
    if data.contains(&0x01) || data.contains(&0x7f) {
        return;
    }
    let mut bash = Command::new("/bin/bash")
        .args(["--noprofile", "--norc", "-s"])
        .env_clear()
        .envs([("A", "1"), ("BEFORE", "2")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("bash");
    let mut script = bash.stdin.take().expect("a pipe");
    // It may end before it has read all, which the comparison shows.
    let _ = script.write_all(data).and_then(|()| script.write_all(b"\nexec /usr/bin/env -0\n"));
    drop(script);
    let output = bash.wait_with_output().expect("bash ends");
    let theirs = output.stdout.split(|b| *b == 0).filter_map(|entry| {
        let at = entry.iter().position(|b| *b == b'=')?;
        Some((entry[..at].to_vec(), entry[at + 1..].to_vec()))
    });
    let theirs: BTreeMap<_, _> = theirs.filter(|(name, _)| !is_bashs_own(name)).collect();
    let ours: BTreeMap<_, _> = env.iter().map(owned).filter(|(name, _)| !is_bashs_own(name)).collect();
    assert_eq!(ours, theirs);
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
