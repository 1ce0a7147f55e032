//! Where everything of this program lies on the host.

use crate::failure::{Context, Failure, failure};
use crate::rootless;
use latebind_contract::encoding::sha256_hex;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// State directory where the caller names none.
pub const DEFAULT_STATE: &str = "/var/lib/latebind-host";
/// What must not outlive a boot, where the state directory is the default one.
const DEFAULT_RUN: &str = "/run/latebind-host";
/// Directory of the guard's copies ([`crate::podman::guard`]), one for each runtime, in the state directory.
const GUARDS: &str = "oci";

/// The state directory, and the directory of what ends with the boot.
#[derive(Clone, Debug)]
pub struct Place {
    state: PathBuf,
    run: PathBuf,
}

impl Place {
    /// Makes the directories. What an earlier boot left of the engine's running state is removed: the engine would
    /// otherwise believe that containers of that boot still run wherever `/run` is not a file system in memory.
    pub fn open(state: &Path) -> Result<Self, Failure> {
        let state =
            std::path::absolute(state).context(|| format!("cannot use the state directory {}", state.display()))?;
        if !state.to_str().is_some_and(is_plain) {
            return Err(failure(format!(
                "the state directory {} cannot be used: overlay file systems take no comma, colon, blank, quote or \
                 backslash in a path; choose another with --state",
                state.display()
            )));
        }
        let place = Self::of_state(&state);
        directory(&place.state, 0o755)?;
        directory(&place.run, 0o700)?;
        directory(&place.pods(), 0o700)?;
        directory(&place.state.join("glue"), 0o700)?;
        directory(&place.networks(), 0o755)?;
        directory(&place.hooks(), 0o755)?;
        place.forget_earlier_boot()?;
        Ok(place)
    }

    /// As [`Place::open`], for directories that are there.
    pub fn of_state(state: &Path) -> Self {
        let run = match rootless::session_directory() {
            // Short: podman 4 refuses a longer path than 50 characters, which a home directory soon has.
            Some(session) if rootless::is_inside() => {
                let digest = sha256_hex(state.as_os_str().as_encoded_bytes());
                session.join(format!("latebind-{}", digest.get(..8).unwrap_or_default()))
            }
            _ if state == Path::new(DEFAULT_STATE) => PathBuf::from(DEFAULT_RUN),
            _ => state.join("run"),
        };
        Self { state: state.to_owned(), run }
    }

    fn forget_earlier_boot(&self) -> Result<(), Failure> {
        let this = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mark = self.run.join("boot_id");
        let that = fs::read_to_string(&mark).unwrap_or_default();
        if this == that {
            return Ok(());
        }
        if !that.is_empty() {
            for old in [self.runroot(), self.engine_tmp()] {
                match fs::remove_dir_all(&old) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(failure(format!("cannot remove {}, left by an earlier boot: {e}", old.display())));
                    }
                    _ => {}
                }
            }
        }
        // In one step: another program beside this one must not find half a mark, and take it for another boot's.
        let new = self.run.join(format!("boot_id.{}", std::process::id()));
        fs::write(&new, this)
            .and_then(|()| fs::rename(&new, &mark))
            .context(|| format!("cannot write {}", mark.display()))
    }

    /// What ends with the boot.
    pub fn run(&self) -> &Path {
        &self.run
    }
    /// The engine's images and containers.
    pub fn root(&self) -> PathBuf {
        self.state.join("containers")
    }
    /// The engine's state of this boot.
    pub fn runroot(&self) -> PathBuf {
        self.run.join("containers")
    }
    /// The engine's small files of this boot.
    pub fn engine_tmp(&self) -> PathBuf {
        self.run.join("libpod")
    }
    /// The engine's configuration, instead of the one in `/etc`. One for each text: what a caller may do decides some of
    /// it, and several may run pods here.
    pub fn engine_conf(&self, text: &str) -> PathBuf {
        let hash = sha256_hex(text.as_bytes());
        self.state.join(format!("containers-{}.conf", hash.get(..12).unwrap_or(&hash)))
    }
    /// This program in place of the runtime: see [`crate::podman::guard`].
    pub fn guard(&self, runtime: &str) -> PathBuf {
        self.state.join(GUARDS).join(runtime)
    }
    /// Where the engine looks for programs that it would run for containers: none. The host's own directory has them by
    /// annotations, among other things.
    pub fn hooks(&self) -> PathBuf {
        self.state.join("hooks")
    }
    /// The engine's networks: none, but it warns about the files of others in its default directory.
    pub fn networks(&self) -> PathBuf {
        self.state.join("networks")
    }
    /// The glue binary of each glue image that was used here, by the image's ID.
    pub fn glue(&self, image_id: &str) -> PathBuf {
        self.state.join("glue").join(image_id.trim_start_matches("sha256:"))
    }
    /// One directory for each pod.
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }
    /// The files of the pod `name`.
    pub fn pod(&self, name: &str) -> PodPlace {
        PodPlace(self.pods().join(name))
    }

    /// Names of the pods that have a directory, running or left behind.
    pub fn pod_names(&self) -> Result<Vec<String>, Failure> {
        let pods = self.pods();
        let mut names = Vec::new();
        for entry in fs::read_dir(&pods).context(|| format!("cannot list {}", pods.display()))? {
            let entry = entry.context(|| format!("cannot list {}", pods.display()))?;
            if let Some(name) = entry.file_name().to_str().filter(|n| is_pod_name(n)) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Claims the name `name` for this process; `None` where another process has it. Released when dropped, and by the
    /// kernel when the process is killed.
    pub fn claim(&self, name: &str) -> Result<Option<Claim>, Failure> {
        let path = self.pods().join(format!("{name}.lock"));
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
                .context(|| format!("cannot open {}", path.display()))?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, e)) => return Err(failure(format!("cannot lock {}: {e}", path.display()))),
            };
            // The holder before us may have removed the file between our open and our lock: then the lock is worth
            // nothing, since the next process makes a new file.
            let ours = lock.metadata().context(|| format!("cannot read {}", path.display()))?.ino();
            if fs::metadata(&path).is_ok_and(|m| m.ino() == ours) {
                return Ok(Some(Claim { path, _lock: lock }));
            }
        }
    }
}

