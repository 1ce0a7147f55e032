//! The clients' socket: for pilots that are not root. Everybody in the pilot container may connect; who a client is,
//! the kernel says: its UID names its slot, and its cgroup says that it is not a payload.
//!
//! Each slot for pilot-jobs has such a socket of its own, which its container alone can reach, and there its payload's
//! UID alone is let in, while a pilot-job runs.
//!
//! A connection has at most one job, which ends with it: a client that is killed cannot cancel.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use latebind_linux::processes::{Pinned, Proc};
use nix::sys::signal::Signal;
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt};

use super::Core;
use super::connection::{self, Purpose, Service, TIMES};
use super::mailbox::{Mailbox, News};
use super::pilot_jobs::{SOCKET, SOCKET_DIR, dir_in_pilot};
use super::protocol::{Ask, Hold, Tell};
use super::quota::{Permit, Quota, Shares};
use super::server::{listen_with, streams_of};
use crate::job::Request;
use crate::job::control::Control;
use crate::random::random_hex;

/// Connections at once. HTCondor has one for each slot's job, and one of its startd.
const SHARES: Shares = Shares { root: 32, slot: 8, others: 32, other: 8 };

/// The same at the socket of a slot for pilot-jobs.
const PILOT_JOB_SHARES: Shares = Shares { root: 0, slot: 8, others: 0, other: 0 };

/// Who a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Client {
    /// Root: any slot, and every field of a job.
    Root,
    /// The payload UID of this slot, outside of its container.
    OfSlot(u32),
    /// A process of a pilot-job.
    PilotJob {
        /// The core's name for it.
        name: String,
        /// The slot that it serves.
        slot: u32,
    },
    /// Anybody else in the pilot container: may look on.
    Other,
}

/// Listens at `path` until the process ends.
pub fn listen(core: Core, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let quota = Quota::new(SHARES, core.uids.clone());
    listen_with(path, 0o666, &quota, move |stream, permit| serve(&core, &stream, permit, admit))
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// Listens for the pilot-jobs of each slot for such jobs, until the process ends.
pub fn listen_to_pilot_jobs(core: &Core) -> io::Result<()> {
    for slot in core.pilot_jobs.all() {
        let (core, path) = (core.clone(), dir_in_pilot(slot).join(SOCKET));
        let own: BTreeMap<u32, u32> = core.uids.iter().filter(|(_, of)| **of == slot).map(|(a, b)| (*a, *b)).collect();
        let quota = Quota::new(PILOT_JOB_SHARES, Arc::new(own));
        let admit = move |core: &Core, peer: &UnixCredentials| admit_pilot_job(core, peer, slot);
        listen_with(&path, 0o666, &quota, move |stream, permit| serve(&core, &stream, permit, admit)).map_err(|e| {
            let volume =
                "the pilot container needs a volume there that the slot's payload container has too, read-only,";
            io::Error::new(e.kind(), format!("{}: {e}: {volume} at {SOCKET_DIR}", path.display()))
        })?;
    }
    Ok(())
}

/// Whoever has the UID is in the slot's payload container. While a pilot-job runs there, that container is proven, and
/// what has the UID is the job: root of an image that is not proven finds no pilot-job that runs.
fn admit_pilot_job(core: &Core, peer: &UnixCredentials, slot: u32) -> Result<(Client, Pinned), String> {
    let pinned = Pinned::new(peer.pid()).map_err(|e| format!("process {}: {e}", peer.pid()))?;
    if core.uids.get(&peer.uid()) != Some(&slot) {
        return Err(format!("UID {} is not the one of slot {slot}", peer.uid()));
    }
    let name = core.pilot_job_in(slot).ok_or_else(|| format!("slot {slot} runs no pilot-job"))?;
    let served = core.pilot_jobs.served_by(slot).ok_or_else(|| format!("slot {slot} serves none"))?;
    Ok((Client::PilotJob { name, slot: served }, pinned))
}

/// A payload has its slot's UID too, and no way to this socket; should it find one, its container gives it away.
fn admit(core: &Core, peer: &UnixCredentials) -> Result<(Client, Pinned), String> {
    let proc = Proc::open().map_err(|e| e.to_string())?;
    // Pinned first: what is read below is then about this process, or about none.
    let pinned = Pinned::new(peer.pid()).map_err(|e| format!("process {}: {e}", peer.pid()))?;
    let own = proc.cgroup(std::process::id() as i32).map_err(|e| e.to_string())?;
    let theirs = proc.cgroup(peer.pid()).map_err(|e| format!("process {}: {e}", peer.pid()))?;
    let uid = proc.process(peer.pid()).filter(|p| p.lives()).map(|p| p.uid);
    if theirs != own || uid != Some(peer.uid()) {
        return Err(format!("process {} of UID {} is not of this container", peer.pid(), peer.uid()));
    }
    let client = match (peer.uid(), core.uids.get(&peer.uid())) {
        (0, _) => Client::Root,
        (_, Some(slot)) => Client::OfSlot(*slot),
        (_, None) => Client::Other,
    };
    Ok((client, pinned))
}

/// The one job of a connection.
struct Tied {
    id: String,
    control: Arc<Control>,
}

fn serve(
    core: &Core,
    stream: &UnixStream,
    permit: Arc<Permit>,
    admit: impl Fn(&Core, &UnixCredentials) -> Result<(Client, Pinned), String>,
) -> io::Result<()> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?;
    let (client, peer) = match admit(core, &peer) {
        Ok(known) => known,
        Err(message) => {
            tracing::debug!("{message}");
            connection::refuse(stream, &message);
            return Ok(());
        }
    };
    let mailbox = Arc::new(Mailbox::new()?);
    let mut connection =
        Connection { core, client, peer, permit, mailbox: mailbox.clone(), job: None, waits: false, held: None };
    connection::serve(stream, &mailbox, &mut connection, &TIMES)
}

