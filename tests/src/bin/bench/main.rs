//! bench: what late binding costs, side by side with a shell loop, Debian's tini and dumb-init, and a bare
//! fork+exec+wait.
//!
//! It plays the watcher on the host for a pod of real containers, and runs itself as `bench inside ...` in containers
//! of the pod for tools that have to be started once for each try. Nothing is asserted about times.

mod calls;
mod chart;
mod claims;
mod documents;
mod idle;
mod in_place;
mod inside;
mod pod;
mod profile;
mod report;
mod sample;
mod slot;
mod whole_pod;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use pod::Pod;
use report::{BARE, Goal, Report};
use sample::{Sample, StampFile, Tries, wall};
use serde_json::Value;
use slot::Slot;

/// Why something could not be measured.
pub type Failed = String;

const TO_EXEC: &str = "glue notified (or asked) -> job's exec";
const TO_KNOWN: &str = "job's end -> verified record (or end) known to the other side";
const TERM_IDLE: &str = "SIGTERM -> gone, idle";
const TERM_BUSY: &str = "SIGTERM -> gone, with a job that ends on it";
const WHOLE: &str = "whole run, wall";
const CALLS: &str = "whole run, system calls without the job's";
const RSS: &str = "idle resident memory (Rss)";
const PSS: &str = "idle proportional share (Pss)";
const DIRTY: &str = "idle private written memory (Private_Dirty)";
const WAKE_UPS: &str = "idle wake-ups in 20 s";
const SIZE: &str = "size of the binary";

const GOALS: [Goal; 6] = [
    Goal { figure: TO_EXEC, most: 1.0 },
    Goal { figure: TO_KNOWN, most: 1.0 },
    Goal { figure: TERM_IDLE, most: 2.0 },
    Goal { figure: TERM_BUSY, most: 2.0 },
    Goal { figure: RSS, most: 256.0 },
    Goal { figure: WAKE_UPS, most: 0.0 },
];

/// Our init's name in the table.
const OUR_INIT: &str = "glue-exec";
/// Inits, two of them Debian's, and what they are started with: in a pod they are not PID 1, of which tini has to be
/// notified.
const WRAPPERS: [(&str, &[&str]); 3] = [
    ("tini", &["/shared/bin/tini", "-s", "--"]),
    ("dumb-init", &["/shared/bin/dumb-init", "--"]),
    (OUR_INIT, &["/shared/bin/glue", "exec", "--"]),
];

/// Between two jobs, longer than glue needs to be ready for the next.
const REST: Duration = Duration::from_millis(5);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["inside", task @ ..] => inside::run(task).map(|value| say(&format!("{value}\n"))),
        ["all", tries] => tries.parse().map_err(|_| "bench all TRIES: no number".to_owned()).and_then(all),
        ["glue", tries] => tries.parse().map_err(|_| "bench glue TRIES: no number".to_owned()).and_then(glue_alone),
        ["monitor"] => {
            let mut report = Report::default();
            whole_pod::monitor(&mut report).map(|()| say(&report.table(&[])))
        }
        ["in-place", jobs] => {
            let mut report = Report::default();
            let jobs = jobs.parse().map_err(|_| "bench in-place JOBS: not a number".to_owned());
            jobs.and_then(|jobs| in_place::measure(&mut report, jobs)).map(|()| say(&report.table(&[])))
        }
        ["claims", jobs, pilots] => {
            let mut report = Report::default();
            let numbers = jobs.parse().ok().zip(pilots.parse().ok());
            let numbers = numbers.ok_or_else(|| "bench claims JOBS PILOTS: not numbers".to_owned());
            numbers
                .and_then(|(jobs, pilots)| claims::claims(&mut report, jobs, pilots))
                .map(|()| say(&report.table(&[])))
        }
        ["results", jobs] => {
            let mut report = Report::default();
            let jobs = jobs.parse().map_err(|_| "bench results JOBS: not a number".to_owned());
            jobs.and_then(|jobs| claims::results(&mut report, jobs)).map(|()| say(&report.table(&[])))
        }
        ["draw", measured, docs] => documents::write(Path::new(measured), Path::new(docs)),
        ["profile"] => Pod::new().and_then(|pod| profile(&pod)).map(|text| say(&text)),
        _ => Err("usage: bench all TRIES, bench glue TRIES, bench in-place JOBS, bench monitor, bench profile, \
                  bench claims JOBS PILOTS, bench results JOBS, bench draw FILE.json DOCS \
                  (tests/bench/run.sh does what has to be done before)"
            .into()),
    };
    if let Err(message) = result {
        let _ = writeln!(std::io::stderr(), "bench: {message}");
        std::process::exit(1);
    }
}

fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "bench: {text}");
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

