//! The core's socket. Root's alone, in the private volume; a peer that is not root is sent away all the same.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

use super::Core;
use super::connection::{self, Purpose, Service, TIMES};
use super::mailbox::{Mailbox, News};
use super::protocol::{Ask, Tell};
use super::quota::{Permit, Quota, Shares};
use crate::job::relay::Streams;

/// How many connections root may have at once: the pilot has one or two for each slot.
const CONNECTIONS_MAX: usize = 256;

/// How long to wait where no connection can be taken: there are no descriptors left, say.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Listens at `path` until the process ends, for root alone.
pub fn listen(core: Core, path: &Path) -> io::Result<()> {
    let shares = Shares { root: CONNECTIONS_MAX, slot: 0, others: 0, other: 0 };
    let quota = Quota::new(shares, Arc::new(BTreeMap::new()));
    listen_with(path, 0o600, &quota, move |stream, permit| serve(&core, &stream, permit))
}

/// Listens at `path`, with a thread for each client that the quota lets in. Whoever it does not is told so and costs no
/// thread.
pub(super) fn listen_with(
    path: &Path,
    mode: u32,
    quota: &Arc<Quota>,
    serve: impl Fn(UnixStream, Arc<Permit>) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => {
            let message = format!("{}: another watcher serves there already", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        // Left behind by one that was killed.
        Err(_) => match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        },
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    let quota = quota.clone();
    std::thread::Builder::new().name("serve".into()).spawn(move || {
        for stream in listener.incoming() {
            let accepted = stream.and_then(|stream| Ok((getsockopt(&stream, sockopt::PeerCredentials)?, stream)));
            let (peer, stream) = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("a client cannot be accepted: {e}");
                    std::thread::sleep(ACCEPT_AGAIN_AFTER);
                    continue;
                }
            };
            let permit = match quota.take(peer.uid()) {
                Ok(permit) => Arc::new(permit),
                Err(message) => {
                    tracing::debug!("{message}");
                    connection::refuse(&stream, &message);
                    continue;
                }
            };
            let serve = serve.clone();
            let served = std::thread::Builder::new().name("client".into()).spawn(move || {
                if let Err(e) = serve(stream, permit) {
                    tracing::debug!("a client was dropped: {e}");
                }
            });
            if let Err(e) = served {
                tracing::warn!("a client cannot be served: {e}");
            }
        }
    })?;
    Ok(())
}

fn serve(core: &Core, stream: &UnixStream, permit: Arc<Permit>) -> io::Result<()> {
    let mailbox = Arc::new(Mailbox::new()?);
    let mut root = Root { core, mailbox: mailbox.clone(), permit, under_way: 0 };
    let served = connection::serve(stream, &mailbox, &mut root, &TIMES);
    mailbox.close(); // a job goes on without its client, which may ask for it again
    served
}

/// What root asks for.
struct Root<'a> {
    core: &'a Core,
    mailbox: Arc<Mailbox>,
    permit: Arc<Permit>,
    /// Jobs whose end this connection waits for.
    under_way: usize,
}

impl Service for Root<'_> {
    fn answer(&mut self, ask: Ask, descriptors: Vec<OwnedFd>) -> Result<Option<Tell>, String> {
        let control = |job: &str| self.core.control(job).ok_or_else(|| format!("there is no job {job:?}"));
        match ask {
            Ask::Submit { job } => {
                let (client, descriptors) = match job.terminal {
                    Some(_) => (Some(meeting(descriptors)?), Vec::new()),
                    None => (None, descriptors),
                };
                let streams = streams_of(job.relay, descriptors, &self.permit)?;
                let control = self.core.submit(*job, streams, &self.mailbox)?;
                self.under_way += 1;
                client.map_or(Ok(()), |client| control.connect(client))?;
                Ok(None)
            }
            Ask::Signal { job, signal } => {
                control(&job)?.signal(signal);
                self.core.drop_unwanted();
                Ok(None)
            }
            Ask::Cancel { job, why } => {
                control(&job)?.cancel(&why);
                self.core.drop_unwanted();
                Ok(None)
            }
            Ask::Exec { job } => self.core.exec(&job, meeting(descriptors)?).map(|()| Some(Tell::Done)),
            Ask::Steer { job, signal } => Ok(Some(Tell::Sent { processes: self.core.steer(&job, signal)? })),
            Ask::Top => {
                let (slots, queued) = self.core.top();
                Ok(Some(Tell::Top { slots, queued }))
            }
            Ask::Hold { .. } | Ask::Holds => Err(format!("ask that at {}", super::protocol::CLIENTS)),
            Ask::Jobs => Ok(Some(Tell::Jobs { jobs: self.core.jobs() })),
            Ask::Forget { job } => self.core.forget(&job).map(|()| Some(Tell::Done)),
        }
    }

    fn tell(&mut self, news: News) -> Tell {
        match news {
            News::Phase(job, phase) => Tell::Phase { job, phase },
            News::Over(report) => {
                self.under_way = self.under_way.saturating_sub(1);
                Tell::Result { report, back_off_s: 0.0 }
            }
            News::Hold(slot, hold) => Tell::Hold { slot, hold },
        }
    }

    fn purpose(&self) -> Purpose {
        if self.under_way > 0 { Purpose::Waits } else { Purpose::Idle }
    }
}

/// The socket that came along, through which a client is sent a connection to the job's container.
fn meeting(descriptors: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    let is_unix = |fd: &OwnedFd| getsockopt(fd, sockopt::PeerCredentials).is_ok();
    <[OwnedFd; 1]>::try_from(descriptors).ok().map(|[client]| client).filter(is_unix).ok_or_else(|| {
        "one descriptor has to come along, of a Unix socket that waits for a connection to the job".into()
    })
}

/// The descriptors that came with a job, where it wants its streams relayed. Those that do not fit are closed.
pub(super) fn streams_of(
    relay: bool,
    descriptors: Vec<OwnedFd>,
    permit: &Arc<Permit>,
) -> Result<Option<Streams>, String> {
    let n = descriptors.len();
    let mut came = descriptors.into_iter();
    match (relay, n) {
        (false, 0) => Ok(None),
        (true, 2 | 3) => {
            let stdin = if n == 3 { came.next() } else { None };
            let owner = Some(permit.clone() as crate::job::relay::Owner);
            let streams = came.next().zip(came.next()).map(|(stdout, stderr)| Streams { owner, stdin, stdout, stderr });
            streams.as_ref().map_or(Ok(()), Streams::check)?;
            Ok(streams)
        }
        _ => Err(format!("relay is {relay}, but {n} descriptors came along")),
    }
}

/// Reads answers line by line; the client's side.
pub fn answers(stream: UnixStream) -> impl Iterator<Item = io::Result<Tell>> {
    BufReader::new(stream)
        .lines()
        .map(|line| line.and_then(|line| serde_json::from_str(&line).map_err(io::Error::other)))
}

/// Sends one line, with descriptors if there are any.
pub fn send(stream: &UnixStream, ask: &Ask, fds: &[&dyn AsFd]) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let line = format!("{}\n", serde_json::to_string(ask).map_err(io::Error::other)?);
    let numbers: Vec<_> = fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let with = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let parts = [io::IoSlice::new(line.as_bytes())];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &parts, with, MsgFlags::MSG_NOSIGNAL, None)?;
    (&mut &*stream).write_all(line.as_bytes().get(sent..).unwrap_or_default())
}
