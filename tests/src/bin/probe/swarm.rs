//! Processes that a job leaves behind, and that fight for their lives.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::time::Duration;

use serde_json::json;

use crate::{say, sys};

const FOREVER: Duration = Duration::from_secs(86_400);

/// Signals whose default is to end a process, and that it can refuse.
fn ignore_what_can_be() {
    use libc::{SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGPIPE] {
        sys::ignore(signal);
    }
}

fn fork() -> Result<Option<i32>, String> {
    sys::fork().map_err(|e| format!("fork: {e}"))
}

/// Reads one byte from each of `n` processes that are up.
fn await_all(mut reader: File, n: u64) -> Result<(), String> {
    let mut byte = [0];
    for up in 0..n {
        reader.read_exact(&mut byte).map_err(|_| format!("only {up} of {n} processes came up"))?;
    }
    Ok(())
}

/// `n` daemons in sessions of their own, TERM ignored, and ends well.
pub fn daemons(n: u64) -> Result<i32, String> {
    let (reader, mut writer) = sys::pipe().map_err(|e| format!("pipe: {e}"))?;
    for _ in 0..n {
        if let Some(child) = fork()? {
            sys::wait(child);
            continue;
        }
        let _ = sys::setsid();
        if !matches!(sys::fork(), Ok(None)) {
            sys::exit_now(0);
        }
        ignore_what_can_be();
        let _ = writer.write_all(b".");
        std::thread::sleep(FOREVER);
        sys::exit_now(0);
    }
    drop(writer);
    await_all(reader, n)?;
    say(&json!({"daemons": n}));
    Ok(0)
}

/// A daemon whose main thread has ended: it shows as a zombie while another of its threads lives on.
pub fn headless() -> Result<i32, String> {
    let (reader, mut writer) = sys::pipe().map_err(|e| format!("pipe: {e}"))?;
    if let Some(child) = fork()? {
        sys::wait(child);
        drop(writer);
        await_all(reader, 1)?;
        return Ok(0);
    }
    let _ = sys::setsid();
    if !matches!(sys::fork(), Ok(None)) {
        sys::exit_now(0);
    }
    ignore_what_can_be();
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let _ = writer.write_all(b".");
        std::thread::sleep(FOREVER);
    });
    sys::exit_thread()
}

