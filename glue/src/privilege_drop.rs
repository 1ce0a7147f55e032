//! Stage one: from root to the payload's IDs, in order, then into stage two. One page, read it from top to bottom.
//!
//! It runs in a fork of glue, allocates nothing, and ends in an exec or an exit. Everything it needs was made before.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::prctl;

use latebind_contract::encoding::Key;
use latebind_contract::report::{Report, What};
use latebind_linux::sys::{self, CStrings, Capabilities};

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

/// What the child needs, made before the fork. All descriptors are above those that stage two gets.
pub struct Prepared<'a> {
    /// Payload UID.
    pub uid: u32,
    /// Payload GID.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
    /// Our own binary, opened at our start.
    pub program: BorrowedFd<'a>,
    /// Arguments of stage two.
    pub argv: CStrings,
    /// Descriptors for stage two, each with the number it gets.
    pub descriptors: Vec<(OwnedFd, RawFd)>,
    /// Where to report a failure.
    pub report: OwnedFd,
}

/// The child's side of the fork. Does not return.
pub fn run(prepared: &Prepared<'_>, key: &mut Key) -> ! {
    key.wipe();
    let (what, error) = match drop_privileges(prepared) {
        Err(failed) => failed,
        Ok(()) => (What::StageTwo, sys::exec_fd(prepared.program, &prepared.argv)),
    };
    send(&Report::of(what, &error), prepared.report.as_raw_fd());
    sys::exit_now(127)
}

/// Writes a report to a pipe, by the pipe's descriptor. Allocates nothing.
pub fn send(report: &Report, fd: RawFd) {
    // Where glue is gone, nobody misses it.
    let _ = nix::unistd::write(sys::inherited(fd), report.bytes().as_flattened());
}

/// The drop, in order: each step needs a privilege that a later one takes away.
fn drop_privileges(p: &Prepared<'_>) -> Result<(), (What, io::Error)> {
    let at = |what: What| move |e: io::Error| (what, e);

    sys::reset_signals().map_err(at(What::Signals))?;
    for (from, to) in &p.descriptors {
        sys::duplicate_to(from.as_fd(), *to).map_err(at(What::Descriptors))?;
    }
    sys::set_groups(p.groups).map_err(at(What::Groups))?; // needs SETGID
    sys::set_gid(p.gid).map_err(at(What::Gid))?; // needs SETGID
    sys::limit_exec_capabilities(0).map_err(at(What::Bounding))?; // needs SETPCAP
    sys::set_uids(p.uid, p.uid, p.uid).map_err(at(What::Uid))?; // needs SETUID; takes permitted and effective away
    let none = Capabilities::default();
    sys::set_capabilities(none).map_err(at(What::Capabilities))?;
    prctl::set_no_new_privs().map_err(|e| (What::NoNewPrivs, e.into()))?;

    // Nothing above is believed: setresuid(-1, -1, -1), for one, succeeds and changes nothing.
    let ids_hold = sys::uids().map_err(at(What::ReadBack))? == [p.uid; 3]
        && sys::gids().map_err(at(What::ReadBack))? == [p.gid; 3]
        && sys::groups_are(p.groups).map_err(at(What::ReadBack))?;
    let nothing_left = sys::capabilities().map_err(at(What::ReadBack))? == none
        && sys::bounding_set() == 0
        && prctl::get_no_new_privs().map_err(|e| (What::ReadBack, e.into()))?;
    let not_root = p.uid != 0 && p.gid != 0 && sys::set_uids(0, 0, 0).is_err();
    if ids_hold && nothing_left && not_root {
        Ok(())
    } else {
        Err((What::ReadBack, io::Error::from_raw_os_error(nix::libc::EPERM)))
    }
}
