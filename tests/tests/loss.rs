//! What is lost is said at once, with the right class, and never as success: SIGKILL of glue, of the payload container,
//! of the job, in each phase; and the slot serves the next job.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use latebind_tests::pod::{JOB_WITHIN, Options, Pod, Signal, eventually, kill, look_into, podman, probe, shell, with};
use latebind_tests::slot::WAIT_FOR_GO;
use serde_json::{Value, json};
use watcher::bind::Class;
use watcher::job::Report;

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

fn is_lost(report: &Report) {
    assert_eq!(report.class, Class::Retry, "{report:#?}");
    assert!(["GlueLost", "ContainerLost"].contains(&report.reason.as_str()), "{report:#?}");
    assert!(!report.verified && report.record.is_none() && report.exit_code.is_none() && report.signal.is_none());
    assert!(!report.message.is_empty());
}

/// Runs a long job, loses it by `lose`, and checks what is said of it.
fn lose_while_running(lose: impl FnOnce(&Pod)) {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    pod.put("lost", &shell("/probe daemons 3; sleep 60"));
    let job = pod.runs("lost.1", 0);
    lose(&pod);
    let outcome = pod.result("lost");
    is_lost(&outcome.report);
    assert_eq!(outcome.place, "held", "it had its only attempt");
    assert!(!lives(job), "what the lost job has left still runs");
    pod.job("next", &shell("ps -o user,args | grep -c '[p]robe daemons' || true")).is_good();
    assert_eq!(look_into(&pod.spool, "next").unwrap().text("stdout"), "0\n", "daemons of the lost job are left");
}

#[test]
fn glue_killed_while_the_job_runs() {
    lose_while_running(|pod| kill(pod.main_process(&pod.payload_role(0)), Signal::SIGKILL));
}

#[test]
fn the_payload_container_killed_while_the_job_runs() {
    lose_while_running(|pod| {
        let killed = podman(&["kill", "--signal", "KILL", &pod.container(&pod.payload_role(0))]);
        assert!(killed.status.success(), "{}", String::from_utf8_lossy(&killed.stderr));
    });
}

#[test]
fn the_payload_container_removed_while_the_job_runs() {
    lose_while_running(|pod| {
        let removed = podman(&["rm", "--force", "--time", "0", &pod.container(&pod.payload_role(0))]);
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    });
}

