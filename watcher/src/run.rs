//! `watcher run`: one job from the command line, with the conventions of docker-run(1).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use signal_hook::consts::{SIGHUP, SIGINT, SIGIO, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::bind::Reason;
use crate::job::{Phase, Report, Request, class};
use crate::serve::client::Client;

/// Signals that are passed on to the job.
const PASSED_ON: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, NOBODY_READS];

/// `latebind-host run` says with this that nobody reads its output any more: an engine in between goes on to read ours.
/// The job gets SIGPIPE. That signal itself could come from any of this process's own descriptors.
const NOBODY_READS: i32 = SIGIO;

/// Runs `request` at the core behind `socket`, relaying this process's standard streams (input only if `interactive`).
/// Returns the report and the exit code for it.
pub fn run(socket: &Path, request: &Request, interactive: bool, verbose: bool) -> io::Result<(Report, i32)> {
    let client = Client::connect(socket)?;
    let mut signals = Signals::new(PASSED_ON)?;
    let passer = client.try_clone()?;
    let job = request.id.clone();
    let last = std::sync::Arc::new(std::sync::atomic::AtomicI32::new(0));
    let noted = last.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever().map(|signal| if signal == NOBODY_READS { SIGPIPE } else { signal }) {
            noted.store(signal, std::sync::atomic::Ordering::Relaxed);
            let _ = passer.signal(&job, signal);
        }
    })?;
    let fds: Vec<OwnedFd> = [interactive.then_some(0), Some(1), Some(2)]
        .into_iter()
        .flatten()
        .map(|n| latebind_linux::sys::inherited(n).try_clone_to_owned())
        .collect::<io::Result<_>>()?;
    let fds: Vec<&dyn AsFd> = fds.iter().map(|fd| fd as &dyn AsFd).collect();
    let report = client.run(request, &fds, |phase| {
        if verbose && phase != Phase::Done {
            tracing::info!(job = %request.id, ?phase, "goes on");
        }
    })?;
    client.forget(&report.job)?;
    let code = match last.load(std::sync::atomic::Ordering::Relaxed) {
        // Its program never ran.
        signal if signal != 0 && report.reason == Reason::Cancelled && report.exit_code.or(report.signal).is_none() => {
            128 + signal
        }
        _ => class::exit_code(&report),
    };
    Ok((report, code))
}
