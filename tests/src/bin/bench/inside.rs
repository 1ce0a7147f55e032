//! What is measured from within a container of the pod's shape: tools that are started once for each try.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use latebind_contract::record::Outcome;
use latebind_linux::sys::{self, CStrings, Fork};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::Failed;
use crate::sample::{Sample, StampFile, Tries, now};
use crate::slot::Slot;

/// Where the pod's volumes are in a container.
const SHARED: &str = "/shared";
/// Where the jobs of these tools write.
const STAMPS: &str = "/shared/slot/0/data/stamps";
/// The job.
const STAMP: &str = "/shared/bin/stamp";
/// Between two tries, so that one try's last work is not a part of the next.
const REST: Duration = Duration::from_millis(3);

/// The shell loop: what the paper's proof of concept has as the payload container's first process.
pub const LOOP: &str = r#"cd "$1" || exit
while :; do
    while [ ! -f start ]; do sleep "$2"; done
    sh ./start
    code=$?
    rm -f start
    echo $code >done.tmp
    mv done.tmp done
done"#;

/// Does what the words say; prints JSON.
pub fn run(words: &[&str]) -> Result<Value, Failed> {
    match words {
        ["wrapped", tries, wrapper @ ..] => wrapped(number(tries)?, wrapper),
        ["term", tries, wrapper @ ..] => term(number(tries)?, wrapper),
        ["term-glue", tries, with_job] => term_glue(number(tries)?, *with_job == "busy"),
        ["term-shell", tries] => term_shell(number(tries)?),
        ["shell", tries, loops, seconds] => shell(number(tries)?, number(loops)?, seconds),
        _ => Err("bench inside: unknown task".into()),
    }
}

fn number(text: &str) -> Result<usize, Failed> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

fn values(sample: &Sample) -> Value {
    json!(sample.0)
}

/// Three samples as JSON, for [`crate::read_tries`].
fn said(tries: &Tries) -> Value {
    json!({
        "to_exec": values(&tries.to_exec),
        "to_known": values(&tries.to_known),
        "whole": values(&tries.whole),
    })
}

/// A program that is ready to be executed, so that only fork and exec are left.
struct Program {
    argv: CStrings,
    env: CStrings,
}

impl Program {
    fn new(words: &[&str]) -> Result<Self, Failed> {
        let mut argv = CStrings::default();
        words.iter().try_for_each(|w| argv.push(&[w.as_bytes()])).map_err(|e| e.to_string())?;
        let mut env = CStrings::default();
        env.push(&[b"PATH=/bin"]).map_err(|e| e.to_string())?;
        Ok(Self { argv, env })
    }

    fn start(&self) -> Result<Pid, Failed> {
        match sys::fork().map_err(|e| format!("fork: {e}"))? {
            Fork::Parent(pid) => Ok(Pid::from_raw(pid)),
            Fork::Child => {
                if let Some(path) = self.argv.as_slice().first() {
                    let _ = sys::exec(path, &self.argv, &self.env);
                }
                sys::exit_now(127)
            }
        }
    }
}

fn with_job<'a>(wrapper: &[&'a str], job: &[&'a str]) -> Result<Program, Failed> {
    Program::new(&[wrapper, job].concat())
}

/// Fork, exec (of the wrapper, and by it of the job), wait.
fn wrapped(tries: usize, wrapper: &[&str]) -> Result<Value, Failed> {
    let path = format!("{STAMPS}/wrapped");
    let program = with_job(wrapper, &[STAMP, &path])?;
    let mut measured = Tries::default();
    for _ in 0..tries {
        let file = StampFile::make(Path::new(&path))?;
        std::thread::sleep(REST);
        let asked = now();
        let pid = program.start()?;
        waitpid(pid, None).map_err(|e| e.to_string())?;
        let known = now();
        measured.add(asked, file.of_ended()?, known);
    }
    Ok(said(&measured))
}

/// Sends SIGTERM and waits until the process is gone. Its only descendant that matters goes before it.
fn ended_by_term(pid: Pid) -> Result<u64, Failed> {
    std::thread::sleep(REST);
    let asked = now();
    kill(pid, Signal::SIGTERM).map_err(|e| e.to_string())?;
    waitpid(pid, None).map_err(|e| e.to_string())?;
    Ok(now().saturating_sub(asked))
}

/// SIGTERM to a wrapper whose job waits.
fn term(tries: usize, wrapper: &[&str]) -> Result<Value, Failed> {
    let path = format!("{STAMPS}/term");
    let program = with_job(wrapper, &[STAMP, &path, "wait"])?;
    let mut measured = Sample::default();
    for _ in 0..tries {
        let file = StampFile::make(Path::new(&path))?;
        let pid = program.start()?;
        file.wait_for_start()?;
        measured.0.push(ended_by_term(pid)?);
    }
    Ok(values(&measured))
}

