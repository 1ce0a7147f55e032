//! What clients and the core say to each other: one JSON object a line, over a unix socket in the private volume.

use serde::{Deserialize, Serialize};

use crate::bind::{Class, Reason};
use crate::job::board::Live;
use crate::job::limits::Which;
use crate::job::{Phase, Report, Request};
use crate::text::printable;

/// Where clients that are not root connect to, in the pilot container's own file system.
pub const CLIENTS: &str = "/run/latebind/clients.sock";

/// Name of the socket within the private volume.
pub const SOCKET: &str = "serve.sock";

/// Longest line.
pub const LINE_MAX: usize = 1 << 20;

/// Client to core.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Ask {
    /// Run a job, or attach to the one that has its name. With `relay`, the client's descriptors 0 to 2 come along
    /// (SCM_RIGHTS). Answered by [`Tell::Phase`] and at last [`Tell::Result`].
    Submit {
        /// The job.
        job: Box<Request>,
    },
    /// Send a signal to a job's main process. Not answered on success.
    Signal {
        /// The job.
        job: String,
        /// The signal's number.
        signal: i32,
    },
    /// Send a signal to all processes of a running job. Answered by [`Tell::Sent`].
    Steer {
        /// The job.
        job: String,
        /// The signal's number; SIGSTOP and SIGCONT mean all at once.
        signal: i32,
    },
    /// How the slots are, and what their jobs use now. Answered by [`Tell::Top`].
    Top,
    /// End a job: TERM, grace, KILL. Not answered on success.
    Cancel {
        /// The job.
        job: String,
        /// Why; comes back in its report.
        why: String,
    },
    /// List all jobs. Answered by [`Tell::Jobs`].
    Jobs,
    /// Start a further command in the container of a running job: the socket that comes along is sent a connection to
    /// the job's attendant. Answered by [`Tell::Done`].
    Exec {
        /// The job.
        job: String,
    },
    /// On the clients' socket: hold this client's slot back, with a reason of its own, until its connection ends.
    Hold {
        /// Why, in words for a user.
        hold: Hold,
    },
    /// On the clients' socket: follow what jobs are held for. Answered by a [`Tell::Hold`] for each slot, and for each
    /// change.
    Holds,
    /// Forget a job that is over. Answered by [`Tell::Done`].
    Forget {
        /// The job.
        job: String,
    },
}

/// Core to client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Tell {
    /// A job has come to a phase.
    Phase {
        /// The job.
        job: String,
        /// The phase.
        phase: Phase,
    },
    /// A job is over.
    Result {
        /// What came of it.
        report: Box<Report>,
        /// How long to wait before it is tried again, seconds: grows with each failure in a row.
        #[serde(default)]
        back_off_s: f64,
    },
    /// A slot's last job is to be held, or (`None`) that is over.
    Hold {
        /// The slot.
        slot: u32,
        /// Why.
        hold: Option<Hold>,
    },
    /// All jobs.
    Jobs {
        /// A line for each.
        jobs: Vec<JobLine>,
    },
    /// A signal was sent.
    Sent {
        /// To how many processes.
        processes: u64,
    },
    /// The slots.
    Top {
        /// A line for each.
        slots: Vec<SlotLine>,
        /// Jobs that wait for a slot.
        queued: usize,
    },
    /// What was asked for is done.
    Done,
    /// What was asked for cannot be done.
    Error {
        /// Why not.
        message: String,
    },
}

/// Why a job is to be held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// One word, as in a report.
    pub reason: Reason,
    /// In words for the job's user.
    pub message: String,
}

impl Hold {
    /// What a batch system should hold this ended job for. A limit of the pilot's is one of them: the report calls it
    /// final, since no other run would differ, but it is not a result of the job's own.
    pub fn of(report: &Report) -> Option<Self> {
        let memory = report.limit.as_ref().is_some_and(|crossed| crossed.which == Which::Memory);
        let reason = match (report.class, report.reason) {
            (Class::Hold, reason) => reason,
            (Class::Final, Reason::LimitExceeded) if memory => Reason::OutOfMemory,
            (Class::Final, reason @ (Reason::LimitExceeded | Reason::TimedOut)) => reason,
            _ => return None,
        };
        Some(Self { reason, message: report.message.clone() })
    }
}

/// One job in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLine {
    /// Its name.
    pub job: String,
    /// How far it is.
    pub phase: Phase,
    /// The slot that it has.
    pub slot: Option<u32>,
    /// Its image.
    pub image: String,
}

