//! What the ending of a job that was handed to glue means to the pilot: `final`, `retry` or `hold`. What keeps a job
//! from getting there says so itself, by the [`Failure`] that it returns. `docs/protocol.md` prints all of it as a
//! table.

use latebind_contract::layout::FULL_CODE;
use latebind_contract::record::{Failure as NotStarted, Outcome, Record, Stage};
use latebind_contract::text::one_line;
use nix::libc::{
    E2BIG, EAGAIN, ECANCELED, EINTR, EIO, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSPC, ENOTDIR, ESTALE, ETIMEDOUT,
};

use super::Report;
use super::limits::{Crossed, Limits, Which};
use crate::bind::{Class, ContainerState, Failure, Reason};

/// SIGKILL, the signal with which the kernel ends a process for memory.
const SIGKILL: i32 = 9;

/// Class, reason and message of a verified record. `oom_kills` is how many processes of the container the kernel killed
/// for memory while the job was there, `failed` what the record's error says in words, `cancelled` why the watcher
/// itself ended the job, if it did, `limit` the limit for which it did, `asked` the limits that job and pilot have
/// named.
pub fn of_record(
    record: &Record,
    oom_kills: u64,
    failed: Option<&str>,
    cancelled: Option<&str>,
    limit: Option<&Crossed>,
    asked: &Limits,
) -> (Class, Reason, String) {
    let code = record.exit_code;
    let cut_off = record.error.as_ref().is_some_and(|e| e.stage == Stage::Startup && e.errno == EINTR);
    let ended_by_it = match record.outcome {
        Outcome::Signaled | Outcome::Exited | Outcome::TimedOut => true,
        Outcome::NotStarted => cut_off,
        Outcome::Stopped => false,
    };
    if let Some(crossed) = limit.filter(|l| l.which != Which::Wall && ended_by_it && cancelled.is_none()) {
        return of_limit(crossed, asked);
    }
    match record.outcome {
        // A program that never ran has used up nothing: its start hung.
        Outcome::TimedOut if record.started_at.is_none() => {
            (Class::Retry, Reason::NotStarted, "the job's wall limit passed before its program ran".into())
        }
        Outcome::TimedOut => (Class::Final, Reason::TimedOut, "the job's wall limit passed".into()),
        Outcome::Stopped => {
            (Class::Retry, Reason::Stopped, "the payload container was told to stop while the job ran".into())
        }
        Outcome::Signaled | Outcome::Exited | Outcome::NotStarted if ended_by_it && cancelled.is_some() => {
            (Class::Retry, Reason::Cancelled, cancelled.unwrap_or_default().to_owned())
        }
        Outcome::NotStarted => of_failure(record.error.as_ref(), failed.unwrap_or_default()),
        Outcome::Signaled => {
            let signal = record.signal.unwrap_or(0);
            if signal == SIGKILL && oom_kills > 0 {
                return (Class::Hold, Reason::OutOfMemory, out_of_memory());
            }
            (Class::Final, Reason::Signaled, format!("the job was ended by signal {signal}"))
        }
        Outcome::Exited if code == Some(0) => (Class::Final, Reason::Completed, String::new()),
        Outcome::Exited => (Class::Final, Reason::Error, format!("the job exited with code {}", code.unwrap_or(-1))),
    }
}

/// The container's memory was nobody's choice of a limit, and whether kernel or watcher is first there is chance: both
/// mean the same.
fn of_limit(crossed: &Crossed, asked: &Limits) -> (Class, Reason, String) {
    let message = format!("the job was ended: {crossed}");
    let is_asked = asked.memory.is_some_and(|bytes| crossed.limit >= bytes.0 as f64);
    if crossed.which == Which::Memory && !is_asked {
        return (Class::Hold, Reason::OutOfMemory, message);
    }
    (Class::Final, Reason::LimitExceeded, message)
}

fn out_of_memory() -> String {
    "the kernel ended the job for memory: it needs a slot with more, or has to use less".into()
}

/// A job that was not started: some of it is the user's, some of it the node's.
fn of_failure(failure: Option<&NotStarted>, words: &str) -> (Class, Reason, String) {
    let Some(failure) = failure else {
        return (Class::Retry, Reason::NotStarted, "the job was not started".into());
    };
    // What the machine lacks at the moment is nobody's fault and may be there elsewhere.
    let passing = [EAGAIN, ENOMEM, EIO, EMFILE, ENFILE, ENOSPC, ESTALE, ETIMEDOUT];
    let errno = failure.errno;
    let reason = match (failure.stage, errno) {
        // Of a program that is cut short the kernel says what it says of a broken disk: never the slot's fault alone.
        (Stage::Exec, EIO) => Reason::CommandNotExecutable,
        (_, errno) if passing.contains(&errno) => Reason::ResourceShortage,
        (Stage::Exec, ENOENT | ENOTDIR) => Reason::CommandNotFound,
        (Stage::Exec, E2BIG) => Reason::ArgumentTooLong,
        (Stage::Exec, _) => Reason::CommandNotExecutable,
        (Stage::Environment, _) => Reason::EnvironmentError,
        (Stage::Stdio, _) => Reason::StdioError,
        (Stage::Startup, _) => Reason::StartupError,
        (Stage::Privileges, _) => Reason::PrivilegeError,
    };
    let class = match reason {
        Reason::ResourceShortage | Reason::PrivilegeError => Class::Retry,
        // A start that was interrupted has no field to blame; a refused field has.
        Reason::StartupError if matches!(errno, EINTR | ECANCELED) => Class::Retry,
        Reason::CommandNotExecutable if errno == EIO => Class::Retry,
        _ => Class::Hold,
    };
    // It may name what the image holds.
    (class, reason, one_line(words))
}

