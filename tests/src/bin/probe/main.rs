//! probe: the payload of the tests. One static program, so that it also runs in an image that has nothing else: it says
//! what it sees of itself, computes, waits, ends as it is told, leaves processes behind, and attacks.
//!
//! Answers are JSON, one object a line, on stdout. Named `glue`, it is a false glue: what an image would shadow ours
//! with.

// Without the Rust runtime's start, which ignores SIGPIPE, handles SIGSEGV and opens /dev/null in place of closed
// standard streams: `status` and `fds` must show what was inherited.
#![cfg_attr(not(test), no_main)]

mod attack;
mod catch;
mod clients;
mod ipc;
mod kernel;
mod litter;
mod look;
mod reach;
mod swap;
mod swarm;
mod sys;
mod work;

use std::ffi::OsString;
use std::io::Write;

use serde_json::Value;

const USAGE: &str = "usage: probe COMMAND
what it sees      status, fds, env, args ..., cwd, limits, umask, ipc-list
what it computes  hello, primes N, echo-stdin, cpu SECONDS, memory MIB SECONDS
how it ends       exit N, signal N, sleep SECONDS, ignore-term SECONDS, term-exit CODE, sigchld-ignored
files             write-file PATH TEXT, read-file PATH, default-acl PATH UID, connect PATH, ipc, lease PATH
litter            sparse PATH BYTES, fifos DIR N, directories DIR N, links DIR N, hide name|depth|levels MIB, mark DIR, marks DIR,
                  refill DIR SECONDS
sockets           abstract-serve NAME SECONDS, abstract-connect NAME
what it leaves    daemons N, headless, orphans N [MILLISECONDS], bomb N,
                  storm N stay|leave
on a socket       flood PATH COUNT TEXT, descriptors PATH LINES EACH TEXT, silent PATH TEXT, half PATH TEXT
kernel            keyring put NAME|get|clear, calls, foreign-call, threads N, abort-in-child
attacks           forge, trace PID, mark-file PATH SECONDS, swap DIRECTORY NAME,... TARGET...,
                  catch-first ROUNDS, catch-all-along look|signal|hold,
                  and only with --i-am-in-a-container: kill-loop [N], stop-everything [N]
as `glue`         a false glue, for an image that shadows ours";

/// Called by the C library's start code through [`sys`].
#[cfg_attr(test, allow(dead_code))]
fn start(arguments: Vec<OsString>) -> i32 {
    let as_glue = arguments.first().is_some_and(|name| name.as_encoded_bytes().ends_with(b"glue"));
    let words: Vec<String> = arguments.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let result = if as_glue { attack::false_glue(&words) } else { command(&words, &arguments) };
    // Without the Rust runtime's end, which would do this.
    let _ = std::io::stdout().flush();
    result.unwrap_or_else(|message| {
        let _ = writeln!(std::io::stderr(), "probe: {message}");
        120
    })
}

