//! Jobs a second in place: a spool of trivial jobs of one owner and image goes through one slot, beside `podman exec`
//! and `podman run`, which run the same program one after the other and prove nothing about it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::Failed;
use crate::pod::output;
use crate::report::Report;
use crate::sample::now;

/// Calls of `podman run` and `podman exec`, which take long.
const RUNS: usize = 10;
const IMAGE: &str = "localhost/latebind/busybox:1";
const RATE: &str = "trivial jobs a second, one after the other";

/// Adds the figures for `jobs` jobs.
pub fn measure(report: &mut Report, jobs: usize) -> Result<(), Failed> {
    let state = std::env::var("LATEBIND_STATE").unwrap_or_else(|_| "/var/lib/latebind-host".into());
    let spool = Path::new(&state).join(format!("latebind-bench-in-place-{}", std::process::id()));
    let measured = spooled(&spool, jobs);
    let _ = fs::remove_dir_all(&spool);
    report.add(RATE, "spool, one slot, --reuse same-owner", measured?, "/s");
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
    let name = |n: usize| format!("job-{n:05}");
    for n in 0..jobs {
        let dir = spool.join("new").join(name(n));
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let job = serde_json::json!({"image": IMAGE, "argv": ["true"], "owner": "bench"});
        fs::write(dir.join("job.json"), job.to_string()).map_err(|e| e.to_string())?;
    }
    let place = spool.to_string_lossy();
    output(Command::new("dist/latebind-host").args(["pod", "--spool", &place, "--", "pilot"]).args([
        "--spool",
        "/spool",
        "--reuse",
        "same-owner",
        "--idle-exit",
        "0.2",
    ]))?;
    let (mut ends, mut reused) = (Vec::new(), 0);
    for n in 0..jobs {
        let path = spool.join(format!("done/{}/result/report.json", name(n)));
        let text = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let report: Value = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let is = |name: &str| report.get(name).and_then(Value::as_bool) == Some(true);
        if !is("verified") {
            return Err(format!("{}: is not verified", path.display()));
        }
        reused += usize::from(is("reused_container"));
        let last = report.get("phases").and_then(Value::as_array).and_then(|all| all.last());
        let end = last.and_then(|phase| phase.get("at")).and_then(Value::as_f64);
        ends.push(end.ok_or_else(|| format!("{}: no phases", path.display()))?);
    }
    if reused + 1 < jobs {
        return Err(format!("only {reused} of {jobs} jobs have used the container of the one before"));
    }
    ends.sort_by(f64::total_cmp);
    let (first, last) = ends.first().zip(ends.last()).ok_or("no jobs")?;
    Ok((jobs - 1) as f64 / (last - first))
}
