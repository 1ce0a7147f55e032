use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

use latebind_linux::error::MESSAGE_MAX;

use super::*;

fn job(uid: u32, gid: u32) -> Order {
    let text = format!(
        r#"{{"version":2,"job":"j","nonce":"{0}","key":"{0}","incarnation":"i","uid":{uid},"gid":{gid}}}"#,
        "A".repeat(43)
    );
    serde_json::from_str(&text).unwrap()
}

/// A start whose stage two is this process, with the pipes' other ends.
fn starting(stage_two: i32, proc: &Proc) -> (Starting, OwnedFd, OwnedFd, OwnedFd) {
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let ((reported, report), (executed, exec), (wait, go)) = (pipe(), pipe(), pipe());
    let starting = Starting {
        stage_two,
        since: Some(proc.stat(std::process::id() as i32).unwrap().start),
        preparation: Some((reported, go)),
        executed,
        child: None,
        attendant: 0,
    };
    (starting, report, exec, wait)
}

/// A process that ends at once, not waited for: glue's side reaps it.
fn ended(code: &str) -> i32 {
    #[allow(clippy::zombie_processes, reason = "the start under test reaps it")]
    let child = std::process::Command::new("sh").args(["-c", code]).spawn().unwrap();
    child.id() as i32
}

/// Goes on until the start has ended.
fn to_the_end(starting: &mut Starting, job: &Order, proc: &Proc) -> Started {
    loop {
        if let Some(started) = starting.advance(job, proc, &mut || Ok(())).unwrap() {
            return started;
        }
        std::thread::yield_now();
    }
}

