//! Relaying a client's standard streams through the slot's FIFOs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use glue::contract::layout::STREAMS;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};

use crate::slot::Slot;

/// How long the end of an output is waited for once the job is over and everything has been read.
const END_WITHIN: Duration = Duration::from_secs(2);

/// A client's descriptors 0 to 2; no input where the first is `None`.
pub struct Streams {
    /// What the job reads.
    pub stdin: Option<OwnedFd>,
    /// Where the job's output goes.
    pub stdout: OwnedFd,
    /// Where the job's errors go.
    pub stderr: OwnedFd,
}

/// How one standard stream reaches the job.
#[derive(Debug)]
pub enum Route {
    /// Not at all.
    Null,
    /// As this file beneath the slot's `data/`, which glue opens with the payload's rights.
    File(String),
    /// Through the slot's FIFO.
    Relay(OwnedFd),
}

/// The three of them, in order.
pub type Routes = [Route; 3];

impl Streams {
    /// Decides for each descriptor. Only where the client keeps its own sandbox are files in the slot handed over by name: glue
    /// opens them anew, and always appends.
    pub fn routes(self, slot: &Slot, in_sandbox: bool) -> Routes {
        let route = |n: usize, fd: OwnedFd| match find_route(&fd, n, slot).filter(|_| in_sandbox) {
            Some(route) => route,
            None => Route::Relay(fd),
        };
        [self.stdin.map_or(Route::Null, |fd| route(0, fd)), route(1, self.stdout), route(2, self.stderr)]
    }
}

/// A regular file beneath the slot's `data/`, or the null device; `None` for everything else. The name comes from the kernel, not
/// from the client, and counts only if it leads, without links, to the very file that the descriptor is of.
fn find_route(fd: &OwnedFd, n: usize, slot: &Slot) -> Option<Route> {
    let stat = fstat(fd).ok()?;
    let kind = stat.st_mode & SFlag::S_IFMT.bits();
    if kind == SFlag::S_IFCHR.bits() && stat.st_rdev == nix::sys::stat::makedev(1, 3) {
        return Some(Route::Null);
    }
    if kind != SFlag::S_IFREG.bits() {
        return None;
    }
    // A name has no position: what was read of an input already must not be read again.
    if n == 0 && nix::unistd::lseek(fd, 0, nix::unistd::Whence::SeekCur).ok()? != 0 {
        return None;
    }
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    let path = link.to_str()?.strip_prefix(slot.data.path())?.strip_prefix('/')?.to_owned();
    let named = fstat(slot.data.open_beneath(&path, OFlag::O_PATH, 0).ok()?).ok()?;
    ((named.st_dev, named.st_ino) == (stat.st_dev, stat.st_ino)).then_some(Route::File(path))
}

/// Relays under way.
pub struct Relay {
    /// Keep the output FIFOs open until the job is over, so that its opening and closing them is no end.
    keep_open: Vec<OwnedFd>,
    /// Keeps the input FIFO open until the job has opened its end.
    input_open: Option<OwnedFd>,
    stop: Option<OwnedFd>,
    outputs: Vec<Output>,
}

/// One output under way.
struct Output {
    /// Ends, without a word, when its thread does.
    ended: Receiver<()>,
    /// Whether the thread waits for the job's side rather than for the client's.
    reading: Arc<AtomicBool>,
}

impl Output {
    /// Waits for the end. A client that reads slowly may take its time; somebody who got hold of the FIFO and lives elsewhere
    /// must not keep the watcher waiting.
    fn finish(self) {
        let mut reading_since = Instant::now();
        while self.ended.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
            if !self.reading.load(Ordering::Relaxed) {
                reading_since = Instant::now();
            } else if reading_since.elapsed() >= END_WITHIN {
                return;
            }
        }
    }
}

