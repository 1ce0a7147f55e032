//! What the probe sees of itself: everything that a job inherits.

use std::ffi::OsString;
use std::fs;
use std::io::Write;

use latebind_contract::command::RLIMITS;
use serde_json::{Map, Value, json};

use crate::{say, sys};

/// Fields of /proc/self/status that say who a process is and what it may do.
const FIELDS: [&str; 17] = [
    "Name",
    "Pid",
    "PPid",
    "TracerPid",
    "Uid",
    "Gid",
    "Groups",
    "Umask",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Threads",
    "NSpid",
];
const SIGNALS: [&str; 5] = ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"];

pub fn status() -> Result<i32, String> {
    let text = fs::read_to_string("/proc/self/status").map_err(|e| format!("/proc/self/status: {e}"))?;
    let mut answer = Map::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        if ["Uid", "Gid", "Groups"].contains(&name) {
            let ids: Vec<u64> = value.split_whitespace().filter_map(|id| id.parse().ok()).collect();
            answer.insert(name.into(), json!(ids));
        } else if FIELDS.contains(&name) || SIGNALS.contains(&name) {
            let value = value.trim();
            answer.insert(
                name.into(),
                value.parse::<u64>().ok().filter(|_| decimal(name)).map_or(json!(value), |n| json!(n)),
            );
        }
    }
    // The name of the program may hold spaces and parentheses; the fields follow the last one.
    let stat = fs::read_to_string("/proc/self/stat").map_err(|e| format!("/proc/self/stat: {e}"))?;
    let after: Vec<i64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    for (name, place) in [("pgid", 2), ("sid", 3), ("tty", 4), ("nice", 16)] {
        answer.insert(name.into(), json!(after.get(place)));
    }
    answer.insert("pid".into(), json!(std::process::id()));
    answer.insert("ppid".into(), json!(sys::parent()));
    answer.insert("dumpable".into(), json!(sys::dumpable()));
    for file in ["oom_score_adj", "cgroup", "loginuid"] {
        let text = fs::read_to_string(format!("/proc/self/{file}")).ok();
        answer.insert(file.into(), json!(text.as_deref().map(str::trim)));
    }
    say(&Value::Object(answer));
    Ok(0)
}

/// Capability and signal sets are hexadecimal, even where they look like a number.
fn decimal(name: &str) -> bool {
    !name.starts_with("Cap") && !SIGNALS.contains(&name) && name != "Umask" && name != "NSpid"
}

pub fn fds() -> Result<i32, String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").map_err(|e| format!("/proc/self/fd: {e}"))?.flatten() {
        let number: i32 = entry.file_name().to_string_lossy().parse().unwrap_or(-1);
        let target = fs::read_link(entry.path()).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim).map(str::to_string);
        found.push((number, target, flags));
    }
    // The directory that is being read is the probe's own doing.
    let own = format!("/proc/{}/fd", std::process::id());
    found.retain(|(_, target, _)| *target != own);
    found.sort();
    for (number, target, flags) in found {
        say(&json!({"fd": number, "target": target, "flags": flags}));
    }
    Ok(0)
}

/// As /proc/PID/environ has it: NAME=value, each ended by a NUL byte, in order, whatever the bytes.
pub fn env() -> Result<i32, String> {
    let bytes = fs::read("/proc/self/environ").map_err(|e| format!("/proc/self/environ: {e}"))?;
    std::io::stdout().write_all(&bytes).map_err(|e| format!("stdout: {e}"))?;
    Ok(0)
}

pub fn args(raw: &[OsString]) -> Result<i32, String> {
    let words: Vec<_> = raw.iter().map(|word| word.to_string_lossy()).collect();
    say(&json!({"args": words}));
    Ok(0)
}

pub fn cwd() -> Result<i32, String> {
    let cwd = std::env::current_dir().map_err(|e| format!("no working directory: {e}"))?;
    say(&json!({"cwd": cwd.to_string_lossy()}));
    Ok(0)
}

/// By the names and numbers of the kernel (asm-generic/resource.h); null is no limit.
pub fn limits() -> Result<i32, String> {
    let mut answer = Map::new();
    for (number, name) in (0..).zip(RLIMITS) {
        let (soft, hard) = sys::limit(number).map_err(|e| format!("getrlimit {name}: {e}"))?;
        let shown = |n: u64| if n == u64::MAX { Value::Null } else { json!(n) };
        answer.insert(name.into(), json!({"soft": shown(soft), "hard": shown(hard)}));
    }
    say(&Value::Object(answer));
    Ok(0)
}

pub fn umask() -> Result<i32, String> {
    let text = fs::read_to_string("/proc/self/status").map_err(|e| format!("/proc/self/status: {e}"))?;
    let umask = text.lines().find_map(|line| line.strip_prefix("Umask:")).map(str::trim);
    say(&json!({"umask": umask}));
    Ok(0)
}
