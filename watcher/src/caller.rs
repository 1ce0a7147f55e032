//! What a program has from whoever started it, and cannot work with: signals that are blocked or ignored.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::sys::signal::SigSet;
use signal_hook::consts::SIGCHLD;

/// Lets signals through, and makes the ends of children known. A program that was started with SIGCHLD ignored cannot
/// wait for its children (wait(2)), one that was started with blocked signals cannot be told to end, and both pass that
/// on. To be called before there are threads.
pub fn reset_signals() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    // A handler is the one thing that exec(2) resets to the default; what it notes is of no use.
    signal_hook::flag::register(SIGCHLD, Arc::new(AtomicBool::new(false))).map(drop)
}
