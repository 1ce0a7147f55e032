//! One slot as the watcher sees it: its volumes, its numbers, what its glue says, and its notification FIFO.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use latebind_contract::layout::{self, Ids};
use latebind_contract::status::Status;
use latebind_linux::sys;
use latebind_linux::volume::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use crate::bind::proof::{self, is_readable_within};
use crate::layout::OURS;
use crate::tree;

/// Largest status file that is read.
const STATUS_MAX: u64 = 64 << 10;

/// What a FIFO can hold, where nobody has changed that.
const CHIME_MAX: usize = 64 << 10;

/// Directories in `data/` that a client has made for its sandboxes (HTCondor's `execute/`): name, owner and group.
pub type ClientDirs = BTreeMap<String, (u32, u32)>;

/// What is written down in the private volume while a slot's volumes may have marks of a foreign root: from before an
/// image that is not proven can run, until it is proven, or the placeholder is back and the volumes are reset.
/// HTCondor's pilot waits for its end.
pub fn dirty_mark(number: u32) -> String {
    format!("{number}-dirty")
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
    notified: OwnedFd,
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
    /// Opens the slot's volumes where the pod mounts them, and checks that the payload cannot change them.
    pub fn open(number: u32) -> io::Result<Self> {
        let (ctl, data) = (Dir::open(&layout::ctl(number))?, Dir::open(&layout::data(number))?);
        ctl.demand_root_only(0o077)?;
        data.demand_root_only(0o022)?;
        let work = data.stat_of(layout::WORK)?;
        if work.st_uid == 0 || work.st_uid == u32::MAX || work.st_gid == 0 {
            return Err(io::Error::other("data/work is root's: `glue install` has to run first, in an init container"));
        }
        let notified = ctl.open_fifo(layout::WATCHER_NOTIFY)?;
        Ok(Self { number, ctl, data, uid: work.st_uid, gid: work.st_gid, scratch: scratch(number)?, notified })
    }

    /// The directories in `data/` that are neither ours nor glue's, as they are now.
    pub fn client_dirs(&self) -> io::Result<ClientDirs> {
        let mut dirs = ClientDirs::new();
        for name in self.data.names()? {
            let stat = self.data.stat_of(&name)?;
            if tree::is(&stat, SFlag::S_IFDIR) && !OURS.contains(&name.as_str()) {
                dirs.insert(name, (stat.st_uid, stat.st_gid));
            }
        }
        Ok(dirs)
    }

    /// What glue says now; `None` where no glue has said anything yet. Only for who has the mount proof: an image's own
    /// root could have written it.
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

    /// Notifies glue.
    pub fn notify(&self) -> io::Result<()> {
        let fifo = self.ctl.open_beneath(layout::GLUE_NOTIFY, OFlag::O_RDWR | OFlag::O_NONBLOCK, 0)?;
        nix::unistd::write(&fifo, b"\n").map(drop).or_else(|e| match e {
            nix::errno::Errno::EAGAIN => Ok(()), // full: glue has been notified
            e => Err(e.into()),
        })
    }

    /// The notification FIFO, to wait for.
    pub fn notified(&self) -> BorrowedFd<'_> {
        self.notified.as_fd()
    }

    /// Empties the notification FIFO, whose bytes carry no meaning. Reads at most what it can hold at once: until the
    /// mount proof has succeeded, an image's root may write faster than this reads.
    pub fn clear_notifications(&self) {
        let mut bytes = [0; 4096];
        for _ in 0..CHIME_MAX / bytes.len() {
            if nix::unistd::read(&self.notified, &mut bytes) != Ok(bytes.len()) {
                return;
            }
        }
    }

    /// Ends the slot's glue for good: the pod is over. Waits until it has gone, at most `within`. Where its container
    /// is just being exchanged, the next glue is the one to end.
    pub fn finish(&self, within: Duration) -> io::Result<()> {
        let give_up = Instant::now() + within;
        let glue = loop {
            self.clear_notifications();
            let left = give_up.saturating_duration_since(Instant::now());
            match self.pin_glue() {
                Ok(found) => break found,
                Err(e) if left.is_zero() => return Err(e),
                // A glue that starts notifies us.
                Err(_) => is_readable_within(self.notified(), left),
            };
        };
        self.ctl.replace(layout::FINISH, b"", 0o600)?;
        sys::signal_pidfd(glue.as_fd(), nix::libc::SIGTERM)?;
        match is_readable_within(glue.as_fd(), give_up.saturating_duration_since(Instant::now())) {
            true => Ok(()),
            false => Err(io::Error::other(format!("glue of slot {} has not ended", self.number))),
        }
    }

    fn pin_glue(&self) -> io::Result<OwnedFd> {
        let status = self.status()?;
        let status = status.ok_or_else(|| io::Error::other(format!("slot {} has no glue", self.number)))?;
        let glue = sys::pidfd_open(status.pid)?;
        // The number may have passed on since glue wrote it, or not be glue's at all: what runs that very program in
        // these mounts is glue.
        proof::prove_mounts(status.pid, self.number)
            .and_then(|()| proof::prove_program(status.pid))
            .map_err(io::Error::other)?;
        Ok(glue)
    }

    /// The slot's numbers with the kill UID that its glue names.
    pub fn ids(&self, kill_uid: u32) -> Ids {
        Ids { uid: self.uid, gid: self.gid, kill_uid }
    }
}
