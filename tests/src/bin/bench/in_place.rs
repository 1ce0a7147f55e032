//! Jobs a second in place: a spool of trivial jobs of one owner and image goes through one slot, beside `podman exec`
//! and `podman run`, which run the same program one after the other and prove nothing about it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Failed;
use crate::pod::output;
use crate::report::Report;
use crate::sample::now;

/// Calls of `podman run` and `podman exec`, which take long.
const RUNS: usize = 10;
const IMAGE: &str = "localhost/latebind/busybox:1";
/// The figure.
pub const RATE: &str = "trivial jobs a second, one after the other";
/// Our way to run them.
pub const OURS: &str = "spool, one slot, --reuse same-owner";

/// Adds the figures for `jobs` jobs.
pub fn measure(report: &mut Report, jobs: usize) -> Result<(), Failed> {
    let state = std::env::var("LATEBIND_STATE").unwrap_or_else(|_| "/var/lib/latebind-host".into());
    let spool = Path::new(&state).join(format!("latebind-bench-in-place-{}", std::process::id()));
    let measured = spooled(&spool, jobs);
    let _ = fs::remove_dir_all(&spool);
    report.add(RATE, OURS, measured?, "/s");
    report.add(RATE, "podman exec", executed(RUNS)?, "/s");
    let began = now();
    for _ in 0..RUNS {
        output(Command::new("images/podman").args(["run", "--rm", "--pull=never", "--network=none", IMAGE, "true"]))?;
    }
    report.add(RATE, "podman run", per_second(RUNS, now().saturating_sub(began)), "/s");
    Ok(())
}

fn per_second(n: usize, nanoseconds: u64) -> f64 {
    n as f64 / (nanoseconds as f64 / 1e9)
}

/// `podman exec` in a container that is there.
fn executed(calls: usize) -> Result<f64, Failed> {
    let podman = |args: &[&str]| output(Command::new("images/podman").args(args));
    let name = format!("latebind-bench-exec-{}", std::process::id());
    podman(&["run", "--detach", "--rm", "--pull=never", "--network=none", "--name", &name, IMAGE, "sleep", "600"])?;
    let began = now();
    let done = (0..calls).try_for_each(|_| podman(&["exec", &name, "true"]).map(drop));
    let took = now().saturating_sub(began);
    podman(&["rm", "--force", "--time", "0", &name])?;
    done.map(|()| per_second(calls, took))
}

/// Jobs a second from the end of the first, which has to bind its image, to the end of the last; every one of them must
/// be verified and, but for the first, have used the same container.
fn spooled(spool: &Path, jobs: usize) -> Result<f64, Failed> {
    latebind_tests::rate::put(spool, jobs, IMAGE)?;
    let place = spool.to_string_lossy();
    output(Command::new("dist/latebind-host").args(["pod", "--spool", &place, "--", "pilot"]).args([
        "--spool",
        "/spool",
        "--reuse",
        "same-owner",
        "--idle-exit",
        "0.2",
    ]))?;
    latebind_tests::rate::in_place(spool, jobs)
}
