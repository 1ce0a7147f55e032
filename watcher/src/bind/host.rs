//! The binder for machines without Kubernetes: asks `latebind-host` over a socket that only the pilot container mounts.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use latebind_contract::layout::Ids;
use serde::Deserialize;
use serde_json::json;

use super::{Binder, Class, Container, ContainerState, Failure, Progress, Reason};
use crate::finding::Finding;

/// Where `latebind-host` mounts its socket in the pilot container.
pub const SOCKET: &str = "/run/latebind-host/bind.sock";

/// Longest time for one answer; a bind may have to pull.
const ANSWER_WITHIN: Duration = Duration::from_secs(1800);

/// Client of the bind socket. Each request has a connection of its own, so that none waits for another slot's.
pub struct Host {
    socket: PathBuf,
}

/// Every answer; which fields are there depends on the request.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    ok: bool,
    class: Option<Class>,
    reason: Option<Reason>,
    message: String,
    container: String,
    image: String,
    image_id: String,
    status: String,
    exit_code: Option<i64>,
    oom_killed: bool,
    ids: Vec<[u32; 3]>,
}

impl Host {
    /// A client of the socket at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn silent(&self, e: &std::io::Error) -> Failure {
        Failure::retry(Reason::EngineError, format!("latebind-host does not answer at {}: {e}", self.socket.display()))
    }

    fn ask(&self, request: &serde_json::Value) -> Result<Answer, Failure> {
        let talk = || -> std::io::Result<Answer> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.write_all(format!("{request}\n").as_bytes())?;
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
        Err(Failure::new(class, reason, answer.message))
    }
}

impl Binder for Host {
    fn bind(&self, slot: u32, image: &str, _progress: &dyn Progress) -> Result<Container, Failure> {
        let answer = self.ask(&json!({"version": 1, "verb": "bind", "slot": slot, "image": image}))?;
        Ok(Container { id: answer.container, image: answer.image, image_id: answer.image_id, reference: String::new() })
    }

    fn image_id(&self, image: &str) -> Result<String, Failure> {
        Ok(self.ask(&json!({"version": 1, "verb": "image", "image": image}))?.image_id)
    }

    fn state(&self, slot: u32) -> Result<ContainerState, Failure> {
        let answer = self.ask(&json!({"version": 1, "verb": "state", "slot": slot}))?;
        Ok(ContainerState {
            id: answer.container,
            running: answer.status == "running",
            exit_code: answer.exit_code,
            oom_killed: answer.oom_killed,
            ..ContainerState::default()
        })
    }

    fn ids(&self, slot: u32) -> Result<Option<Ids>, Failure> {
        let all = self.ask(&json!({"version": 1, "verb": "info"}))?.ids;
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
        self.ask(&json!({"version": 1, "verb": "clean", "slot": slot})).map(drop)
    }

    fn ready(&self) -> Result<(), Failure> {
        UnixStream::connect(&self.socket).map(drop).map_err(|e| self.silent(&e))
    }

    fn check(&self, slots: &[u32]) -> Vec<Finding> {
        let fix = "start the pod with `latebind-host pod`, which mounts the socket, and leave that running";
        let socket = Finding::of("bind socket", self.ready().map(|()| self.socket.display().to_string()), fix);
        let state = |slot: &u32| {
            let found = self.state(*slot).map(|s| format!("container {}", s.id.get(..12).unwrap_or("missing")));
            Finding::of(
                &format!("slot {slot}: payload container"),
                found,
                "give `latebind-host pod` as many --slots as the pilot has",
            )
        };
        std::iter::once(socket).chain(slots.iter().map(state)).collect()
    }
}
