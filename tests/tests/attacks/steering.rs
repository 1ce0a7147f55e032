//! Cancel, stop, signals and limits hold in each phase of a job, also while its start hangs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use latebind_tests::pod::{BUSYBOX, Options, Outcome, Pod, Signal, eventually, podman, probe, program};
use latebind_tests::processes::{Process, cgroup, in_cgroup};
use serde_json::{Value, json};

/// A script that says that it ran, at a place where it can be seen after the slot was cleaned.
const SCRIPT: &[u8] = b"#!/bin/sh\necho ran >/tmp/ran\necho ran\n";

/// Keeps whoever executes `work/hung` waiting, as a file system does that does not answer. The kernel ends that after
/// 45 s: a program that was not ended runs then, and says so.
struct Hung(Child);

impl Hung {
    /// Holds the file as soon as the pilot has put it there.
    fn hold(pod: &Pod) -> Self {
        let path = pod.work(0).join("hung");
        let mut probe = Command::new(program("probe"));
        probe.arg("lease").arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(probe.spawn().unwrap())
    }

    /// Waits until it is held.
    fn is_held(&mut self, pod: &Pod) {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("leased"), "{line}");
        fs::set_permissions(pod.work(0).join("hung"), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// `watcher ARGS` in the pilot container: whether it went well, and what it said.
fn watcher(pod: &Pod, arguments: &[&str]) -> (bool, String) {
    let name = pod.container("pilot");
    // It has an answer in seconds, whatever the job does.
    let command = ["exec", &name, "timeout", "20", "/usr/bin/watcher"];
    let output = podman(&[&command, arguments].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// The payload's processes in the slot's container.
fn payload(pod: &Pod) -> Vec<Process> {
    let group = cgroup(pod.main_process(&pod.payload_role(0))).expect("the payload container's cgroup");
    in_cgroup(&group).into_iter().filter(Process::is_payload).collect()
}

/// A pod in which the job `hung` has a start that hangs in its exec.
fn hangs(more: Value) -> (Pod, Hung) {
    let pod = Options::new().pilot(&["--max-attempts", "1", "--max-grace", "3600"]).start();
    pod.serves();
    let mut hung = Hung::hold(&pod);
    let mut job = json!({"image": BUSYBOX, "argv": ["./hung"]});
    job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    pod.put_with("hung", &job, &[("inputs/hung", SCRIPT)]);
    hung.is_held(&pod);
    pod.reaches("hung.1", "running");
    eventually("the process whose exec hangs", Duration::from_secs(20), || (payload(&pod).len() == 1).then_some(()));
    (pod, hung)
}

/// The job was ended for this reason, and its program never ran; the slot serves the next job.
fn is_ended(pod: &Pod, class: &str, reason: &str) -> Outcome {
    let outcome = pod.result("hung");
    outcome.is(class, reason);
    assert!(outcome.report.verified, "{:#?}", outcome.report);
    let record = outcome.report.record.as_ref().unwrap();
    assert!(record.started_at.is_none() && record.exit_code.is_none() && record.processes.unkilled == 0, "{record:#?}");
    assert_eq!(outcome.text("stdout"), "");
    pod.job("next", &probe(&["hello"])).is_good();
    outcome
}

#[test]
fn a_hanging_start_is_ended_by_a_signal() {
    for signal in ["TERM", "KILL"] {
        let (pod, _hung) = hangs(json!({}));
        let (good, said) = watcher(&pod, &["signal", "hung", signal]);
        assert!(good, "{signal}: {said}");
        is_ended(&pod, "retry", "Cancelled");
    }
}

#[test]
fn a_signal_for_its_main_process_alone_ends_a_hanging_start() {
    let (pod, _hung) = hangs(json!({"grace_s": 3600}));
    let (good, said) = watcher(&pod, &["signal", "--main", "hung", "TERM"]);
    assert!(good, "{said}");
    is_ended(&pod, "retry", "Cancelled");
}

#[test]
fn a_hanging_start_is_stopped_and_continued() {
    let (pod, hung) = hangs(json!({}));
    let (good, said) = watcher(&pod, &["stop", "hung"]);
    assert!(good && said.contains("sent to 1 "), "{said}");
    assert!(payload(&pod).iter().all(|p| p.state == 'T'), "{:#?}", payload(&pod));
    let (good, said) = watcher(&pod, &["continue", "hung"]);
    assert!(good, "{said}");
    drop(hung);
    let outcome = pod.result("hung");
    assert_eq!(outcome.is_good().text("stdout"), "ran\n", "it goes on where it was");
}

#[test]
fn a_hanging_start_is_ended_by_the_wall_limit() {
    let (pod, _hung) = hangs(json!({"timeout_s": 3, "grace_s": 3600}));
    is_ended(&pod, "retry", "NotStarted");
}

#[test]
fn a_hanging_start_is_ended_by_the_other_limits() {
    let pod = Options::new().pilot(&["--max-attempts", "1", "--max-grace", "3600"]).start();
    pod.serves();
    let mut hung = Hung::hold(&pod);
    let job = json!({"image": BUSYBOX, "argv": ["./hung"], "grace_s": 3600, "limits": {"disk": "1M"}});
    pod.put_with("hung", &job, &[("inputs/hung", SCRIPT), ("inputs/large", &[7; 3 << 20])]);
    hung.is_held(&pod);
    is_ended(&pod, "final", "LimitExceeded");
}

#[test]
fn a_hanging_start_ends_with_the_pod() {
    let (mut pod, _hung) = hangs(json!({"grace_s": 3600}));
    pod.signal(Signal::SIGTERM);
    let status = pod.end(Duration::from_secs(40));
    assert!(status.success(), "{status}: {}", pod.said());
}

#[test]
fn what_was_held_runs_where_nothing_ends_it() {
    // Else the tests above would show nothing.
    let (pod, hung) = hangs(json!({}));
    drop(hung);
    let outcome = pod.result("hung");
    assert_eq!(outcome.is_good().text("stdout"), "ran\n");
}
