//! Volumes without room at each write, no more processes, no more memory, a glue that is stopped: what is said of the
//! job, that it is never taken for the job's own result, and that the slot serves the next one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use latebind_tests::pod::{
    BUSYBOX, JOB_WITHIN, NOSHELL, Options, Outcome, Pod, Signal, eventually, is_gone, kill, look_into, probe, shell,
    with,
};
use latebind_tests::shortage::{Filler, Group, Memory, NoMoreProcesses, Small, Unwatched};
use latebind_tests::slot::WAIT_FOR_GO;
use serde_json::{Value, json};
use watcher::bind::{Class, Reason};

/// Within this it is known; nothing here has to be waited for but the engine, on a machine that is busy.
const SAID_WITHIN: Duration = Duration::from_secs(20);

fn data(pod: &Pod) -> PathBuf {
    pod.place().join("slot-0/data")
}

fn next_is_good(pod: &Pod, after: &str) {
    let outcome = pod.job(&format!("after-{after}"), &probe(&["hello"]));
    assert_eq!(outcome.is_good().report.attempt, 1, "after {after}");
}

/// The attempt was lost for want of room, and nothing of it is taken for a result.
#[track_caller]
fn had_no_room(outcome: &Outcome, when: &str) {
    was_lost_for(outcome, "VolumeFull", when);
}

#[track_caller]
fn was_lost_for(outcome: &Outcome, reason: &str, when: &str) {
    assert_eq!(outcome.class(), ("retry", reason), "{when}: {:#?}", outcome.report);
    let report = &outcome.report;
    assert!(!report.verified && report.exit_code.is_none() && !report.message.is_empty(), "{when}: {report:#?}");
    assert!(!outcome.dir.join("result/record.jws").exists(), "{when}");
}

#[test]
fn ctl_has_no_room_at_each_write() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    pod.serves();
    let (mut lost, mut good) = (0, 0);
    // Status, startup file, the status of the claim, of the start, the record: with each page there is room for one
    // more.
    for pages in 0..8 {
        let (name, filler) = (format!("pages-{pages}"), Filler::leaving(&pod.ctl(0), pages));
        pod.put(&name, &shell("echo ran"));
        let outcome = pod.result_within(&name, SAID_WITHIN);
        if outcome.report.class == Class::Final {
            outcome.is_good();
            good += 1;
        } else {
            had_no_room(&outcome, &name);
            lost += 1;
            eventually("the volume is emptied", SAID_WITHIN, || (!filler.is_there()).then_some(()));
        }
        drop(filler);
        next_is_good(&pod, &name);
    }
    assert!(lost > 1 && good > 0, "{lost} without room, {good} with");
}

#[test]
fn ctl_has_no_room_for_the_startup_file_and_for_the_record() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    pod.serves();
    let filler = Filler::leaving(&pod.ctl(0), 16);
    let large = with(probe(&["hello"]), "env", json!({"LARGE": "x".repeat(100_000)}));
    had_no_room(&pod.job("large", &large), "the startup file");
    eventually("the volume is emptied", SAID_WITHIN, || (!filler.is_there()).then_some(()));
    next_is_good(&pod, "large");
    pod.put("record", &shell(&format!("{WAIT_FOR_GO}; echo ran")));
    pod.runs("record.1", 0);
    let filler = Filler::all(&pod.ctl(0));
    pod.go(0);
    had_no_room(&pod.result("record"), "the record");
    drop(filler);
    next_is_good(&pod, "record");
}

