//! What `latebind-host run` has from its caller, umask, limits, signals, descriptors and environment, reaches neither
//! the pod nor the job, and what a job prints or leaves comes back as it is. Most are reports from other projects'
//! trackers: docs/reports.md.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use latebind_tests::made_image::MadeImage;
use latebind_tests::pod::{BUSYBOX, DEBIAN, Options, Ran, Running, Scratch, Signal, kill, program, run, shell, unique};

const LIMIT: Duration = Duration::from_secs(120);

/// `latebind-host run`, called by a line of the shell in which `$RUN` is its beginning.
fn caller(line: &str) -> Command {
    let run = format!("{} run --name {}", program("latebind-host").display(), unique("caller"));
    let mut command = Command::new("sh");
    command.args(["-c", line]).env("RUN", run).env("LATEBIND_STATE", latebind_tests::pod::state());
    command.env("BUSYBOX", BUSYBOX).stdin(Stdio::null());
    command
}

fn called(line: &str) -> Ran {
    Running::start(&mut caller(line), Vec::new()).finish(LIMIT)
}

#[track_caller]
fn says(ran: &Ran, code: i32, wanted: &str) {
    assert_eq!((ran.code, ran.out().trim_end()), (Some(code), wanted), "{}", ran.err());
}

#[test]
fn a_callers_umask_is_for_its_own_results_alone() {
    let scratch = Scratch::new();
    for umask in ["077", "027", "000", "777"] {
        let results = scratch.path().join(umask);
        let line = format!(
            "umask {umask}; exec $RUN --results {} --output f $BUSYBOX sh -c 'umask; echo x >f; stat -c %a f'",
            results.display()
        );
        says(&called(&line), 0, "0022\n644");
        let mode = fs::metadata(&results).unwrap().permissions().mode() & 0o7777;
        let wanted = 0o755 & !u32::from_str_radix(umask, 8).unwrap();
        assert_eq!(mode, wanted, "{umask}: {mode:o}");
        assert_eq!(fs::read_to_string(results.join("outputs/f")).unwrap(), "x\n");
        assert_eq!(fs::metadata(&results).unwrap().uid(), nix::unistd::geteuid().as_raw());
    }
}

#[test]
fn few_open_files_do_not_break_a_pod_or_are_named() {
    says(&called("ulimit -Sn 32; exec $RUN $BUSYBOX echo ok"), 0, "ok");
    says(&called("ulimit -n 128; exec $RUN $BUSYBOX echo ok"), 0, "ok");
    says(&called("ulimit -Sn 8; ulimit -Hn 1024; exec $RUN $BUSYBOX echo ok"), 0, "ok");
    let few = called("ulimit -n 64; exec $RUN $BUSYBOX echo ok");
    // Who may raise the limit does so.
    if few.code != Some(0) {
        assert_eq!(few.code, Some(125), "{}", few.err());
        assert!(few.err().contains("may open 64 files") && few.err().contains("ulimit -Hn"), "{}", few.err());
    }
}

#[test]
fn ignored_and_blocked_signals_of_a_caller_change_nothing() {
    let ignored = "exec env --ignore-signal=CHLD --ignore-signal=TERM --ignore-signal=USR1 $RUN $BUSYBOX";
    says(&called(&format!("{ignored} sh -c 'exit 3'")), 3, "");
    let blocked = "exec env --block-signal $RUN $BUSYBOX";
    let status = called(&format!("{blocked} grep -E 'SigBlk|SigIgn' /proc/self/status"));
    says(&status, 0, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000");
    // It can be told to end.
    let mut child = caller(&format!("{blocked} sh -c 'echo up; sleep 1000'")).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut up).unwrap();
    kill(child.id() as i32, Signal::SIGTERM);
    assert_eq!((up.as_str(), child.wait().unwrap().code()), ("up\n", Some(128 + 15)));
}

#[test]
fn closed_streams_and_a_directory_that_is_gone_do_not_end_a_command() {
    says(&called("$RUN -i $BUSYBOX cat <&-"), 0, "");
    assert_eq!(called("$RUN $BUSYBOX sh -c 'echo x; exit 4' >&-").code, Some(4));
    assert_eq!(called("$RUN $BUSYBOX sh -c 'exit 5' <&- >&- 2>&-").code, Some(5));
    says(&called("mkdir gone.$$ && cd gone.$$ && rmdir ../gone.$$ && exec env -u HOME $RUN $BUSYBOX echo ok"), 0, "ok");
}

#[test]
fn a_process_that_kills_its_group_or_everything_ends_no_more_than_its_job() {
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    for (name, script) in [("group", "kill -9 0; sleep 9"), ("all", "kill -9 -1; echo after")] {
        let outcome = pod.job(name, &latebind_tests::pod::with(shell(script), "owner", "x".into()));
        assert!(matches!(outcome.class(), ("final", "Signaled" | "Completed")), "{:#?}", outcome.report);
    }
    pod.job("next", &shell("echo next")).is_good();
}

#[test]
fn orphans_of_a_job_are_reaped_while_it_runs_and_hold_no_stream() {
    let script = "(sleep 300 & (:) & ) ; sleep 0.1; i=0; while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do \
                  i=$((i+1)); [ $i -lt 100 ] || { echo zombies; exit 1; }; sleep 0.1; done; echo none";
    says(&run(&[BUSYBOX, "sh", "-c", script]), 0, "none");
}

#[test]
fn what_was_written_before_a_kill_comes_out_whatever_bytes_it_has() {
    let script = r"printf 'a\306b\342\202\n\303'; printf 'e\377' >&2; kill -9 $$";
    let ran = run(&[BUSYBOX, "sh", "-c", script]);
    assert_eq!((ran.code, &ran.stdout[..], &ran.stderr[..]), (Some(137), &b"a\xc6b\xe2\x82\n\xc3"[..], &b"e\xff"[..]));
}

#[test]
fn variables_of_any_name_and_exported_functions_reach_a_job() {
    let ran = run(&[
        &["-e", "a.b=c", "-e", "x-y=1", "-e", "N=a\nb", "-e", "E=", "-e", "TZ=CET-1"][..],
        &["-e", "BASH_FUNC_f%%=() { echo function; }", DEBIAN, "bash", "-c"],
        &["f; env | grep -E '^(a.b|x-y)='; echo \"$N\" ${E-unset}; date +%Z"],
    ]
    .concat());
    let mut lines: Vec<String> = ran.out().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["CET", "a", "a.b=c", "b", "function", "x-y=1"], "{}", ran.err());
}

#[test]
fn an_image_without_a_shell_or_with_one_as_its_entrypoint_runs_what_is_given() {
    let shell = MadeImage::new("ENTRYPOINT [\"/bin/sh\"]", &[]);
    says(&run(&[shell.name(), "sh", "-c", "echo ran"]), 0, "ran");
    let missing = run(&[BUSYBOX, "/bin/bash", "-c", "true"]);
    assert!(missing.code == Some(127) && missing.err().contains("/bin/bash: no such file in the image"));
}

#[test]
fn ranks_of_a_job_read_each_others_memory() {
    // process_vm_readv of x86-64; by its number, since Perl has no name for it.
    let script = r#"$d = "data"; $b = "    "; $p = fork; if (!$p) { sleep 100; exit }
        $l = pack("PQ", $b, 4); $r = pack("PQ", $d, 4);
        print syscall(310, $p, $l, 1, $r, 1, 0), " $b\n"; kill 9, $p"#;
    says(&run(&[DEBIAN, "perl", "-e", script]), 0, "4 data");
}
