//! Whole runs with `latebind-host`: what a user waits for, most of which is the engine's.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::Failed;
use crate::pod::output;
use crate::report::Report;
use crate::sample::{Sample, now};

/// Whole pods are slow: each is several containers.
const RUNS: usize = 5;
/// Jobs of one pod, each in a container of its own.
const JOBS: usize = 10;
const IMAGE: &str = "localhost/latebind/busybox:1";

const COMMAND: &str = "one command from the host, a whole pod";
const BIND: &str = "spool: job asked for -> container bound, glue ready, mounts proven";
const LATE: &str = "spool: job asked for -> job's exec (late-bind time)";
const OURS: &str = "spool: notification -> job's exec, as the record says";

const WATCH_SHARE: &str = "watching 1000 processes for 30 s, part of a processor";
const WATCH_EACH: &str = "watching 1000 processes, CPU time of a look";
const WATCH_SEEN: &str = "watching 1000 processes, how many were seen";

/// Adds the figures.
pub fn measure(report: &mut Report) -> Result<(), Failed> {
    let mut run = Sample::default();
    for _ in 0..RUNS {
        let asked = now();
        output(Command::new("dist/latebind-host").args(["run", IMAGE, "--", "true"]))?;
        run.0.push(now().saturating_sub(asked));
    }
    let mut engine = Sample::default();
    for _ in 0..RUNS {
        let asked = now();
        output(Command::new("images/podman").args(["run", "--rm", "--pull=never", "--network=none", IMAGE, "true"]))?;
        engine.0.push(now().saturating_sub(asked));
    }
    report.add_sample(COMMAND, "latebind-host run", &run);
    report.add_sample(COMMAND, "podman run, one container", &engine);

    let state = std::env::var("LATEBIND_STATE").unwrap_or_else(|_| "/var/lib/latebind-host".into());
    let spool = Path::new(&state).join(format!("latebind-bench-spool-{}", std::process::id()));
    let measured = jobs(&spool);
    let _ = fs::remove_dir_all(&spool);
    let (bind, late, ours) = measured?;
    report.add_sample(BIND, "latebind-host pod", &bind);
    report.add_sample(LATE, "latebind-host pod", &late);
    report.add_sample(OURS, "latebind-host pod", &ours);
    monitor(report)
}

/// What it costs to watch a job of 1000 processes that do nothing, as its report says.
pub fn monitor(report: &mut Report) -> Result<(), Failed> {
    let state = std::env::var("LATEBIND_STATE").unwrap_or_else(|_| "/var/lib/latebind-host".into());
    let spool = Path::new(&state).join(format!("latebind-bench-monitor-{}", std::process::id()));
    let watched = watched(&spool);
    let _ = fs::remove_dir_all(&spool);
    let (usage, run) = watched?;
    let number = |of: &Value, name: &str| of.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let cost = number(&usage, "monitor_cpu_s");
    report.add(WATCH_SHARE, "watcher", cost / run * 100.0, "%");
    report.add(WATCH_EACH, "watcher", cost / number(&usage, "samples") * 1e3, "ms");
    report.add(WATCH_SEEN, "watcher", usage.get("peak").map_or(f64::NAN, |peak| number(peak, "processes")), "");
    Ok(())
}

/// Usage and run time of a job with 1000 sleeping processes.
fn watched(spool: &Path) -> Result<(Value, f64), Failed> {
    let dir = spool.join("new/many");
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let script = "n=0; while [ $n -lt 1000 ]; do sleep 40 & n=$((n+1)); done; sleep 30; kill 0";
    let job = serde_json::json!({"image": IMAGE, "argv": ["/bin/sh", "-c", script]});
    fs::write(dir.join("job.json"), job.to_string()).map_err(|e| e.to_string())?;
    let place = spool.to_string_lossy();
    output(
        Command::new("dist/latebind-host").args(["pod", "--pids", "3000", "--spool", &place, "--", "pilot"]).args([
            "--spool",
            "/spool",
            "--idle-exit",
            "0.2",
        ]),
    )?;
    let path = spool.join("done/many/result/report.json");
    let text = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let report: Value = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let run = report.get("durations").and_then(|d| d.get("run")).and_then(Value::as_f64);
    let usage = report.get("usage").cloned();
    usage.zip(run).ok_or_else(|| format!("{}: no usage in it", path.display()))
}

/// A pod that serves a spool; what the reports of its jobs say.
fn jobs(spool: &Path) -> Result<(Sample, Sample, Sample), Failed> {
    for n in 0..JOBS {
        let dir = spool.join("new").join(format!("job-{n}"));
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let job = format!("{{\"image\": \"{IMAGE}\", \"argv\": [\"true\"]}}\n");
        fs::write(dir.join("job.json"), job).map_err(|e| e.to_string())?;
    }
    let place = spool.to_string_lossy();
    output(Command::new("dist/latebind-host").args(["pod", "--spool", &place, "--"]).args([
        "pilot",
        "--spool",
        "/spool",
        "--idle-exit",
        "0.2",
    ]))?;
    let (mut bind, mut late, mut ours) = (Sample::default(), Sample::default(), Sample::default());
    for n in 0..JOBS {
        let path = spool.join(format!("done/job-{n}/result/report.json"));
        let text = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let report: Value = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let seconds = |name: &str| report.get("durations").and_then(|d| d.get(name)).and_then(Value::as_f64);
        let latency = report.get("start_latency_ms").and_then(Value::as_f64).map(|ms| ms / 1e3);
        let nanoseconds = |s: f64| (s * 1e9) as u64;
        if let (Some(staged), Some(bound), Some(put), Some(latency)) =
            (seconds("stage"), seconds("bind"), seconds("start"), latency)
        {
            bind.0.push(nanoseconds(bound));
            late.0.push(nanoseconds(staged + bound + put + latency));
            ours.0.push(nanoseconds(latency));
        }
    }
    Ok((bind, late, ours))
}
