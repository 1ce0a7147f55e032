//! The first half of a job's life: its image bound and proven, and the job handed over.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use latebind_contract::layout;
use latebind_contract::status::Status;
use latebind_linux::processes::Proc;

use crate::bind::{Binder, Failure, Progress, Reason, proof};
use crate::job::attach::Attach;
use crate::job::cgroup::Group;
use crate::job::relay::{Output, Relay, Route};
use crate::job::{Began, Bound, Phase, State, class, collect, now, stage, start};
use crate::keys;
use crate::slot::dirty_mark;
use crate::store::Store;
use crate::tree::Deadline;

use super::ending::end_in;
use super::{ENGINE_NOTICES_WITHIN, JobContext, Life, Reuse, SlotReservation, not_kept, span, wait};

/// How often a job's image is bound for one attempt. An image's root can kill the pilot before the mount proof: a
/// restarted one must not do the same over and over again.
const BINDS_MAX: u32 = 2;

/// A bind as it goes on: tells its listeners, and is given up when the job is not wanted any more.
struct Following<'a> {
    context: &'a JobContext<'a>,
    state: &'a State,
    pulling_since: Cell<Option<Instant>>,
}

impl Progress for Following<'_> {
    fn pulling(&self) {
        self.pulling_since.set(Some(Instant::now()));
        (self.context.on_phase)(&State { phase: Phase::Pulling, ..self.state.clone() });
    }

    fn note(&self, text: &str) {
        tracing::warn!(job = %self.state.request.id, "{text}");
    }

    fn stop_wanted(&self) -> Option<String> {
        self.context.control.settle();
        self.context.control.stop_wanted()
    }
}

/// Waits until the container's glue says `ready` under a new incarnation and has passed the mount proof.
fn wait_for_glue(
    context: &JobContext<'_>,
    container: &crate::bind::Container,
    before: Option<&str>,
) -> Result<(Bound, OwnedFd), Failure> {
    let slot = context.slot;
    let give_up = Instant::now() + context.settings.ready_within;
    loop {
        slot.clear_notifications();
        context.control.settle();
        // Wrong mounts show with whatever runs there; waiting for a glue that an image keeps away would be in vain.
        proof::look_at_any(slot.number, &container.id)?;
        // Until the mount proof an image's root may have written this: it only says which process to look at.
        let claimed = slot.status().ok().flatten().filter(|s| Some(s.incarnation.as_str()) != before);
        let proc = Proc::open().map_err(|e| Failure::retry(Reason::EngineError, e.to_string()))?;
        if let Some(pid) = claimed.map(|s| s.pid)
            && let Ok(cgroup) = proc.cgroup(pid)
            && proof::is_of_container(&cgroup, &container.id)
        {
            let glue = proof::prove(pid, slot.number, &container.id)?;
            // Read again, since only now is it known who writes it.
            let status =
                slot.status().ok().flatten().filter(|s| s.pid == pid && Some(s.incarnation.as_str()) != before);
            if let Some(status) = status {
                let (incarnation, kill_uid) = (status.incarnation.clone(), proven_kill_uid(context, &status)?);
                return Ok((Bound { container: container.clone(), incarnation, pid, kill_uid, cgroup }, glue));
            }
        }
        if let Some(why) = context.control.stop_wanted() {
            return Err(Failure::not_started(&why));
        }
        // The engine said that it runs: so either it is to be seen, or it has ended since.
        if !proof::has_process(&container.id)
            && let Ok(state) = context.binder.end_of(slot.number, &container.id, ENGINE_NOTICES_WITHIN)
            && !(state.running && state.id == container.id)
        {
            return Err(class::of_end_before_ready(&state));
        }
        if Instant::now() >= give_up {
            let message = format!("the new container's glue said nothing within {:?}", context.settings.ready_within);
            return Err(Failure::retry(Reason::GlueSilent, message));
        }
        // A notification wakes at once; the short wait is for an image that keeps glue from sending any.
        wait([slot.notified(), context.control.woken(), slot.notified()], Some(Duration::from_millis(50)));
    }
}

