//! The life of one pod, from its first directory to the removal of its last.

mod pilot;

use crate::bind_server::BindServer;
use crate::calls::{CALL_LIMIT, CallError};
use crate::container::{PilotShape, PodShape, Role, Spec, container_name};
use crate::engine::Engine;
use crate::failure::{Context, Failure, failure};
use crate::hosts;
use crate::image_cache::ImageCache;
use crate::images::{AllowList, Pull};
use crate::main_process::MainProcess;
use crate::place::Claim;
use crate::slot::{Slot, glue_said};
use crate::threads;
use crate::uids::{self, IdRange, PodIds};
use crate::volumes;
use nix::sys::signal::Signal;
use signal_hook::iterator::Signals;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use watcher::reference::Reference;

/// Exit code for a pilot that was told to stop before it ran.
const STOPPED: u8 = 128 + Signal::SIGTERM as u8;
/// A container that has a main process for this long has been started.
const START_TIME: Duration = Duration::from_secs(3);
/// How often it is tried to hand a signal to a pilot that is just being started.
const SIGNAL_TICK: Duration = Duration::from_millis(50);
/// Signals that are handed to the pilot; those for which the second value is true also end the pod.
const SIGNALS: [(Signal, bool); 6] = [
    (Signal::SIGTERM, true),
    (Signal::SIGINT, true),
    (Signal::SIGHUP, true),
    (Signal::SIGQUIT, true),
    (Signal::SIGUSR1, false),
    (Signal::SIGUSR2, false),
];

/// What a pod is to be.
#[derive(Debug)]
pub struct Plan {
    /// All its containers.
    pub shape: PodShape,
    /// Its pilot.
    pub pilot: PilotShape,
    /// Where its user IDs are taken from, if not from the default range.
    pub uids: Option<IdRange>,
    /// Images that the pilot may bind.
    pub allowed: AllowList,
    /// Whether they are fetched.
    pub pull: Pull,
    /// How many times a failed pilot is started again.
    pub restarts: u32,
    /// How long the pilot may take to end once it was told to; for ever, where nothing is said.
    pub stop_within: Option<Duration>,
    /// Whether the pod is left as it is at its end.
    pub keep: bool,
    /// The image of the one command that the pod is for. Then the pilot is handed each signal as it is, since they are
    /// meant for the command, and the slot is empty until the pilot binds the image.
    pub only: Option<Reference>,
}

enum Event {
    Signal(Signal, bool),
    /// All is there but the pilot.
    Ready,
    Ended(Result<u8, Failure>),
}

/// Runs a pod to its end, and removes it; the exit code is the pilot's last.
pub fn run(engine: &Arc<dyn Engine>, plan: Plan) -> Result<u8, Failure> {
    let (to, events) = mpsc::channel();
    // First of all: from here on no signal ends this process and leaves half a pod behind.
    forward_signals(to.clone(), plan.only.is_some())?;
    let name = plan.shape.name.clone();
    let keep = plan.keep;
    let claim = claim(&**engine, &name)?;
    // Its directory is made before the first container, and removed after the last.
    if engine.place().pod(&name).top().exists() {
        remove_leftovers(&**engine, &name)?;
    }
    let base = plan.shape.base;
    let taken = uids::take(&plan.shape.place, plan.shape.slots, plan.uids);
    let ids = taken.inspect_err(|_| {
        let _ = volumes::remove(&plan.shape.place);
    })?;
    let life = Arc::new(Life {
        ids,
        server: Arc::new(BindServer {
            engine: Arc::clone(engine),
            slots: (0..plan.shape.slots).map(|n| Slot::new(n, ids.of(n))).collect(),
            shape: plan.shape,
            allowed: plan.allowed,
            // One command's image is fetched once, before there is a pilot.
            pull: if plan.only.is_some() && plan.pull == Pull::Always { Pull::Missing } else { plan.pull },
            images: ImageCache::new(engine.images_root()),
        }),
        pilot: plan.pilot,
        restarts: plan.restarts,
        stop_within: plan.stop_within,
        pilot_id: Mutex::default(),
        only: plan.only,
        first_pull: plan.pull,
        pause_id: OnceLock::new(),
        stopping: AtomicBool::new(false),
    });
    let worker = Arc::clone(&life);
    let started = threads::start("pod", move || {
        let up = worker.set_up().and_then(|()| {
            let _ = to.send(Event::Ready);
            worker.pilot()
        });
        let _ = to.send(Event::Ended(up));
    });
    let result = started.context(|| format!("cannot start the pod {name}")).and_then(|()| life.attend(&events));
    engine.calls().close();
    if !keep {
        // Before the calls under way are waited for: without their pod they end sooner.
        life.kill_all();
    }
    engine.calls().wait_for_calls();
    if keep {
        tracing::warn!("the pod {name} is kept as it is; to remove it: latebind-host rm {name}");
    } else {
        remove(&**engine, &name, base)?;
    }
    drop(claim);
    result
}

