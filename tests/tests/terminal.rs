//! A command with a terminal (`run -it`), and commands beside a job (`exec`), as people at a terminal see them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use latebind_tests::pod::{
    BUSYBOX, DEBIAN, JOB_WITHIN, Options, Pod, Ran, Running, Scratch, Signal, eventually, host, kill, podman, run,
    run_with_input, shell, state, traces, unique, with,
};
use latebind_tests::processes::{Process, cgroup, in_cgroup};
use latebind_tests::terminal::Terminal;
use serde_json::{Value, json};

fn at_terminal(arguments: &[&str]) -> (Terminal, String) {
    let name = unique("tty");
    let mut command = host(&["run", "--name", &name]);
    command.args(arguments);
    (Terminal::start(&command, [30, 101]), name)
}

#[test]
fn a_terminal_that_has_no_size_yet_is_as_large_as_the_variables_say() {
    let mut command = host(&["run", "--pilot-env", "LINES=31", "--pilot-env", "COLUMNS=102", "-it", BUSYBOX]);
    command.args(["sh", "-c", "stty size; while [ \"$(stty size)\" != '44 99' ]; do sleep 0.05; done; echo resized"]);
    // As docker's, until its client has set it.
    let mut terminal = Terminal::start(&command, [0, 0]);
    terminal.until("31 102");
    terminal.resize([44, 99]);
    terminal.until("resized");
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn a_command_at_a_terminal_has_its_size_its_keys_and_its_exit_code() {
    let script = "tty; stty size; while [ \"$(stty size)\" != '44 99' ]; do sleep 0.05; done; echo resized $TERM
        trap : INT; echo ready; sleep 1000; echo interrupted; cat; echo eof; exit 7";
    let (mut terminal, name) = at_terminal(&["-it", BUSYBOX, "sh", "-c", script]);
    let first = terminal.until("30 101");
    assert!(first.contains("/dev/pts/"), "{first}");
    assert!(terminal.is_raw());
    terminal.resize([44, 99]);
    terminal.until("resized xterm");
    terminal.until("ready");
    terminal.types_until("\x03", "interrupted");
    terminal.types("typed\r");
    // The terminal's echo, then cat's.
    terminal.until("typed");
    terminal.until("typed");
    terminal.types("\x04");
    terminal.until("eof");
    assert_eq!(terminal.end(), Some(7));
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_shell_stops_and_continues_what_runs_in_it() {
    let (mut terminal, _) = at_terminal(&["-it", DEBIAN, "bash", "--norc", "-i"]);
    terminal.until("$ ");
    terminal.types("echo runs; sleep 1000\r");
    // The key also throws away what has been typed and not been read.
    terminal.until("sleep 1000");
    terminal.until("runs");
    terminal.types_until("\x1a", "Stopped");
    // What is typed right after a stop may lose its first character.
    terminal.types_until("kill -9 %1; wait; echo $((6*7))\r", "42");
    terminal.types_until("exit 3\r", "exit");
    assert_eq!(terminal.end(), Some(3));
}

#[test]
fn the_users_terminal_is_given_back_however_the_run_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let (mut terminal, name) = at_terminal(&["-it", BUSYBOX, "sh", "-c", "echo up; exec sleep 1000"]);
        terminal.until("up");
        assert!(terminal.is_raw());
        kill(terminal.child.id() as i32, signal);
        assert_eq!(terminal.end(), Some(128 + signal as i32));
        assert_eq!(traces(&name), Vec::<String>::new());
    }
    // Before it is there: the command cannot be executed.
    let (mut terminal, _) = at_terminal(&["-it", BUSYBOX, "no-such-program"]);
    terminal.until("not found");
    assert_eq!(terminal.end(), Some(127));
}

#[test]
fn a_terminal_is_asked_for_where_there_is_none() {
    let ran = run_with_input(&["-it", BUSYBOX, "true"], b"x".to_vec());
    assert_eq!((ran.code, ran.err().contains("the input device is not a TTY")), (Some(125), true), "{}", ran.err());
    // As with docker, without -i there is a terminal that nobody types at.
    let ran = run(&["-t", BUSYBOX, "sh", "-c", "test -t 0 && tty; exit 4"]);
    assert_eq!((ran.code, ran.out().contains("/dev/pts/")), (Some(4), true), "{} {}", ran.out(), ran.err());
}

/// A job of `latebind-host run` that takes further commands, and ends when `go` is there.
struct Beside {
    name: String,
    running: Running,
    scratch: Scratch,
}

impl Beside {
    fn start(options: &[&str], script: &str) -> Self {
        let (name, scratch) = (unique("beside"), Scratch::new());
        let results = scratch.path().join("results");
        let mut command = host(&["run", "--name", &name, "--exec", "--results", results.to_str().unwrap()]);
        let script = format!("{script}; echo >up; while [ ! -e go ]; do sleep 0.05; done; echo over");
        command.args(options).args([BUSYBOX, "sh", "-c", &script]);
        let running = Running::start(&mut command, Vec::new());
        let this = Self { name, running, scratch };
        eventually("the job is up", JOB_WITHIN, || this.work().join("up").exists().then_some(()));
        this
    }

