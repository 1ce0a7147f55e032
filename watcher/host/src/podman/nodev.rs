//! Keeps the root file system of a container `nodev` where the runtime would lose that.
//!
//! Podman mounts it `nodev`; crun then binds it over itself with the options of `config.json`, which has none for a
//! root file system. A hook that the runtime calls in the container's mount namespace, before the container's first
//! program and before it has left the host's root, sets the option again. The guard's copy of this program is the hook.

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde_json::{Value, json};
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// By this name the runtime calls the hook (`argv[0]`).
const NAME: &str = "latebind-nodev";

/// Adds the hook to what the runtime is given. `program`: the guard's copy of this program.
pub fn add_hook(config: &mut Value, program: &Path) -> Result<(), String> {
    let root = config.pointer("/root/path").and_then(Value::as_str).ok_or("it names no root file system")?;
    let program =
        program.to_str().filter(|path| path.starts_with('/')).ok_or("the guard was called by no full path")?;
    let hook = json!({"path": program, "args": [NAME, root]});
    config["hooks"] = json!({"createContainer": [hook]});
    Ok(())
}

/// The root file system that this program is called for, if it is called as the hook.
pub fn called_for() -> Option<PathBuf> {
    let mut arguments = env::args_os();
    (arguments.next()? == NAME).then(|| arguments.next().unwrap_or_default().into())
}

/// Sets the option. A hook that fails ends the container's creation.
pub fn run(root: &Path) -> ExitCode {
    // The container's state. Read to its end: the runtime dies of writing to a hook that has ended.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    match set(root) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            watcher::text::complain(&format!("latebind-host: cannot mount {} nodev: {e}", root.display()));
            ExitCode::FAILURE
        }
    }
}

fn set(root: &Path) -> Result<(), String> {
    let flags = || statvfs(root).map(|found| found.flags()).map_err(|e| e.to_string());
    let now = flags()?;
    let kept = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    let kept = kept.into_iter().filter(|(is, _)| now.contains(*is)).map(|(_, set)| set).collect::<MsFlags>();
    let all = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NODEV | kept;
    mount(None::<&Path>, root, None::<&Path>, all, None::<&Path>).map_err(|e| e.to_string())?;
    let is_set = flags()?.contains(FsFlags::ST_NODEV);
    if is_set { Ok(()) } else { Err("the kernel did not set the option".into()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn the_runtime_calls_the_guards_copy_for_the_containers_root() {
        let mut config = json!({"root": {"path": "/state/containers/overlay/x/merged"}});
        add_hook(&mut config, Path::new("/state/oci/crun")).unwrap();
        let hook = &config["hooks"]["createContainer"][0];
        assert_eq!(hook["path"], "/state/oci/crun");
        assert_eq!(hook["args"], json!([NAME, "/state/containers/overlay/x/merged"]));
        assert!(add_hook(&mut config, Path::new("crun")).is_err());
        assert!(add_hook(&mut json!({}), Path::new("/state/oci/crun")).is_err());
    }
}
