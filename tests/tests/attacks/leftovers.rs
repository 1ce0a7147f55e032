//! What one job leaves for the next one: ACLs, attributes and flags, files, memory of the volumes.

use std::fs;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use latebind_tests::pod::{JOB_WITHIN, Options, Pod, Scratch, eventually, is_gone, probe, shell};
use latebind_tests::slot::WAIT_FOR_GO;
use serde_json::{Value, json};
use watcher::tree::{marks, open_dir};

/// `probe` on this machine, without a container.
fn probe_here(words: &[&str]) -> Vec<Value> {
    let ran = Command::new(env!("CARGO_BIN_EXE_probe")).args(words).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What could be put on a directory; the file system need not know all of it.
fn marked(answers: &[Value]) -> Vec<&str> {
    answers.iter().filter(|a| a["ok"] == true).filter_map(|a| a["mark"].as_str()).collect()
}

#[test]
fn what_a_job_puts_on_its_directory_goes_with_it() {
    for host in [&[][..], &["--data-size", "64m"]] {
        let pod = Options::new().host(host).start();
        let alice = pod.job("alice", &probe(&["mark", "."]));
        let answers = alice.is_good().answers();
        assert!(marked(&answers).contains(&"user.left"), "nothing was tried: {answers:?}");
        let bob = pod.job("bob", &shell("echo result >out; cat out; stat -c %a out ."));
        assert_eq!(bob.is_good().text("stdout"), "result\n644\n700\n", "{host:?}");
        let carol = pod.job("carol", &probe(&["marks", "."]));
        assert_eq!(carol.is_good().answers(), [json!({"attributes": [], "flags": 0})], "{host:?}");
    }
}

#[test]
fn each_job_has_a_directory_of_its_own() {
    let pod = Pod::start();
    pod.serves();
    pod.put("first", &shell(&format!("stat -c %i .; touch left; {WAIT_FOR_GO}")));
    eventually("the first job runs", JOB_WITHIN, || pod.work(0).join("left").exists().then_some(()));
    // While it is open, no other directory has its number.
    let held = open_dir(&pod.work(0)).unwrap();
    pod.go(0);
    let first = pod.result("first");
    let second = pod.job("second", &shell("stat -c %i .; ls -A"));
    assert_ne!(first.is_good().text("stdout"), second.is_good().text("stdout"));
    // What was open before leads nowhere now.
    assert_eq!(fs::read_dir(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held))).unwrap().count(), 0);
}

#[test]
fn a_mount_point_is_freed_of_what_was_put_on_it() {
    let scratch = Scratch::new();
    let path = scratch.path().join("volume");
    fs::create_dir(&path).unwrap();
    let text = path.to_str().unwrap();
    let answers = probe_here(&["mark", text]);
    assert!(marked(&answers).contains(&"user.left"), "{answers:?}");
    std::os::unix::fs::chown(&path, Some(20_000), Some(20_000)).unwrap();
    marks::take_over(open_dir(&path).unwrap().as_fd(), (0, 20_000), 0o1770).unwrap();
    assert_eq!(probe_here(&["marks", text]), [json!({"attributes": [], "flags": 0})]);
    let metadata = fs::metadata(&path).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (0, 20_000, 0o1770));
}

/// As the job of another slot does that was given a descriptor: it has another UID, and is in the directory already.
#[test]
fn whoever_else_has_a_jobs_directory_open_does_not_keep_it_from_being_removed() {
    let pod = Pod::start();
    pod.put(
        "gives",
        &shell("umask 0; mkdir -p public/deep; touch made; while [ ! -e public/deep/f9 ]; do sleep 0.1; done"),
    );
    pod.runs("gives.1", 0);
    let public = pod.work(0).join("public/deep");
    eventually("the directory", JOB_WITHIN, || pod.work(0).join("made").exists().then_some(()));
    let mut other = Command::new("setpriv");
    other.args(["--reuid", "20001", "--regid", "20001", "--clear-groups", env!("CARGO_BIN_EXE_probe")]);
    let other = other.args(["refill", ".", "600"]).current_dir(&public).stdout(Stdio::null()).spawn();
    let mut other = other.expect("setpriv(1) is missing: .ci/setup.sh test");
    pod.result("gives").is_good();
    let next = pod.job("next", &shell("ls -A"));
    assert!(!is_gone(other.id() as i32), "nobody was there to refill it");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(next.is_good().text("stdout"), "");
    assert!(!pod.said().contains("no job yet"), "{}", pod.said());
}

#[test]
fn inputs_that_find_no_room_are_not_the_jobs_fault() {
    let pod = Options::new().host(&["--data-size", "64m"]).pilot(&["--max-attempts", "1"]).start();
    pod.serves();
    // As if it were filled in the moment in which the inputs are copied: by a descriptor, without a name.
    let path = pod.place().join("slot-0/data/large");
    fs::write(&path, vec![7; 56 << 20]).unwrap();
    let held = fs::File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    pod.put_with("next", &shell("wc -c <data"), &[("inputs/data", &vec![1; 20 << 20])]);
    let first = pod.attempt("next", 1);
    assert_eq!((first.class.name(), first.reason.as_str()), ("retry", "VolumeHeld"), "{first:#?}");
    drop(held);
    let next = pod.result("next");
    assert_eq!((next.is_good().report.attempt, next.text("stdout").trim()), (2, "20971520"));
}

#[test]
fn a_volume_that_others_hold_full_costs_no_job_an_attempt() {
    let pod = Options::new().slots(2).host(&["--data-size", "64m"]).start();
    pod.serves();
    pod.put("a-keeps", &shell("sleep 600"));
    pod.reaches("a-keeps.1", "running");
    pod.put("b-gives", &shell("while [ ! -e given ]; do sleep 0.1; done"));
    pod.reaches("b-gives.1", "running");
    let slot = pod.kept_state("b-gives.1").and_then(|state| state["slot"].as_u64()).unwrap();
    let work = pod.work(u32::try_from(slot).unwrap());
    // As if it had been passed to the other slot: it has no name any more, and is open elsewhere.
    let path = work.join("large");
    fs::write(&path, vec![7; 56 << 20]).unwrap();
    let held = fs::File::open(&path).unwrap();
    fs::write(work.join("given"), "").unwrap();
    pod.result("b-gives");
    pod.put_with("c-next", &shell("wc -c <data"), &[("inputs/data", &vec![1; 20 << 20])]);
    eventually("the slot says why", JOB_WITHIN, || pod.said().contains("VolumeHeld").then_some(()));
    assert!(pod.spool.join("new/c-next").exists(), "it was given a slot without room:\n{}", pod.said());
    drop(held);
    let next = pod.result("c-next");
    assert_eq!((next.is_good().report.attempt, next.text("stdout").trim()), (1, "20971520"));
}
