//! The pilot container is killed at any moment of a job's life: latebind-host starts it again, the watcher goes on
//! where it was, the job runs once, and has exactly one result.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use latebind_tests::fault::{STEPS, comes_to};
use latebind_tests::pod::{
    JOB_WITHIN, Options, Outcome, Pod, Signal, eventually, is_gone, kill, look_into, podman, probe, shell, with,
};
use latebind_tests::shortage::Unwatched;
use latebind_tests::slot::WAIT_FOR_GO;
use serde_json::{Value, json};

/// A job that notes each of its runs where the next run of the same attempt would find it, and in its output.
fn counted(seconds: &str) -> Value {
    with(shell(&format!("echo ran >>runs; sleep {seconds}; cat runs; cat runs >out")), "outputs", json!(["out"]))
}

fn ran_once(outcome: &Outcome, when: &str) {
    assert_eq!(outcome.class(), ("final", "Completed"), "killed {when}: {:#?}", outcome.report);
    assert!(outcome.report.verified, "killed {when}: {:#?}", outcome.report);
    assert_eq!(outcome.report.attempt, 1, "killed {when}: counted more than once");
    assert_eq!(outcome.text("outputs/out"), "ran\n", "killed {when}: ran more than once");
    assert_eq!(outcome.text("stdout"), "ran\n", "killed {when}");
    assert!(!outcome.dir.join("result.1").exists(), "killed {when}: there was an attempt before");
}

/// Nothing of the job is anywhere else in the spool, nor in the watcher's memory.
fn is_the_only_result(pod: &Pod, name: &str) {
    for place in ["new", "retry", "held"] {
        assert!(!pod.spool.join(place).join(name).exists(), "{name} is in {place} too");
    }
    for place in ["done", "retry", "held"] {
        assert!(!pod.spool.join(place).join(format!("{name}.2")).exists(), "{name} has a second result in {place}");
    }
    for pilot in fs::read_dir(pod.spool.join("claimed")).unwrap().flatten() {
        assert!(!pilot.path().join(name).exists(), "{name} is still claimed");
    }
}

fn kill_the_pilot(pod: &Pod) -> i32 {
    let pid = pod.main_process("pilot");
    kill(pid, Signal::SIGKILL);
    pid
}

/// Waits until another pilot lives.
fn is_back(pod: &Pod, was: i32) {
    eventually(&format!("a new pilot\n{}", pod.said()), JOB_WITHIN, || {
        let text = fs::read_to_string(pod.place().join("pid/pilot")).ok()?;
        text.trim().parse::<i32>().ok().filter(|pid| *pid != was)
    });
}

/// Some phases are over within milliseconds, so a kill may come too late for its phase: then another pod's is tried.
fn in_phase(phase: &str) {
    let step = STEPS.iter().position(|step| *step == phase).unwrap();
    let big = vec![1u8; 40 << 20];
    let mut job = counted("1");
    job["outputs"] = json!(["out", "big"]);
    let hit = (0..10).any(|_| {
        let pod = Pod::start();
        pod.serves();
        pod.put_with("phased", &job, &[("inputs/big", &big)]);
        assert!(comes_to(step, JOB_WITHIN, || pod.phase("phased.1")), "it has not come to {phase}\n{}", pod.said());
        let pilot = kill_the_pilot(&pod);
        eventually("the pilot's end", JOB_WITHIN, || is_gone(pilot).then_some(()));
        let killed_in = pod.phase("phased.1");
        let outcome = pod.result("phased");
        ran_once(&outcome, phase);
        is_the_only_result(&pod, "phased");
        pod.job("next", &probe(&["hello"])).is_good();
        killed_in.as_deref() == Some(phase)
    });
    assert!(hit, "no pilot was killed while {phase}");
}

/// The inputs are staged meanwhile.
#[test]
fn killed_while_binding() {
    in_phase("binding");
}

#[test]
fn killed_while_running() {
    in_phase("running");
}

#[test]
fn killed_while_collecting() {
    in_phase("collecting");
}

#[test]
fn killed_while_cleaning() {
    in_phase("cleaning");
}

#[test]
fn killed_while_idle() {
    let pod = Pod::start();
    pod.serves();
    let was = kill_the_pilot(&pod);
    pod.put("idle", &counted("0"));
    is_back(&pod, was);
    ran_once(&pod.result("idle"), "idle");
}

