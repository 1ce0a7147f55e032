//! Glue, the first process of a late-bound payload container. It stays root, and waits for one job after the other. For
//! each it forks a supervisor, which gives root up, starts and ends the job, and signs how it ended.
//!
//! Here: arguments and dispatch. Read on at [`run`]; what a security review looks for is in [`privilege_drop`],
//! [`claim`] and [`job`] (the key), and in the crate `latebind_linux`: every privileged open, all unsafe code. The kill
//! routine is there too, and is the supervisor's.
#![forbid(unsafe_code)]

mod attend;
mod claim;
mod events;
mod exec;
mod exec_failure;
mod install;
mod job;
mod log;
mod pause;
mod prepare;
mod privilege_drop;
mod ready;
mod rootfs;
mod run;
mod stage_two;
mod start;
mod supervise;

use std::ffi::OsString;

use latebind_contract::layout;

const USAGE: &str = "usage:
  glue install --slot N[:UID[:GID]] [--slot ...]   put glue into /shared/bin and set up the slots' volumes
  glue run --slot N [--kill-uid UID] [--stop-code CODE] [--no-seccomp]
                                                   first process of slot N's payload container
  glue exec [--uid N --gid N] [--group] [--] COMMAND...
                                                   an init for any container: runs one command as its child
  glue pause                                       PID 1 of a pod's namespaces
  glue version
";

/// The command line is wrong.
const BAD_USAGE: i32 = 2;
/// `install` or `pause` failed.
const FAILED: i32 = 1;

fn main() {
    latebind_linux::sys::protect_relocations();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let code = match arguments.split_first() {
        // The one whose arguments are a stranger's: bytes.
        Some((verb, words)) if verb == "exec" => exec::exec(words)
            .unwrap_or_else(|| usage("exec: give a command; --uid N and --gid N go together, --group takes no value")),
        _ => dispatch(&arguments.iter().map(|word| word.to_str().unwrap_or_default()).collect::<Vec<_>>()),
    };
    std::process::exit(code);
}

fn dispatch(words: &[&str]) -> i32 {
    match words {
        ["install", options @ ..] => match install::slots(options) {
            Some(slots) => ended(install::check_root().and_then(|()| install::install(&slots))),
            None => usage("install: give each slot as --slot N[:UID[:GID]], with numbers that are not root's"),
        },
        ["run", options @ ..] => match run_options(options) {
            Some(options) => run::run(&options),
            None => usage(
                "run: give --slot N; --kill-uid UID, --stop-code 0..255 and --no-seccomp where defaults do not fit",
            ),
        },
        ["pause"] => ended(pause::pause()),
        ["stage-two", arguments @ ..] => stage_two::run(arguments).unwrap_or(BAD_USAGE),
        ["version" | "--version" | "-V"] => log::print(1, &format!("glue {}\n", env!("CARGO_PKG_VERSION"))),
        ["help" | "--help" | "-h"] => log::print(1, USAGE),
        _ => usage("missing subcommand"),
    }
}

fn run_options(options: &[&str]) -> Option<run::Options> {
    let (mut slot, mut kill_uid, mut stop_code, mut seccomp) = (None, None, run::STOPPED, true);
    let mut words = options.iter();
    while let Some(option) = words.next() {
        match *option {
            "--slot" => slot = words.next()?.parse().ok().filter(|n| *n <= layout::SLOT_MAX),
            "--kill-uid" => kill_uid = Some(words.next()?.parse().ok()?),
            "--stop-code" => stop_code = words.next()?.parse::<u8>().ok()?.into(),
            "--no-seccomp" => seccomp = false,
            _ => return None,
        }
    }
    let slot = slot?;
    Some(run::Options { slot, kill_uid: kill_uid.unwrap_or(layout::DEFAULT_KILL_UID + slot), stop_code, seccomp })
}

fn ended(result: std::io::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(e) => {
            log::error(format_args!("{e}"));
            FAILED
        }
    }
}

fn usage(why: &str) -> i32 {
    log::error(format_args!("{why}"));
    let _ = log::print(2, USAGE);
    BAD_USAGE
}