/// Whether what was seen of a job's memory makes the kernel the likely author of a SIGKILL. On control groups v2 it
/// ends all of a container at once (`memory.oom.group`), glue too, and engines lose the event; a program takes the
/// other half between two looks.
fn nearly_all((used, limit): (u64, u64)) -> bool {
    used >= limit / 2
}

fn no_room() -> Failure {
    Failure::retry(Reason::VolumeFull, "the slot's ctl volume had no room for what glue has to say; it is emptied")
}

/// What the end of a job says of the slot that it had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Jobs can be started there.
    Good,
    /// It was not started, and the slot or its node may be why.
    Bad {
        /// What happened.
        why: String,
        /// The image, where it can be its doing as well.
        image: Option<String>,
    },
    /// Nothing.
    #[default]
    Unknown,
}

/// Whether the slot can start jobs.
pub fn start_of(report: &Report) -> Start {
    let reason = report.reason;
    let ran = report.record.as_ref().is_some_and(|record| record.outcome != Outcome::NotStarted);
    match report.class {
        Class::Final => Start::Good,
        _ if ran => Start::Good,
        // Later it may have been the job.
        Class::Retry if matches!(reason, Reason::ContainerLost | Reason::GlueLost) && report.durations.run > 0.0 => {
            Start::Unknown
        }
        Class::Retry if reason.is_of_slot() || matches!(reason, Reason::ContainerLost | Reason::GlueLost) => {
            Start::Bad {
                why: format!("{reason}: {}", report.message),
                image: reason.may_be_of_image().then(|| report.image.clone()),
            }
        }
        _ => Start::Unknown,
    }
}

/// The end of a glue that left no record. `memory`: the most that its job was seen to use, and what its container may
/// use, in bytes, where both are known and nobody had asked for the job's end.
pub fn of_loss(state: Option<&ContainerState>, memory: Option<(u64, u64)>) -> Failure {
    match state {
        Some(ContainerState { pod_ends: Some((reason, message)), .. }) => Failure::retry(*reason, message.clone()),
        Some(state) if state.oom_killed => Failure::hold(Reason::OutOfMemory, out_of_memory()),
        Some(state) if !state.running && state.exit_code == Some(FULL_CODE.into()) => no_room(),
        Some(state)
            if !state.running
                && state.exit_code == Some(i64::from(128 + SIGKILL))
                && memory.is_some_and(nearly_all) =>
        {
            let (used, limit) = memory.unwrap_or_default();
            let message = format!(
                "the payload container was killed without a record while its job used {used} of its {limit} bytes of \
                 memory: {}",
                out_of_memory()
            );
            Failure::hold(Reason::OutOfMemory, message)
        }
        Some(state) if !state.running => {
            let code = state.exit_code.map_or_else(|| "unknown".into(), |c| c.to_string());
            let said = if state.said.is_empty() { String::new() } else { format!(": {}", state.said) };
            let message = format!("the payload container ended without a record (exit code {code}{said})");
            Failure::retry(Reason::ContainerLost, message)
        }
        _ => Failure::retry(Reason::GlueLost, "glue ended without a record, so nothing is known of the job's end"),
    }
}

/// The end of a new container before its glue was ready. Glue, or what an image put in its place, ended by itself: so
/// it will every time. It was killed (128+n), told to stop (0) or removed: that was not the image's doing.
pub fn of_end_before_ready(state: &ContainerState) -> Failure {
    let code = state.exit_code.map_or_else(String::new, |c| format!(" with exit code {c}"));
    let said = if state.said.is_empty() { ", and said nothing".into() } else { format!("; it said: {}", state.said) };
    let message = format!("the new container ended{code} before its glue was ready{said}");
    match state.exit_code {
        _ if state.pod_ends.is_some() => of_loss(Some(state), None),
        _ if state.oom_killed => Failure::hold(Reason::OutOfMemory, out_of_memory()),
        Some(code) if code == i64::from(FULL_CODE) => no_room(),
        Some(1..=127) => Failure::hold(Reason::ContainerCannotRun, message),
        _ => Failure::retry(Reason::ContainerLost, message),
    }
}