#[test]
fn a_job_that_ends_while_the_pilot_is_away_has_its_result() {
    let pod = Options::new().start();
    let script = format!("echo ran >>runs; {WAIT_FOR_GO}; cat runs; cat runs >out");
    pod.put("away", &with(shell(&script), "outputs", json!(["out"])));
    let job = pod.runs("away.1", 0);
    let watcher = Unwatched::new(&pod);
    pod.go(0);
    eventually("the job's end", JOB_WITHIN, || is_gone(job).then_some(()));
    kill_the_pilot(&pod);
    drop(watcher);
    ran_once(&pod.result("away"), "just before its end");
}

/// No watcher can look into a glue that has a key: what the cgroup had counted before is kept with the job, and what it
/// has counted since is read when the key is gone.
#[test]
fn the_containers_counters_are_read_by_the_next_watcher_too() {
    let pod = Pod::start();
    pod.put("counted", &shell(&format!("{WAIT_FOR_GO}; /probe cpu 1")));
    pod.runs("counted.1", 0);
    let was = kill_the_pilot(&pod);
    is_back(&pod, was);
    pod.go(0);
    let outcome = pod.result("counted");
    outcome.is("final", "Completed");
    let counted = outcome.report.cgroup.unwrap_or_default();
    assert!(counted.cpu_s.is_some_and(|s| (0.5..60.0).contains(&s)), "{counted:?} in {:#?}", outcome.report);
    assert_eq!(counted.oom_kills, Some(0), "{:#?}", outcome.report);
}

/// What the watcher that was killed has told to end is ended by the next one, though nothing asks for it once more.
#[test]
fn an_end_that_was_begun_is_brought_about() {
    let pod = Pod::start();
    let mut job = shell("trap 'echo told >told' TERM; sleep 600 & while :; do sleep 0.1; done");
    (job["limits"], job["grace_s"]) = (json!({"processes": 1}), json!(8));
    pod.put("stubborn", &job);
    eventually("the soft kill", JOB_WITHIN, || pod.work(0).join("told").exists().then_some(()));
    kill_the_pilot(&pod);
    let outcome = pod.result("stubborn");
    outcome.is("final", "LimitExceeded");
    assert_eq!((outcome.report.signal, outcome.report.attempt), (Some(9), 1), "{:#?}", outcome.report);
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn twice_in_one_job() {
    let pod = Pod::start();
    pod.put("twice", &counted("3"));
    pod.reaches("twice.1", "running");
    let was = kill_the_pilot(&pod);
    is_back(&pod, was);
    eventually("it serves", JOB_WITHIN, || (pod.said().matches("\"serving\"").count() == 2).then_some(()));
    kill_the_pilot(&pod);
    ran_once(&pod.result("twice"), "twice");
    is_the_only_result(&pod, "twice");
}

/// From LATEBIND_SEED, or the clock; printed, so that a failure can be had again.
fn seed() -> u64 {
    let given = std::env::var("LATEBIND_SEED").ok().and_then(|s| s.parse().ok());
    given.unwrap_or_else(|| latebind_contract::time::wall().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64)
}

/// Three jobs of a second each; the pilot is killed at a moment of each one's life. Three, since each restart has to
/// wait twice as long as the one before.
fn at_random_moments(salt: u64) {
    let seed = seed();
    let mut x = seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let pod = Pod::start();
    pod.serves();
    for n in 0..3 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A moment by chance, and not one by which anything is to have happened.
        let delay = Duration::from_millis((x >> 33) % 3000);
        let name = format!("random-{n}");
        pod.put(&name, &counted("1"));
        thread::sleep(delay);
        let phase = pod.phase(&format!("{name}.1"));
        let over = look_into(&pod.spool, &name).is_some();
        let when = format!("after {delay:?} (phase {phase:?}, over: {over}), LATEBIND_SEED={seed}, salt {salt}");
        println!("{when}");
        let was = kill_the_pilot(&pod);
        let outcome = pod.result(&name);
        ran_once(&outcome, &when);
        is_back(&pod, was);
        is_the_only_result(&pod, &name);
    }
}

#[test]
fn killed_at_random_moments_1() {
    at_random_moments(1);
}

#[test]
fn killed_at_random_moments_2() {
    at_random_moments(2);
}

#[test]
fn killed_at_random_moments_3() {
    at_random_moments(3);
}

#[test]
fn killed_at_random_moments_4() {
    at_random_moments(4);
}

/// One job runs while the one before is delivered and the next one is claimed: whatever was begun of them when the
/// pilot was killed, each runs once, as its first attempt.
#[test]
fn killed_between_many_short_jobs_of_one_slot() {
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    let names: Vec<String> = (0..60).map(|n| format!("short-{n:02}")).collect();
    for name in &names {
        pod.put(name, &with(counted("0"), "owner", json!("alice")));
    }
    for killed_after in [10, 30] {
        let done = || fs::read_dir(pod.spool.join("done")).map_or(0, Iterator::count);
        eventually("jobs are done", JOB_WITHIN, || (done() >= killed_after).then_some(()));
        let was = kill_the_pilot(&pod);
        is_back(&pod, was);
    }
    for name in &names {
        ran_once(&pod.result(name), "between short jobs");
        is_the_only_result(&pod, name);
    }
}

