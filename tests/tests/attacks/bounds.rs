//! What others can make us hold or do: reports, outputs, entries, copies, time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use latebind_tests::pod::{BUSYBOX, JOB_WITHIN, Options, Outcome, Pod, Signal, eventually, kill, probe, shell, with};
use serde_json::{Value, json};
use watcher::job::limits::Which;

/// Longest report, whatever the job does.
const REPORT_MAX: u64 = 256 << 10;

/// More memory than a watcher needs, and less than what one would need that holds what the payload can make: KiB.
const WATCHER_MAX_KIB: u64 = 64 << 10;

fn report_size(outcome: &Outcome) -> u64 {
    fs::metadata(outcome.dir.join("result/report.json")).unwrap().len()
}

/// The largest resident set that the pilot's process has had.
fn peak_memory_kib(pilot: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pilot}/status")).unwrap();
    assert!(status.starts_with("Name:\twatcher"), "{status}");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn outputs(job: Value, outputs: &[&str]) -> Value {
    with(job, "outputs", json!(outputs))
}

#[test]
fn an_output_that_is_named_many_times_is_fetched_once() {
    let pod = Pod::start();
    pod.serves();
    let pilot = pod.main_process("pilot");
    // Each FIFO is something that cannot be fetched, with a long name.
    let outcome = pod.job("fifos", &outputs(probe(&["fifos", "d", "300"]), &["d"; 700]));
    let report = &outcome.is_good().report;
    assert_eq!((report.missing_outputs.len(), report.missing_left_out), (100, 200));
    assert_eq!(report.outputs, ["d"]);
    assert!(report_size(&outcome) < REPORT_MAX, "{}", report_size(&outcome));
    let names = outputs(shell("mkdir d; echo x >d/f"), &["d", "d/f", "d", "d/f", "e"]);
    let outcome = pod.job("nested", &names);
    assert_eq!(outcome.is_good().report.outputs, ["d", "d/f"]);
    assert_eq!(outcome.report.missing_outputs.len(), 1, "{:?}", outcome.report.missing_outputs);
    assert_eq!(outcome.text("outputs/d/f"), "x\n");
    pod.job("many", &outputs(shell("true"), &["d"; 1_001])).is("hold", "InvalidJob");
    assert_eq!(pod.main_process("pilot"), pilot, "the pilot was ended:\n{}", pod.said());
}

#[test]
fn a_sparse_output_is_refused_by_its_size_and_fetched_without_its_holes() {
    let pod = Pod::start();
    let script = "/probe sparse large 1099511627776; /probe sparse small 1073741824; echo end >>small";
    let job = with(outputs(shell(script), &["large"; 40]), "limits", json!({"output": "200M"}));
    let outcome = pod.job("large", &job);
    outcome.is("final", "LimitExceeded");
    assert_eq!(outcome.report.limit.as_ref().map(|l| l.which), Some(Which::Output));
    assert_eq!(outcome.report.missing_outputs.len(), 1, "{:?}", outcome.report.missing_outputs);
    assert!(outcome.report.missing_outputs[0].contains("1099511627776 bytes"), "{:?}", outcome.report.missing_outputs);
    let outcome = pod.job("small", &outputs(shell(script), &["small"]));
    let file = fs::metadata(outcome.is_good().dir.join("result/outputs/small")).unwrap();
    assert_eq!(file.len(), (1 << 30) + 4);
    assert!(file.blocks() * 512 < 4 << 20, "{} blocks", file.blocks());
}

#[test]
fn sparse_inputs_stay_sparse() {
    let pod = Pod::start();
    let dir = pod.spool.join(".sparse");
    fs::create_dir_all(dir.join("inputs")).unwrap();
    fs::write(dir.join("job.json"), shell("stat -c '%s %b' s").to_string()).unwrap();
    fs::File::create(dir.join("inputs/s")).unwrap().set_len(8 << 30).unwrap();
    fs::rename(dir, pod.spool.join("new/sparse")).unwrap();
    let outcome = pod.result("sparse");
    let said = outcome.is_good().text("stdout");
    let blocks = said.strip_prefix("8589934592 ").and_then(|blocks| blocks.trim().parse::<u64>().ok());
    assert!(blocks.is_some_and(|blocks| blocks < 8_192), "{said}");
}

#[test]
fn any_number_of_names_is_removed_within_little_memory() {
    let pod = Pod::start();
    pod.serves();
    let pilot = pod.main_process("pilot");
    // 255 bytes each: a list of them would be larger than the watcher may be.
    pod.job("links", &probe(&["links", "d", "200000"])).is_good();
    let next = pod.job("next", &shell("ls -A"));
    assert_eq!(next.is_good().text("stdout"), "");
    assert_eq!(pod.main_process("pilot"), pilot, "the pilot was ended:\n{}", pod.said());
    let peak = peak_memory_kib(pilot);
    assert!(peak < WATCHER_MAX_KIB, "{peak} KiB");
}

#[test]
fn the_disk_limit_sees_whatever_names_and_depth_hide() {
    let pod = Pod::start();
    for how in ["name", "depth", "levels"] {
        let script = format!("/probe hide {how} 40 && sleep 600");
        let job = with(with(shell(&script), "limits", json!({"disk": "10M"})), "grace_s", json!(0));
        let outcome = pod.job(how, &job);
        outcome.is("final", "LimitExceeded");
        assert_eq!(outcome.report.limit.as_ref().map(|l| l.which), Some(Which::Disk), "{how}: {:#?}", outcome.report);
    }
    // Names do not make a file larger.
    let script = "head -c 6000000 /dev/zero >f; for n in 1 2 3 4 5 6 7 8 9; do ln f f$n; done; sleep 6";
    pod.job("names", &with(shell(script), "limits", json!({"disk": "10M"}))).is_good();
}

