//! The names of jobs whose result the source has: none of them is run again.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::source::spool::is_job_name;
use crate::store::{put_file, read_bounded};

/// Most names that are remembered; the oldest one is forgotten first.
const NAMES_MAX: usize = if cfg!(test) { 5 } else { 10_000 };
/// The file is rewritten, without what was forgotten, where it has so many lines.
const REWRITTEN_AT: usize = 2 * NAMES_MAX;
/// Largest file that is read: twice as many of the longest names, and some more.
const FILE_MAX: u64 = 4 << 20;

#[derive(Debug, Default)]
struct Names {
    in_order: VecDeque<String>,
    all: BTreeSet<String>,
    /// Lines of the file, or [`REWRITTEN_AT`] where it has to be rewritten for another reason.
    lines: usize,
}

impl Names {
    fn add(&mut self, name: &str) {
        if self.all.insert(name.to_owned()) {
            self.in_order.push_back(name.to_owned());
        }
        if self.in_order.len() > NAMES_MAX
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.all.remove(&oldest);
        }
    }

    fn text(&self) -> String {
        self.in_order.iter().map(|name| format!("{name}\n")).collect()
    }
}

/// The names, and the file that has them: one a line.
#[derive(Debug)]
pub struct Reported {
    path: PathBuf,
    names: Mutex<Names>,
}

impl Reported {
    /// Reads the file, if there is one. What is unreadable is set aside: without it a job could only be run again.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let mut names = Names::default();
        match File::open(&path).and_then(|file| read_bounded(file, FILE_MAX)) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                // Without its line end a name was not written whole.
                let whole = text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default();
                whole.lines().filter(|line| is_job_name(line.as_ref())).for_each(|line| names.add(line));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                tracing::error!("{}: {e}; set aside, so jobs that were reported could run again", path.display());
                fs::rename(&path, path.with_extension("unreadable"))?;
            }
        }
        put_file(&path, names.text().as_bytes(), 0o600)?;
        names.lines = names.in_order.len();
        Ok(Self { path, names: Mutex::new(names) })
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the result of a job of this name was reported.
    pub fn contains(&self, name: &str) -> bool {
        self.lock().all.contains(name)
    }

    /// Remembers a name: it is on disk when the call returns, or else not known at all, so that the caller tries again.
    pub fn add(&self, name: &str) -> io::Result<()> {
        let mut names = self.lock();
        let line = format!("{name}\n");
        if names.lines >= REWRITTEN_AT {
            put_file(&self.path, (names.text() + &line).as_bytes(), 0o600)?;
            names.lines = names.in_order.len();
        } else if let Err(e) = append(&self.path, &line) {
            // A part of the line may be there: what came behind it would be taken for the rest of the name.
            names.lines = REWRITTEN_AT;
            return Err(e);
        }
        names.lines += 1;
        names.add(name);
        Ok(())
    }
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn the_last_names_are_known_also_after_a_restart() {
        let scratch = tempfile::tempdir().unwrap();
        let open = || Reported::open(scratch.path().join("reported")).unwrap();
        let reported = open();
        for n in 0..40 {
            reported.add(&format!("job-{n}")).unwrap();
            assert!(reported.contains(&format!("job-{n}")));
        }
        for known in [reported, open()] {
            let kept: Vec<_> = (0..40).filter(|n| known.contains(&format!("job-{n}"))).collect();
            assert_eq!(kept, (40 - NAMES_MAX..40).collect::<Vec<_>>());
        }
        let lines = fs::read_to_string(scratch.path().join("reported")).unwrap().lines().count();
        assert!(lines <= REWRITTEN_AT, "{lines}");
    }

    #[test]
    fn a_name_that_could_not_be_written_is_not_known_and_spoils_no_other() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("reported");
        let reported = Reported::open(path.clone()).unwrap();
        reported.add("a").unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(reported.add("b").is_err() && !reported.contains("b"));
        // As a write leaves it for which there was no room.
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "a\nhal").unwrap();
        reported.add("c").unwrap();
        reported.add("b").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nc\nb\n");
        assert!(reported.contains("b") && Reported::open(path).unwrap().contains("c"));
    }

    #[test]
    fn a_name_that_was_cut_off_is_not_known_and_a_file_that_is_too_large_is_set_aside() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("reported");
        fs::write(&path, "a\n../x\nhalf").unwrap();
        let reported = Reported::open(path.clone()).unwrap();
        reported.add("b").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\n");
        File::create(&path).unwrap().set_len(FILE_MAX + 1).unwrap();
        assert!(!Reported::open(path.clone()).unwrap().contains("a"));
        assert!(path.with_extension("unreadable").exists());
    }
}
