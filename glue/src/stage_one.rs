//! Stage one: from root to the payload's IDs, in order, then into stage two. One page, read it from top to bottom.
//!
//! It runs in a fork of glue, allocates nothing, and ends in an exec or an exit. Everything it needs was made before.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use crate::contract::encoding::Bytes32;
use crate::contract::record::Stage;
use crate::sys::{self, CStrings, Capabilities};

/// Stage two finds the job's part of the startup file here.
pub const JOB_FD: RawFd = 3;
/// Stage two reports here; close-on-exec, so that the job's exec ends it.
pub const REPORT_FD: RawFd = 4;
/// `data/`, to open files beneath.
pub const DATA_FD: RawFd = 5;
/// The first environment file; the others follow.
pub const FIRST_ENV_FD: RawFd = 6;

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
    /// Environment of stage two.
    pub env: CStrings,
    /// Descriptors for stage two, each with the number it gets.
    pub descriptors: Vec<(OwnedFd, RawFd)>,
    /// Where to report a failure.
    pub report: OwnedFd,
}

/// Which step failed; the number goes over the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Default dispositions, empty mask.
    Signals = 1,
    /// Handing descriptors on.
    Descriptors,
    /// Supplementary groups.
    Groups,
    /// GID.
    Gid,
    /// Bounding and ambient set.
    Bounding,
    /// UID.
    Uid,
    /// Permitted, effective, inheritable set.
    Capabilities,
    /// no_new_privs.
    NoNewPrivs,
    /// What was read back is not what was set.
    ReadBack,
    /// Starting stage two.
    Exec,
}

impl Step {
    /// The step with this number, and what to say of its failure.
    pub fn describe(number: u8) -> (Stage, &'static str) {
        const TEXTS: [(Stage, &str); 10] = [
            (Stage::Startup, "signals could not be reset"),
            (Stage::Startup, "descriptors could not be handed on"),
            (Stage::Privileges, "supplementary groups could not be set"),
            (Stage::Privileges, "the payload GID could not be set"),
            (Stage::Privileges, "the bounding set could not be emptied"),
            (
                Stage::Privileges,
                "the payload UID could not be set: the container needs SETUID and the UID must be mapped",
            ),
            (Stage::Privileges, "the capabilities could not be dropped"),
            (Stage::Privileges, "no_new_privs could not be set"),
            (Stage::Privileges, "what was read back after the drop is not what was set: nothing was run"),
            (Stage::Startup, "stage two could not be started"),
        ];
        let unknown = (Stage::Startup, "an unknown step failed");
        TEXTS.get(usize::from(number).wrapping_sub(1)).copied().unwrap_or(unknown)
    }
}

/// The child's side of the fork. Does not return.
pub fn run(prepared: &Prepared<'_>, key: &mut Bytes32) -> ! {
    sys::wipe(key.bytes_mut());
    let (step, error) = match drop_privileges(prepared) {
        Err(failed) => failed,
        Ok(()) => (Step::Exec, sys::exec_fd(prepared.program, &prepared.argv, &prepared.env)),
    };
    let [a, b, c, d] = error.raw_os_error().unwrap_or(0).to_le_bytes();
    let _ = nix::unistd::write(&prepared.report, &[b'E', step as u8, a, b, c, d]);
    sys::exit_now(127)
}

/// The drop, in order: each step needs a privilege that a later one takes away.
fn drop_privileges(p: &Prepared<'_>) -> Result<(), (Step, io::Error)> {
    let at = |step: Step| move |e: io::Error| (step, e);

    sys::reset_signals().map_err(at(Step::Signals))?;
    for (from, to) in &p.descriptors {
        sys::duplicate_to(from.as_fd(), *to).map_err(at(Step::Descriptors))?;
    }
    sys::set_groups(p.groups).map_err(at(Step::Groups))?; // needs SETGID
    sys::set_gid(p.gid).map_err(at(Step::Gid))?; // needs SETGID
    sys::clear_ambient().map_err(at(Step::Bounding))?;
    sys::limit_bounding_set(0).map_err(at(Step::Bounding))?; // needs SETPCAP
    sys::set_uids(p.uid, p.uid, p.uid).map_err(at(Step::Uid))?; // needs SETUID; takes permitted and effective away
    let none = Capabilities { effective: 0, permitted: 0, inheritable: 0 };
    sys::set_capabilities(none).map_err(at(Step::Capabilities))?;
    sys::set_no_new_privs().map_err(at(Step::NoNewPrivs))?;

    // Nothing above is believed: setresuid(-1, -1, -1), for one, succeeds and changes nothing.
    let ids_hold = sys::uids().map_err(at(Step::ReadBack))? == [p.uid; 3]
        && sys::gids().map_err(at(Step::ReadBack))? == [p.gid; 3]
        && sys::groups_are(p.groups).map_err(at(Step::ReadBack))?;
    let nothing_left = sys::capabilities().map_err(at(Step::ReadBack))? == none
        && sys::bounding_set() == 0
        && sys::no_new_privs().map_err(at(Step::ReadBack))?;
    let not_root = p.uid != 0 && p.gid != 0 && sys::set_uids(0, 0, 0).is_err();
    if ids_hold && nothing_left && not_root {
        Ok(())
    } else {
        Err((Step::ReadBack, io::Error::from_raw_os_error(nix::libc::EPERM)))
    }
}
