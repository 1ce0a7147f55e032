//! `watcher pilot`: the loop over a spool, with as many jobs at once as there are slots.
//!
//! No single job stops a slot: what cannot be brought to its end now is tried again later, beside the other jobs, and
//! is set aside in the end. While that happens because there is no room, nothing further is claimed.

mod earlier;
mod feed;
mod gate;
mod name;
mod one_job;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::bind::{Binder, Failure, Reason};
use crate::job::{Fit, Phase, Requests};
use crate::serve::Core;
use crate::source::spool::{Spool, has_room};
use crate::source::{Claimed, Queue, may_look_again};
use crate::stop::Stop;

pub use self::feed::Remote;

use self::earlier::{forget_delivered, give_back_lost};
use self::feed::Feed;
use self::gate::Gate;
use self::name::own_name;
use self::one_job::{STOPPED, Step, TRIES_MAX, Undelivered, WAIT_TURN, forget, give_back, one_job, undelivered};

/// How often the spool is looked at while there is nothing to do.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long to wait before a job that could not be brought to its end is tried again: first, then twice as long each
/// time, and at most.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(256));

/// Most jobs for each slot that have a thread: one that runs, and those that have left the slot and are delivered.
const THREADS_PER_SLOT: usize = 4;

/// What the loop needs to know.
pub struct Loop {
    /// The spool.
    pub spool: PathBuf,
    /// Where jobs come from, if nobody puts them into the spool, which is then the pilot's own.
    pub remote: Option<Remote>,
    /// How images are bound: while that is not possible, no job is claimed that could only fail.
    pub binder: Arc<dyn Binder>,
    /// The core, which runs the jobs.
    pub core: Core,
    /// The private volume, which knows the pilot's name.
    pub private: PathBuf,
    /// The pilot's name, if it is given one.
    pub name: Option<String>,
    /// How many jobs at once. A pilot-job is one of them, and its own jobs are not.
    pub slots: usize,
    /// How many slots there are, those for pilot-jobs included.
    pub all_slots: usize,
    /// Attempts that a job has before it is held.
    pub max_attempts: u32,
    /// Ends once nothing waited for this long; never, where it is `None`.
    pub idle_exit: Option<Duration>,
}

/// A job that could not be brought to its end.
struct Postponed {
    claimed: Claimed,
    tries: u32,
    due: Instant,
}

impl Postponed {
    /// Due after a time that doubles with each try.
    fn after(claimed: Claimed, tries: u32) -> Self {
        let wait = AGAIN_AFTER.0.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(AGAIN_AFTER.1);
        Self { claimed, tries, due: Instant::now() + wait }
    }
}

/// What the loop waits for.
enum Event {
    /// A stop was requested.
    Stop,
    /// The job's result is verified and fetched, and its slot is being cleaned: another job can be claimed for it.
    LeavesSlot,
    /// The thread ends.
    Ended(Box<Ended>),
    /// The source has answered.
    Fetched,
    /// The core has a job that was claimed.
    Submitted,
}

/// What came of a job's thread.
struct Ended {
    claimed: Claimed,
    tries: u32,
    /// Whether [`Event::LeavesSlot`] was sent.
    left_slot: bool,
    result: Result<(), Undelivered>,
}

/// What a look for jobs that wait has found.
#[derive(Clone, Copy)]
struct Looked {
    at: Instant,
    took: Duration,
    waits: bool,
}

/// The loop's own state.
struct Pilot<'a> {
    settings: &'a Loop,
    stop: &'a Stop,
    spool: Spool,
    queue: Queue,
    gate: Gate,
    postponed: Vec<Postponed>,
    feed: Option<Feed>,
    /// Whether there was room when it was last looked for.
    room: Option<(Instant, bool)>,
    looked: Option<Looked>,
    /// Why the spool could not be read, the last time.
    said: String,
    /// Jobs that need a slot, or soon will.
    busy: usize,
    /// Threads of jobs: a job that has left its slot still has to be delivered.
    threads: usize,
    /// The core's names of their jobs, and what they needed when they were looked at.
    under_way: BTreeMap<String, Requests>,
    over: usize,
    tell: Sender<Event>,
    events: Receiver<Event>,
}

