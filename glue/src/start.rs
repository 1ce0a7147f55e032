//! Starting one job: what stage one needs is prepared here, and the start is followed until the job's program runs.
//!
//! In order: stage two makes the child that becomes the job, reports its process ID and ends. Glue reaps stage two,
//! looks whether the child is what it has to be, and only then lets it execute. So when the job's first instruction
//! runs, nothing else of its UID lives that glue listens to; and all that glue still hears of is the end of a pipe that
//! the exec itself closes.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{SFlag, fstat};

use crate::claim::Claimed;
use crate::privilege_drop::{self, DATA_FD, EXEC_FD, FIRST_ENV_FD, GO_FD, JOB_FD, Prepared, REPORT_FD, UNFILTERED};
use latebind_contract::layout::STREAMS;
use latebind_contract::order::Order;
use latebind_contract::record::{Failure, Stage};
use latebind_contract::report::{Report, SIZE, What};
use latebind_linux::error::{cut, errno_of, error, refused};
use latebind_linux::processes::{Proc, Stat};
use latebind_linux::sys::{self, CStrings, Fork};
use latebind_linux::volume::{Dir, is, is_roots, open_at};

/// Descriptors that are to be handed on wait above this number, out of the way of those that stage two gets.
pub const OUT_OF_THE_WAY: RawFd = 64;

/// Makes stage two. `program` is our own binary, open; `slot` its argument; `filtered` whether the job runs under the
/// filter.
pub fn begin(
    claimed: &mut Claimed,
    slot: u32,
    program: BorrowedFd<'_>,
    filtered: bool,
    ctl: &Dir,
    data: &Dir,
) -> Result<Starting, Failure> {
    let at = |what: &'static str, stage: Stage| {
        move |e: io::Error| failure(stage, errno_of(&e), format_args!("{what}: {e}"))
    };
    let order = &claimed.order;
    let mut descriptors = Vec::new();
    for (n, name) in (0..).zip(STREAMS).zip(order.fifos).filter_map(|(stream, fifo)| fifo.then_some(stream)) {
        descriptors.push((open_stream_fifo(ctl, name, n == 0).map_err(at("standard stream", Stage::Stdio))?, n));
    }
    let job = memory_file(&claimed.command).map_err(at("the job cannot be handed on", Stage::Startup))?;
    descriptors.push((job, JOB_FD));
    let data = open_at(data.as_fd(), ".", OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(at("data/", Stage::Startup))?;
    descriptors.push((data, DATA_FD));
    for (file, n) in claimed.env_files.drain(..).zip(FIRST_ENV_FD..) {
        descriptors.push((file.into(), n));
    }
    let pipe = |flags| nix::unistd::pipe2(OFlag::O_CLOEXEC | flags).map_err(|e| at("pipe", Stage::Startup)(e.into()));
    let (reported, write) = pipe(OFlag::O_NONBLOCK)?;
    let high = |fd: &OwnedFd| sys::duplicate_above(fd.as_fd(), OUT_OF_THE_WAY);
    let report = high(&write).map_err(at("pipe", Stage::Startup))?;
    descriptors.push((write, REPORT_FD));
    let (executed, write) = pipe(OFlag::O_NONBLOCK)?;
    descriptors.push((write, EXEC_FD));
    let (read, go) = pipe(OFlag::empty())?; // the child waits for it
    descriptors.push((read, GO_FD));
    let moved = descriptors.iter().map(|(fd, n)| Ok((high(fd)?, *n))).collect::<io::Result<Vec<_>>>();
    // What they hold outlives the job for as long as somebody has them open, and no watcher may be there to read it.
    claimed.outputs = descriptors.into_iter().filter(|(_, n)| matches!(n, 1 | 2)).map(|(fd, _)| fd).collect();
    let (slot, env_files) = (slot.to_string(), order.env_files.len().to_string());
    let fifos = order.fifos.map(|fifo| if fifo { b'1' } else { b'0' });
    let filter = if filtered { "filtered" } else { UNFILTERED };
    let argv = c_strings(&[b"glue", b"stage-two", slot.as_bytes(), &fifos, env_files.as_bytes(), filter.as_bytes()])
        .map_err(at("slot", Stage::Startup))?;
    let prepared = Prepared {
        uid: order.uid,
        gid: order.gid,
        groups: &order.groups,
        program,
        argv,
        descriptors: moved.map_err(at("descriptors cannot be handed on", Stage::Startup))?,
        report,
    };
    match sys::fork() {
        Ok(Fork::Child) => privilege_drop::run(&prepared, &mut claimed.key),
        Ok(Fork::Parent(stage_two)) => Ok(Starting {
            stage_two,
            since: None,
            child: None,
            attendant: 0,
            awaits: Awaits::Report,
            reported: Pipe::new(reported),
            executed: Pipe::new(executed),
            go: Some(go),
        }),
        Err(e) => Err(at("no process could be made (pids limit?)", Stage::Startup)(e)),
    }
}