/// The kill UID that a proven glue names, once everything that watcher and glue have to agree on has been compared.
fn proven_kill_uid(context: &JobContext<'_>, status: &Status) -> Result<u32, Failure> {
    let (slot, mismatch) = (context.slot, |message: String| Failure::retry(Reason::VersionMismatch, message));
    if !status.contract.contains(&latebind_contract::VERSION) {
        return Err(mismatch(format!("glue {} speaks contract {:?}", status.glue, status.contract)));
    }
    if (status.uid, status.gid) != (slot.uid, slot.gid) {
        return Err(mismatch("glue and watcher see different owners of work/".into()));
    }
    slot.ids(status.kill_uid).check().map_err(mismatch)?;
    if let Some(other) = context.payload_uids.get(&status.kill_uid) {
        let message =
            format!("the kill UID {} is the payload UID of slot {other}: choose another one", status.kill_uid);
        return Err(mismatch(message));
    }
    if kill_uid(context.binder, context.slots, slot.number) != status.kill_uid {
        let kept = context.slots.put(&kill_uid_entry(slot.number), &status.kill_uid);
        kept.map_err(|e| not_kept("the slot's kill UID", &e))?;
    }
    Ok(status.kill_uid)
}

/// The entry in the store of slots that has the kill UID which a proven glue of the slot has named.
fn kill_uid_entry(slot: u32) -> String {
    format!("{slot}-kill-uid")
}

/// A slot's kill UID, from whoever made the pod, or what the watcher itself has kept: its status file may be a foreign
/// root's.
pub(crate) fn kill_uid(binder: &dyn Binder, slots: &Store, slot: u32) -> u32 {
    let given = binder.ids(slot).ok().flatten().map(|ids| ids.kill_uid);
    let kept = || slots.get(&kill_uid_entry(slot)).ok().flatten();
    given.or_else(kept).unwrap_or(layout::DEFAULT_KILL_UID + slot)
}