    fn pod(&self) -> PathBuf {
        state().join("pods").join(&self.name)
    }

    fn work(&self) -> PathBuf {
        self.pod().join("slot-0/data/work")
    }

    fn exec(&self, options: &[&str], command: &[&str]) -> Command {
        let mut exec = host(&["exec"]);
        exec.args(options).arg(&self.name).args(command);
        exec
    }

    fn execs(&self, options: &[&str], command: &[&str], input: &[u8]) -> Ran {
        Running::start(&mut self.exec(options, command), input.to_vec()).finish(JOB_WITHIN)
    }

    /// Lets the job end; returns its report.
    fn end(self) -> Value {
        fs::write(self.work().join("go"), "").unwrap();
        let ran = self.running.finish(JOB_WITHIN);
        assert_eq!((ran.code, ran.out().as_str()), (Some(0), "over\n"), "{}", ran.err());
        let report = fs::read(self.scratch.path().join("results/report.json")).unwrap();
        serde_json::from_slice(&report).unwrap()
    }
}

#[test]
fn a_command_beside_a_job_has_what_the_job_has() {
    let job = Beside::start(&["-e", "A=job"], "id -u >uid");
    let uid = fs::read_to_string(job.work().join("uid")).unwrap();
    // It shows nothing any more and goes on for longer than an attendant may take to answer.
    let silent = Running::start(&mut job.exec(&[], &["sh", "-c", "exec >&- 2>&-; sleep 12; exit 5"]), Vec::new());
    let same = job.execs(&[], &["sh", "-c", "id -u; pwd; echo $A; cat; exit 3"], b"not meant for it");
    let wanted = format!("{uid}/shared/slot/0/data/work\njob\n");
    assert_eq!((same.code, same.out()), (Some(3), wanted), "{}", same.err());
    let options = ["-i", "-w", "/tmp", "-e", "A=own", "-e", "HERE", "-e", "NOT_SET_HERE"];
    let mut apart = job.exec(&options, &["--", "sh", "-c", "pwd; echo $A $HERE >&2; cat"]);
    let apart = Running::start(apart.env("HERE", "caller"), b"read".to_vec()).finish(JOB_WITHIN);
    assert_eq!((apart.code, apart.out().as_str(), apart.err().as_str()), (Some(0), "/tmp\nread", "own caller\n"));
    assert_eq!(job.execs(&[], &["sh", "-c", "kill -KILL $$"], b"").code, Some(128 + 9));
    let missing = job.execs(&[], &["no-such-program"], b"");
    assert_eq!((missing.code, missing.err().contains("not found")), (Some(127), true), "{}", missing.err());
    assert_eq!(job.execs(&[], &["/tmp"], b"").code, Some(126));
    let silent = silent.finish(JOB_WITHIN);
    assert_eq!(silent.code, Some(5), "{}", silent.err());
    // None of them is left, and the attendant is not one of the job's.
    let report = job.end();
    assert_eq!(report["record"]["processes"]["left_over_killed"], json!(0), "{report:#}");
    assert_eq!(report["exit_code"], json!(0));
}

#[test]
fn a_shell_beside_a_job_has_a_terminal_and_ends_with_the_job() {
    let job = Beside::start(&[], ":");
    let script = "tty; stty size; while [ \"$(stty size)\" != '20 60' ]; do sleep 0.05; done; echo resized
        trap : INT; echo ready; sleep 1000; echo interrupted; exit 9";
    let mut terminal = Terminal::start(&job.exec(&["-it"], &["sh", "-c", script]), [25, 90]);
    terminal.until("25 90");
    terminal.resize([20, 60]);
    terminal.until("resized");
    assert!(terminal.is_raw());
    terminal.until("ready");
    terminal.types_until("\x03", "interrupted");
    assert_eq!(terminal.end(), Some(9));
    // A client that is killed is a terminal that is closed. Podman's own client would leave it running.
    let on_hangup = "echo up; trap 'echo >hup; exit' HUP; sleep 1000 & wait";
    let mut gone = Terminal::start(&job.exec(&["-it"], &["sh", "-c", on_hangup]), [25, 90]);
    gone.until("up");
    let pilot: i32 = fs::read_to_string(job.pod().join("pid/pilot")).unwrap().trim().parse().unwrap();
    let is_client = |process: &Process| {
        fs::read(format!("/proc/{}/cmdline", process.pid))
            .is_ok_and(|line| line.starts_with(b"/usr/bin/watcher\0exec\0"))
    };
    let clients: Vec<_> = in_cgroup(&cgroup(pilot).unwrap()).into_iter().filter(is_client).collect();
    let [client] = &clients[..] else { panic!("{clients:?}") };
    kill(client.pid, Signal::SIGKILL);
    eventually("it hears that its terminal is closed", JOB_WITHIN, || job.work().join("hup").exists().then_some(()));
    assert_eq!(gone.end(), Some(137));
    // A job that ends takes along what is still beside it.
    let mut left = Terminal::start(&job.exec(&["-it"], &["sh", "-c", "echo up; exec sleep 1000"]), [25, 90]);
    left.until("up");
    let report = job.end();
    left.until("has ended");
    assert_eq!(left.end(), Some(125));
    assert_eq!(report["verified"], json!(true), "{report:#}");
}

