//! What survives a restart: small JSON files in the pilot's private volume, each replaced in one step.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest value. What is larger is not read: it would end the watcher again after each restart.
const VALUE_MAX: u64 = 8 << 20;

/// A directory of JSON files, readable by root alone.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

/// Whether a file has to survive a power loss before the caller goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durability {
    /// On disk when the call returns.
    Synced,
    /// Its content is on disk when the call returns, its name once the directory is flushed.
    FileSynced,
    /// Written back by the kernel in its own time.
    Unsynced,
}

impl Store {
    /// Opens the directory; creates it if it does not exist.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// The path of an entry.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// Replaces a value in one step, and returns once it is on disk: a restarted watcher finds the old or the new
    /// value, also after a power loss.
    pub fn put<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        self.replace(name, value, Durability::Synced)
    }

    /// The same without waiting for the disk. A killed watcher loses nothing; after a power loss the value may be
    /// unreadable, which [`Store::get_or_set_aside`] treats as absent.
    pub fn put_unsynced<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        self.replace(name, value, Durability::Unsynced)
    }

    fn replace<T: Serialize>(&self, name: &str, value: &T, durability: Durability) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
        if bytes.len() as u64 > VALUE_MAX {
            return Err(io::Error::other(format!("{name} would have {} bytes, more than {VALUE_MAX}", bytes.len())));
        }
        replace_file(&self.path(name), &bytes, 0o600, durability)
    }

    /// The value, or `None` if there is no such file. An error if the file cannot be read or understood.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match File::open(self.path(name)).and_then(|file| read_bounded(file, VALUE_MAX)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The value, or `None` if there is none that can be understood. An unreadable file is logged and renamed to
    /// `*.unreadable`, so that it does not keep the watcher from starting. Only for values whose absence is safe: for a
    /// mark, use [`Store::contains`].
    pub fn get_or_set_aside<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.get(name).unwrap_or_else(|e| {
            let path = self.path(name);
            let aside = path.with_extension("unreadable");
            tracing::error!("{}: {e}; set aside as {}", path.display(), aside.display());
            if let Err(e) = fs::rename(&path, &aside) {
                tracing::error!("{}: cannot be set aside: {e}", path.display());
            }
            None
        })
    }

    /// Whether there is a file of this name, readable or not; also if that cannot be determined.
    pub fn contains(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().map_or_else(|e| e.kind() != io::ErrorKind::NotFound, |_| true)
    }

    /// Removes the value, if there is one.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Names of all values, sorted.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<String> = fs::read_dir(&self.0)?
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .collect();
        names.sort();
        Ok(names)
    }
}

/// The content of a file of at most `most` bytes.
pub fn read_bounded(file: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(io::Error::other(format!("has more than {most} bytes"))) } else { Ok(bytes) }
}

/// Writes a file under a temporary name, flushes it to disk, renames it, and flushes the directory: after a power loss
/// the file is the old or the new one, complete.
pub fn put_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_file(path, bytes, mode, Durability::Synced)
}

/// Like [`put_file`], but does not flush the directory: for a file that is followed by another one in the same
/// directory, whose [`put_file`] does.
pub fn put_file_of_several(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_file(path, bytes, mode, Durability::FileSynced)
}

/// Puts new files into a directory: names, contents and modes. They are on disk when the call returns, and not in any
/// order: after a power loss before that, each of them can be missing, empty or whole. Cheaper than one [`put_file`]
/// after the other, since a file system writes its journal once for all of them.
pub fn put_files(dir: &Path, files: &[(&str, &[u8], u32)]) -> io::Result<()> {
    for (name, bytes, mode) in files {
        replace_file(&dir.join(name), bytes, *mode, Durability::Unsynced)?;
    }
    files.iter().try_for_each(|(name, ..)| File::open(dir.join(name))?.sync_data())?;
    sync_dir(dir)
}

/// Flushes a directory's entries to disk.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn replace_file(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let synced = durability != Durability::Unsynced;
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut file: File = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| if synced { file.sync_data() } else { Ok(()) });
    written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })?;
    match path.parent().filter(|_| durability == Durability::Synced) {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        (scratch, store)
    }

    #[test]
    fn values_come_back_and_go() {
        let (_scratch, store) = store();
        assert_eq!(store.get::<u32>("a").unwrap(), None);
        store.put("a", &1).unwrap();
        store.put_unsynced("a", &2).unwrap();
        assert_eq!(store.get::<u32>("a").unwrap(), Some(2));
        assert_eq!(store.names().unwrap(), ["a"]);
        store.remove("a").unwrap();
        store.remove("a").unwrap();
        assert!(store.names().unwrap().is_empty());
    }

    #[test]
    fn an_unreadable_value_is_absent_and_set_aside_but_its_file_still_counts_as_a_mark() {
        let (scratch, store) = store();
        for bytes in [&b""[..], b"\0\0\0\0", b"{\"half\":"] {
            fs::write(store.path("a"), bytes).unwrap();
            assert!(store.get::<u32>("a").is_err());
            assert!(store.contains("a"), "a mark is there whatever it says");
            assert_eq!(store.get_or_set_aside::<u32>("a"), None);
            assert!(!store.contains("a"));
            assert_eq!(fs::read(scratch.path().join("a.unreadable")).unwrap(), bytes, "nothing is thrown away");
        }
        assert!(store.names().unwrap().is_empty());
        store.put("a", &3).unwrap();
        assert_eq!(store.get_or_set_aside::<u32>("a"), Some(3));
    }

    #[test]
    fn a_value_that_is_too_large_is_neither_put_nor_read() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        store.put("a", &1).unwrap();
        assert!(store.put("a", &"x".repeat(VALUE_MAX as usize)).is_err());
        assert_eq!(store.get::<u32>("a").unwrap(), Some(1));
        File::create(store.path("b")).unwrap().set_len(1 << 40).unwrap();
        assert!(store.get::<u32>("b").is_err_and(|e| e.to_string().contains("more than")));
    }
}
