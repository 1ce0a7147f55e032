#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const OWNER: (u32, u32) = (20_000, 20_001);

/// A slot's data/ in a directory, or in a file system of its own.
struct Data {
    top: tempfile::TempDir,
    mounted: bool,
}

impl Data {
    fn new(options: Option<&str>) -> Self {
        let top = tempfile::tempdir().unwrap();
        if let Some(options) = options {
            mount(Some("tmpfs"), top.path(), Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        }
        Self { top, mounted: options.is_some() }
    }

    fn join(&self, path: &str) -> PathBuf {
        self.top.path().join(path)
    }

    fn renew(&self, within: Duration) -> io::Result<()> {
        renew(tree::open_dir(self.top.path()).unwrap().as_fd(), OWNER, &Deadline::within(within))
    }

    fn work(&self) -> PathBuf {
        self.join("work")
    }

    #[track_caller]
    fn is_clean(&self) {
        self.renew(Duration::from_secs(60)).unwrap();
        let work = fs::metadata(self.work()).unwrap();
        assert_eq!((work.uid(), work.gid(), work.mode()), (OWNER.0, OWNER.1, 0o40_700));
        assert_eq!(entries(self.top.path()), [".trash", "work"]);
        assert_eq!((entries(&self.work()).len(), entries(&self.join(".trash")).len()), (0, 0));
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if self.mounted {
            let _ = umount2(self.top.path(), MntFlags::MNT_DETACH);
        }
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn each_job_gets_a_directory_that_none_had_before() {
    let data = Data::new(None);
    data.is_clean();
    let first = tree::open_dir(&data.work()).unwrap();
    fs::create_dir_all(data.work().join("a/b")).unwrap();
    fs::create_dir(data.join("io")).unwrap();
    fs::write(data.join("io/stdout"), "said").unwrap();
    fs::set_permissions(data.work(), fs::Permissions::from_mode(0o1777)).unwrap();
    data.is_clean();
    assert_ne!(fs::metadata(data.work()).unwrap().ino(), nix::sys::stat::fstat(&first).unwrap().st_ino);
    // Whoever had it open has nothing of the next job's, and can leave it nothing.
    assert_eq!(mkdirat(&first, "x", Mode::from_bits_truncate(0o700)), Err(Errno::ENOENT));
}

#[test]
fn a_watcher_that_is_killed_between_two_steps_leaves_a_slot_that_can_be_cleaned() {
    for step in 0..6 {
        let data = Data::new(None);
        data.is_clean();
        fs::write(data.work().join("left"), "").unwrap();
        fs::create_dir(data.join("io")).unwrap();
        // What there is after each of them.
        let make = |name: &str| fs::create_dir(data.join(name)).unwrap();
        let name = |from: &str, to: &str| fs::rename(data.join(from), data.join(to)).unwrap();
        match step {
            0 => fs::remove_dir(data.join(".trash")).unwrap(),
            1 => name("io", ".trash/0"),
            2 => make(".work"),
            3 => {
                name("work", ".work");
                make("work");
            }
            4 => {
                name("work", ".trash/1");
                make("work");
            }
            // Where the file system cannot exchange.
            _ => {
                make(".work");
                name("work", ".trash/1");
            }
        }
        data.is_clean();
    }
}

#[test]
fn a_volume_without_any_room_is_cleaned() {
    for (name, options) in [("bytes", "size=256k"), ("inodes", "nr_inodes=40")] {
        let data = Data::new(Some(options));
        data.is_clean();
        fs::create_dir_all(data.work().join("a/b")).unwrap();
        let full = (0..200).any(|n| fs::write(data.work().join(format!("a/b/{n}")), vec![1; 8192]).is_err());
        assert!(full, "{name}: there was room");
        data.is_clean();
    }
}

#[test]
fn cleaning_ends_in_time_and_goes_on_where_it_was() {
    let data = Data::new(None);
    data.is_clean();
    for n in 0..50 {
        fs::create_dir_all(data.work().join(format!("{n}/x"))).unwrap();
    }
    assert!(data.renew(Duration::ZERO).is_err_and(|e| e.to_string().contains("not done within")));
    assert_eq!(entries(&data.work()).len(), 0, "the next job's place is there all the same");
    data.is_clean();
}

#[test]
fn what_an_images_root_left_is_reset() {
    let top = tempfile::tempdir().unwrap();
    let (ctl, data) = (top.path().join("ctl"), top.path().join("data"));
    fs::create_dir_all(&ctl).unwrap();
    fs::create_dir_all(&data).unwrap();
    let dirs = ClientDirs::from([("execute".to_owned(), (19_000, 19_001))]);
    let reset = || {
        let (ctl, data) = (tree::open_dir(&ctl).unwrap(), tree::open_dir(&data).unwrap());
        let deadline = Deadline::within(Duration::from_secs(60));
        reset_volumes(ctl.as_fd(), data.as_fd(), OWNER, &dirs, &deadline).unwrap();
    };
    // Whatever keeps the next glue from working: full of files, open to the payload, our names taken by something else.
    fs::create_dir_all(ctl.join("status.json/x")).unwrap();
    fs::create_dir_all(ctl.join("env.0/x")).unwrap();
    fs::write(ctl.join("watcher.notify"), "no FIFO").unwrap();
    fs::write(ctl.join("junk"), "").unwrap();
    symlink("/etc", data.join("work")).unwrap();
    fs::create_dir_all(data.join("io/deep/work")).unwrap();
    fs::set_permissions(&ctl, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1777)).unwrap();
    reset();
    let what = |path: &PathBuf| fs::symlink_metadata(path).map(|m| (m.uid(), m.gid(), m.mode())).unwrap();
    assert_eq!((entries(&ctl), entries(&data)), (vec![], [".trash", "execute", "work"].map(str::to_owned).to_vec()));
    assert_eq!(what(&data.join("execute")), (19_000, 19_001, 0o40_755));
    assert_eq!((what(&ctl), what(&data)), ((0, 0, 0o40_700), (0, 0, 0o40_755)));
    assert_eq!(what(&data.join("work")), (20_000, 20_001, 0o40_700));
    // A client's sandboxes stay, and nothing beside them that could lead elsewhere.
    let execute = data.join("execute");
    for (name, owner) in [("dir_1", 20_000), ("dir_2", 19_000), ("dir_3", 0)] {
        fs::create_dir(execute.join(name)).unwrap();
        fs::write(execute.join(name).join("file"), "").unwrap();
        std::os::unix::fs::chown(execute.join(name), Some(owner), None).unwrap();
    }
    symlink("/etc", execute.join("dir_4")).unwrap();
    fs::set_permissions(&execute, fs::Permissions::from_mode(0o777)).unwrap();
    reset();
    assert_eq!(entries(&execute), ["dir_1", "dir_2"]);
    assert_eq!(
        (entries(&execute.join("dir_1")), what(&execute)),
        (vec!["file".to_owned()], (19_000, 19_001, 0o40_755))
    );
    // What the placeholder's glue made meanwhile stays; a job's directory that is another's, or full, becomes the
    // slot's.
    fs::write(ctl.join("status.json"), "{}").unwrap();
    nix::unistd::mkfifo(&ctl.join("watcher.notify"), Mode::from_bits_truncate(0o600)).unwrap();
    fs::write(data.join("work/left"), "").unwrap();
    std::os::unix::fs::chown(data.join("work"), Some(20_005), Some(0)).unwrap();
    reset();
    assert_eq!(entries(&ctl), ["status.json", "watcher.notify"]);
    assert_eq!((what(&data.join("work")), entries(&data.join("work")).len()), ((20_000, 20_001, 0o40_700), 0));
}
