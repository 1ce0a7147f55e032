//! A directory and a name for one test, which also removes what killed tests left.
//!
//! The name is random: test programs have PID namespaces of their own, so their process IDs are all alike. Whoever
//! holds the lock of a directory lives; what is not locked is nobody's any more.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};

use crate::engine::call;

/// The label of every container that a test makes; its value is the scratch directory's name.
pub const LABEL: &str = "latebind.test";
/// A directory younger than this may be about to be locked.
const SETTLED: Duration = Duration::from_secs(60);

/// A directory of one test. Removed on drop, with all containers of its name.
pub struct Scratch {
    name: String,
    path: PathBuf,
    _lock: Flock<File>,
}

fn top() -> PathBuf {
    std::env::temp_dir().join("latebind-tests")
}

impl Scratch {
    /// Makes one.
    ///
    /// # Panics
    /// If that is not possible, as it is for others than root.
    pub fn new() -> Self {
        static SWEPT: std::sync::Once = std::sync::Once::new();
        SWEPT.call_once(sweep);
        let name: String = crate::job::random::<4>().iter().map(|b| format!("{b:02x}")).collect();
        let path = top().join(&name);
        fs::create_dir_all(&path).expect("a scratch directory can be made");
        let lock = lock(&path).expect("a new scratch directory can be locked");
        Self { name, path, _lock: lock }
    }

    /// Its name, and the label of its containers.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn lock(path: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(path).ok()?, FlockArg::LockExclusiveNonblock).ok()
}

/// Removes what is left of tests that were killed.
fn sweep() {
    for entry in fs::read_dir(top()).into_iter().flatten().flatten() {
        let settled = entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|a| a > SETTLED));
        if settled && let Some(_lock) = lock(&entry.path()) {
            remove(&entry.file_name().to_string_lossy());
        }
    }
}

/// Removes all containers and files of one name. Reports what it cannot do, since it may run in a panic.
fn remove(name: &str) {
    let listed = call(&["ps", "--all", "--quiet", "--filter", &format!("label={LABEL}={name}")]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut left: Vec<&str> = listed.split_whitespace().collect();
    // The container that the others share their namespaces with can only go last.
    for _ in 0..3 {
        left.retain(|id| !call(&["rm", "--force", "--volumes", "--time=0", id]).status.success());
    }
    if !left.is_empty() {
        eprintln!("containers {left:?} of the test {name} could not be removed");
    }
    let path = top().join(name);
    let mut table = String::new();
    let _ = File::open("/proc/self/mountinfo").and_then(|mut file| file.read_to_string(&mut table));
    for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(point).starts_with(&path) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
    if let Err(e) = fs::remove_dir_all(&path) {
        eprintln!("{} could not be removed: {e}", path.display());
    }
}
