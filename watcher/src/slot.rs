//! One slot as the watcher sees it: its volumes, its numbers, what its glue says, and its chime.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use glue::contract::layout::{self, Ids};
use glue::contract::status::Status;
use glue::processes::{Pinned, Proc};
use glue::volume::Dir;
use nix::fcntl::OFlag;

use crate::bind::proof;

/// Largest status file that is read.
const STATUS_MAX: u64 = 64 << 10;

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

    /// Takes what the chime holds; its bytes say nothing but that it was rung.
    pub fn silence_chime(&self) {
        let Ok(fd) = self.chime.try_clone() else { return };
        let mut bytes = [0; 256];
        let mut chime = File::from(fd);
        while chime.read(&mut bytes).is_ok_and(|n| n == bytes.len()) {}
    }

    /// Ends the slot's glue for good: the pod is over. Waits until it has gone, at most `within`.
    pub fn finish(&self, within: Duration) -> io::Result<()> {
        let Some(status) = self.status()? else { return Ok(()) };
        let pinned = Pinned::new(status.pid)?;
        // The number may have passed on since glue wrote it: whoever runs that very program in these mounts is glue.
        proof::prove_mounts(status.pid, self.number).map_err(io::Error::other)?;
        self.ctl.replace(layout::FINISH, b"", 0o600)?;
        pinned.signal(nix::sys::signal::Signal::SIGTERM)?;
        let give_up = Instant::now() + within;
        while Proc::open()?.process(status.pid).is_some_and(|p| p.lives()) {
            if Instant::now() >= give_up {
                return Err(io::Error::other(format!("glue of slot {} has not ended", self.number)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
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