fn c_strings(texts: &[&[u8]]) -> io::Result<CStrings> {
    let mut strings = CStrings::default();
    texts.iter().try_for_each(|text| strings.push(&[text]))?;
    Ok(strings)
}

/// A FIFO for a standard stream. The watcher has to hold its other end open already.
fn open_stream_fifo(ctl: &Dir, name: &str, input: bool) -> io::Result<OwnedFd> {
    let flags = if input { OFlag::O_RDONLY } else { OFlag::O_WRONLY };
    let fd = ctl.open_beneath(name, flags | OFlag::O_NONBLOCK, 0);
    let fd = fd.map_err(|e| error(format_args!("the FIFO {name} cannot be opened, or has no reader"), &e))?;
    let stat = fstat(&fd)?;
    if !is(&stat, SFlag::S_IFIFO) || !is_roots(&stat, 0) {
        return Err(refused(format_args!("{name} in ctl/ is not a FIFO of root")));
    }
    sys::set_blocking(fd.as_fd())?;
    Ok(fd)
}

/// The job's part of the startup file, in memory that has no name.
fn memory_file(command: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"job", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(command)?;
    file.rewind()?;
    Ok(file.into())
}

/// The end of a pipe that one of a start's processes reports through.
struct Pipe {
    file: File,
    bytes: Vec<u8>,
}

impl Pipe {
    fn new(end: OwnedFd) -> Self {
        Self { file: File::from(end), bytes: Vec::new() }
    }