/// SIGTERM to glue, idle or with a job that ends on TERM.
fn term_glue(tries: usize, busy: bool) -> Result<Value, Failed> {
    let mut slot = Slot::open(Path::new(SHARED))?;
    let program = Program::new(&["/shared/bin/glue", "run", "--slot", "0"])?;
    let path = format!("{STAMPS}/term-glue");
    let mut measured = Sample::default();
    // What an earlier glue of this slot has left there says nothing of the first one here.
    let mut incarnation = slot.status().map(|s| s.incarnation).unwrap_or_default();
    for _ in 0..tries {
        let pid = program.start()?;
        incarnation = slot.wait_ready(&incarnation)?;
        let mut started = None;
        if busy {
            let file = StampFile::make(Path::new(&path))?;
            started = Some(slot.start(&incarnation, &[STAMP, &path, "wait"])?);
            file.wait_for_start()?;
            slot.wait_for("running a job", |s| s.main_pid.is_some())?;
        }
        measured.0.push(ended_by_term(pid)?);
        if let Some(started) = started {
            let outcome = slot.record(&started)?.map(|record| record.outcome);
            if outcome != Some(Outcome::Stopped) {
                return Err(format!("the record of a stopped job says {outcome:?}"));
            }
        }
    }
    Ok(values(&measured))
}

/// A shell loop in a directory of its own.
fn start_loop(dir: &Path, seconds: &str) -> Result<std::process::Child, Failed> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", LOOP, "loop"]).arg(dir).arg(seconds).stdin(Stdio::null());
    command.spawn().map_err(|e| format!("/bin/sh: {e}"))
}

/// SIGTERM to an idle shell loop, which is not PID 1 in a pod that shares its processes.
fn term_shell(tries: usize) -> Result<Value, Failed> {
    let mut measured = Sample::default();
    for _ in 0..tries {
        let mut child = start_loop(Path::new(STAMPS).join("term-shell").as_path(), "1")?;
        std::thread::sleep(Duration::from_millis(20));
        let asked = now();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)), Signal::SIGTERM).map_err(|e| e.to_string())?;
        child.wait().map_err(|e| e.to_string())?;
        measured.0.push(now().saturating_sub(asked));
    }
    Ok(values(&measured))
}

/// The shell loop's jobs, several loops at once: nearly all of the time they sleep. The pilot's side polls with the
/// same period, and each try begins at a random moment.
fn shell(tries: usize, loops: usize, seconds: &str) -> Result<Value, Failed> {
    let period = Duration::from_secs_f64(seconds.parse().map_err(|_| "the period is not a number")?);
    let results: Vec<Result<Tries, Failed>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..loops)
            .map(|n| {
                let share = tries / loops + usize::from(n < tries % loops);
                scope.spawn(move || one_loop(n, share, seconds, period))
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a loop's thread ended".into()))).collect()
    });
    let mut all = Tries::default();
    for result in results {
        let tries = result?;
        all.to_exec.0.extend(tries.to_exec.0);
        all.to_known.0.extend(tries.to_known.0);
        all.whole.0.extend(tries.whole.0);
    }
    Ok(said(&all))
}

fn one_loop(n: usize, tries: usize, seconds: &str, period: Duration) -> Result<Tries, Failed> {
    let dir = Path::new(STAMPS).join(format!("loop-{seconds}-{n}"));
    let mut child = start_loop(&dir, seconds)?;
    let mut measured = Tries::default();
    let (start, prepared, done) = (dir.join("start"), dir.join("start.tmp"), dir.join("done"));
    let mut attempt = || -> Result<(), Failed> {
        let file = StampFile::make(&dir.join("stamp"))?;
        let _ = std::fs::remove_file(&done);
        std::fs::write(&prepared, format!("exec {STAMP} {}\n", file.0.display())).map_err(|e| e.to_string())?;
        let mut random = [0; 4];
        sys::random(&mut random).map_err(|e| e.to_string())?;
        std::thread::sleep(period.mul_f64(f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX)));
        let asked = now();
        std::fs::rename(&prepared, &start).map_err(|e| e.to_string())?;
        for _ in 0..100 {
            std::thread::sleep(period);
            if done.exists() {
                let known = now();
                measured.add(asked, file.of_ended()?, known);
                return Ok(());
            }
        }
        Err("the shell loop did not end its job".into())
    };
    let result = (0..tries).try_for_each(|_| attempt());
    let _ = child.kill();
    let _ = child.wait();
    result.map(|()| measured)
}
