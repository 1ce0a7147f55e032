//! What a job leaves behind is gone before the next one: processes, files, and every kind of IPC object that outlives
//! them.

use latebind_tests::pod::{BUSYBOX, JOB_WITHIN, Options, Outcome, Pod, Signal, eventually, kill, probe, shell, with};
use latebind_tests::slot::WAIT_FOR_GO;
use serde_json::{Value, json};

/// IPC objects of the payload's UID that the next job of the pod sees.
fn seen(pod: &Pod, outcome: &Outcome) -> Vec<Value> {
    outcome.is_good();
    let uid = pod.uid(0);
    outcome.answers().into_iter().filter(|o| o["uid"] == uid || o["cuid"] == uid).collect()
}

#[test]
fn ipc_objects_do_not_outlive_the_job() {
    let pod = Pod::start();
    let both = pod.job(
        "own",
        &json!({"image": BUSYBOX, "argv": ["/bin/sh", "-c", "/probe ipc; /probe ipc-list >list; cat list"]}),
    );
    let (created, listed): (Vec<Value>, Vec<Value>) =
        both.answers().into_iter().partition(|o| o["created"].is_string());
    let failed: Vec<&Value> = created.iter().filter(|o| o["ok"] != true).collect();
    assert!(created.len() == 6 && failed.is_empty(), "not all kinds were made: {failed:?}");
    // Or the check below would look at nothing.
    for kind in ["shm", "sem", "msg", "mqueue", "file"] {
        assert!(
            listed.iter().any(|o| o["kind"] == kind && o["uid"] == pod.uid(0)),
            "{kind} is not seen by its own job: {listed:?}"
        );
    }
    assert_eq!(seen(&pod, &pod.job("next", &probe(&["ipc-list"]))), Vec::<Value>::new());
}

#[test]
fn ipc_objects_do_not_outlive_the_job_where_the_container_stays() {
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    let of_alice = |words: &[&str]| with(probe(words), "owner", json!("alice"));
    pod.job("leaves", &of_alice(&["ipc"])).is_good();
    let next = pod.job("next", &of_alice(&["ipc-list"]));
    assert!(next.report.reused_container);
    assert_eq!(seen(&pod, &next), Vec::<Value>::new());
}

#[test]
fn ipc_objects_of_a_lost_job_do_not_reach_the_next_one() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    pod.put("lost", &shell("/probe ipc; touch made; sleep 60"));
    pod.runs("lost.1", 0);
    eventually("the objects are made", JOB_WITHIN, || pod.work(0).join("made").exists().then_some(()));
    kill(pod.main_process(&pod.payload_role(0)), Signal::SIGKILL);
    assert_eq!(pod.result("lost").class().0, "retry");
    assert_eq!(seen(&pod, &pod.job("next", &probe(&["ipc-list"]))), Vec::<Value>::new());
}

#[test]
fn objects_of_a_neighbouring_slot_stay() {
    let pod = Options::new().slots(2).start();
    // The second one ends, and is cleaned up after, while the first one lives.
    pod.put("a-stays", &shell(&format!("/probe ipc >/dev/null; touch made; {WAIT_FOR_GO}; /probe ipc-list")));
    pod.reaches("a-stays.1", "running");
    let slot = u32::try_from(pod.kept_state("a-stays.1").unwrap()["slot"].as_u64().unwrap()).unwrap();
    eventually("the objects are made", JOB_WITHIN, || pod.work(slot).join("made").exists().then_some(()));
    pod.job("b-short", &probe(&["hello"])).is_good();
    pod.go(slot);
    let stays = pod.result("a-stays");
    let slot = stays.is_good().report.slot.unwrap();
    let own: Vec<Value> = stays.answers().into_iter().filter(|o| o["uid"] == pod.uid(slot)).collect();
    for kind in ["shm", "sem", "msg", "mqueue", "file"] {
        assert!(own.iter().any(|o| o["kind"] == kind), "{kind} of a running job was removed: {own:?}");
    }
}

