//! The engine's configuration file: ours alone, so that nothing under `/etc` is written or believed.

use crate::failure::{Context, Failure, failure};
use crate::machine::cgroup_v2;
use crate::place::{Place, directory};
use crate::rootless;
use crate::search_path::in_path;
use nix::sys::resource::{Resource, getrlimit};
use std::fs;
use std::path::{Path, PathBuf};

/// Most open files that a process of a container may ask for, where the host itself has no lower limit.
const OPEN_FILES_MAX: u64 = 1 << 20;
/// Most processes of one payload UID, where the host has no lower limit. The limit of a container is `--pids`; this
/// one is only set because podman's own default is above what a host without CAP_SYS_RESOURCE lets it set.
const PROCESSES_MAX: u64 = 20_000;

const HEADER: &str = "# Written by latebind-host at each start: changes are lost.\n";

/// What of this machine decides how the engine is set up.
#[derive(Debug)]
struct Machine {
    runtime: &'static str,
    systemd: bool,
    open_files: u64,
    processes: u64,
}

impl Machine {
    /// `has_parent`: the containers' control groups are made in one that is not systemd's to manage.
    fn look(has_parent: bool) -> Result<Self, Failure> {
        let hard = |what, most: u64| getrlimit(what).map_or(most, |(_, hard)| hard.min(most));
        Ok(Self {
            runtime: runtime(cgroup_v2(), |name| in_path(name).is_some())?,
            systemd: !has_parent
                && Path::new("/run/systemd/system").is_dir()
                && fs::read_to_string("/proc/1/comm").is_ok_and(|c| c.trim() == "systemd")
                && (!rootless::is_inside() || rootless::has_user_bus()),
            open_files: hard(Resource::RLIMIT_NOFILE, OPEN_FILES_MAX),
            processes: hard(Resource::RLIMIT_NPROC, PROCESSES_MAX),
        })
    }
}

/// Writes the file where it is missing or says something else; returns it, and the name of the runtime. `has_parent`:
/// the user has named a control group for those of the containers.
pub fn write(place: &Place, has_parent: bool) -> Result<(PathBuf, &'static str), Failure> {
    let machine = Machine::look(has_parent)?;
    let text = text(place, &machine)?;
    directory(&place.root(), 0o711)?;
    let file = place.engine_conf(&text);
    replace(&file, &text)?;
    Ok((file, machine.runtime))
}

fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written.context(|| format!("cannot write {}", path.display()))
}

/// Whether podman is to be told the storage driver, instead of what /etc/containers/storage.conf says: with another one
/// there are other images. A storage that was made without has no name of a driver in its database, and podman refuses
/// any other then.
pub fn names_driver(place: &Place) -> Result<bool, Failure> {
    let mark = place.root().join("driver");
    let has_database = ["libpod/bolt_state.db", "db.sql"].iter().any(|file| place.root().join(file).exists());
    if !has_database {
        replace(&mark, "overlay\n")?;
    }
    Ok(mark.exists())
}

fn quote(path: PathBuf) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| failure(format!("the path {} is not UTF-8", path.display())))?;
    // A JSON string is a TOML basic string.
    serde_json::to_string(text).context(|| format!("cannot write the path {text}"))
}

/// crun is the faster one; it refuses the hybrid hierarchy, where runc still works.
fn runtime(cgroup_v2: bool, have: impl Fn(&str) -> bool) -> Result<&'static str, Failure> {
    match (cgroup_v2, have("crun"), have("runc")) {
        (true, true, _) => Ok("crun"),
        (_, _, true) => Ok("runc"),
        (false, true, false) => Err(failure(
            "this machine has control groups version 1, which crun does not fully support, and runc is not installed: \
             apt-get install runc",
        )),
        (true, false, false) => Err(failure("neither crun nor runc is installed: apt-get install crun")),
        (false, false, false) => Err(failure("no container runtime is installed: apt-get install runc")),
    }
}

fn text(place: &Place, machine: &Machine) -> Result<String, Failure> {
    let Machine { runtime, systemd, open_files, processes } = machine;
    let soft = 1024.min(*open_files);
    Ok(format!(
        "{HEADER}\
         [containers]\n\
         default_ulimits = [\"nofile={soft}:{open_files}\", \"nproc={processes}:{processes}\"]\n\
         netns = \"none\"\n\
         log_driver = \"k8s-file\"\n\
         \n\
         [network]\n\
         network_config_dir = {networks}\n\
         \n\
         [engine]\n\
         # Programs that the host would run for containers, some by what an image says: none.\n\
         hooks_dir = [{hooks}]\n\
         runtime = \"{runtime}\"\n\
         cgroup_manager = \"{manager}\"\n\
         events_logger = \"file\"\n\
         # Not in /dev/shm, where every other storage of this host has its locks too.\n\
         lock_type = \"file\"\n\
         static_dir = {libpod}\n\
         volume_path = {volumes}\n\
         tmp_dir = {tmp}\n",
        networks = quote(place.networks())?,
        hooks = quote(place.hooks())?,
        manager = if *systemd { "systemd" } else { "cgroupfs" },
        libpod = quote(place.root().join("libpod"))?,
        volumes = quote(place.root().join("volumes"))?,
        tmp = quote(place.engine_tmp())?,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn callers_who_may_open_other_numbers_of_files_have_a_configuration_each() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("state")).unwrap();
        let of = |open_files| {
            let machine = Machine { runtime: "runc", systemd: false, open_files, processes: 1 };
            place.engine_conf(&text(&place, &machine).unwrap())
        };
        assert_eq!(of(128), of(128));
        assert_ne!(of(128), of(20_000));
    }

    #[test]
    fn the_runtime_fits_the_machine() {
        let only = |names: &'static [&'static str]| move |name: &str| names.contains(&name);
        assert!(matches!(runtime(true, only(&["crun", "runc"])), Ok("crun")));
        assert!(matches!(runtime(false, only(&["crun", "runc"])), Ok("runc")));
        assert!(matches!(runtime(true, only(&["runc"])), Ok("runc")));
        for v2 in [true, false] {
            assert!(runtime(v2, only(&[])).is_err_and(|e| e.to_string().contains("apt-get install")));
        }
        assert!(runtime(false, only(&["crun"])).is_err_and(|e| e.to_string().contains("apt-get install runc")));
    }
}
