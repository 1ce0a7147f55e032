//! What a process of the payload's UID tries against the start of a job: to catch one of the processes that glue
//! listens to, while that speaks. As the job itself, from its first instruction on, and as a process that was there all
//! along.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};

use serde_json::json;

use crate::{say, swarm, sys};

/// What a job of these tests exits with.
const EXIT_CODE: i32 = 42;
/// Descriptors of a start's processes are among these; see `glue/src/privilege_drop.rs`.
const DESCRIPTORS: [i32; 9] = [3, 4, 5, 6, 7, 8, 9, 10, 11];
/// Most of what was caught that is told one by one.
const TOLD: usize = 20;

/// The job of these tests: says that it runs by a line in a file, lives for a moment, ends.
pub fn mark(path: &str, lives: std::time::Duration) -> Result<i32, String> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| writeln!(file, "{}", std::process::id())).map_err(|e| format!("{path}: {e}"))?;
    std::thread::sleep(lives);
    Ok(EXIT_CODE)
}

/// What came of one try.
enum Verdict {
    /// There was no such process.
    Nobody,
    /// The kernel refused.
    Refused,
    /// It worked, on the job itself: its own program runs there already.
    Own,
    /// It worked, on a process that glue listens to.
    Caught(&'static str),
    /// It worked, and the process was gone before it could be told which program it ran.
    Unclear,
}

#[derive(Default)]
struct Tally {
    /// Tries by name: on whom there was somebody.
    tries: std::collections::BTreeMap<&'static str, u64>,
    nobody: u64,
    unclear: u64,
    caught: Vec<String>,
}

impl Tally {
    fn add(&mut self, what: &'static str, pid: i32, verdict: Verdict) {
        match verdict {
            Verdict::Nobody => {
                self.nobody += 1;
                return;
            }
            Verdict::Caught(how) if self.caught.len() < TOLD => self.caught.push(format!("{what} of {pid}: {how}")),
            Verdict::Unclear => self.unclear += 1,
            _ => {}
        }
        *self.tries.entry(what).or_default() += 1;
    }

    fn tell(&self) {
        let all: u64 = self.tries.values().sum();
        say(
            &json!({"tries": all, "by": self.tries, "nobody": self.nobody, "unclear": self.unclear, "caught": self.caught}),
        );
    }
}

/// What an error of a try means.
fn failed(e: &io::Error) -> Verdict {
    match e.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => Verdict::Nobody,
        _ => Verdict::Refused,
    }
}

/// Whether the process runs this very program, and can be looked into, as any job's process can by its own UID.
fn runs_own_program(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| fs::read_link("/proc/self/exe").is_ok_and(|own| own == exe))
}

/// Attaches as a debugger does. While a process executes a program, the kernel lets nobody attach: who tries waits
/// until the new program's rights hold and its close-on-exec descriptors are closed, and then may meet it at the end of
/// the call.
fn trace(pid: i32) -> Verdict {
    match sys::trace_stopped(pid) {
        Err(e) => failed(&e),
        Ok(sys::Traced::Ended(Some(EXIT_CODE))) => Verdict::Own,
        Ok(sys::Traced::Ended(_)) => Verdict::Unclear,
        Ok(sys::Traced::Stopped) => {
            let own = runs_own_program(pid) && !has_pipe(pid);
            sys::stop_tracing(pid);
            if own { Verdict::Own } else { Verdict::Caught("it is traced") }
        }
    }
}

/// Opens the memory for writing. What was opened before an exec can be read no more after it.
fn memory(pid: i32) -> Verdict {
    let memory = match OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")) {
        Ok(memory) => memory,
        Err(e) => return failed(&e),
    };
    if !runs_own_program(pid) {
        return if sys::kill(pid, 0).is_ok() { Verdict::Caught("its memory is open") } else { Verdict::Unclear };
    }
    // While a program is being loaded its mappings still move.
    for _ in 0..10 {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let start = maps.split('-').next().and_then(|at| u64::from_str_radix(at, 16).ok());
        match start.map(|start| memory.read_at(&mut [0], start)) {
            Some(Ok(1)) => return Verdict::Own,
            // What it was opened of is there no more.
            Some(Ok(_)) if exists(pid) => return Verdict::Caught("its memory was opened before its exec"),
            _ => {}
        }
    }
    Verdict::Unclear
}

