//! The whole way: `watcher run` in the pilot binds, runs and reports.

use std::process::Command;
use std::time::Duration;

use latebind_cluster_tests::pilot::Pilot;
use latebind_cluster_tests::{cluster, eventually, needs};

/// `kubectl exec -it` of a shell line in the pilot, from a terminal: its exit code and what it showed.
fn in_a_terminal(pilot: &Pilot, line: &str) -> (Option<i32>, String) {
    let kubectl = cluster().kubectl();
    let words: Vec<_> = [kubectl.get_program()].into_iter().chain(kubectl.get_args()).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let pod = pilot.object()["metadata"]["name"].as_str().unwrap().to_owned();
    let whole = format!("{} -n {} exec -it {pod} -c pilot -- {line}", words.join(" "), pilot.namespace.name());
    let envs = kubectl.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let output = Command::new("timeout")
        .args(["60", "script", "--quiet", "--return", "--command", &whole, "/dev/null"])
        .envs(envs)
        .output()
        .expect("script(1) of bsdutils");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn run_has_the_streams_and_the_code_of_the_job() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    let script = "cat; echo to stderr >&2; exit 7";
    let ran = pilot.run_with_input(&["-i", &cluster().image("busybox"), "--", "sh", "-c", script], b"from stdin\n");
    assert_eq!((ran.code, ran.out().as_str()), (Some(7), "from stdin\n"), "{}", ran.err());
    assert!(ran.err().contains("to stderr\n"), "{}", ran.err());
}

#[test]
fn one_pod_runs_one_image_after_the_other() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    // A shell; a whole distribution; one static program and nothing else.
    let busybox = pilot.run(&[&cluster().image("busybox"), "--", "/bin/busybox", "echo", "busybox"]);
    assert_eq!((busybox.code, busybox.out().as_str()), (Some(0), "busybox\n"), "{}", busybox.err());
    let debian = pilot.run(&[&cluster().image("debian"), "--", "cat", "/etc/debian_version"]);
    assert!(debian.code == Some(0) && debian.out().starts_with("12."), "{}{}", debian.out(), debian.err());
    let noshell = pilot.run(&[&cluster().image("noshell"), "--", "/probe", "hello"]);
    assert!(
        noshell.code == Some(0) && noshell.out().contains("from a static program"),
        "{}{}",
        noshell.out(),
        noshell.err()
    );
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

#[test]
fn an_image_that_is_not_there_is_said_so_and_the_next_job_runs() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    let missing = pilot.run(&[&cluster().missing_image(), "--", "true"]);
    assert_eq!(missing.code, Some(125), "{}", missing.err());
    assert!(missing.err().contains("ImageNotFound (hold)"), "{}", missing.err());
    let next = pilot.spawn(&[&cluster().image("busybox"), "--", "true"]).finish(Duration::from_secs(60));
    assert_eq!(next.code, Some(0), "{}", next.err());
}

#[test]
fn check_finds_nothing_wrong_with_the_pod_as_it_is_shipped() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    let ran = pilot.exec("pilot", &["watcher", "check"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out(), ran.err());
    assert!(!ran.out().contains("FAIL") && ran.out().contains("ok "), "{}", ran.out());
}

#[test]
fn a_job_has_a_terminal_and_a_command_runs_beside_one() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    let busybox = cluster().image("busybox");
    let (code, shown) = in_a_terminal(&pilot, &format!("watcher run -it {busybox} sh -c 'tty; exit 3'"));
    assert!(code == Some(3) && shown.contains("/dev/pts/"), "{code:?} {shown}");
    let job = pilot.spawn(&["--exec", "--name", "long", &busybox, "--", "sleep", "1000"]);
    eventually("the job runs", Duration::from_secs(60), || {
        pilot.shell("watcher jobs").contains("long\trunning").then_some(())
    });
    let (code, shown) = in_a_terminal(&pilot, "watcher exec -it long sh -c 'tty; id -u; exit 4'");
    assert!(code == Some(4) && shown.contains("/dev/pts/") && shown.contains("20000"), "{code:?} {shown}");
    drop(job);
}
