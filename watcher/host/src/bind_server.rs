//! The bind socket: one JSON object and line end for each request, and one for each answer.
//!
//! Whoever can connect can have any allowed image run in this pod's payload containers, and nothing else. Only the
//! pilot container mounts the socket, and only root of it may connect.

use crate::container::PodShape;
use crate::engine::Engine;
use crate::failure::{self, Context, failure};
use crate::image_cache::ImageCache;
use crate::images::{self, AllowList, Pull};
use crate::slot::Slot;
use nix::sys::socket::{getsockopt, sockopt};
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use watcher::bind::host::{Answer, Request, Verb};
use watcher::bind::{Failure, Reason};
use watcher::reference::Reference;

/// Name of the socket in its directory.
const SOCKET: &str = "bind.sock";
/// Longest request, line end included.
const REQUEST_MAX: usize = 64 << 10;
/// How long a connection may be without a request.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// How long a request may take, from its first byte to its end.
const LINE_LIMIT: Duration = Duration::from_secs(10);
/// Most connections at the same time.
const CONNECTIONS_MAX: usize = 64;
/// How long an answer may wait for the pilot to read it.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Answers bind requests for one pod.
#[derive(Debug)]
pub struct BindServer {
    /// What makes containers.
    pub engine: Arc<dyn Engine>,
    /// What the containers are like.
    pub shape: PodShape,
    /// What may be bound.
    pub allowed: AllowList,
    /// Whether images are fetched.
    pub pull: Pull,
    /// What names mean.
    pub images: ImageCache,
    /// One for each payload container.
    pub slots: Vec<Slot>,
}

/// A request that makes sense.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Bind { slot: u32, image: String },
    Image { image: String },
    State { slot: u32 },
    Clean { slot: u32 },
    Info,
}

fn understand(line: &[u8]) -> Result<Asked, Failure> {
    let request: Request = serde_json::from_slice(line).map_err(|e| bad(format!("not understood: {e}")))?;
    if request.version != 1 {
        return Err(bad(format!("this is version 1 of the protocol, the request is of {}", request.version)));
    }
    match (request.verb, request.slot, request.image) {
        (Verb::Bind, Some(slot), Some(image)) => Ok(Asked::Bind { slot, image }),
        (Verb::State, Some(slot), None) => Ok(Asked::State { slot }),
        (Verb::Clean, Some(slot), None) => Ok(Asked::Clean { slot }),
        (Verb::Image, None, Some(image)) => Ok(Asked::Image { image }),
        (Verb::Info, None, None) => Ok(Asked::Info),
        _ => Err(bad(
            "bind takes slot and image, image takes image, state and clean take slot, info takes none; a field is missing \
             or too much",
        )),
    }
}

fn refused(Failure { class, reason, message }: Failure) -> Answer {
    Answer { class: Some(class), reason: Some(reason), message: Some(message), ..Answer::default() }
}

fn of_image(image: String, ready: images::Ready) -> Answer {
    let (image, image_id, pulled) = (Some(image), Some(ready.id), Some(ready.pulled));
    Answer { ok: true, image, image_id, pulled, ..Answer::default() }
}

fn bad(message: impl Into<String>) -> Failure {
    Failure::retry(Reason::BadRequest, message)
}

impl BindServer {
    /// Puts the image in place of what the slot has now; an empty name is the placeholder.
    pub fn bind(&self, number: u32, image: &str) -> Result<(String, images::Ready), Failure> {
        let slot = self.slot(number)?;
        let ticket = slot.ticket();
        let ready = self.prepare(image)?;
        let container = slot.bind(&self.engine, &self.shape, ticket, image, &ready)?;
        Ok((container, ready))
    }

    /// Makes sure that the image may be bound and is here; an empty name is the placeholder.
    fn prepare(&self, image: &str) -> Result<images::Ready, Failure> {
        let reference = match image {
            "" => Reference::parse_full(&self.shape.glue_image),
            name => Reference::parse_full(name),
        }
        .map_err(|why| Failure::hold(Reason::InvalidImageName, why))?;
        if !image.is_empty() && !self.allowed.allows(&reference) {
            return Err(Failure::hold(
                Reason::ImageNotAllowed,
                format!("{reference} is not on this pod's allow list; whoever runs the pod can add it with --allow"),
            ));
        }
        let name = reference.to_string();
        let ask = || images::prepare(&*self.engine, &[(&name, self.pull)], false);
        // What is remembered was so before a registry was asked.
        let known = if self.pull == Pull::Always { ask() } else { self.images.get(&[&name], ask) };
        known?.pop().ok_or_else(|| bad("the engine said nothing of the image"))
    }