/// Serves the spool until there is nothing more to do, or a stop is requested. Returns how many jobs were brought to an
/// end.
pub fn run(settings: &Loop, stop: &Stop) -> io::Result<usize> {
    let name = own_name(&settings.private, settings.name.as_deref())?;
    let spool = Spool::open(&settings.spool, &name)?;
    let unfinished = give_back_lost(&settings.private, &spool, settings.max_attempts)?;
    tracing::info!(pilot = %name, spool = %settings.spool.display(), unfinished = unfinished.len(), "serving");
    forget_delivered(&settings.core, &unfinished);
    let (tell, events) = channel();
    let requested = tell.clone();
    stop.then(move || {
        let _ = requested.send(Event::Stop);
    });
    let wake = tell.clone();
    let wake = move || drop(wake.send(Event::Fetched));
    let feed = settings.remote.as_ref().map(|remote| Feed::start(remote, &settings.private, &spool, wake));
    let now = |claimed| Postponed { claimed, tries: 0, due: Instant::now() };
    let mut pilot = Pilot {
        settings,
        stop,
        queue: Queue::new(spool.clone()),
        spool,
        gate: Gate::new(settings.binder.clone(), settings.private.clone(), settings.all_slots),
        postponed: unfinished.into_iter().map(now).collect(),
        feed: feed.transpose()?,
        room: None,
        looked: None,
        said: String::new(),
        busy: 0,
        threads: 0,
        under_way: BTreeMap::new(),
        over: 0,
        tell,
        events,
    };
    pilot.serve()?;
    Ok(pilot.over)
}

