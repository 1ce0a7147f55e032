//! A job has nothing of root's: no descriptor, no capability, no way back, and it never was root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use latebind_contract::layout;
use latebind_contract::startup::{EnvFile, EnvFormat};
use latebind_tests::engine::podman;
use latebind_tests::processes::{Process, all_pids};
use latebind_tests::slot::{PAYLOAD_CAPABILITIES, Shape, Slot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_descriptor_from_3_up_is_closed() {
    let slot = Slot::new("noshell");
    // Environment files are descriptors of stage two.
    for name in ["env.a", "env.b"] {
        slot.put(name, b"A=1\n");
    }
    let mut startup = slot.job(&["/probe", "fds"]);
    startup.env_files = ["env.a", "env.b"].map(|name| EnvFile { name: name.into(), format: EnvFormat::Sh }).to_vec();
    let fds = lines(&slot.run(&startup).out);
    let numbers: Vec<i64> = fds.iter().map(|fd| fd["fd"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2], "{fds:?}");
    assert_eq!(fds[0]["target"], "/dev/null");
    assert_eq!(fds[1]["target"], "/shared/slot/0/data/work/stdout");
}

#[test]
fn dispositions_are_default_and_the_mask_is_empty() {
    let slot = Slot::new("noshell");
    let has = &lines(&slot.run_args(&["/probe", "status"]).out)[0];
    for set in ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(has[set], "0".repeat(16), "{set}");
    }
}

#[test]
fn a_job_has_no_capability_an_empty_bounding_set_and_no_new_privs() {
    let slot = Slot::new("noshell");
    let mut startup = slot.job(&["/probe", "status"]);
    startup.groups = vec![4711];
    let has = &lines(&slot.run(&startup).out)[0];
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(has[set], "0".repeat(16), "{set}");
    }
    assert_eq!(has["NoNewPrivs"], 1);
    assert_eq!(has["Uid"], Value::from(vec![20_000; 4]));
    assert_eq!(has["Gid"], Value::from(vec![20_000; 4]));
    assert_eq!(has["Groups"], Value::from(vec![4711]));
}

/// Capability sets of a process, as /proc has them.
fn capabilities(pid: i32) -> BTreeMap<String, u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let sets = status.lines().filter_map(|line| line.strip_prefix("Cap")?.split_once(":\t"));
    sets.map(|(name, value)| (name.to_owned(), u64::from_str_radix(value, 16).unwrap())).collect()
}

#[test]
fn glue_itself_keeps_three_capabilities_and_no_more() {
    let mut shape = Shape::of("noshell");
    shape.capabilities.extend(["CHOWN", "DAC_OVERRIDE", "FOWNER", "NET_RAW", "SYS_CHROOT"].map(str::to_owned));
    let slot = Slot::with(&shape);
    let kept = (1 << 5) | (1 << 6) | (1 << 7); // KILL, SETGID, SETUID
    let has = capabilities(slot.glue());
    assert_eq!((has["Eff"], has["Prm"], has["Bnd"], has["Inh"], has["Amb"]), (kept, kept, 0, 0, 0));
}

#[test]
fn a_supervisor_has_no_privilege_at_all() {
    let slot = Slot::new("noshell");
    let mut startup = slot.job(&["/probe", "term-exit", "0"]);
    startup.groups = vec![4711];
    let submitted = slot.submit(&startup);
    let main = slot.await_term_handling(&submitted);
    let supervisor = slot.supervisor().expect("a supervisor");
    assert!(capabilities(supervisor.pid).values().all(|set| *set == 0), "{:?}", capabilities(supervisor.pid));
    let status = fs::read_to_string(format!("/proc/{}/status", supervisor.pid)).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Gid:"), "20000\t20000\t20000\t20000");
    assert_eq!(field("Groups:"), "4711");
    kill(Pid::from_raw(main.pid), Signal::SIGTERM).unwrap();
    slot.finish(&submitted);
}

#[test]
fn ctl_is_closed_to_the_payload() {
    let slot = Slot::new("busybox");
    slot.put("env.other", b"SECRET=1\n");
    let script = "cd /shared/slot/0/ctl; ls /shared/slot/0/ctl; cat /shared/slot/0/ctl/status.json /shared/slot/0/ctl/env.other; \
                  echo x >/shared/slot/0/ctl/glue.notify; echo x >/shared/slot/0/ctl/record.jws";
    let finished = slot.run_script(script);
    assert_eq!(finished.out, "");
    assert_eq!(finished.err.matches("Permission denied").count(), 1 + 1 + 2 + 2, "{}", finished.err);
}

#[test]
fn nothing_that_a_payload_tries_forges_a_record_or_reaches_glue() {
    // What the filter of system calls refuses, the kernel has to refuse without it too.
    for arguments in [&[][..], &["--no-seccomp"]] {
        let shape = Shape { arguments: arguments.iter().map(|word| (*word).into()).collect(), ..Shape::of("busybox") };
        nothing_works(&Slot::with(&shape));
    }
}

fn nothing_works(slot: &Slot) {
    let finished = slot.run_args(&["/probe", "forge"]);
    let tried = lines(&finished.out);
    let own_file = format!("record in {}", layout::work(0));
    let worked: Vec<&str> = tried
        .iter()
        .filter(|attempt| attempt["ok"] == true)
        .map(|attempt| attempt["attempt"].as_str().unwrap())
        // Its own directory is its own.
        .filter(|attempt| *attempt != own_file)
        .collect();
    assert!(worked.is_empty(), "{worked:?}");
    assert!(tried.len() > 30, "only {} attempts", tried.len());
    assert_eq!(finished.record.exit_code, Some(0));
    slot.prove_that_it_serves();
}