#[test]
fn data_has_no_room() {
    let pod = Options::new().host(&["--data-size", "32m"]).pilot(&["--max-attempts", "1"]).start();
    // For the inputs, which no slot like this can hold.
    let job = shell("cat big | wc -c");
    pod.put_with("inputs", &job, &[("inputs/big", &vec![1; 40 << 20])]);
    let outcome = pod.result_within("inputs", SAID_WITHIN);
    outcome.is("hold", "InputUnusable");
    assert!(outcome.report.message.contains("when it is empty"), "{}", outcome.report.message);
    next_is_good(&pod, "inputs");
    // Because of what is no job's.
    let filler = Filler::all(&data(&pod));
    pod.put_with("foreign", &shell("cat some"), &[("inputs/some", &vec![1; 100_000])]);
    let lost = pod.attempt("foreign", 1);
    assert_eq!((lost.class, lost.reason.as_str(), lost.verified), (Class::Retry, "VolumeHeld", false), "{lost:#?}");
    eventually("the volume is emptied", SAID_WITHIN, || (!filler.is_there()).then_some(()));
    // An attempt that others have kept from being made does not count.
    assert_eq!(pod.result("foreign").is_good().report.attempt, 2);
    next_is_good(&pod, "foreign");
    // The job's own doing, and so its own result: what it wrote, or what it said.
    for (name, script) in [
        ("wrote", "dd if=/dev/zero of=big bs=1M 2>/dev/null && exit 0; exit 7"),
        ("said", "dd if=/dev/zero bs=1M count=64 2>/dev/null && exit 0; exit 7"),
    ] {
        let outcome = pod.job(name, &with(shell(script), "grace_s", json!(1)));
        let report = &outcome.report;
        assert!(report.verified && report.class == Class::Final, "{name}: {report:#?}");
        match report.reason.as_str() {
            "Error" => assert_eq!(report.exit_code, Some(7), "{name}: {report:#?}"),
            "LimitExceeded" => assert!(report.limit.is_some(), "{name}: {report:#?}"),
            // What it says goes into a pipe: it is the watcher that finds no room, and the report that says so.
            "Completed" if name == "said" => {
                let missing = report.missing_outputs.iter().any(|m| m.starts_with("stdout: not all of it: No space"));
                assert!(missing, "{name}: {report:#?}");
            }
            _ => panic!("{name}: {report:#?}"),
        }
        next_is_good(&pod, name);
    }
}

/// While there is no room for results, none is lost, and no further job is taken for which there would be none.
#[test]
fn a_full_spool_loses_no_result_and_gives_out_no_job() {
    let memory = Memory::new(4 << 20);
    let spool = memory.path().join("spool");
    let pod = Options::new().spool(&spool).start();
    pod.put("runs", &shell(&format!("{WAIT_FOR_GO}; echo ran")));
    pod.runs("runs.1", 0);
    // A file that is written in advance: a rename needs no room.
    fs::create_dir(spool.join(".waits")).unwrap();
    fs::write(spool.join(".waits/job.json"), shell("echo ran").to_string()).unwrap();
    let filler = Filler::all(memory.path());
    fs::write(pod.work(0).join("go"), "").unwrap();
    let tries = |n: usize| {
        eventually(&format!("it is said {n} times"), JOB_WITHIN, || {
            (pod.said().matches("not delivered yet").count() >= n).then_some(())
        });
    };
    tries(1);
    fs::rename(spool.join(".waits"), spool.join("new/waits")).unwrap();
    tries(2);
    assert!(spool.join("new/waits").exists(), "a job was taken for whose result there is no room");
    assert!(look_into(&spool, "runs").is_none());
    drop(filler);
    for name in ["runs", "waits"] {
        let outcome = pod.result(name);
        assert_eq!(outcome.is_good().report.attempt, 1, "{name}");
    }
}

fn pod_with_private(memory: &Memory) -> Pod {
    let pod = Options::new().host(&["--private", memory.path().to_str().unwrap()]).start();
    // The pilot has passed its own checks then, one of which is that there is room.
    pod.job("before", &probe(&["hello"])).is_good();
    pod
}

#[test]
fn a_pilot_that_begins_without_room_takes_no_job_before_there_is_some() {
    let memory = Memory::new(1 << 20);
    let filler = Filler::all(memory.path());
    let pod = Options::new().host(&["--private", memory.path().to_str().unwrap(), "--restarts", "30"]).start();
    pod.put("waits", &shell("echo ran"));
    eventually("it is said why", SAID_WITHIN, || pod.said().contains("No space left").then_some(()));
    assert!(pod.spool.join("new/waits/job.json").exists(), "a job was taken that nothing could be written of");
    drop(filler);
    assert_eq!(pod.result("waits").is_good().report.attempt, 1);
}