/// What a foreign root has left is gone, also where the watcher was ended before it had reset the volumes: that a
/// foreign root can have been there is noted before each bind, until the proof.
#[test]
fn volumes_that_were_to_be_mended_are_mended_by_the_next_watcher() {
    let pod = Pod::start();
    pod.serves();
    let (noted, left) = (pod.private().join("slots/0-dirty.json"), pod.place().join("slot-0/data/left"));
    pod.put("before", &probe(&["hello"]));
    eventually("it is noted that an image is bound", JOB_WITHIN, || noted.exists().then_some(()));
    pod.result("before").is_good();
    assert!(!noted.exists());
    fs::write(&left, "by a foreign root").unwrap();
    let was = kill_the_pilot(&pod);
    is_back(&pod, was);
    pod.job("nothing-is-noted", &probe(&["hello"])).is_good();
    assert!(left.exists(), "it would have been removed in any case");
    fs::write(&noted, "true").unwrap();
    let was = kill_the_pilot(&pod);
    is_back(&pod, was);
    assert_eq!(pod.job("after", &probe(&["hello"])).is_good().report.attempt, 1);
    assert!(!left.exists() && !noted.exists());
}

/// As a power loss can leave files that were not on disk yet. The slot's volumes are then reset, since what was noted
/// of them is lost.
#[test]
fn empty_state_files_do_not_keep_a_watcher_from_starting() {
    let pod = Pod::start();
    pod.job("before", &probe(&["hello"])).is_good();
    let (slots, jobs) = (pod.private().join("slots"), pod.private().join("jobs"));
    let name = pod.private().join("name");
    fs::write(jobs.join("never-heard-of.1.json"), "").unwrap();
    for path in [slots.join("0.json"), slots.join("0-dirs.json"), name.clone()] {
        assert!(fs::metadata(&path).unwrap().len() > 0, "{} was empty before", path.display());
        fs::write(&path, "").unwrap();
    }
    let left = pod.place().join("slot-0/data/left");
    fs::write(&left, "by a foreign root").unwrap();
    let was = kill_the_pilot(&pod);
    is_back(&pod, was);
    pod.job("after", &probe(&["hello"])).is_good();
    for path in [slots.join("0"), slots.join("0-dirs"), jobs.join("never-heard-of.1")] {
        assert!(Path::new(&format!("{}.unreadable", path.display())).exists(), "{} is not set aside", path.display());
    }
    assert!(!left.exists(), "the volumes were used as they were");
    assert!(fs::read_to_string(&name).unwrap().starts_with("pilot-"));
}

/// A job that writes its last line and ends while no watcher runs: none is started until `meanwhile` is over.
fn ends_without_a_pilot(pod: &Pod, name: &str, meanwhile: impl FnOnce()) -> Outcome {
    pod.put(name, &shell("until [ -e go ]; do sleep 0.05; done; echo last"));
    pod.runs(&format!("{name}.1"), 0);
    pod.signal(Signal::SIGSTOP);
    let pilot = kill_the_pilot(pod);
    eventually("the pilot's end", JOB_WITHIN, || is_gone(pilot).then_some(()));
    pod.go(0);
    eventually("the record", JOB_WITHIN, || pod.ctl(0).join("record.jws").exists().then_some(()));
    meanwhile();
    pod.signal(Signal::SIGCONT);
    pod.result(name)
}

#[test]
fn output_that_nobody_could_keep_is_missed_in_the_result() {
    let pod = Pod::start();
    let outcome = ends_without_a_pilot(&pod, "job", || {
        let killed = podman(&["kill", "--signal", "KILL", &pod.container(&pod.payload_role(0))]);
        assert!(killed.status.success(), "{killed:?}");
    });
    outcome.is_good();
    assert_eq!(outcome.text("stdout"), "");
    let missing = &outcome.report.missing_outputs;
    assert!(missing.iter().any(|line| line.starts_with("stdout: glue had ended")), "{missing:?}");
    // While glue lives, it keeps what is written.
    let outcome = ends_without_a_pilot(&pod, "kept", || ());
    assert_eq!((outcome.text("stdout").as_str(), outcome.report.missing_outputs.as_slice()), ("last\n", &[][..]));
}
