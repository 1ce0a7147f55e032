//! What is kept of a job's standard output and error where no client reads them: files that the payload cannot reach,
//! within a bound, with the first part and the last.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use crate::layout::IO;
use crate::slot::Slot;
use crate::tree::is;

/// Most bytes of a stream's end that are kept, in memory, once there is no more room: beyond what may be kept of both.
const TAIL_MAX: u64 = 64 << 10;

/// How much is kept of both streams of a job.
#[derive(Debug)]
pub struct Room {
    /// For the first parts of both.
    left: Mutex<u64>,
    /// For the last part of each.
    tail: usize,
    limit: u64,
}

impl Room {
    /// So many bytes in all, but for the last parts.
    pub fn new(limit: u64) -> Arc<Self> {
        let tail = usize::try_from(TAIL_MAX.min(limit / 4)).unwrap_or(0);
        Arc::new(Self { left: Mutex::new(limit), tail, limit })
    }

    /// How many of `wanted` bytes there is room for; they are taken.
    fn take(&self, wanted: u64) -> u64 {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = wanted.min(*left);
        *left -= taken;
        taken
    }
}

/// One stream of a job, kept in a file.
#[derive(Debug)]
pub struct Kept {
    name: &'static str,
    file: File,
    room: Arc<Room>,
    tail: VecDeque<u8>,
    /// Bytes between the first part and the last one that are gone.
    dropped: u64,
    /// Whether an earlier watcher may have dropped others.
    is_resumed: bool,
    /// Whether nothing more belongs to the first part.
    is_full: bool,
}

impl Kept {
    /// The stream `name` of the slot's job, in a file that was made when the slot was filled. What it has already, an
    /// earlier watcher has kept.
    pub fn open(slot: &Slot, name: &'static str, room: Arc<Room>) -> io::Result<Self> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NONBLOCK;
        Self::new(name, slot.data.open_beneath(format!("{IO}/{name}"), flags, 0)?.into(), room)
    }

    fn new(name: &'static str, file: File, room: Arc<Room>) -> io::Result<Self> {
        let stat = fstat(&file)?;
        if !is(&stat, SFlag::S_IFREG) || stat.st_uid != 0 || stat.st_nlink != 1 {
            return Err(io::Error::other(format!("{IO}/{name} is not a regular file of root with one name")));
        }
        let has = u64::try_from(stat.st_size).unwrap_or(0);
        let is_full = room.take(has) < has;
        Ok(Self { name, file, room, tail: VecDeque::new(), dropped: 0, is_resumed: has > 0, is_full })
    }

    /// How many bytes the file has.
    pub fn bytes(&self) -> usize {
        fstat(&self.file).ok().and_then(|stat| usize::try_from(stat.st_size).ok()).unwrap_or(0)
    }

    /// Takes in what the job has put out.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let first = if self.is_full { 0 } else { self.room.take(bytes.len() as u64) };
        let (first, rest) = bytes.split_at(usize::try_from(first).unwrap_or(0).min(bytes.len()));
        self.is_full |= !rest.is_empty();
        self.file.write_all(first)?;
        self.tail.extend(rest);
        let surplus = self.tail.len().saturating_sub(self.room.tail);
        self.tail.drain(..surplus);
        self.dropped = self.dropped.saturating_add(surplus as u64);
        Ok(bytes.len())
    }

    /// Takes in what waits in the FIFO of a job that an earlier watcher has handed over; `false` where nobody has held
    /// that open: what a FIFO has goes with the last who has it open (fifo(7)), and while no watcher runs that is glue.
    /// `fifo` does not block.
    pub fn take_up(&mut self, fifo: &mut impl Read) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        match fifo.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(n) => self.write(bytes.get(..n).unwrap_or_default()).map(|_| true),
            // Nothing just now, from somebody who could write.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// The stream is over: its last part follows the first, with a line between them that says what is missing.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.dropped > 0 {
            let at_least = if self.is_resumed { "at least " } else { "" };
            let (name, limit, dropped) = (self.name, self.room.limit, self.dropped);
            let line = format!(
                "\n[latebind: {at_least}{dropped} bytes of {name} are missing here: \
                 {limit} may be kept of all output]\n"
            );
            self.file.write_all(line.as_bytes())?;
        }
        self.file.write_all(self.tail.make_contiguous())?;
        self.tail.clear();
        self.dropped = 0;
        Ok(())
    }
}

/// Counts what a job puts out.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    /// So many bytes more.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// All so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use std::path::Path;

    fn open(path: &Path, room: &Arc<Room>) -> Kept {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        Kept::new("stdout", file, room.clone()).unwrap()
    }

    #[test]
    fn what_fits_is_kept_whole_and_of_more_the_first_and_the_last_part() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("stdout");
        for bytes in [0, 1, 500, 999, 1000, 1001, 5000] {
            let _ = std::fs::remove_file(&path);
            let sent: Vec<u8> = (0..bytes).map(|n: u32| b'a' + (n % 26) as u8).collect();
            let room = Room::new(1000);
            let mut kept = open(&path, &room);
            sent.chunks(7).for_each(|part| assert_eq!(kept.write(part).unwrap(), part.len()));
            kept.finish().unwrap();
            let got = std::fs::read(&path).unwrap();
            if sent.len() <= 1250 {
                assert!(got == sent, "{bytes}");
                continue;
            }
            let text = String::from_utf8(got).unwrap();
            let line = format!("\n[latebind: {} bytes of stdout are missing here: 1000 may be kept", sent.len() - 1250);
            assert!(text.contains(&line), "{bytes}: {text}");
            assert!(text.as_bytes().starts_with(&sent[..1000]) && text.as_bytes().ends_with(&sent[sent.len() - 250..]));
        }
    }

    #[test]
    fn both_streams_share_the_room_and_neither_takes_the_others_end() {
        let scratch = tempfile::tempdir().unwrap();
        let room = Room::new(1000);
        let (mut out, mut err) = (open(&scratch.path().join("out"), &room), open(&scratch.path().join("err"), &room));
        out.write(&[b'o'; 5000]).unwrap();
        err.write(b"error: the reason\n").unwrap();
        [&mut out, &mut err].into_iter().for_each(|kept| kept.finish().unwrap());
        assert_eq!(std::fs::read(scratch.path().join("err")).unwrap(), b"error: the reason\n");
    }

    #[test]
    fn a_restarted_watcher_goes_on_where_the_last_one_was() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("stdout");
        open(&path, &Room::new(1000)).write(&[b'1'; 400]).unwrap();
        let mut kept = open(&path, &Room::new(1000));
        kept.write(&[b'2'; 1500]).unwrap();
        kept.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&["1".repeat(400), "2".repeat(600)].concat()), "{text}");
        assert!(text.contains("[latebind: at least 650 bytes") && text.ends_with(&"2".repeat(250)), "{text}");
    }

    #[test]
    fn what_waits_in_a_fifo_is_taken_up_and_what_nobody_held_is_missed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("stdout");
        let mut kept = open(&path, &Room::new(100));
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let (mut reader, mut writer) = (File::from(reader), File::from(writer));
        assert!(kept.take_up(&mut reader).unwrap(), "it may still be written to");
        writer.write_all(b"written meanwhile").unwrap();
        assert!(kept.take_up(&mut reader).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"written meanwhile");
        drop(writer);
        assert!(!kept.take_up(&mut reader).unwrap());
    }
}
