//! Copying between a client's descriptors and a slot's FIFOs, all in one thread, which never blocks in any of them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::endpoint::Endpoint;
use super::keep::Meter;

/// How much is copied at once.
const PART: usize = 16 << 10;
/// How many parts of one stream are copied before the others have their turn.
const TURNS: usize = 16;
/// What a FIFO holds where the kernel does not say.
const FIFO_SIZE: usize = 64 << 10;

/// How long a client may take for what is left once its job is over.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Without reading anything.
    pub without_progress: Duration,
    /// In all.
    pub in_all: Duration,
}

/// What the copying thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
pub enum Mode {
    /// The job has not opened its ends yet: ours stay open, whatever the client does.
    Wait = 0,
    /// The job is under way: where its client is gone, it writes into a pipe that nobody reads (SIGPIPE, EPIPE).
    Copy = 1,
    /// The job is over: deliver what the FIFOs hold now, and end.
    Drain = 2,
    /// End at once; what the client takes without waiting is delivered.
    Stop = 3,
}

/// Tells the copying thread what to do.
#[derive(Clone, Debug)]
pub struct Orders(Arc<(AtomicU8, EventFd)>);

impl Orders {
    /// To wait for the job.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new((AtomicU8::new(Mode::Wait as u8), EventFd::from_value_and_flags(0, flags)?))))
    }

    /// From now on this; never less than before.
    pub fn set(&self, mode: Mode) {
        self.0.0.fetch_max(mode as u8, Ordering::SeqCst);
        let _ = self.0.1.write(1);
    }

    fn mode(&self) -> Mode {
        match self.0.0.load(Ordering::SeqCst) {
            0 => Mode::Wait,
            1 => Mode::Copy,
            2 => Mode::Drain,
            _ => Mode::Stop,
        }
    }

    fn changed(&self) -> BorrowedFd<'_> {
        self.0.1.as_fd()
    }

    fn settle(&self) {
        let _ = self.0.1.read();
    }
}

/// Bytes on their way.
struct Part {
    bytes: Box<[u8; PART]>,
    from: usize,
    to: usize,
}

impl Part {
    fn new() -> Self {
        Self { bytes: Box::new([0; PART]), from: 0, to: 0 }
    }

    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    /// Fills the empty part, with at most `most` bytes.
    fn fill(&mut self, most: usize, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        (self.from, self.to) = (0, 0);
        self.to = read(self.bytes.get_mut(..most.min(PART)).unwrap_or_default())?;
        Ok(self.to)
    }

    fn discard(&mut self) -> u64 {
        let n = self.waiting().len() as u64;
        (self.from, self.to) = (0, 0);
        n
    }
}

/// From the job to the client.
pub struct Output {
    /// What people call it.
    pub name: &'static str,
    /// The FIFO, not blocking.
    pub from: File,
    /// Keeps the FIFO from ending while the job opens and closes it.
    pub keep_open: OwnedFd,
    /// The client's.
    pub to: Endpoint,
    /// Counts what the job puts out.
    pub meter: Meter,
}

struct Outgoing {
    name: &'static str,
    /// Our ends of the FIFO; none once the job is to notice that nobody reads.
    fifo: Option<(File, OwnedFd)>,
    to: Endpoint,
    meter: Meter,
    part: Part,
    /// What may still be read of the FIFO; no bound while the job is under way.
    left: Option<usize>,
    moved: Instant,
    over: bool,
    lost: u64,
    /// Why the client's descriptor took no more, where it was not the client's wish.
    failed: Option<io::Error>,
}

