//! Signals, stop and continue reach all of a payload and nothing else.

use std::fs;

use latebind_tests::pod::{JOB_WITHIN, Options, Pod, eventually, podman, probe, shell};
use latebind_tests::processes::{Process, cgroup, in_cgroup};

/// `watcher ARGS` in the pilot container: whether it went well, and what it said.
fn watcher(pod: &Pod, arguments: &[&str]) -> (bool, String) {
    let name = pod.container("pilot");
    let output = podman(&[&["exec", &name, "/usr/bin/watcher"], arguments].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// The payload's processes in the slot's container.
fn payload(pod: &Pod, slot: u32) -> Vec<Process> {
    let group = cgroup(pod.main_process(&pod.payload_role(slot))).expect("the payload container's cgroup");
    in_cgroup(&group).into_iter().filter(Process::is_payload).collect()
}

#[test]
fn a_payload_is_stopped_as_a_whole_and_goes_on() {
    let pod = Options::new().slots(2).start();
    let script = "/probe daemons 3; for n in 1 2 3; do (while :; do sleep 0.02; done) & done; \
        while [ ! -e /tmp/end ]; do sleep 0.05; done; echo over; kill 0";
    pod.put("stopped", &shell(script));
    pod.put("other", &shell("while :; do sleep 0.02; echo >>beats; done"));
    pod.runs("stopped.1", pod_slot(&pod, "stopped.1"));
    pod.runs("other.1", pod_slot(&pod, "other.1"));
    let (ours, others) = (pod_slot(&pod, "stopped.1"), pod_slot(&pod, "other.1"));
    eventually("all processes", JOB_WITHIN, || (payload(&pod, ours).len() >= 7).then_some(()));

    let (good, said) = watcher(&pod, &["stop", "stopped"]);
    assert!(good && said.contains("stopped.1: sent to "), "{said}");
    let stopped = payload(&pod, ours);
    assert!(stopped.len() >= 6 && stopped.iter().all(|p| p.state == 'T'), "{stopped:#?}");
    goes_on(&pod, others);
    assert_eq!(payload(&pod, ours), stopped, "they are still the same and stopped");

    let (good, said) = watcher(&pod, &["continue", "stopped"]);
    assert!(good, "{said}");
    assert!(payload(&pod, ours).iter().all(|p| p.state != 'T'));
    let (good, _) = watcher(&pod, &["signal", "other", "KILL"]);
    assert!(good);
    pod.result("other").is("final", "Signaled");
    assert_eq!(pod.phase("stopped.1").as_deref(), Some("running"), "the signal was the other job's");
    let (good, _) = watcher(&pod, &["signal", "stopped", "TERM"]);
    assert!(good);
    pod.result("stopped").is("final", "Signaled");
}

/// Waits until the job in this slot, which writes a line to `beats` every 20 ms, has written 15 more.
fn goes_on(pod: &Pod, slot: u32) {
    let beats = || fs::read(pod.work(slot).join("beats")).map_or(0, |lines| lines.len());
    let before = beats();
    eventually("the other slot goes on", JOB_WITHIN, || (beats() >= before + 15).then_some(()));
}

fn pod_slot(pod: &Pod, attempt: &str) -> u32 {
    pod.reaches(attempt, "running");
    let state = pod.kept_state(attempt).expect("the job's state");
    state["slot"].as_u64().and_then(|n| u32::try_from(n).ok()).expect("its slot")
}

#[test]
fn a_fork_bomb_is_stopped_at_once() {
    let pod = Options::new().slots(2).start();
    // Some 300 at once, since a shell that cannot fork ends itself; 20 where a machine forks five times a second.
    pod.put("bomb", &shell("for n in 1 2 3; do (while :; do sleep 4 & sleep 0.04; done) & done; wait"));
    pod.put("other", &shell("while :; do sleep 0.02; echo >>beats; done"));
    let (ours, others) = (pod_slot(&pod, "bomb.1"), pod_slot(&pod, "other.1"));
    eventually("it forks", JOB_WITHIN, || (payload(&pod, ours).len() > 20).then_some(()));
    let (good, said) = watcher(&pod, &["stop", "bomb"]);
    assert!(good, "{said}");
    let before = payload(&pod, ours);
    assert!(!before.is_empty() && before.iter().all(|p| p.state == 'T'), "{}", before.len());
    goes_on(&pod, others);
    assert_eq!(payload(&pod, ours).len(), before.len(), "nothing is forked while it is stopped");
    // A stopped job can be ended all the same.
    let (good, said) = watcher(&pod, &["signal", "bomb", "9"]);
    assert!(good, "{said}");
    pod.result("bomb").is("final", "Signaled");
    pod.job("after", &probe(&["hello"])).is_good();
}

#[test]
fn a_signal_for_the_main_process_goes_to_it_alone() {
    let pod = Pod::start();
    pod.put(
        "main",
        &shell(
            "trap 'echo got; exit 7' USR1; (trap 'echo child; exit' USR1; while :; do sleep 0.05; done) & \
        echo ready >ready; while :; do sleep 0.05; done",
        ),
    );
    pod.runs("main.1", 0);
    eventually("the traps", JOB_WITHIN, || pod.work(0).join("ready").exists().then_some(()));
    let (good, said) = watcher(&pod, &["signal", "--main", "main", "USR1"]);
    assert!(good, "{said}");
    let outcome = pod.result("main");
    assert_eq!((outcome.report.exit_code, outcome.text("stdout").as_str()), (Some(7), "got\n"));
}

#[test]
fn what_cannot_be_steered_is_said() {
    let pod = Pod::start();
    pod.serves();
    for (arguments, why) in [
        (&["stop", "nobody"][..], "there is no job \"nobody\""),
        (&["signal", "nobody", "SIGWHAT"][..], "there is no signal \"SIGWHAT\""),
    ] {
        let (good, said) = watcher(&pod, arguments);
        assert!(!good && said.contains(why), "{arguments:?}: {said}");
    }
}
