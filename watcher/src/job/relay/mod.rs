//! Relaying a client's standard streams through the slot's FIFOs, and keeping the output of a job without a client.
//!
//! A job's output goes through a FIFO in any case: what a program opens again as /dev/stdout can neither be truncated
//! nor overwritten there.
//!
//! Neither end can be relied on: a client may stop reading, and a payload may have passed its end of a FIFO to a
//! process that lives on, in another slot. So each job has new FIFOs, one thread copies without ever blocking, and it
//! ends within a bounded time once the job is over.

mod endpoint;
mod keep;
mod pump;

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use latebind_contract::layout::STREAMS;
use latebind_linux::volume::is;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};

use self::endpoint::Endpoint;
pub use self::keep::Meter;
use self::keep::{Kept, Room};
use self::pump::{Input, Orders, Patience};
use crate::job::control::Control;
use crate::slot::Slot;

/// How long a client may take for what its job has left to read.
const PATIENCE: Patience = Patience { without_progress: Duration::from_secs(30), in_all: Duration::from_secs(300) };
/// How long the thread may take beyond that: a client's file may be on a file system that does not answer.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// What a client's descriptors cost it until all of them are closed: its place among the connections.
pub type Owner = Arc<dyn Any + Send + Sync>;

/// A client's descriptors 0 to 2; no input where the first is `None`.
pub struct Streams {
    /// Goes when the last descriptor is closed.
    pub owner: Option<Owner>,
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
    /// Through the slot's FIFO, to a file that is fetched at the end. The job's end of the FIFO lasts while no watcher
    /// reads it.
    Keep,
}

/// The three of them, in order.
pub type Routes = [Route; 3];

/// The streams of a job without a client: its input is a file or nothing, its output is kept.
pub fn kept_routes(stdin: Option<String>) -> Routes {
    [stdin.map_or(Route::Null, Route::File), Route::Keep, Route::Keep]
}

impl Streams {
    /// Refuses descriptors that are of no use as standard streams.
    pub fn check(&self) -> Result<(), String> {
        let named = [("stdin", self.stdin.as_ref()), ("stdout", Some(&self.stdout)), ("stderr", Some(&self.stderr))];
        for (name, fd) in named {
            let checked = fd.map_or(Ok(()), |fd| endpoint::check(fd.as_fd(), name == "stdin"));
            checked.map_err(|e| format!("{name} {e}"))?;
        }
        Ok(())
    }

    /// Decides for each descriptor. Only where the client keeps its own sandbox is an input in the slot handed over by
    /// name, so that glue opens it again; what goes to a file there is appended.
    pub fn routes(self, slot: &Slot, in_sandbox: bool) -> Routes {
        let route = |n: usize, fd: OwnedFd| match find_route(&fd, n, slot).filter(|_| in_sandbox) {
            Some(Route::File(path)) if n > 0 => Route::Relay(reopened(slot, &path, &fd).unwrap_or(fd)),
            Some(route) => route,
            None => Route::Relay(fd),
        };
        [self.stdin.map_or(Route::Null, |fd| route(0, fd)), route(1, self.stdout), route(2, self.stderr)]
    }
}