    /// Makes sure that the images of glue, of the pilot and of `only`, fetched as `pull` says, are here. Returns the ID
    /// of glue's. A pull shows its progress to the user.
    pub fn look_at_images(&self, only: Option<&Reference>, pull: Pull) -> Result<String, failure::Failure> {
        let ours = [&self.shape.glue_image, &self.shape.pilot_image]
            .map(|image| Reference::parse_full(image).map(|image| image.to_string()).map_err(failure));
        let [glue, pilot] = ours;
        let (glue, pilot, only) = (glue?, pilot?, only.map(Reference::to_string));
        let mut images = vec![(glue.as_str(), Pull::Never), (&pilot, Pull::Never)];
        images.extend(only.as_deref().map(|only| (only, pull)));
        let names: Vec<&str> = images.iter().map(|(name, _)| *name).collect();
        let ready = self.images.get(&names, || images::prepare(&*self.engine, &images, true)).map_err(|refusal| {
            let ours = refusal.reason == Reason::ImageNotFound
                && only.as_ref().is_none_or(|o| !refusal.message.starts_with(o));
            failure(if ours { format!("{}: run `make images`", refusal.message) } else { refusal.message })
        })?;
        Ok(ready.into_iter().next().map(|ready| ready.id).unwrap_or_default())
    }

    fn slot(&self, number: u32) -> Result<&Slot, Failure> {
        let known = usize::try_from(number).ok().and_then(|n| self.slots.get(n));
        known.ok_or_else(|| bad(format!("there is no slot {number}: this pod has {}", self.slots.len())))
    }

    fn answer(&self, line: &[u8]) -> Answer {
        self.answered(line).unwrap_or_else(refused)
    }

    fn answered(&self, line: &[u8]) -> Result<Answer, Failure> {
        match understand(line)? {
            Asked::Bind { slot, image } => {
                let (container, ready) = self.bind(slot, &image).inspect_err(|refusal| {
                    if !self.engine.calls().is_closing() {
                        tracing::warn!(slot, image, class = ?refusal.class, "not bound: {refusal}");
                    }
                })?;
                Ok(Answer { container: Some(container), ..of_image(image, ready) })
            }
            Asked::Image { image } => {
                let ready = self.prepare(&image)?;
                let command = ready.command.as_deref().cloned();
                Ok(Answer { command, ..of_image(image, ready) })
            }
            Asked::State { slot } => {
                let (container, image, state) = self.slot(slot)?.state(&*self.engine, &self.shape)?;
                Ok(Answer {
                    ok: true,
                    container: Some(container),
                    image: Some(image),
                    state: Some(state),
                    ..Answer::default()
                })
            }
            Asked::Clean { slot } => self.slot(slot)?.clean().map(|()| Answer { ok: true, ..Answer::default() }),
            Asked::Info => {
                let sizes = (0..self.shape.slots).map(|n| self.shape.size(n).limits).collect();
                let ids = self.slots.iter().map(Slot::ids).map(|ids| [ids.uid, ids.gid, ids.kill_uid]).collect();
                let (name, slots) = (Some(self.shape.name.clone()), Some(self.shape.slots));
                Ok(Answer { ok: true, name, slots, sizes, ids, ..Answer::default() })
            }
        }
    }

    /// Makes the socket and answers in threads of its own, until this process ends.
    pub fn listen(self: &Arc<Self>) -> Result<(), failure::Failure> {
        let dir = self.shape.place.bind();
        let said = || format!("cannot make the bind socket in {}", dir.display());
        let held = File::open(&dir).context(said)?;
        // Through the descriptor: the path of a socket has at most 107 bytes, that of the state directory any number.
        let short = format!("/proc/self/fd/{}/{SOCKET}", held.as_raw_fd());
        let listener = UnixListener::bind(&short).context(said)?;
        fs::set_permissions(&short, Permissions::from_mode(0o600)).context(said)?;
        let server = Arc::clone(self);
        thread::Builder::new().name("bind".into()).spawn(move || server.accept(&listener)).context(said)?;
        Ok(())
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            let accepted = stream.and_then(|stream| {
                stream.set_write_timeout(Some(WRITE_LIMIT))?;
                Ok((getsockopt(&stream, sockopt::PeerCredentials)?.uid(), stream))
            });
            let (uid, stream) = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!(error = %e, "a connection to the bind socket failed");
                    thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            // Before it is counted: nobody else takes root's connections.
            if uid != 0 {
                tracing::debug!(uid, "a connection to the bind socket that is not root's was refused");
                let _ = reply(&stream, &refused(bad("only root of the pilot container may ask")));
                continue;
            }
            if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::SeqCst);
                let _ = reply(&stream, &refused(bad(format!("more than {CONNECTIONS_MAX} connections at once"))));
                continue;
            }
            let (server, done) = (Arc::clone(self), Arc::clone(&open));
            let served = thread::Builder::new().name("bind-ask".into()).spawn(move || {
                if let Err(e) = server.converse(&stream) {
                    tracing::debug!(error = %e, "a connection to the bind socket ended");
                }
                done.fetch_sub(1, Ordering::SeqCst);
            });
            if let Err(e) = served {
                tracing::warn!(error = %e, "a connection to the bind socket cannot be served");
                open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn converse(&self, stream: &UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let line = match read_line(&mut reader, IDLE_LIMIT, LINE_LIMIT) {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(()),
                // Where the next request would begin is not known, so this is the last one.
                Err(e) => return reply(stream, &refused(bad(e.to_string()))),
            };
            reply(stream, &self.answer(&line))?;
        }
    }
}

