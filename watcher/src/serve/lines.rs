//! What comes from a client: lines, and the descriptors that came along with each.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::protocol::LINE_MAX;

/// Most descriptors that may come along with a line.
pub(super) const DESCRIPTORS_MAX: usize = 3;

/// How much is read at once.
const PART: usize = 16 << 10;

/// One line.
#[derive(Debug)]
pub(super) struct Line {
    /// Its bytes, with the line end.
    pub(super) text: Vec<u8>,
    /// What came along with it. Whatever the line does not use is closed with it.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Lines under way.
#[derive(Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// How far the buffer is known to have no line end.
    searched: usize,
    /// Each with the position in the buffer of the last byte that was read together with it. A message that carries
    /// descriptors is one line, or its beginning, and the kernel ends a read with it: so that byte is one of the line's
    /// own.
    descriptors: Vec<(usize, OwnedFd)>,
    /// Since when a line is incomplete.
    began: Option<Instant>,
}

impl Lines {
    /// The next line that is complete.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(end) = unsearched.iter().position(|b| *b == b'\n').map(|at| self.searched + at + 1) else {
            self.searched = self.buffer.len();
            let too_long = self.searched >= LINE_MAX;
            return if too_long {
                Err(io::Error::other(format!("a line has more than {LINE_MAX} bytes")))
            } else {
                Ok(None)
            };
        };
        let rest = self.buffer.split_off(end);
        let text = std::mem::replace(&mut self.buffer, rest);
        self.searched = 0;
        let (own, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.descriptors).into_iter().partition(|(at, _)| *at < end);
        self.descriptors = later.into_iter().map(|(at, fd)| (at - end, fd)).collect();
        self.began = (!self.buffer.is_empty()).then(Instant::now);
        if own.len() > DESCRIPTORS_MAX {
            return Err(io::Error::other(format!("more than {DESCRIPTORS_MAX} descriptors came along with a line")));
        }
        Ok(Some(Line { text, descriptors: own.into_iter().map(|(_, fd)| fd).collect() }))
    }

    /// Since when a line is incomplete, if there is one.
    pub(super) fn began(&self) -> Option<Instant> {
        self.began
    }

    /// Reads what is there. `false`: the client has closed its side.
    pub(super) fn receive(&mut self, stream: &UnixStream) -> io::Result<bool> {
        let mut bytes = [0; PART];
        let came = latebind_linux::sys::receive(stream.as_fd(), &mut bytes)?;
        self.buffer.extend_from_slice(bytes.get(..came.bytes).unwrap_or_default());
        if came.bytes > 0 {
            self.began.get_or_insert_with(Instant::now);
        }
        let at = self.buffer.len().saturating_sub(1);
        self.descriptors.extend(came.descriptors.into_iter().map(|fd| (at, fd)));
        // One line's, and the next one's that a read may bring along with the end of the first.
        if came.truncated || self.descriptors.len() > 2 * DESCRIPTORS_MAX {
            return Err(io::Error::other(format!("more than {DESCRIPTORS_MAX} descriptors came along with a line")));
        }
        Ok(came.bytes > 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where it fails")]

    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::Write;
    use std::os::fd::AsRawFd;

    fn send(to: &UnixStream, text: &str, descriptors: usize) {
        let file = memfd_create(c"sent-along", MFdFlags::MFD_CLOEXEC).unwrap();
        let numbers = vec![file.as_raw_fd(); descriptors];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let with = if descriptors == 0 { &rights[..0] } else { &rights[..] };
        let parts = [io::IoSlice::new(text.as_bytes())];
        assert_eq!(sendmsg::<()>(to.as_raw_fd(), &parts, with, MsgFlags::empty(), None).unwrap(), text.len());
    }

    /// How many descriptors this process has of those that were sent.
    fn open() -> usize {
        let sent = |link: &std::path::Path| {
            std::fs::read_link(link).is_ok_and(|to| to.starts_with("/memfd:sent-along (deleted)"))
        };
        std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter(|e| sent(&e.path())).count()
    }

    fn got(line: &Line) -> (&str, usize) {
        (std::str::from_utf8(&line.text).unwrap(), line.descriptors.len())
    }

    #[test]
    fn descriptors_belong_to_the_line_they_came_with_and_none_stays_open() {
        let (client, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut lines = Lines::default();
        send(&client, "one\n", 0);
        send(&client, "two\n", 3);
        send(&client, "thr", 2);
        send(&client, "ee\nfo", 0);
        send(&client, "ur\n", 1);
        let mut all = Vec::new();
        loop {
            if let Some(line) = lines.next().unwrap() {
                all.push(line);
            } else if lines.receive(&ours).is_err() {
                break;
            }
        }
        let found: Vec<_> = all.iter().map(got).collect();
        assert_eq!(found, [("one\n", 0), ("two\n", 3), ("three\n", 2), ("four\n", 1)]);
        assert!(lines.began().is_none());
        assert_eq!(open(), 6);
        drop(all);
        assert_eq!(open(), 0);
        // More than a line may have: in one message, cut off by the kernel or not, and in several.
        for (messages, each) in [(1, 4), (1, 5), (1, 200), (3, 3), (4, 1)] {
            let (client, ours) = UnixStream::pair().unwrap();
            let mut lines = Lines::default();
            (0..messages).for_each(|_| send(&client, "x", each));
            send(&client, "\n", 0);
            let refused = loop {
                match lines.receive(&ours).and_then(|_| lines.next()) {
                    Ok(None) => {}
                    Ok(Some(line)) => panic!("{line:?}"),
                    Err(e) => break e.to_string(),
                }
            };
            assert!(refused.contains("more than 3 descriptors"), "{refused}");
            drop(lines);
            assert_eq!(open(), 0, "{messages} times {each}");
        }
    }

    #[test]
    fn a_line_has_a_bound_and_its_beginning_a_time() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        let mut lines = Lines::default();
        let writer = std::thread::spawn(move || client.write_all(&[b'x'; LINE_MAX + 1]));
        let refused = loop {
            match lines.next() {
                Ok(line) => assert!(line.is_none()),
                Err(e) => break e.to_string(),
            }
            assert!(lines.receive(&ours).unwrap() && lines.began().is_some());
        };
        assert!(refused.contains("more than 1048576 bytes"), "{refused}");
        drop(ours);
        let _ = writer.join();
    }
}
