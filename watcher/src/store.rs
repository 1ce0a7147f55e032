//! What survives a restart: small JSON files in the pilot's private volume, each put in one step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A directory of JSON files, readable by root alone.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    /// Opens the directory, and makes it where there is none.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// The path of an entry.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// Puts a value in one step: a reader, or a restarted watcher, finds the old or the new one, never half of it.
    pub fn put<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        put_file(&self.path(name), &serde_json::to_vec_pretty(value).map_err(io::Error::other)?, 0o600)
    }

    /// The value, or `None` where there is none.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.path(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Forgets the value, if it is there.
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

/// Writes a file under a temporary name, then renames it.
pub fn put_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut file: File = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let put = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    put.inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_go() {
        let path = std::env::temp_dir().join(format!("latebind-store-{}", std::process::id()));
        let store = Store::open(&path).unwrap();
        assert_eq!(store.get::<u32>("a").unwrap(), None);
        store.put("a", &1).unwrap();
        store.put("a", &2).unwrap();
        assert_eq!(store.get::<u32>("a").unwrap(), Some(2));
        assert_eq!(store.names().unwrap(), ["a"]);
        store.remove("a").unwrap();
        store.remove("a").unwrap();
        assert!(store.names().unwrap().is_empty());
        fs::remove_dir_all(path).unwrap();
    }
}
