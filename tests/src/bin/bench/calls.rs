//! System calls of one run, as strace sees them: how many, and which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use latebind_tests::tracer;

use crate::Failed;
use crate::sample::{StampFile, wall};

/// strace, attached to a process and all that it makes.
pub struct Tracer {
    tracer: tracer::Tracer,
    log: PathBuf,
}

impl Tracer {
    /// Attaches to `pid`.
    pub fn attach(pid: i32, log: &Path) -> Result<Self, Failed> {
        let tracer = tracer::Tracer::attach(pid, &["-ttt"], log).map_err(|e| e.to_string())?;
        Ok(Self { tracer, log: log.to_owned() })
    }

    /// Detaches; the calls between two moments of the wall clock, by name, those of the job left out.
    pub fn calls(self, from: u64, to: u64) -> Result<BTreeMap<String, u64>, Failed> {
        self.tracer.detach().map_err(|e| e.to_string())?;
        let text = std::fs::read_to_string(&self.log).map_err(|e| e.to_string())?;
        Ok(count(&text, from, to))
    }
}

/// Traces a command from its start to its end and counts its calls, those of the job left out.
pub fn of_command(words: &[&str], log: &Path, stamp: &Path) -> Result<BTreeMap<String, u64>, Failed> {
    let file = StampFile::make(&log.with_extension("stamp"))?;
    let mut command = Command::new("strace");
    command.args(["-f", "-ttt", "-s", "80", "-o"]).arg(log).args(words).arg(stamp).arg(&file.0);
    crate::pod::output(&mut command)?;
    let text = std::fs::read_to_string(log).map_err(|e| e.to_string())?;
    Ok(count(&text, 0, wall()))
}

fn count(text: &str, from: u64, to: u64) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let mut jobs = BTreeSet::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(pid), Some(time), Some(rest)) = (words.next(), words.next(), words.next()) else { continue };
        let at = nanoseconds(time);
        // Resumed calls were counted when they began; signals and ends are no calls.
        if at < from || at > to || rest.starts_with(['<', '+', '-']) || jobs.contains(pid) {
            continue;
        }
        let name = rest.split('(').next().unwrap_or(rest);
        *counts.entry(name.to_owned()).or_insert(0) += 1;
        let executed = rest.strip_prefix("execve(\"").and_then(|path| path.split('"').next());
        if executed.is_some_and(|path| path.ends_with("/stamp")) && line.ends_with("= 0") {
            jobs.insert(pid);
        }
    }
    counts
}

/// `1700000000.123456` in nanoseconds.
fn nanoseconds(time: &str) -> u64 {
    let (seconds, micros) = time.split_once('.').unwrap_or((time, "0"));
    seconds.parse::<u64>().unwrap_or(0) * 1_000_000_000 + micros.parse::<u64>().unwrap_or(0) * 1_000
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn calls_of_the_job_and_what_is_no_call_are_left_out() {
        let text = "7 1.000001 poll([{fd=3}], 1, -1 <unfinished ...>\n\
            7 2.000001 <... poll resumed>) = 1\n\
            7 2.000001 execve(\"/usr/bin/tini\", [\"tini\", \"-s\", \"--\", \"dist/stamp\"], 0x7) = 0\n\
            7 2.000002 read(3, \"\\n\", 64) = 1\n\
            8 2.000003 execve(\"/shared/bin/stamp\", [\"/shared/bin/stamp\"], 0x7) = 0\n\
            8 2.000004 brk(NULL) = 0x5\n\
            8 2.000005 +++ exited with 0 +++\n\
            7 2.000006 --- SIGCHLD {si_signo=SIGCHLD} ---\n\
            7 3.000000 read(3, \"\", 64) = 0\n";
        let counts = count(text, 2_000_000_000, 2_900_000_000);
        assert_eq!(counts.get("read"), Some(&1));
        assert_eq!(counts.get("execve"), Some(&2));
        assert_eq!(counts.values().sum::<u64>(), 3);
    }
}
