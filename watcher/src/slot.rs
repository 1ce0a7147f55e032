//! One slot as the watcher sees it: its volumes, its numbers, what its glue says, and its chime.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use glue::contract::layout::{self, Ids};
use glue::contract::status::Status;
use glue::processes::{Pinned, Proc};
use glue::volume::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, mkdirat};
use nix::unistd::{Gid, Uid, fchown};

use crate::bind::proof;
use crate::job::stage;
use crate::tree;

/// Largest status file that is read.
const STATUS_MAX: u64 = 64 << 10;

/// What a FIFO can hold, where nobody has changed that.
const CHIME_MAX: usize = 64 << 10;

/// Directories in `data/` that a client has made for its sandboxes (HTCondor's `execute/`): name, owner and group.
pub type ClientDirs = BTreeMap<String, (u32, u32)>;

/// What is written down in the private volume while a slot's volumes may have marks of a foreign root: from before an image that is
/// not proven can run, until it is proven, or the placeholder is back and the volumes are mended. HTCondor's pilot waits for its end.
pub fn unmended(number: u32) -> String {
    format!("{number}-unmended")
}

/// An open slot.
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// `ctl/`.
    pub ctl: Dir,
    /// `data/`.
    pub data: Dir,
    /// Payload UID and GID, from the owner of `work/`.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Further volumes that the payload container has to itself, `/tmp` and `/dev/shm` say: emptied with each job.
    pub scratch: Vec<Dir>,
    chime: OwnedFd,
}

