//! The system calls that glue makes as root, and those that a job's supervisor makes, are those that `docs/audit.md`
//! lists, as strace sees them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test ends by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use latebind_contract::record::Outcome;
use latebind_contract::startup::{Amount, EnvFile, EnvFormat, Object, Rlimit, Startup, Stop};
use latebind_tests::job::one;
use latebind_tests::scratch::Scratch;
use latebind_tests::slot::Slot;
use latebind_tests::tracer::Tracer;

/// Calls by their names, each with a line that has it.
type Calls = BTreeMap<String, String>;

/// The calls of glue and its forks as root, and those of the forks from their change of IDs on until they execute
/// something.
fn calls_of_glue(glue: i32, log: &str) -> (Calls, Calls) {
    let mut ours = BTreeSet::from([glue.to_string()]);
    let mut dropped = BTreeSet::new();
    let (mut of_root, mut of_supervisors) = (Calls::new(), Calls::new());
    for line in log.lines() {
        let (pid, rest) = line.split_once(' ').unwrap_or_default();
        let rest = rest.trim_start();
        // Also where the fork that made this process has not yet returned to the one that made it.
        let is_drop = rest.starts_with("setresuid(");
        if is_drop && !ours.contains(pid) {
            dropped.insert(pid.to_owned());
        }
        // The wait in which strace found it goes on by a call of the kernel's own.
        if !ours.contains(pid) || rest.starts_with(['+', '-']) || rest.starts_with("restart_syscall") {
            continue;
        }
        let resumed = rest.strip_prefix("<... ").and_then(|rest| rest.split(' ').next());
        let name = resumed.unwrap_or_else(|| rest.split('(').next().unwrap_or(rest));
        let calls = if dropped.contains(pid) { &mut of_supervisors } else { &mut of_root };
        calls.entry(name.to_owned()).or_insert_with(|| line.to_owned());
        if is_drop {
            dropped.insert(pid.to_owned());
        }
        let result = rest.rsplit_once("= ").map_or("", |(_, result)| result);
        let made = result.split_once("/* ").map_or(result, |(_, here)| here).split(' ').next().unwrap_or_default();
        match name {
            // Forks are glue until they execute stage two, and those of a supervisor have its IDs.
            "fork" | "vfork" | "clone" | "clone3" => {
                ours.insert(made.to_owned());
                if dropped.contains(pid) {
                    dropped.insert(made.to_owned());
                }
            }
            "execve" | "execveat" if result == "0" => drop(ours.remove(pid)),
            _ => {}
        }
    }
    (of_root, of_supervisors)
}

/// The calls that the document names in the section with this heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/audit.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let quoted = section.split('`').skip(1).step_by(2);
    let name = |text: &str| {
        text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_').next().map(str::to_owned)
    };
    quoted.filter_map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn each_system_call_of_root_and_of_supervisors_is_in_the_audit_document() {
    let slot = Slot::new("busybox");
    let scratch = Scratch::new();
    let log = scratch.path().join("strace");
    // Process IDs as they are here, not as the container has them.
    let tracer = Tracer::attach(slot.glue(), &["--decode-pids=pidns"], &log).unwrap();
    let shell = |script: &str| slot.job(&["/bin/sh", "-c", script]);
    let outcome =
        |startup: Startup| slot.finish_at_most(Duration::from_secs(60), &slot.submit(&startup)).record.outcome;

    assert_eq!(outcome(shell("exit 3")), Outcome::Exited);
    let mut full = shell("exec true");
    slot.put("env.a", b"A=1\n");
    full.env_files = vec![EnvFile { name: "env.a".into(), format: EnvFormat::Sh }];
    full.groups = vec![30_000, 30_001];
    full.rlimits = one("core", Rlimit { soft: Amount::Of(0), hard: Amount::Of(0) });
    let links = ["/link", "/etc/profile", "/tmp", "/new/link"].map(|path| (path.into(), "/dev".into()));
    full.links = Object(links.to_vec());
    full.passwd = true;
    assert_eq!(outcome(full), Outcome::Exited);
    let mut obeys = shell("exec sleep 1000");
    (obeys.timeout_s, obeys.grace_s, obeys.stop) = (0.5, 30.0, Stop::Group);
    assert_eq!(outcome(obeys), Outcome::TimedOut);
    let mut ignores = shell("trap '' TERM; while :; do sleep 1000; done");
    (ignores.timeout_s, ignores.grace_s) = (0.5, 0.5);
    assert_eq!(outcome(ignores), Outcome::TimedOut);
    assert_eq!(outcome(shell("setsid sleep 1000 & setsid sleep 1001 & exit 0")), Outcome::Exited);
    assert_eq!(outcome(slot.job(&["/no/such/program"])), Outcome::NotStarted);
    slot.put("startup.jsonl", b"{}");
    slot.notify();
    slot.wait_for("a refusal", |status| status.refused.is_some());
    tracer.detach().unwrap();

    let (of_root, of_supervisors) = calls_of_glue(slot.glue(), &fs::read_to_string(&log).unwrap());
    for (heading, calls, seen) in [
        ("System calls made as root", of_root, &["setresuid", "symlinkat", "renameat"][..]),
        ("System calls of a supervisor", of_supervisors, &["execveat", "kill", "pidfd_open", "memfd_create"]),
    ] {
        for part in seen {
            assert!(calls.contains_key(*part), "{part} was not seen: {:?}", calls.keys());
        }
        let documented = documented(heading);
        let missing: Vec<&String> =
            calls.iter().filter(|(name, _)| !documented.contains(*name)).map(|(_, line)| line).collect();
        assert!(missing.is_empty(), "\"{heading}\" of docs/audit.md does not have these: {missing:#?}");
    }
}
