//! What root has of a slot, and what it prepares for a job before the job's supervisor is made.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use crate::claim::Claimed;
use crate::events::Events;
use crate::log;
use crate::rootfs::{Accounts, Links};
use latebind_contract::layout::{self, Ids, STREAMS};
use latebind_contract::order::{Order, TIMEOUT_MAX};
use latebind_contract::status::Status;
use latebind_linux::error::{cut, errno_of, error, refused};
use latebind_linux::proc::Proc;
use latebind_linux::sys::{self, Fork};
use latebind_linux::volume::{Dir, is, is_roots};

/// Descriptors that are to be handed on wait above this number, out of the way of those that stage two gets.
pub const OUT_OF_THE_WAY: RawFd = 64;

/// What glue has of its slot from its start on.
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// Whether jobs run under the filter of system calls.
    pub filtered: bool,
    /// Its IDs.
    pub ids: Ids,
    /// `ctl/`.
    pub ctl: Dir,
    /// `data/`.
    pub data: Dir,
    /// `/proc` of the PID namespace.
    pub proc: Proc,
    /// The cgroups text of the container.
    pub cgroup: String,
    /// Signals.
    pub events: Events,
    /// `glue.notify`.
    pub notified: OwnedFd,
    /// `watcher.notify`.
    pub notify: OwnedFd,
    /// Our own binary.
    pub program: File,
}

impl Slot {
    /// Replaces `status.json`, and notifies the watcher.
    pub fn put_status(&self, status: &mut Status) -> io::Result<()> {
        status.log_lines_dropped = log::dropped();
        let text = serde_json::to_vec(status).map_err(|e| refused(format_args!("{e}")))?;
        self.ctl.replace(layout::STATUS, &text, 0o600)?;
        // A full FIFO has notified often enough.
        let _ = nix::unistd::write(&self.notify, b"\n");
        Ok(())
    }
}

/// Why a job is not started, where root knows it.
#[derive(Debug)]
pub struct Problem {
    /// What it is about.
    pub about: About,
    /// Error number of Linux, 0 where none applies.
    pub errno: i32,
    /// What, where, and what to do.
    pub message: String,
}

/// What a [`Problem`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Startup file, links, accounts.
    Startup,
    /// Environment files.
    Environment,
    /// Standard streams.
    Streams,
    /// Supplementary groups.
    Privileges,
}

/// What root has prepared for a job.
#[derive(Default)]
pub struct Prepared {
    /// The FIFOs of its standard streams.
    pub fifos: [Option<OwnedFd>; 3],
    /// What was asked for and could not be done.
    pub warnings: Vec<String>,
    /// Why it is not started.
    pub problem: Option<Problem>,
    /// Whether the account files are not as the image has them, so that glue is to end after this job.
    pub accounts_changed: bool,
}

/// Prepares a job as far as it takes root.
pub fn prepare(slot: &Slot, claimed: &Claimed, links: &mut Links, accounts: &mut Accounts) -> Prepared {
    let mut prepared = Prepared::default();
    prepared.problem = match &claimed.invalid {
        Some(invalid) => {
            let about = if invalid.field == "env_files" { About::Environment } else { About::Startup };
            Some(Problem { about, errno: 0, message: cut(invalid.to_string()) })
        }
        None => prepare_valid(slot, &claimed.order, links, accounts, &mut prepared).err(),
    };
    prepared
}

fn prepare_valid(
    slot: &Slot,
    order: &Order,
    links: &mut Links,
    accounts: &mut Accounts,
    prepared: &mut Prepared,
) -> Result<(), Problem> {
    let problem = |about: About, what: &'static str| {
        move |e: io::Error| Problem { about, errno: errno_of(&e), message: cut(format!("{what}: {e}")) }
    };
    let settled = accounts.settle(order, slot.number);
    prepared.accounts_changed = settled.is_err(); // the next container's image is as it was made
    prepared.warnings = settled.map_err(problem(About::Startup, "the payload's account"))?;
    links.make(&order.links).map_err(problem(About::Startup, "links"))?;
    for (((name, wanted), fifo), n) in STREAMS.into_iter().zip(order.fifos).zip(&mut prepared.fifos).zip(0..) {
        if wanted {
            let open = open_stream_fifo(&slot.ctl, name, n == 0);
            *fifo = Some(open.map_err(problem(About::Streams, "standard stream"))?);
        }
    }
    Ok(())
}

/// A FIFO for a standard stream. The watcher has to hold its other end open already.
fn open_stream_fifo(ctl: &Dir, name: &str, input: bool) -> io::Result<OwnedFd> {
    let flags = if input { OFlag::O_RDONLY } else { OFlag::O_WRONLY };
    let fd = ctl.open_beneath(name, flags | OFlag::O_NONBLOCK, 0);
    let fd = fd.map_err(|e| error(format_args!("the FIFO {name} cannot be opened, or has no reader"), &e))?;
    let stat = fstat(&fd)?;
    if !is(&stat, SFlag::S_IFIFO) || !is_roots(&stat, 0) {
        return Err(refused(format_args!("{name} in ctl/ is not a FIFO of root")));
    }
    sys::set_blocking(fd.as_fd())?;
    Ok(fd)
}

/// As [`sys::fork`], for a process of a job: an error says what may be short.
pub fn fork() -> io::Result<Fork> {
    sys::fork().map_err(|e| error(format_args!("no process could be made (pids limit?)"), &e))
}

/// Who supervises a job, for its record.
pub struct Identity<'a> {
    /// The incarnation of glue.
    pub incarnation: &'a str,
    /// SHA-256 of its binary, lower-case hex.
    pub sha256: &'a str,
    /// Its process ID.
    pub pid: i32,
}

/// A length of time that a file names, and that may be anything there.
pub fn seconds(length: f64) -> Duration {
    Duration::try_from_secs_f64(length.min(TIMEOUT_MAX)).unwrap_or_default()
}
