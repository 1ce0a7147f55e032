//! The clients' socket: for pilots that are not root. Everybody in the pilot container may connect; who a client is, the kernel
//! says: its UID names its slot, and its cgroup says that it is no payload.
//!
//! A connection has at most one job, which ends with it: a client that is killed can not cancel.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use glue::contract::encoding::hex;
use glue::processes::{Pinned, Proc};
use nix::sys::signal::Signal;
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt};

use super::protocol::{Ask, Hold, Tell};
use super::server::{Lines, Shared, listen_with, streams_of, tell};
use super::{Core, News};
use crate::job::Request;
use crate::job::control::Control;

/// Who a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// Root: any slot, and every field of a job.
    Root,
    /// The payload UID of this slot, outside of its container.
    OfSlot(u32),
    /// Anybody else in the pilot container: may look on.
    Other,
}

/// Listens at `path` until the process ends.
pub fn listen(core: Core, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    listen_with(path, 0o666, move |stream| serve(&core, stream))
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
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
    control: Option<Arc<Control>>,
}

/// What the reading and the telling thread of a connection both know.
struct Connection {
    core: Core,
    client: Client,
    peer: Pinned,
    answers: Shared,
    /// The slot that this connection holds something of; `Err` once the connection has ended.
    held: Mutex<Result<Option<u32>, ()>>,
}

fn serve(core: &Core, stream: UnixStream) -> io::Result<()> {
    let answers: Shared = Arc::new(Mutex::new(stream.try_clone()?));
    let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
    let (client, peer) = match admit(core, &peer) {
        Ok(known) => known,
        Err(message) => {
            tracing::warn!("{message}: sent away");
            return tell(&answers, &Tell::Error { message });
        }
    };
    let connection = Arc::new(Connection { core: core.clone(), client, peer, answers, held: Mutex::new(Ok(None)) });
    let mut tied = None;
    let served = connection.serve(stream, &mut tied);
    connection.release();
    if let Some(control) = tied.and_then(|job: Tied| job.control.or_else(|| core.control(&job.id))) {
        control.abandon("its client has gone");
        core.drop_unwanted();
    }
    served
}

impl Connection {
    fn serve(self: &Arc<Self>, stream: UnixStream, tied: &mut Option<Tied>) -> io::Result<()> {
        let mut lines = Lines::new(stream);
        while let Some(line) = lines.next()? {
            let answer = match serde_json::from_slice::<Ask>(&line) {
                Err(e) => Err(format!("not understood: {e}")),
                Ok(Ask::Submit { job }) => self.submit(*job, &mut lines, tied),
                Ok(Ask::Signal { signal, .. }) => self.on_job(tied.as_ref(), |control| control.signal(signal)),
                Ok(Ask::Cancel { why, .. }) => self.on_job(tied.as_ref(), |control| control.cancel(&why)),
                Ok(Ask::Hold { hold }) => self.hold_own(hold),
                Ok(Ask::Holds) => self.follow_holds(),
                // It is forgotten with its connection.
                Ok(Ask::Forget { .. }) => tell(&self.answers, &Tell::Done).map_err(|e| e.to_string()),
                Ok(Ask::Jobs | Ask::Top | Ask::Steer { .. }) => Err("ask that at root's socket".into()),
            };
            if let Err(message) = answer {
                tell(&self.answers, &Tell::Error { message })?;
            }
        }
        Ok(())
    }

    fn submit(self: &Arc<Self>, mut job: Request, lines: &mut Lines, tied: &mut Option<Tied>) -> Result<(), String> {
        if tied.is_some() {
            return Err("this connection has a job already".into());
        }
        match self.client {
            Client::Root => {}
            Client::OfSlot(slot) => {
                job.check_unprivileged()?;
                job.slot = Some(slot);
            }
            Client::Other => return Err("only root and the slots' own UIDs may have a job here".into()),
        }
        // A name of ours: one that a client chose could be another's job.
        let mut random = [0; 8];
        glue::sys::random(&mut random).map_err(|e| e.to_string())?;
        job.id = format!("client-{}", hex(&random));
        job.tied = true;
        let id = job.id.clone();
        let streams = streams_of(job.relay, &mut lines.fds)?;
        let news = self.core.submit(job, streams)?;
        *tied = Some(Tied { id: id.clone(), control: self.core.control(&id) });
        let this = self.clone();
        let follow = move || {
            for news in news {
                let told = match news {
                    News::Phase(phase) => tell(&this.answers, &Tell::Phase { job: id.clone(), phase }),
                    News::Over(report) => {
                        let back_off_s = report.slot.map_or(0.0, |slot| this.core.back_off(slot, &report));
                        if let (Some(slot), Some(hold)) = (report.slot, Hold::of(&report)) {
                            this.hold(slot, hold);
                        }
                        let told = tell(&this.answers, &Tell::Result { report, back_off_s });
                        this.wake();
                        told
                    }
                };
                // Whether somebody listens or not: the news go on to the end, when the job can be forgotten.
                if let Err(e) = told {
                    tracing::debug!(job = %id, "its client has gone: {e}");
                }
            }
            if let Err(e) = this.core.forget(&id) {
                tracing::warn!(job = %id, "not forgotten: {e}");
            }
        };
        let thread = std::thread::Builder::new().name("news".into()).spawn(follow);
        thread.map(drop).map_err(|e| e.to_string())
    }

    /// A payload may have stopped its own client, which has its UID: that one would never take the result, and keep the slot for ever.
    fn wake(&self) {
        if matches!(self.client, Client::OfSlot(_)) {
            let _ = self.peer.signal(Signal::SIGCONT);
        }
    }

    fn hold_own(&self, hold: Hold) -> Result<(), String> {
        let Client::OfSlot(slot) = self.client else { return Err("only a slot's own UID may hold its job".into()) };
        self.hold(slot, hold);
        Ok(())
    }

    /// Holds the slot's job for as long as the connection lasts.
    fn hold(&self, slot: u32, hold: Hold) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_ok() {
            *held = Ok(Some(slot));
            self.core.hold(slot, Some(hold));
        }
    }

    fn release(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(Some(slot)) = *held {
            self.core.hold(slot, None);
        }
        *held = Err(());
    }

    fn follow_holds(self: &Arc<Self>) -> Result<(), String> {
        let (holds, answers) = (self.core.follow_holds(), self.answers.clone());
        let follow = move || holds.iter().all(|hold| tell(&answers, &hold).is_ok());
        let thread = std::thread::Builder::new().name("holds".into()).spawn(follow);
        thread.map(drop).map_err(|e| e.to_string())
    }

    fn on_job(&self, tied: Option<&Tied>, wish: impl FnOnce(&Control)) -> Result<(), String> {
        let control = tied.and_then(|job| job.control.as_ref()).ok_or("this connection has no job")?;
        wish(control);
        self.core.drop_unwanted();
        Ok(())
    }
}
