//! Volumes without room, and limits of the kernel that are made smaller, for the tests of shortages.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use crate::pod::{Pod, Scratch, Signal, kill, unique};
use crate::waiting::deadline;

/// What a file system in memory gives away at a time.
pub const PAGE: usize = 4096;

/// A file that leaves no room in a volume; it goes with the value, if somebody else has not removed it before.
pub struct Filler(PathBuf);

impl Filler {
    /// Fills the volume at `dir`, but for so many pages.
    pub fn leaving(dir: &Path, pages: usize) -> Self {
        let path = dir.join("filler");
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        let (mut written, give_up) = (0, deadline(Duration::from_secs(5)));
        let block = vec![7; 64 * PAGE];
        // Once more, until nothing is added: what was removed just now is given back a moment later.
        loop {
            let before = written;
            for part in [block.as_slice(), &block[..PAGE]] {
                while let Ok(n) = file.write(part) {
                    written += n;
                    assert!(written < 256 << 20, "{} is too large to be filled", dir.display());
                }
            }
            if written == before && written > pages * PAGE {
                break;
            }
            assert!(Instant::now() < give_up, "{} was full already", dir.display());
            thread::sleep(Duration::from_millis(30));
        }
        file.set_len((written - written % PAGE - pages * PAGE) as u64).unwrap();
        Self(path)
    }

    /// Fills it to the last page.
    pub fn all(dir: &Path) -> Self {
        Self::leaving(dir, 0)
    }

    /// Whether it is still there.
    pub fn is_there(&self) -> bool {
        self.0.exists()
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A file system in memory that has room for little more than is in it; until it goes. Emptying it changes nothing.
pub struct Small(PathBuf);

impl Small {
    /// The one at `dir`, with so many pages of room.
    pub fn new(dir: &Path, pages: u64) -> Self {
        let now = statvfs(dir).unwrap();
        let small = Self(dir.to_owned());
        resize(dir, (now.blocks() - now.blocks_free()) * now.block_size() + pages * PAGE as u64).unwrap();
        small
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = resize(&self.0, 16 << 20);
    }
}

fn resize(dir: &Path, bytes: u64) -> nix::Result<()> {
    let options = format!("size={bytes}");
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str()))
}

/// A file system in memory in which no file can be made; until it goes.
pub struct NoMoreFiles(PathBuf);

impl NoMoreFiles {
    /// The one at `dir`.
    pub fn new(dir: &Path) -> Self {
        let new = Self(dir.to_owned());
        new.also_now();
        new
    }

    /// None in the place of those either that have been removed meanwhile.
    pub fn also_now(&self) {
        let give_up = deadline(Duration::from_secs(5));
        loop {
            let now = statvfs(&self.0).unwrap();
            match allow_files(&self.0, now.files() - now.files_free()) {
                // One more was made in between.
                Err(e) => assert!(Instant::now() < give_up, "{}: {e}", self.0.display()),
                Ok(()) => return,
            }
        }
    }
}

impl Drop for NoMoreFiles {
    fn drop(&mut self) {
        let _ = allow_files(&self.0, 1 << 16);
    }
}

fn allow_files(dir: &Path, most: u64) -> nix::Result<()> {
    let options = format!("nr_inodes={most}");
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str()))
}

/// Stops a pod's watcher until it goes: who is first, watcher or kernel, is chance else.
pub struct Unwatched(i32);

impl Unwatched {
    /// From now on.
    pub fn new(pod: &Pod) -> Self {
        let watcher = pod.main_process("pilot");
        kill(watcher, Signal::SIGSTOP);
        Self(watcher)
    }
}

impl Drop for Unwatched {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT);
    }
}

/// A directory in memory of a fixed size.
pub struct Memory(Scratch);

impl Memory {
    /// One of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let scratch = Scratch::new();
        let options = format!("size={bytes},mode=0700");
        mount(Some("latebind-test"), scratch.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(scratch)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// No process and no thread can be made in the control group of a process, until it goes.
pub struct NoMoreProcesses {
    file: PathBuf,
    before: String,
}

impl NoMoreProcesses {
    /// From now on, beside this one.
    pub fn beside(pid: i32) -> Self {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let file = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
            let of_pids = controllers.split(',').any(|c| c == "pids");
            let v1 = of_pids.then(|| Path::new("/sys/fs/cgroup/pids").join(path).join("pids.max"));
            let v2 = controllers.is_empty().then(|| Path::new("/sys/fs/cgroup").join(path).join("pids.max"));
            v1.or(v2).filter(|file| file.exists())
        });
        let file = file.unwrap_or_else(|| panic!("process {pid} is in no group that counts processes:\n{groups}"));
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, "1").unwrap();
        Self { file, before }
    }
}

impl Drop for NoMoreProcesses {
    fn drop(&mut self) {
        // The container may be gone.
        let _ = fs::write(&self.file, &self.before);
    }
}

/// A control group of a test's own that counts processes and threads. What is in it has to end before the value goes.
pub struct Group(PathBuf);

impl Group {
    /// An empty one without a limit.
    pub fn new() -> Self {
        let tops = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let name = unique("latebind-test");
        let made = tops.into_iter().map(|top| top.join(&name)).find(|group| {
            let is_made = fs::create_dir(group).is_ok();
            let counts = group.join("pids.max").exists();
            if is_made && !counts {
                let _ = fs::remove_dir(group);
            }
            is_made && counts
        });
        Self(made.expect("this machine has no control groups that count processes"))
    }

    /// Takes a process in, with all of its threads.
    pub fn take(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// How many are in it.
    pub fn count(&self) -> u32 {
        fs::read_to_string(self.0.join("pids.current")).unwrap().trim().parse().unwrap()
    }

    /// How many are in it beside this process with its threads, if all these are monitors of containers: where podman
    /// has no control group of its own to put them into, they stay in its caller's.
    pub fn monitors_beside(&self, pid: i32) -> Option<u32> {
        let processes = fs::read_to_string(self.0.join("cgroup.procs")).unwrap();
        let others = processes.lines().filter(|line| *line != pid.to_string());
        let threads = |pid: &str| {
            let is_monitor = fs::read_to_string(format!("/proc/{pid}/comm")).ok()? == "conmon\n";
            u32::try_from(fs::read_dir(format!("/proc/{pid}/task")).ok().filter(|_| is_monitor)?.count()).ok()
        };
        others.map(threads).sum()
    }

    /// Lets none be made beyond so many.
    pub fn allow(&self, most: u32) {
        fs::write(self.0.join("pids.max"), most.to_string()).unwrap();
    }

    /// Lets any number of them be made.
    pub fn allow_all(&self) {
        fs::write(self.0.join("pids.max"), "max").unwrap();
    }
}

impl Default for Group {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let give_up = deadline(Duration::from_secs(10));
        while fs::remove_dir(&self.0).is_err() && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(30));
        }
    }
}
