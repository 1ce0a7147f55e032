//! Glue ends when it is told to, without a job and with one; killed, it leaves no record and no process.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::time::Duration;

use latebind_contract::layout;
use latebind_contract::record::Outcome;
use latebind_contract::startup::Stop;
use latebind_contract::verify::Refusal;
use latebind_tests::job::Submitted;
use latebind_tests::processes::{Process, in_cgroup};
use latebind_tests::scratch::Scratch;
use latebind_tests::slot::{Shape, Slot, WAIT_FOR_GO};
use latebind_tests::tracer::Tracer;
use latebind_tests::waiting::{LIMIT, within};
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What glue ends with where a record is lost.
const LOST: i32 = 4;

#[test]
fn an_idle_glue_ends_on_any_signal_that_can_be_caught() {
    let mut slot = Slot::installed();
    for number in
        [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGWINCH, libc::SIGRTMIN() + 3]
    {
        slot.start(&Shape::of("noshell"));
        slot.await_ready();
        // By kill(1), since nix knows no real-time signals.
        let sent = std::process::Command::new("kill").arg(format!("-{number}")).arg(slot.glue().to_string()).status();
        assert!(sent.unwrap().success());
        assert_eq!(slot.exit_code(), 0, "signal {number}: {}", slot.log());
    }
}

#[test]
fn an_idle_glue_that_has_served_ends_too() {
    let slot = Slot::new("noshell");
    slot.prove_that_it_serves();
    slot.signal(Signal::SIGTERM);
    assert_eq!(slot.exit_code(), 0);
}

#[test]
fn an_idle_glue_that_was_suspended_waits_on() {
    let slot = Slot::new("noshell");
    for _ in 0..2 {
        slot.signal(Signal::SIGSTOP);
        within(LIMIT, "a suspended glue", || (Process::look(slot.glue())?.state == 'T').then_some(()));
        slot.signal(Signal::SIGCONT);
        within(LIMIT, "a glue that has taken the signal", || {
            Process::look(slot.glue()).filter(|glue| !glue.has_pending_signals() && glue.state == 'S').map(drop)
        });
        slot.prove_that_it_serves();
    }
}

#[test]
fn a_suspended_glue_goes_on_where_it_was() {
    let slot = Slot::new("busybox");
    let submitted = slot.submit(&slot.job(&["/bin/sh", "-c", WAIT_FOR_GO]));
    let main = slot.await_start(&submitted);
    let state = |pid| Process::look(pid).map(|process| process.state);
    slot.signal(Signal::SIGSTOP);
    within(LIMIT, "a suspended glue", || (state(slot.glue()) == Some('T')).then_some(()));
    slot.go();
    // Its supervisor goes on, and root puts the record.
    within(LIMIT, "the job's end", || slot.supervisor().is_none().then_some(()));
    assert!(state(main.pid).is_none() && !slot.ctl().join(layout::RECORD).exists());
    slot.signal(Signal::SIGCONT);
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(0)));
}

/// A slot whose job waits for a word, and the job's supervisor.
fn supervised() -> (Slot, Submitted, Pid) {
    let slot = Slot::new("busybox");
    let submitted = slot.submit(&slot.job(&["/bin/sh", "-c", WAIT_FOR_GO]));
    slot.await_start(&submitted);
    let supervisor = Pid::from_raw(slot.supervisor().expect("a supervisor").pid);
    (slot, submitted, supervisor)
}

#[test]
fn a_supervisor_that_was_stopped_is_continued() {
    let (slot, submitted, supervisor) = supervised();
    for _ in 0..10 {
        kill(supervisor, Signal::SIGSTOP).unwrap();
    }
    slot.go();
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(0)));
    slot.prove_that_it_serves();
}

#[test]
fn a_supervisor_that_was_killed_takes_its_container_with_it() {
    let (slot, _, supervisor) = supervised();
    let cgroup = latebind_tests::processes::cgroup(slot.glue()).unwrap();
    kill(supervisor, Signal::SIGKILL).unwrap();
    assert_eq!(slot.exit_code(), LOST, "{}", slot.log());
    assert!(slot.log().contains("the job's supervisor ended by a signal"), "{}", slot.log());
    assert!(in_cgroup(&cgroup).is_empty() && !slot.ctl().join(layout::RECORD).exists());
}

#[test]
fn a_supervisor_that_is_not_done_in_time_is_given_up_with_its_container() {
    let (slot, _, supervisor) = supervised();
    let cgroup = latebind_tests::processes::cgroup(slot.glue()).unwrap();
    // As a payload cannot hold it, but slow it down to nearly that.
    ptrace::attach(supervisor).unwrap();
    slot.signal(Signal::SIGTERM);
    // A minute more than the job's own times.
    let ended = |pid| Process::look(pid).is_none_or(|process| !process.lives()).then_some(());
    within(Duration::from_secs(120), "glue's end", || ended(slot.glue()));
    assert_eq!(slot.exit_code(), LOST, "{}", slot.log());
    assert!(slot.log().contains("the job's supervisor is not done in time"), "{}", slot.log());
    within(LIMIT, "the end of all", || in_cgroup(&cgroup).is_empty().then_some(()));
    assert!(!slot.ctl().join(layout::RECORD).exists());
}