/// Takes a descriptor. A job of these tests has none but `/dev/null` and files.
fn descriptor(pid: i32, number: i32) -> Verdict {
    let taken = match sys::take_descriptor(pid, number) {
        Ok(taken) => taken,
        // It may be taken, and is not open.
        Err(e) if e.raw_os_error() == Some(libc::EBADF) && runs_own_program(pid) => return Verdict::Own,
        Err(e) if e.raw_os_error() == Some(libc::EBADF) && exists(pid) => return Verdict::Caught("its descriptors"),
        Err(e) => return failed(&e),
    };
    let Ok(kind) = taken.as_fd().try_clone_to_owned().map(fs::File::from).and_then(|file| file.metadata()) else {
        return Verdict::Caught("a descriptor without a file");
    };
    let link = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&taken))).unwrap_or_default();
    match kind.file_type() {
        kind if kind.is_fifo() => Verdict::Caught("a pipe"),
        kind if kind.is_dir() => Verdict::Caught("a directory"),
        _ if link.starts_with("/memfd:job") => Verdict::Caught("the job's part of the startup file"),
        _ => Verdict::Own,
    }
}

fn has_pipe(pid: i32) -> bool {
    DESCRIPTORS.iter().any(|n| matches!(descriptor(pid, *n), Verdict::Caught(_)))
}

/// The descriptor whose turn it is.
fn descriptor_of(turn: u64) -> i32 {
    DESCRIPTORS.iter().copied().cycle().nth((turn % 9) as usize).unwrap_or(3)
}

fn signal(pid: i32, number: i32) -> Verdict {
    sys::kill(pid, number).map_or_else(|e| failed(&e), |()| Verdict::Own)
}

/// Every way but signals, once; `turn` chooses the descriptor.
fn look_into(tally: &mut Tally, pid: i32, turn: u64) {
    tally.add("ptrace", pid, trace(pid));
    tally.add("memory", pid, memory(pid));
    tally.add("descriptor", pid, descriptor(pid, descriptor_of(turn)));
}

/// Whether the ways work at all: on a child of this process, which anybody of this UID may look into.
fn prove_the_ways() -> Result<(), String> {
    let (wait, hold) = sys::pipe().map_err(|e| e.to_string())?;
    let Some(child) = sys::fork().map_err(|e| e.to_string())? else {
        drop(hold);
        let _ = io::Read::read(&mut &wait, &mut [0]);
        sys::exit_now(0);
    };
    let ways = [trace(child), memory(child), signal(child, libc::SIGSTOP)];
    let worked = ways.iter().all(|verdict| matches!(verdict, Verdict::Own | Verdict::Caught(_)));
    let pipe = has_pipe(child);
    let _ = sys::kill(child, libc::SIGKILL);
    sys::wait(child);
    match (worked, pipe) {
        (true, true) => Ok(()),
        _ => Err("the ways of catching do not work here even on an own child: this shows nothing".into()),
    }
}

/// As the job, from its first instruction on: whatever is there of its UID but itself, and glue.
pub fn first_instruction(rounds: u64) -> Result<i32, String> {
    swarm::refuse_outside_a_pod()?;
    let (own, glue) = (i32::try_from(std::process::id()).unwrap_or(0), sys::parent());
    let mut tally = Tally::default();
    let mut caught = Vec::new();
    for turn in 0..rounds {
        // Stage two was made just before.
        let near = (own - 8..own).chain(own + 1..own + 4).filter(|pid| *pid > 1 && *pid != glue);
        for pid in near.chain([glue]) {
            for (what, verdict) in [
                ("ptrace", trace(pid)),
                ("memory", memory(pid)),
                ("descriptor", descriptor(pid, descriptor_of(turn))),
                ("stop", signal(pid, libc::SIGSTOP)),
                ("kill", signal(pid, libc::SIGKILL)),
            ] {
                // Nobody is there whom any of it may reach.
                if !matches!(verdict, Verdict::Nobody | Verdict::Refused) && caught.len() < TOLD {
                    caught.push(format!("{what} of {pid}"));
                }
                tally.add(what, pid, verdict);
            }
        }
    }
    prove_the_ways()?;
    tally.caught = caught;
    tally.tell();
    Ok(EXIT_CODE)
}

