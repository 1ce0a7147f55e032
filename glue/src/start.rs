//! Starting one job: the supervisor makes stage two, and follows the start until the job's program runs.
//!
//! In order: stage two makes the child that becomes the job, reports its process ID and ends. The supervisor reaps
//! stage two, looks whether the child is what it has to be, learns from root that the status names the job, and only
//! then lets the child execute. So when the job's first instruction runs, nothing else of its UID lives that the
//! supervisor listens to; and all that it still waits for is the end of a pipe that the exec itself closes.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;

use crate::claim::Claimed;
use crate::prepare::{OUT_OF_THE_WAY, Prepared, Slot, fork};
use latebind_contract::encoding::Key;
use latebind_contract::order::{Order, START_WITHIN};
use latebind_contract::record::{Failure, Stage};
use latebind_contract::report::{Report, SIZE, What};
use latebind_linux::error::{cut, errno_of};
use latebind_linux::processes::{Proc, Stat};
use latebind_linux::sys::{self, CStrings, Fork};
use latebind_linux::volume::open_at;

/// The waiting child reports here why its program did not run; close-on-exec, so that the program's exec ends it.
pub const EXEC_FD: RawFd = 3;
/// The waiting child reads here one byte once it may execute.
pub const GO_FD: RawFd = 4;
/// Stage two reports here. The first of those that the child closes.
pub const REPORT_FD: RawFd = 5;
/// Stage two finds the job's part of the startup file here.
pub const JOB_FD: RawFd = 6;
/// `data/`, to open files beneath.
pub const DATA_FD: RawFd = 7;
/// The first environment file; the others follow.
pub const FIRST_ENV_FD: RawFd = 8;
/// What stage two is told in place of `filtered` for a job without the filter of system calls.
pub const UNFILTERED: &str = "unfiltered";

/// What the fork that becomes stage two needs, prepared before the fork. All descriptors are above those that stage two
/// gets.
struct StageTwo<'a> {
    /// Payload UID.
    uid: u32,
    /// Our own binary, opened at our start.
    program: BorrowedFd<'a>,
    /// Arguments of stage two.
    argv: CStrings,
    /// Descriptors for stage two, each with the number it gets.
    descriptors: Vec<(OwnedFd, RawFd)>,
    /// Where to report a failure.
    report: OwnedFd,
}

/// Makes stage two.
pub fn begin(slot: &Slot, claimed: &mut Claimed, prepared: &mut Prepared) -> Result<Starting, Failure> {
    let fifos = std::mem::take(&mut prepared.fifos);
    let prepare = || -> io::Result<Starting> {
        let mut descriptors: Vec<_> = fifos.into_iter().zip(0..).filter_map(|(fifo, n)| Some((fifo?, n))).collect();
        descriptors.push((memory_file(&claimed.command)?, JOB_FD));
        descriptors.push((open_at(slot.data.as_fd(), ".", OFlag::O_PATH | OFlag::O_DIRECTORY)?, DATA_FD));
        descriptors.extend(claimed.env_files.drain(..).zip(FIRST_ENV_FD..));
        let (reported, report) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let (executed, exec) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let (wait, go) = pipe2(OFlag::O_CLOEXEC)?;
        let high = |fd: &OwnedFd| sys::duplicate_above(fd.as_fd(), OUT_OF_THE_WAY);
        let own_report = high(&report)?;
        descriptors.extend([(report, REPORT_FD), (exec, EXEC_FD), (wait, GO_FD)]);
        let moved = descriptors.iter().map(|(fd, n)| Ok((high(fd)?, *n))).collect::<io::Result<Vec<_>>>()?;
        drop(descriptors);
        let order = &claimed.order;
        let (number, env_files) = (slot.number.to_string(), order.env_files.len().to_string());
        let fifos = order.fifos.map(|fifo| if fifo { b'1' } else { b'0' });
        let filter = if slot.filtered { "filtered" } else { UNFILTERED };
        let mut argv = CStrings::default();
        for word in [&b"glue"[..], b"stage-two", number.as_bytes(), &fifos, env_files.as_bytes(), filter.as_bytes()] {
            argv.push(&[word])?;
        }
        let program = slot.program.as_fd();
        let two = StageTwo { uid: slot.ids.uid, program, argv, descriptors: moved, report: own_report };
        match fork()? {
            Fork::Child => two.become_it(&mut claimed.key),
            Fork::Parent(stage_two) => {
                let preparation = Some((reported, go));
                Ok(Starting { stage_two, since: None, preparation, executed, child: None, attendant: 0 })
            }
        }
    };
    prepare().map_err(failed(Stage::Startup, "the start cannot be prepared"))
}

