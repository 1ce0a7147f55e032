//! Starting one job: what stage one needs is prepared here, and the start is followed until the job's program runs.
//!
//! In order: stage two makes the child that becomes the job, reports its process ID and ends. Glue reaps stage two,
//! looks whether the child is what it has to be, and only then lets it execute. So when the job's first instruction
//! runs, nothing else of its UID lives that glue listens to; and all that glue still hears of is the end of a pipe that
//! the exec itself closes.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::pipe2;

use crate::claim::Claimed;
use crate::privilege_drop::{self, DATA_FD, EXEC_FD, FIRST_ENV_FD, GO_FD, JOB_FD, Prepared, REPORT_FD, UNFILTERED};
use latebind_contract::layout::STREAMS;
use latebind_contract::order::{Order, START_WITHIN};
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
    let mut descriptors = Vec::new();
    for ((name, is_fifo), n) in STREAMS.into_iter().zip(claimed.order.fifos).zip(0..) {
        if is_fifo {
            let fifo = open_stream_fifo(ctl, name, n == 0).map_err(failed(Stage::Stdio, "standard stream"))?;
            descriptors.push((fifo, n));
        }
    }
    let mut prepare = || -> io::Result<Starting> {
        descriptors.push((memory_file(&claimed.command)?, JOB_FD));
        descriptors.push((open_at(data.as_fd(), ".", OFlag::O_PATH | OFlag::O_DIRECTORY)?, DATA_FD));
        descriptors.extend(claimed.env_files.drain(..).map(OwnedFd::from).zip(FIRST_ENV_FD..));
        let (reported, report) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let (executed, exec) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let (wait, go) = pipe2(OFlag::O_CLOEXEC)?;
        let high = |fd: &OwnedFd| sys::duplicate_above(fd.as_fd(), OUT_OF_THE_WAY);
        let of_stage_one = high(&report)?;
        descriptors.extend([(report, REPORT_FD), (exec, EXEC_FD), (wait, GO_FD)]);
        let moved = descriptors.iter().map(|(fd, n)| Ok((high(fd)?, *n))).collect::<io::Result<Vec<_>>>()?;
        // What they hold outlives the job for as long as somebody has them open, and no watcher may be there to read
        // it.
        claimed.outputs = descriptors.drain(..).filter(|(_, n)| matches!(n, 1 | 2)).map(|(fd, _)| fd).collect();
        let order = &claimed.order;
        let (slot, env_files) = (slot.to_string(), order.env_files.len().to_string());
        let fifos = order.fifos.map(|fifo| if fifo { b'1' } else { b'0' });
        let filter = if filtered { "filtered" } else { UNFILTERED };
        let mut argv = CStrings::default();
        for word in [&b"glue"[..], b"stage-two", slot.as_bytes(), &fifos, env_files.as_bytes(), filter.as_bytes()] {
            argv.push(&[word])?;
        }
        let (uid, gid, groups) = (order.uid, order.gid, order.groups.as_slice());
        let prepared = Prepared { uid, gid, groups, program, argv, descriptors: moved, report: of_stage_one };
        match sys::fork().map_err(|e| error(format_args!("no process could be made (pids limit?)"), &e))? {
            Fork::Child => privilege_drop::run(&prepared, &mut claimed.key),
            Fork::Parent(stage_two) => {
                let preparation = Some((reported, go));
                Ok(Starting { stage_two, since: None, preparation, executed, child: None, attendant: 0 })
            }
        }
    };
    prepare().map_err(failed(Stage::Startup, "the start cannot be prepared"))
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

/// What one of a start's processes has said, and how many bytes that was: 0 where everybody has closed the other end. A
/// report is written at once, so that it is there whole, or not.
fn read_report(pipe: &OwnedFd) -> nix::Result<(Option<Report>, usize)> {
    let mut bytes = [0; SIZE + 1]; // one more, so that what is too long is not taken for a report
    let length = nix::unistd::read(pipe, &mut bytes)?;
    Ok((Report::parse(bytes.get(..length).unwrap_or_default()), length))
}

/// A start under way. The child that waits in it ends when this is dropped.
pub struct Starting {
    stage_two: i32,
    /// When stage two was made, in the kernel's ticks.
    since: Option<u64>,
    /// Until stage two has ended: the pipe that it reports through, and the one that releases the child.
    preparation: Option<(OwnedFd, OwnedFd)>,
    /// The pipe that the child reports through, and that its exec closes.
    executed: OwnedFd,
    child: Option<i32>,
    attendant: i32,
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
        self.preparation.is_none().then_some(self.executed.as_fd())
    }

    /// The failure of a start that has gone so far and no further within its time.
    pub fn hangs(&self) -> Failure {
        let (stage, what) = match self.preparation {
            None => (Stage::Exec, "the exec: does the program's file system answer?"),
            Some(_) => {
                (Stage::Startup, "its preparation: do the file systems of its directory and its streams answer?")
            }
        };
        let within = START_WITHIN.as_secs();
        let message = format_args!("the program did not run within {within} s: the start hangs in {what}");
        failure(stage, nix::libc::ETIMEDOUT, message)
    }

    /// Takes in what has happened, and goes on as far as that allows. `Some` at the end of the start.
    pub fn advance(&mut self, order: &Order, proc: &Proc) -> io::Result<Option<Started>> {
        if self.since.is_none() {
            self.since = Some(proc.stat(self.stage_two)?.start);
        }
        if let Some((reported, _)) = &self.preparation {
            let Some(ended) = sys::reap(self.stage_two)? else { return Ok(None) };
            self.stage_two = 0; // the number may be a stranger's from here on
            let failure = match read_report(reported).ok().and_then(|(report, _)| report) {
                Some(Report { what: What::Child, numbers: [pid, attendant, ..], .. }) if ended.status.success() => {
                    self.child = i32::try_from(pid).ok().filter(|pid| self.is_waiting_child(proc, *pid, order));
                    self.attendant = i32::try_from(attendant).unwrap_or(0);
                    self.child.is_none().then(not_the_child)
                }
                report => Some(report.and_then(|report| report.failure()).unwrap_or_else(cut_off)),
            };
            let go = self.preparation.take().map(|(_, go)| go);
            if failure.is_some() {
                return Ok(Some(Started { child: None, failure, attendant: 0 }));
            }
            // A child that could not get so far has reported why.
            let _ = go.map(|go| nix::unistd::write(go, b"!"));
        }
        let failure = match read_report(&self.executed) {
            Err(Errno::EAGAIN) => return Ok(None),
            // The pipe also ends where the child does. The kernel knows whether it had executed anything by then.
            Ok((_, 0)) => self.child.filter(|pid| !proc.stat(*pid).is_ok_and(|s| !s.no_exec_yet)).map(|_| cut_off()),
            read => Some(read?.0.and_then(|report| report.failure()).map_or_else(cut_off, with_path)),
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
        let ran =
            self.preparation.is_none() && self.child.is_some_and(|pid| proc.stat(pid).is_ok_and(|s| !s.no_exec_yet));
        Started { child: self.child, failure: (!ran).then_some(failure), attendant: self.attendant }
    }
}

/// A failure in glue's own words, cut to a length that a record can hold.
pub fn failure(stage: Stage, errno: i32, message: core::fmt::Arguments<'_>) -> Failure {
    Failure { stage, errno, message: cut(message.to_string()), path: None, reported: None }
}

/// As [`failure`], with what failed and the error that caused it.
pub fn failed(stage: Stage, what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |e| failure(stage, errno_of(&e), format_args!("{what}: {e}"))
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
