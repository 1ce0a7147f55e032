//! One claimed job: from the core to its place in the spool, or why it did not get there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::bind::{Failure, Reason};
use crate::job::{Phase, Report, Request};
use crate::serve::{Core, Mailbox, News};
use crate::source::Claimed;
use crate::source::spool::Spool;
use crate::stop::Stop;

/// Why a job is cancelled when a stop is requested.
pub const STOPPED: &str = "the pilot was told to stop";

/// Any long time: a job's thread is woken by what it waits for, and then waits again.
pub const WAIT_TURN: Duration = Duration::from_secs(3600);

/// After so many tries a job is set aside, if there is room for others.
pub const TRIES_MAX: u32 = 8;

/// How far a job is in the core.
pub enum Step {
    /// The core has it.
    Submitted,
    /// Its result is verified and fetched, and its slot is being cleaned.
    LeavesSlot,
}

/// Why a job could not be brought to its end, and its report, if it has one.
pub struct Undelivered {
    /// What failed, last.
    pub why: io::Error,
    /// What came of the attempt.
    pub report: Option<Box<Report>>,
}

impl From<io::Error> for Undelivered {
    fn from(why: io::Error) -> Self {
        Self { why, report: None }
    }
}

/// One claimed job, from the core to its place in the spool. Asking the core again never runs the job again: so what
/// fails here can be repeated, and costs no result.
pub fn one_job(
    core: &Core,
    spool: &Spool,
    claimed: &mut Claimed,
    most: u32,
    stop: &Stop,
    on_step: &mut dyn FnMut(Step),
) -> Result<(), Undelivered> {
    claimed.prepare()?;
    let request = match &claimed.verdict {
        Some(known) => Err(known.clone()),
        None => {
            let too_small = |why| Failure::retry(Reason::SlotTooSmall, why);
            let request = claimed.request().map_err(|why| Failure::hold(Reason::InvalidJob, why));
            request.and_then(|request| {
                core.check_size(&request).map_err(too_small)?;
                core.check(&request).map_err(|why| Failure::hold(Reason::InvalidJob, why)).map(|()| request)
            })
        }
    };
    let report = match &request {
        Ok(request) => run_in_core(core, request, stop, on_step)?,
        Err(failure) => claimed.refusal(failure),
    };
    match spool.deliver(claimed, &report, most) {
        Err(why) => Err(Undelivered { why, report: Some(Box::new(report)) }),
        Ok(to) => {
            let (job, attempt, reason) = (&claimed.name, claimed.attempt, report.reason);
            tracing::info!(%job, attempt, class = ?report.class, %reason, to, "delivered");
            forget(core, &report.job);
            Ok(())
        }
    }
}

/// Has the core run a job, or attaches to it, and waits for its report.
fn run_in_core(core: &Core, request: &Request, stop: &Stop, on_step: &mut dyn FnMut(Step)) -> io::Result<Report> {
    let mailbox = Arc::new(Mailbox::new()?);
    core.submit(request.clone(), None, &mailbox).map_err(io::Error::other)?;
    on_step(Step::Submitted);
    // The loop cancels what it knows to be under way when the stop comes; this job may just not have been known.
    if stop.is_requested() {
        core.cancel(&request.id, STOPPED);
    }
    loop {
        match mailbox.wait(WAIT_TURN)? {
            Some(News::Over(report)) => return Ok(*report),
            // After any other end the slot may be out of service for a while, and another pilot can have the next job.
            Some(News::Phase(_, Phase::Cleaning)) if core.has_final_result(&request.id) => {
                on_step(Step::LeavesSlot);
            }
            _ => {}
        }
    }
}

/// The report of a job that is set aside: what came of it is in the message, and in the record.
pub fn undelivered(claimed: &Claimed, report: Option<Box<Report>>, why: &io::Error) -> Report {
    let failure =
        |what: String| Failure::hold(Reason::DeliveryFailed, format!("{what}; tried {TRIES_MAX} times: {why}"));
    let Some(mut report) = report else { return claimed.refusal(&failure("this attempt has no result".into())) };
    let had = format!("{} ({}): {}", report.reason, report.class.name(), report.message);
    let failure = failure(format!("the result could not be delivered, which was {had}"));
    (report.class, report.reason, report.message) = (failure.class, failure.reason, failure.message);
    *report
}

/// Delivers a job that the core was not asked to run, for this reason. Returns where to.
pub fn give_back(spool: &Spool, claimed: &mut Claimed, why: &Failure, most: u32) -> io::Result<&'static str> {
    claimed.prepare()?;
    spool.deliver(claimed, &claimed.refusal(why), most)
}

/// Has the core forget a job whose result is delivered.
pub fn forget(core: &Core, id: &str) {
    if let Err(e) = core.forget(id) {
        tracing::warn!(job = id, "not forgotten: {e}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use crate::bind::Class;

    #[test]
    fn a_job_that_is_set_aside_says_what_came_of_it() {
        let claimed = Claimed::new("/nowhere".into(), "a").unwrap();
        let why = io::Error::other("no way");
        let bare = undelivered(&claimed, None, &why);
        assert_eq!((bare.class, bare.reason), (Class::Hold, Reason::DeliveryFailed));
        let mut had = Report::new(&crate::job::Request::new("a.1".into()));
        (had.class, had.reason, had.exit_code) = (Class::Final, Reason::Error, Some(3));
        let report = undelivered(&claimed, Some(Box::new(had)), &why);
        assert_eq!((report.class, report.reason, report.exit_code), (Class::Hold, Reason::DeliveryFailed, Some(3)));
        assert!(report.message.contains("Error (final)") && report.message.ends_with("no way"), "{}", report.message);
    }
}