/// Removes what an earlier life of the pod left, and may still run.
pub fn remove_leftovers(engine: &dyn Engine, name: &str) -> Result<(), Failure> {
    if engine.place().pod(name).top().exists() {
        // All of it at once, as the kernel does it. One by one, a pilot whose payload goes first would take that for a
        // loss, and claim a job that it has no time for.
        engine.kill(&container_name(name, Role::Pause));
    }
    remove(engine, name, Role::Pause)
}

fn remove(engine: &dyn Engine, name: &str, base: Role) -> Result<(), Failure> {
    engine.remove_pod(name, &base.to_string())?;
    let place = engine.place().pod(name);
    volumes::remove(&place)?;
    uids::give_back(&place)
}

/// The right to the name `name`.
pub fn claim(engine: &dyn Engine, name: &str) -> Result<Claim, Failure> {
    engine.place().claim(name)?.ok_or_else(|| {
        failure(format!(
            "the pod {name} is in the hands of another latebind-host that runs now: end that one first, or choose \
             another --name"
        ))
    })
}

fn forward_signals(to: Sender<Event>, as_they_are: bool) -> Result<(), Failure> {
    let mut signals = Signals::new(SIGNALS.map(|(s, _)| s as i32)).context(|| "cannot handle signals".into())?;
    threads::start("signals", move || {
        for number in signals.forever() {
            let Some((signal, ends)) = SIGNALS.into_iter().find(|(s, _)| *s as i32 == number) else { continue };
            let event = match (as_they_are, ends) {
                (true, _) => Event::Signal(signal, ends),
                // The pilot of a spool knows these two; any other would end it without a word.
                (false, true) if signal == Signal::SIGINT => Event::Signal(Signal::SIGINT, true),
                (false, true) => Event::Signal(Signal::SIGTERM, true),
                (false, false) => continue,
            };
            let _ = to.send(event);
        }
    })
    .context(|| "cannot handle signals".into())
}

struct Life {
    ids: PodIds,
    server: Arc<BindServer>,
    pilot: PilotShape,
    restarts: u32,
    stop_within: Option<Duration>,
    pilot_id: Mutex<Option<String>>,
    only: Option<Reference>,
    first_pull: Pull,
    pause_id: OnceLock<String>,
    stopping: AtomicBool,
}

impl Life {
    fn engine(&self) -> &dyn Engine {
        &*self.server.engine
    }

    fn shape(&self) -> &PodShape {
        &self.server.shape
    }

    /// Acts on signals until the pilot has ended for good, or somebody insists.
    fn attend(&self, events: &Receiver<Event>) -> Result<u8, Failure> {
        let mut ready = false;
        let mut waiting: Option<Signal> = None;
        let mut give_up: Option<Instant> = None;
        loop {
            waiting = waiting.filter(|signal| !(ready && self.signal_pilot(*signal)));
            let event = match (waiting, give_up) {
                (Some(_), _) => events.recv_timeout(SIGNAL_TICK),
                (None, Some(at)) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
                (None, None) => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if give_up.is_some_and(|at| Instant::now() >= at) && event.is_err() {
                tracing::warn!("the pilot has not ended in time: removing the pod");
                return Ok(STOPPED);
            }
            match event {
                Ok(Event::Ready) => ready = true,
                Ok(Event::Ended(result)) => return result,
                Ok(Event::Signal(signal, false)) => waiting = Some(signal),
                Ok(Event::Signal(signal, true)) => {
                    let again = self.stopping.swap(true, Ordering::SeqCst);
                    if again || !ready {
                        tracing::info!(%signal, "removing the pod at once");
                        return Ok(128u8.saturating_add(signal as u8));
                    }
                    tracing::info!(%signal, "the pilot is told to stop; a second signal removes the pod at once");
                    waiting = Some(signal);
                    give_up = self.stop_within.map(|within| Instant::now() + within);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(failure("the pod's thread ended without a word")),
            }
        }
    }

    /// The main process of the pause or pilot container, if it runs.
    fn main_process(&self, role: Role, id: &str) -> Option<MainProcess> {
        MainProcess::find(&self.shape().place.pidfile(&role.to_string()), id)
    }

    fn pilot_process(&self) -> Option<MainProcess> {
        let id = self.pilot_id.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        self.engine().look_for_process(&self.pilot_spec());
        self.main_process(Role::Pilot, &id)
    }

    /// Whether the signal was sent. It is not while the runtime still prepares the container: it would be hit instead.
    fn signal_pilot(&self, signal: Signal) -> bool {
        let pidfile = self.shape().place.pidfile(&Role::Pilot.to_string());
        // The watcher may have executed another program in its place.
        let long_since = || {
            fs::metadata(pidfile).and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|a| a > START_TIME))
        };
        // The first process of a PID namespace does not get a signal that it does not handle yet.
        let hears = |main: &MainProcess| self.shape().base != Role::Pilot || main.handles(signal);
        let runs = |main: &MainProcess| main.is_running(&self.pilot.program) && hears(main);
        self.pilot_process().is_some_and(|main| (runs(&main) || long_since()) && main.signal(signal).is_ok())
    }

