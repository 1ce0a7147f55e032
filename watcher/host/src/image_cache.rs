//! What image names mean, remembered for as long as podman's image index does not change.
//!
//! `podman image inspect` takes 30 ms; a job that uses the container of the one before needs nothing else of the
//! engine. Podman replaces `<driver>-images/images.json` by a rename whenever an image comes or goes or a name moves,
//! before the command that did it returns. So an answer that was given under the same version of that file, and that
//! the file itself confirms, is what podman would say now. What a name means that is not in the file, or with another
//! ID (a manifest list, an image in another storage), depends on more than the file: it is asked for each time.

use crate::images::Ready;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Most names that are remembered.
const NAMES_MAX: usize = 256;
/// Largest index that is read.
const INDEX_MAX: u64 = 64 << 20;

/// Which version of a file this is: path, device, inode, size, and the times of its last changes in nanoseconds.
type Version = (PathBuf, u64, u64, u64, [i64; 4]);

/// The image index as it is on disk: one file for each storage driver, usually one.
#[derive(Debug)]
struct Index {
    versions: Vec<Version>,
    /// Held open, so that no later file gets the inode number of one of these.
    files: Vec<File>,
}

/// An image in the index.
#[derive(Deserialize)]
struct Entry {
    id: String,
    /// Podman writes null where there is none.
    #[serde(default)]
    names: Option<Vec<String>>,
}

/// The images in an index.
fn entries(mut file: &File) -> io::Result<Vec<Entry>> {
    file.rewind()?;
    Ok(serde_json::from_reader(BufReader::new(file.take(INDEX_MAX)))?)
}

impl Index {
    /// Reads the versions; `None` where that is not possible.
    fn read(root: &Path) -> Option<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(root).ok()? {
            let dir = entry.ok()?;
            if !dir.file_name().to_string_lossy().ends_with("-images") {
                continue;
            }
            let path = dir.path().join("images.json");
            let file = File::open(&path).ok()?;
            let is = file.metadata().ok()?;
            let times = [is.mtime(), is.mtime_nsec(), is.ctime(), is.ctime_nsec()];
            found.push(((path, is.dev(), is.ino(), is.size(), times), file));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let (versions, files) = found.into_iter().unzip();
        Some(Self { versions, files }).filter(|index| !index.versions.is_empty())
    }

    fn is(&self, other: &Self) -> bool {
        self.versions == other.versions
    }

    /// Whether it says that `name` is the image `id`.
    fn says(&self, name: &str, id: &str) -> bool {
        let is = |entry: &Entry| id.strip_prefix("sha256:") == Some(&entry.id);
        let has_name = |entry: &Entry| entry.names.iter().flatten().any(|known| known == name);
        let mut images = self.files.iter().filter_map(|file| entries(file).ok()).flatten();
        images.any(|entry| is(&entry) && has_name(&entry))
    }
}

/// Answers of the engine about names, and the index that they are from.
#[derive(Debug)]
pub struct ImageCache {
    /// The directory of the engine's index; without one nothing is remembered.
    root: Option<PathBuf>,
    known: Mutex<(Option<Index>, HashMap<String, Ready>)>,
}

impl ImageCache {
    /// Nothing is remembered yet.
    pub fn new(root: Option<PathBuf>) -> Self {
        Self { root, known: Mutex::default() }
    }

    /// What `names` mean: as remembered, else by `ask`, in the same order. An error is not remembered.
    pub fn get<E>(&self, names: &[&str], ask: impl FnOnce() -> Result<Vec<Ready>, E>) -> Result<Vec<Ready>, E> {
        // Before the engine is asked: an answer that is older than the index would outlive a change.
        let index = self.root.as_deref().and_then(Index::read);
        if let Some(ready) = names.iter().map(|name| self.remembered(name, index.as_ref())).collect() {
            return Ok(ready);
        }
        let all = ask()?;
        let Some(index) = index else { return Ok(all) };
        let confirmed: Vec<_> =
            names.iter().zip(&all).filter(|(name, ready)| !ready.pulled && index.says(name, &ready.id)).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.0.as_ref().is_some_and(|old| old.is(&index)) || known.1.len() + confirmed.len() > NAMES_MAX {
            *known = (Some(index), HashMap::new());
        }
        known.1.extend(confirmed.into_iter().map(|(name, ready)| ((*name).to_owned(), ready.clone())));
        drop(known);
        Ok(all)
    }

    fn remembered(&self, name: &str, index: Option<&Index>) -> Option<Ready> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_current = known.0.as_ref().zip(index).is_some_and(|(old, now)| old.is(now));
        known.1.get(name).filter(|_| is_current).cloned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use serde_json::json;
    use std::cell::Cell;

