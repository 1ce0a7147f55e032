//! Names that change as fast as a processor can change them, with what nobody may reach beside them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use watcher::tree;

use crate::pod::Scratch;

/// Whose names they are: a user of the spool, or the payload.
pub const USER: u32 = 4711;
/// What every file of the user's says: it can be a `job.json` as well.
pub const OWN: &str = r#"{"image":"own","argv":["own"],"stdin":"in","env_files":[{"name":"env","format":"sh"}]}"#;
/// What the files outside say.
const SECRET: &str = r#"{"image":"never-to-be-seen","argv":["never-to-be-seen"]}"#;
/// Size of a large file, which is all holes.
pub const LARGE: u64 = 1 << 30;

/// What a name is exchanged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// One thing of each kind, and files.
    All,
    /// Directories, and links to one outside: the most likely to be taken for each other.
    Directories,
}

/// A directory of its own, with what nobody may reach beside it.
pub struct World {
    scratch: Scratch,
    before: BTreeMap<PathBuf, [i64; 7]>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Makes it.
    pub fn new() -> Self {
        let mut world = Self { scratch: Scratch::in_memory(), before: BTreeMap::new() };
        let outside = world.path("outside");
        fs::create_dir_all(outside.join("dir")).unwrap();
        for (name, mode, owner) in [
            ("public", 0o644, 0),
            ("private", 0o600, 0),
            ("users", 0o600, USER),
            ("dir/in", 0o644, 0),
            ("dir/job.json", 0o644, 0),
        ] {
            fs::write(outside.join(name), SECRET).unwrap();
            fs::set_permissions(outside.join(name), Permissions::from_mode(mode)).unwrap();
            chown(outside.join(name), Some(owner), Some(owner)).unwrap();
        }
        make_large(&outside.join("dir/large"));
        world.before = known(&outside);
        world
    }

    /// Where something in it is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// An empty directory of the user's.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
        path
    }

    /// Begins to exchange names, each in a directory that may be moved meanwhile, with things that are kept in
    /// `spares`.
    pub fn swap(&self, spares: &str, rows: &[(&Path, &str, Kinds)]) -> Swapper {
        let spares = self.dir(spares);
        let kept = rows.iter().enumerate().map(|(n, (dir, name, kinds))| Row {
            dir: tree::open_dir(dir).unwrap(),
            name: CString::new(*name).unwrap(),
            others: self.others(&spares.join(n.to_string()), name, *kinds),
        });
        Swapper::start(kept.collect())
    }

    /// Things to exchange a name with, all of them the user's.
    fn others(&self, dir: &Path, name: &str, kinds: Kinds) -> Vec<CString> {
        fs::create_dir_all(dir).unwrap();
        let outside = self.path("outside");
        let mut made = Vec::new();
        let mut make = |make: &dyn Fn(&Path)| {
            let path = dir.join(made.len().to_string());
            make(&path);
            lchown(&path, Some(USER), Some(USER)).unwrap();
            made.push(CString::new(path.as_os_str().as_bytes()).unwrap());
        };
        if kinds == Kinds::Directories {
            make(&|path| symlink(outside.join("dir"), path).unwrap());
            make(&|path| own_tree(path, 0));
            return made;
        }
        // Every other one is a file, so that what is there is often the user's own.
        let mut next = |other: &dyn Fn(&Path)| {
            make(other);
            make(&|path| fs::write(path, OWN).unwrap());
        };
        let targets = ["public", "users", "dir"].map(|target| outside.join(target));
        for target in targets.into_iter().chain(["/dev/zero", ".", name].map(PathBuf::from)) {
            next(&|path| symlink(&target, path).unwrap());
        }
        next(&|path| own_tree(path, 1));
        next(&|path| mkfifo(path, Mode::S_IRUSR).unwrap());
        next(&|path| drop(UnixListener::bind(path).unwrap()));
        next(&|path| mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5)).unwrap());
        made
    }

    /// Fails if anything outside was changed or touched.
    #[track_caller]
    pub fn nothing_outside_has_changed(&self) {
        assert_eq!(known(&self.path("outside")), self.before);
    }
}

/// A file of [`LARGE`] bytes.
pub fn make_large(path: &Path) {
    fs::File::create(path).unwrap().set_len(LARGE).unwrap();
}

/// A directory of the user's with files, and directories with files.
pub fn own_tree(path: &Path, depth: usize) {
    fs::create_dir(path).unwrap();
    for n in 0..8 {
        fs::write(path.join(format!("file-{n}")), OWN).unwrap();
        chown(path.join(format!("file-{n}")), Some(USER), Some(USER)).unwrap();
    }
    for n in 0..if depth == 0 { 0 } else { 2 } {
        own_tree(&path.join(format!("dir-{n}")), depth - 1);
    }
    chown(path, Some(USER), Some(USER)).unwrap();
}

/// All that can be changed on what is in a directory, and on the directory.
fn known(dir: &Path) -> BTreeMap<PathBuf, [i64; 7]> {
    let stat = dir.symlink_metadata().unwrap();
    let facts = [stat.mode().into(), stat.uid().into(), stat.gid().into(), stat.size() as i64];
    let [mode, uid, gid, size] = facts;
    let mut found =
        BTreeMap::from([(dir.to_owned(), [mode, uid, gid, size, stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()])]);
    if stat.is_dir() {
        fs::read_dir(dir).unwrap().for_each(|entry| found.extend(known(&entry.unwrap().path())));
    }
    found
}

/// Fails where a link leads to something that is not in `top`.
///
/// # Panics
/// If it does.
#[track_caller]
pub fn stays_within(link: &Path, top: &Path) {
    let leads_to = fs::canonicalize(link);
    let top = fs::canonicalize(top).unwrap();
    assert!(leads_to.as_ref().map_or(true, |path| path.starts_with(&top)), "{} is {leads_to:?}", link.display());
}

/// How many files are in a directory; all of them are the user's own, and there is nothing but files, directories and
/// links that stay within.
#[track_caller]
pub fn own_files(dir: &Path) -> usize {
    own_files_in(dir, dir)
}

#[track_caller]
fn own_files_in(dir: &Path, top: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink(), "{} is {kind:?}", path.display());
        if kind.is_symlink() {
            stays_within(&path, top);
        } else if kind.is_dir() {
            files += own_files_in(&path, top);
        } else {
            assert_eq!(fs::read_to_string(&path).unwrap(), OWN, "{}", path.display());
            files += 1;
        }
    }
    files
}

struct Row {
    dir: OwnedFd,
    name: CString,
    others: Vec<CString>,
}

/// A thread that exchanges names.
pub struct Swapper {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    fn start(rows: Vec<Row>) -> Self {
        let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, counted) = (stop.clone(), swaps.clone());
        let thread = thread::spawn(move || {
            for turn in 0usize.. {
                for row in &rows {
                    let other: &CStr = &row.others[turn % row.others.len()];
                    // It may have been removed meanwhile.
                    if latebind_linux::sys::rename(row.dir.as_fd(), &row.name, other, nix::libc::RENAME_EXCHANGE)
                        .is_ok()
                    {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if ended.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        Self { stop, swaps, thread: Some(thread) }
    }

    /// How often it has exchanged one so far.
    pub fn swaps(&self) -> u64 {
        self.swaps.load(Ordering::Relaxed)
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