#[test]
fn files_with_odd_modes_and_names_are_removed() {
    let pod = Pod::start();
    let script = "mkdir -p a/b/c locked/in; touch a/b/c/f locked/in/f '-rf' ' ' \"$(printf 'new\\nline')\" \"$(printf '\\377')\" .dot; \
                  ln -s / root; ln -s /shared/bin/glue glue; mkfifo fifo; chmod 000 a/b/c a/b a locked/in/f locked/in; \
                  chmod 555 locked; chmod 000 .";
    pod.job("leaves", &shell(script)).is_good();
    let next = pod.job("next", &shell("ls -A; stat -c '%a %u' ."));
    assert_eq!(next.is_good().text("stdout"), format!("700 {}\n", pod.uid(0)));
    assert!(pod.place().join("bin/glue").exists(), "a link was followed");
}

/// 2500 levels, so more than a process may have files open (1024), with more bytes than a path may have (4096): a tree
/// is moved below another one, again and again.
const DEEP: &str = "set -e; mkdir top; n=0; while [ $n -lt 25 ]; do d=$(seq 100 199 | tr '\\n' /); mkdir -p up/$d; \
                    mv top up/$d; mv up top; n=$((n+1)); done; echo made";

#[test]
fn a_tree_that_is_deeper_than_a_path_can_say_is_removed() {
    let pod = Pod::start();
    let leaves = pod.job("leaves", &shell(DEEP));
    assert_eq!(leaves.is_good().text("stdout"), "made\n", "{}", leaves.text("stderr"));
    let next = pod.job("next", &shell("ls -A"));
    assert_eq!(next.is_good().text("stdout"), "");
    assert_eq!(next.report.attempt, 1);
}

#[test]
fn a_deep_tree_in_dev_shm_is_removed() {
    let pod = Pod::start();
    let leaves = pod.job("leaves", &shell(&format!("cd /dev/shm; {DEEP}; chmod 000 top")));
    assert_eq!(leaves.is_good().text("stdout"), "made\n", "{}", leaves.text("stderr"));
    let next = pod.job("next", &shell("ls -A /dev/shm"));
    assert_eq!(next.is_good().text("stdout"), "");
}

#[test]
fn a_deep_tree_in_dev_shm_is_removed_where_the_container_stays() {
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    let of_alice = |script: &str| with(shell(script), "owner", json!("alice"));
    let leaves = pod.job("leaves", &of_alice(&format!("cd /dev/shm; {DEEP}; ln -s /shared/bin link; chmod 000 top")));
    assert_eq!(leaves.is_good().text("stdout"), "made\n", "{}", leaves.text("stderr"));
    let next = pod.job("next", &of_alice("ls -A /dev/shm"));
    assert!(next.report.reused_container);
    assert_eq!(next.is_good().text("stdout"), "");
    assert!(pod.place().join("bin/glue").exists(), "a link was followed");
}

#[test]
fn many_files_are_removed() {
    let pod = Pod::start();
    pod.job("leaves", &shell("i=0; while [ $i -lt 20000 ]; do : >f$i; i=$((i+1)); done")).is_good();
    assert_eq!(pod.job("next", &shell("ls -A")).is_good().text("stdout"), "");
}

#[test]
fn daemons_do_not_outlive_the_job() {
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    let of_alice = |script: &str| json!({"image": BUSYBOX, "argv": ["/bin/sh", "-c", script], "owner": "alice"});
    let leaves = pod.job("leaves", &of_alice("/probe daemons 20; sleep 1000 & "));
    leaves.is_good();
    let processes = leaves.report.record.as_ref().unwrap().processes;
    assert!(processes.left_over_killed >= 20 && processes.unkilled == 0, "{processes:?}");
    let next = pod.job("next", &of_alice("ps -o user,args | grep -cE '[p]robe daemons|[s]leep 1000'"));
    assert!(next.report.reused_container);
    assert_eq!(next.text("stdout"), "0\n");
}

#[test]
fn a_full_sandbox_does_not_stop_the_next_job() {
    let pod = Pod::start();
    // The volumes of the contract are in memory and small: what the payload can fill is its own.
    pod.job("fills", &shell("head -c 50000000 /dev/zero >big; head -c 10000000 /dev/zero >/dev/shm/big; true"))
        .is_good();
    assert_eq!(pod.job("next", &shell("ls -A; ls -A /dev/shm")).is_good().text("stdout"), "");
}