    /// Ends every process of the pod: the kernel does, once the first of its PID namespace is gone.
    fn kill_all(&self) {
        let pause = self.pause_id.get().and_then(|id| self.main_process(Role::Pause, id));
        if let Some(main) = pause.or_else(|| self.pilot_process()) {
            let _ = main.signal(Signal::SIGKILL);
        }
    }

    fn set_up(&self) -> Result<(), Failure> {
        let began = Instant::now();
        let shape = self.shape();
        volumes::make(shape, &self.ids)?;
        hosts::write(&shape.place.hosts(), &shape.name, shape.network)?;
        thread::scope(|scope| {
            let first = || if shape.base == Role::Pilot { self.create_pilot() } else { self.start_pause() };
            let base = threads::start_scoped(scope, "base", first).context(|| "cannot make the pod".into())?;
            let glue = self.server.look_at_images(self.only.as_ref(), self.first_pull)?;
            self.install(&glue)?;
            base.join().map_err(|_| failure("the pod's first container was not followed"))?
        })?;
        let based = began.elapsed();
        thread::scope(|scope| {
            let said = || "cannot make the pod's containers".to_owned();
            let pilot = (shape.base != Role::Pilot)
                .then(|| threads::start_scoped(scope, "pilot", || self.create_pilot()).context(said))
                .transpose()?;
            let idle = if self.only.is_some() { 0 } else { shape.slots };
            let bind = |n| threads::start_scoped(scope, "slot", move || self.server.bind(n, "")).context(said);
            for slot in (0..idle).map(bind).collect::<Result<Vec<_>, _>>()? {
                let bound = slot.join().map_err(|_| failure("a payload container was not followed"))?;
                bound.map_err(|refusal| failure(format!("cannot start a payload container: {refusal}")))?;
            }
            pilot.map_or(Ok(Ok(())), |p| p.join()).map_err(|_| failure("the pilot container was not followed"))?
        })?;
        self.server.listen()?;
        tracing::info!(
            pod = shape.name,
            slots = shape.slots,
            user_ids = %self.ids,
            base_ms = based.as_millis(),
            all_ms = began.elapsed().as_millis(),
            "the pod is up"
        );
        Ok(())
    }

    /// What the engine made of a container, with what that has said where it failed.
    fn made<T>(&self, spec: &Spec, made: Result<T, CallError>) -> Result<T, Failure> {
        let said = || glue_said(self.engine(), spec);
        made.map_err(|e| failure(format!("cannot start the {} container: {e}{}", spec.role, said())))
    }

    fn pilot_spec(&self) -> Spec {
        self.shape().pilot(&self.pilot, &self.ids)
    }

    fn create_pilot(&self) -> Result<(), Failure> {
        let spec = self.pilot_spec();
        let id = self.made(&spec, self.engine().create(&spec))?;
        *self.pilot_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        Ok(())
    }

    /// A container that was hit while the runtime was starting it can neither be started nor does it end.
    fn create_pilot_again(&self) -> Result<(), Failure> {
        let name = self.pilot_spec().name();
        self.engine().remove(&name).context(|| format!("cannot remove the pilot container {name}"))?;
        self.create_pilot()
    }

    fn start_pause(&self) -> Result<(), Failure> {
        let spec = self.shape().pause();
        let id = self.made(&spec, self.engine().start(&spec, CALL_LIMIT))?;
        let _ = self.pause_id.set(id);
        Ok(())
    }

    /// Puts glue into its volume: by the container of its image the first time, then as that has left it.
    fn install(&self, image_id: &str) -> Result<(), Failure> {
        let (place, known) = (&self.shape().place, self.engine().place().glue(image_id));
        let said = || format!("cannot copy glue from or to {}", known.display());
        if !volumes::install_known(place, &known).context(said)? {
            let spec = self.shape().install(&self.ids);
            self.made(&spec, self.engine().run(&spec))?;
            volumes::remember_glue(place, &known).context(said)?;
        }
        Ok(())
    }
}
