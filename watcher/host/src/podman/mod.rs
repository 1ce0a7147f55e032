//! Podman, the first engine: a storage and settings of our own, and a guard between it and its runtime.

mod config;
mod given;
pub mod guard;
pub mod nodev;
#[cfg(test)]
mod options_tests;
mod parent_group;

use crate::calls::{CallError, Calls};
use crate::container::{ImageVolume, Mount, POD_LABEL, ROLE_LABEL, Role, Spec, text};
use crate::engine::Engine;
use crate::failure::{Context, Failure, failure};
use crate::machine::swap_is_counted;
use crate::place::Place;
use crate::search_path::in_path;
use given::CONTAINER_ANNOTATION;
use parent_group::ParentGroup;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Variables that would send podman to other storage, other settings or another host.
const FOREIGN: [&str; 8] = [
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_CONF_OVERRIDE",
    "CONTAINER_CONNECTION",
    "CONTAINER_HOST",
    "NOTIFY_SOCKET",
    "STORAGE_DRIVER",
    "STORAGE_OPTS",
    "BUILDAH_ISOLATION",
];

/// Podman, on our storage.
#[derive(Debug)]
pub struct Podman {
    calls: Calls,
    place: Place,
    /// What it takes for the runtime of payload containers.
    guard: PathBuf,
    /// Whether swap can be limited on this machine.
    swap_is_counted: bool,
    /// Where the containers' control groups are made, if not in podman's own place.
    parent: Option<ParentGroup>,
}

impl Podman {
    /// Finds podman and writes its configuration. `parent`: the control group for those of the containers.
    pub fn open(place: Place, parent: Option<&str>) -> Result<Self, Failure> {
        let program = in_path("podman")
            .ok_or_else(|| failure("podman is not installed, and latebind-host runs on it: apt-get install podman"))?;
        if in_path("conmon").is_none() && !PathBuf::from("/usr/libexec/podman/conmon").exists() {
            return Err(failure("conmon, which podman needs, is not installed: apt-get install conmon"));
        }
        let own_groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let parent = ParentGroup::open(parent, &own_groups)?;
        let (conf, runtime) = config::write(&place, parent.is_some())?;
        let guard = guard::install(&place, runtime)
            .context(|| format!("cannot put the runtime's guard at {}", place.guard(runtime).display()))?;
        let calls = calls(program, &place, conf, config::names_driver(&place)?);
        Ok(Self { calls, guard, swap_is_counted: swap_is_counted(), place, parent })
    }
}

fn calls(program: PathBuf, place: &Place, conf: PathBuf, names_driver: bool) -> Calls {
    let pair = |option: &str, value: PathBuf| [option.into(), value.into_os_string()];
    let mut options: Vec<_> = [pair("--root", place.root()), pair("--runroot", place.runroot())].concat();
    options.extend(names_driver.then(|| "--storage-driver=overlay".into()));
    // Podman itself opens files of an image as the host's root, such as its /etc/passwd: never a device.
    options.push("--storage-opt=overlay.mountopt=nodev".into());
    // Else some distributions mount the host's subscriptions in every container.
    options.push("--default-mounts-file=/dev/null".into());
    let set = vec![("CONTAINERS_CONF", conf.into_os_string())];
    let mut calls = Calls::new(program, place.run().to_owned());
    (calls.options, calls.unset, calls.set) = (options, &FOREIGN, set);
    calls
}

impl Engine for Podman {
    fn place(&self) -> &Place {
        &self.place
    }

    fn calls(&self) -> &Calls {
        &self.calls
    }

    fn options(&self, spec: &Spec) -> Result<Vec<String>, Failure> {
        let Some(parent) = &self.parent else { return options(spec, &self.guard, self.swap_is_counted) };
        let narrowed = Spec { limits: spec.limits.as_ref().map(|limits| parent.narrowed(limits)), ..spec.clone() };
        let mut all = vec![format!("--cgroup-parent={}", parent.path())];
        all.append(&mut options(&narrowed, &self.guard, self.swap_is_counted)?);
        Ok(all)
    }

