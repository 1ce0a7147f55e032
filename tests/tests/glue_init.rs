//! `glue exec`, an ordinary init, as the first process of a container and below another one: tini's and dumb-init's
//! documented behaviour is the measure.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::process::Command;

use latebind_tests::engine;
use latebind_tests::pod::{BUSYBOX, DEBIAN, JOB_WITHIN, Ran, Running, eventually, host, program, unique};
use latebind_tests::terminal::Terminal;
use serde_json::{Value, json};

/// `podman run` of an image with glue at `/glue`.
fn container(options: &[&str], image: &str, words: &[&str]) -> Command {
    let glue = format!("--volume={}:/glue:ro", program("glue").canonicalize().unwrap().display());
    let mut command = host(&["podman", "--", "run", "--rm", "--pull=never", "--network=none", &glue]);
    command.args(options).arg(image).args(words);
    command
}

fn ran(options: &[&str], image: &str, words: &[&str]) -> Ran {
    Running::start(&mut container(options, image, words), Vec::new()).finish(JOB_WITHIN)
}

fn shell(script: &str) -> Ran {
    ran(&[], BUSYBOX, &["sh", "-c", script])
}

/// A container in the background, which goes with the value.
struct Background(String);

impl Background {
    fn start(words: &[&str]) -> Self {
        let name = unique("init");
        let started = ran(&["--detach", "--rm=false", "--name", &name], BUSYBOX, words);
        assert_eq!(started.code, Some(0), "{}", started.err());
        Self(name)
    }

    fn says(&self, text: &str) {
        let logs = || engine::podman(&["logs", &self.0]);
        eventually(text, JOB_WITHIN, || logs().contains(text).then_some(()));
    }

    fn signal(&self, signal: &str) {
        engine::podman(&["kill", &format!("--signal={signal}"), &self.0]);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = engine::call(&["rm", "--force", "--time=0", &self.0]);
    }
}

#[test]
fn the_exit_code_is_the_commands_or_what_a_shell_makes_of_it() {
    for (words, code, said) in [
        (&["sh", "-c", "exit 7"][..], 7, ""),
        (&["/probe", "signal", "9"], 137, ""),
        (&["no-such-command"], 127, "glue exec: no-such-command: No such file"),
        (&["/etc/passwd"], 126, "glue exec: /etc/passwd: Permission denied"),
        (&[], 2, "give a command"),
        (&["--uid", "1", "true"], 2, "go together"),
    ] {
        let ran = ran(&[], BUSYBOX, &[&["/glue", "exec"], words].concat());
        assert_eq!(ran.code, Some(code), "{words:?}: {}", ran.err());
        assert!(ran.err().contains(said), "{words:?}: {}", ran.err());
    }
    let below = shell("/glue exec -- sh -c 'exit 7'; echo $?; /glue exec /probe signal 15; echo $?");
    assert_eq!(below.out(), "7\n143\n", "{}", below.err());
}

#[test]
fn arguments_and_variables_are_passed_on_to_the_byte() {
    let ran = shell(
        "export A=\"$(printf '\\376')\"; /glue exec sh -c 'printf %s \"$A$1\"' x \"$(printf '\\377')\" | od -An -tx1",
    );
    assert_eq!(ran.out().trim(), "fe ff", "{}", ran.err());
}

#[test]
fn signals_go_to_the_command_and_with_group_to_its_whole_group() {
    let script = "trap 'echo user' USR1; trap 'echo real-time' 36; trap 'exit 9' TERM; echo ready
        while :; do sleep 0.1; done";
    let one = Background::start(&["/glue", "exec", "sh", "-c", script]);
    one.says("ready");
    one.signal("USR1");
    one.says("user");
    one.signal("36");
    one.says("real-time");
    one.signal("TERM");
    assert_eq!(engine::exit_code(&one.0), 9);
    // The inner shell hears it, or the outer one waits for ever.
    let script = "trap 'wait $!; exit $?' TERM
        sh -c 'trap \"exit 4\" TERM; echo ready; while :; do sleep 0.1; done' & wait";
    let all = Background::start(&["/glue", "exec", "--group", "sh", "-c", script]);
    all.says("ready");
    all.signal("TERM");
    assert_eq!(engine::exit_code(&all.0), 4);
}

#[test]
fn orphans_are_reaped_while_the_command_runs() {
    let script = "/probe orphans 50 50 >/dev/null; n=0
        while grep -q 'State:.Z' /proc/[0-9]*/status || pidof probe >/dev/null
        do n=$((n + 1)); [ $n -lt 600 ] || exit 1; sleep 0.1; done; echo clean";
    let first = ran(&[], BUSYBOX, &["/glue", "exec", "sh", "-c", script]);
    assert_eq!(first.out(), "clean\n", "{}", first.err());
    // The shell that is PID 1 here does not know them.
    let below = shell(&format!("/glue exec sh -c \"{}\"; exit $?", script.replace('$', "\\$")));
    assert_eq!(below.out(), "clean\n", "{}", below.err());
}