/// `watcher exec ARGS` in a pod's pilot container.
fn exec(pod: &Pod, arguments: &[&str]) -> (Option<i32>, String) {
    let output = podman(&[&["exec", &pod.container("pilot"), "/usr/bin/watcher", "exec"], arguments].concat());
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn jobs_of_a_spool_take_commands_where_they_say_so_also_after_a_restart_of_the_pilot() {
    let pod = Options::new().slots(2).start();
    let waits = shell("until [ -e go ]; do sleep 0.05; done");
    pod.put("open", &with(waits.clone(), "exec", json!(true)));
    pod.put("closed", &waits);
    let slot = |name: &str| {
        eventually(name, JOB_WITHIN, || {
            let top = pod.top()?;
            let lines = top["slots"].as_array()?.clone();
            let line =
                lines.into_iter().find(|line| line["job"] == json!(name) && line["phase"] == json!("running"))?;
            line["slot"].as_u64()
        })
    };
    let slots = [slot("open.1"), slot("closed.1")];
    assert_eq!(exec(&pod, &["open", "echo", "here"]), (Some(0), "here\n".into()));
    let (code, said) = exec(&pod, &["closed", "echo", "here"]);
    assert_eq!((code, said.contains("takes no further commands")), (Some(125), true), "{said}");
    assert_eq!(exec(&pod, &["no-such-job", "true"]).0, Some(125));
    let (code, said) = exec(&pod, &[".", "true"]);
    assert_eq!((code, said.contains("several jobs run")), (Some(125), true), "{said}");
    let pilot = pod.main_process("pilot");
    kill(pilot, Signal::SIGKILL);
    eventually("another pilot", JOB_WITHIN, || (pod.main_process("pilot") != pilot).then_some(()));
    eventually("the attendant is met again", JOB_WITHIN, || {
        (exec(&pod, &["open", "echo", "again"]) == (Some(0), "again\n".into())).then_some(())
    });
    slots.into_iter().for_each(|slot| pod.go(slot as u32));
    for name in ["open", "closed"] {
        let outcome = pod.result(name);
        outcome.is_good();
        assert_eq!(outcome.report.attempt, 1);
    }
}

#[test]
fn what_a_job_says_in_the_attendants_place_reaches_nobody_but_who_asked() {
    // It ends the attendant, and answers at its socket with what no client takes for a command's.
    let script = r#"use IO::Socket::UNIX; use Socket;
        for my $d (glob "/proc/[0-9]*") { my $p = substr $d, 6; next if $p == $$ || (stat $d)[4] != $<;
            open my $f, "$d/cmdline" or next; my $c = <$f>; kill 9, $p if $c =~ /stage-two/; }
        my @held; for (1 .. 3000) {
            my $s = IO::Socket::UNIX->new(Peer => "/shared/slot/0/data/io/attach", Timeout => 1) or next;
            print $s "tttttttt" x ($_ % 3);
            close $s if $_ % 2; push @held, $s if @held < 100; }
        open my $up, ">", "up"; close $up; sleep 1 until -e "go"; print "over\n";"#;
    let pod = Pod::start();
    let job = json!({"image": DEBIAN, "argv": ["/usr/bin/perl", "-e", script], "exec": true});
    pod.put("liar", &job);
    eventually("it has lied", JOB_WITHIN, || pod.work(0).join("up").exists().then_some(()));
    let (code, said) = exec(&pod, &["liar", "true"]);
    assert_eq!(code, Some(125), "{said}");
    assert!(pod.top().is_some(), "the core answers as ever");
    pod.go(0);
    let outcome = pod.result("liar");
    outcome.is_good();
    assert_eq!(outcome.text("stdout"), "over\n");
    pod.job("next", &with(shell("echo next"), "exec", json!(true))).is_good();
}

#[test]
fn an_attendant_cannot_be_looked_into_by_its_job() {
    let script = "exec 2>/dev/null; me=
        for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in *stage-two*) me=$p;; esac; done
        [ -n \"$me\" ] || echo none; head -c 1 $me/environ | grep -q . && echo environ; head -c 1 $me/mem && echo mem
        ls $me/fd/ | grep -q . && echo fd; ls $me/root/ | grep -q . && echo root; echo looked";
    let pod = Pod::start();
    let outcome = pod.job("looks", &with(shell(script), "exec", json!(true)));
    outcome.is_good();
    assert_eq!(outcome.text("stdout"), "looked\n", "{}", outcome.text("stderr"));
}

#[test]
fn a_pod_that_is_not_there_has_nothing_beside_it() {
    let ran =
        Running::start(host(&["exec", "no-such-pod", "true"]).stdin(Stdio::null()), Vec::new()).finish(JOB_WITHIN);
    assert_eq!((ran.code, ran.err().contains("no-such-pod")), (Some(125), true), "{}", ran.err());
}