    fn listing(&self) -> String {
        // No other label: an image may have as many of its own as it likes.
        let of = |label: &str| format!("{{{{index .Labels \"{label}\"}}}}");
        format!("{} {} {{{{.ListContainer.State}}}}", of(POD_LABEL), of(ROLE_LABEL))
    }

    fn removal(&self) -> &'static [&'static str] {
        &["rm", "--force", "--time", "0", "--ignore", "--depend"]
    }

    fn attaching(&self) -> &'static [&'static str] {
        &["start", "--attach", "--sig-proxy=false"]
    }

    fn images_root(&self) -> Option<PathBuf> {
        Some(self.place.root())
    }

    fn log(&self, spec: &Spec) -> Vec<String> {
        let log = spec.log.as_ref().and_then(|log| fs::read(log).ok()).unwrap_or_default();
        // Each line begins with time, stream and whether it is a full one.
        let lines = String::from_utf8_lossy(&log);
        lines.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(str::to_owned).collect()
    }

    /// Reads what the guard wrote down of what the container was given. Without that it was not started by way of the
    /// guard.
    fn check_started(&self, spec: &Spec) -> Result<(), CallError> {
        if !is_guarded(spec) {
            return Ok(());
        }
        let path = self.place.pod(&spec.pod).given(&spec.role.to_string());
        let given = fs::read_to_string(&path);
        let _ = fs::remove_file(&path);
        let given = given.map_err(|e| {
            let what = "podman started the container without latebind-host's guard, or the guard wrote nothing";
            CallError::Broken(io::Error::other(format!("{what} ({}: {e})", path.display())))
        })?;
        tracing::debug!(container = %spec.role, given, "what the runtime was given");
        Ok(())
    }
}

/// All payload containers, but where images may declare volumes, which the guard refuses.
fn is_guarded(spec: &Spec) -> bool {
    matches!(spec.role, Role::Payload(..)) && spec.image_volumes == ImageVolume::Ignore
}

fn options(spec: &Spec, guard: &Path, swap_is_counted: bool) -> Result<Vec<String>, Failure> {
    let mut options = spec.options(swap_is_counted);
    options.extend(["--umask=0022", "--no-hosts", "--http-proxy=false", "--systemd=false"].map(str::to_owned));
    // The other mode is podman's default, which has another name in each version.
    options.extend((spec.image_volumes == ImageVolume::Ignore).then(|| "--image-volume=ignore".into()));
    options.push(format!("--pidfile={}", text(&spec.pidfile)?));
    options.extend(spec.namespaces.uts.iter().map(|uts| format!("--uts={uts}")));
    options.extend(spec.read_only.then(|| "--read-only-tmpfs=false".into()));
    match &spec.log {
        // What glue says goes to a file, which can be read when the container is gone.
        Some(log) => options.extend([
            "--log-driver=k8s-file".into(),
            format!("--log-opt=path={}", text(log)?),
            "--log-opt=max-size=1mb".into(),
        ]),
        None => options.push("--log-driver=none".into()),
    }
    if is_guarded(spec) {
        options.push(format!("--runtime={}", text(guard)?));
        options.push(format!("--annotation={CONTAINER_ANNOTATION}={}/{}", spec.pod, spec.role));
    }
    if matches!(spec.role, Role::Payload(..)) {
        // An option of `run` only. Without it podman would write root into the image's list of accounts.
        options.push("--passwd=false".into());
    }
    for mount in &spec.mounts {
        options.push(format!("--mount={}", argument(mount)?));
    }
    if !spec.entrypoint.is_empty() {
        // As a JSON array, so that podman takes each word as it is; it also empties the image's command.
        let words = serde_json::to_string(&spec.entrypoint);
        options.push(format!("--entrypoint={}", words.context(|| "cannot write the entry point".into())?));
    }
    options.push(spec.image.clone());
    options.extend(spec.arguments.iter().cloned());
    Ok(options)
}

/// As `--mount` takes it, which is one line of CSV: quoted, so that commas in paths do no harm.
/// `noexec` is not set: jobs run programs from their sandbox.
fn argument(mount: &Mount) -> Result<String, Failure> {
    let mut fields = mount.fields()?;
    fields.extend(["nosuid", "nodev"].map(str::to_owned));
    fields.extend(mount.read_only.then(|| "readonly".to_owned()));
    Ok(fields.join(","))
}