/// The phase of an attempt, where the private volume is not in the pod's directory.
fn phase_in(private: &Path, attempt: &str) -> Option<String> {
    let bytes = fs::read(private.join(format!("jobs/{attempt}.json"))).ok()?;
    serde_json::from_slice::<Value>(&bytes).ok()?["phase"].as_str().map(str::to_owned)
}

fn reaches(pod: &Pod, private: &Path, attempt: &str, phase: &str) {
    eventually(&format!("{attempt} is {phase}\n{}", pod.said()), JOB_WITHIN, || {
        (phase_in(private, attempt).as_deref() == Some(phase)).then_some(())
    });
}

#[test]
fn the_private_volume_has_no_room_for_a_new_job() {
    let memory = Memory::new(1 << 20);
    let pod = pod_with_private(&memory);
    let filler = Filler::all(memory.path());
    pod.put("waits", &shell("echo ran"));
    // It is taken, and refused, again and again.
    eventually("it is said why, twice", JOB_WITHIN, || {
        (pod.said().matches("cannot be kept").count() >= 2).then_some(())
    });
    assert!(look_into(&pod.spool, "waits").is_none(), "a job was run of which nothing is written down");
    drop(filler);
    let outcome = pod.result("waits");
    assert_eq!((outcome.is_good().report.attempt, outcome.text("stdout").as_str()), (1, "ran\n"));
}

#[test]
fn the_private_volume_fills_up_while_the_image_is_bound() {
    let memory = Memory::new(1 << 20);
    let pod = pod_with_private(&memory);
    // The note on the slot goes with the proof, and leaves a page; what is kept of this job needs more.
    // The engine's side of the bind is stopped meanwhile, so that there is no room from before its end.
    kill(pod.host_process(), Signal::SIGSTOP);
    pod.put("bound", &with(shell("echo ran"), "env", json!({"LARGE": "x".repeat(20_000)})));
    reaches(&pod, memory.path(), "bound.1", "binding");
    let filler = Filler::all(memory.path());
    kill(pod.host_process(), Signal::SIGCONT);
    let first = pod.attempt("bound", 1);
    drop(filler);
    // Not handed over without its key being written down, so not run twice either.
    assert_eq!((first.class, first.reason.as_str(), first.record.is_none()), (Class::Retry, "VolumeFull", true));
    assert_eq!(pod.result("bound").is_good().text("stdout"), "ran\n");
}

#[test]
fn the_private_volume_fills_up_while_the_job_runs_and_the_watcher_is_killed() {
    let memory = Memory::new(1 << 20);
    let pod = pod_with_private(&memory);
    for killed in [false, true] {
        let name = format!("runs-{killed}");
        pod.put(&name, &shell(&format!("echo ran >>runs; {WAIT_FOR_GO}; cat runs")));
        reaches(&pod, memory.path(), &format!("{name}.1"), "running");
        let filler = Filler::all(memory.path());
        if killed {
            kill(pod.main_process("pilot"), Signal::SIGKILL);
        }
        pod.go(0);
        let outcome = pod.result(&name);
        assert_eq!((outcome.is_good().report.attempt, outcome.text("stdout").as_str()), (1, "ran\n"));
        drop(filler);
        next_is_good(&pod, &name);
    }
}

#[test]
fn no_process_can_be_made_for_the_job() {
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    let job = with(shell("echo ran"), "owner", json!("somebody"));
    let first = pod.job("first", &job);
    let _none = NoMoreProcesses::beside(pod.main_process(&pod.payload_role(0)));
    pod.put("second", &job);
    let lost = pod.attempt("second", 1);
    assert_eq!((lost.class, lost.reason.as_str()), (Class::Retry, "ResourceShortage"), "{lost:#?}");
    assert!(lost.message.contains("process"), "{}", lost.message);
    let outcome = pod.result("second");
    assert_eq!(outcome.is_good().report.attempt, 2);
    assert_ne!(outcome.container(), first.container(), "the container that had none left is used again");
}

