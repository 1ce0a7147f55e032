//! System calls of `glue exec`, an ordinary init.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

use super::checked;

static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Rust's runtime ignores SIGPIPE before main. This runs before that, and after relocation (System V ABI,
/// "Initialization and Termination Functions").
// SAFETY: the section is an array of pointers to functions like this one.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = look_at_sigpipe;

extern "C" fn look_at_sigpipe() {
    // SAFETY: struct sigaction is plain numbers, for which all zeroes is a value.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action is given, and the old one goes into a local that lives through the call.
    let asked = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut now) };
    SIGPIPE_WAS_IGNORED.store(asked == 0 && now.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
}

/// Gives SIGPIPE the disposition that this program was started with.
pub fn restore_sigpipe() {
    let was = if SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither disposition runs code of ours.
    unsafe { libc::signal(libc::SIGPIPE, was) };
}

/// `kill(2)` of the process group that a child leads. Never of the own one or of all: 0, 1 and negative numbers are
/// refused.
pub fn signal_group(leader: i32, signal: i32) -> io::Result<()> {
    if leader <= 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the call takes numbers only.
    checked(libc::c_long::from(unsafe { libc::kill(-leader, signal) })).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_signal_goes_to_the_own_group_or_to_all() {
        // Signal 0 looks whether it may be sent, and sends nothing.
        for leader in [1, 0, -1, i32::MIN] {
            assert_eq!(signal_group(leader, 0).map_err(|e| e.raw_os_error()), Err(Some(libc::EINVAL)));
        }
    }
}