/// Whether nobody reads any more.
fn is_hang_up(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl Outgoing {
    fn new(output: Output) -> Self {
        let Output { name, from, keep_open, to, meter } = output;
        let fifo = Some((from, keep_open));
        let (part, moved) = (Part::new(), Instant::now());
        Self { name, fifo, to, meter, part, left: None, moved, over: false, lost: 0, failed: None }
    }

    /// Where the client reads no more, the job is to notice that, as with a pipe of the client's own.
    fn pass_on_hang_up(&mut self) {
        if self.failed.is_none() && self.to.has_hung_up() {
            (self.to, self.fifo, self.over) = (Endpoint::Gone, None, true);
            self.part.discard();
        }
    }

    /// The client is gone, and the job's output goes nowhere.
    fn discard(&mut self) {
        self.to = Endpoint::Gone;
        self.part.discard();
    }

    fn read(&mut self, most: usize) -> io::Result<usize> {
        let Some((from, _)) = &mut self.fifo else { return Ok(0) };
        let read = self.part.fill(most, |bytes| from.read(bytes))?;
        self.meter.add(read);
        Ok(read)
    }

    /// The job is over. Whoever holds the FIFO elsewhere can keep it open and write on: what counts is what it holds
    /// now, and that is not more than its size.
    fn drain(&mut self) {
        if self.left.is_none() {
            let fifo = self.fifo.as_ref().and_then(|(from, _)| fcntl(from, FcntlArg::F_GETPIPE_SZ).ok());
            let size = fifo.and_then(|n| usize::try_from(n).ok());
            (self.left, self.moved) = (Some(size.unwrap_or(FIFO_SIZE)), Instant::now());
        }
    }

    fn copy(&mut self) {
        for _ in 0..TURNS {
            if self.over {
                return;
            }
            let waiting = self.part.waiting();
            if waiting.is_empty() {
                match self.read(self.left.unwrap_or(PART)) {
                    Ok(n) if n > 0 => {
                        self.left = self.left.map(|left| left - n);
                        if matches!(self.to, Endpoint::Gone) {
                            self.part.discard(); // so that the job does not block
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.left.is_none() => return,
                    _ => self.over = true,
                }
                continue;
            }
            match self.to.write(waiting) {
                Ok(n) if n > 0 => {
                    self.part.from += n;
                    self.moved = Instant::now();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                failed => {
                    self.failed = failed.err().filter(|e| !is_hang_up(e));
                    self.to = Endpoint::Gone;
                    self.part.discard();
                }
            }
        }
    }

    /// Gives up on the client.
    fn give_up(&mut self) {
        self.lost += self.part.discard();
        while let Ok(n @ 1..) = self.read(self.left.unwrap_or(0)) {
            self.left = self.left.map(|left| left - n);
            self.lost += self.part.discard();
        }
        self.over = true;
    }

    fn gives_up_at(&self, patience: Patience, began: Instant) -> Option<Instant> {
        let stalled = self.moved.checked_add(patience.without_progress);
        stalled.into_iter().chain(began.checked_add(patience.in_all)).min()
    }

    /// The FIFO, where there is nothing to be delivered, and the client, whose end is noticed in any case.
    fn waits_for(&self) -> [Option<PollFd<'_>>; 2] {
        if self.over {
            return [None, None];
        }
        let is_empty = self.part.waiting().is_empty();
        let fifo = self.fifo.as_ref().filter(|_| is_empty);
        let flags = if is_empty { PollFlags::empty() } else { PollFlags::POLLOUT };
        [
            fifo.map(|(from, _)| PollFd::new(from.as_fd(), PollFlags::POLLIN)),
            self.to.as_fd().map(|fd| PollFd::new(fd, flags)),
        ]
    }

    /// Nothing more comes. What was not delivered or kept, in words.
    fn finish(&mut self) -> Option<String> {
        if let Endpoint::Kept(kept) = &mut self.to
            && let Err(e) = kept.finish()
        {
            self.failed = Some(e);
        }
        let name = self.name;
        let failed = self.failed.as_ref().map(|e| format!("{name}: not all of it: {e}"));
        failed.or_else(|| {
            (self.lost > 0).then(|| format!("{name}: {} bytes were not read by the client in time", self.lost))
        })
    }
}

/// From the client to the job.
pub struct Input {
    /// The client's.
    pub from: Endpoint,
    /// The FIFO, not blocking.
    pub to: File,
}

struct Incoming {
    input: Input,
    part: Part,
}

impl Incoming {
    /// Whether it goes on.
    fn copy(&mut self) -> bool {
        for _ in 0..TURNS {
            let waiting = self.part.waiting();
            let moved = if waiting.is_empty() {
                self.part.fill(PART, |bytes| self.input.from.read(bytes))
            } else {
                self.input.to.write(waiting).inspect(|n| self.part.from += n)
            };
            match moved {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        true
    }

    fn waits_for(&self) -> Option<PollFd<'_>> {
        if self.part.waiting().is_empty() {
            return self.input.from.as_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        }
        Some(PollFd::new(self.input.to.as_fd(), PollFlags::POLLOUT))
    }
}

/// Copies until the end of all outputs, as `orders` say. Returns what the client did not get, in words.
pub fn run(outputs: Vec<Output>, input: Option<Input>, orders: &Orders, patience: Patience) -> Vec<String> {
    let mut outgoing: Vec<Outgoing> = outputs.into_iter().map(Outgoing::new).collect();
    let mut incoming = input.map(|input| Incoming { input, part: Part::new() });
    let mut drains_since = None;
    loop {
        orders.settle();
        let mode = orders.mode();
        if mode >= Mode::Drain {
            incoming = None;
            drains_since.get_or_insert_with(Instant::now);
            outgoing.iter_mut().for_each(Outgoing::drain);
        }
        outgoing.iter_mut().for_each(Outgoing::copy);
        if mode == Mode::Copy {
            outgoing.iter_mut().filter(|one| !one.over).for_each(Outgoing::pass_on_hang_up);
        } else {
            // Its end would be reported again and again.
            outgoing.iter_mut().filter(|one| one.to.has_hung_up()).for_each(Outgoing::discard);
        }
        if incoming.as_mut().is_some_and(|one| !one.copy()) {
            incoming = None;
        }
        let mut next = None;
        if let Some(began) = drains_since {
            for one in outgoing.iter_mut().filter(|one| !one.over) {
                let at = one.gives_up_at(patience, began);
                if mode == Mode::Stop || at.is_none_or(|at| Instant::now() >= at) {
                    one.give_up();
                } else {
                    next = next.into_iter().chain(at).min();
                }
            }
            if outgoing.iter().all(|one| one.over) {
                return outgoing.iter_mut().filter_map(Outgoing::finish).collect();
            }
        }
        let waits = outgoing
            .iter()
            .flat_map(Outgoing::waits_for)
            .flatten()
            .chain(incoming.iter().filter_map(Incoming::waits_for));
        let mut waits: Vec<PollFd<'_>> =
            std::iter::once(PollFd::new(orders.changed(), PollFlags::POLLIN)).chain(waits).collect();
        let timeout = next.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let _ = poll(&mut waits, timeout);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where it fails")]

    use super::*;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;
    use std::thread::JoinHandle;

    const LONG: Patience = Patience { without_progress: Duration::from_secs(600), in_all: Duration::from_secs(600) };
    const NONE: Patience = Patience { without_progress: Duration::ZERO, in_all: Duration::ZERO };

    fn pipe() -> (File, File) {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        (read.into(), write.into())
    }

    /// A job's end of its stdout, and the copying from there to `to`.
    fn start(to: OwnedFd, input: Option<Input>, patience: Patience) -> (File, Orders, JoinHandle<Vec<String>>) {
        let (from, job) = pipe();
        fcntl(&from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let keep_open = job.try_clone().unwrap().into();
        let to = Endpoint::new(to, false).unwrap();
        let output = Output { name: "stdout", from, keep_open, to, meter: Meter::default() };
        let orders = Orders::new().unwrap();
        let told = orders.clone();
        (job, orders, std::thread::spawn(move || run(vec![output], input, &told, patience)))
    }

    #[test]
    fn a_client_that_reads_gets_everything() {
        let (mut client, to) = pipe();
        let (mut job, orders, copying) = start(to.into(), None, LONG);
        let sent: Vec<u8> = (0..1 << 20).map(|n: u32| (n ^ (n >> 8)) as u8).collect();
        let bytes = sent.clone();
        let writer = std::thread::spawn(move || {
            job.write_all(&bytes).unwrap();
            orders.set(Mode::Drain);
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        assert_eq!(copying.join().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_client_that_does_not_read_is_given_up_and_the_loss_is_counted() {
        let (client, to) = pipe();
        let size = fcntl(&to, FcntlArg::F_GETPIPE_SZ).unwrap() as usize;
        let (mut job, orders, copying) = start(to.into(), None, NONE);
        // More than the client's pipe holds: the rest is still with the job's when the job is over.
        job.write_all(&vec![0; size + 1234]).unwrap();
        orders.set(Mode::Drain);
        assert_eq!(copying.join().unwrap(), ["stdout: 1234 bytes were not read by the client in time"]);
        drop(client);
    }

    #[test]
    fn who_holds_a_jobs_output_elsewhere_delays_nothing() {
        let (mut client, to) = pipe();
        let (mut job, orders, copying) = start(to.into(), None, LONG);
        job.write_all(b"the job's own").unwrap();
        // Never closed, and written to for as long as there is somebody to read.
        let mut holder = job.try_clone().unwrap();
        drop(job);
        orders.set(Mode::Drain);
        let flood = std::thread::spawn(move || while holder.write_all(&[b'x'; 512]).is_ok() {});
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(copying.join().unwrap(), Vec::<String>::new());
        assert!(got.starts_with(b"the job's own") && got.len() <= FIFO_SIZE, "{} bytes", got.len());
        flood.join().unwrap();
    }

    #[test]
    fn an_input_that_never_ends_ends_with_the_job() {
        let ((silent, keep), (from_client, to_job)) = (pipe(), pipe());
        fcntl(&to_job, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let input = Input { from: Endpoint::new(silent.into(), true).unwrap(), to: to_job };
        let (client, to) = pipe();
        let (job, orders, copying) = start(to.into(), Some(input), LONG);
        (&keep).write_all(b"read").unwrap();
        let mut four = [0; 4];
        (&from_client).read_exact(&mut four).unwrap();
        assert_eq!(&four, b"read");
        orders.set(Mode::Drain);
        assert_eq!(copying.join().unwrap(), Vec::<String>::new());
        assert_eq!((&from_client).read(&mut four).unwrap(), 0, "the job's input has ended");
        drop((job, client));
    }

    #[test]
    fn a_client_that_is_gone_breaks_its_jobs_pipe_and_one_whose_disk_is_full_is_told() {
        let (client, to) = pipe();
        let (mut job, orders, copying) = start(to.into(), None, LONG);
        drop(client);
        // The job's start must not fail by it.
        job.write_all(&[0; 300_000]).unwrap();
        // From then on it is as with a pipe.
        orders.set(Mode::Copy);
        let error = std::iter::repeat_with(|| job.write_all(&[0; 4096])).find_map(Result::err).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        orders.set(Mode::Stop);
        assert_eq!(copying.join().unwrap(), Vec::<String>::new());
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (mut job, orders, copying) = start(full.into(), None, LONG);
        job.write_all(&[0; 300_000]).unwrap();
        orders.set(Mode::Drain);
        let lost = copying.join().unwrap().concat();
        assert!(lost.contains("No space left"), "{lost}");
    }
}