/// As where another job has used up the process numbers of the machine.
#[test]
fn latebind_host_can_make_no_thread_while_an_image_is_bound() {
    let group = Group::new();
    let pod = Options::new().pilot(&["--max-attempts", "100"]).start();
    pod.serves();
    let host = pod.host_process();
    group.take(host);
    let at_rest = || group.monitors_beside(host).map(|monitors| (group.count().saturating_sub(monitors), monitors));
    let (own, _) = eventually("no engine runs", SAID_WITHIN, at_rest);
    // With each further one it comes to the next that it cannot make: what answers the pilot, what watches the
    // container, what reads the engine's two streams, the engine.
    for more in 0..5 {
        let name = format!("{more}-more");
        // What the last bind has put in the place of is removed.
        let said = || pod.said().lines().rfind(|line| line.contains("bound slot=0 image=")).map(str::to_owned);
        let has_placeholder = || said().is_some_and(|line| line.contains("the placeholder"));
        let (_, monitors) =
            eventually("it is at rest", SAID_WITHIN, || at_rest().filter(|(now, _)| *now <= own && has_placeholder()));
        group.allow(own + monitors + more);
        pod.put(&name, &shell("echo ran"));
        let lost = pod.attempt(&name, 1);
        group.allow_all();
        // An engine that runs all the same, since a thread had just ended, makes none either.
        let is_of_engine = matches!(lost.reason, Reason::EngineError | Reason::StartError);
        assert!(lost.class == Class::Retry && is_of_engine, "{name}: {lost:#?}");
        assert_eq!(pod.result(&name).is_good().text("stdout"), "ran\n");
    }
    assert!(!is_gone(host) && !pod.said().contains("is started again"), "{}", pod.said());
}

#[test]
fn a_pilot_that_cannot_be_started_again_at_once_takes_no_job_along() {
    let group = Group::new();
    let pod = Pod::start();
    pod.put("long", &shell(&format!("{WAIT_FOR_GO}; echo ran")));
    pod.runs("long.1", 0);
    group.take(pod.host_process());
    group.allow(0);
    kill(pod.main_process("pilot"), Signal::SIGKILL);
    pod.says("the pilot cannot be started");
    group.allow_all();
    pod.go(0);
    let outcome = pod.result("long");
    assert_eq!((outcome.is_good().report.attempt, outcome.text("stdout").as_str()), (1, "ran\n"));
}

#[test]
fn a_job_takes_all_processes_and_leaves_them() {
    let pod = Options::new().host(&["--pids", "40"]).start();
    let script =
        "n=0; while [ $n -lt 60 ]; do (trap '' TERM; sleep 60) 2>/dev/null & n=$((n+1)); done; echo all; exit 3";
    for name in ["one", "two"] {
        let outcome = pod.job(name, &shell(script));
        let report = &outcome.report;
        assert!(report.verified && report.class == Class::Final && report.reason == Reason::Error, "{report:#?}");
        next_is_good(&pod, name);
    }
}

#[test]
fn glue_itself_is_ended_for_memory() {
    let pod = Options::new().host(&["--memory", "96m"]).start();
    let script = "while [ ! -e go ]; do sleep 0.1; done; for n in 1 2 3 4 5 6 7 8; do /probe memory 20 60 & done; wait";
    pod.put("large", &shell(script));
    let job = pod.runs("large.1", 0);
    // Glue is the smallest of its container: the kernel is told to like it least, and the job is of many small
    // processes.
    let glue = pod.main_process(&pod.payload_role(0));
    fs::write(format!("/proc/{glue}/oom_score_adj"), "1000").unwrap();
    let unwatched = Unwatched::new(&pod);
    fs::write(pod.work(0).join("go"), "").unwrap();
    eventually("the kernel ends glue", SAID_WITHIN, || is_gone(glue).then_some(()));
    drop(unwatched);
    let outcome = pod.result_within("large", SAID_WITHIN);
    outcome.is("hold", "OutOfMemory");
    assert!(!outcome.report.verified && outcome.report.record.is_none(), "glue was not hit: {:#?}", outcome.report);
    eventually("what the job has left is gone", SAID_WITHIN, || is_gone(job).then_some(()));
    next_is_good(&pod, "large");
}

#[test]
fn a_glue_that_is_stopped_goes_on() {
    let pod = Pod::start();
    pod.put("stopped", &shell(&format!("{WAIT_FOR_GO}; echo ran")));
    pod.runs("stopped.1", 0);
    kill(pod.main_process(&pod.payload_role(0)), Signal::SIGSTOP);
    pod.says("somebody has stopped glue");
    pod.go(0);
    assert_eq!(pod.result("stopped").is_good().text("stdout"), "ran\n");
    next_is_good(&pod, "stopped");
}