/// `n` processes that lose their parent, and end by themselves after `milliseconds`. Returns when all have ended.
pub fn orphans(n: u64, milliseconds: u64) -> Result<i32, String> {
    let (mut reader, writer) = sys::pipe().map_err(|e| format!("pipe: {e}"))?;
    let Some(child) = fork()? else {
        drop(reader);
        let middle = std::process::id();
        let mut made = 0;
        for _ in 0..n {
            match sys::fork() {
                Ok(None) => {
                    while sys::parent().unsigned_abs() == middle {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    std::thread::sleep(Duration::from_millis(milliseconds));
                    sys::exit_now(0);
                }
                Ok(Some(_)) => made += 1,
                Err(_) => break,
            }
        }
        sys::exit_now(if made == n { 0 } else { 1 });
    };
    sys::wait(child);
    drop(writer);
    // Nobody writes: the end of the file comes with the end of the last orphan.
    let mut nothing = Vec::new();
    reader.read_to_end(&mut nothing).map_err(|e| format!("pipe: {e}"))?;
    say(&json!({"orphans": n}));
    Ok(0)
}

/// `n` processes whose parent is glue, and each of which makes others of the same parent that end at once, for ever:
/// glue has ever more to reap. Then ends well, or stays.
pub fn storm(n: u64, stays: bool) -> Result<i32, String> {
    let (reader, mut writer) = sys::pipe().map_err(|e| format!("pipe: {e}"))?;
    // The storm fills the limit of processes, so it begins once all are there.
    let (mut go, hold) = sys::pipe().map_err(|e| format!("pipe: {e}"))?;
    for _ in 0..n {
        if let Some(child) = fork()? {
            sys::wait(child);
            continue;
        }
        let own = std::process::id();
        if !matches!(sys::fork(), Ok(None)) {
            sys::exit_now(0);
        }
        while sys::parent().unsigned_abs() == own {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = writer.write_all(b".");
        drop(hold);
        let _ = go.read_to_end(&mut Vec::new());
        loop {
            sys::make_brother();
        }
    }
    drop(writer);
    await_all(reader, n)?;
    drop(hold);
    say(&json!({"storm": n}));
    if stays {
        std::thread::sleep(FOREVER);
    }
    Ok(0)
}

/// Children that nobody waits for and that the kernel reaps at once: their use of resources is lost to their parent.
pub fn sigchld_ignored() -> Result<i32, String> {
    sys::ignore(libc::SIGCHLD);
    for _ in 0..8 {
        if fork()?.is_none() {
            let _ = crate::work::cpu(Duration::from_millis(20));
            sys::exit_now(0);
        }
    }
    // With SIGCHLD ignored this waits for all of them, and then finds none.
    while sys::wait(-1).is_some() {}
    say(&json!({"children": 8}));
    Ok(0)
}

/// Keeps `n` processes alive: half of them each hold a partner, which is replaced when it is killed, and which takes
/// over and makes a partner of its own when its holder is killed. Ends well when all run.
pub fn bomb(n: u64) -> Result<i32, String> {
    let (reader, writer) = sys::pipe().map_err(|e| format!("pipe: {e}"))?;
    for _ in 0..n / 2 {
        if fork()?.is_none() {
            drop(reader);
            let _ = sys::setsid();
            ignore_what_can_be();
            sys::block(libc::SIGWINCH);
            hold(writer);
        }
    }
    drop(writer);
    await_all(reader, n / 2 * 2)?;
    say(&json!({"bomb": n / 2 * 2}));
    Ok(0)
}

fn hold(mut ready: File) -> ! {
    let _ = ready.write_all(b".");
    loop {
        let own = std::process::id();
        match sys::fork() {
            Ok(Some(partner)) => {
                sys::wait(partner);
            }
            Ok(None) => {
                sys::signal_at_parents_end(libc::SIGWINCH);
                let _ = ready.write_all(b".");
                while sys::parent().unsigned_abs() == own {
                    sys::await_signal(libc::SIGWINCH);
                }
            }
            // At the limit of processes: one will be free as soon as one of ours is killed.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A few processes that kill, stop and continue everything they may, for ever, and fork meanwhile.
pub fn kill_loop(words: &[String]) -> Result<i32, String> {
    everywhere(words, |turn| [libc::SIGKILL, libc::SIGSTOP, libc::SIGCONT][turn % 3])
}

/// The same with SIGSTOP alone: who kills by a scan must not be stopped in between.
pub fn stop_everything(words: &[String]) -> Result<i32, String> {
    everywhere(words, |_| libc::SIGSTOP)
}

fn everywhere(words: &[String], signal: fn(usize) -> i32) -> Result<i32, String> {
    refuse_outside_a_container(words)?;
    let n: u64 = words.iter().skip(1).find_map(|word| word.parse().ok()).unwrap_or(4);
    sys::ignore(libc::SIGCHLD);
    let main = std::process::id();
    let (reader, mut writer) = sys::pipe().map_err(|e| format!("pipe: {e}"))?;
    for turn in 0..usize::try_from(n).unwrap_or(4) {
        if fork()?.is_some() {
            continue;
        }
        let _ = sys::setsid();
        ignore_what_can_be();
        let _ = writer.write_all(b".");
        // Only then, or they would end the probe before it could end well.
        while sys::parent().unsigned_abs() == main {
            std::thread::sleep(Duration::from_millis(1));
        }
        loop {
            let _ = sys::kill(-1, signal(turn));
            // A child goes on with the same loop: each wave meets processes that were not there before.
            let _ = sys::fork();
        }
    }
    drop(writer);
    await_all(reader, n)?;
    say(&json!({"loops": n}));
    Ok(0)
}

/// kill(-1) reaches every process of the caller's UID in its PID namespace. Only where glue is the first process of
/// that namespace, never as root, and only when asked for by name.
fn refuse_outside_a_container(words: &[String]) -> Result<(), String> {
    refuse_outside_a_pod()?;
    if !words.iter().any(|word| word == "--i-am-in-a-container") {
        return Err("refusing to signal everything without --i-am-in-a-container".into());
    }
    Ok(())
}

/// What signals others, or replaces files, is for a payload UID below glue, and not for a developer's shell.
pub fn refuse_outside_a_pod() -> Result<(), String> {
    if sys::real_uid() == 0 {
        return Err("refusing to do this as root: it is meant for a payload UID".into());
    }
    let first = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    // Who owns the namespaces of a pod: glue under latebind-host, the pause container on Kubernetes.
    if !["glue", "pause"].contains(&first.trim()) {
        return Err(format!(
            "refusing: PID 1 is '{}', neither glue nor pause, so that this may be the host",
            first.trim()
        ));
    }
    Ok(())
}