/// The right to make or remove one pod.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Removed before the lock is released, so that only whoever holds it removes it.
        let _ = fs::remove_file(&self.path);
    }
}

/// The files of one pod.
#[derive(Clone, Debug)]
pub struct PodPlace(PathBuf);

impl PodPlace {
    /// For tests of what is done with paths alone.
    #[cfg(test)]
    pub fn at(top: &str) -> Self {
        Self(top.into())
    }

    /// Everything below.
    pub fn top(&self) -> &Path {
        &self.0
    }
    /// Volume with the glue binary.
    pub fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }
    /// Volume of startup file, status and record: in memory.
    pub fn ctl(&self, slot: u32) -> PathBuf {
        self.0.join(format!("slot-{slot}/ctl"))
    }
    /// Volume of the job's files.
    pub fn data(&self, slot: u32) -> PathBuf {
        self.0.join(format!("slot-{slot}/data"))
    }
    /// Directory of the socket that a slot for pilot-jobs has.
    pub fn clients(&self, slot: u32) -> PathBuf {
        self.0.join(format!("slot-{slot}/clients"))
    }
    /// What the guard says of a container that it let through.
    pub fn given(&self, container: &str) -> PathBuf {
        self.log(&format!("{container}.given"))
    }
    /// Which user IDs the pod has.
    pub fn uids(&self) -> PathBuf {
        self.0.join("uids")
    }
    /// Volume that only the pilot sees.
    pub fn private(&self) -> PathBuf {
        self.0.join("private")
    }
    /// What the containers have as `/etc/hosts`.
    pub fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }
    /// Directory of the bind socket, which only the pilot sees.
    pub fn bind(&self) -> PathBuf {
        self.0.join("bind")
    }
    /// Logs of the containers.
    pub fn logs(&self) -> PathBuf {
        self.0.join("log")
    }
    /// Log of one container.
    pub fn log(&self, container: &str) -> PathBuf {
        self.logs().join(container)
    }
    /// Numbers of the containers' main processes.
    pub fn pidfiles(&self) -> PathBuf {
        self.0.join("pid")
    }
    /// Where the engine writes the number of a container's main process.
    pub fn pidfile(&self, container: &str) -> PathBuf {
        self.pidfiles().join(container)
    }
}

/// Makes `path` with its parents where it is missing.
pub fn directory(path: &Path, mode: u32) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .context(|| format!("cannot make the directory {}", path.display()))
}

/// Whether every part of the engine takes `path` as it is.
fn is_plain(path: &str) -> bool {
    !path.contains(|c: char| c.is_whitespace() || c.is_control() || ",:\"'\\".contains(c))
}

/// Whether `name` can name a pod: it becomes a host name, part of container names and of paths.
pub fn is_pod_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=40).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn pod_names() {
        for good in ["a", "pod-1", "0", "run-0a1b2c"] {
            assert!(is_pod_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.lock", "a/b", "..", "a b", &"a".repeat(41)] {
            assert!(!is_pod_name(bad), "{bad}");
        }
    }

    #[test]
    fn plain_paths() {
        assert!(is_plain("/var/lib/latebind-host_2.x+y"));
        for bad in ["/a b", "/a,b", "/a:b", "/a\\b", "/a\"b", "/a\nb"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn a_name_is_claimed_once() {
        let state = tempfile::tempdir().unwrap();
        let place = Place::open(state.path()).unwrap();
        let claim = place.claim("a").unwrap();
        assert!(claim.is_some());
        assert!(place.claim("a").unwrap().is_none());
        assert!(place.claim("b").unwrap().is_some());
        drop(claim);
        assert!(place.claim("a").unwrap().is_some());
        assert!(place.pod_names().unwrap().is_empty());
    }
}