impl Pilot<'_> {
    fn serve(&mut self) -> io::Result<()> {
        let mut idle_since = Instant::now();
        while !self.stop.is_requested() {
            let (core, slots) = (&self.settings.core, self.settings.slots);
            let is_full = self.busy + core.restoring() >= slots || self.threads >= slots * THREADS_PER_SLOT;
            let next = match self.due(is_full) {
                None if !is_full => self.claim()?,
                due => due,
            };
            if let Some(next) = next {
                self.start(next);
                continue;
            }
            let feed_is_idle = self.feed.as_mut().is_none_or(Feed::is_idle);
            if let Some(limit) = self.settings.idle_exit {
                let looked = self.look_for_waiting();
                if is_full || self.threads > 0 || !feed_is_idle || !self.postponed.is_empty() || looked.waits {
                    idle_since = Instant::now();
                } else if looked.at.saturating_duration_since(idle_since) >= limit {
                    break;
                }
            }
            self.wait(LOOK_EVERY);
        }
        // Those that have not been submitted yet see the stop once they are.
        self.under_way.keys().for_each(|id| self.settings.core.cancel(id, STOPPED));
        while self.threads > 0 {
            self.wait(WAIT_TURN);
        }
        self.give_back();
        Ok(())
    }

    /// Whether a job waits in the spool. All of a directory may have to be read to say so, whose content is its users':
    /// no more time goes into that than into any look.
    fn look_for_waiting(&mut self) -> Looked {
        if let Some(looked) = self.looked.filter(|looked| !may_look_again(looked.at, looked.took)) {
            return looked;
        }
        let at = Instant::now();
        let waits = !self.queue.is_empty().unwrap_or(false);
        *self.looked.insert(Looked { at, took: at.elapsed(), waits })
    }

    /// Nobody else serves the spool of a pilot with a source: the jobs in it are given back.
    fn give_back(&mut self) {
        let Some(mut feed) = self.feed.take() else { return };
        feed.end_fetching();
        while let Ok(Some(mut claimed)) = self.queue.claim() {
            let lost = Failure::retry(Reason::Cancelled, format!("{STOPPED}, before the job was begun"));
            if let Err(e) = give_back(&self.spool, &mut claimed, &lost, self.settings.max_attempts) {
                tracing::error!(job = %claimed.name, "not given back: {e}");
            }
        }
        feed.end_reporting();
    }

    /// A postponed job whose time has come. One that the core has begun comes first, and needs no free slot: it has
    /// one, or only its result is to be delivered, which must not wait for the end of another job.
    fn due(&mut self, is_full: bool) -> Option<Postponed> {
        let (core, now) = (&self.settings.core, Instant::now());
        let due = |p: &Postponed| p.due <= now;
        let begun = self.postponed.iter().position(|p| due(p) && core.has_begun(&p.claimed.core_name()));
        let at = begun.or_else(|| self.postponed.iter().position(due).filter(|_| !is_full))?;
        Some(self.postponed.swap_remove(at))
    }

    /// Claims another job, where one can be run.
    fn claim(&mut self) -> io::Result<Option<Postponed>> {
        let may_claim = self.gate.is_open()? && self.settings.binder.ready().is_ok();
        // Only looked for while something could not be kept or delivered.
        if !may_claim || !(self.postponed.is_empty() || self.has_room()) {
            return Ok(None);
        }
        let placement = self.settings.core.placement(self.under_way.iter());
        if placement.is_open() {
            return Ok(None);
        }
        let is_shared = self.feed.is_none();
        let fit = |requests: &Requests| match placement.fit(requests) {
            // Nobody else has it: its source has to hear of that.
            Fit::Never if !is_shared => Fit::Now,
            fit => fit,
        };
        let claimed = self.queue.claim_fitting(fit).unwrap_or_else(|e| {
            let said = e.to_string();
            if said != self.said {
                tracing::error!("no job can be claimed from the spool: {said}");
                self.said = said;
            }
            None
        });
        if claimed.is_none()
            && let Some(claimed) = self.queue.undelivered()
        {
            self.postponed.push(Postponed::after(claimed, 1));
        }
        if claimed.is_none()
            && let Some(feed) = &mut self.feed
        {
            let slots = self.settings.slots;
            // A job that waits for its next attempt keeps a slot's place: else a source could be emptied into retry/.
            feed.want(|| self.busy + self.postponed.len() + self.spool.waiting(slots) < slots);
        }
        Ok(claimed.map(|claimed| Postponed { claimed, tries: 0, due: Instant::now() }))
    }

    /// Whether jobs can be kept and delivered, as it was a moment ago.
    fn has_room(&mut self) -> bool {
        match self.room {
            Some((at, has)) if at.elapsed() < AGAIN_AFTER.0 => has,
            _ => {
                let has = self.spool.has_room() && has_room(&self.settings.private);
                self.room = Some((Instant::now(), has));
                has
            }
        }
    }

    /// Takes one job on its way, in a thread of its own.
    fn start(&mut self, Postponed { claimed, tries, .. }: Postponed) {
        let (core, most) = (self.settings.core.clone(), self.settings.max_attempts);
        let (spool, stop) = (self.spool.clone(), self.stop.clone());
        let (tell, job) = (self.tell.clone(), claimed.clone());
        self.under_way.insert(claimed.core_name(), claimed.requests);
        let thread = std::thread::Builder::new().name("job".into()).spawn(move || {
            let mut claimed = job;
            let mut left_slot = false;
            let mut on_step = |step| match step {
                Step::Submitted => drop(tell.send(Event::Submitted)),
                Step::LeavesSlot if left_slot => {}
                Step::LeavesSlot => {
                    left_slot = true;
                    let _ = tell.send(Event::LeavesSlot);
                }
            };
            let result = one_job(&core, &spool, &mut claimed, most, &stop, &mut on_step);
            let _ = tell.send(Event::Ended(Box::new(Ended { claimed, tries: tries + 1, left_slot, result })));
        });
        match thread {
            Ok(_) => (self.busy, self.threads) = (self.busy + 1, self.threads + 1),
            Err(e) => {
                tracing::error!(job = %claimed.name, "no thread for the job: {e}");
                self.under_way.remove(&claimed.core_name());
                self.postponed.push(Postponed::after(claimed, tries.max(1)));
            }
        }
    }

    /// Waits until a job leaves its slot or its thread ends, at most so long.
    fn wait(&mut self, limit: Duration) {
        let Ended { claimed, tries, left_slot, result } = match self.events.recv_timeout(limit) {
            Err(_) | Ok(Event::Stop | Event::Fetched | Event::Submitted) => return,
            Ok(Event::LeavesSlot) => {
                self.busy -= 1;
                return;
            }
            Ok(Event::Ended(ended)) => *ended,
        };
        self.threads -= 1;
        self.under_way.remove(&claimed.core_name());
        self.busy -= usize::from(!left_slot);
        match result {
            Ok(()) => {
                self.over += 1;
                self.feed.iter().for_each(Feed::delivered);
            }
            Err(e) if !claimed.is_here() => {
                tracing::error!(job = %claimed.name, "its directory is gone, so it has no result: {}", e.why);
                self.over += 1;
            }
            Err(e) => {
                tracing::error!(job = %claimed.name, tries, "not delivered yet: {}", e.why);
                let postponed =
                    if tries >= TRIES_MAX && self.has_room() { self.set_aside(claimed, e) } else { Some(claimed) };
                if postponed.is_none() {
                    self.feed.iter().for_each(Feed::delivered);
                }
                self.postponed.extend(postponed.map(|claimed| Postponed::after(claimed, tries)));
            }
        }
    }

    /// Moves a job out of the way that could not be brought to its end, with the reason; gives it back where that is
    /// not possible either.
    fn set_aside(&mut self, claimed: Claimed, Undelivered { why, report }: Undelivered) -> Option<Claimed> {
        let core = &self.settings.core;
        let under_way = claimed.core_name();
        if core.jobs().iter().any(|line| line.job == under_way && line.phase != Phase::Done) {
            return Some(claimed); // the core has it, and somebody has to take its result
        }
        let report = undelivered(&claimed, report, &why);
        match self.spool.set_aside(claimed.dir(), &claimed.name, &report) {
            Ok(()) => {
                tracing::error!(job = %claimed.name, "set aside in held/: {why}");
                forget(core, &under_way);
                self.over += 1;
                None
            }
            Err(e) => {
                tracing::error!(job = %claimed.name, "cannot be set aside, and stays in claimed/: {e}");
                Some(claimed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn tries_come_later_and_later() {
        let claimed = Claimed::new("/nowhere".into(), "a").unwrap();
        let after = |tries| Postponed::after(claimed.clone(), tries).due.saturating_duration_since(Instant::now());
        let seconds: Vec<_> = [1, 2, 3, 8, 100].map(|tries| after(tries).as_secs_f64().ceil() as u64).to_vec();
        assert_eq!(seconds, [2, 4, 8, 256, 256]);
    }
}