/// What is known of a connection; its end is the end of all that it was for.
struct Connection<'a> {
    core: &'a Core,
    client: Client,
    peer: Pinned,
    permit: Arc<Permit>,
    mailbox: Arc<Mailbox>,
    job: Option<Tied>,
    /// For the end of its job, or for what slots hold.
    waits: bool,
    /// The slot whose job it holds.
    held: Option<u32>,
}

impl Service for Connection<'_> {
    fn answer(&mut self, ask: Ask, descriptors: Vec<OwnedFd>) -> Result<Option<Tell>, String> {
        if let Client::PilotJob { name, .. } = &self.client
            && !self.core.lock().is_pilot_job(name)
        {
            // Somebody else may have been passed the connection, and would keep it from the next pilot-job.
            self.mailbox.close();
            return Err(format!("{name} is over"));
        }
        match ask {
            Ask::Submit { job } => self.submit(*job, descriptors)?,
            Ask::Signal { signal, .. } => self.on_job(|control| control.signal(signal))?,
            Ask::Cancel { why, .. } => self.on_job(|control| control.cancel(&why))?,
            Ask::Hold { hold } => {
                let Client::OfSlot(slot) = self.client else {
                    return Err("only a slot's own UID may hold its job".into());
                };
                self.hold(slot, &hold);
            }
            Ask::Holds if matches!(self.client, Client::PilotJob { .. }) => {
                return Err("a pilot-job follows its own jobs alone".into());
            }
            Ask::Holds => {
                self.waits = true;
                self.core.follow_holds(&self.mailbox);
            }
            // It is forgotten with its connection.
            Ask::Forget { .. } => return Ok(Some(Tell::Done)),
            Ask::Jobs | Ask::Top | Ask::Steer { .. } | Ask::Exec { .. } => {
                return Err("ask that at root's socket".into());
            }
        }
        Ok(None)
    }

    fn tell(&mut self, news: News) -> Tell {
        match news {
            News::Phase(job, phase) => Tell::Phase { job, phase },
            News::Hold(slot, hold) => Tell::Hold { slot, hold },
            News::Over(report) => {
                let back_off_s = report.slot.map_or(0.0, |slot| self.core.back_off(slot, &report));
                let is_held_with_it = !matches!(self.client, Client::PilotJob { .. });
                if let (true, Some(slot), Some(hold)) = (is_held_with_it, report.slot, Hold::of(&report)) {
                    self.hold(slot, &hold);
                }
                self.waits = false;
                self.forget();
                self.wake();
                Tell::Result { report, back_off_s }
            }
        }
    }

    fn purpose(&self) -> Purpose {
        match (self.waits, self.held) {
            (true, _) => Purpose::Waits,
            (false, Some(_)) => Purpose::Holds,
            (false, None) => Purpose::Idle,
        }
    }
}

impl Connection<'_> {
    fn submit(&mut self, mut job: Request, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        if self.job.is_some() {
            return Err("this connection has a job already".into());
        }
        if job.terminal.is_some() {
            return Err("terminal: ask for that at root's socket".into());
        }
        match &self.client {
            Client::Root => {}
            Client::OfSlot(slot) => {
                job.check_unprivileged()?;
                job.slot = Some(*slot);
                // A startd with a slot for pilot-jobs runs nothing else there.
                job.pilot_job = self.core.pilot_jobs.served_by(*slot).is_some();
            }
            Client::PilotJob { name, slot } => {
                job.check_unprivileged()?;
                if job.sandbox.is_some() {
                    return Err("sandbox: the slot's volume is not mounted in a pilot-job's container".into());
                }
                (job.slot, job.parent) = (Some(*slot), Some(name.clone()));
            }
            Client::Other => return Err("only root and the slots' own UIDs may have a job here".into()),
        }
        // A name of ours: one that a client chose could be another's job.
        job.id = format!("client-{}", random_hex::<8>().map_err(|e| e.to_string())?);
        job.tied = true;
        let id = job.id.clone();
        let streams = streams_of(job.relay, descriptors, &self.permit)?;
        let control = self.core.submit(job, streams, &self.mailbox)?;
        self.job = Some(Tied { id, control });
        self.waits = true;
        Ok(())
    }

    /// A payload may have stopped its own client, which has its UID: that one would never take the result, and keep the
    /// slot for ever.
    fn wake(&self) {
        if matches!(self.client, Client::OfSlot(_) | Client::PilotJob { .. }) {
            let _ = self.peer.signal(Signal::SIGCONT);
        }
    }

    /// Holds the slot's job for as long as the connection lasts.
    fn hold(&mut self, slot: u32, hold: &Hold) {
        self.held = Some(slot);
        self.core.hold(slot, &self.mailbox, hold);
    }

    fn on_job(&self, wish: impl FnOnce(&Control)) -> Result<(), String> {
        wish(&self.job.as_ref().ok_or("this connection has no job")?.control);
        self.core.drop_unwanted();
        Ok(())
    }

    /// Whether somebody has read the report or not: nobody else will ask for it.
    fn forget(&self) {
        if let Some(job) = &self.job
            && let Err(e) = self.core.forget(&job.id)
        {
            tracing::debug!(job = %job.id, "not forgotten yet: {e}");
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        // First, so that a job that ends from here on is forgotten by the core.
        self.mailbox.close();
        self.core.unfollow(&self.mailbox);
        if let Some(slot) = self.held {
            self.core.release(slot, &self.mailbox);
        }
        if let Some(job) = &self.job {
            job.control.abandon("its client has gone");
            self.core.drop_unwanted();
            self.forget();
        }
    }
}