#[test]
fn a_second_signal_does_not_shorten_the_grace_period() {
    let slot = Slot::new("busybox");
    let script = format!("trap 'echo got; {WAIT_FOR_GO}; exit 6' TERM; echo up; while :; do sleep 0.05; done");
    let mut startup = slot.job(&["/bin/sh", "-c", &script]);
    startup.grace_s = 20.0;
    let submitted = slot.submit(&startup);
    slot.await_start(&submitted);
    let said = |what: &[u8]| (std::fs::read(slot.work().join("stdout")).ok()? == what).then_some(());
    within(LIMIT, "the trap", || said(b"up\n"));
    slot.signal(Signal::SIGTERM);
    within(LIMIT, "the first signal", || said(b"up\ngot\n"));
    slot.signal(Signal::SIGINT);
    within(LIMIT, "glue has taken the second one", || {
        Process::look(slot.glue()).filter(|glue| !glue.has_pending_signals() && glue.state == 'S').map(drop)
    });
    slot.go();
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.exit_code), (Outcome::Stopped, Some(6)));
    assert_eq!(slot.exit_code(), 0);
}

#[test]
fn a_stop_ends_what_the_job_left_in_the_background() {
    let slot = Slot::new("busybox");
    let mut startup = slot.job(&["/bin/sh", "-c", "(trap '' TERM; sleep 1000) & exec sleep 1001"]);
    startup.grace_s = 5.0;
    let submitted = slot.submit(&startup);
    slot.await_start(&submitted);
    within(LIMIT, "both sleepers", || {
        let processes = slot.processes_of_the_payload();
        let sleeper = |n: &str| processes.iter().find(|process| process.command == format!("sleep {n}"));
        (sleeper("1001").is_some() && sleeper("1000")?.handles(Signal::SIGTERM)).then_some(())
    });
    let glue = slot.glue();
    let cgroup = latebind_tests::processes::cgroup(glue).unwrap();
    slot.signal(Signal::SIGTERM);
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.signal), (Outcome::Stopped, Some(15)));
    assert_eq!((record.processes.left_over_killed, record.processes.unkilled), (1, 0));
    assert_eq!(slot.exit_code(), 0);
    assert!(in_cgroup(&cgroup).is_empty());
}

/// What of a job's processes is told to end by TERM, where its shell is, with a child in its group, one in a session of
/// its own, and none that ends by itself.
fn told_to_end(stop: Stop) -> String {
    let slot = Slot::new("busybox");
    let tells = |name: &str| {
        format!("sh -c \"trap 'echo {name} >>told; exit 0' TERM; echo >{name}; while :; do sleep 0.05; done\"")
    };
    let script = format!(
        "trap 'echo main >>told' TERM; {} & setsid {} & while ! [ -e group -a -e session ]; do sleep 0.05; done; \
         echo >ready; while ! [ -e seen ]; do sleep 0.05; done",
        tells("group"),
        tells("session")
    );
    let mut startup = slot.job(&["/bin/sh", "-c", &script]);
    (startup.stop, startup.grace_s) = (stop, 30.0);
    let submitted = slot.submit(&startup);
    slot.await_start(&submitted);
    within(LIMIT, "the job's processes", || slot.work().join("ready").exists().then_some(()));
    slot.signal(Signal::SIGTERM);
    let lines = || std::fs::read_to_string(slot.work().join("told")).unwrap_or_default().lines().count();
    let wanted = match stop {
        Stop::Main => 1,
        Stop::Group => 2,
        Stop::All => 3,
    };
    within(LIMIT, "those that are told", || (lines() >= wanted).then_some(()));
    // Whoever else is told by mistake has been told at the same time, before the main process may end.
    std::fs::write(slot.work().join("seen"), "").unwrap();
    let record = slot.finish(&submitted).record;
    assert_eq!(record.outcome, Outcome::Stopped);
    let mut told: Vec<_> =
        std::fs::read_to_string(slot.work().join("told")).unwrap().lines().map(str::to_owned).collect();
    told.sort();
    told.join(" ")
}

#[test]
fn term_goes_to_the_main_process_or_to_its_group_or_to_all_as_the_job_says() {
    assert_eq!(told_to_end(Stop::Main), "main");
    assert_eq!(told_to_end(Stop::Group), "group main");
    assert_eq!(told_to_end(Stop::All), "group main session");
}

