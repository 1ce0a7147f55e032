//! `glue pause`: PID 1 of a pod under `latebind-host`. It owns the namespaces, reaps what is orphaned, and ends when
//! told.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};

use latebind_linux::sys;

/// Waits until SIGTERM or SIGINT. Signals are blocked and read, since PID 1 gets none that it has no handler for.
pub fn pause() -> io::Result<()> {
    let signals = sys::signal_fd()?;
    loop {
        while let Some(signal) = sys::next_signal(signals.as_fd())? {
            match signal.number {
                SIGTERM | SIGINT => return Ok(()),
                SIGCHLD => while matches!(sys::reap(-1), Ok(Some(_))) {},
                _ => {}
            }
        }
        wait_for_signal(&signals)?;
    }
}

/// Waits until there is a signal to be read.
pub fn wait_for_signal(signals: &OwnedFd) -> io::Result<()> {
    match sys::wait_for_long(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)]) {
        Ok(()) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
