//! Root's part of a job: its supervisor, and its record.
//!
//! The supervisor is a fork of glue that gives root up first of all. It starts, waits for and ends the job, and signs
//! the record. Root takes two things from it: the main process's ID, and the record, which it passes on as it is.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::{ECHILD, SIGCONT, SIGTERM};
use nix::sys::prctl::set_dumpable;
use nix::unistd::{pipe2, read, write};

use crate::claim::Claimed;
use crate::events::Event;
use crate::log;
use crate::prepare::{About, Identity, Prepared, Problem, Slot, fork, seconds};
use crate::privilege_drop::{SETGROUPS, drop_privileges};
use crate::supervise;
use latebind_contract::layout::{self, Ids};
use latebind_contract::order::{Order, START_WITHIN};
use latebind_contract::status::Status;
use latebind_linux::error::{errno_of, refused};
use latebind_linux::sys::{self, Fork};
use latebind_linux::volume::Dir;

/// How much longer than the job's times allow a supervisor may take, since the payload can slow it down.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest record, in bytes.
const RECORD_MAX: usize = layout::RECORD_MAX as usize;
/// Bytes of the main process's ID, as the supervisor says it.
const MAIN: usize = 4;
/// Children that are reaped at most, once a job is over.
const REAPED_AT_ONCE: u32 = 1000;

/// A job's supervisor, as root sees it.
pub struct Supervisor {
    pid: i32,
    /// The digest of the startup file lets the job's program run.
    go: OwnedFd,
    /// The main process's ID in four bytes, then the record.
    said: OwnedFd,
    heard: Vec<u8>,
    /// When it is given up.
    deadline: Option<Instant>,
}

/// How a job ended, as far as root has to know.
pub struct Ended {
    /// Whether glue was told to stop.
    pub stop: bool,
    /// Whether processes of the job may still live.
    pub unkilled: bool,
}

impl Supervisor {
    /// Makes the supervisor, which does not let the job's program run before [`Supervisor::go`]. The caller then wipes
    /// its own copy of the key.
    pub fn make(
        slot: &Slot,
        claimed: &mut Claimed,
        prepared: &mut Prepared,
        identity: &Identity<'_>,
    ) -> io::Result<Self> {
        let (wait, go) = pipe2(OFlag::O_CLOEXEC)?;
        let (said, say) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        match fork()? {
            Fork::Child => {
                drop((go, said));
                give_up_root(slot.ids, &claimed.order, prepared);
                supervise::run(slot, claimed, prepared, identity, wait, say)
            }
            Fork::Parent(pid) => {
                let deadline = Some(last(START_WITHIN.as_secs_f64() + 2.0 * claimed.order.kill_s));
                Ok(Self { pid, go, said, heard: Vec::new(), deadline })
            }
        }
    }

    /// Lets the job's program run, once the status names the job.
    pub fn go(&self, startup_sha256: &str) {
        let _ = write(&self.go, startup_sha256.as_bytes()); // a supervisor that is gone says so by its end
    }

