//! From root to a process that is not root, in order, and read back. One page, read it from top to bottom.
//!
//! It runs in a fork of glue, which becomes the supervisor of one job: its real and saved UID are the slot's kill UID,
//! its effective UID is the payload's. So kill(2) lets it signal the payload, and lets the payload not signal it;
//! ptrace(2) lets the payload not look into it either.
#![forbid(unsafe_code)]

use std::io;

use nix::sys::prctl;

use latebind_contract::layout::Ids;
use latebind_linux::sys::{self, Capabilities};

/// The first step.
pub const SETGROUPS: &str = "setgroups";

/// Gives root up for good. In order: the first three steps need privileges that the third and fourth take away. The
/// bounding and the ambient set have been empty since the start of glue, and cannot grow. Says which step failed.
pub fn drop_privileges(ids: Ids, groups: &[u32]) -> Result<(), (&'static str, io::Error)> {
    let at = |step: &'static str| move |e: io::Error| (step, e);
    let at_prctl = |step: &'static str| move |e: nix::Error| (step, e.into());
    let Ids { uid, gid, kill_uid } = ids;
    let refused = |step: &'static str| Err((step, io::Error::from_raw_os_error(nix::libc::EPERM)));
    if ids.check().is_err() {
        return refused("IDs");
    }
    sys::set_groups(groups).map_err(at(SETGROUPS))?; // needs SETGID
    sys::set_gid(gid).map_err(at("setresgid"))?; // needs SETGID
    sys::set_uids(kill_uid, uid, kill_uid).map_err(at("setresuid"))?; // needs SETUID
    let none = Capabilities::default();
    sys::set_capabilities(none).map_err(at("capset"))?;
    prctl::set_no_new_privs().map_err(at_prctl("no_new_privs"))?;
    prctl::set_dumpable(false).map_err(at_prctl("dumpable"))?; // a change of IDs sets it to fs.suid_dumpable

    // Nothing above is believed: setresuid(-1, -1, -1), for one, succeeds and changes nothing.
    let ids_hold = sys::uids().map_err(at("getresuid"))? == [kill_uid, uid, kill_uid]
        && sys::gids().map_err(at("getresgid"))? == [gid; 3]
        && sys::groups_are(groups).map_err(at("getgroups"))?;
    let nothing_left = sys::capabilities().map_err(at("capget"))? == none
        && prctl::get_no_new_privs().map_err(at_prctl("no_new_privs"))?
        && !prctl::get_dumpable().map_err(at_prctl("dumpable"))?;
    let not_root = sys::set_uids(0, 0, 0).is_err();
    if ids_hold && nothing_left && not_root { Ok(()) } else { refused("read back") }
}
