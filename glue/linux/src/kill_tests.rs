//! These run in a PID namespace of their own (`.cargo/config.toml`), and make sure of it before they do anything.

use super::*;

/// Whether PID 1 of this namespace is the runner that made it, not the init of a machine.
fn in_own_namespace() -> bool {
    let outer = std::env::var("LATEBIND_OUTER_PID_NAMESPACE").unwrap_or_default();
    let own = std::fs::read_link("/proc/self/ns/pid").map(|l| l.display().to_string()).unwrap_or_default();
    !outer.is_empty() && !own.is_empty() && outer != own
}

#[test]
fn a_refusal_comes_first() {
    // As root, with whatever IDs: nothing may be signalled. The test is still there afterwards.
    assert!(in_own_namespace(), "run the tests with `cargo test` in this workspace, which gives them a PID namespace");
    for (payload, kill) in
        [(0, 65_100), (20_000, 0), (u32::MAX, 65_100), (20_000, u32::MAX), (20_000, 20_000), (20_000, 65_100)]
    {
        assert!(sys::stop_all_of(payload, kill).is_err(), "{payload} {kill}");
    }
    let Ok(proc) = Proc::open() else { panic!("no /proc") };
    for (uid, kill_uid) in [(0, 65_100), (20_000, 0), (u32::MAX, 65_100), (20_000, u32::MAX), (20_000, 20_000)] {
        let ids = Ids { uid, gid: 20_000, kill_uid };
        let routine = Routine { proc: &proc, ids, cgroup: "" };
        assert!(routine.run(Instant::now() + Duration::from_secs(1)).is_err(), "{ids:?}");
    }
}

#[test]
fn groups_and_everyone_are_refused_as_targets() {
    assert!(sys::signal_process(0, 0).is_err());
    assert!(sys::signal_process(-1, 0).is_err());
    assert!(sys::signal_process(-5, 0).is_err());
}

#[test]
fn ends_what_has_the_uid_and_nothing_else() {
    assert!(in_own_namespace());
    let sleeper = |uid: u32| {
        use std::os::unix::process::CommandExt;
        std::process::Command::new("sleep").arg("100").uid(uid).gid(uid).spawn()
    };
    let (Ok(mut mine), Ok(mut other)) = (sleeper(23_456), sleeper(23_457)) else { panic!("no sleep(1), or not root") };
    let Ok(proc) = Proc::open() else { panic!("no /proc") };
    let cgroup = proc.cgroup(std::process::id() as i32).unwrap_or_default();
    let ids = Ids { uid: 23_456, gid: 23_456, kill_uid: 65_100 };
    // In another container, so it seems: stopped for a moment, then continued.
    let elsewhere = Routine { proc: &proc, ids, cgroup: "another" };
    assert_eq!(elsewhere.run(Instant::now() + Duration::from_secs(5)).ok(), Some(0));
    assert!(mine.try_wait().is_ok_and(|ended| ended.is_none()));
    assert!(proc.process(mine.id() as i32).is_some_and(|p| p.lives() && !p.is_stopped()));
    let routine = Routine { proc: &proc, ids, cgroup: &cgroup };
    // Not to another group, not to what seems to be in another container.
    let term = Signal::SIGTERM;
    assert!(routine.signal(Some(i32::MAX), term).is_ok() && elsewhere.signal(None, term).is_ok());
    assert!(mine.try_wait().is_ok_and(|ended| ended.is_none()));
    assert_eq!(routine.run(Instant::now() + Duration::from_secs(5)).ok(), Some(0));
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(mine.wait().ok().and_then(|s| s.signal()), Some(9));
    assert!(other.try_wait().is_ok_and(|ended| ended.is_none()));
    let _ = other.kill().and_then(|()| other.wait());
}
