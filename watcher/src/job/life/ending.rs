//! After the job: its results are fetched, what it has left is ended, and the slot is cleaned.

use std::time::Duration;

use latebind_linux::processes::Proc;

use crate::bind::{Class, Failure, Reason, Unattended, proof};
use crate::clean;
use crate::helper;
use crate::job::{Bound, Phase, Request, collect};
use crate::slot::Slot;
use crate::tree::{Deadline, Over};

use super::{JobContext, Life, Reuse, span};

/// Why the job's results need not be fetched any more, nor its slot be cleaned before it is over.
pub(super) fn given_up(context: &JobContext<'_>, request: &Request) -> impl Fn() -> Option<String> + Sync + use<> {
    let (control, grace) = (context.control.clone(), span(request.grace_s));
    move || control.given_up(grace)
}

/// Ends what is left of the payload UID in the container, and makes sure of it.
pub(super) fn end_processes(slot: &Slot, bound: &Bound, within: Duration) -> Result<(), Failure> {
    let inside = || {
        let proc = Proc::open()?;
        let all = proc.of_uid(slot.uid)?;
        Ok::<bool, std::io::Error>(all.iter().any(|p| proc.cgroup_of(p).is_ok_and(|c| c == bound.cgroup)))
    };
    if inside().is_ok_and(|any| !any) {
        return Ok(());
    }
    end_in(slot, bound.kill_uid, &bound.cgroup, within)
}

/// Runs the kill routine for the slot's payload in one container.
pub(super) fn end_in(slot: &Slot, kill_uid: u32, cgroup: &str, within: Duration) -> Result<(), Failure> {
    let left = helper::kill(slot.number, slot.ids(kill_uid), cgroup, within)
        .map_err(|e| Failure::retry(Reason::KillFailed, format!("the payload's processes: {e}")))?;
    match left {
        0 => Ok(()),
        n => Err(Failure::retry(
            Reason::Unkillable,
            format!("{n} processes of an earlier or this job could not be ended"),
        )),
    }
}

impl Life<'_> {
    pub(super) fn collect(&mut self) -> Result<Phase, Failure> {
        // A verified record says that nothing of the job lives; after a loss that has to be made sure of. Before the
        // relays end: whoever still lives could write on.
        if !self.state.report.verified || self.state.report.record.as_ref().is_some_and(|r| r.processes.unkilled > 0) {
            self.end_job_processes();
        }
        self.resume_output();
        let lost = self.relay.take().map(|relay| relay.finish(self.context.control)).unwrap_or_default();
        let (context, record) = (self.context, self.state.record_jws.clone());
        let stop = given_up(context, &self.state.request);
        let deadline = Deadline::within(context.settings.copy_within).unless(&stop);
        let report = &mut self.state.report;
        let put_out = context.control.board.output.bytes();
        if let Err(e) = collect::collect(
            context.slot,
            &self.state.request,
            record.as_deref(),
            report,
            put_out,
            &context.settings.copy,
            &deadline,
        ) {
            report.add_missing("results", &e);
        }
        match deadline.over() {
            Some(Over::Stopped(why)) if report.class == Class::Final && !report.missing_outputs.is_empty() => {
                let message = format!("{why}; the job was over, but not all of its outputs were fetched");
                (report.class, report.reason, report.message) = (Class::Retry, Reason::Cancelled, message);
            }
            _ => {}
        }
        self.state.report.missing_outputs.extend(lost);
        Ok(Phase::Cleaning)
    }

    pub(super) fn clean(&mut self) -> Result<Phase, Failure> {
        if self.needs_placeholder {
            // Not touched while a foreign root may be in it; the core brings the placeholder back before the next job
            // has it.
            self.held = None;
            return Ok(Phase::Done);
        }
        self.end_job_processes();
        if let Some(relay) = self.relay.take() {
            let lost = relay.finish(self.context.control);
            self.state.report.missing_outputs.extend(lost);
        }
        let slot = self.context.slot;
        let stop = given_up(self.context, &self.state.request);
        let deadline = Deadline::within(self.context.settings.clean_within).unless(&stop);
        if let Err(e) = clean::empty(slot, &deadline) {
            // What is left is removed before the next job has the slot; this one's result does not wait for that.
            self.needs_placeholder = true;
            self.note(Err(e));
        }
        let report = &self.state.report;
        if self.glue.as_ref().is_none_or(proof::has_ended) || report.class == Class::Retry {
            self.held = None; // whatever was short there, the next attempt does not find it again
        }
        if let Some(bound) = &self.state.bound {
            let reused = self.held.is_some() && self.context.settings.reuse == Reuse::SameOwner;
            let cleaned = self.context.binder.clean_ipc(slot.number, slot.ids(bound.kill_uid), reused);
            // As above: tried again until it is done.
            self.needs_placeholder |= cleaned.is_err();
            self.note(cleaned);
        }
        let report = &self.state.report;
        // Something may lie in its volumes that is no job's, and that the usual cleaning leaves alone.
        self.needs_placeholder |=
            report.class == Class::Retry && [Reason::VolumeFull, Reason::VolumeHeld].contains(&report.reason);
        Ok(Phase::Done)
    }

    /// Ends what is left of the job; what cannot be ended loses its container, and so the engine has to end it.
    fn end_job_processes(&mut self) {
        let slot = self.context.slot;
        let Some(bound) = self.state.bound.clone() else { return };
        let within = span(self.state.request.kill_s);
        if let Err(e) = end_processes(slot, &bound, within) {
            self.note(Err(e));
            self.note(self.context.binder.bind(slot.number, "", &Unattended).map(drop));
            self.note(end_processes(slot, &bound, within));
        }
    }

    /// Trouble while cleaning does not change the job's result; it only costs the slot its container.
    pub(super) fn note(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.held = None;
            tracing::warn!(job = %self.state.request.id, slot = self.context.slot.number, "cleaning: {failure}");
        }
    }
}
