//! The binder for machines without Kubernetes: asks `latebind-host` over a socket that only the pilot container mounts.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use latebind_contract::layout::Ids;
use serde::{Deserialize, Serialize};

use super::{Binder, Class, Container, ContainerState, Failure, ImageCommand, Progress, Reason};
use crate::finding::Finding;
use crate::text::one_line;

/// Where `latebind-host` mounts its socket in the pilot container.
pub const SOCKET: &str = "/run/latebind-host/bind.sock";

/// Longest time for one answer; a bind may have to pull.
const ANSWER_WITHIN: Duration = Duration::from_secs(1800);

/// Client of the bind socket. Each request has a connection of its own, so that none waits for another slot's.
pub struct Host {
    socket: PathBuf,
}

/// What a pilot asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Give the slot's payload container this image; the placeholder where the image is empty.
    Bind,
    /// What an image's name means now.
    Image,
    /// What the slot's payload container does.
    State,
    /// Remove what the payload has left in its IPC namespace.
    Clean,
    /// What the pod is like.
    Info,
}

/// A request of the bind protocol: one JSON object and line end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Of the protocol: 1.
    pub version: u32,
    /// What for.
    pub verb: Verb,
    /// For bind, state and clean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// For bind and image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// An answer of the bind protocol; which fields are there depends on the request.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Whether it was done.
    pub ok: bool,
    /// What it means that it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// Why it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The engine's ID of the slot's container; empty: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Its image, as asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The engine's ID of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// Whether the image was fetched now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulled: Option<bool>,
    /// What the image runs by itself; absent where that is larger than any that is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<ImageCommand>,
    /// What the container does.
    #[serde(flatten)]
    pub state: Option<State>,
    /// The pod's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many slots it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Limits of each slot's payload container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<ContainerLimits>,
    /// For each slot payload UID, payload GID and kill UID.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<[u32; 3]>,
}

/// What a container may use; nothing is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerLimits {
    /// Bytes of memory, swap included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

/// What a payload container does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `running`, `exited` or `missing`.
    pub status: String,
    /// Of its main process, where that has ended.
    pub exit_code: Option<i64>,
    /// Whether the kernel ended anything in it for memory.
    pub oom_killed: bool,
    /// The end of its log, where it has ended: at most five lines.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub said: String,
}

impl Host {
    /// A client of the socket at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn silent(&self, e: &std::io::Error) -> Failure {
        Failure::retry(Reason::EngineError, format!("latebind-host does not answer at {}: {e}", self.socket.display()))
    }

    fn ask(&self, verb: Verb, slot: Option<u32>, image: Option<&str>) -> Result<Answer, Failure> {
        let request = Request { version: 1, verb, slot, image: image.map(str::to_owned) };
        let talk = || -> std::io::Result<Answer> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.write_all(format!("{}\n", serde_json::to_string(&request)?).as_bytes())?;
            let mut line = String::new();
            if BufReader::new(stream).read_line(&mut line)? == 0 {
                return Err(std::io::Error::other("it closed the connection without an answer"));
            }
            serde_json::from_str(&line).map_err(std::io::Error::other)
        };
        let answer = talk().map_err(|e| self.silent(&e))?;
        if answer.ok {
            return Ok(answer);
        }
        let reason = answer.reason.unwrap_or(Reason::Unknown);
        let class = answer.class.filter(|class| reason.may_be(*class)).unwrap_or(reason.class());
        Err(Failure::new(class, reason, answer.message.unwrap_or_default()))
    }
}

impl Binder for Host {
    fn bind(&self, slot: u32, image: &str, _progress: &dyn Progress) -> Result<Container, Failure> {
        let Answer { container, image, image_id, .. } = self.ask(Verb::Bind, Some(slot), Some(image))?;
        let [id, image, image_id] = [container, image, image_id].map(Option::unwrap_or_default);
        Ok(Container { id, image, image_id, reference: String::new() })
    }

    fn image_id(&self, image: &str) -> Result<String, Failure> {
        Ok(self.ask(Verb::Image, None, Some(image))?.image_id.unwrap_or_default())
    }

    fn command(&self, container: &Container, _progress: &dyn Progress) -> Result<ImageCommand, Failure> {
        let Answer { image_id, command, .. } = self.ask(Verb::Image, None, Some(&container.image))?;
        // Its name may mean another image by now.
        if image_id.as_ref() != Some(&container.image_id) {
            let message = format!("{} became another image while the job was being started", container.image);
            return Err(Failure::retry(Reason::ImageChanged, message));
        }
        command.ok_or_else(|| ImageCommand::too_large(&container.image))
    }

    fn state(&self, slot: u32) -> Result<ContainerState, Failure> {
        let Answer { container, state, .. } = self.ask(Verb::State, Some(slot), None)?;
        let State { status, exit_code, oom_killed, said } = state.unwrap_or_default();
        Ok(ContainerState {
            id: container.unwrap_or_default(),
            running: status == "running",
            exit_code,
            oom_killed,
            said: one_line(&said),
            ..ContainerState::default()
        })
    }

    fn ids(&self, slot: u32) -> Result<Option<Ids>, Failure> {
        let all = self.ask(Verb::Info, None, None)?.ids;
        Ok(usize::try_from(slot).ok().and_then(|n| all.get(n)).map(|[uid, gid, kill_uid]| Ids {
            uid: *uid,
            gid: *gid,
            kill_uid: *kill_uid,
        }))
    }

    /// A container has IPC objects to itself, and they end with it.
    fn clean_ipc(&self, slot: u32, _ids: Ids, reused: bool) -> Result<(), Failure> {
        if !reused {
            return Ok(());
        }
        self.ask(Verb::Clean, Some(slot), None).map(drop)
    }

    fn ready(&self) -> Result<(), Failure> {
        UnixStream::connect(&self.socket).map(drop).map_err(|e| self.silent(&e))
    }

    fn check(&self, slots: &[u32]) -> Vec<Finding> {
        let fix = "start the pod with `latebind-host pod`, which mounts the socket, and leave that running";
        let socket = Finding::of("bind socket", self.ready().map(|()| self.socket.display().to_string()), fix);
        let state = |slot: &u32| {
            let found = self.state(*slot).map(|s| {
                let ended = if s.running || s.id.is_empty() { "" } else { ", which has ended" };
                let said = if s.said.is_empty() { String::new() } else { format!("; its log ends with: {}", s.said) };
                format!("container {}{ended}{said}", s.id.get(..12).unwrap_or("missing"))
            });
            Finding::of(
                &format!("slot {slot}: payload container"),
                found,
                "give `latebind-host pod` as many --slots as the pilot has",
            )
        };
        std::iter::once(socket).chain(slots.iter().map(state)).collect()
    }
}
