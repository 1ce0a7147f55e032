//! The core's socket. Root's alone, in the private volume; a peer that is not root is sent away all the same.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::protocol::{Ask, LINE_MAX, Tell};
use super::{Core, News};
use crate::job::relay::Streams;

/// Listens at `path` until the process ends, for root alone.
pub fn listen(core: Core, path: &Path) -> io::Result<()> {
    listen_with(path, 0o600, move |stream| serve(&core, stream))
}

/// Listens at `path`, with a thread for each client.
pub(super) fn listen_with(
    path: &Path,
    mode: u32,
    serve: impl Fn(UnixStream) -> io::Result<()> + Clone + Send + 'static,
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
    std::thread::Builder::new().name("serve".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let serve = serve.clone();
            let served = std::thread::Builder::new().name("client".into()).spawn(move || {
                if let Err(e) = serve(stream) {
                    tracing::debug!("a client has gone: {e}");
                }
            });
            if let Err(e) = served {
                tracing::warn!("a client can not be served: {e}");
            }
        }
    })?;
    Ok(())
}

/// The writing half, shared by the threads that tell a client of its jobs.
pub(super) type Shared = Arc<Mutex<UnixStream>>;

pub(super) fn tell(to: &Shared, what: &Tell) -> io::Result<()> {
    let line = serde_json::to_string(what).map_err(io::Error::other)?;
    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
    to.write_all(format!("{line}\n").as_bytes())
}

fn serve(core: &Core, stream: UnixStream) -> io::Result<()> {
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?;
    if peer.uid() != 0 {
        return Err(io::Error::other(format!("UID {} may not ask for anything here", peer.uid())));
    }
    let answers: Shared = Arc::new(Mutex::new(stream.try_clone()?));
    let mut lines = Lines::new(stream);
    while let Some(line) = lines.next()? {
        match serde_json::from_slice::<Ask>(&line) {
            Err(e) => tell(&answers, &Tell::Error { message: format!("not understood: {e}") })?,
            Ok(ask) => {
                if let Some(answer) = obey(core, ask, &answers, &mut lines.fds) {
                    tell(&answers, &answer)?;
                }
            }
        }
    }
    Ok(())
}

fn obey(core: &Core, ask: Ask, answers: &Shared, fds: &mut Vec<OwnedFd>) -> Option<Tell> {
    let unknown = |job: &str| Tell::Error { message: format!("there is no job {job:?}") };
    match ask {
        Ask::Submit { job } => {
            let id = job.id.clone();
            let streams = match streams_of(job.relay, fds) {
                Ok(streams) => streams,
                Err(message) => return Some(Tell::Error { message }),
            };
            match core.submit(*job, streams) {
                Err(message) => Some(Tell::Error { message }),
                Ok(news) => {
                    let to = answers.clone();
                    let follow = move || {
                        for news in news {
                            let what = match news {
                                News::Phase(phase) => Tell::Phase { job: id.clone(), phase },
                                News::Over(report) => Tell::Result { report, back_off_s: 0.0 },
                            };
                            if tell(&to, &what).is_err() {
                                return;
                            }
                        }
                    };
                    let thread = std::thread::Builder::new().name("news".into()).spawn(follow);
                    thread.err().map(|e| Tell::Error { message: e.to_string() })
                }
            }
        }
        Ask::Signal { job, signal } => match core.control(&job) {
            None => Some(unknown(&job)),
            Some(control) => {
                control.signal(signal);
                core.drop_unwanted();
                None
            }
        },
        Ask::Cancel { job, why } => match core.control(&job) {
            None => Some(unknown(&job)),
            Some(control) => {
                control.cancel(&why);
                core.drop_unwanted();
                None
            }
        },
        Ask::Steer { job, signal } => Some(match core.steer(&job, signal) {
            Ok(processes) => Tell::Sent { processes },
            Err(message) => Tell::Error { message },
        }),
        Ask::Top => {
            let (slots, queued) = core.top();
            Some(Tell::Top { slots, queued })
        }
        Ask::Hold { .. } | Ask::Holds => {
            Some(Tell::Error { message: format!("ask that at {}", super::protocol::CLIENTS) })
        }
        Ask::Jobs => Some(Tell::Jobs { jobs: core.jobs() }),
        Ask::Forget { job } => Some(match core.forget(&job) {
            Ok(()) => Tell::Done,
            Err(message) => Tell::Error { message },
        }),
    }
}

/// The descriptors that came with a job, where it wants its streams relayed.
pub(super) fn streams_of(relay: bool, fds: &mut Vec<OwnedFd>) -> Result<Option<Streams>, String> {
    let n = fds.len();
    let mut came = fds.drain(..);
    match (relay, n) {
        (false, 0) => Ok(None),
        (true, 2 | 3) => {
            let stdin = if n == 3 { came.next() } else { None };
            Ok(came.next().zip(came.next()).map(|(stdout, stderr)| Streams { owner: None, stdin, stdout, stderr }))
        }
        _ => Err(format!("relay is {relay}, but {n} descriptors came along")),
    }
}

/// Lines of a client, and the descriptors that came along with them.
pub(super) struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// The descriptors.
    pub(super) fds: Vec<OwnedFd>,
}

impl Lines {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new(), fds: Vec::new() }
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return Ok(Some(line));
            }
            if self.buffer.len() > LINE_MAX {
                return Err(io::Error::other("a line is too long"));
            }
            if self.receive()? == 0 {
                return Ok(None);
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
        let mut bytes = [0; 8192];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 3]);
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let n = message.bytes;
        let numbers: Vec<_> = message
            .cmsgs()
            .map_err(io::Error::other)?
            .filter_map(|c| if let ControlMessageOwned::ScmRights(fds) = c { Some(fds) } else { None })
            .flatten()
            .collect();
        for number in numbers {
            self.fds.push(glue::sys::received(number));
        }
        self.buffer.extend(bytes.get(..n).unwrap_or_default());
        Ok(n)
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