/// A slot, and the job that it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotLine {
    /// Its number.
    pub slot: u32,
    /// Its job; none while it is idle.
    pub job: Option<String>,
    /// The job's image.
    pub image: Option<String>,
    /// How far the job is.
    pub phase: Option<Phase>,
    /// Seconds since the job came to this phase.
    pub phase_s: f64,
    /// Seconds until the job's wall limit, where it runs and has one.
    pub left_s: Option<f64>,
    /// What it uses, where it runs.
    pub live: Option<Live>,
    /// Starts in a row that failed by no fault of the jobs.
    #[serde(default)]
    pub failed_starts: u32,
    /// Seconds until the slot takes a job again, where it is out of service for that.
    #[serde(default)]
    pub out_s: Option<f64>,
    /// Why the last start failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The jobs as a table for people: name, phase, slot and image, with tabs between them.
pub fn table(jobs: &[JobLine]) -> String {
    let line = |job: &JobLine| {
        let slot = job.slot.map_or_else(|| "-".into(), |n| n.to_string());
        format!("{}\t{}\t{slot}\t{}\n", printable(&job.job), job.phase.name(), printable(&job.image))
    };
    jobs.iter().map(line).collect()
}

/// The job that a person means: by its whole name, or by that in the spool, where one attempt of it is under way. `.`:
/// the only one that runs.
pub fn find(jobs: &[JobLine], name: &str) -> Result<String, String> {
    if name == "." {
        let mut running = jobs.iter().filter(|line| line.phase == Phase::Running);
        return match (running.next(), running.next()) {
            (Some(one), None) => Ok(one.job.clone()),
            (None, _) => Err("no job runs: see watcher jobs".into()),
            (Some(_), Some(_)) => Err("several jobs run: name one, see watcher jobs".into()),
        };
    }
    if let Some(whole) = jobs.iter().find(|line| line.job == name) {
        return Ok(whole.job.clone());
    }
    let attempt = |line: &&JobLine| {
        let number = line.job.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        line.phase != Phase::Done && number.is_some_and(|n| n.parse::<u32>().is_ok())
    };
    let mut fitting = jobs.iter().filter(attempt);
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one.job.clone()),
        (None, _) => Err(format!("there is no job {name:?} under way: see watcher jobs")),
        (Some(_), Some(_)) => Err(format!("several attempts of {name:?} are under way: give the whole name")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::{Class, Hold, JobLine, Phase, Reason, Report, Which, find};
    use crate::job::limits::Crossed;

    fn held(class: Class, reason: Reason, which: Option<Which>) -> Option<Reason> {
        let request = serde_json::from_str(r#"{"id":"a","image":"i","argv":["true"]}"#).unwrap();
        let limit = which.map(|which| Crossed { which, limit: 1.0, value: 2.0, at: String::new() });
        Hold::of(&Report { class, reason, limit, ..Report::new(&request) }).map(|hold| hold.reason)
    }

    #[test]
    fn a_batch_system_holds_what_no_other_run_would_mend() {
        assert_eq!(held(Class::Hold, Reason::ImageNotFound, None), Some(Reason::ImageNotFound));
        assert_eq!(held(Class::Final, Reason::LimitExceeded, Some(Which::Memory)), Some(Reason::OutOfMemory));
        assert_eq!(held(Class::Final, Reason::LimitExceeded, Some(Which::Disk)), Some(Reason::LimitExceeded));
        assert_eq!(held(Class::Final, Reason::TimedOut, Some(Which::Wall)), Some(Reason::TimedOut));
        assert_eq!(held(Class::Final, Reason::Completed, None), None);
        assert_eq!(held(Class::Retry, Reason::GlueLost, None), None);
    }

    #[test]
    fn a_job_is_found_by_the_name_that_people_know() {
        let line = |job: &str, phase| JobLine { job: job.into(), phase, slot: None, image: "i".into() };
        let jobs = [
            line("a.1", Phase::Done),
            line("a.2", Phase::Running),
            line("a.b.1", Phase::Running),
            line("c", Phase::Running),
        ];
        assert_eq!(find(&jobs, "a").as_deref(), Ok("a.2"));
        assert_eq!(find(&jobs, "a.1").as_deref(), Ok("a.1"));
        assert_eq!(find(&jobs, "a.b").as_deref(), Ok("a.b.1"));
        assert_eq!(find(&jobs, "c").as_deref(), Ok("c"));
        assert!(find(&jobs, "b").is_err() && find(&jobs, "").is_err());
        assert!(find(&jobs, ".").is_err() && find(&jobs[..1], ".").is_err());
        assert_eq!(find(&jobs[..2], ".").as_deref(), Ok("a.2"));
    }
}