fn all(tries: usize) -> Result<(), Failed> {
    let began = load();
    let mut report = Report::default();
    progress("making a pod");
    let pod = Pod::new()?;
    for (name, _) in WRAPPERS.iter().filter(|(name, _)| *name != OUR_INIT) {
        pod.add_tool(&Path::new("/usr/bin").join(name))?;
    }

    progress(&format!("glue: {tries} jobs in one payload container"));
    let main = pod.run_in_background("payload", &["/shared/bin/glue", "run", "--slot", "0"])?;
    let mut slot = Slot::open(&pod.top)?;
    let incarnation = slot.wait_ready("")?;
    let glue = jobs(&pod, &mut slot, &incarnation, tries)?;
    let glue_calls = glue_calls(&pod, &mut slot, &incarnation, main)?;
    pod.remove("payload")?;

    progress(&format!("bare fork+exec+wait, tini, dumb-init, glue exec: {tries} tries each"));
    let tries_text = tries.to_string();
    let inside = |task: &[&str]| -> Result<Value, Failed> {
        let said = pod.run(&[&["/shared/bin/bench", "inside"], task].concat())?;
        serde_json::from_str(&said).map_err(|e| format!("bench inside {task:?} said {said:?}: {e}"))
    };
    let bare = read_tries(&inside(&["wrapped", &tries_text])?);
    let bare_term = read_sample(&inside(&["term", &tries_text])?);
    let mut wrapped = Vec::new();
    for (name, words) in WRAPPERS {
        let tries = read_tries(&inside(&[&["wrapped", &tries_text], words].concat())?);
        let term = read_sample(&inside(&[&["term", &tries_text], words].concat())?);
        wrapped.push((name, tries, term));
    }
    progress(&format!("SIGTERM to glue and to the shell loop: {tries} tries each"));
    let term_idle = read_sample(&inside(&["term-glue", &tries_text, "idle"])?);
    let term_busy = read_sample(&inside(&["term-glue", &tries_text, "busy"])?);
    let term_shell = read_sample(&inside(&["term-shell", &tries_text])?);

    progress("idle memory and wake-ups: 20 s");
    let idle = idle_figures(&pod)?;
    progress(&format!(
        "the shell loop: {tries} tries with sleep 1, {tries} with sleep 5, 40 loops at once: about 80 s"
    ));
    let shell_1 = read_tries(&inside(&["shell", &tries_text, "40", "1"])?);
    let shell_5 = read_tries(&inside(&["shell", &tries_text, "40", "5"])?);
    let (shells, shell_calls) =
        ([("shell loop, sleep 1", shell_1), ("shell loop, sleep 5", shell_5)], shell_calls(&pod));

    let mut figures = |figure: &str, of: fn(&Tries) -> &Sample| {
        report.add_sample(figure, "glue", of(&glue));
        report.add_sample(figure, BARE, of(&bare));
        wrapped.iter().for_each(|(name, tries, _)| report.add_sample(figure, *name, of(tries)));
        shells.iter().for_each(|(name, tries)| report.add_sample(figure, *name, of(tries)));
    };
    figures(TO_EXEC, |t| &t.to_exec);
    figures(TO_KNOWN, |t| &t.to_known);
    figures(WHOLE, |t| &t.whole);
    report.add_sample(TERM_IDLE, "glue", &term_idle);
    report.add_sample(TERM_IDLE, "shell loop (its sleep lives on)", &term_shell);
    report.add_sample(TERM_BUSY, "glue, record written", &term_busy);
    report.add_sample(TERM_BUSY, BARE, &bare_term);
    wrapped.iter().for_each(|(name, _, term)| report.add_sample(TERM_BUSY, *name, term));

    let sum = |calls: &BTreeMap<String, u64>| calls.values().sum::<u64>() as f64;
    report.add(CALLS, "glue", sum(&glue_calls), "");
    report.add(CALLS, BARE, 3.0, "");
    for (name, words) in WRAPPERS {
        // The same program outside of the pod.
        let program = if name == OUR_INIT { "dist/glue".into() } else { format!("/usr/bin/{name}") };
        let words = [&[program.as_str()], words.get(1..).unwrap_or_default()].concat();
        let log = pod.top.join(format!("strace-{name}"));
        report.add(CALLS, name, sum(&calls::of_command(&words, &log, Path::new("dist/stamp"))?), "");
    }
    report.add(CALLS, "shell loop, sleep 1", shell_calls?, "");
    for (figure, unit) in [(RSS, "KiB"), (PSS, "KiB"), (DIRTY, "KiB"), (WAKE_UPS, "")] {
        for (name, memory, wake_ups) in &idle {
            let value = match figure {
                RSS => memory.rss,
                PSS => memory.pss,
                DIRTY => memory.dirty,
                _ => *wake_ups,
            };
            report.add(figure, *name, value as f64, unit);
        }
    }
    let glue_path = std::env::var("BENCH_GLUE").unwrap_or_else(|_| "dist/glue".into());
    for (name, path) in [
        ("glue", glue_path.as_str()),
        ("tini (and the C library)", "/usr/bin/tini"),
        ("tini-static", "/usr/bin/tini-static"),
        ("dumb-init (and the C library)", "/usr/bin/dumb-init"),
        ("busybox, for the shell loop", "/bin/busybox"),
    ] {
        if let Ok(about) = std::fs::metadata(path) {
            report.add(SIZE, name, about.len() as f64, "B");
        }
    }
    drop(pod);

    progress("jobs a second in place: 200 through one slot");
    let in_place = in_place::measure(&mut report, 200);
    progress("whole runs with latebind-host");
    let whole_pods = whole_pod::measure(&mut report);

    facts(&mut report, &began, tries);
    let mut text = report.verdict(&GOALS);
    if !report.missed(&GOALS).is_empty() {
        text.push('\n');
        let pod = Pod::new()?;
        text.push_str(&profile(&pod)?);
        text.push_str(&calls_table(&glue_calls));
    }
    say(&text);
    let json = serde_json::to_string_pretty(&report.json(&GOALS)).map_err(|e| e.to_string())?;
    std::fs::write("dist/bench.json", json + "\n").map_err(|e| format!("dist/bench.json: {e}"))?;
    say("the same for programs: dist/bench.json\n");
    in_place.map_err(|e| format!("jobs a second in place are missing: {e}"))?;
    whole_pods.map_err(|e| format!("whole runs are missing: {e}"))
}