    /// An engine's storage with an index that is exchanged as podman does it, and an engine that counts its answers.
    struct Engine {
        scratch: tempfile::TempDir,
        asked: Cell<u32>,
    }

    impl Engine {
        fn new() -> (Self, ImageCache) {
            let scratch = tempfile::tempdir().unwrap();
            fs::create_dir(scratch.path().join("overlay-images")).unwrap();
            let cache = ImageCache::new(Some(scratch.path().to_owned()));
            (Self { scratch, asked: Cell::new(0) }, cache)
        }

        fn index(&self) -> PathBuf {
            self.scratch.path().join("overlay-images/images.json")
        }

        fn write(&self, images: &[(&str, &[&str])]) {
            let all: Vec<_> =
                images.iter().map(|(id, names)| json!({"id": id, "names": names, "layer": "x"})).collect();
            let new = self.index().with_extension("tmp");
            fs::write(&new, json!(all).to_string()).unwrap();
            fs::rename(new, self.index()).unwrap();
        }

        /// Asks the cache for a name, which the engine says to be this image. Returns what the cache answers, and how
        /// often the engine was asked by now.
        fn get(&self, cache: &ImageCache, name: &str, id: &str) -> (String, u32) {
            let answer = || {
                self.asked.set(self.asked.get() + 1);
                Ok::<_, ()>(vec![Ready { id: format!("sha256:{id}"), pulled: false, command: None }])
            };
            (cache.get(&[name], answer).unwrap()[0].id.replace("sha256:", ""), self.asked.get())
        }
    }

    #[test]
    fn an_answer_holds_until_the_index_changes() {
        let (engine, cache) = Engine::new();
        let get = |name: &str, id: &str| engine.get(&cache, name, id);
        assert_eq!([get("a", "1").1, get("a", "1").1], [1, 2], "without an index nothing is remembered");
        engine.write(&[("1", &["a"]), ("2", &["b", "c"])]);
        assert_eq!([get("a", "1").1, get("a", "1").1, get("c", "2").1, get("a", "1").1], [3, 3, 4, 4]);
        engine.write(&[("1", &["c"]), ("2", &["b", "a"])]);
        assert_eq!(get("a", "2"), ("2".into(), 5), "the name means another image by now");
        assert_eq!([get("a", "2"), get("c", "1")], [("2".into(), 5), ("1".into(), 6)]);
        // As fast as they come, and of one size: no version is taken for another one.
        for n in 7..1000 {
            let id = if n % 2 == 0 { "1" } else { "2" };
            engine.write(&[(id, &["a"])]);
            assert_eq!([get("a", id), get("a", id)], [(id.to_owned(), n), (id.to_owned(), n)]);
        }
        fs::remove_file(engine.index()).unwrap();
        assert_eq!([get("a", "1").1, get("a", "1").1], [1000, 1001]);
    }

    #[test]
    fn an_answer_that_the_index_does_not_confirm_is_not_remembered() {
        let (engine, cache) = Engine::new();
        let get = |name: &str, id: &str| engine.get(&cache, name, id);
        engine.write(&[("1", &["a"]), ("2", &["b"])]);
        assert_eq!([get("a", "2").1, get("a", "2").1], [1, 2], "another image has the name");
        assert_eq!([get("x", "1").1, get("x", "1").1], [3, 4], "no image has the name");
        fs::write(engine.index(), "[{\"id\": \"1\", \"names\": null}").unwrap();
        assert_eq!([get("a", "1").1, get("a", "1").1], [5, 6], "it cannot be read");
        fs::write(engine.index(), "[{\"id\": \"1\", \"names\": null}, {\"id\": \"2\"}]").unwrap();
        assert_eq!([get("a", "1").1, get("a", "1").1], [7, 8], "its images have no names");
    }

    #[test]
    fn failures_pulls_and_too_many_names_are_not_remembered() {
        let (engine, cache) = Engine::new();
        let names: Vec<String> = (0..NAMES_MAX).map(|n| n.to_string()).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).chain(["a"]).collect();
        engine.write(&[("1", &all)]);
        assert!(cache.get(&["a"], || Err("no such image")).is_err());
        let pulled =
            cache.get(&["a"], || Ok::<_, ()>(vec![Ready { id: "sha256:1".into(), pulled: true, command: None }]));
        assert!(pulled.unwrap()[0].pulled);
        assert_eq!([engine.get(&cache, "a", "1").1, engine.get(&cache, "a", "1").1], [1, 1]);
        for name in &names {
            engine.get(&cache, name, "1");
        }
        assert!(cache.known.lock().unwrap().1.len() <= NAMES_MAX);
    }
}
