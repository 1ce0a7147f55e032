//! Where the time of one start and one end goes: a timeline of system calls, from perf where there is one that works,
//! else from strace. Either makes each call slower than it is (that of perf is some 0.02 ms): what it shows is order,
//! number, and what is long.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Failed;

/// A tracer of all system calls of a process and of what it makes.
pub struct Timeline {
    child: Child,
    /// Its name, for the heading.
    pub tool: &'static str,
}

/// One or several equal system calls, one after the other.
struct Calls {
    at: f64,
    took: f64,
    who: String,
    name: String,
    count: u32,
}

impl Timeline {
    /// Attaches to `pid`, or to the whole machine where perf works: it would not follow what a process makes.
    pub fn attach(pid: i32, log: &Path) -> Result<Self, Failed> {
        let mut probe = Command::new("perf");
        probe.args(["trace", "-a", "-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        let (tool, arguments) = match probe.status() {
            Ok(status) if status.success() => ("perf", "trace -a --comm -m 4096".to_owned()),
            _ => ("strace", format!("-f -ttt -T -s 40 -p {pid}")),
        };
        let mut command = Command::new(tool);
        command.args(arguments.split(' ')).arg("-o").arg(log).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|e| format!("{tool} cannot be run: {e}"))?;
        // Neither says for certain when it has begun.
        std::thread::sleep(Duration::from_millis(1500));
        Ok(Self { child, tool })
    }

    /// Ends the tracer; what glue, its stages, the job and this program did from the notification on.
    pub fn lines(mut self, log: &Path) -> Result<Vec<String>, Failed> {
        std::thread::sleep(Duration::from_millis(300));
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0));
        let _ = kill(pid, Signal::SIGINT);
        let _ = self.child.wait();
        let text = std::fs::read_to_string(log).map_err(|e| format!("{}: {e}", log.display()))?;
        let own = format!("bench/{}", std::process::id());
        let ours = |who: &str| {
            let (comm, pid) = who.split_once('/').unwrap_or(("glue", who));
            who == own || (pid.parse::<u32>().is_ok() && ["glue", "stamp"].contains(&comm))
        };
        let calls = text.lines().filter_map(|line| if self.tool == "perf" { of_perf(line) } else { of_strace(line) });
        // What came before the notification is this program's own preparation.
        let mut notified = self.tool != "perf";
        let mut groups: Vec<Calls> = Vec::new();
        for (call, line) in calls.filter(|(call, _)| ours(&call.who)) {
            notified = notified || (call.who == own && call.name == "write" && line.contains("count: 1)"));
            match groups.last_mut().filter(|last| last.who == call.who && last.name == call.name) {
                _ if !notified => {}
                Some(last) => {
                    last.took += call.took;
                    last.count += 1;
                }
                None => groups.push(call),
            }
        }
        let begin = groups.first().map_or(0.0, |first| first.at);
        let shown = |c: &Calls| {
            let times = if c.count > 1 { format!(" x {}", c.count) } else { String::new() };
            let who = if c.who == own { "watcher's part" } else { &c.who };
            format!("{:9.3} ms  took {:7.3} ms  {who:16} {}{times}", c.at - begin, c.took, c.name)
        };
        Ok(groups.iter().take(250).map(shown).collect())
    }
}

/// `  12.345 ( 0.015 ms): glue/77 openat(dfd: CWD, ...) = 3`
fn of_perf(line: &str) -> Option<(Calls, &str)> {
    let (at, rest) = line.trim_start().split_once('(')?;
    let (took, rest) = rest.split_once("):")?;
    let mut words = rest.split_ascii_whitespace();
    let who = words.next()?.to_owned();
    let name = words.find(|w| !matches!(*w, "..." | "[continued]:"))?;
    let number = |text: &str| text.trim().trim_end_matches(" ms").trim().parse::<f64>().ok();
    // A call that went on when another process's was printed has its beginning on an earlier line.
    let name = name.split('(').next()?.to_owned();
    Some((Calls { at: number(at)?, took: number(took).unwrap_or(0.0), who, name, count: 1 }, line))
}

/// `77 1700000000.123456 openat(AT_FDCWD, ...) = 3 <0.000015>`
fn of_strace(line: &str) -> Option<(Calls, &str)> {
    let mut words = line.split_ascii_whitespace();
    let (who, at, rest) = (words.next()?.to_owned(), words.next()?.parse::<f64>().ok()?, words.next()?);
    let took = line.rsplit_once('<').and_then(|(_, t)| t.trim_end_matches('>').parse::<f64>().ok()).unwrap_or(0.0);
    let name = if rest == "<..." { format!("{} (resumed)", words.next()?) } else { rest.split('(').next()?.to_owned() };
    Some((Calls { at: at * 1e3, took: took * 1e3, who, name, count: 1 }, line))
}

#[cfg(test)]
mod tests {
    use super::{of_perf, of_strace};

    #[test]
    fn lines_of_both_tracers_are_understood() {
        let perf = of_perf("  7001.777 ( 0.015 ms): glue/14530 prctl(option: CAPBSET_READ) = 0").map(|(c, _)| c);
        assert!(perf.is_some_and(|c| c.who == "glue/14530" && c.name == "prctl" && c.at > 7001.0 && c.took < 0.1));
        let strace = of_strace("77 2.5 openat(AT_FDCWD, \"x\") = 3 <0.000015>").map(|(c, _)| c);
        assert!(strace.is_some_and(|c| c.who == "77" && c.name == "openat" && c.at > 2499.0 && c.took > 0.01));
    }
}