impl Life<'_> {
    /// Processes of the payload UID that an earlier, lost job may have left, wherever but in the pilot's own container:
    /// while one of them lives, it could exchange what is put into `work/`.
    pub(super) fn end_leftovers(&self) -> Result<(), Failure> {
        let slot = self.context.slot;
        let unreadable = |e: std::io::Error| Failure::retry(Reason::EngineError, format!("/proc: {e}"));
        let proc = Proc::open().map_err(unreadable)?;
        let own = proc.cgroup(std::process::id() as i32).map_err(unreadable)?;
        for process in proc.of_uid(slot.uid).map_err(unreadable)? {
            let Ok(cgroup) = proc.cgroup_of(&process) else { continue };
            if cgroup != own {
                tracing::warn!(slot = slot.number, pid = process.pid, "left over from an earlier job");
                // Only now: the engine is asked, and nothing waits for it where nothing was left.
                let kill_uid = kill_uid(self.context.binder, self.context.slots, slot.number);
                end_in(slot, kill_uid, &cgroup, span(self.state.request.kill_s))?;
            }
        }
        Ok(())
    }

    pub(super) fn bind(&mut self) -> Result<Phase, Failure> {
        if self.resumed {
            self.refuse_cancelled()?;
        }
        if self.state.binds >= BINDS_MAX {
            let message = format!(
                "the pilot was ended {} times while {} was being bound: its image may have done that",
                self.state.binds, self.state.request.image
            );
            return Err(Failure::retry(Reason::PilotLost, message));
        }
        let slot = self.context.slot;
        let request = &self.state.request;
        let held = self.held.take().filter(|held| {
            self.context.settings.reuse == Reuse::SameOwner
                && request.identity().is_some_and(|owner| held.owner.as_ref() == Some(&owner))
                && held.bound.container.image == request.image
                // Resolved again each time: a name may mean another image by now.
                && self.context.binder.image_id(&request.image).is_ok_and(|id| id == held.bound.container.image_id)
        });
        if self.resumed {
            self.empty()?; // an earlier watcher may have filled it in part
        }
        let request = &self.state.request;
        if let Some(held) = held
            && let Ok(glue) = proof::prove(held.bound.pid, slot.number, &held.bound.container.id)
            && slot.status().is_ok_and(|s| s.is_some_and(|s| s.incarnation == held.bound.incarnation))
        {
            let control = self.context.control;
            let stop = || control.stop_wanted();
            let ids = slot.ids(held.bound.kill_uid);
            let settings = self.context.settings;
            let deadline = Deadline::within(settings.copy_within).unless(&stop);
            stage::fill(slot, ids, &settings.web, request, &settings.copy, &deadline)?;
            self.state.report.reused_container = true;
            self.take_bound(held.bound, glue);
            return Ok(Phase::Starting);
        }
        let before = slot.status().ok().flatten().map(|status| status.incarnation);
        slot.clear_notifications();
        self.state.binds += 1;
        self.save()?;
        let (request, mark) = (&self.state.request, dirty_mark(slot.number));
        self.context.slots.put(&mark, &true).map_err(|e| not_kept("the slot's state", &e))?;
        self.needs_placeholder = true; // until the mount proof, root in the new container may be the image's
        let following = Following { context: self.context, state: self.state, pulling_since: Cell::new(None) };
        let mut bound_to = None;
        // Nobody waits for inputs whose image cannot be bound.
        let (control, is_wanted) = (self.context.control, AtomicBool::new(true));
        let stop = || {
            let lost = (!is_wanted.load(Ordering::Relaxed)).then(|| "its image was not bound".to_owned());
            lost.or_else(|| control.stop_wanted())
        };
        let deadline = Deadline::within(self.context.settings.copy_within).unless(&stop);
        let ids = slot.ids(kill_uid(self.context.binder, self.context.slots, slot.number));
        let web = &self.context.settings.web;
        let (bound, staged) = std::thread::scope(|scope| {
            // Not `scope.spawn`, which ends the watcher where no thread can be made.
            let stage = std::thread::Builder::new().name("stage".into()).spawn_scoped(scope, || {
                let began = Instant::now();
                let bounds = &self.context.settings.copy;
                stage::fill(slot, ids, web, request, bounds, &deadline).map(|()| began.elapsed())
            });
            let stage = match stage {
                Ok(stage) => stage,
                Err(e) => {
                    let failure = Failure::retry(Reason::ResourceShortage, format!("no thread for the inputs: {e}"));
                    return (Err(failure.clone()), Err(failure));
                }
            };
            let bound = self.context.binder.bind(slot.number, &request.image, &following).and_then(|container| {
                let proven = wait_for_glue(self.context, &container, before.as_deref());
                bound_to = Some(container);
                proven
            });
            is_wanted.store(bound.is_ok(), Ordering::Relaxed);
            let staged =
                stage.join().unwrap_or_else(|_| Err(Failure::retry(Reason::StagingError, "the staging thread ended")));
            (bound, staged)
        });
        let pulled = following.pulling_since.get().map_or(0.0, |since| since.elapsed().as_secs_f64());
        self.state.report.durations.pull += pulled;
        if pulled > 0.0 {
            self.state.report.phases.push(Began { phase: Phase::Pulling, at: now() - pulled });
        }
        self.state.report.container = bound_to;
        let image = &self.state.request.image;
        let (bound, glue) = bound.inspect_err(|e| self.context.binder.say_failed(slot.number, image, e))?;
        self.context.slots.remove(&mark).map_err(|e| not_kept("the slot's state", &e))?;
        self.needs_placeholder = false;
        self.take_bound(bound, glue);
        self.state.report.durations.stage += staged?.as_secs_f64();
        Ok(Phase::Starting)
    }

    fn take_bound(&mut self, bound: Bound, glue: OwnedFd) {
        self.state.report.container = Some(bound.container.clone());
        self.held = Some(SlotReservation { bound: bound.clone(), owner: self.state.request.identity() });
        self.state.bound = Some(bound);
        self.glue = Some(glue);
    }

    /// A job without a program runs what its image runs by itself.
    fn take_image_command(&mut self) -> Result<(), Failure> {
        if !self.state.request.argv.is_empty() {
            return Ok(());
        }
        let following = Following { context: self.context, state: self.state, pulling_since: Cell::new(None) };
        let command = self.context.binder.command(&self.bound()?.container, &following)?;
        self.state.request.take_command(command).map_err(|e| Failure::hold(Reason::InvalidJob, e))
    }

    /// Hands the job over exactly once. When an earlier watcher was interrupted here, either the startup file is still
    /// there, or glue's status names its nonce, or it was never put.
    pub(super) fn start(&mut self) -> Result<Phase, Failure> {
        let slot = self.context.slot;
        if self.resumed && self.state.secrets.is_some() {
            self.pin_glue()?;
            if slot.has_startup() {
                slot.notify().map_err(|e| Failure::retry(Reason::VolumeFull, e.to_string()))?;
                return Ok(Phase::Running);
            }
            if self.was_claimed() {
                return Ok(Phase::Running);
            }
        }
        self.refuse_cancelled()?;
        if self.glue.is_none() {
            self.pin_glue()?;
        }
        self.take_image_command()?;
        let streams = self.streams.take();
        let owner = streams.as_ref().and_then(|s| s.owner.clone());
        let routes = match streams {
            Some(streams) => streams.routes(slot, self.state.request.sandbox.is_some()),
            None if self.state.request.relay => {
                return Err(Failure::retry(Reason::RelayFailed, "the client's descriptors are gone"));
            }
            None if self.state.request.terminal.is_some() && self.resumed => {
                return Err(Failure::retry(Reason::RelayFailed, "the client's terminal is gone"));
            }
            None if self.state.request.terminal.is_some() => [Route::Null, Route::Null, Route::Null],
            None => start::kept(&self.state.request),
        };
        let bound = self.bound()?;
        let prepared = start::prepare(slot, bound, &self.state.request, &routes)?;
        if let Some(dir) = &self.context.settings.keep_keys {
            keys::keep(dir, &prepared.secrets)
                .map_err(|e| Failure::retry(Reason::VolumeFull, format!("{}: {e}", dir.display())))?;
        }
        self.state.secrets = Some(prepared.secrets);
        self.group = Group::open(self.bound()?.pid);
        self.state.memory_size = self.group.as_ref().and_then(|g| g.memory_limit);
        self.counters = self.group.as_ref().map(|g| g.counters.clone());
        self.state.counted_before = self.counters.as_ref().map(|counters| counters.now());
        self.save()?; // before the file is put: from here on a restarted watcher can prove its record
        slot.ctl.remove(layout::RECORD).map_err(|e| Failure::retry(Reason::VolumeFull, e.to_string()))?;
        let relay = Relay::start(slot, routes, owner, &self.output());
        self.relay = Some(relay.map_err(|e| Failure::retry(Reason::RelayFailed, format!("streams: {e}")))?);
        if self.state.request.terminal.is_some() || self.state.request.exec {
            let attach = Attach::listen(slot);
            self.attach = Some(attach.map_err(|e| Failure::retry(Reason::RelayFailed, format!("io/attach: {e}")))?);
        }
        self.state.notified_at = Some(now());
        start::hand_over(slot, &self.state.request, &prepared.file)?;
        Ok(Phase::Running)
    }

    /// Where the job's output goes, and how much of it is kept.
    fn output(&self) -> Output {
        let limits = self.state.request.limits.within(&self.context.settings.limits);
        Output {
            meter: self.context.control.board.output.clone(),
            kept_max: collect::most(&limits, &self.context.settings.copy),
        }
    }

    /// Keeps on reading the output of a job that an earlier watcher has handed over. It has lost no byte by that: what
    /// the job puts out meanwhile waits in the FIFO.
    pub(super) fn resume_output(&mut self) {
        if self.relay.is_some() || self.state.request.relay || self.state.request.terminal.is_some() {
            return;
        }
        match Relay::resume(self.context.slot, &self.output()) {
            Ok(relay) => self.relay = Some(relay),
            Err(e) => {
                let (job, slot) = (&self.state.request.id, self.context.slot.number);
                tracing::error!(%job, slot, "its output is lost: {e}");
            }
        }
    }

    /// Meets the attendant of a job that an earlier watcher has handed over: it connects again.
    pub(super) fn resume_attach(&mut self) {
        if self.attach.is_none() && self.state.request.exec {
            match Attach::listen(self.context.slot) {
                Ok(attach) => self.attach = Some(attach),
                Err(e) => {
                    tracing::error!(job = %self.state.request.id, "nothing can be started beside it: io/attach: {e}");
                }
            }
        }
    }

    fn was_claimed(&self) -> bool {
        let nonce = self.state.secrets.as_ref().map(|s| &s.nonce);
        self.context.slot.status().is_ok_and(|status| status.is_some_and(|s| s.nonce.as_ref() == nonce))
    }

    /// A handle on the glue that the state names, or the certainty that it is gone.
    pub(super) fn pin_glue(&mut self) -> Result<(), Failure> {
        let bound = self.bound()?;
        let pidfd = latebind_linux::sys::pidfd_open(bound.pid).ok();
        // Which process this is was proven when it was bound; that its number has not passed on, its container says.
        let same = Proc::open().and_then(|p| p.cgroup(bound.pid)).is_ok_and(|cgroup| cgroup == bound.cgroup);
        match pidfd.filter(|_| same) {
            Some(pidfd) => self.glue = Some(pidfd),
            None => return Err(self.lost()),
        }
        Ok(())
    }
}