    /// Reads what is there. Whether everybody has closed the other end.
    fn has_ended(&mut self) -> io::Result<bool> {
        let mut bytes = [0; SIZE];
        loop {
            match self.file.read(&mut bytes) {
                Ok(0) => return Ok(true),
                // More than one report is wrong, and one byte more says so.
                Ok(n) if self.bytes.len() <= SIZE => {
                    self.bytes.extend_from_slice(bytes.get(..n).unwrap_or_default());
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// What a start waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    /// The end of stage two's report.
    Report,
    /// The end of stage two.
    StageTwo,
    /// The child's exec.
    Exec,
}

/// A start under way. The child that waits in it ends when this is dropped.
pub struct Starting {
    stage_two: i32,
    /// When stage two was made, in the kernel's ticks.
    since: Option<u64>,
    child: Option<i32>,
    attendant: i32,
    awaits: Awaits,
    reported: Pipe,
    executed: Pipe,
    go: Option<OwnedFd>,
}

/// How a start has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Started {
    /// The child, where there is one that is not reaped.
    pub child: Option<i32>,
    /// Why it does not run the job's program; `None`: it does.
    pub failure: Option<Failure>,
    /// What stage two says is the job's attendant, which is not one of the processes that the job has left; else 0.
    pub attendant: i32,
}

impl Starting {
    /// The pipe to wait for; where there is none, the end of a child is what comes next.
    pub fn pipe(&self) -> Option<BorrowedFd<'_>> {
        match self.awaits {
            Awaits::Report => Some(self.reported.file.as_fd()),
            Awaits::StageTwo => None,
            Awaits::Exec => Some(self.executed.file.as_fd()),
        }
    }

    /// Where a start hangs that has gone so far and no further.
    pub fn hangs(&self) -> (Stage, &'static str) {
        match self.awaits {
            Awaits::Exec => (Stage::Exec, "the exec: does the program's file system answer?"),
            _ => (Stage::Startup, "its preparation: do the file systems of its directory and its streams answer?"),
        }
    }

    /// Takes in what has happened, and goes on as far as that allows. `Some` at the end of the start.
    pub fn advance(&mut self, order: &Order, proc: &Proc) -> io::Result<Option<Started>> {
        if self.since.is_none() {
            self.since = Some(proc.stat(self.stage_two)?.start);
        }
        if self.awaits == Awaits::Report {
            if !self.reported.has_ended()? {
                return Ok(None);
            }
            self.awaits = Awaits::StageTwo;
        }
        if self.awaits == Awaits::StageTwo {
            let Some(stage_two) = sys::reap(self.stage_two)? else { return Ok(None) };
            self.stage_two = 0; // the number may be a stranger's from here on
            let report = Report::parse(&self.reported.bytes);
            let failed = |failure| Ok(Some(Started { child: None, failure: Some(failure), attendant: 0 }));
            match report {
                Some(Report { what: What::Child, numbers: [pid, attendant, ..], .. })
                    if stage_two.exit_code == Some(0) =>
                {
                    let pid = i32::try_from(pid).unwrap_or(0);
                    if !self.is_waiting_child(proc, pid, order) {
                        return failed(not_the_child());
                    }
                    self.child = Some(pid);
                    self.attendant = i32::try_from(attendant).unwrap_or(0);
                }
                Some(report) => return failed(report.failure().unwrap_or_else(cut_off)),
                None => return failed(cut_off()),
            }
            if let Some(go) = self.go.take() {
                // A child that could not get so far has reported why.
                let _ = nix::unistd::write(go, b"!");
            }
            self.awaits = Awaits::Exec;
        }
        if !self.executed.has_ended()? {
            return Ok(None);
        }
        let reported = Report::parse(&self.executed.bytes).and_then(|report| report.failure()).map(with_path);
        let failure = match (&reported, self.child) {
            _ if !self.executed.bytes.is_empty() => Some(reported.unwrap_or_else(cut_off)),
            // The pipe also ends where the child does. The kernel knows whether it had executed anything by then.
            (_, Some(pid)) if proc.stat(pid).is_ok_and(|stat| stat.no_exec_yet) => Some(cut_off()),
            _ => None,
        };
        Ok(Some(Started { child: self.child, failure, attendant: self.attendant }))
    }

    /// Whether `pid` is the child that stage two made: glue's own now, since glue is the subreaper of all below it,
    /// with the job's IDs and no others, and not older than this start.
    fn is_waiting_child(&self, proc: &Proc, pid: i32, order: &Order) -> bool {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let as_made = |stat: Stat| stat.parent == own && self.since.is_some_and(|since| stat.start >= since);
        pid > 1 && proc.stat(pid).is_ok_and(as_made) && proc.has_ids(pid, order.uid, order.gid).unwrap_or(false)
    }

    /// Ends what the start has made so far, for the reason given. What is not known of yet ends with the pipe that it
    /// waits for.
    pub fn cut_off(self, proc: &Proc, failure: Failure) -> Started {
        for pid in [Some(self.stage_two), self.child].into_iter().flatten() {
            // Neither is reaped, so that the number is its own; 0 is refused.
            let _ = sys::signal_process(pid, nix::libc::SIGKILL);
        }
        // No instruction runs after the signal. Where the exec was faster, the program may have run.
        let ran = self.go.is_none() && self.child.is_some_and(|pid| proc.stat(pid).is_ok_and(|s| !s.no_exec_yet));
        Started { child: self.child, failure: (!ran).then_some(failure), attendant: self.attendant }
    }
}

/// A failure in glue's own words, cut to a length that a record can hold.
pub fn failure(stage: Stage, errno: i32, message: core::fmt::Arguments<'_>) -> Failure {
    Failure { stage, errno, message: cut(message.to_string()), path: None, reported: None }
}

/// Where the program was looked for, if the job has no PATH of its own.
fn with_path(failure: Failure) -> Failure {
    let path = std::env::var_os("PATH").map(|path| cut(path.to_string_lossy().into_owned()));
    Failure { path, ..failure }
}

/// A start whose processes ended without saying why. EINTR, as of a call that was not completed: another try may do.
fn cut_off() -> Failure {
    let message = "the start was cut off before the program ran (out of memory, or killed)";
    failure(Stage::Startup, nix::libc::EINTR, format_args!("{message}"))
}

fn not_the_child() -> Failure {
    let message = "the process that stage two made is not as it was made: nothing was run";
    failure(Stage::Privileges, nix::libc::EPERM, format_args!("{message}"))
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
