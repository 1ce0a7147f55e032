//! Jobs that are pilots themselves, on real containers: they run their own jobs, each in an image of its own, in the
//! slot that theirs serves. What a hostile one tries is in `attacks/pilot_jobs.rs`.

use std::process::{Command, Stdio};

use latebind_tests::pod::{
    BUSYBOX, JOB_WITHIN, Options, Pod, Running, Signal, eventually, host, kill, probe, shell, with,
};
use latebind_tests::slot::WAIT_FOR_GO;
use serde_json::{Value, json};
use watcher::job::Report;

/// The slot for pilot-jobs of a pod with one other slot.
const SLOT: u32 = 1;

/// A pod with one slot for jobs, and one for pilot-jobs that serves it.
fn pod() -> Pod {
    Options::new().host(&["--pilot-jobs", "1"]).start()
}

/// A pilot-job: a script in an image with the watcher's program and a shell. `run` is the client.
fn pilot_job(script: &str) -> Value {
    let script = format!("run() {{ watcher run --socket /run/latebind/clients.sock \"$@\"; }}; {script}");
    json!({"image": "localhost/latebind/pilot:1", "argv": ["/bin/sh", "-c", script], "pilot_job": true})
}

/// A command in the pilot container, as root.
fn in_pilot(pod: &Pod, words: &[&str]) -> Command {
    let mut command = host(&["podman", "--", "exec", &pod.container("pilot")]);
    command.args(words);
    command
}

#[test]
fn a_pilot_job_runs_three_jobs_in_three_images_with_verified_records() {
    let pod = pod();
    let script = "id -u
        run --report 1.json localhost/latebind/busybox:1 -- sh -c 'id -u; echo one; exit 3' >1.out; echo $?
        echo two | run -i --report 2.json localhost/latebind/debian:1 -- cat - /etc/debian_version >2.out; echo $?
        run --report 3.json localhost/latebind/noshell:1 -- /probe hello >3.out; echo $?
        run --report 4.json localhost/latebind/no-such-image:1 -- true; echo $?";
    let job = with(pilot_job(script), "outputs", json!(["*.json", "*.out"]));
    let outer = pod.job("outer", &job);
    outer.is_good();
    assert_eq!(outer.report.slot, Some(SLOT));
    assert_eq!(outer.text("stdout"), format!("{}\n3\n0\n0\n125\n", pod.uid(SLOT)), "{}", outer.text("stderr"));
    let reports: Vec<Report> =
        (1..=4).map(|n| serde_json::from_str(&outer.text(&format!("outputs/{n}.json"))).unwrap()).collect();
    for (report, code) in reports.iter().zip([3, 0, 0]) {
        assert!(report.verified && report.slot == Some(0) && report.exit_code == Some(code), "{report:#?}");
    }
    let mut containers: Vec<&str> = reports[..3].iter().map(|r| r.container.as_ref().unwrap().id.as_str()).collect();
    containers.push(outer.container());
    containers.sort_unstable();
    containers.dedup();
    assert_eq!(containers.len(), 4, "each in a container of its own");
    assert_eq!((reports[3].class.name(), reports[3].reason.as_str()), ("hold", "ImageNotFound"));
    assert_eq!(outer.text("outputs/1.out"), format!("{}\none\n", pod.uid(0)));
    assert!(outer.text("outputs/2.out").starts_with("two\n12."));
    assert!(outer.text("outputs/3.out").contains("from a static program"));
    // And the slot is everybody's again.
    assert_eq!(pod.job("next", &shell("ls -A; ps -o args | grep -c '[w]atcher run'")).report.slot, Some(0));
    assert_eq!(pod.job("after", &shell("ls -A")).is_good().text("stdout"), "");
}

#[test]
fn files_go_through_the_streams_of_its_jobs() {
    let script = format!(
        "mkdir inputs; echo in >inputs/a; \
         tar c inputs | run -i {BUSYBOX} -- sh -c 'tar x; cat inputs/a >out; id -u >>out; tar c out' | tar x; cat out"
    );
    let pod = pod();
    let outer = pod.job("outer", &pilot_job(&script));
    assert_eq!(outer.is_good().text("stdout"), format!("in\n{}\n", pod.uid(0)), "{}", outer.text("stderr"));
}

#[test]
fn while_a_pilot_job_runs_its_slot_is_its_own() {
    let pod = pod();
    pod.serves();
    pod.put("outer", &pilot_job(&format!("{WAIT_FOR_GO}; run {BUSYBOX} -- echo inner")));
    pod.runs("outer.1", SLOT);
    let words = ["watcher", "run", "--name", "other", BUSYBOX, "--", "echo", "other"];
    let other = Running::start(&mut in_pilot(&pod, &words), Vec::new());
    let listed = || String::from_utf8(in_pilot(&pod, &["watcher", "jobs"]).output().unwrap().stdout).unwrap();
    eventually("it is queued", JOB_WITHIN, || listed().contains("other\tqueued").then_some(()));
    pod.go(SLOT);
    // Its own job comes first, though it was submitted later.
    assert_eq!(pod.result("outer").is_good().text("stdout"), "inner\n");
    assert_eq!(other.finish(JOB_WITHIN).out(), "other\n");
}

#[test]
fn pilot_jobs_and_others_take_turns() {
    let pod = pod();
    for n in 0..4 {
        let job =
            if n % 2 == 0 { pilot_job(&format!("run {BUSYBOX} -- echo {n}")) } else { shell(&format!("echo {n}")) };
        pod.put(&format!("job-{n}"), &job);
    }
    for n in 0..4 {
        let outcome = pod.result(&format!("job-{n}"));
        assert_eq!(outcome.is_good().text("stdout"), format!("{n}\n"));
        assert_eq!(outcome.report.slot, Some(if n % 2 == 0 { SLOT } else { 0 }));
    }
}

#[test]
fn a_pod_without_such_a_slot_holds_pilot_jobs() {
    let pod = Pod::start();
    let outcome = pod.job("outer", &pilot_job("true"));
    outcome.is("hold", "InvalidJob");
    assert!(outcome.report.message.contains("no container for jobs that are pilots"), "{}", outcome.report.message);
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn a_pilot_job_outlives_the_watcher_and_finds_the_next_one() {
    let pod = pod();
    pod.serves();
    // The job that runs when the watcher is killed is ended; the next one is for the next watcher.
    let script = format!(
        "run {BUSYBOX} -- sh -c 'touch up; sleep 1000'; echo first $?; \
         until run {BUSYBOX} -- echo second; do sleep 0.2; done"
    );
    pod.put("outer", &pilot_job(&script));
    pod.runs("outer.1", SLOT);
    eventually("its job runs", JOB_WITHIN, || pod.work(0).join("up").exists().then_some(()));
    kill(pod.main_process("pilot"), Signal::SIGKILL);
    let outer = pod.result_within("outer", 2 * JOB_WITHIN);
    assert_eq!(outer.is_good().text("stdout"), "first 125\nsecond\n");
    assert_eq!(outer.report.attempt, 1);
}

#[test]
fn root_runs_a_pilot_job_from_the_pilot_container() {
    let pod = pod();
    pod.serves();
    let script = format!("watcher run --socket /run/latebind/clients.sock {BUSYBOX} -- echo inner");
    let words = ["watcher", "run", "--pilot-job", "localhost/latebind/pilot:1", "--", "sh", "-c", &script];
    let ran = in_pilot(&pod, &words).stdin(Stdio::null()).output().unwrap();
    assert_eq!((ran.status.code(), String::from_utf8_lossy(&ran.stdout).as_ref()), (Some(0), "inner\n"), "{ran:?}");
}
