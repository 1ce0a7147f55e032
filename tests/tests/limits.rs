//! A job is kept within its limits: whichever it crosses, it is ended in time, the report says which, and the slot
//! serves on.

use latebind_tests::pod::{JOB_WITHIN, NOSHELL, Options, Outcome, Pod, eventually, host, probe, shell, with};
use latebind_tests::slot::WAIT_FOR_GO;
use serde_json::{Value, json};
use watcher::job::limits::Which;

/// A job with these limits, and a short grace.
fn limited(job: Value, limits: Value) -> Value {
    with(with(job, "limits", limits), "grace_s", json!(1))
}

#[track_caller]
fn has_crossed(outcome: &Outcome, which: Which) -> f64 {
    outcome.is("final", "LimitExceeded");
    let report = &outcome.report;
    let crossed = report.limit.as_ref().unwrap_or_else(|| panic!("no limit in {report:#?}"));
    assert_eq!(crossed.which, which, "{report:#?}");
    assert!(crossed.value > crossed.limit && crossed.at.ends_with('Z'), "{crossed:?}");
    assert!(report.verified, "a final report rests on a record: {report:#?}");
    assert!(report.message.contains("limit is"), "{}", report.message);
    crossed.value
}

#[test]
fn each_limit_ends_the_job_and_the_slot_serves_the_next() {
    let pod = Pod::start();
    let spin = "while :; do :; done";
    for (name, job, which) in [
        ("cpu", limited(shell(spin), json!({"cpu_s": 0.5})), Which::Cpu),
        ("memory", limited(probe(&["memory", "200", "60"]), json!({"memory": "64M"})), Which::Memory),
        (
            "processes",
            limited(shell("for n in 1 2 3 4 5 6 7 8 9; do sleep 60 & done; wait"), json!({"processes": 5})),
            Which::Processes,
        ),
        (
            "disk",
            limited(shell("dd if=/dev/zero of=a bs=1M count=40 2>/dev/null; sleep 60"), json!({"disk": "20M"})),
            Which::Disk,
        ),
        (
            "output",
            limited(shell("dd if=/dev/zero bs=1M count=4 2>/dev/null; sleep 60"), json!({"output": "1M"})),
            Which::Output,
        ),
    ] {
        has_crossed(&pod.job(name, &job), which);
        pod.job(&format!("after-{name}"), &probe(&["hello"])).is_good();
    }
}

#[test]
fn the_program_of_a_wrapper_saves_its_work_where_all_of_the_job_is_to_be_told() {
    let pod = Pod::start();
    let script =
        "sh -c \"trap 'echo work >saved; exit 0' TERM; sleep 60 & sleep 60 & while :; do sleep 0.05; done\"; echo on";
    for stop in ["group", "all"] {
        let job = with(with(shell(script), "outputs", json!(["saved"])), "stop", json!(stop));
        let outcome = pod.job(stop, &with(job, "limits", json!({"processes": 3})));
        has_crossed(&outcome, Which::Processes);
        assert_eq!(outcome.text("outputs/saved"), "work\n", "{stop}");
    }
}

#[test]
fn what_ignores_term_is_killed_after_its_grace() {
    let pod = Pod::start();
    let script =
        "trap '' TERM; for n in 1 2 3; do (trap '' TERM; while :; do sleep 0.1; done) & done; sleep 60; sleep 60";
    let outcome = pod.job("stubborn", &limited(shell(script), json!({"processes": 2})));
    has_crossed(&outcome, Which::Processes);
    assert_eq!(outcome.report.signal, Some(9), "{:#?}", outcome.report);
    pod.job("after", &shell("ps | grep -c '[s]leep' || true")).is_good();
}

#[test]
fn a_job_that_traps_term_and_exits_well_has_still_crossed_its_limit() {
    let pod = Pod::start();
    let script = "trap 'exit 0' TERM; (while :; do :; done) & wait";
    let outcome = pod.job("polite", &limited(shell(script), json!({"cpu_s": 0.3})));
    has_crossed(&outcome, Which::Cpu);
    assert_eq!(outcome.report.exit_code, Some(0));
}

#[test]
fn processes_that_are_over_before_anybody_looks_count_too() {
    let pod = Pod::start();
    // Each lives for some milliseconds, and most are reaped by glue: their parent is gone.
    let script = "while :; do (dd if=/dev/zero of=/dev/null bs=1M count=200 2>/dev/null &) ; sleep 0.01; done";
    has_crossed(&pod.job("short", &limited(shell(script), json!({"cpu_s": 1}))), Which::Cpu);
}

#[test]
fn the_pilots_maxima_hold_for_every_job() {
    let pod = Options::new().pilot(&["--max-processes", "4", "--max-wall", "2", "--max-memory", "1G"]).start();
    let many = limited(shell("for n in 1 2 3 4 5 6; do sleep 60 & done; wait"), json!({"processes": 1000}));
    let outcome = pod.job("many", &many);
    has_crossed(&outcome, Which::Processes);
    assert_eq!(outcome.report.limit.as_ref().unwrap().limit, 4.0);
    let outcome = pod.job("own", &limited(probe(&["sleep", "60"]), json!({"wall_s": 1})));
    outcome.is("final", "TimedOut");
    assert_eq!(outcome.report.limit.as_ref().map(|l| (l.which, l.limit)), Some((Which::Wall, 1.0)));
    let outcome = pod.job("long", &with(with(probe(&["sleep", "60"]), "timeout_s", json!(50)), "grace_s", json!(1)));
    outcome.is("final", "TimedOut");
    assert_eq!(outcome.report.limit.as_ref().map(|l| (l.which, l.limit)), Some((Which::Wall, 2.0)));
    pod.job("short", &probe(&["hello"])).is_good();
}