/// Exit code of `watcher run` for a job's report, as docker-run(1) has them: the job's own code, 128+n for a signal,
/// 124 for a limit that it crossed (timeout(1) for the wall limit), 137 for all of its container's memory, 126 not
/// executable, 127 not found, 125 for every failure of ours.
pub fn exit_code(report: &Report) -> i32 {
    let outcome = report.record.as_ref().filter(|_| report.verified).map(|r| r.outcome);
    match (outcome, report.reason) {
        (Some(_), Reason::TimedOut | Reason::LimitExceeded) => 124,
        (Some(_), Reason::OutOfMemory) => 128 + SIGKILL,
        (Some(Outcome::NotStarted), Reason::CommandNotFound) => 127,
        (Some(Outcome::NotStarted), Reason::CommandNotExecutable | Reason::ArgumentTooLong) => 126,
        (Some(Outcome::Exited | Outcome::Signaled), _) => {
            report.exit_code.or(report.signal.map(|s| 128 + s)).unwrap_or(125)
        }
        _ => 125,
    }
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::super::limits::Bytes;
    use super::*;

    #[test]
    fn a_start_that_was_interrupted_is_tried_again_whatever_its_message_says() {
        let of = |stage, errno: i32, message: &str| {
            let failure = NotStarted { stage, errno, message: String::new(), path: None, reported: None };
            let (class, reason, message) = of_failure(Some(&failure), message);
            assert!(!message.contains('\x1b'));
            (class, reason)
        };
        let said = "links: \x1b[2J the start was cut off";
        assert_eq!(of(Stage::Startup, libc::EINTR, said), (Class::Retry, Reason::StartupError));
        assert_eq!(of(Stage::Startup, libc::ECANCELED, ""), (Class::Retry, Reason::StartupError));
        assert_eq!(of(Stage::Startup, 0, said), (Class::Hold, Reason::StartupError));
        assert_eq!(of(Stage::Startup, libc::EEXIST, said), (Class::Hold, Reason::StartupError));
        assert_eq!(of(Stage::Exec, libc::ENOENT, "no space left on device"), (Class::Hold, Reason::CommandNotFound));
        assert_eq!(of(Stage::Environment, libc::ENOSPC, ""), (Class::Retry, Reason::ResourceShortage));
        assert_eq!(of(Stage::Exec, libc::ENOMEM, ""), (Class::Retry, Reason::ResourceShortage));
        assert_eq!(of(Stage::Exec, libc::E2BIG, ""), (Class::Hold, Reason::ArgumentTooLong));
        assert_eq!(of(Stage::Exec, libc::EIO, ""), (Class::Retry, Reason::CommandNotExecutable));
    }

    #[test]
    fn a_container_that_was_killed_at_its_limit_is_out_of_memory_whatever_the_engine_calls_it() {
        let state = |code| ContainerState { exit_code: Some(code), said: "Error".into(), ..ContainerState::default() };
        let of = |code, memory| of_loss(Some(&state(code)), memory).reason;
        assert_eq!(of(137, Some((900, 1000))), Reason::OutOfMemory);
        assert_eq!(of(137, Some((499, 1000))), Reason::ContainerLost, "it used little");
        assert_eq!(of(137, None), Reason::ContainerLost, "nothing is known");
        assert_eq!(of(143, Some((900, 1000))), Reason::ContainerLost, "another signal");
        let running = ContainerState { running: true, ..state(137) };
        assert_eq!(of_loss(Some(&running), Some((900, 1000))).reason, Reason::GlueLost);
        let evicted = ContainerState { pod_ends: Some((Reason::PodEnded, "drained".into())), ..state(137) };
        assert_eq!(of_loss(Some(&evicted), Some((900, 1000))).reason, Reason::PodEnded);
    }

    #[test]
    fn the_containers_memory_is_a_hold_and_a_limit_that_was_asked_for_is_final() {
        let of = |which, limit, asked: Option<u64>| {
            let crossed = Crossed { which, limit, value: limit + 1.0, at: String::new() };
            let (class, reason, message) =
                of_limit(&crossed, &Limits { memory: asked.map(Bytes), ..Limits::default() });
            assert!(message.contains("its limit is"), "{message}");
            (class, reason)
        };
        assert_eq!(of(Which::Memory, 95.0, None), (Class::Hold, Reason::OutOfMemory));
        assert_eq!(of(Which::Memory, 95.0, Some(200)), (Class::Hold, Reason::OutOfMemory), "more than there is");
        assert_eq!(of(Which::Memory, 50.0, Some(50)), (Class::Final, Reason::LimitExceeded));
        assert_eq!(of(Which::Disk, 90.0, None), (Class::Final, Reason::LimitExceeded));
    }
}