impl Relay {
    /// Makes the FIFOs, opens our ends, and starts to relay. The payload may open its own ends again through /proc/self/fd,
    /// as programs do with /dev/stdout: its group has the right for that, and no way to the names.
    pub fn start(slot: &Slot, routes: Routes) -> io::Result<Self> {
        let [stdin, stdout, stderr] = routes;
        let mut keep_open = Vec::new();
        let open = |name: &str, group_bits: u32| -> io::Result<OwnedFd> {
            slot.ctl.remove(name)?;
            let both = slot.ctl.open_fifo(name)?;
            fchown(both.as_fd(), Some(Uid::from_raw(0)), Some(Gid::from_raw(slot.gid)))?;
            fchmod(&both, Mode::from_bits_truncate(0o600 | group_bits))?;
            Ok(both)
        };
        let [name_in, name_out, name_err] = STREAMS;
        let mut outputs = Vec::new();
        for (name, to) in [(name_out, stdout), (name_err, stderr)] {
            let Route::Relay(to) = to else { continue };
            keep_open.push(open(name, 0o020)?);
            let from = slot.ctl.open_beneath(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
            glue::sys::set_blocking(from.as_fd())?;
            let thread = std::thread::Builder::new().name(format!("relay-{name}"));
            let (done, ended) = channel::<()>();
            let reading = Arc::new(AtomicBool::new(true));
            let shown = reading.clone();
            thread.spawn(move || {
                copy(File::from(from), File::from(to), &shown);
                drop(done);
            })?;
            outputs.push(Output { ended, reading });
        }
        let (mut stop, mut input_open) = (None, None);
        if let Route::Relay(from) = stdin {
            let both = open(name_in, 0o040)?;
            let to = slot.ctl.open_beneath(name_in, OFlag::O_WRONLY | OFlag::O_NONBLOCK, 0)?;
            glue::sys::set_blocking(to.as_fd())?;
            let (stopped, stopper) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            stop = Some(stopper);
            input_open = Some(both);
            // Detached: it may sit in a write that ends only with the job.
            std::thread::Builder::new()
                .name(format!("relay-{name_in}"))
                .spawn(move || copy_until(&File::from(from), File::from(to), &stopped))?;
        }
        Ok(Self { keep_open, input_open, stop, outputs })
    }

    /// The job has its ends: from now on its end of the input FIFO is the only one to read from.
    pub fn job_has_started(&mut self) {
        // The outputs stay open on our side until the job is over; the input must not.
        self.input_open = None;
    }

    /// The job is over: relays what is left, then ends.
    pub fn finish(mut self) {
        self.job_has_started();
        self.keep_open.clear();
        self.stop = None;
        for output in self.outputs.drain(..) {
            output.finish();
        }
    }
}

/// Copies until the end of `from`. When `to` is gone, the rest is read and dropped, so that the job does not block.
fn copy(mut from: File, mut to: File, reading: &AtomicBool) {
    let mut bytes = [0; 16384];
    let mut gone = false;
    while let Ok(n) = from.read(&mut bytes) {
        let Some(some) = bytes.get(..n).filter(|some| !some.is_empty()) else { return };
        reading.store(false, Ordering::Relaxed);
        gone = gone || write_all(&mut to, some).is_err();
        reading.store(true, Ordering::Relaxed);
    }
}

/// Writes everything, also to a descriptor that somebody else has made non-blocking.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Copies until the end of `from`, or until the other end of `stopped` is closed.
fn copy_until(mut from: &File, mut to: File, stopped: &OwnedFd) {
    let mut bytes = [0; 16384];
    loop {
        let mut wait = [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wait, PollTimeout::NONE).is_err() {
            return;
        }
        let [input, stop] = &wait;
        if stop.any() == Some(true) {
            return;
        }
        if input.any() != Some(true) {
            continue;
        }
        match from.read(&mut bytes) {
            Ok(n) if n > 0 => {
                if bytes.get(..n).is_none_or(|some| write_all(&mut to, some).is_err()) {
                    return;
                }
            }
            _ => return,
        }
    }
}