/// The next line, without its end; `None` at the end of the connection.
fn read_line(reader: &mut BufReader<&UnixStream>, idle: Duration, whole: Duration) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut give_up = Instant::now() + idle;
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() || line.len() >= REQUEST_MAX {
            return Err(io::Error::other("a request is one line of at most 65536 bytes, sent whole within 10 s"));
        }
        reader.get_ref().set_read_timeout(Some(left))?;
        let came = match reader.fill_buf() {
            Ok([]) if line.is_empty() => return Ok(None),
            Ok([]) => return Err(io::Error::other("the request has no line end")),
            Ok(came) => came,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(e) => return Err(e),
        };
        if line.is_empty() {
            give_up = Instant::now() + whole;
        }
        let end = came.iter().position(|b| *b == b'\n');
        let n = end.unwrap_or(came.len());
        line.extend_from_slice(came.get(..n).unwrap_or_default());
        reader.consume(end.map_or(n, |end| end + 1));
        if end.is_some() && line.len() < REQUEST_MAX {
            return Ok(Some(line));
        }
    }
}

fn reply(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where it fails")]
    use super::*;
    use watcher::bind::Class;
    use watcher::bind::host::State;

    #[test]
    fn requests() {
        let bind = br#"{"version":1,"verb":"bind","slot":2,"image":""}"#;
        assert_eq!(understand(bind).unwrap(), Asked::Bind { slot: 2, image: String::new() });
        assert_eq!(understand(br#"{"version":1,"verb":"state","slot":0}"#).unwrap(), Asked::State { slot: 0 });
        assert_eq!(understand(br#"{"version":1,"verb":"clean","slot":3}"#).unwrap(), Asked::Clean { slot: 3 });
        assert_eq!(understand(br#" {"verb":"info","version":1} "#).unwrap(), Asked::Info);
    }

    #[test]
    fn a_request_has_a_bound_and_a_deadline() {
        let long = Duration::from_secs(600);
        let (mut client, ours) = UnixStream::pair().unwrap();
        let mut reader = BufReader::new(&ours);
        client.write_all(b"one\n\ntwo").unwrap();
        assert_eq!(read_line(&mut reader, long, long).unwrap().unwrap(), b"one");
        assert_eq!(read_line(&mut reader, long, long).unwrap().unwrap(), b"");
        let half = read_line(&mut reader, long, Duration::from_millis(10)).unwrap_err();
        assert!(half.to_string().contains("within 10 s"), "{half}");
        assert!(read_line(&mut reader, Duration::from_millis(10), long).is_err(), "idle");
        let writer = thread::spawn(move || {
            let _ = client.write_all(&vec![b'x'; REQUEST_MAX + 1]);
            client
        });
        assert!(read_line(&mut reader, long, long).is_err(), "too long");
        drop(reader);
        drop(ours);
        writer.join().unwrap();
        let (client, ours) = UnixStream::pair().unwrap();
        drop(client);
        assert!(read_line(&mut BufReader::new(&ours), long, long).unwrap().is_none());
    }

    #[test]
    fn what_is_no_request() {
        for line in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"version":2,"verb":"info"}"#,
            r#"{"version":1,"verb":"Info"}"#,
            r#"{"version":1,"verb":"info","slot":0}"#,
            r#"{"version":1,"verb":"info","more":0}"#,
            r#"{"version":1,"version":1,"verb":"info"}"#,
            r#"{"version":1,"verb":"info"} {}"#,
            r#"{"version":1,"verb":"bind","slot":0}"#,
            r#"{"version":1,"verb":"bind","image":"x"}"#,
            r#"{"version":1,"verb":"bind","slot":-1,"image":"x"}"#,
            r#"{"version":1,"verb":"bind","slot":0,"image":["x"]}"#,
            r#"{"version":1,"verb":"state","slot":0,"image":""}"#,
            r#"{"version":1,"verb":"clean"}"#,
        ] {
            let refusal = understand(line.as_bytes()).unwrap_err();
            assert_eq!((refusal.reason, refusal.class), (Reason::BadRequest, Class::Retry), "{line}");
        }
    }

    #[test]
    fn answers_are_what_the_protocol_says() {
        let line = |answer: &Answer| serde_json::to_string(answer).unwrap();
        let refused = refused(Failure::hold(Reason::ImageNotFound, "no"));
        assert_eq!(line(&refused), r#"{"ok":false,"class":"hold","reason":"ImageNotFound","message":"no"}"#);
        assert_eq!(line(&Answer { ok: true, ..Answer::default() }), r#"{"ok":true}"#);
        let (state, none) = (State { status: "missing".into(), ..State::default() }, Some(String::new()));
        let state = Answer { ok: true, container: none.clone(), image: none, state: Some(state), ..Answer::default() };
        let wanted = r#"{"ok":true,"container":"","image":"","status":"missing","exit_code":null,"oom_killed":false}"#;
        assert_eq!(line(&state), wanted);
        let read: Answer = serde_json::from_str(wanted).unwrap();
        assert_eq!((read.state, read.class), (state.state, None));
    }
}
