//! Where clients at a terminal, and those of `watcher exec`, meet the payload's side: a socket in the slot.
//!
//! Stage two and the job's attendant connect to it; each connection is passed on, unread, to the client that has waited
//! longest. So nothing that the payload says there reaches the core, and of it only who may connect: the payload's UID.
//! One connection is kept for the next client, whoever made it; further ones wait in the kernel's bounded queue.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use latebind_contract::layout::ATTACH;
use latebind_linux::sys::send_descriptors;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};

use super::control::Control;
use crate::layout::IO;
use crate::slot::Slot;

/// After so many connections that nobody could use, there is nothing more to be had from this payload.
const DROPPED_MAX: u32 = 1000;

/// The socket of one job.
pub struct Attach {
    listener: UnixListener,
    uid: u32,
    /// A connection that waits for a client.
    spare: Option<UnixStream>,
    /// How many connections have gone, or spoken, without having been asked.
    dropped: u32,
}

impl Attach {
    /// Makes the socket in place of an earlier watcher's.
    pub fn listen(slot: &Slot) -> io::Result<Self> {
        let dir = slot.data.open_beneath(IO, OFlag::O_PATH | OFlag::O_DIRECTORY, 0)?;
        let name = ATTACH.rsplit('/').next().unwrap_or_default();
        match unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        // By its descriptor: a socket's path has at most 107 bytes.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
        listener.set_nonblocking(true)?;
        fchmodat(&dir, name, Mode::from_bits_truncate(0o600), FchmodatFlags::FollowSymlink)?;
        let (uid, gid) = (Uid::from_raw(slot.uid), Gid::from_raw(slot.gid));
        fchownat(&dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(Self { listener, uid: slot.uid, spare: None, dropped: 0 })
    }

    /// What to wait for: the next connection, or a change of the one that waits.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        let listener = (self.dropped < DROPPED_MAX).then(|| self.listener.as_fd());
        self.spare.as_ref().map(AsFd::as_fd).or(listener)
    }

    /// Brings connections and clients together. Never waits.
    pub fn settle(&mut self, control: &Control) {
        while self.dropped < DROPPED_MAX {
            let Some(spare) = self.spare.take().or_else(|| self.accept()) else { return };
            let said = spoken(&spare);
            let client = if said == Said::Over { None } else { control.next_client() };
            match client {
                // A client that has gone leaves the connection to the next one.
                Some(client) if send_descriptors(client.as_fd(), b"c", &[spare.as_fd()]).is_ok() => {}
                Some(_) => self.spare = Some(spare),
                None if said == Said::Nothing => {
                    self.spare = Some(spare);
                    return;
                }
                // Nobody has asked it for anything; waiting for it would keep this thread busy.
                None => self.dropped += 1,
            }
        }
        control.dismiss_clients();
    }

    fn accept(&self) -> Option<UnixStream> {
        let (stream, _) = self.listener.accept().ok()?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
        (peer.uid() == self.uid).then_some(stream)
    }
}

/// What the other end of a connection has said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    /// Nothing yet, as an attendant that waits to be asked.
    Nothing,
    /// Something, as stage two, which hands on a terminal and is over.
    Something,
    /// It has gone.
    Over,
}

fn spoken(stream: &UnixStream) -> Said {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(stream.as_raw_fd(), &mut [0], flags) {
        Err(Errno::EAGAIN | Errno::EINTR) => Said::Nothing,
        Ok(n) if n > 0 => Said::Something,
        _ => Said::Over,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use std::io::{Read, Write};
    use std::path::Path;

    fn attach(dir: &Path) -> Attach {
        let listener = UnixListener::bind(dir.join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        Attach { listener, uid: nix::unistd::geteuid().as_raw(), spare: None, dropped: 0 }
    }

    /// The connection that a client has been sent, if any.
    fn received(client: &UnixStream) -> Option<UnixStream> {
        client.set_nonblocking(true).unwrap();
        let received = latebind_linux::sys::receive(client.as_fd(), &mut [0]).ok()?;
        received.descriptors.into_iter().next().map(UnixStream::from)
    }

    #[test]
    fn the_client_that_has_waited_longest_gets_the_next_connection() {
        let scratch = tempfile::tempdir().unwrap();
        let (mut attach, control) = (attach(scratch.path()), Control::new().unwrap());
        let pairs: Vec<_> = (0..2).map(|_| UnixStream::pair().unwrap()).collect();
        for (_, theirs) in &pairs {
            control.connect(theirs.try_clone().unwrap().into()).unwrap();
        }
        attach.settle(&control);
        assert!(pairs.iter().all(|(client, _)| received(client).is_none()));
        // Like stage two's: it has said everything and gone.
        UnixStream::connect(scratch.path().join("s")).unwrap().write_all(b"first").unwrap();
        let second = UnixStream::connect(scratch.path().join("s")).unwrap();
        attach.settle(&control);
        let mut text = String::new();
        received(&pairs[0].0).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "first");
        let mut connection = received(&pairs[1].0).unwrap();
        connection.set_nonblocking(false).unwrap();
        connection.write_all(b"asked").unwrap();
        drop(connection);
        (&second).read_to_string(&mut text).unwrap();
        assert_eq!(text, "firstasked");
    }

    #[test]
    fn connections_that_nobody_asked_for_keep_nothing_busy_for_ever() {
        let scratch = tempfile::tempdir().unwrap();
        let (mut attach, control) = (attach(scratch.path()), Control::new().unwrap());
        for n in 0..DROPPED_MAX {
            assert!(attach.as_fd().is_some(), "{n}");
            let mut stream = UnixStream::connect(scratch.path().join("s")).unwrap();
            if n % 2 == 0 {
                stream.write_all(b"?").unwrap();
            }
            drop(stream);
            attach.settle(&control);
        }
        assert!(attach.as_fd().is_none());
        let (client, theirs) = UnixStream::pair().unwrap();
        control.connect(theirs.into()).unwrap();
        attach.settle(&control);
        assert_eq!((&client).read(&mut [0]).unwrap(), 0, "a client learns that there is none");
    }
}