/// Only glue's own times, beside the bare ones: for comparing two builds of it.
fn glue_alone(tries: usize) -> Result<(), Failed> {
    let mut report = Report::default();
    let pod = Pod::new()?;
    let main = pod.run_in_background("payload", &["/shared/bin/glue", "run", "--slot", "0"])?;
    let mut slot = Slot::open(&pod.top)?;
    let incarnation = slot.wait_ready("")?;
    let glue = jobs(&pod, &mut slot, &incarnation, tries)?;
    let calls = glue_calls(&pod, &mut slot, &incarnation, main)?;
    let said = pod.run(&["/shared/bin/bench", "inside", "wrapped", &tries.to_string()])?;
    let bare = read_tries(&serde_json::from_str(&said).map_err(|e| e.to_string())?);
    for (figure, of) in [(TO_EXEC, (|t| &t.to_exec) as fn(&Tries) -> &Sample), (TO_KNOWN, |t| &t.to_known)] {
        report.add_sample(figure, "glue", of(&glue));
        report.add_sample(figure, BARE, of(&bare));
    }
    report.add(CALLS, "glue", calls.values().sum::<u64>() as f64, "");
    facts(&mut report, &load(), tries);
    say(&report.table(&GOALS));
    say(&calls_table(&calls));
    Ok(())
}

fn facts(report: &mut Report, began: &str, tries: usize) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("\t: unknown");
    let cores = cpuinfo.lines().filter(|l| l.starts_with("processor")).count();
    let debian = read("/etc/debian_version");
    let found = [
        format!("{cores} cores, {}", model.trim_start_matches([' ', '\t', ':'])),
        read("/proc/sys/kernel/osrelease").trim().to_owned(),
        format!("Debian {}", debian.trim()),
        tries.to_string(),
        began.to_owned(),
        load(),
    ];
    report.facts = report::FACTS.into_iter().zip(found).collect();
}

/// Jobs one after the other in one payload container.
fn jobs(pod: &Pod, slot: &mut Slot, incarnation: &str, tries: usize) -> Result<Tries, Failed> {
    let file = pod.stamps().join("glue");
    let mut measured = Tries::default();
    // The first few fill caches, as they do for the other tools when their container starts.
    for n in 0..tries + 5 {
        let stamps = StampFile::make(&file)?;
        std::thread::sleep(REST);
        let started = slot.start(incarnation, &["/shared/bin/stamp", "/shared/slot/0/data/stamps/glue"])?;
        let (_, known) = slot.await_record(&started)?;
        if n >= 5 {
            measured.add(started.notified, stamps.of_ended()?, known);
        }
    }
    Ok(measured)
}

/// Counts the calls of glue, both stages and the job's process before its exec, from the notification to the record.
fn glue_calls(pod: &Pod, slot: &mut Slot, incarnation: &str, main: i32) -> Result<BTreeMap<String, u64>, Failed> {
    let _stamps = StampFile::make(&pod.stamps().join("glue"))?;
    let tracer = calls::Tracer::attach(main, &pod.top.join("strace"))?;
    let from = wall();
    let started = slot.start(incarnation, &["/shared/bin/stamp", "/shared/slot/0/data/stamps/glue"])?;
    slot.await_record(&started)?;
    let to = wall();
    std::thread::sleep(Duration::from_millis(200));
    tracer.calls(from, to)
}