#[test]
fn a_jobs_grace_is_no_longer_than_the_pilots_maximum() {
    let pod = Options::new().pilot(&["--max-wall", "1", "--max-grace", "1", "--max-kill", "5"]).start();
    let stubborn = "trap '' TERM; while :; do sleep 1; done";
    let patient = |job: Value| with(with(job, "grace_s", json!(86_400)), "kill_s", json!(600));
    let outcome = pod.job("wall", &patient(shell(stubborn)));
    outcome.is("final", "TimedOut");
    assert_eq!(outcome.report.signal, Some(9), "{:#?}", outcome.report);
    let pod = Options::new().pilot(&["--max-grace", "1"]).start();
    let outcome = pod.job("limit", &with(patient(shell(stubborn)), "limits", json!({"processes": 0})));
    outcome.is("final", "LimitExceeded");
    assert_eq!(outcome.report.signal, Some(9), "{:#?}", outcome.report);
    // An operator who sets no maximum for it has one: a program that would end by itself 30 s later does not come so
    // far.
    let pod = Options::new().pilot(&["--max-wall", "1"]).start();
    let outcome = pod.job("default", &patient(shell("trap '' TERM; for i in $(seq 30); do sleep 1; done")));
    outcome.is("final", "TimedOut");
    assert_eq!(outcome.report.signal, Some(9), "{:#?}", outcome.report);
}

#[test]
fn copying_ends_with_its_time_and_says_so() {
    let pod = Options::new().pilot(&["--copy-within", "0", "--max-attempts", "1"]).start();
    let outcome = pod.job("outputs", &outputs(shell("echo said; mkdir d; echo x >d/f"), &["d"]));
    let report = &outcome.is_good().report;
    assert!(report.outputs.is_empty() && !report.missing_outputs.is_empty(), "{report:#?}");
    assert!(report.missing_outputs.iter().all(|m| m.contains("not done within 0 s")), "{:?}", report.missing_outputs);
    pod.put_with("inputs", &shell("cat f"), &[("inputs/f", b"x")]);
    pod.result("inputs").is("retry", "StagingError");
    pod.job("next", &shell("ls -A")).is_good();
}

#[test]
fn a_result_does_not_wait_for_a_slot_that_cannot_be_cleaned() {
    let pod = Pod::start();
    pod.put("leaves", &shell("touch kept; while [ ! -e go ]; do sleep 0.1; done"));
    pod.runs("leaves.1", 0);
    let kept = pod.work(0).join("kept");
    eventually("the file", JOB_WITHIN, || kept.exists().then_some(()));
    // Only an administrator of the node can do so.
    let held = fs::File::open(&kept).unwrap();
    let chattr = |flag: &str| {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        let done = std::process::Command::new("chattr").arg(flag).arg(fs::read_link(path).unwrap()).status().unwrap();
        assert!(done.success(), "chattr {flag}");
    };
    chattr("+i");
    fs::write(pod.work(0).join("go"), "").unwrap();
    pod.result("leaves").is_good();
    pod.put("next", &shell("ls -A"));
    eventually("the slot takes no job", JOB_WITHIN, || pod.said().contains("no job yet").then_some(()));
    assert!(pod.spool.join("new/next").exists(), "{}", pod.said());
    chattr("-i");
    assert_eq!(pod.result("next").is_good().text("stdout"), "");
}

#[test]
fn a_state_that_is_too_large_does_not_end_each_next_watcher() {
    let pod = Options::new().host(&["--restarts", "30"]).start();
    pod.job("before", &probe(&["hello"])).is_good();
    let state = pod.private().join("jobs/large.json");
    fs::File::create(&state).unwrap().set_len(1 << 40).unwrap();
    kill(pod.main_process("pilot"), Signal::SIGKILL);
    eventually("it is set aside", JOB_WITHIN, || state.with_extension("unreadable").exists().then_some(()));
    pod.job("after", &probe(&["hello"])).is_good();
}

#[test]
fn what_is_said_of_a_job_is_bounded() {
    let pod = Pod::start();
    let long = "x".repeat(200_000);
    let outcome =
        pod.job("cwd", &json!({"image": BUSYBOX, "argv": ["/bin/sh"], "cwd": format!("/{long}"), "outputs": [long]}));
    assert_eq!(outcome.place, "held", "{:#?}", outcome.report);
    assert!(outcome.report.message.len() <= 4 << 10 && report_size(&outcome) < REPORT_MAX, "{}", report_size(&outcome));
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn a_job_that_is_not_wanted_is_not_fetched_for_longer_than_its_grace() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    // The pilot ends while that goes on.
    pod.put("large", &with(outputs(probe(&["directories", "d", "30000"]), &["d"]), "grace_s", json!(0)));
    pod.reaches("large.1", "collecting");
    kill(pod.main_process("pilot"), Signal::SIGTERM);
    let outcome = pod.result_within("large", Duration::from_secs(120));
    outcome.is("retry", "Cancelled");
    assert!(outcome.report.message.contains("not all of its outputs"), "{}", outcome.report.message);
}
