//! What a payload finds in the kernel, or leaves there: keyrings, and calls that have no business in a batch job.

use serde_json::json;

use crate::{say, swarm, sys};

/// Puts a keyring of this name where all processes of the UID find it, lists what is there, or removes all of it.
pub fn keyring(verb: &str, name: &str) -> Result<i32, String> {
    let number = |result: std::io::Result<i64>| result.map_err(|e| e.raw_os_error().unwrap_or(0));
    match verb {
        "put" => {
            let name = std::ffi::CString::new(name).map_err(|e| e.to_string())?;
            let joined = number(sys::join_session_keyring(&name));
            let linked = joined.and_then(|ring| number(sys::link_to_user_keyring(ring)));
            let added = number(sys::add_key(&name));
            say(&json!({"joined": joined.err(), "linked": linked.err(), "added": added.err()}));
        }
        "get" => {
            let found = sys::user_keyring().map_err(|e| e.raw_os_error().unwrap_or(0));
            say(&json!({"error": found.as_ref().err(), "found": found.as_ref().ok()}));
        }
        "clear" => say(&json!({"error": number(sys::clear_user_keyring()).err()})),
        _ => return Err("keyring put NAME|get|clear".into()),
    }
    Ok(0)
}

/// Makes each call that glue's filter refuses, with arguments with which none of them does anything, and says its
/// errno.
pub fn calls() -> Result<i32, String> {
    swarm::refuse_outside_a_pod()?;
    for (name, number) in latebind_linux::filter::REFUSED.iter().chain(latebind_linux::filter::REFUSED_HERE) {
        say(&json!({"call": name, "errno": sys::call_in_vain(*number)}));
    }
    for (name, errno) in sys::namespace_calls() {
        say(&json!({"call": name, "errno": errno}));
    }
    Ok(0)
}

/// Calls the kernel as a 32-bit program does: `getpid`, which every filter of 64-bit calls alone would let through.
pub fn foreign_call() -> Result<i32, String> {
    say(&json!({"answer": sys::call_as_32_bit()}));
    Ok(0)
}

/// `n` threads that each do something, and a program that is executed beside them.
pub fn threads(n: u64) -> Result<i32, String> {
    let threads: Vec<_> = (0..n).map(|n| std::thread::spawn(move || n)).collect();
    let sum: u64 = threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum();
    let child = std::process::Command::new("/proc/self/exe").arg("hello").output();
    say(&json!({"sum": sum, "child": child.is_ok_and(|output| output.status.success())}));
    Ok(0)
}

/// A child of glue's own fork that aborts: who gets the signal?
pub fn abort_in_child() -> Result<i32, String> {
    sys::block(libc::SIGABRT);
    let signal = match latebind_linux::sys::fork().map_err(|e| e.to_string())? {
        latebind_linux::sys::Fork::Child => sys::abort(),
        latebind_linux::sys::Fork::Parent(pid) => sys::signal_that_ended(pid),
    };
    say(&json!({"child_ended_by": signal, "own_signal": sys::is_pending(libc::SIGABRT)}));
    Ok(0)
}
