//! Names that are something else each time they are looked at.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use crate::sys;

/// In a directory, exchanges each of `names` as fast as it can with a file, a directory, links to `targets`, a FIFO, a
/// socket and a device, until something ends this process. Says so by a file `swapping`.
///
/// The directory is entered once, so that it may be moved meanwhile.
pub fn swap(dir: &str, names: &str, targets: &[String]) -> Result<i32, String> {
    std::env::set_current_dir(dir).map_err(|e| format!("{dir}: {e}"))?;
    let mut rows = Vec::new();
    for name in names.split(',') {
        if fs::symlink_metadata(name).is_err() {
            fs::write(name, "own\n").map_err(|e| format!("{name}: {e}"))?;
        }
        let kept = |n: usize| format!(".{name}.{n}");
        let mut others = Vec::new();
        for target in targets.iter().map(String::as_str).chain([".", "nowhere", name]) {
            others.push(kept(others.len()));
            symlink(target, others.last().map_or("", String::as_str)).map_err(|e| format!("link to {target}: {e}"))?;
        }
        for kind in ["file", "directory", "fifo", "socket", "device"] {
            let path = kept(others.len());
            let made = match kind {
                "file" => fs::write(&path, "own\n"),
                "directory" => fs::create_dir(&path).and_then(|()| fs::write(format!("{path}/x"), "own\n")),
                "fifo" => sys::make_fifo(&path),
                "socket" => UnixListener::bind(&path).map(drop),
                // A whiteout: the one device that needs no right, on kernels since 5.8.
                _ => sys::make_whiteout(&path).or(Ok(())),
            };
            made.map_err(|e| format!("{kind}: {e}"))?;
            if fs::symlink_metadata(&path).is_ok() {
                others.push(path);
            }
        }
        let whole = |text: &str| CString::new(text).map_err(|e| e.to_string());
        rows.push((whole(name)?, others.iter().map(|other| whole(other)).collect::<Result<Vec<_>, _>>()?));
    }
    fs::write("swapping", "").map_err(|e| format!("swapping: {e}"))?;
    for turn in 0usize.. {
        for (name, others) in &rows {
            // Whatever has become of them: the next one is tried.
            if let Some(other) = others.get(turn % others.len().max(1)) {
                let _ = sys::exchange(name, other);
            }
        }
    }
    Ok(0)
}