fn command(words: &[String], raw: &[OsString]) -> Result<i32, String> {
    let word = |n: usize| words.get(n).map(String::as_str);
    match word(0).unwrap_or("") {
        "status" => look::status(),
        "fds" => look::fds(),
        "env" => look::env(),
        "args" => look::args(raw),
        "cwd" => look::cwd(),
        "limits" => look::limits(),
        "umask" => look::umask(),
        "ipc-list" => ipc::list(),
        "ipc" => ipc::create(),
        "hello" => {
            say(&serde_json::json!({"hello": "from a static program", "pid": std::process::id()}));
            Ok(0)
        }
        "primes" => work::primes(number(words, 1)?),
        "echo-stdin" => work::echo_stdin(),
        "cpu" => work::cpu(seconds(words, 1)?),
        "memory" => work::memory(number(words, 1)?, seconds(words, 2)?),
        "write-file" => work::write_file(text(words, 1)?, text(words, 2)?),
        "default-acl" => attack::default_acl(text(words, 1)?, number(words, 2)?),
        "read-file" => work::read_file(text(words, 1)?),
        "connect" => work::connect(text(words, 1)?),
        "sparse" => litter::sparse(text(words, 1)?, number(words, 2)?),
        "fifos" => litter::fifos(text(words, 1)?, number(words, 2)?),
        "directories" => litter::directories(text(words, 1)?, number(words, 2)?),
        "links" => litter::links(text(words, 1)?, number(words, 2)?),
        "hide" => litter::hide(text(words, 1)?, number(words, 2)?),
        "mark" => litter::mark(text(words, 1)?),
        "marks" => litter::marks(text(words, 1)?),
        "refill" => litter::refill(text(words, 1)?, seconds(words, 2)?),
        "abstract-serve" => reach::serve(text(words, 1)?, seconds(words, 2)?),
        "abstract-connect" => reach::connect(text(words, 1)?),
        "exit" => i32::try_from(number(words, 1)?).map_err(|_| "an exit code is at most 255".to_string()),
        "signal" => work::end_by_signal(number(words, 1)?),
        "sleep" => work::sleep(seconds(words, 1)?),
        "ignore-term" => work::ignore_term(seconds(words, 1)?),
        "term-exit" => work::exit_on_term(number(words, 1)?),
        "sigchld-ignored" => swarm::sigchld_ignored(),
        "headless" => swarm::headless(),
        "daemons" => swarm::daemons(number(words, 1)?),
        "orphans" => swarm::orphans(number(words, 1)?, number(words, 2).unwrap_or(100)),
        "storm" => swarm::storm(number(words, 1)?, text(words, 2)? == "stay"),
        "bomb" => swarm::bomb(number(words, 1)?),
        "kill-loop" => swarm::kill_loop(words),
        "stop-everything" => swarm::stop_everything(words),
        "flood" => clients::flood(text(words, 1)?, number(words, 2)?, text(words, 3)?),
        "descriptors" => clients::descriptors(text(words, 1)?, number(words, 2)?, number(words, 3)?, text(words, 4)?),
        "silent" => clients::silent(text(words, 1)?, text(words, 2)?),
        "half" => clients::half(text(words, 1)?, text(words, 2)?),
        "swap" => swap::swap(text(words, 1)?, text(words, 2)?, words.get(3..).unwrap_or_default()),
        "forge" => attack::forge(),
        "keyring" => kernel::keyring(text(words, 1)?, text(words, 2).unwrap_or_default()),
        "calls" => kernel::calls(),
        "foreign-call" => kernel::foreign_call(),
        "threads" => kernel::threads(number(words, 1)?),
        "abort-in-child" => kernel::abort_in_child(),
        "lease" => work::lease(text(words, 1)?),
        "mark-file" => catch::mark(text(words, 1)?, seconds(words, 2)?),
        "catch-first" => catch::first_instruction(number(words, 1)?),
        "catch-all-along" => catch::all_along(text(words, 1)?),
        "trace" => attack::trace(number(words, 1)?),
        _ => Err(USAGE.to_string()),
    }
}

/// One line of the answer.
fn say(value: &Value) {
    let mut line = value.to_string();
    line.push('\n');
    let _ = std::io::stdout().write_all(line.as_bytes());
}

fn text(words: &[String], n: usize) -> Result<&str, String> {
    words.get(n).map(String::as_str).ok_or_else(|| USAGE.to_string())
}

fn number(words: &[String], n: usize) -> Result<u64, String> {
    text(words, n)?.parse().map_err(|_| format!("argument {n} must be a number"))
}

fn seconds(words: &[String], n: usize) -> Result<std::time::Duration, String> {
    let value: f64 = text(words, n)?.parse().map_err(|_| format!("argument {n} must be a number of seconds"))?;
    std::time::Duration::try_from_secs_f64(value).map_err(|e| format!("argument {n}: {e}"))
}
