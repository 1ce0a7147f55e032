//! What clients and the core say to each other: one JSON object a line, over a unix socket in the private volume.

use serde::{Deserialize, Serialize};

use crate::job::{Phase, Report, Request};

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
    /// End a job: TERM, grace, KILL. Not answered on success.
    Cancel {
        /// The job.
        job: String,
        /// Why; comes back in its report.
        why: String,
    },
    /// List all jobs. Answered by [`Tell::Jobs`].
    Jobs,
    /// On the clients' socket: hold this client's slot back, with a reason of its own, until its connection ends.
    Hold {
        /// Why, in words for a user.
        hold: Hold,
    },
    /// On the clients' socket: follow what jobs are held for. Answered by a [`Tell::Hold`] for each slot, and for each change.
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
    /// What was asked for is done.
    Done,
    /// What was asked for can not be done.
    Error {
        /// Why not.
        message: String,
    },
}

/// Why a job is to be held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// One word, as in a report.
    pub reason: String,
    /// In words for the job's user.
    pub message: String,
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