#[test]
fn the_startup_file_is_gone_before_the_job_runs_and_the_key_is_nowhere_to_be_seen() {
    let slot = Slot::new("noshell");
    let submitted = slot.submit(&slot.job(&["/probe", "term-exit", "0"]));
    let main = slot.await_term_handling(&submitted);
    assert!(!slot.ctl().join(layout::STARTUP).exists());
    let key = latebind_contract::encoding::base64url(submitted.startup.key.bytes());
    let status = fs::read_to_string(slot.ctl().join(layout::STATUS)).unwrap();
    assert!(!status.contains(&key) && !slot.log().contains(&key));
    for process in slot.processes() {
        for file in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{}/{file}", process.pid)).unwrap();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(!text.contains(&key), "the key is in the {file} of {}", process.command);
        }
    }
    kill(Pid::from_raw(main.pid), Signal::SIGTERM).unwrap();
    slot.finish(&submitted);
}

#[test]
fn glue_is_not_dumpable_while_it_has_a_key() {
    let mut slot = Slot::new("noshell");
    // Root with glue's own capabilities, in another container of the pod: as near as anybody but the node can come.
    let (reader, _) = slot.neighbour("busybox", "0:0", &PAYLOAD_CAPABILITIES, &["/bin/sleep", "1000"]);
    let pid = slot.status().pid;
    let readable_of = |pid: i32| {
        let script = "for f in environ maps auxv; do cat $f >/dev/null 2>&1 && echo $f; done; true";
        podman(&["exec", &reader, "/bin/sh", "-c", &format!("cd /proc/{pid} && {script}")])
    };
    let readable = || readable_of(pid);
    assert_eq!(readable(), "environ\nmaps\nauxv", "an idle glue can be read by its like, else this test shows nothing");
    let submitted = slot.submit(&slot.job(&["/probe", "term-exit", "0"]));
    let main = slot.await_term_handling(&submitted);
    assert_eq!(readable(), "", "of a glue whose job runs");
    let supervisor = slot.supervisor().expect("a supervisor");
    assert_eq!(readable_of(supervisor.pid_in_pod), "", "of the supervisor, which has the key");
    kill(Pid::from_raw(main.pid), Signal::SIGTERM).unwrap();
    slot.finish(&submitted);
    assert_eq!(readable(), "environ\nmaps\nauxv", "the key is wiped, and glue is as before");
}

/// What was seen of one process: all its UIDs, all its command lines.
#[derive(Debug, Default)]
struct Life {
    was_root: bool,
    commands: Vec<String>,
    /// A command that was seen first, and UID 0 after it.
    root_after: Vec<String>,
}

/// Looks at every process as fast as it can, until told to stop; counts in `seen` the lives that have been
/// `of_interest`.
fn observe(
    glue: i32,
    stop: &AtomicBool,
    seen: &AtomicUsize,
    of_interest: impl Fn(&str) -> bool,
) -> BTreeMap<(i32, u64), Life> {
    let mut lives = BTreeMap::<(i32, u64), Life>::new();
    while !stop.load(Ordering::Relaxed) {
        for pid in all_pids().into_iter().filter(|pid| *pid > glue) {
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let Some(started) = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)?.parse().ok())
            else {
                continue;
            };
            // The command first: whoever is root after it has been root with it.
            let Some(process) = Process::look(pid) else { continue };
            let life = lives.entry((pid, started)).or_default();
            if process.uids.contains(&0) {
                life.was_root = true;
                life.root_after.push(process.command.clone());
            }
            if !life.commands.contains(&process.command) {
                seen.fetch_add(usize::from(of_interest(&process.command)), Ordering::Relaxed);
                life.commands.push(process.command);
            }
        }
    }
    lives
}

#[test]
fn neither_stage_two_nor_the_job_is_ever_seen_as_root() {
    let slot = Slot::new("noshell");
    let (stop, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    let glue = slot.glue();
    let is_job = |command: &str| command == "/probe sleep 0.01 observed";
    let lives = std::thread::scope(|scope| {
        let observer = scope.spawn(|| observe(glue, &stop, &seen, is_job));
        // The observer is not blind, however busy the machine is: it has met that many jobs.
        let mut jobs = 0;
        while seen.load(Ordering::Relaxed) < 50 && jobs < 5000 {
            slot.run_args(&["/probe", "sleep", "0.01", "observed"]);
            jobs += 1;
        }
        stop.store(true, Ordering::Relaxed);
        observer.join().unwrap()
    });
    let is_stage_two = |command: &str| command.starts_with("glue stage-two");
    let jobs: Vec<&Life> = lives.values().filter(|life| life.commands.iter().any(|c| is_job(c))).collect();
    assert!(jobs.len() >= 50, "{} jobs seen", jobs.len());
    for life in &jobs {
        assert!(!life.was_root, "a job's process was root: {life:?}");
    }
    for life in lives.values() {
        assert!(!life.root_after.iter().any(|c| is_stage_two(c)), "stage two was root: {life:?}");
    }
}

#[test]
fn a_job_cannot_become_root_by_a_setuid_program() {
    let slot = Slot::new("busybox");
    // A copy of busybox that is root's and has the setuid bit, made where the payload can run it.
    let program = slot.work().join("busybox");
    let container = format!("/proc/{}/root/bin/busybox", slot.glue());
    fs::copy(container, &program).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
    let finished = slot.run_args(&["./busybox", "id", "-u"]);
    assert_eq!(finished.out, "20000\n");
}
