//! Started by an ordinary user: this program runs again in a user namespace of podman's, where the user is root and has
//! the subordinate IDs of `/etc/subuid` and `/etc/subgid` (subuid(5), podman-unshare(1)).

pub mod link;

use crate::failure::{Failure, failure};
use crate::search_path::in_path;
use nix::unistd::{User, getuid};
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Set by podman for what it runs in the user's namespace: the user's own ID.
const OUTSIDE_UID: &str = "_CONTAINERS_ROOTLESS_UID";
/// The address of a bus that nobody serves.
const NO_BUS: &str = "unix:path=/dev/null";
/// How many subordinate IDs are needed: those of pods are taken from 20000-59999, and images have `nobody` at 65534.
const IDS_NEEDED: u64 = 65_536;

/// Whether this process runs in an ordinary user's namespace.
pub fn is_inside() -> bool {
    env::var_os(OUTSIDE_UID).is_some_and(|uid| !uid.is_empty() && uid != "0")
}

/// Where the user's session keeps what ends with it, if there is a session.
pub fn session_directory() -> Option<PathBuf> {
    env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Whether the user has a systemd of their own, which can make control groups with limits.
pub fn has_user_bus() -> bool {
    session_directory().is_some_and(|dir| dir.join("systemd/private").exists())
}

/// What runs this program again, with the same arguments, in the user's namespace; or what to do where that is
/// impossible. `is_state_default`: the user has named no state directory. `has_parent`: a control group for those of
/// the containers.
pub fn again(is_state_default: bool, has_parent: bool) -> Result<Command, Failure> {
    let podman = check()?;
    let mut command = Command::new(podman);
    command.arg("unshare").arg(own_program()?).args(env::args_os().skip(1));
    if is_state_default {
        command.env("LATEBIND_STATE", user_state()?);
    }
    if has_parent {
        // Else podman asks the user's systemd, if there is one, to take its pause process out of the job.
        command.env("DBUS_SESSION_BUS_ADDRESS", NO_BUS);
    }
    Ok(command)
}

fn own_program() -> Result<PathBuf, Failure> {
    env::current_exe().map_err(|e| failure(format!("cannot find this program's own file: {e}")))
}

/// The state directory of a user who names none (XDG Base Directory Specification).
fn user_state() -> Result<PathBuf, Failure> {
    let below = |name: &str, path: &str| {
        env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute()).map(|dir| dir.join(path))
    };
    below("XDG_DATA_HOME", "latebind")
        .or_else(|| below("HOME", ".local/share/latebind"))
        .ok_or_else(|| failure("neither HOME nor XDG_DATA_HOME is set: say where to keep images with --state DIR"))
}

/// What a user needs, each thing with what to do where it is missing. Returns podman's path.
fn check() -> Result<PathBuf, Failure> {
    let uid = getuid();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    let shown = name.clone().unwrap_or_else(|| uid.to_string());
    let podman = in_path("podman").ok_or_else(|| {
        failure("podman is not installed, and latebind-host runs on it: as root, apt-get install podman")
    })?;
    for program in ["newuidmap", "newgidmap"] {
        if in_path(program).is_none() {
            return Err(failure(format!(
                "{program} is not installed, which gives an ordinary user the IDs of a pod: as root, apt-get install \
                 uidmap"
            )));
        }
    }
    for (file, option) in [("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")] {
        let have = ids_of(&fs::read_to_string(file).unwrap_or_default(), name.as_deref(), uid.as_raw());
        if have < IDS_NEEDED {
            return Err(failure(format!(
                "{shown} has {have} subordinate IDs in {file}, and pods need {IDS_NEEDED}: as root, usermod {option} \
                 FIRST-LAST {shown} with a range that nobody else has there (such as 100000-165535), then, as {shown}, \
                 podman system migrate"
            )));
        }
    }
    Ok(podman)
}

/// How many IDs the text of a subuid(5) file gives a user, who may stand there by name or number.
fn ids_of(text: &str, name: Option<&str>, uid: u32) -> u64 {
    let uid = uid.to_string();
    let count = |line: &str| {
        let mut fields = line.trim().split(':');
        let (who, _first, count) = (fields.next()?, fields.next()?, fields.next()?);
        (Some(who) == name || who == uid).then(|| count.parse::<u64>().ok()).flatten()
    };
    text.lines().filter_map(count).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_ranges_add_up_by_name_and_number() {
        let text = "# comment\nanna:100000:65536\n1001:300000:10\nbert:165536:65536\nanna:400000:x\nanna\n";
        assert_eq!(ids_of(text, Some("anna"), 1001), 65_546);
        assert_eq!(ids_of(text, None, 1001), 10);
        assert_eq!(ids_of(text, Some("carl"), 1002), 0);
        assert_eq!(ids_of("a:1:18446744073709551615\na:2:18446744073709551615\n", Some("a"), 1), u64::MAX);
    }
}
