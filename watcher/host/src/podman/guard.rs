//! Runs between podman and its runtime: checks what the runtime is given for a payload container, takes out what only
//! an image can have put there, and refuses what was not asked for.
//!
//! Podman starts this program under the runtime's name, `<state>/oci/runc`. For `create` it examines the bundle's
//! `config.json` ([`super::given`]); then, and for every other subcommand at once, it becomes the runtime.

use super::given::examine;
use super::nodev;
use crate::place::Place;
use crate::search_path::in_path;
use serde_json::{Value, json};
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use watcher::store::read_bounded;

/// The runtimes that it can be called as.
const RUNTIMES: [&str; 2] = ["runc", "crun"];
/// The one that does not keep the options with which a container's root file system is mounted.
const FORGETTING: &str = "crun";
/// Largest `config.json` that is read: an image's environment is in it, which has bounds of its own.
const CONFIG_MAX: u64 = 16 << 20;
/// Subcommands that make a container of a bundle.
const MAKING: [&str; 3] = ["create", "run", "restore"];
/// The others that are known; the first of either kind among the arguments is the subcommand.
const OTHER: [&str; 10] = ["start", "kill", "delete", "state", "exec", "pause", "resume", "ps", "update", "features"];

/// The path by which this program was called, if that is a runtime's name.
pub fn called_as() -> Option<PathBuf> {
    let path = PathBuf::from(env::args_os().next()?);
    let name = path.file_name()?.to_str()?;
    RUNTIMES.contains(&name).then_some(path)
}

/// Puts a copy of this program in place of the runtime; podman is to call it by the path that is returned. A copy, so
/// that containers can be ended after this program's own file was replaced.
pub fn install(place: &Place, runtime: &str) -> io::Result<PathBuf> {
    let path = place.guard(runtime);
    let own = fs::metadata("/proc/self/exe")?;
    let same = |there: fs::Metadata| there.len() == own.len() && there.modified().ok() == own.modified().ok();
    if fs::metadata(&path).is_ok_and(same) {
        return Ok(path);
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::copy("/proc/self/exe", &temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    File::options().write(true).open(&temporary)?.set_modified(own.modified()?)?;
    fs::rename(&temporary, &path)?;
    Ok(path)
}

/// Examines what there is to examine, and becomes the runtime.
pub fn run(called: &Path) -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let refused = |why: &str| {
        report(&arguments, why);
        ExitCode::FAILURE
    };
    let subcommand = arguments.iter().find(|a| MAKING.iter().chain(&OTHER).any(|known| a.as_os_str() == *known));
    if subcommand.is_some_and(|s| MAKING.iter().any(|making| s == making))
        && let Err(why) = guard(called, &arguments)
    {
        return refused(&format!("refused by latebind-host: {why}"));
    }
    let Some(runtime) = called.file_name().and_then(OsStr::to_str).and_then(in_path) else {
        return refused("latebind-host cannot find the runtime itself in PATH: install it");
    };
    let error = Command::new(&runtime).args(&arguments).exec();
    refused(&format!("cannot run {}: {error}", runtime.display()))
}

fn guard(called: &Path, arguments: &[OsString]) -> Result<(), String> {
    let bundle = option(arguments, &["--bundle", "-b"]).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let path = bundle.join("config.json");
    let at = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let text = File::open(&path).and_then(|file| read_bounded(file, CONFIG_MAX)).map_err(|e| at(&e))?;
    let mut config: Value = serde_json::from_slice(&text).map_err(|e| at(&e))?;
    let state = called.parent().and_then(Path::parent).ok_or("the guard does not know its state directory")?;
    let place = Place::of_state(state);
    let (pod, role, lines) = examine(&mut config, &place)?;
    if called.file_name() == Some(OsStr::new(FORGETTING)) {
        nodev::add_hook(&mut config, called)?;
    }
    let text = serde_json::to_vec(&config).map_err(|e| at(&e))?;
    fs::write(&path, text).map_err(|e| at(&e))?;
    // Read once the container has started (`slot.rs`): without this file it was not started by way of the guard.
    let given = File::options().write(true).create_new(true).mode(0o600).open(pod.given(&role.to_string()));
    given
        .and_then(|mut file| file.write_all(lines.join("\n").as_bytes()))
        .map_err(|e| format!("cannot write down what the runtime is given: {e}"))
}

/// The value of an option: the next argument, or what follows a `=`.
fn option<'a>(arguments: &'a [OsString], names: &[&str]) -> Option<&'a OsStr> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if names.iter().any(|name| argument == name) {
            return arguments.next().map(OsString::as_os_str);
        }
        let text = argument.to_str().unwrap_or_default();
        if let Some((name, value)) = text.split_once('=')
            && names.contains(&name)
        {
            return Some(OsStr::new(value));
        }
    }
    None
}

/// As a runtime reports: to the log that it was given, in its format, and to standard error.
fn report(arguments: &[OsString], why: &str) {
    watcher::text::complain(why);
    if let Some(log) = option(arguments, &["--log"])
        && let Ok(mut log) = File::options().append(true).create(true).open(log)
    {
        let _ = writeln!(log, "{}", json!({"level": "error", "msg": why}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_as_a_runtime_finds_them() {
        let line = ["--log-format=json", "--log", "/x/oci-log", "create", "--bundle", "/b", "--pid-file=/p", "id"];
        let line: Vec<OsString> = line.iter().map(OsString::from).collect();
        assert_eq!(option(&line, &["--log"]), Some(OsStr::new("/x/oci-log")));
        assert_eq!(option(&line, &["--bundle", "-b"]), Some(OsStr::new("/b")));
        assert_eq!(option(&line, &["--pid-file"]), Some(OsStr::new("/p")));
        assert_eq!(option(&line, &["--root"]), None);
    }
}
