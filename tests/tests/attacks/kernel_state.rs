//! State in the kernel that is kept by UID, and calls that have no business in a batch job: the filter of system calls.
//!
//! The engine's own filter is off in these tests, so that what is refused is refused by glue's.

use std::collections::BTreeMap;

use latebind_tests::pod::{BUSYBOX, Pod, with};
use latebind_tests::slot::{Shape, Slot};
use nix::libc;
use serde_json::{Value, json};

/// A slot without the engine's filter.
fn slot(image: &str, arguments: &[&str]) -> Slot {
    let mut shape = Shape::of(image).option("--security-opt=seccomp=unconfined");
    shape.arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
    Slot::with(&shape)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn answer(slot: &Slot, argv: &[&str]) -> Value {
    let finished = slot.run_args(argv);
    assert_eq!(finished.record.exit_code, Some(0), "{:?} {}", finished.record, finished.err);
    lines(&finished.out).pop().unwrap()
}

#[test]
fn a_key_of_one_job_is_not_there_for_the_next() {
    let slot = slot("noshell", &[]);
    let put = answer(&slot, &["/probe", "keyring", "put", "password of alice"]);
    assert_eq!(put, json!({"joined": libc::EPERM, "linked": libc::EPERM, "added": libc::EPERM}));
    let got = answer(&slot, &["/probe", "keyring", "get"]);
    assert_eq!(got, json!({"error": libc::EPERM, "found": null}));
}

#[test]
fn without_the_filter_a_key_of_one_job_is_there_for_the_next() {
    // Else the test above would show nothing.
    let slot = slot("noshell", &["--no-seccomp"]);
    let put = answer(&slot, &["/probe", "keyring", "put", "password of alice"]);
    assert_eq!(put, json!({"joined": null, "linked": null, "added": null}));
    let got = answer(&slot, &["/probe", "keyring", "get"]).to_string();
    // It is the whole machine's, so that it must not stay.
    assert_eq!(answer(&slot, &["/probe", "keyring", "clear"]), json!({"error": null}));
    assert!(got.contains("keyring;") && got.contains("user;") && got.contains("password of alice"), "{got}");
    assert_eq!(slot.prove_that_it_serves().seccomp, Some(false), "the record says so");
}

#[test]
fn owners_of_one_pod_find_no_keys_of_each_other() {
    let pod = Pod::start();
    let job = |owner: &str, argv: &[&str]| with(json!({"image": BUSYBOX, "argv": argv}), "owner", owner.into());
    let alice = pod.job("alice", &job("alice", &["/probe", "keyring", "put", "password of alice"]));
    assert_eq!(alice.is_good().answers()[0]["linked"], libc::EPERM);
    let bob = pod.job("bob", &job("bob", &["/probe", "keyring", "get"]));
    assert_eq!(bob.is_good().answers(), [json!({"error": libc::EPERM, "found": null})]);
    assert_eq!(bob.report.record.as_ref().unwrap().seccomp, Some(true));
}

/// Errno by call.
fn calls(arguments: &[&str]) -> BTreeMap<String, i64> {
    let slot = slot("noshell", arguments);
    let finished = slot.run_args(&["/probe", "calls"]);
    assert_eq!(finished.record.exit_code, Some(0), "{}", finished.err);
    let of = |line: &Value| (line["call"].as_str().unwrap().to_owned(), line["errno"].as_i64().unwrap());
    lines(&finished.out).iter().map(of).collect()
}

#[test]
fn each_call_of_the_table_is_refused_and_what_programs_need_is_not() {
    let filtered = calls(&[]);
    assert!(filtered.len() > 40, "{filtered:?}");
    for (call, errno) in &filtered {
        let wanted = match call.as_str() {
            "clone3" => libc::ENOSYS,
            "clone" | "unshare(FILES)" => 0,
            _ => libc::EPERM,
        };
        assert_eq!(*errno, i64::from(wanted), "{call}");
    }
    // It is the filter that refuses: without it the kernel has other answers to most.
    let unfiltered = calls(&["--no-seccomp"]);
    let by_the_filter = unfiltered.iter().filter(|(call, errno)| filtered[*call] != **errno).count();
    assert!(by_the_filter > 10, "{unfiltered:?}");
    for call in ["keyctl", "add_key", "request_key", "userfaultfd", "io_uring_setup", "clone3"] {
        assert_ne!(filtered[call], unfiltered[call], "{call}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_call_by_the_way_of_32_bit_programs_ends_the_job() {
    let filtered = slot("noshell", &[]);
    let mut startup = filtered.job(&["/probe", "foreign-call"]);
    startup.rlimits = latebind_tests::job::one("core", serde_json::from_value(json!({"soft": 0, "hard": 0})).unwrap());
    let finished = filtered.run(&startup);
    // A kernel that has no such way (User Mode Linux) takes it for an ordinary call, number 20 of its own table.
    let unfiltered = slot("noshell", &["--no-seccomp"]).run_args(&["/probe", "foreign-call"]);
    if lines(&unfiltered.out)[0]["answer"].as_i64().unwrap() > 0 {
        assert_eq!(finished.record.signal, Some(libc::SIGSYS), "{:?}", finished.record);
    } else {
        assert_eq!(finished.out, unfiltered.out, "{:?}", finished.record);
    }
    filtered.prove_that_it_serves();
}

#[test]
fn ordinary_programs_run_under_the_filter() {
    let busybox = slot("busybox", &[]);
    let script = "set -e; echo a | tr a b; (exit 3) || echo $?; ls / >/dev/null; sleep 0.01 & wait; tar cf - /etc | tar tf - >/dev/null; \
                  dd if=/dev/zero of=f bs=1024 count=10 2>/dev/null; wc -c <f; mkfifo p; (echo c >p) & cat p; /probe threads 20";
    let finished = busybox.run_script(script);
    assert_eq!(finished.record.exit_code, Some(0), "{}", finished.err);
    assert_eq!(finished.out, "b\n3\n10240\nc\n{\"child\":true,\"sum\":190}\n");
    let debian = slot("debian", &[]);
    let script = "set -e; cat <(echo a) | sort -u; \
                  perl -e '$p = fork // die; exit 4 unless $p; waitpid $p, 0; print q(perl ), $? >> 8, qq(\\n)'; \
                  timeout 5 sleep 0.01; find / -xdev -maxdepth 1 >/dev/null; dpkg --version >/dev/null; \
                  for n in 1 2 3; do (echo $n) & done | sort | tr -d '\\n'; echo; echo end";
    let finished = debian.run_args(&["/bin/bash", "-c", script]);
    assert_eq!(finished.record.exit_code, Some(0), "{}", finished.err);
    assert_eq!(finished.out, "a\nperl 4\n123\nend\n");
}

#[test]
fn a_child_of_glues_own_that_aborts_signals_itself_and_not_glue() {
    let said = answer(&slot("noshell", &[]), &["/probe", "abort-in-child"]);
    assert_eq!(said, json!({"child_ended_by": libc::SIGABRT, "own_signal": false}));
}