/// Counts the calls of the shell loop and of what it starts, from the file to the end.
fn shell_calls(pod: &Pod) -> Result<f64, Failed> {
    let dir = pod.stamps().join("loop-traced");
    let inside = "/shared/slot/0/data/stamps/loop-traced";
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let stamps = StampFile::make(&dir.join("stamp"))?;
    let pid = pod.run_in_background("traced", &["/bin/sh", "-c", inside::LOOP, "loop", inside, "1"])?;
    let tracer = calls::Tracer::attach(pid, &pod.top.join("strace-shell"))?;
    let from = wall();
    let script = format!("exec /shared/bin/stamp {inside}/stamp\n");
    std::fs::write(dir.join("start.tmp"), script).map_err(|e| e.to_string())?;
    std::fs::rename(dir.join("start.tmp"), dir.join("start")).map_err(|e| e.to_string())?;
    stamps.wait_for_start()?;
    for _ in 0..1000 {
        if dir.join("done").exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let to = wall();
    std::thread::sleep(Duration::from_millis(200));
    let calls = tracer.calls(from, to)?;
    pod.remove("traced")?;
    Ok(calls.values().sum::<u64>() as f64)
}

/// All tools wait in containers of their own at the same time.
fn idle_figures(pod: &Pod) -> Result<Vec<(&'static str, idle::Memory, u64)>, Failed> {
    let file = StampFile::make(&pod.stamps().join("idle"))?;
    let stamp = ["/shared/bin/stamp", "/shared/slot/0/data/stamps/idle", "wait"];
    let mut waiting = vec![("glue", pod.run_in_background("payload", &["/shared/bin/glue", "run", "--slot", "0"])?)];
    for (name, words) in WRAPPERS {
        waiting.push((name, pod.run_in_background(name, &[words, &stamp].concat())?));
    }
    for (name, seconds) in [("shell loop, sleep 1", "1"), ("shell loop, sleep 5", "5")] {
        let words = ["/bin/sh", "-c", inside::LOOP, "loop", "/shared/slot/0/data/stamps", seconds];
        waiting.push((name, pod.run_in_background(&format!("shell-{seconds}"), &words)?));
    }
    file.wait_for_start()?;
    std::thread::sleep(Duration::from_secs(1));
    let before: Vec<u64> = waiting.iter().map(|(_, pid)| idle::switches(*pid)).collect::<Result<_, _>>()?;
    std::thread::sleep(Duration::from_secs(20));
    let mut figures = Vec::new();
    for ((name, pid), before) in waiting.iter().zip(before) {
        let wake_ups = idle::switches(*pid)?.saturating_sub(before);
        figures.push((*name, idle::memory(*pid)?, wake_ups));
    }
    for name in ["payload", "shell-1", "shell-5"].into_iter().chain(WRAPPERS.map(|(name, _)| name)) {
        pod.remove(name)?;
    }
    Ok(figures)
}

/// A timeline of one job, for whoever wants to know where the time goes.
fn profile(pod: &Pod) -> Result<String, Failed> {
    let main = pod.run_in_background("payload", &["/shared/bin/glue", "run", "--slot", "0"])?;
    let mut slot = Slot::open(&pod.top)?;
    let incarnation = slot.wait_ready("")?;
    jobs(pod, &mut slot, &incarnation, 20)?;
    let _stamps = StampFile::make(&pod.stamps().join("glue"))?;
    let log = pod.top.join("timeline");
    let timeline = profile::Timeline::attach(main, &log)?;
    let mut text = format!("profile: one job, all system calls of glue, stages and job, by {}\n", timeline.tool);
    let started = slot.start(&incarnation, &["/shared/bin/stamp", "/shared/slot/0/data/stamps/glue"])?;
    slot.await_record(&started)?;
    for line in timeline.lines(&log)? {
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

fn calls_table(calls: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<(&String, &u64)> = calls.iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(a.1));
    let list: Vec<String> = sorted.iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!("\nsystem calls of glue's whole run: {}\n\n", list.join(", "))
}

fn read_sample(value: &Value) -> Sample {
    Sample(value.as_array().map(|all| all.iter().filter_map(Value::as_u64).collect()).unwrap_or_default())
}

fn read_tries(value: &Value) -> Tries {
    let of = |name: &str| value.get(name).map(read_sample).unwrap_or_default();
    Tries { to_exec: of("to_exec"), to_known: of("to_known"), whole: of("whole") }
}