/// Numbers that are hard to foresee, and the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }
}

/// What a process that is there all along does to each start besides looking into its processes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    Nothing,
    /// Ends one at this turn.
    Kill(u64),
    /// Stops one at this turn, and continues it some turns later.
    Stop(u64, u64),
    /// Stops one at this turn for good.
    Hold(u64),
}

/// As a process of the payload's UID that no kill routine reaches, since it is in another container: until SIGTERM.
pub fn all_along(mode: &str) -> Result<i32, String> {
    swarm::refuse_outside_a_pod()?;
    if !["look", "signal", "hold"].contains(&mode) {
        return Err("catch-all-along look|signal|hold".into());
    }
    prove_the_ways()?;
    sys::block(libc::SIGTERM);
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let (mut tally, mut dice) = (Tally::default(), Dice(0x9E37_79B9_7F4A_7C15));
    let (mut last, mut idle) = (newest(), 0u64);
    say(&json!({"ready": true}));
    while !sys::is_pending(libc::SIGTERM) {
        // The next numbers that a process can get.
        let next = (last + 1..last + 4).filter(|pid| *pid != own).find(|pid| exists(*pid));
        let Some(mut first) = next else {
            idle += 1;
            if idle.is_multiple_of(2000) {
                last = newest();
            }
            continue;
        };
        // EPERM: a supervisor, whose fork has the next number and is about to take the payload's UID, or somebody else.
        let mut patience = 20_000;
        while patience > 0 && sys::kill(first, 0).is_err_and(|e| e.raw_os_error() == Some(libc::EPERM)) {
            first += i32::from(exists(first + 1));
            patience -= 1;
        }
        let plan = match (mode, dice.roll(4)) {
            ("hold", _) => Plan::Hold(dice.roll(10)),
            ("look", _) | (_, 0) => Plan::Nothing,
            (_, 1) => Plan::Stop(dice.roll(10), 1 + dice.roll(50)),
            _ => Plan::Kill(dice.roll(15)),
        };
        last = follow(&mut tally, first, plan, dice.roll(2) as i32);
    }
    tally.tell();
    Ok(0)
}

fn exists(pid: i32) -> bool {
    !sys::kill(pid, 0).is_err_and(|e| e.raw_os_error() == Some(libc::ESRCH))
}

/// The newest process of this PID namespace, or one that was.
fn newest() -> i32 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().last().and_then(|pid| pid.parse().ok()).unwrap_or(0)
}

/// Tries everything on stage two (`first`) and on the child that it makes, until that runs the job. Signals, where the
/// plan has some, go to one of the two. Returns the last of their numbers.
fn follow(tally: &mut Tally, first: i32, plan: Plan, which: i32) -> i32 {
    let mut last = first;
    for turn in 0.. {
        let mut anybody = false;
        for pid in first..=first + 2 {
            if sys::kill(pid, 0).is_err() {
                continue;
            }
            if runs_own_program(pid) {
                return pid;
            }
            (anybody, last) = (true, last.max(pid));
            look_into(tally, pid, turn);
        }
        let target = first + which;
        match plan {
            Plan::Kill(at) if turn >= at => tally.add("kill", target, signal(target, libc::SIGKILL)),
            Plan::Stop(at, _) | Plan::Hold(at) if turn == at => {
                tally.add("stop", target, signal(target, libc::SIGSTOP))
            }
            Plan::Stop(at, length) if turn == at + length => {
                tally.add("continue", target, signal(target, libc::SIGCONT));
            }
            _ => {}
        }
        let holds = matches!(plan, Plan::Stop(at, length) if turn < at + length);
        if !(anybody || holds && exists(target)) {
            return last;
        }
    }
    last
}