#[test]
fn what_outlives_the_command_ends_with_it_and_nothing_else_does() {
    let script = "sleep 1000 & beside=$!
        /glue exec sh -c '/probe daemons 5 >/dev/null; exit 3'; echo $?
        pidof probe; kill -0 $beside && echo beside";
    let ran = shell(script);
    assert_eq!(ran.out(), "3\nbeside\n", "{}", ran.err());
}

#[test]
fn the_command_has_the_mask_and_the_dispositions_that_it_would_have_without() {
    for given in ["", "--ignore-signal=PIPE,HUP --block-signal=USR1,TERM", "--default-signal"] {
        let script = format!("for init in '' '/glue exec --'; do env {given} $init grep ^Sig /proc/self/status; done");
        let ran = ran(&[], DEBIAN, &["sh", "-c", &script]);
        let out = ran.out();
        let lines: Vec<_> = out.lines().filter(|line| !line.starts_with("SigQ")).collect();
        let (without, with) = lines.split_at(lines.len() / 2);
        assert!(without.len() >= 4 && without == with, "{given}: {without:?} {with:?} {}", ran.err());
    }
}

#[test]
fn ids_are_taken_for_good_or_nothing_runs() {
    let status = |options: &[&str], words: &[&str]| {
        let ran = ran(options, BUSYBOX, &[&["/glue", "exec"], words, &["/probe", "status"]].concat());
        let status: Option<Value> = serde_json::from_str(&ran.out()).ok();
        (ran.code, status.map(|s| json!([s["Uid"], s["Gid"], s["Groups"], s["CapEff"], s["CapPrm"]])), ran.err())
    };
    let (code, taken, said) = status(&["--group-add=33"], &["--uid", "1234", "--gid", "2345"]);
    let none = json!("0000000000000000");
    assert_eq!(
        (code, taken),
        (Some(0), Some(json!([[1234, 1234, 1234, 1234], [2345, 2345, 2345, 2345], [], none, none]))),
        "{said}"
    );
    // An ordinary user may be what it is, and nobody else.
    let (code, own, said) = status(&["--user=77:78"], &["--uid", "77", "--gid", "78"]);
    assert_eq!((code, own.map(|own| own[0].clone())), (Some(0), Some(json!([77, 77, 77, 77]))), "{said}");
    let (code, _, said) = status(&["--user=77:78"], &["--uid", "79", "--gid", "78"]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("UID, GID or signals: Operation not permitted"), "{said}");
}

/// Shows `got: ` before each line that it gets, up to the line `end`: these words are not among what was typed.
const LINES: &str = "sed -u 's/^/got=/;s/=/: /;/end/q'";

#[test]
fn keys_at_a_terminal_reach_the_command_which_nobody_could_continue() {
    let script = format!("trap 'echo interrupted; exit 3' INT; echo ready; {LINES}; while :; do sleep 1; done");
    let mut terminal = Terminal::start(&container(&["-it"], DEBIAN, &["/glue", "exec", "sh", "-c", &script]), [24, 80]);
    terminal.until("ready");
    eventually("podman has made the terminal raw", JOB_WITHIN, || terminal.is_raw().then_some(()));
    // Not before sed runs: between vfork(2) and exec the shell's child would stop, and the shell, which waits for it,
    // would not, so that nobody learns of it.
    terminal.types_until("x\r", "got: x");
    terminal.types("\x1a");
    terminal.until("^Z");
    // It goes on.
    terminal.types_until("y\r", "got: y");
    terminal.types("\x03");
    terminal.until("interrupted");
    assert_eq!(terminal.end(), Some(3));
}

/// What is typed at once after a stop may lose its first character, and a shell that continues a job in the background
/// learns late that this wants the terminal, with or without glue. So each line is typed until it has done its work;
/// the prompt has the last code in it.
#[test]
fn a_shell_stops_and_continues_it_as_any_job() {
    let bash = container(&["-it", "-e", "PS1=<$?> "], DEBIAN, &["bash", "--norc", "-i"]);
    let mut terminal = Terminal::start(&bash, [24, 80]);
    terminal.until("<0> ");
    terminal.types(&format!("/glue exec -- sh -c \"{LINES}; exit 5\"\r"));
    terminal.types_until("x\r", "got: x");
    terminal.types_until("\x1a", "Stopped");
    terminal.types_until("fg\r", "got: fg");
    // In the background, and from there to the foreground again.
    terminal.types_until("\x1a", "Stopped");
    terminal.types_until("bg\r", "\" &");
    terminal.types_until(" fg\r", "got:  fg");
    terminal.types_until("end\r", "<5> ");
    terminal.types_until("exit 0\r", "exit");
    assert_eq!(terminal.end(), Some(0));
}
