//! `latebind-host run` (and so `watcher run`, which does the work) behaves as `docker run` does: codes, streams,
//! signals, arguments, and nothing stays behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::Duration;

use latebind_tests::pod::{
    BUSYBOX, DEBIAN, NOSHELL, Ran, Running, Scratch, Signal, eventually, host, podman, program, run, run_with_input,
    state, traces, unique,
};

const LIMIT: Duration = Duration::from_secs(60);

fn shell(script: &str) -> Ran {
    run(&[BUSYBOX, "--", "/bin/sh", "-c", script])
}

#[track_caller]
fn has_code(ran: &Ran, code: i32) {
    assert_eq!(ran.code, Some(code), "stdout: {}\nstderr: {}", ran.out(), ran.err());
}

#[test]
fn the_exit_code_is_the_jobs() {
    for code in [0, 1, 3, 125, 255] {
        has_code(&shell(&format!("exit {code}")), code);
    }
}

#[test]
fn a_signal_is_128_and_its_number() {
    has_code(&shell("kill -KILL $$"), 128 + 9);
    has_code(&shell("kill -SEGV $$"), 128 + 11);
}

#[test]
fn the_wall_limit_is_124() {
    let ran = run(&["--timeout", "1", NOSHELL, "--", "/probe", "sleep", "1000"]);
    has_code(&ran, 124);
}

#[test]
fn what_is_not_there_is_127_and_what_cannot_run_is_126() {
    let missing = run(&[BUSYBOX, "--", "no-such-program"]);
    has_code(&missing, 127);
    assert!(missing.err().contains("no-such-program"), "{}", missing.err());
    let bad = "localhost/latebind/bad-formats:1";
    for program in ["/bad/not-executable", "/bad/directory", "/bad/no-shebang", "/bad/aarch64"] {
        let ran = run(&[bad, "--", program]);
        has_code(&ran, 126);
        assert!(ran.err().contains(program), "{}", ran.err());
    }
}

#[test]
fn our_own_failures_are_125() {
    let image = run(&["localhost/latebind/never-built:1", "--", "/x"]);
    has_code(&image, 125);
    assert!(image.err().contains("never-built"), "{}", image.err());
    has_code(&run(&["Not An Image", "--", "/x"]), 125);
    has_code(&run(&[]), 125);
    has_code(&run(&["--no-such-option", BUSYBOX, "--", "true"]), 125);
    has_code(&run(&["--workdir", "/not/there", BUSYBOX, "--", "true"]), 125);
    // One that only the watcher refuses.
    has_code(&run(&["--timeout", "soon", BUSYBOX, "--", "true"]), 125);
}

#[test]
fn a_mebibyte_of_any_bytes_passes_through() {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let bytes: Vec<u8> = (0..1 << 20)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 56) as u8
        })
        .collect();
    let ran = run_with_input(&["-i", NOSHELL, "--", "/probe", "echo-stdin"], bytes.clone());
    has_code(&ran, 0);
    assert!(ran.stdout == bytes, "{} bytes came back of {}", ran.stdout.len(), bytes.len());
    assert!(ran.stderr.is_empty(), "{}", ran.err());
}

#[test]
fn without_i_there_is_no_input() {
    let ran = run_with_input(&[NOSHELL, "--", "/probe", "echo-stdin"], b"not meant for it".to_vec());
    has_code(&ran, 0);
    assert_eq!(ran.out(), "");
}

#[test]
fn output_and_errors_stay_apart_and_whole() {
    let ran = shell("dd if=/dev/zero bs=1024 count=600 2>/dev/null | tr '\\0' e >&2; echo out; printf end >&2");
    has_code(&ran, 0);
    assert_eq!(ran.out(), "out\n");
    assert_eq!(ran.stderr.len(), 600 * 1024 + 3);
    assert!(ran.stderr.ends_with(b"eend"));
}

