//! What the probe does as an ordinary job: computes, waits, reads and writes, and ends as it is told.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::time::ClockId;
use serde_json::json;

use crate::{say, sys};

/// How many primes there are up to `n`, by the sieve of Eratosthenes.
pub fn primes(n: u64) -> Result<i32, String> {
    let size = usize::try_from(n).ok().filter(|size| *size <= 1 << 30).ok_or("at most 2^30")?;
    let mut composite = vec![false; size + 1];
    let (mut count, mut largest) = (0u64, 0usize);
    for candidate in 2..=size {
        if composite[candidate] {
            continue;
        }
        (count, largest) = (count + 1, candidate);
        for multiple in (candidate.saturating_mul(candidate)..=size).step_by(candidate) {
            composite[multiple] = true;
        }
    }
    say(&json!({"up_to": n, "primes": count, "largest": largest}));
    Ok(0)
}

pub fn echo_stdin() -> Result<i32, String> {
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::stdout().lock()).map_err(|e| format!("copying: {e}"))?;
    Ok(0)
}

/// Computes until this process has used so much processor time, however long that takes.
pub fn cpu(time: Duration) -> Result<i32, String> {
    let mut x = 1u64;
    while Duration::from(ClockId::CLOCK_PROCESS_CPUTIME_ID.now().map_err(|e| e.to_string())?) < time {
        for _ in 0..10_000 {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    say(&json!({"cpu_s": time.as_secs_f64(), "last": x}));
    Ok(0)
}

pub fn memory(mib: u64, time: Duration) -> Result<i32, String> {
    let size = usize::try_from(mib << 20).map_err(|_| "too much".to_string())?;
    let mut held = vec![0u8; size];
    // Only what was written to is really there.
    held.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    say(&json!({"held_mib": mib, "pages": std::hint::black_box(&held).len() / 4096}));
    std::thread::sleep(time);
    Ok(0)
}

pub fn write_file(path: &str, text: &str) -> Result<i32, String> {
    fs::write(path, text).map_err(|e| format!("{path}: {e}"))?;
    Ok(0)
}

pub fn read_file(path: &str) -> Result<i32, String> {
    let bytes = fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    std::io::stdout().write_all(&bytes).map_err(|e| format!("stdout: {e}"))?;
    Ok(0)
}

/// Connects to a unix stream socket, sends what stdin has, prints what comes back.
pub fn connect(path: &str) -> Result<i32, String> {
    let failed = |e: std::io::Error| format!("{path}: {e}");
    let mut socket = UnixStream::connect(path).map_err(failed)?;
    say(&json!({"connected": path}));
    let mut request = Vec::new();
    std::io::stdin().read_to_end(&mut request).map_err(|e| format!("stdin: {e}"))?;
    socket.write_all(&request).map_err(failed)?;
    socket.shutdown(std::net::Shutdown::Write).map_err(failed)?;
    std::io::copy(&mut socket, &mut std::io::stdout().lock()).map_err(failed)?;
    Ok(0)
}

pub fn end_by_signal(signal: u64) -> Result<i32, String> {
    let signal = i32::try_from(signal).map_err(|_| "no such signal".to_string())?;
    sys::default(signal);
    let own = i32::try_from(std::process::id()).map_err(|e| e.to_string())?;
    sys::kill(own, signal).map_err(|e| format!("signal {signal}: {e}"))?;
    // A signal that is ignored by default, or stops.
    std::thread::sleep(Duration::from_millis(200));
    Err(format!("signal {signal} did not end the probe"))
}

pub fn sleep(time: Duration) -> Result<i32, String> {
    std::thread::sleep(time);
    say(&json!({"slept_s": time.as_secs_f64()}));
    Ok(0)
}

pub fn ignore_term(time: Duration) -> Result<i32, String> {
    sys::ignore(libc::SIGTERM);
    say(&json!({"ignoring": "SIGTERM", "pid": std::process::id()}));
    sleep(time)
}

pub fn exit_on_term(code: u64) -> Result<i32, String> {
    sys::block(libc::SIGTERM);
    say(&json!({"waiting_for": "SIGTERM", "pid": std::process::id()}));
    sys::await_signal(libc::SIGTERM);
    say(&json!({"got": "SIGTERM"}));
    i32::try_from(code).map_err(|_| "an exit code is at most 255".to_string())
}

/// Holds a file, once it is there and nobody writes it, so that whoever opens or executes it waits: for as long as the
/// kernel lets a lease be broken (fs.lease-break-time, 45 s). Until standard input ends.
pub fn lease(path: &str) -> Result<i32, String> {
    sys::ignore(libc::SIGIO); // how the kernel asks for the lease back
    let file = loop {
        match std::fs::File::open(path).and_then(|file| sys::lease(&file).map(|()| file)) {
            Ok(file) => break file,
            Err(_) => std::thread::sleep(std::time::Duration::from_micros(200)),
        }
    };
    say(&serde_json::json!({"leased": path}));
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    drop(file);
    Ok(0)
}
