//! Target `socket`: what clients send to the core's sockets, lines and descriptors.

// The readers of lines are the server's own matter; this file of it needs nothing else of it.
#[allow(missing_docs, dead_code, reason = "the server's own file, of which a part is used")]
#[path = "../../../watcher/src/serve/lines.rs"]
mod lines;

use std::io::{ErrorKind, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use watcher::job::Request;
use watcher::serve::protocol::{self, Ask, LINE_MAX};

use self::lines::{DESCRIPTORS_MAX, Lines};
use crate::input::Input;

/// The input is messages, each with a number of descriptors that come along with it.
pub fn run(data: &[u8]) {
    let (ours, given) = UnixStream::pair().unwrap();
    transmitted(data, given.as_fd());
    drop(given);
    // The end is seen once every copy that was sent is closed. A process that another thread starts may hold one until
    // its exec.
    ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!((&ours).read(&mut [0]).ok(), Some(0), "a descriptor is left open");
}

fn transmitted(data: &[u8], given: BorrowedFd<'_>) {
    let (client, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut input = Input::new(data);
    let (mut lines, mut sent) = (Lines::default(), Sent::default());
    let mut read = Vec::new();
    let mut refused = false;
    for _ in 0..64 {
        if input.is_empty() || refused {
            break;
        }
        let count = usize::from(input.byte() % 8);
        let mut text = if input.below(4) == 0 { ask(&mut input) } else { input.string().to_vec() };
        if count > 0 {
            // As the protocol says: one line, or the beginning of one.
            let end = text.iter().position(|b| *b == b'\n').map_or(text.len(), |at| at + 1);
            text.truncate(end);
        }
        if text.is_empty() {
            continue;
        }
        let numbers = vec![given.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let with = if count == 0 { &rights[..0] } else { &rights[..] };
        sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(&text)], with, MsgFlags::empty(), None).unwrap();
        sent.add(&text, count);
        // One message at a time, as of a client that waits for an answer, or several at once.
        if input.below(2) == 0 {
            refused = receive(&mut lines, &ours, &mut read);
        }
    }
    drop(client);
    refused = refused || receive(&mut lines, &ours, &mut read);
    assert!(refused || !sent.too_many, "nothing is refused after {} lines", read.len());
    assert!(!refused || sent.may_be_refused, "a client is refused after {} lines", read.len());
    assert!(sent.lines.starts_with(&read), "{read:?} was read, {:?} was sent", sent.lines);
    assert!(refused || read.len() == sent.lines.len(), "a line is missing behind {read:?}");
}

/// What was sent: lines, and how many descriptors came with each.
#[derive(Default)]
struct Sent {
    lines: Vec<(Vec<u8>, usize)>,
    begun: (Vec<u8>, usize),
    /// Something has to be refused.
    too_many: bool,
    /// A line has more descriptors than it may have; until its end comes, whether that is seen depends on what else is
    /// read with it.
    may_be_refused: bool,
}

impl Sent {
    fn add(&mut self, text: &[u8], count: usize) {
        self.begun.1 += count;
        // The kernel has room for one more than a line may have, and the reader for those of two lines.
        self.too_many |= count > DESCRIPTORS_MAX + 1 || self.begun.1 > 2 * DESCRIPTORS_MAX;
        self.may_be_refused |= self.begun.1 > DESCRIPTORS_MAX;
        for byte in text {
            self.begun.0.push(*byte);
            if *byte == b'\n' {
                self.too_many |= self.begun.1 > DESCRIPTORS_MAX;
                self.lines.push(std::mem::take(&mut self.begun));
            }
        }
    }
}

/// Reads all that is there, as the server does. `true`: the client is refused.
fn receive(lines: &mut Lines, from: &UnixStream, read: &mut Vec<(Vec<u8>, usize)>) -> bool {
    loop {
        match lines.receive(from) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(e) => return e.kind() != ErrorKind::WouldBlock,
        }
        loop {
            match lines.next() {
                Ok(Some(line)) => {
                    asked(&line.text);
                    read.push((line.text, line.descriptors.len()));
                }
                Ok(None) => break,
                Err(_) => return true,
            }
        }
    }
}

/// A line that asks for something: what a client may choose, or the input's own job.
fn ask(input: &mut Input<'_>) -> Vec<u8> {
    let verb = ["top", "jobs", "holds", "submit", "signal", "steer", "cancel", "forget", "hold"][input.below(9)];
    let rest = String::from_utf8_lossy(input.string()).into_owned();
    format!("{{\"verb\":\"{verb}\"{rest}}}\n").into_bytes()
}

/// A request that is understood means the same when it is written again; a client that is not root gets no path opened.
fn asked(line: &[u8]) {
    let Ok(ask) = serde_json::from_slice::<Ask>(line) else { return };
    let written = serde_json::to_string(&ask).unwrap();
    let again: Ask = serde_json::from_str(&written).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), written);
    if let Ask::Submit { job } = ask {
        submitted(&job);
    }
}

fn submitted(job: &Request) {
    let (checked, unprivileged) = (job.check(), job.check_unprivileged());
    for why in [&checked, &unprivileged].into_iter().filter_map(|result| result.as_ref().err()) {
        assert!(!why.is_empty() && why.len() < 2 * LINE_MAX);
    }
    if unprivileged.is_ok() {
        let paths = [&job.inputs, &job.stdin, &job.results];
        assert!(paths.iter().all(|path| path.is_none()) && job.env_files.is_empty() && job.outputs.is_empty());
        assert!(job.owner.is_empty() && job.submitter.is_none() && job.relay);
    }
    if checked.is_ok() {
        assert!((1..=128).contains(&job.id.len()) && !job.id.contains(['/', '\0']) && !job.id.starts_with('.'));
        assert!(!job.image.is_empty() && job.image.len() <= 1024 && !job.image.contains(char::is_control));
        let stays = |path: &String| path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        assert!(job.sandbox.iter().chain(&job.outputs).all(stays));
        assert!(
            job.sandbox.as_ref().is_none_or(|path| !["work", "io"].contains(&path.split('/').next().unwrap_or("")))
        );
    }
}