#[test]
fn a_reader_that_goes_away_does_not_hang_the_job() {
    let mut command = Command::new("sh");
    let line = "\"$0\" run --name \"$1\" \"$2\" -- sh -c 'i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done' | head -n 1";
    command.args(["-c", line]).arg(program("latebind-host")).args([&unique("run"), BUSYBOX]);
    let ran = Running::start(&mut command, Vec::new()).finish(LIMIT);
    assert_eq!(ran.out(), "0\n");
}

#[test]
fn arguments_reach_the_job_as_they_are() {
    let words = ["with blanks", "\"quoted\" 'twice'", "two\nlines", "", "--", "-x", "$HOME `id` \\", "*", "ä€"];
    let mut arguments = vec![NOSHELL, "--", "/probe", "args"];
    arguments.extend(words);
    let ran = run(&arguments);
    has_code(&ran, 0);
    let said: serde_json::Value = serde_json::from_str(&ran.out()).unwrap();
    let got: Vec<&str> = said["args"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    assert_eq!(got[got.len() - words.len()..], words);
}

#[test]
fn environment_comes_from_options_and_files() {
    let scratch = Scratch::new();
    let file = scratch.path().join("env");
    fs::write(&file, "# a comment\nFROM_FILE='a b'\nexport BOTH=file\nBUILT=\"${FROM_FILE}!\"\n").unwrap();
    let file = file.to_str().unwrap();
    let mut command = host(&["run", "--name", &unique("run"), "-e", "GIVEN=x=y z", "-e", "BOTH=option", "-e", "TAKEN"]);
    command.args(["-e", "NOT_SET_HERE", "--env-file", file, NOSHELL, "--", "/probe", "env"]).env("TAKEN", "from here");
    let ran = Running::start(&mut command, Vec::new()).finish(LIMIT);
    has_code(&ran, 0);
    let text = ran.out();
    let got: Vec<&str> = text.split('\0').collect();
    for wanted in ["GIVEN=x=y z", "BOTH=option", "TAKEN=from here", "FROM_FILE=a b", "BUILT=a b!"] {
        assert!(got.contains(&wanted), "{wanted} is not in {got:?}");
    }
    assert!(!text.contains("NOT_SET_HERE"), "{got:?}");
    assert!(!text.contains("LATEBIND"), "what is the pilot's reached the payload: {got:?}");
}

#[test]
fn an_environment_file_that_is_a_program_is_refused() {
    let scratch = Scratch::new();
    let file = scratch.path().join("env");
    fs::write(&file, "A=$(id)\n").unwrap();
    let ran = run(&["--env-file", file.to_str().unwrap(), NOSHELL, "--", "/probe", "env"]);
    has_code(&ran, 125);
    assert!(ran.out().is_empty() && ran.err().contains("EnvironmentError"), "{}", ran.err());
}

#[test]
fn a_command_is_given_as_with_docker_and_options_end_at_its_image() {
    let ran =
        run(&["--rm", "--init", "--sig-proxy=true", BUSYBOX, "sh", "-c", "printf '%s %s.' \"$0\" \"$1\"", "-e", "--"]);
    has_code(&ran, 0);
    assert_eq!(ran.out(), "-e --.");
    let none = run(&["--entrypoint", "", BUSYBOX]);
    has_code(&none, 125);
    assert!(none.err().contains("give a command"), "{}", none.err());
    let limits = run(&["--ulimit", "nofile=64:128", BUSYBOX, "sh", "-c", "ulimit -n; ulimit -Hn"]);
    has_code(&limits, 0);
    assert_eq!(limits.out(), "64\n128\n");
    has_code(&run(&["--ulimit", "nofile", BUSYBOX, "true"]), 125);
}

#[test]
fn bytes_that_are_not_text_reach_the_command() {
    let bytes = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let mut command = host(&["run", "--name", &unique("run"), "-e", "LATE=1", "-e", "TAKEN", "-e"]);
    command.arg(bytes(b"LATE=caf\xe9")).env("TAKEN", bytes(b"\xff=x"));
    command.args([BUSYBOX, "sh", "-c", "printf '%s|' \"$LATE\" \"$TAKEN\" \"$1\"", "sh"]).arg(bytes(b"-\xfe"));
    let ran = Running::start(&mut command, Vec::new()).finish(LIMIT);
    has_code(&ran, 0);
    assert_eq!(ran.stdout, b"caf\xe9|\xff=x|-\xfe|", "{}", ran.out());
}

#[test]
fn an_option_of_docker_that_there_is_not_says_what_to_do_instead() {
    for (line, said) in [
        (&["-u", "1000"][..], "user ID of its pod's own"),
        (&["--gpus", "all"], "no devices"),
        (&["-v", "/a:/b:ro"], "--input"),
        (&["-d"], "spool"),
        (&["--privileged"], "no capability"),
        (&["-p", "80:80"], "--network host"),
        (&["--cap-add=SYS_ADMIN"], "no capability"),
        (&["-idh", "x"], "spool"),
    ] {
        let ran = run(&[line, &[BUSYBOX, "true"]].concat());
        has_code(&ran, 125);
        assert!(ran.err().contains(said) && ran.err().lines().count() == 1, "{line:?}: {}", ran.err());
    }
}

#[test]
fn an_image_that_is_here_is_pulled_again_where_that_is_asked_for() {
    let name = format!("registry.invalid/{}:1", unique("pull"));
    assert!(podman(&["tag", BUSYBOX, &name]).status.success());
    let ran = |pull: &str| run(&["--pull", pull, &name, "true"]);
    let (missing, never, always) = (ran("missing"), ran("never"), ran("always"));
    podman(&["untag", BUSYBOX, &name]);
    has_code(&missing, 0);
    has_code(&never, 0);
    has_code(&always, 125);
    assert!(always.err().contains("cannot pull"), "{}", always.err());
    // No registry has it.
    has_code(&run(&["--pull", "always", BUSYBOX, "true"]), 0);
}

#[test]
fn the_working_directory_can_be_chosen() {
    let ran = run(&["--workdir", "/usr/bin", BUSYBOX, "--", "pwd"]);
    has_code(&ran, 0);
    assert_eq!(ran.out(), "/usr/bin\n");
    let ran = run(&[BUSYBOX, "--", "pwd"]);
    assert_eq!(ran.out(), "/shared/slot/0/data/work\n");
}

#[test]
fn names_of_the_machine_resolve_in_the_payload_and_nobody_there_can_change_them() {
    let script = r#"perl -MSocket -e 'print inet_ntoa(inet_aton($_) // "\0\0\0\0"), "\n" for @ARGV' localhost "$(hostname)"
        echo x 2>/dev/null >>/etc/hosts || echo read-only"#;
    for network in ["none", "host"] {
        let ran = run(&["--network", network, DEBIAN, "--", "/bin/bash", "-c", script]);
        has_code(&ran, 0);
        let text = ran.out();
        let [own, name, read_only] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert_eq!((own, read_only), ("127.0.0.1", "read-only"), "{network}: {text}");
        assert_ne!(name, "0.0.0.0", "{network}: {text}");
    }
}

#[test]
fn shared_memory_is_as_large_as_was_asked_for_and_else_as_the_containers_memory() {
    let size = |options: &[&str]| {
        let mut all = options.to_vec();
        all.extend([BUSYBOX, "--", "sh", "-c", "df -k /dev/shm | tail -n 1 | awk '{print $2}'"]);
        let ran = run(&all);
        has_code(&ran, 0);
        ran.out()
    };
    assert_eq!(size(&["--shm-size", "96m"]), "98304\n");
    assert_eq!(size(&["--memory", "512m"]), "524288\n");
}

#[test]
fn inputs_lie_in_the_sandbox() {
    let scratch = Scratch::new();
    let (one, two) = (scratch.path().join("one.txt"), scratch.path().join("two.txt"));
    fs::write(&one, "first\n").unwrap();
    fs::write(&two, "second\n").unwrap();
    let ran = run(&[
        "--input",
        one.to_str().unwrap(),
        "--input",
        two.to_str().unwrap(),
        BUSYBOX,
        "--",
        "cat",
        "one.txt",
        "two.txt",
    ]);
    has_code(&ran, 0);
    assert_eq!(ran.out(), "first\nsecond\n");
}

#[test]
fn no_shell_is_needed() {
    let ran = run(&[NOSHELL, "--", "/probe", "hello"]);
    has_code(&ran, 0);
    assert!(ran.out().contains("from a static program"), "{}", ran.out());
    has_code(&run(&[NOSHELL, "--", "sh", "-c", "true"]), 127);
}

/// Starts a job that says when it is up, and sends a signal to latebind-host then.
fn signalled(script: &str, signal: Signal) -> Ran {
    let scratch = Scratch::new();
    let log = scratch.path().join("out");
    let mut child = host(&["run", "--name", &unique("run"), BUSYBOX, "--", "/bin/sh", "-c", script])
        .stdin(std::process::Stdio::null())
        .stdout(fs::File::create(&log).unwrap())
        .stderr(fs::File::create(scratch.path().join("err")).unwrap())
        .spawn()
        .unwrap();
    eventually("the job is up", LIMIT, || fs::read_to_string(&log).ok().filter(|t| t.contains("up")));
    latebind_tests::pod::kill(child.id() as i32, signal);
    let status = eventually("the end of latebind-host", LIMIT, || child.try_wait().unwrap());
    let (stdout, stderr) = (fs::read(&log).unwrap(), fs::read(scratch.path().join("err")).unwrap());
    Ran { code: status.code(), signal: None, stdout, stderr }
}

#[test]
fn signals_reach_the_job() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
        let name = &signal.as_str()["SIG".len()..];
        let script = format!("trap 'echo got {name}; exit 7' {name}; echo up; while :; do sleep 0.1; done");
        let ran = signalled(&script, signal);
        assert_eq!((ran.code, ran.out().as_str()), (Some(7), format!("up\ngot {name}\n").as_str()), "{}", ran.err());
    }
}

