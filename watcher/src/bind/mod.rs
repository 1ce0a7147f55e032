//! Binding: giving a slot's payload container the image that a job wants, and proving what runs there afterwards.

pub mod command;
pub mod host;
pub mod kubernetes;
pub mod message;
pub mod proof;

use std::time::{Duration, Instant};

use latebind_contract::layout::Ids;
use serde::{Deserialize, Serialize};

pub use self::command::{Configured, ImageCommand};
use crate::finding::Finding;
use crate::helper;
pub use crate::reason::{Class, Failure, Reason};

/// A payload container with a wanted image, as the engine names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The engine's ID, 64 hexadecimal digits; it stands in the cgroup path of each process of the container.
    pub id: String,
    /// The image as it was asked for.
    pub image: String,
    /// The engine's ID of the image's content, where it says one.
    pub image_id: String,
    /// What the engine was told to run, where that is not `image` itself: its digest, say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reference: String,
}

/// What the engine says of a slot's payload container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerState {
    /// Its ID; empty where there is none.
    pub id: String,
    /// Whether its main process runs.
    pub running: bool,
    /// Its exit code, where it has ended.
    pub exit_code: Option<i64>,
    /// Whether the engine says that the kernel ended its main process for memory.
    pub oom_killed: bool,
    /// Its limit of memory, in bytes, where the engine says it.
    pub memory_limit: Option<u64>,
    /// The engine's error message and the end of the container's log, where it has ended and either is known.
    pub said: String,
    /// What ends the whole pod, and this container with it: a reason and the engine's message.
    pub pod_ends: Option<(Reason, String)>,
}

/// This machine's architecture, as manifests and configurations of images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// What a bind tells while it goes on, and asks.
pub trait Progress {
    /// The old container is gone, and the new one is not there yet: its image is being fetched.
    fn pulling(&self) {}

    /// Something that people should know before they wait for it.
    fn note(&self, text: &str) {
        tracing::warn!("{text}");
    }

    /// Why the bind is not wanted any more, if so.
    fn stop_wanted(&self) -> Option<String> {
        None
    }
}

/// For binds that nobody follows.
pub struct Unattended;

impl Progress for Unattended {}

/// Gives payload containers their images. What it returns is a claim of the engine: [`proof`] decides.
pub trait Binder: Send + Sync {
    /// Gives the slot's payload container this image; the placeholder where `image` is empty. Returns once the engine
    /// says that a new container runs, which is before its glue is ready.
    fn bind(&self, slot: u32, image: &str, progress: &dyn Progress) -> Result<Container, Failure>;

    /// Says, where people look at the pod, that a job's image was not bound, or that what then ran was not proven.
    /// Never waits; does nothing where the engine has no such place.
    fn say_failed(&self, _slot: u32, _image: &str, _failure: &Failure) {}

    /// The engine's ID of what this name means now: by it, a container of the same content is told from one whose name
    /// means something else by now.
    fn image_id(&self, image: &str) -> Result<String, Failure>;

    /// Whether [`Binder::command`] can say anything: else a job without a program is held before its image is bound.
    fn says_commands(&self) -> bool {
        true
    }

    /// What the image of this container runs by itself.
    fn command(&self, container: &Container, progress: &dyn Progress) -> Result<ImageCommand, Failure>;

    /// What the engine says of the slot's payload container now.
    fn state(&self, slot: u32) -> Result<ContainerState, Failure>;

    /// What the engine says of this container's end, of which the kernel has told already; waits for its word at most
    /// `within`.
    fn end_of(&self, slot: u32, container: &str, within: Duration) -> Result<ContainerState, Failure> {
        let give_up = Instant::now() + within;
        loop {
            let state = self.state(slot)?;
            if !state.running || state.id != container || Instant::now() >= give_up {
                return Ok(state);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The numbers that the slot has, where whoever made the pod says them; else the volumes do.
    fn ids(&self, _slot: u32) -> Result<Option<Ids>, Failure> {
        Ok(None)
    }

    /// Removes the IPC objects that the slot's payload has left where a later job could meet them. `reused`: the next
    /// job may get this very container. Here the payload's IPC namespace is taken to be the pilot's.
    fn clean_ipc(&self, _slot: u32, ids: Ids, _reused: bool) -> Result<(), Failure> {
        helper::clean_ipc(ids).map_err(|e| Failure::retry(Reason::CleaningFailed, format!("IPC objects: {e}")))
    }

    /// Whether a bind can succeed just now: while not, no job is claimed that could only fail.
    fn ready(&self) -> Result<(), Failure>;

    /// What `watcher check` says of the engine and what it lets this pilot do.
    fn check(&self, slots: &[u32]) -> Vec<Finding>;

    /// Tells the engine whether the pod has work, once for each change; where the engine does not care, nothing.
    fn mark(&self, _busy: bool) -> Result<(), Failure> {
        Ok(())
    }

    /// Whether the pod ends only once glue has exited with 0 too: then the pilot, which will not come back, ends glue
    /// last.
    fn pod_waits_for_glue(&self) -> bool {
        false
    }
}
