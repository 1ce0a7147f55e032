//! Where programs are found.

use std::env;
use std::path::PathBuf;

/// Where `name` is in PATH, or in the system directories, which a plain user's PATH lacks.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