impl StageTwo<'_> {
    /// The fork's side, up to its exec. The payload's UID is its effective one already; dropping the others needs no
    /// privilege. Allocates nothing, and does not return.
    fn become_it(&self, key: &mut Key) -> ! {
        key.wipe();
        let (what, error) = match self.settle() {
            Err(failed) => failed,
            Ok(()) => (What::StageTwo, sys::exec_fd(self.program, &self.argv)),
        };
        send(&Report::of(what, &error), self.report.as_raw_fd());
        sys::exit_now(127)
    }

    fn settle(&self) -> Result<(), (What, io::Error)> {
        let at = |what: What| move |e: io::Error| (what, e);
        // First of all, so that the payload's kill routine finds it.
        sys::set_uids(self.uid, self.uid, self.uid).map_err(at(What::Uid))?;
        if sys::uids().map_err(at(What::ReadBack))? != [self.uid; 3] {
            return Err((What::ReadBack, io::Error::from_raw_os_error(nix::libc::EPERM)));
        }
        for (from, to) in &self.descriptors {
            sys::duplicate_to(from.as_fd(), *to).map_err(at(What::Descriptors))?;
        }
        Ok(())
    }
}

/// Writes a report to a pipe, by the pipe's descriptor. Allocates nothing.
pub fn send(report: &Report, fd: RawFd) {
    // Where the supervisor is gone, nobody misses it.
    let _ = nix::unistd::write(sys::inherited(fd), report.bytes().as_flattened());
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
    /// Stage two's process ID, 0 once it is reaped.
    pub const fn stage_two(&self) -> i32 {
        self.stage_two
    }

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

    /// Takes in what has happened, and goes on as far as that allows. `Some` at the end of the start. The child is
    /// released once `await_root` returns: root has named the job in the status.
    pub fn advance(
        &mut self,
        order: &Order,
        proc: &Proc,
        await_root: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<Option<Started>> {
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
            await_root()?;
            // A child that could not get so far has reported why.
            let _ = go.map(|go| nix::unistd::write(go, b"!"));
        }
        let failure = match read_report(&self.executed) {
            // Somebody else has the pipe still: an attendant that did not get to run yet, or that the job has stopped.
            Err(Errno::EAGAIN) if self.has_executed(proc) => None,
            Err(Errno::EAGAIN) => return Ok(None),
            // The pipe also ends where the child does. The kernel knows whether it had executed anything by then.
            Ok((_, 0)) => (!self.has_executed(proc)).then(cut_off),
            read => Some(read?.0.and_then(|report| report.failure()).map_or_else(cut_off, with_path)),
        };
        Ok(Some(Started { child: self.child, failure, attendant: self.attendant }))
    }

    /// Whether the child, which is not reaped, has executed anything.
    fn has_executed(&self, proc: &Proc) -> bool {
        self.child.is_some_and(|pid| proc.stat(pid).is_ok_and(|stat| !stat.no_exec_yet))
    }

    /// Whether `pid` is the child that stage two made: the supervisor's own now, the subreaper of all below it, with
    /// the job's IDs and no others, and not older than this start.
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
        let ran = self.preparation.is_none() && self.has_executed(proc);
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
