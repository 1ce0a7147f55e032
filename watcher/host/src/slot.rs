//! One slot's payload container: what it is now, and how it gets another image.

use crate::calls::{CallError, START_LIMIT};
use crate::container::{PodShape, Role, Spec};
use crate::engine::Engine;
use crate::images::Ready;
use crate::ipc;
use crate::main_process::MainProcess;
use crate::threads;
use latebind_contract::layout::Ids;
use serde::Deserialize;
use std::fs;
use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use watcher::bind::host::State;
use watcher::bind::{Failure, Reason};
use watcher::text;

/// Any long time: the wait for the end of a main process starts again after it.
const WATCH_TURN: Duration = Duration::from_secs(3600);
/// How long the engine may take to notice that a main process has ended.
const NOTICE_LIMIT: Duration = Duration::from_secs(3);

/// Most lines of a container's log in a message.
const SAID_LINES: usize = 5;
/// Most characters of one of them.
const SAID_MAX: usize = 500;

/// One slot of a pod.
#[derive(Debug)]
pub struct Slot {
    number: u32,
    ids: Ids,
    /// Held through a bind: one at a time.
    binding: Mutex<Lives>,
    /// The last request that came, so that an older one that was held up does not undo it.
    newest: Mutex<u64>,
    current: Mutex<Option<Arc<Payload>>>,
}

/// How many containers the slot has had.
#[derive(Debug, Default)]
struct Lives(u64);

/// A payload container.
#[derive(Debug)]
struct Payload {
    id: String,
    name: String,
    image: String,
    role: Role,
    main: Option<MainProcess>,
    /// What the control group said when the main process had ended. Podman hears of a kill for memory only where it hit
    /// the main process, and where its monitor understands the hierarchy.
    oom_killed: OnceLock<bool>,
    /// The end of its log, once it has ended.
    last_words: OnceLock<String>,
}

impl Payload {
    fn oom_killed(&self) -> bool {
        let now = || self.main.as_ref().and_then(MainProcess::oom_killed);
        self.oom_killed.get().copied().or_else(now).unwrap_or(false)
    }

    /// Reads the control group at the moment when the main process ends: the engine removes it soon after.
    fn watch(&self) {
        let Some(main) = &self.main else { return };
        while matches!(main.ended_within(WATCH_TURN), Ok(false)) {}
        if let Some(oom_killed) = main.oom_killed() {
            let _ = self.oom_killed.set(oom_killed);
        }
    }

    /// A thread that watches the container which is about to be started, once it is sent that.
    fn prepare_watch() -> io::Result<Sender<Arc<Self>>> {
        threads::start_before("payload-end", |payload: Arc<Self>| payload.watch())
    }
}

/// A container that runs.
#[derive(Debug)]
struct Started {
    id: String,
    role: Role,
    took: Duration,
    watch: Sender<Arc<Payload>>,
}

/// A start that failed.
#[derive(Debug)]
struct NotStarted {
    error: CallError,
    /// The end of the container's log, for a message.
    said: String,
}

impl NotStarted {
    /// Whether the image can be what was wrong: podman or the runtime gave up by itself, or hung.
    fn may_be_the_images(&self) -> bool {
        matches!(self.error, CallError::Failed { code: Some(_), .. } | CallError::TookTooLong(_))
    }
}