/// A regular file beneath the slot's `data/`, or the null device; `None` for everything else. The name comes from the
/// kernel, not from the client, and counts only if it leads, without links, to the very file that the descriptor is of.
fn find_route(fd: &OwnedFd, n: usize, slot: &Slot) -> Option<Route> {
    let stat = fstat(fd).ok()?;
    if is(&stat, SFlag::S_IFCHR) && stat.st_rdev == nix::sys::stat::makedev(1, 3) {
        return Some(Route::Null);
    }
    if !is(&stat, SFlag::S_IFREG) {
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

/// The client's file once more, so that all that is written to it is appended, as where both streams go to one file.
fn reopened(slot: &Slot, path: &str, fd: &OwnedFd) -> Option<OwnedFd> {
    let again = slot.data.open_beneath(path, OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NONBLOCK, 0).ok()?;
    let (one, other) = (fstat(fd).ok()?, fstat(&again).ok()?);
    ((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)).then_some(again)
}

/// What becomes of a job's output.
#[derive(Clone, Debug)]
pub struct Output {
    /// Counts it.
    pub meter: Meter,
    /// Most bytes that are kept of it.
    pub kept_max: u64,
}

/// Relays under way; goes on in the background until it is finished or dropped.
pub struct Relay {
    /// Keeps the input FIFO open until the job has opened its end.
    input_open: Option<OwnedFd>,
    orders: Orders,
    /// What was lost before it began, in words.
    missing: Vec<String>,
    /// The copying thread, and what becomes readable when it has closed everything.
    thread: Option<(JoinHandle<Vec<String>>, OwnedFd)>,
}

impl Relay {
    /// Makes the FIFOs, opens our ends, and starts to relay. The payload may open its own ends again through
    /// /proc/self/fd, as programs do with /dev/stdout: its group has the right for that, and no way to the names.
    pub fn start(slot: &Slot, routes: Routes, owner: Option<Owner>, output: &Output) -> io::Result<Self> {
        Self::begin(slot, routes, owner, output, false)
    }

    /// Goes on to keep the output of a job that an earlier watcher has handed over.
    pub fn resume(slot: &Slot, output: &Output) -> io::Result<Self> {
        let mut relay = Self::begin(slot, kept_routes(None), None, output, true)?;
        relay.job_has_started();
        Ok(relay)
    }

    fn begin(slot: &Slot, routes: Routes, owner: Option<Owner>, out: &Output, resumes: bool) -> io::Result<Self> {
        let [stdin, stdout, stderr] = routes;
        let room = Room::new(out.kept_max);
        // New ones for each job: what an earlier job's payload has passed on leads to that job's FIFOs.
        let open = |name: &str, group_bits: u32| -> io::Result<OwnedFd> {
            if resumes {
                return slot.ctl.open_beneath(name, OFlag::O_RDWR | OFlag::O_NONBLOCK, 0);
            }
            slot.ctl.remove(name)?;
            let both = slot.ctl.open_fifo(name)?;
            fchown(both.as_fd(), Some(Uid::from_raw(0)), Some(Gid::from_raw(slot.gid)))?;
            fchmod(&both, Mode::from_bits_truncate(0o600 | group_bits))?;
            Ok(both)
        };
        let [name_in, name_out, name_err] = STREAMS;
        let (mut outputs, mut missing) = (Vec::new(), Vec::new());
        for (name, fifo, to) in [("stdout", name_out, stdout), ("stderr", name_err, stderr)] {
            let (to, group_bits) = match to {
                Route::Relay(to) => (Endpoint::new(to, false)?, 0o020),
                Route::Keep => {
                    let mut kept = Kept::open(slot, name, room.clone())?;
                    if resumes {
                        let waiting = slot.ctl.open_beneath(fifo, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
                        if !kept.take_up(&mut File::from(waiting))? {
                            let why = "glue had ended before a watcher came back, so its last part may be missing";
                            missing.push(format!("{name}: {why}"));
                        }
                        out.meter.add(kept.bytes());
                    }
                    (Endpoint::Kept(kept), 0o060)
                }
                Route::Null | Route::File(_) => continue,
            };
            let keep_open = open(fifo, group_bits)?;
            let from = File::from(slot.ctl.open_beneath(fifo, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?);
            outputs.push(pump::Output { name, from, keep_open, to, meter: out.meter.clone() });
        }
        let (mut input, mut input_open) = (None, None);
        if let Route::Relay(from) = stdin {
            input_open = Some(open(name_in, 0o040)?);
            let to = File::from(slot.ctl.open_beneath(name_in, OFlag::O_WRONLY | OFlag::O_NONBLOCK, 0)?);
            input = Some(Input { from: Endpoint::new(from, true)?, to });
        }
        let orders = Orders::new()?;
        if outputs.is_empty() && input.is_none() {
            return Ok(Self { input_open, orders, missing, thread: None });
        }
        let (ended, end) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let told = orders.clone();
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || {
            let lost = pump::run(outputs, input, &told, PATIENCE);
            drop((owner, end));
            lost
        })?;
        Ok(Self { input_open, orders, missing, thread: Some((thread, ended)) })
    }

    /// The job has its ends: from now on its end of the input FIFO is the only one to read from, and a client that is
    /// gone breaks its pipes.
    pub fn job_has_started(&mut self) {
        self.input_open = None;
        self.orders.set(pump::Mode::Copy);
    }

    /// The job is over: delivers what it has left in its FIFOs, then ends. Waits for that, at most as long as a client
    /// may take, and no longer than somebody wants: the client has gone, or the job is cancelled once more. Returns
    /// what was not delivered, in words.
    pub fn finish(mut self, control: &Control) -> Vec<String> {
        self.job_has_started();
        let mut missing = std::mem::take(&mut self.missing);
        let Some((thread, ended)) = self.thread.take() else { return missing };
        self.orders.set(pump::Mode::Drain);
        let cancels = control.cancels();
        let mut give_up = Instant::now() + PATIENCE.in_all + ENDS_WITHIN;
        let mut stopped = false;
        loop {
            control.settle();
            if !stopped && (control.at_once() || control.cancels() != cancels) {
                stopped = true;
                self.orders.set(pump::Mode::Stop);
                give_up = Instant::now() + ENDS_WITHIN;
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                missing.push("stdout, stderr: the client's descriptors do not answer".to_owned());
                return missing;
            }
            let mut wait =
                [PollFd::new(ended.as_fd(), PollFlags::POLLIN), PollFd::new(control.woken(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            if poll(&mut wait, timeout).is_ok_and(|n| n > 0) && wait.first().is_some_and(|end| end.any() == Some(true))
            {
                missing.extend(thread.join().unwrap_or_default());
                return missing;
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.orders.set(pump::Mode::Stop);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where it fails")]

    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A relay of more than its client's pipe holds; with the client's end, which nobody reads.
    fn stuck() -> (Relay, OwnedFd) {
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let ((client, to), (from, job)) = (pipe(), pipe());
        let size = nix::fcntl::fcntl(&to, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
        nix::fcntl::fcntl(&from, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let keep_open = job.try_clone().unwrap();
        let to = Endpoint::new(to, false).unwrap();
        let output = pump::Output { name: "stdout", from: from.into(), keep_open, to, meter: Meter::default() };
        let orders = Orders::new().unwrap();
        let ((ended, end), told) = (pipe(), orders.clone());
        let thread = std::thread::spawn(move || {
            let lost = pump::run(vec![output], None, &told, PATIENCE);
            drop(end);
            lost
        });
        File::from(job).write_all(&vec![0; usize::try_from(size).unwrap() + 7]).unwrap();
        (Relay { input_open: None, orders, missing: Vec::new(), thread: Some((thread, ended)) }, client)
    }

    #[test]
    fn a_client_that_has_gone_and_a_job_that_is_cancelled_once_more_end_the_wait() {
        let lost = ["stdout: 7 bytes were not read by the client in time"];
        let (relay, _client) = stuck();
        let control = Control::new().unwrap();
        control.abandon("its client has gone");
        assert_eq!(relay.finish(&control), lost);
        // A job that was cancelled while it ran still has its output delivered; asked for once more, the wait is over.
        let (relay, _client) = stuck();
        let (control, over) = (Arc::new(Control::new().unwrap()), Arc::new(AtomicBool::new(false)));
        control.cancel("while it ran");
        let (asks, ends) = (control.clone(), over.clone());
        let canceller = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                asks.cancel("once more");
                std::thread::yield_now();
            }
        });
        assert_eq!(relay.finish(&control), lost);
        over.store(true, Ordering::Relaxed);
        canceller.join().unwrap();
    }
}