#[test]
fn what_a_wrapper_runs_has_its_grace_though_the_wrapper_ends_at_once() {
    // As shells do: the wrapper has no trap, and dies while its program saves its work.
    let program = "trap 'while ! [ -e seen ]; do sleep 0.05; done; echo work >saved; exit 0' TERM; echo >ready; \
                   while :; do sleep 0.05; done";
    for stop in [Stop::Group, Stop::All] {
        let slot = Slot::new("busybox");
        let mut startup = slot.job(&["/bin/sh", "-c", "sh -c \"$1\"; echo never", "sh", program]);
        (startup.stop, startup.grace_s) = (stop, 60.0);
        let submitted = slot.submit(&startup);
        let main = slot.await_start(&submitted);
        within(LIMIT, "the program", || slot.work().join("ready").exists().then_some(()));
        slot.signal(Signal::SIGTERM);
        within(LIMIT, "the wrapper's end", || Process::look(main.pid).is_none().then_some(()));
        std::fs::write(slot.work().join("seen"), "").unwrap();
        let record = slot.finish(&submitted).record;
        assert_eq!((record.outcome, record.signal), (Outcome::Stopped, Some(15)));
        assert_eq!(record.processes.left_over_killed, 0);
        assert_eq!(std::fs::read_to_string(slot.work().join("saved")).unwrap(), "work\n");
    }
}

#[test]
fn a_grace_period_is_over_with_the_last_of_the_group_whoever_waits_for_it() {
    let slot = Slot::new("busybox");
    // The last of the group is the child of one that is not in it, and whose children nobody has to wait for.
    let last =
        "trap 'while ! [ -e seen ]; do sleep 0.05; done; exit 0' TERM; echo >ready; while :; do sleep 0.05; done";
    let script = "(trap '' CHLD; sh -c \"$1\" & exec setsid sleep 1000) & wait";
    let mut startup = slot.job(&["/bin/sh", "-c", script, "sh", last]);
    (startup.stop, startup.grace_s) = (Stop::Group, 3600.0);
    let submitted = slot.submit(&startup);
    let main = slot.await_start(&submitted);
    within(LIMIT, "the last one, and its parent", || {
        let has_left = slot.processes_of_the_payload().iter().any(|process| process.command == "sleep 1000");
        (has_left && slot.work().join("ready").exists()).then_some(())
    });
    slot.signal(Signal::SIGTERM);
    within(LIMIT, "the main process's end", || Process::look(main.pid).is_none().then_some(()));
    std::fs::write(slot.work().join("seen"), "").unwrap();
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.signal), (Outcome::Stopped, Some(15)));
    assert_eq!(record.processes.left_over_killed, 1, "its parent");
}

#[test]
fn a_killed_glue_leaves_no_record_no_container_and_no_process() {
    let slot = Slot::new("noshell");
    let submitted = slot.submit(&slot.job(&["/probe", "ignore-term", "1000"]));
    let main = slot.await_start(&submitted);
    let cgroup = latebind_tests::processes::cgroup(slot.glue()).unwrap();
    slot.signal(Signal::SIGKILL);
    within(LIMIT, "the end of the payload's processes", || in_cgroup(&cgroup).is_empty().then_some(()));
    assert_eq!(slot.exit_code(), 137);
    let jws = std::fs::read(slot.ctl().join(layout::RECORD)).ok();
    assert_eq!(submitted.check(jws.as_deref()), Err(Refusal::Missing));
    assert!(main.pid > 0);
}

#[test]
fn a_glue_that_comes_after_a_killed_one_removes_what_was_meant_for_that() {
    let mut slot = Slot::new("noshell");
    let submitted = slot.submit(&slot.job(&["/probe", "sleep", "1000"]));
    slot.await_start(&submitted);
    let before = slot.status().incarnation;
    slot.signal(Signal::SIGKILL);
    slot.exit_code();
    slot.put(layout::STARTUP, &serde_json::to_vec(&submitted.startup).unwrap());
    slot.put("env.secret", b"A=1");
    slot.start(&Shape::of("noshell"));
    let status = slot.await_ready();
    assert_ne!(status.incarnation, before);
    assert_eq!((status.job, status.nonce, status.refused), (None, None, None));
    for name in [layout::STARTUP, "env.secret"] {
        assert!(!slot.ctl().join(name).exists(), "{name}");
    }
    slot.prove_that_it_serves();
}

#[test]
fn pause_ends_on_term() {
    let slot = Slot::empty();
    let name = format!("{}-pause", slot.container_prefix());
    let pid = latebind_tests::engine::podman(&["inspect", "--format={{.State.Pid}}", &name]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), Signal::SIGTERM).unwrap();
    within(LIMIT, "pause's end", || {
        let process = Process::look(pid.parse().unwrap());
        process.is_none_or(|p| !p.lives()).then_some(())
    });
    assert_eq!(latebind_tests::engine::exit_code(&name), 0, "it was not killed");
}

#[test]
fn a_status_that_cannot_be_written_while_a_job_runs_ends_glue_and_the_job_at_once() {
    let slot = Slot::new("busybox");
    let scratch = Scratch::new();
    // The first is the claim's, the second has the main process.
    let tracer =
        Tracer::attach(slot.glue(), &["--inject=renameat:error=ENOSPC:when=2"], &scratch.path().join("strace"))
            .unwrap();
    slot.submit(&slot.job(&["/bin/sh", "-c", WAIT_FOR_GO]));
    assert_eq!(slot.exit_code(), layout::FULL_CODE, "{}", slot.log());
    tracer.detach().unwrap();
    assert!(slot.log().contains("status.json cannot be written"), "{}", slot.log());
    assert!(slot.processes_of_the_payload().is_empty() && !slot.ctl().join(layout::RECORD).exists());
}