#[test]
fn maxima_of_a_run_hold_beside_a_watcher_that_serves_already() {
    let pod = Options::new().start();
    pod.job("first", &probe(&["hello"])).is_good();
    let pilot = pod.container("pilot");
    let run = ["watcher", "run", "--max-wall", "1", "--grace", "1", NOSHELL, "--", "/probe", "sleep", "60"];
    let ran = host(&[&["podman", "--", "exec", pilot.as_str()], run.as_slice()].concat()).output().unwrap();
    assert_eq!(ran.status.code(), Some(124), "{ran:?}");
}

#[test]
fn the_containers_memory_is_not_used_up_before_the_watcher_acts() {
    let pod = Options::new().host(&["--memory", "256m"]).start();
    // Grows slowly towards the end, and ignores TERM: without the watcher, the kernel would choose what it ends.
    let script = "trap '' TERM; /probe memory 200 60 & while :; do /probe memory 1 60 & sleep 0.5; done";
    let outcome = pod.job("grows", &with(shell(script), "grace_s", json!(30)));
    if outcome.report.limits.memory.is_none() {
        panic!("the container's memory limit could not be read: {:#?}", outcome.report);
    }
    // The container's memory, not a limit that somebody named: as if the kernel had ended it.
    outcome.is("hold", "OutOfMemory");
    let crossed =
        outcome.report.limit.as_ref().unwrap_or_else(|| panic!("the kernel was first: {:#?}", outcome.report));
    assert_eq!((crossed.which, outcome.report.verified), (Which::Memory, true), "{:#?}", outcome.report);
    assert!(crossed.value > crossed.limit && crossed.value < f64::from(256 << 20), "{crossed:?}");
    let killed = outcome.report.cgroup.and_then(|c| c.oom_kills);
    assert_eq!(killed.unwrap_or(0), 0, "the kernel was first: {:#?}", outcome.report);
    pod.job("after", &probe(&["hello"])).is_good();
}

#[test]
fn outputs_that_are_too_large_are_named_and_not_fetched() {
    let pod = Pod::start();
    let job = shell("dd if=/dev/zero of=big bs=1M count=3 2>/dev/null; echo x >small");
    let job = with(with(job, "outputs", json!(["small", "big"])), "limits", json!({"output": "1M"}));
    let outcome = pod.job("big", &job);
    has_crossed(&outcome, Which::Output);
    assert_eq!(outcome.report.outputs, ["small"]);
    assert!(outcome.report.missing_outputs[0].starts_with("big: "), "{:?}", outcome.report.missing_outputs);
    assert!(!outcome.dir.join("result/outputs/big").exists());
}

#[test]
fn a_report_says_what_the_job_used() {
    let pod = Pod::start();
    let script = "dd if=/dev/zero of=a bs=1M count=30 2>/dev/null; /probe memory 50 600 & /probe cpu 1";
    pod.put("uses", &shell(&format!("{script}; {WAIT_FOR_GO}; kill $!")));
    // It lasts until all of it has been sampled, and more than once.
    let mut samples = Vec::new();
    eventually("three samples, the last one of all that it uses", 2 * JOB_WITHIN, || {
        let usage = pod.top()?["slots"][0]["live"]["usage"].take();
        if usage.is_object() && samples.last() != Some(&usage) {
            samples.push(usage.clone());
        }
        let has = |field: &str, least: u64| usage[field].as_f64().is_some_and(|n| n >= least as f64);
        let is_whole = has("cpu_s", 1) && has("rss", 50 << 20) && has("processes", 3) && has("disk", 30 << 20);
        (is_whole && samples.len() >= 3).then_some(())
    });
    pod.go(0);
    let outcome = pod.result("uses");
    let report = &outcome.is_good().report;
    let usage = report.usage.as_ref().unwrap_or_else(|| panic!("no usage in {report:#?}"));
    let peak = usage.peak;
    assert!(peak.cpu_s >= 1.0, "{peak:?}");
    assert!((50 << 20..400 << 20).contains(&peak.rss), "{peak:?}");
    assert!(peak.memory() > 50 << 20 && peak.pss.is_some_and(|pss| pss > 50 << 20 && pss <= peak.rss), "{peak:?}");
    assert!(peak.processes >= 3 && peak.threads >= peak.processes, "{peak:?}");
    assert!(peak.disk.is_some_and(|disk| disk >= 30 << 20), "{peak:?}");
    assert!(peak.files.is_some_and(|files| files >= 6), "{peak:?}");
    assert!(peak.written_bytes.is_some(), "{peak:?}");
    assert!(usage.samples >= 3 && usage.series.rows().len() as u64 == usage.samples, "{usage:?}");
    let phases: Vec<String> = report.phases.iter().map(|b| format!("{:?}", b.phase)).collect();
    assert_eq!(phases, ["Staging", "Binding", "Starting", "Running", "Collecting", "Cleaning", "Done"]);
}