#[test]
fn the_pilot_container_removed_while_the_job_runs() {
    let pod = Pod::start();
    pod.put("goes-on", &shell(&format!("echo ran; {WAIT_FOR_GO}")));
    pod.runs("goes-on.1", 0);
    let removed = podman(&["rm", "--force", "--time", "0", &pod.container("pilot")]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    pod.go(0);
    let outcome = pod.result("goes-on");
    assert_eq!((outcome.is_good().report.attempt, outcome.text("stdout").as_str()), (1, "ran\n"));
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn a_container_that_is_told_to_stop_says_so_in_its_record() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    pod.put("drained", &with(probe(&["sleep", "60"]), "grace_s", json!(0.2)));
    pod.runs("drained.1", 0);
    kill(pod.main_process(&pod.payload_role(0)), Signal::SIGTERM);
    let outcome = pod.result("drained");
    outcome.is("retry", "Stopped");
    assert!(outcome.report.verified && outcome.report.exit_code.is_none(), "{:#?}", outcome.report);
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn the_job_itself_killed_is_the_jobs_result() {
    let pod = Pod::start();
    pod.put("killed", &probe(&["sleep", "60"]));
    let job = pod.runs("killed.1", 0);
    kill(job, Signal::SIGKILL);
    let outcome = pod.result("killed");
    outcome.is("final", "Signaled");
    assert_eq!((outcome.report.signal, outcome.report.verified, outcome.place), (Some(9), true, "done"));
}

#[test]
fn glue_killed_while_idle_costs_no_job() {
    let pod = Pod::start();
    pod.serves();
    let first = pod.main_process(&pod.payload_role(0));
    kill(first, Signal::SIGKILL);
    eventually("glue is gone", JOB_WITHIN, || (!lives(first)).then_some(()));
    let outcome = pod.job("after", &probe(&["hello"]));
    outcome.is_good();
    assert_eq!(outcome.report.attempt, 1);
    // The slot is back at the placeholder.
    eventually("the placeholder", JOB_WITHIN, || pod.said().contains("the placeholder").then_some(()));
    pod.job("and-after", &probe(&["hello"])).is_good();
}

#[test]
fn glue_killed_while_the_inputs_are_staged_costs_no_job() {
    let pod = Pod::start();
    pod.serves();
    let big = vec![7u8; 150 << 20];
    pod.put_with("staged", &shell("wc -c <big"), &[("inputs/big", &big)]);
    // Inputs are staged while the image is bound: it is the old container that is hit, or the new one already.
    pod.reaches("staged.1", "binding");
    kill(pod.main_process(&pod.payload_role(0)), Signal::SIGKILL);
    let was = pod.phase("staged.1");
    let outcome = pod.result("staged");
    assert_eq!(outcome.is_good().text("stdout").trim(), "157286400", "hit in {was:?}");
    if outcome.report.attempt != 1 {
        assert_eq!((outcome.report.attempt, pod.attempt("staged", 1).class), (2, Class::Retry), "hit in {was:?}");
    }
}

/// The pidfile of the container that is being bound appears before its glue is ready.
fn kill_the_next_container(pod: &Pod, delay: Duration) -> String {
    let before = pod.payload_role(0);
    let role = eventually("a new container", JOB_WITHIN, || {
        let role = pod.payload_role(0);
        (role != before).then_some(role)
    });
    let pid = pod.main_process(&role);
    thread::sleep(delay);
    kill(pid, Signal::SIGKILL);
    role
}

#[test]
fn a_container_killed_while_it_is_bound_is_no_fault_of_the_job() {
    for millis in [0, 20, 60, 150] {
        let pod = Pod::start();
        pod.serves();
        pod.put("bound", &probe(&["hello"]));
        kill_the_next_container(&pod, Duration::from_millis(millis));
        let outcome = pod.result("bound");
        outcome.is_good();
        if outcome.report.attempt == 2 {
            let first = pod.attempt("bound", 1);
            assert_eq!(first.class, Class::Retry, "{first:#?}");
            assert!(first.record.is_none() || !first.verified, "{first:#?}");
        }
    }
}

#[test]
fn glue_killed_when_the_job_has_just_ended_changes_nothing_or_loses_it() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    for (n, phase) in ["collecting", "cleaning"].into_iter().enumerate() {
        let name = format!("ended-{n}");
        // Outputs make the phase long enough to be met.
        let job = with(shell("head -c 100000000 /dev/zero >big; echo done"), "outputs", json!(["big"]));
        pod.put(&name, &job);
        let attempt = format!("{name}.1");
        eventually(phase, JOB_WITHIN, || {
            // A slow machine may see none of it but the result.
            let is_over = look_into(&pod.spool, &name).is_some();
            let now = pod.phase(&attempt);
            (is_over || now.is_some_and(|now| now == phase || now == "done")).then_some(())
        });
        kill(pod.main_process(&pod.payload_role(0)), Signal::SIGKILL);
        let outcome = pod.result(&name);
        // The record was in hand.
        outcome.is_good();
        assert_eq!(outcome.text("stdout"), "done\n");
    }
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn glue_killed_around_the_jobs_end_is_success_only_with_a_record() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    for (n, delay) in [0u64, 5, 15, 40].into_iter().enumerate() {
        let name = format!("edge-{n}");
        pod.put(&name, &probe(&["sleep", "1"]));
        let job = pod.runs(&format!("{name}.1"), 0);
        let glue = pod.main_process(&pod.payload_role(0));
        while lives(job) {
            thread::sleep(Duration::from_micros(200));
        }
        thread::sleep(Duration::from_millis(delay));
        kill(glue, Signal::SIGKILL);
        let outcome = pod.result(&name);
        if outcome.report.verified {
            outcome.is_good();
            assert!(outcome.dir.join("result/record.jws").exists());
        } else {
            is_lost(&outcome.report);
            assert!(!outcome.dir.join("result/record.jws").exists());
        }
    }
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn glue_killed_while_the_pilot_is_away_is_lost_all_the_same() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    pod.put("both", &probe(&["sleep", "60"]));
    let job = pod.runs("both.1", 0);
    kill(pod.main_process("pilot"), Signal::SIGKILL);
    kill(pod.main_process(&pod.payload_role(0)), Signal::SIGKILL);
    let outcome = pod.result("both");
    is_lost(&outcome.report);
    assert!(!lives(job), "the lost job still runs");
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn the_pause_container_killed_ends_the_pod_and_leaves_nothing() {
    let mut pod = Options::new().host(&["--restarts", "0"]).start();
    pod.put("gone", &probe(&["sleep", "60"]));
    pod.runs("gone.1", 0);
    kill(pod.main_process("pause"), Signal::SIGKILL);
    let status = pod.end(Duration::from_secs(30));
    assert_ne!(status.code(), Some(0));
    assert_eq!(latebind_tests::pod::traces(&pod.name), Vec::<String>::new());
    // No result was made up: it is still claimed, for whoever clears up.
    assert!(look_into(&pod.spool, "gone").is_none());
    let claimed: Vec<_> = fs::read_dir(pod.spool.join("claimed")).unwrap().flatten().map(|e| e.path()).collect();
    assert!(claimed.iter().any(|p: &std::path::PathBuf| Path::new(&p.join("gone/job.json")).exists()), "{claimed:?}");
    let _: Value = serde_json::from_slice(&fs::read(claimed[0].join("gone/job.json")).unwrap()).unwrap();
}