/// Place of a bind request among those of its slot.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here is left half-changed by a panic, and panics abort the release build.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    /// A slot without a container.
    pub fn new(number: u32, ids: Ids) -> Self {
        Self { number, ids, binding: Mutex::default(), newest: Mutex::new(0), current: Mutex::new(None) }
    }

    /// Its numbers.
    pub fn ids(&self) -> Ids {
        self.ids
    }

    /// To be taken when a request arrives, before the image is looked at.
    pub fn ticket(&self) -> Ticket {
        let mut newest = locked(&self.newest);
        *newest += 1;
        Ticket(*newest)
    }

    /// Ends the slot's container and starts one with another image; says its id. Where that fails, the slot is left
    /// without a container: there is no way back to the old one.
    pub fn bind(
        &self,
        engine: &Arc<dyn Engine>,
        shape: &PodShape,
        ticket: Ticket,
        image: &str,
        ready: &Ready,
    ) -> Result<String, Failure> {
        let mut lives = locked(&self.binding);
        if *locked(&self.newest) != ticket.0 {
            return Err(Failure::retry(
                Reason::EngineError,
                format!("a later request for slot {} came while this one waited: nothing was changed", self.number),
            ));
        }
        let began = Instant::now();
        let old = locked(&self.current).take();
        if let Err(refusal) = old.as_ref().map_or(Ok(()), |old| end(&**engine, old)) {
            // Still there, perhaps still running: the next bind has to try again to end it.
            *locked(&self.current) = old;
            return Err(refusal);
        }
        let ended = began.elapsed();
        let started = self.start(&**engine, shape, &mut lives, &ready.id);
        if let Some(old) = old {
            // Its processes are gone; what is left to do is not worth waiting for.
            let engine = Arc::clone(engine);
            let files = [shape.place.pidfile(&old.role.to_string()), shape.place.log(&old.role.to_string())];
            let tidy = move || {
                remove(&*engine, &old.name);
                let _ = files.map(fs::remove_file);
            };
            // Here, where it cannot be done aside.
            if threads::start("tidy", tidy.clone()).is_err() {
                tidy();
            }
        }
        let started = match started {
            Err(first) if !image.is_empty() && first.may_be_the_images() => {
                self.try_again(&**engine, shape, &mut lives, image, &ready.id, first)
            }
            other => other.map_err(|failed| self.refusal(&failed, image)),
        }?;
        let id = started.id.clone();
        self.take(shape, image, started);
        tracing::info!(
            slot = self.number,
            image = if image.is_empty() { "the placeholder" } else { image },
            ended_ms = ended.as_millis(),
            started_ms = (began.elapsed() - ended).as_millis(),
            "bound"
        );
        Ok(id)
    }

    /// One try to start a container of the image with this ID; where it fails, nothing of it is left.
    fn start(
        &self,
        engine: &dyn Engine,
        shape: &PodShape,
        lives: &mut Lives,
        image_id: &str,
    ) -> Result<Started, NotStarted> {
        let watch = Payload::prepare_watch();
        let watch = watch.map_err(|e| NotStarted { error: CallError::Broken(e), said: String::new() })?;
        lives.0 += 1;
        let began = Instant::now();
        let role = Role::Payload(self.number, lives.0);
        let spec = shape.payload(self.number, lives.0, &self.ids, image_id);
        let id = engine.start(&spec, START_LIMIT);
        id.map(|id| Started { id, role, took: began.elapsed(), watch }).map_err(|error| {
            let said = glue_said(engine, &spec);
            remove(engine, &spec.name());
            NotStarted { error, said }
        })
    }

    /// After a start that failed: tries once more, and then the placeholder. Where that starts and the image does not,
    /// the image is at fault, and no other try helps. The engine's message does not decide: it holds text of the image.
    fn try_again(
        &self,
        engine: &dyn Engine,
        shape: &PodShape,
        lives: &mut Lives,
        image: &str,
        image_id: &str,
        first: NotStarted,
    ) -> Result<Started, Failure> {
        tracing::info!(image, error = %first.error, "a container was not started, and is tried once more");
        let second = match self.start(engine, shape, lives, image_id) {
            Ok(started) => return Ok(started),
            Err(failed) => failed,
        };
        let refusal = self.refusal(&second, image);
        let Ok(placeholder) = self.start(engine, shape, lives, &shape.glue_image) else { return Err(refusal) };
        // A machine on which everything takes long says nothing of the image.
        let took_too_long = [&first, &second].iter().any(|f| matches!(f.error, CallError::TookTooLong(_)));
        let proven = second.may_be_the_images() && (!took_too_long || placeholder.took < START_LIMIT / 3);
        self.take(shape, "", placeholder);
        let message = format!("{}; twice, while the placeholder starts: the fault is the image's", refusal.message);
        Err(if proven { Failure::hold(Reason::CreateContainerError, message) } else { refusal })
    }

    fn refusal(&self, failed: &NotStarted, image: &str) -> Failure {
        let what = if image.is_empty() { "the placeholder" } else { image };
        let reason = if failed.may_be_the_images() { Reason::StartError } else { Reason::EngineError };
        let NotStarted { error, said } = failed;
        Failure::retry(reason, format!("cannot start a container of {what} in slot {}: {error}{said}", self.number))
    }

    /// Takes the container for the slot's.
    fn take(&self, shape: &PodShape, image: &str, started: Started) {
        let Started { id, role, watch, .. } = started;
        let main = MainProcess::find(&shape.place.pidfile(&role.to_string()), &id);
        let payload = Arc::new(Payload {
            name: shape.spec(role, "", &[]).name(),
            id,
            image: image.to_owned(),
            role,
            main,
            oom_killed: OnceLock::new(),
            last_words: OnceLock::new(),
        });
        let _ = watch.send(Arc::clone(&payload));
        *locked(&self.current) = Some(payload);
    }

    /// Removes what the payload has left in the container's IPC namespace, `/dev/shm` and `/dev/mqueue`.
    pub fn clean(&self) -> Result<(), Failure> {
        let failed =
            |why: String| Failure::retry(Reason::CleaningFailed, format!("IPC objects of slot {}: {why}", self.number));
        let Some(payload) = locked(&self.current).clone() else { return Err(failed("it has no container".into())) };
        let Some(main) = &payload.main else { return Err(failed("its container has ended".into())) };
        ipc::clean(main, &payload.id, &self.ids).map_err(failed)
    }

    /// The slot's container, empty where there is none, its image, as asked for, and what it is doing.
    pub fn state(&self, engine: &dyn Engine, shape: &PodShape) -> Result<(String, String, State), Failure> {
        let missing = State { status: "missing".into(), ..State::default() };
        let Some(payload) = locked(&self.current).clone() else {
            return Ok((String::new(), String::new(), missing));
        };
        let ended = |p: &MainProcess| p.ended_within(Duration::ZERO).unwrap_or(true);
        let gone = payload.main.as_ref().is_none_or(ended);
        let image = payload.image.clone();
        if !gone {
            let state = State { status: "running".into(), oom_killed: payload.oom_killed(), ..State::default() };
            return Ok((payload.id.clone(), image, state));
        }
        let since = Instant::now();
        let said = loop {
            let said = engine.state(&payload.id);
            let said = said.map_err(|e| Failure::retry(Reason::EngineError, format!("the container's state: {e}")))?;
            // The engine hears of an end a little later than the kernel tells us.
            if said.as_ref().is_none_or(|said| !said.running) || since.elapsed() >= NOTICE_LIMIT {
                break said;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let Some(said) = said else { return Ok((String::new(), image, missing)) };
        let (exit_code, oom_killed) = (said.exit_code, said.oom_killed || payload.oom_killed());
        let last_words = || {
            let last = last_lines(engine, &shape.spec(payload.role, "", &[]));
            tracing::warn!(slot = self.number, image, exit_code, "the payload container ended{}", quoted(&last));
            last
        };
        let last = if said.running { String::new() } else { payload.last_words.get_or_init(last_words).clone() };
        let status = if said.running { "running" } else { "exited" }.to_owned();
        let exit_code = (!said.running).then(|| exit_code.into());
        Ok((payload.id.clone(), image, State { status, exit_code, oom_killed, said: last }))
    }
}

/// Ends a container's processes: quickly where glue does as it should, else by the engine.
fn end(engine: &dyn Engine, payload: &Payload) -> Result<(), Failure> {
    if payload.main.as_ref().is_some_and(|main| main.stop().unwrap_or(false)) {
        return Ok(());
    }
    let ended = engine.remove(&payload.name);
    ended.map_err(|e| Failure::retry(Reason::EngineError, format!("cannot end the slot's earlier container: {e}")))
}

fn remove(engine: &dyn Engine, name: &str) {
    match engine.remove(name) {
        Err(e) if !engine.calls().is_closing() => {
            tracing::warn!(container = name, error = %e, "not removed now, will be with the pod");
        }
        _ => {}
    }
}

/// The end of a container's log, for a message.
pub fn glue_said(engine: &dyn Engine, spec: &Spec) -> String {
    quoted(&last_lines(engine, spec))
}

fn quoted(last: &str) -> String {
    if last.is_empty() { String::new() } else { format!("; it said: {last}") }
}

/// The last lines of a container's log, joined. It may be a foreign program's.
fn last_lines(engine: &dyn Engine, spec: &Spec) -> String {
    let lines = engine.log(spec);
    let last = lines.get(lines.len().saturating_sub(SAID_LINES)..).unwrap_or_default();
    let last: Vec<String> = last.iter().map(|line| text::shown(&message_of(line), SAID_MAX)).collect();
    last.join(" | ")
}

/// The words of a line in glue's form; another program's line as it is.
fn message_of(line: &str) -> String {
    #[derive(Deserialize)]
    struct Line {
        fields: Fields,
    }
    #[derive(Deserialize)]
    struct Fields {
        message: String,
    }
    serde_json::from_str::<Line>(line).map_or_else(|_| line.to_owned(), |line| line.fields.message)
}

#[cfg(test)]
mod tests {
    use super::message_of;

    #[test]
    fn glues_lines_are_shown_as_their_words() {
        let line =
            r#"{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","fields":{"message":"told \"stop\"","slot":0}}"#;
        assert_eq!(message_of(line), "told \"stop\"");
        assert_eq!(message_of("sh: not found"), "sh: not found");
    }
}
