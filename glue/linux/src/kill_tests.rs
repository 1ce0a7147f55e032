//! These run in a PID namespace of their own (`.cargo/config.toml`), and make sure of it before they do anything.

use std::os::fd::AsFd;

use super::*;

/// More than any of these takes.
const LONG: Duration = Duration::from_secs(20);

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
    let proc = Proc::open().unwrap();
    // Bad numbers, and good ones that were not taken.
    for (uid, kill_uid) in
        [(0, 65_100), (20_000, 0), (u32::MAX, 65_100), (20_000, u32::MAX), (20_000, 20_000), (20_000, 65_100)]
    {
        let ids = Ids { uid, gid: 20_000, kill_uid };
        let routine = Routine { proc: &proc, ids, cgroup: "" };
        assert!(routine.run(&KillLock { _lock: None }, Instant::now() + LONG).is_err(), "{ids:?}");
    }
}

#[test]
fn groups_and_everyone_are_refused_as_targets() {
    assert!(sys::signal_process(0, 0).is_err());
    assert!(sys::signal_process(-1, 0).is_err());
    assert!(sys::signal_process(-5, 0).is_err());
}

/// A process of another user that ends with the test.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn of(uid: u32) -> Self {
        use std::os::unix::process::CommandExt;
        Self(std::process::Command::new("sleep").arg("100").uid(uid).gid(uid).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Starts a process that runs the routine as soon as it has the lock.
fn start(routine: &Routine<'_>, ctl: BorrowedFd<'_>) -> i32 {
    match sys::fork().unwrap() {
        sys::Fork::Parent(pid) => pid,
        sys::Fork::Child => {
            let deadline = Instant::now() + LONG;
            let lock = KillLock::in_slot(ctl, deadline);
            let left = lock.and_then(|lock| take_ids(routine.ids).and_then(|()| routine.run(&lock, deadline)));
            sys::exit_now(left.map_or(255, |left| left as i32))
        }
    }
}

/// What such a process ends with: the number of processes that are left, or 255.
fn end_of(pid: i32) -> i32 {
    let ended = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
    let nix::sys::wait::WaitStatus::Exited(_, code) = ended else { panic!("{ended:?}") };
    code
}

fn is_unharmed(proc: &Proc, sleeper: &Sleeper) -> bool {
    proc.process(sleeper.pid()).is_some_and(|p| p.lives() && !p.is_stopped())
}

#[test]
fn ends_what_has_the_uid_and_nothing_else() {
    assert!(in_own_namespace());
    let (mut mine, other) = (Sleeper::of(23_456), Sleeper::of(23_457));
    let proc = Proc::open().unwrap();
    let cgroup = proc.cgroup(std::process::id() as i32).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let ctl = std::fs::File::open(scratch.path()).unwrap();
    let ids = Ids { uid: 23_456, gid: 23_456, kill_uid: 65_100 };
    // In another container, so it seems: stopped for a moment, then continued.
    let elsewhere = Routine { proc: &proc, ids, cgroup: "another" };
    assert_eq!(end_of(start(&elsewhere, ctl.as_fd())), 0);
    assert!(is_unharmed(&proc, &mine));
    let routine = Routine { proc: &proc, ids, cgroup: &cgroup };
    // Not to another group, not to what seems to be in another container.
    let term = Signal::SIGTERM;
    assert!(routine.signal(Some(i32::MAX), term).is_ok() && elsewhere.signal(None, term).is_ok());
    assert!(mine.0.try_wait().is_ok_and(|ended| ended.is_none()));
    assert_eq!(end_of(start(&routine, ctl.as_fd())), 0);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(mine.0.wait().ok().and_then(|s| s.signal()), Some(9));
    assert!(is_unharmed(&proc, &other));
}

#[test]
fn what_another_routine_has_stopped_and_continued_is_not_left_stopped() {
    assert!(in_own_namespace());
    let elsewhere = Sleeper::of(23_458);
    let proc = Proc::open().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (ctl, other_ctl) = (std::fs::File::open(scratch.path()).unwrap(), std::fs::File::open(scratch.path()).unwrap());
    let ids = Ids { uid: 23_458, gid: 23_458, kill_uid: 65_101 };
    let first = KillLock::in_slot(ctl.as_fd(), Instant::now() + LONG).unwrap();
    sys::signal_process(elsewhere.pid(), Signal::SIGSTOP as i32).unwrap();
    while !proc.process(elsewhere.pid()).is_some_and(|p| p.is_stopped()) {
        std::thread::yield_now();
    }
    // A second one does not look before the first has ended, or it would take the process for stopped by somebody else.
    let second = start(&Routine { proc: &proc, ids, cgroup: "another" }, other_ctl.as_fd());
    let locked = KillLock::in_slot(other_ctl.as_fd(), Instant::now()).unwrap();
    assert!(locked._lock.is_none(), "one at a time");
    sys::signal_process(elsewhere.pid(), Signal::SIGCONT as i32).unwrap();
    drop(first);
    assert_eq!(end_of(second), 0);
    assert!(is_unharmed(&proc, &elsewhere));
    // What was stopped by somebody else stays so.
    sys::signal_process(elsewhere.pid(), Signal::SIGSTOP as i32).unwrap();
    while !proc.process(elsewhere.pid()).is_some_and(|p| p.is_stopped()) {
        std::thread::yield_now();
    }
    assert_eq!(end_of(start(&Routine { proc: &proc, ids, cgroup: "another" }, ctl.as_fd())), 0);
    assert!(proc.process(elsewhere.pid()).is_some_and(|p| p.is_stopped()));
}