#[test]
fn nothing_goes_on_before_stage_two_is_reaped() {
    let proc = Proc::open().unwrap();
    let job = job(0, 0);
    #[allow(clippy::zombie_processes, reason = "the start under test reaps it")]
    let mut stage_two = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let (mut start, report, exec, wait) = starting(stage_two.id() as i32, &proc);
    assert_eq!(start.advance(&job, &proc, &mut || Ok(())).unwrap(), None);
    send(&Report::child(child.id() as i32, 0), report.as_raw_fd());
    assert_eq!(start.advance(&job, &proc, &mut || Ok(())).unwrap(), None);
    drop(report);
    assert_eq!(start.advance(&job, &proc, &mut || Ok(())).unwrap(), None);
    assert_eq!((start.preparation.is_some(), start.child), (true, None), "stage two still lives");
    assert_eq!(nix::unistd::read(&wait, &mut [0]), Err(nix::errno::Errno::EAGAIN), "the child was not released");
    stage_two.kill().unwrap();
    drop((exec, wait));
    // It was killed, so nothing that it has said counts.
    let started = to_the_end(&mut start, &job, &proc);
    assert_eq!(started, Started { child: None, failure: Some(cut_off()), attendant: 0 });
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_child_that_is_not_what_it_has_to_be_is_not_released() {
    let proc = Proc::open().unwrap();
    let spawn = |uid: u32| std::process::Command::new("sleep").arg("100").uid(uid).gid(uid).spawn().unwrap();
    let (mut right, mut other) = (spawn(23_458), spawn(23_459));
    let parent = nix::unistd::getppid().as_raw();
    let cases = [right.id() as i32, other.id() as i32, parent, std::process::id() as i32, 1, 0, i32::MAX];
    for (pid, good) in cases.into_iter().zip([true].into_iter().chain(std::iter::repeat(false))) {
        let (mut start, report, exec, wait) = starting(ended("exit 0"), &proc);
        send(&Report::child(pid, 0), report.as_raw_fd());
        drop((report, exec));
        let started = to_the_end(&mut start, &job(23_458, 23_458), &proc);
        let released = nix::unistd::read(&wait, &mut [0]) == Ok(1);
        assert_eq!(released, good, "process {pid}");
        if !good {
            assert_eq!(started, Started { child: None, failure: Some(not_the_child()), attendant: 0 }, "process {pid}");
        }
    }
    // One that is older than the start was not made by it.
    let (mut start, report, exec, wait) = starting(ended("exit 0"), &proc);
    start.since = Some(u64::MAX);
    send(&Report::child(right.id() as i32, 0), report.as_raw_fd());
    drop((report, exec));
    assert_eq!(to_the_end(&mut start, &job(23_458, 23_458), &proc).failure, Some(not_the_child()));
    assert_ne!(nix::unistd::read(&wait, &mut [0]), Ok(1));
    for child in [&mut right, &mut other] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_report_that_is_not_one_is_a_start_that_was_cut_off() {
    let proc = Proc::open().unwrap();
    for bytes in [&b""[..], b"x", b"P\x07\0\0\0", &[0; SIZE + 1], &[0xff; SIZE], &[0; 100_000]] {
        let (mut start, report, _exec, _wait) = starting(ended("exit 0"), &proc);
        let _ = nix::unistd::write(&report, bytes);
        let started = to_the_end(&mut start, &job(0, 0), &proc);
        assert_eq!(started.failure.map(|f| f.errno), Some(nix::libc::EINTR), "{} bytes", bytes.len());
    }
}

#[test]
fn what_stage_two_reports_is_the_reason() {
    let proc = Proc::open().unwrap();
    let (mut start, report, _exec, _wait) = starting(ended("exit 127"), &proc);
    send(&Report::of(What::Fork, &io::Error::from_raw_os_error(nix::libc::EAGAIN)), report.as_raw_fd());
    drop(report);
    let failure = to_the_end(&mut start, &job(0, 0), &proc).failure.unwrap();
    assert_eq!((failure.stage, failure.errno), (Stage::Startup, nix::libc::EAGAIN));
    assert_eq!(failure.reported, Some((What::Fork as u8, [0; 5])));
}

#[test]
fn nothing_runs_that_root_has_not_let_run() {
    let proc = Proc::open().unwrap();
    let mut child = std::process::Command::new("sleep").arg("100").uid(23_460).gid(23_460).spawn().unwrap();
    let (mut start, report, _exec, wait) = starting(ended("exit 0"), &proc);
    send(&Report::child(child.id() as i32, 0), report.as_raw_fd());
    drop(report);
    let followed = loop {
        match start.advance(&job(23_460, 23_460), &proc, &mut || Err(Errno::EPIPE.into())) {
            Ok(None) => std::thread::yield_now(),
            other => break other,
        }
    };
    assert_eq!(followed.map_err(|e| e.raw_os_error()), Err(Some(nix::libc::EPIPE)));
    assert_ne!(nix::unistd::read(&wait, &mut [0]), Ok(1));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_child_of_which_the_kernel_says_nothing_has_not_run() {
    let proc = Proc::open().unwrap();
    let (mut start, report, exec, _wait) = starting(0, &proc);
    (start.preparation, start.child) = (None, Some(i32::MAX));
    drop((report, exec));
    let started = start.advance(&job(0, 0), &proc, &mut || Ok(())).unwrap();
    assert_eq!(started.and_then(|started| started.failure), Some(cut_off()));
}

#[test]
fn a_child_that_ends_before_its_exec_has_not_run() {
    let proc = Proc::open().unwrap();
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let job = job(uid, gid);
    let fork = || match sys::fork().unwrap() {
        Fork::Child => sys::exit_now(0),
        Fork::Parent(pid) => pid,
    };
    for (child, ran) in [(fork(), false), (ended("exit 0"), true)] {
        let (mut start, report, exec, _wait) = starting(ended("exit 0"), &proc);
        send(&Report::child(child, 0), report.as_raw_fd());
        drop((report, exec));
        let started = to_the_end(&mut start, &job, &proc);
        while sys::reap(child).unwrap().is_none() {
            std::thread::yield_now();
        }
        let failure = (!ran).then(cut_off);
        assert_eq!(started, Started { child: Some(child), failure, attendant: 0 });
    }
}

#[test]
fn a_program_runs_whoever_holds_the_pipe_of_its_start() {
    let proc = Proc::open().unwrap();
    let mut runs = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let waits = match sys::fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            nix::unistd::pause();
            sys::exit_now(0)
        }
    };
    let running = runs.id() as i32;
    for (child, expected) in
        [(waits, None), (running, Some(Started { child: Some(running), failure: None, attendant: 0 }))]
    {
        let (mut start, _report, _exec, _wait) = starting(0, &proc);
        (start.preparation, start.child) = (None, Some(child));
        assert_eq!(start.advance(&job(0, 0), &proc, &mut || Ok(())).unwrap(), expected);
    }
    sys::signal_process(waits, nix::libc::SIGKILL).unwrap();
    while sys::reap(waits).unwrap().is_none() {
        std::thread::yield_now();
    }
    runs.kill().unwrap();
    runs.wait().unwrap();
}

#[test]
fn a_message_is_cut_between_characters() {
    let long = "ä".repeat(MESSAGE_MAX);
    let failure = failure(Stage::Exec, nix::libc::ENOENT, format_args!("x{long}"));
    assert_eq!((failure.errno, failure.message.len()), (nix::libc::ENOENT, MESSAGE_MAX - 1));
}