/// Where the pilot container has a slot's further volumes, in directories of any name: `/scratch/slot/<n>/<name>`.
fn scratch(number: u32) -> io::Result<Vec<Dir>> {
    let parent = format!("/scratch/slot/{number}");
    let mut dirs = Vec::new();
    match Dir::open(&parent) {
        Ok(open) => {
            for name in open.names()? {
                dirs.push(Dir::open(&format!("{parent}/{name}"))?);
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(dirs)
}

impl Slot {
    /// Opens the slot's volumes where the pod mounts them, and checks that the payload can not change them.
    pub fn open(number: u32) -> io::Result<Self> {
        let (ctl, data) = (Dir::open(&layout::ctl(number))?, Dir::open(&layout::data(number))?);
        ctl.demand_root_only(0o077)?;
        data.demand_root_only(0o022)?;
        let work = data.stat_of(layout::WORK)?;
        if work.st_uid == 0 || work.st_uid == u32::MAX || work.st_gid == 0 {
            return Err(io::Error::other("data/work is root's: `glue install` has to run first, in an init container"));
        }
        let chime = ctl.open_fifo(layout::CHIME)?;
        Ok(Self { number, ctl, data, uid: work.st_uid, gid: work.st_gid, scratch: scratch(number)?, chime })
    }

    /// Makes the slot's volumes again what `glue install` has made of them, and opens them. Root of an image that was not proven may
    /// have left anything there, and no later glue would work on it. For when only the placeholder's glue can be there.
    pub fn mend(number: u32, uid: u32, gid: u32, dirs: &ClientDirs) -> io::Result<Self> {
        let (ctl, data) = (Dir::open(&layout::ctl(number))?, Dir::open(&layout::data(number))?);
        mend_volumes(ctl.as_fd(), data.as_fd(), (uid, gid), dirs)?;
        Self::open(number)
    }

    /// The directories in `data/` that are neither ours nor glue's, as they are now.
    pub fn client_dirs(&self) -> io::Result<ClientDirs> {
        let mut dirs = ClientDirs::new();
        for name in self.data.names()? {
            let stat = self.data.stat_of(&name)?;
            if tree::is(&stat, SFlag::S_IFDIR) && ![layout::WORK, stage::IO].contains(&name.as_str()) {
                dirs.insert(name, (stat.st_uid, stat.st_gid));
            }
        }
        Ok(dirs)
    }

    /// What glue says now; `None` where no glue has said anything yet. Only for who has the mount proof: an image's own root
    /// could have written it.
    pub fn status(&self) -> io::Result<Option<Status>> {
        match self.ctl.read_file(layout::STATUS, STATUS_MAX) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The last job's record, as bytes; `None` where there is none.
    pub fn record(&self) -> io::Result<Option<Vec<u8>>> {
        match self.ctl.read_file(layout::RECORD, layout::RECORD_MAX) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether a startup file waits to be claimed.
    pub fn has_startup(&self) -> bool {
        self.ctl.stat_of(layout::STARTUP).is_ok()
    }

    /// Rings glue's bell.
    pub fn ring(&self) -> io::Result<()> {
        let bell = self.ctl.open_beneath(layout::BELL, OFlag::O_RDWR | OFlag::O_NONBLOCK, 0)?;
        nix::unistd::write(&bell, b"\n").map(drop).or_else(|e| match e {
            nix::errno::Errno::EAGAIN => Ok(()), // full: it has been rung
            e => Err(e.into()),
        })
    }

    /// The chime, to wait for.
    pub fn chime(&self) -> BorrowedFd<'_> {
        self.chime.as_fd()
    }

    /// Takes what the chime holds; its bytes say nothing but that it was rung. Not more than it can hold at once: until the mount
    /// proof an image's root may write faster than this reads.
    pub fn silence_chime(&self) {
        let mut bytes = [0; 4096];
        for _ in 0..CHIME_MAX / bytes.len() {
            if nix::unistd::read(&self.chime, &mut bytes) != Ok(bytes.len()) {
                return;
            }
        }
    }

    /// Ends the slot's glue for good: the pod is over. Waits until it has gone, at most `within`. Where its container is just being
    /// exchanged, the next glue is the one to end.
    pub fn finish(&self, within: Duration) -> io::Result<()> {
        let give_up = Instant::now() + within;
        let (pinned, pid) = loop {
            match self.pin_glue() {
                Ok(found) => break found,
                Err(e) if Instant::now() >= give_up => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        self.ctl.replace(layout::FINISH, b"", 0o600)?;
        pinned.signal(nix::sys::signal::Signal::SIGTERM)?;
        while Proc::open()?.process(pid).is_some_and(|p| p.lives()) {
            if Instant::now() >= give_up {
                return Err(io::Error::other(format!("glue of slot {} has not ended", self.number)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn pin_glue(&self) -> io::Result<(Pinned, i32)> {
        let status = self.status()?;
        let status = status.ok_or_else(|| io::Error::other(format!("slot {} has no glue", self.number)))?;
        let pinned = Pinned::new(status.pid)?;
        // The number may have passed on since glue wrote it, or not be glue's at all: what runs that very program in these mounts is glue.
        proof::prove_mounts(status.pid, self.number)
            .and_then(|()| proof::prove_program(status.pid))
            .map_err(io::Error::other)?;
        Ok((pinned, status.pid))
    }

    /// The slot's numbers with the kill UID that its glue names.
    pub fn ids(&self, kill_uid: u32) -> Ids {
        Ids { uid: self.uid, gid: self.gid, kill_uid }
    }

    /// `data/` as a path; for when no payload lives.
    pub fn data_path(&self) -> PathBuf {
        PathBuf::from(layout::data(self.number))
    }
}

fn mend_volumes(
    ctl: BorrowedFd<'_>,
    data: BorrowedFd<'_>,
    (uid, gid): (u32, u32),
    dirs: &ClientDirs,
) -> io::Result<()> {
    let own = |fd: BorrowedFd<'_>, uid: u32, gid: u32, mode: u32| -> io::Result<()> {
        fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        Ok(fchmod(fd, Mode::from_bits_truncate(mode))?)
    };
    own(ctl, 0, 0, 0o700)?;
    own(data, 0, 0, 0o755)?;
    // The placeholder's glue may be there by now, and these are its own then.
    tree::remove_others(ctl, |name, stat| {
        let kind = match name.strip_suffix(layout::TEMPORARY_SUFFIX).unwrap_or(name) {
            layout::STATUS => SFlag::S_IFREG,
            layout::BELL | layout::CHIME => SFlag::S_IFIFO,
            _ => return false,
        };
        tree::is(stat, kind) && stat.st_uid == 0 && stat.st_mode & 0o022 == 0
    })?;
    let is_dir = |stat: &FileStat| tree::is(stat, SFlag::S_IFDIR);
    tree::remove_others(data, |name, stat| (name == layout::WORK || dirs.contains_key(name)) && is_dir(stat))?;
    for (name, (owner, group)) in dirs {
        match mkdirat(data, name.as_str(), Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let dir = glue::volume::open_beneath(data, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?;
        own(dir.as_fd(), *owner, *group, 0o755)?;
        // Sandboxes stay, since their clients are there; whatever else is in it, a client might follow.
        tree::remove_others(dir.as_fd(), |_, stat| is_dir(stat) && [uid, *owner].contains(&stat.st_uid))?;
    }
    match mkdirat(data, layout::WORK, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let work = glue::volume::open_beneath(data, layout::WORK, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?;
    own(work.as_fd(), uid, gid, 0o700)?;
    tree::remove_content(work.as_fd())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn what_an_images_root_left_is_mended() {
        let top = tempfile::tempdir().unwrap();
        let (ctl, data) = (top.path().join("ctl"), top.path().join("data"));
        fs::create_dir_all(&ctl).unwrap();
        fs::create_dir_all(&data).unwrap();
        let dirs = ClientDirs::from([("execute".to_owned(), (19_000, 19_001))]);
        let mend = || {
            let (ctl, data) = (tree::open_dir(&ctl).unwrap(), tree::open_dir(&data).unwrap());
            mend_volumes(ctl.as_fd(), data.as_fd(), (20_000, 20_001), &dirs).unwrap();
        };
        let entries = |dir: &PathBuf| {
            let mut names: Vec<String> =
                fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        // Whatever keeps the next glue from working: full of files, open to the payload, our names taken by something else.
        fs::create_dir_all(ctl.join("status.json/x")).unwrap();
        fs::create_dir_all(ctl.join("env.0/x")).unwrap();
        fs::write(ctl.join("chime"), "no FIFO").unwrap();
        fs::write(ctl.join("junk"), "").unwrap();
        symlink("/etc", data.join("work")).unwrap();
        fs::create_dir_all(data.join("io/deep/work")).unwrap();
        fs::set_permissions(&ctl, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o1777)).unwrap();
        mend();
        let what = |path: &PathBuf| fs::symlink_metadata(path).map(|m| (m.uid(), m.gid(), m.mode())).unwrap();
        assert_eq!((entries(&ctl), entries(&data)), (vec![], vec!["execute".to_owned(), "work".to_owned()]));
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
        mend();
        assert_eq!(entries(&execute), ["dir_1", "dir_2"]);
        assert_eq!(
            (entries(&execute.join("dir_1")), what(&execute)),
            (vec!["file".to_owned()], (19_000, 19_001, 0o40_755))
        );
        // What the placeholder's glue made meanwhile stays; a job's directory that is another's, or full, becomes the slot's.
        fs::write(ctl.join("status.json"), "{}").unwrap();
        nix::unistd::mkfifo(&ctl.join("chime"), Mode::from_bits_truncate(0o600)).unwrap();
        fs::write(data.join("work/left"), "").unwrap();
        std::os::unix::fs::chown(data.join("work"), Some(20_005), Some(0)).unwrap();
        mend();
        assert_eq!(entries(&ctl), ["chime", "status.json"]);
        assert_eq!((what(&data.join("work")), entries(&data.join("work")).len()), ((20_000, 20_001, 0o40_700), 0));
    }
}