    /// Follows the supervisor to its end, and puts the record. An error where there is none.
    pub fn follow(mut self, slot: &Slot, order: &Order, status: &mut Status) -> io::Result<Ended> {
        let (mut stop_by, mut is_put): (Option<Instant>, bool) = (None, false);
        loop {
            let state = sys::reap_or_stopped(self.pid)?.map(|reaped| reaped.status);
            let is_all = self.hear()?;
            let main = self.heard.first_chunk().map_or(0, |main| i32::from_le_bytes(*main));
            if main > 0 && status.main_pid.is_none() {
                status.main_pid = Some(main);
                self.deadline = (order.timeout_s > 0.0).then(|| last(order.timeout_s + order.grace_s + order.kill_s));
                slot.put_status(status)?;
            }
            if is_all
                && !is_put
                && let Some(record @ [_, ..]) = self.heard.get(MAIN..)
            {
                put_record(&slot.ctl, record)?;
                is_put = true;
            }
            match state {
                None => {}
                // The watcher's kill routine stops whatever has the kill UID, for a moment.
                Some(status) if status.stopped_signal().is_some() => sys::signal_process(self.pid, SIGCONT)?,
                Some(_) if is_put => return Ok(Ended { stop: stop_by.is_some(), unkilled: has_living_children() }),
                Some(status) => {
                    let how = if status.code().is_some() { "by itself" } else { "by a signal (out of memory?)" };
                    return Err(refused(format_args!("the job's supervisor ended {how}, without a record")));
                }
            }
            let deadline = [self.deadline, stop_by].into_iter().flatten().min();
            match slot.events.next(false, (!is_all).then(|| self.said.as_fd()), deadline)? {
                Event::Stop(signal) => {
                    log::line(format_args!("told to stop by signal {signal}"));
                    stop_by.get_or_insert_with(|| last(order.grace_s + order.kill_s));
                    // Not that signal: an image may have chosen SIGCHLD, which would be lost among others.
                    sys::signal_process(self.pid, SIGTERM)?;
                }
                Event::Child | Event::Readable => {}
                Event::Deadline => return Err(refused(format_args!("the job's supervisor is not done in time"))),
            }
        }
    }

    /// Takes in what the supervisor has said. Whether that is all.
    fn hear(&mut self) -> io::Result<bool> {
        let mut part = [0; 1024];
        loop {
            match read(&self.said, &mut part) {
                Ok(0) => return Ok(true),
                Ok(n) if self.heard.len() <= RECORD_MAX => {
                    self.heard.extend_from_slice(part.get(..n).unwrap_or_default())
                }
                Ok(_) => return Err(not_a_record()),
                Err(Errno::EAGAIN) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Puts a record as the supervisor has signed it: foreign bytes, of which only the form is looked at, a JWS in compact
/// form of bounded length.
fn put_record(ctl: &Dir, record: &[u8]) -> io::Result<()> {
    let is_text = |part: &[u8]| part.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
    let parts: Vec<&[u8]> = record.splitn(4, |b| *b == b'.').collect();
    if parts.len() != 3 || record.len() > RECORD_MAX || !parts.into_iter().all(is_text) {
        return Err(not_a_record());
    }
    // Before the record is put: a watcher that was started again looks at the container's counters through glue.
    set_dumpable(true)?;
    // If this fails, glue ends, so that the watcher does not wait for a record.
    ctl.replace(layout::RECORD, record, 0o600)
}

fn not_a_record() -> io::Error {
    refused(format_args!("what the job's supervisor says is not a record"))
}

/// Gives root up in a fork that is to be a supervisor. One that cannot must not run or sign anything, and ends.
fn give_up_root(ids: Ids, order: &Order, prepared: &mut Prepared) {
    let groups: &[u32] = if prepared.problem.is_some() { &[] } else { &order.groups };
    let dropped = drop_privileges(ids, groups).or_else(|(step, e)| {
        // A user namespace may not have all groups. It is the first step, so nothing has changed.
        if step != SETGROUPS || groups.is_empty() {
            return Err((step, e));
        }
        let message = format!("the supplementary groups cannot be set: {e}");
        prepared.problem = Some(Problem { about: About::Privileges, errno: errno_of(&e), message });
        drop_privileges(ids, &[])
    });
    if let Err((step, e)) = dropped {
        log::error(format_args!("cannot give root up: {step}: {e}"));
        sys::exit_now(layout::REFUSED_CODE);
    }
}

/// Whether any child of this process still lives: of a job whose supervisor has ended, what that could not end.
/// Children that have ended are reaped.
pub fn has_living_children() -> bool {
    let last = (0..REAPED_AT_ONCE).map(|_| sys::reap(-1)).find(|reaped| !matches!(reaped, Ok(Some(_))));
    !last.is_some_and(|last| last.is_err_and(|e| e.raw_os_error() == Some(ECHILD)))
}

/// The deadline of a supervisor that has so many seconds from now on.
fn last(length: f64) -> Instant {
    Instant::now() + seconds(length) + PATIENCE
}