#[test]
fn a_glue_that_is_stopped_before_it_is_ready_costs_an_attempt() {
    let pod = Options::new().pilot(&["--ready-within", "3"]).start();
    pod.serves();
    let before = pod.payload_role(0);
    pod.put("stopped", &shell("echo ran"));
    let role = eventually("a new container", JOB_WITHIN, || Some(pod.payload_role(0)).filter(|role| *role != before));
    let glue = pod.main_process(&role);
    // Before that it is still the engine's program.
    eventually("glue runs", JOB_WITHIN, || {
        fs::read(format!("/proc/{glue}/cmdline")).ok()?.starts_with(b"/shared/bin/glue").then_some(())
    });
    kill(glue, Signal::SIGSTOP);
    let outcome = pod.result("stopped");
    assert_eq!(outcome.is_good().text("stdout"), "ran\n");
    // It may have been ready by then; then it went on.
    if outcome.report.attempt != 1 {
        let first = pod.attempt("stopped", 1);
        assert_eq!((first.class, first.reason.as_str()), (Class::Retry, "GlueSilent"), "{first:#?}");
    }
    next_is_good(&pod, "stopped");
}

#[test]
fn the_containers_memory_limits_the_job_of_an_earlier_watcher_too() {
    let pod = Options::new().host(&["--memory", "256m"]).start();
    pod.put("long", &shell(&format!("{WAIT_FOR_GO}; echo ran")));
    pod.runs("long.1", 0);
    kill(pod.main_process("pilot"), Signal::SIGKILL);
    eventually("it serves again", JOB_WITHIN, || (pod.said().matches("\"serving\"").count() == 2).then_some(()));
    pod.go(0);
    let outcome = pod.result("long");
    let limit = outcome.is_good().report.limits.memory.map(|bytes| bytes.0);
    assert!(limit.is_some_and(|n| (230 << 20..256 << 20).contains(&n)), "{limit:?}: {:#?}", outcome.report);
}

#[test]
fn a_slot_that_fails_every_job_takes_none_for_a_while_and_says_so() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    pod.serves();
    // Not a file that fills the volume: that goes with each container, and may or may not before the next job.
    let small = Small::new(&pod.ctl(0), 16);
    let large = with(probe(&["hello"]), "env", json!({"LARGE": "x".repeat(100_000)}));
    let mut over = 0.0;
    let mut fails = |n: u32| {
        // Failures of one image in a row count once.
        let image = if n.is_multiple_of(2) { NOSHELL } else { BUSYBOX };
        let outcome = pod.job(&format!("fails-{n}"), &with(large.clone(), "image", json!(image)));
        had_no_room(&outcome, "large");
        over = outcome.report.phases.last().unwrap().at;
    };
    (0..3).for_each(&mut fails);
    pod.says("out of service");
    // Each further failure takes it out for longer, until it can be seen on a slow machine too.
    let out = (3..6).find_map(|n| {
        let out = pod.top().filter(|top| top["slots"][0]["out_s"].is_number());
        if out.is_none() {
            fails(n);
        }
        out
    });
    let slot = &out.unwrap_or_else(|| panic!("never shown as out of service\n{}", pod.said()))["slots"][0];
    assert!(slot["failed_starts"].as_u64() >= Some(3) && slot["job"] == Value::Null, "{slot}");
    assert!(slot["why"].as_str().is_some_and(|why| why.starts_with("VolumeFull")), "{slot}");
    drop(small);
    // The next job is tried after a while, and puts it back.
    pod.put("waits", &json!({"image": BUSYBOX, "argv": ["/bin/true"]}));
    let outcome = pod.result("waits");
    assert_eq!(outcome.is_good().report.attempt, 1);
    let waited = outcome.report.phases[0].at - over;
    assert!(waited >= 9.0, "it was tried {waited} s after the last failure");
    eventually("it is in service", JOB_WITHIN, || {
        let slot = &pod.top()?["slots"][0];
        (slot["failed_starts"] == 0 && slot["out_s"] == Value::Null).then_some(())
    });
}