#[test]
fn a_job_that_does_not_mind_its_signal_ends_by_it() {
    has_code(&signalled("echo up; exec sleep 60", Signal::SIGTERM), 128 + 15);
}

#[test]
fn nothing_is_left_behind() {
    let name = unique("gone");
    let ran = Running::start(host(&["run", "--name", &name]).args([BUSYBOX, "--", "true"]), Vec::new()).finish(LIMIT);
    has_code(&ran, 0);
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn rm_clears_up_after_a_latebind_host_that_was_killed() {
    let name = unique("killed");
    let mut child = host(&["run", "--name", &name, NOSHELL, "--", "/probe", "sleep", "100"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let main = state().join("pods").join(&name).join("slot-0/ctl/status.json");
    eventually("the job runs", LIMIT, || {
        fs::read_to_string(&main).ok().filter(|t| t.contains("\"main_pid\":") && !t.contains("\"main_pid\":null"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(traces(&name), Vec::<String>::new(), "the test looks at nothing");
    let removed = Running::start(&mut host(&["rm", &name]), Vec::new()).finish(LIMIT);
    has_code(&removed, 0);
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_pod_that_runs_is_not_removed_by_rm() {
    let pod = latebind_tests::pod::Pod::start();
    pod.serves();
    let refused = Running::start(&mut host(&["rm", &pod.name]), Vec::new()).finish(LIMIT);
    has_code(&refused, 125);
    pod.job("still-here", &latebind_tests::pod::probe(&["hello"])).is_good();
}
