//! What each container of a pod is given: the options of `podman create` and `podman run`, and nothing that runs them.
//!
//! Whatever an image says of entry point, command, user, working directory, health check and volumes has no effect.
//! Its stop signal is left as it is: glue ends on any.

use crate::failure::{Failure, failure};
use crate::place::PodPlace;
use crate::uids::PodIds;
use latebind_contract::layout::{self, Ids};
use std::fmt;
use std::path::{Path, PathBuf};

/// Label that has the pod's name.
pub const POD_LABEL: &str = "latebind.pod";
/// Label that has the container's part in the pod.
pub const ROLE_LABEL: &str = "latebind.role";
/// Annotation that names the container, `<pod>/slot-<n>-<life>`: by it the guard knows what was asked for.
pub const CONTAINER_ANNOTATION: &str = "latebind.container";
/// Seconds between the stop signal and SIGKILL.
pub const STOP_SECONDS: u64 = 10;
/// Where the bind socket's directory is in the pilot container.
pub const BIND_IN_PILOT: &str = "/run/latebind-host";
/// Where the pilot's private volume is.
pub const PRIVATE_IN_PILOT: &str = "/var/lib/latebind";
/// Where the spool is in the pilot container.
pub const SPOOL_IN_PILOT: &str = "/spool";
/// The list of names and addresses.
const HOSTS: &str = "/etc/hosts";
/// The watcher in the pilot image.
pub const WATCHER: &str = "/usr/bin/watcher";

/// The design's table of capabilities (section 3); all others are dropped.
const INSTALL_CAPABILITIES: [&str; 3] = ["CHOWN", "FOWNER", "DAC_OVERRIDE"];
/// See [`INSTALL_CAPABILITIES`].
pub const PAYLOAD_CAPABILITIES: [&str; 4] = ["SETUID", "SETGID", "KILL", "SETPCAP"];
const PILOT_CAPABILITIES: [&str; 7] = ["SETUID", "SETGID", "KILL", "SETPCAP", "CHOWN", "FOWNER", "DAC_OVERRIDE"];

/// What one container may use; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of memory, swap included.
    pub memory: Option<u64>,
    /// Processors.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    /// As options of podman. `swap_is_counted`: whether swap can be limited on this machine.
    fn options(&self, swap_is_counted: bool) -> Vec<String> {
        let Self { memory, cpus, pids } = self;
        let mut options = Vec::new();
        if let Some(bytes) = memory {
            options.push(format!("--memory={bytes}b"));
            if swap_is_counted {
                // The same number: memory and swap together, so no swap on top.
                options.push(format!("--memory-swap={bytes}b"));
            }
        }
        if let Some(cpus) = cpus {
            options.push(format!("--cpus={cpus}"));
        }
        options.push(pids.map_or("--pids-limit=-1".into(), |n| format!("--pids-limit={n}")));
        options
    }
}

/// Whether the pod has a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// A loopback interface of its own; where the pod has more than one slot, each payload container has one of its
    /// own.
    None,
    /// The host's, for all containers.
    Host,
}

/// What is made of volumes that an image declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ImageVolume {
    /// Nothing.
    Ignore,
    /// What other engines make of them: a new volume with the image's content, over whatever lies there.
    Bind,
}

/// A directory or file of the host that a container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub target: String,
    /// Whether it cannot be written.
    pub read_only: bool,
}

impl Mount {
    /// One that can be written.
    pub fn writable(source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        Self { source: source.into(), target: target.into(), read_only: false }
    }

    /// One that cannot.
    pub fn read_only(source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        Self { source: source.into(), target: target.into(), read_only: true }
    }

    /// As `--mount` takes it, which is one line of CSV: quoted, so that commas in paths do no harm.
    /// `noexec` is not set: jobs run programs from their sandbox.
    fn argument(&self) -> Result<String, Failure> {
        let source = text(&self.source)?;
        if source.contains('\n') || self.target.contains('\n') {
            return Err(failure(format!("the path {source:?} has a line end, which podman cannot mount")));
        }
        let field = |key: &str, value: &str| format!("\"{key}={}\"", value.replace('"', "\"\""));
        let mut fields = vec!["type=bind".to_owned(), field("source", source), field("target", &self.target)];
        fields.extend(["bind-propagation=rprivate", "nosuid", "nodev"].map(str::to_owned));
        if self.read_only {
            fields.push("readonly".to_owned());
        }
        Ok(fields.join(","))
    }
}

/// A container's part in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds the namespaces.
    Pause,
    /// Fills the volumes, once.
    Install,
    /// Runs the watcher.
    Pilot,
    /// Runs glue for this slot; the second number tells one container of the slot from the next.
    Payload(u32, u64),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pause => f.write_str("pause"),
            Self::Install => f.write_str("install"),
            Self::Pilot => f.write_str("pilot"),
            Self::Payload(slot, life) => write!(f, "slot-{slot}-{life}"),
        }
    }
}

impl Role {
    /// Reads the role of a payload container.
    pub fn of_payload(text: &str) -> Option<Self> {
        let (slot, life) = text.strip_prefix("slot-")?.split_once('-')?;
        let role = Self::Payload(slot.parse().ok()?, life.parse().ok()?);
        (role.to_string() == text).then_some(role)
    }
}

/// What all containers of a pod have in common.
#[derive(Clone, Debug)]
pub struct PodShape {
    /// The pod's name.
    pub name: String,
    /// The pod's files.
    pub place: PodPlace,
    /// The container whose namespaces are the pod's: one that holds them and does nothing else, or the pilot, where it
    /// is started only once.
    pub base: Role,
    /// Image of glue, which is the placeholder too.
    pub glue_image: String,
    /// Image of the pilot.
    pub pilot_image: String,
    /// Number of payload containers.
    pub slots: u32,
    /// Limits of each payload container.
    pub limits: Limits,
    /// Bytes that each payload container's `/dev/shm` may have, where it is not the engine's default.
    pub shm_size: Option<u64>,
    /// Bytes of each data volume, where it is to lie in memory.
    pub data_size: Option<u64>,
    /// Whether swap can be limited on this machine.
    pub swap_is_counted: bool,
    /// Whether the pod has a network.
    pub network: Network,
    /// What payload containers get of the volumes that their images declare.
    pub image_volume: ImageVolume,
    /// Whether jobs run under glue's filter of system calls.
    pub seccomp: bool,
    /// What is put in place of the runtime for payload containers; nothing where images may declare volumes, which it
    /// refuses.
    pub guard: Option<PathBuf>,
}

/// How the pilot is run.
#[derive(Clone, Debug)]
pub struct PilotShape {
    /// Its program, a path in its image.
    pub program: String,
    /// Arguments of the program.
    pub arguments: Vec<String>,
    /// What it sees besides the pod's volumes.
    pub mounts: Vec<Mount>,
    /// Its private volume.
    pub private: PathBuf,
    /// `NAME=VALUE`, besides ours.
    pub environment: Vec<String>,
    /// What it may use, besides what of the data volumes lies in memory.
    pub limits: Limits,
    /// Whether it reads our standard input.
    pub interactive: bool,
}

impl PodShape {
    /// The engine's name for a container.
    pub fn container(&self, role: Role) -> String {
        format!("latebind-{}-{role}", self.name)
    }

    /// The label that all containers of this pod have.
    pub fn label(&self) -> String {
        format!("{POD_LABEL}={}", self.name)
    }

    fn common(&self, role: Role, capabilities: &[&str]) -> Result<Vec<String>, Failure> {
        let role_label = match role {
            Role::Payload(slot, _) => format!("{ROLE_LABEL}=slot-{slot}"),
            other => format!("{ROLE_LABEL}={other}"),
        };
        let mut arguments: Vec<String> = [
            "--pull=never",
            "--user=0:0",
            "--workdir=/",
            "--umask=0022",
            "--no-healthcheck",
            "--no-hosts",
            "--http-proxy=false",
            "--systemd=false",
            "--security-opt=no-new-privileges",
            "--cap-drop=all",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.push(match (role, self.image_volume) {
            (Role::Payload(..), ImageVolume::Bind) => "--image-volume=bind".to_owned(),
            _ => "--image-volume=ignore".to_owned(),
        });
        arguments.extend(capabilities.iter().map(|c| format!("--cap-add={c}")));
        arguments.push(format!("--stop-timeout={STOP_SECONDS}"));
        arguments.push(format!("--name={}", self.container(role)));
        arguments.push(format!("--label={}", self.label()));
        arguments.push(format!("--label={role_label}"));
        arguments.push(format!("--pidfile={}", text(&self.place.pidfile(&role.to_string()))?));
        Ok(arguments)
    }

    /// What glue says goes to a file, which can be read when the container is gone.
    fn logged(&self, role: Role) -> Result<Vec<String>, Failure> {
        let path = self.place.log(&role.to_string());
        Ok(vec![
            "--log-driver=k8s-file".into(),
            format!("--log-opt=path={}", text(&path)?),
            "--log-opt=max-size=1mb".into(),
        ])
    }

    /// The namespaces of the base: what makes several containers one pod. A payload has IPC objects and /dev/shm to
    /// itself, and where it has neighbours, a network too: by an abstract socket they could pass descriptors on.
    /// With one slot it shares the pilot's loopback, which HTCondor's chirp needs.
    fn namespaces(&self, role: Role) -> Vec<String> {
        if role == self.base {
            let network = match self.network {
                Network::None => "none",
                Network::Host => "host",
            };
            return vec!["--ipc=shareable".into(), format!("--network={network}"), format!("--hostname={}", self.name)];
        }
        let base = format!("container:{}", self.container(self.base));
        let payload = matches!(role, Role::Payload(..));
        let own_network = payload && self.slots > 1 && self.network == Network::None;
        [
            format!("--pid={base}"),
            format!("--uts={base}"),
            format!("--ipc={}", if payload { "private" } else { &base }),
            format!("--network={}", if own_network { "none" } else { &base }),
        ]
        .to_vec()
    }

    /// The container that holds the namespaces. No capability: it only reaps.
    pub fn pause(&self) -> Result<Vec<String>, Failure> {
        let mut arguments = self.common(Role::Pause, &[])?;
        arguments.extend(self.logged(Role::Pause)?);
        arguments.extend(["--read-only", "--read-only-tmpfs=false"].map(str::to_owned));
        arguments.extend(self.namespaces(Role::Pause));
        arguments.extend([self.glue_image.clone(), "pause".into()]);
        Ok(arguments)
    }

    /// The container that fills the volumes and gives them their owners.
    pub fn install(&self, ids: &PodIds) -> Result<Vec<String>, Failure> {
        let mut arguments = self.common(Role::Install, &INSTALL_CAPABILITIES)?;
        arguments.extend(self.logged(Role::Install)?);
        arguments.extend(["--read-only", "--read-only-tmpfs=false", "--network=none"].map(str::to_owned));
        arguments.extend(mounts(&[Mount::writable(self.place.bin(), layout::BIN)])?);
        for slot in 0..self.slots {
            arguments.extend(mounts(&self.slot_volumes(slot))?);
        }
        arguments.extend([self.glue_image.clone(), "install".into()]);
        for slot in 0..self.slots {
            let Ids { uid, gid, .. } = ids.of(slot);
            arguments.extend(["--slot".into(), format!("{slot}:{uid}:{gid}")]);
        }
        Ok(arguments)
    }

    /// A payload container: its own volumes, its limits, and whatever image. `image_id` is what was looked at before,
    /// so that a name that is given to another image meanwhile changes nothing.
    pub fn payload(&self, slot: u32, life: u64, ids: &Ids, image_id: &str) -> Result<Vec<String>, Failure> {
        let role = Role::Payload(slot, life);
        let mut arguments = self.common(role, &PAYLOAD_CAPABILITIES)?;
        arguments.extend(self.logged(role)?);
        arguments.extend(self.namespaces(role));
        arguments.extend(self.limits.options(self.swap_is_counted));
        arguments.extend(self.shm_size.map(|bytes| format!("--shm-size={bytes}b")));
        if let Some(guard) = &self.guard {
            arguments.push(format!("--runtime={}", text(guard)?));
            arguments.push(format!("--annotation={}={}/{role}", CONTAINER_ANNOTATION, self.name));
        }
        // An option of `run` only. Without it podman would write root into the image's list of accounts.
        arguments.push("--passwd=false".into());
        arguments.extend(mounts(&[Mount::read_only(self.place.bin(), layout::BIN), self.hosts()])?);
        arguments.extend(mounts(&self.slot_volumes(slot))?);
        let (slot, kill_uid) = (slot.to_string(), ids.kill_uid.to_string());
        let mut glue = vec![layout::GLUE, "run", "--slot", &slot, "--kill-uid", &kill_uid];
        glue.extend((!self.seccomp).then_some("--no-seccomp"));
        arguments.push(entrypoint(&glue)?);
        arguments.push(image_id.to_owned());
        Ok(arguments)
    }

    /// The pilot container: all volumes, the bind socket, limits of its own. Its output is ours, so it needs no log.
    pub fn pilot(&self, pilot: &PilotShape, ids: &PodIds) -> Result<Vec<String>, Failure> {
        let mut arguments = self.common(Role::Pilot, &PILOT_CAPABILITIES)?;
        arguments.extend(self.namespaces(Role::Pilot));
        arguments.push("--log-driver=none".into());
        arguments.extend(self.pilot_limits(pilot).options(self.swap_is_counted));
        arguments.extend(mounts(&[
            Mount::read_only(self.place.bin(), layout::BIN),
            self.hosts(),
            Mount::writable(&pilot.private, PRIVATE_IN_PILOT),
            // A socket can be connected to on a read-only mount, and not be replaced there.
            Mount::read_only(self.place.bind(), BIND_IN_PILOT),
        ])?);
        for slot in 0..self.slots {
            arguments.extend(mounts(&self.slot_volumes(slot))?);
        }
        arguments.extend(mounts(&pilot.mounts)?);
        arguments.push("--env=LATEBIND_BINDER=host".into());
        arguments.push(format!("--env=LATEBIND_SLOTS={}", self.slots));
        let uids: Vec<String> = (0..self.slots).map(|slot| ids.of(slot).uid.to_string()).collect();
        arguments.push(format!("--env=LATEBIND_SLOT_UIDS={}", uids.join(",")));
        arguments.extend(pilot.environment.iter().map(|e| format!("--env={e}")));
        if pilot.interactive {
            arguments.push("--interactive".into());
        }
        arguments.push(entrypoint(&[&pilot.program])?);
        arguments.push(self.pilot_image.clone());
        arguments.extend(pilot.arguments.iter().cloned());
        Ok(arguments)
    }

    /// The same for all, so that nothing is the image's: `localhost` and the pod's name resolve in every container.
    fn hosts(&self) -> Mount {
        Mount::read_only(self.place.hosts(), HOSTS)
    }

    fn slot_volumes(&self, slot: u32) -> [Mount; 2] {
        [
            Mount::writable(self.place.ctl(slot), layout::ctl(slot)),
            Mount::writable(self.place.data(slot), layout::data(slot)),
        ]
    }

    /// Inputs that the pilot puts into a data volume in memory count as its own.
    pub fn pilot_limits(&self, pilot: &PilotShape) -> Limits {
        let volumes = self.data_size.unwrap_or(0).saturating_mul(u64::from(self.slots));
        Limits { memory: pilot.limits.memory.map(|bytes| bytes.saturating_add(volumes)), ..pilot.limits }
    }
}

/// As a JSON array, so that podman takes each word as it is; it also empties the image's command.
fn entrypoint(words: &[&str]) -> Result<String, Failure> {
    match serde_json::to_string(words) {
        Ok(json) => Ok(format!("--entrypoint={json}")),
        Err(e) => Err(failure(format!("cannot write the entry point {words:?}: {e}"))),
    }
}

fn mounts(list: &[Mount]) -> Result<Vec<String>, Failure> {
    list.iter().map(|m| m.argument().map(|a| format!("--mount={a}"))).collect()
}

fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| failure(format!("the path {} is not UTF-8, which podman needs", path.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    fn shape() -> PodShape {
        PodShape {
            name: "p".into(),
            place: PodPlace::at("/state/pods/p"),
            base: Role::Pause,
            glue_image: "localhost/g:1".into(),
            pilot_image: "localhost/p:1".into(),
            slots: 2,
            data_size: None,
            shm_size: Some(1 << 28),
            limits: Limits { memory: Some(1 << 30), cpus: Some(0.5), pids: Some(64) },
            swap_is_counted: true,
            network: Network::None,
            image_volume: ImageVolume::Ignore,
            seccomp: true,
            guard: Some("/state/oci/runc".into()),
        }
    }

    fn pilot() -> PilotShape {
        PilotShape {
            program: WATCHER.into(),
            arguments: vec!["serve".into()],
            mounts: vec![Mount::read_only("/a,b\"c", "/in")],
            private: "/private".into(),
            environment: vec!["A=b c".into()],
            limits: Limits { memory: Some(256 << 20), cpus: None, pids: Some(512) },
            interactive: false,
        }
    }

    fn payload(shape: &PodShape, slot: u32) -> Vec<String> {
        shape.payload(slot, 7, &PodIds::at(30_000, shape.slots).of(slot), "sha256:1").unwrap()
    }

    fn has(arguments: &[String], argument: &str) -> bool {
        arguments.iter().any(|a| a == argument)
    }

    fn targets(arguments: &[String]) -> Vec<&str> {
        arguments
            .iter()
            .filter_map(|a| a.strip_prefix("--mount=")?.split("\"target=").nth(1)?.split('"').next())
            .collect()
    }

    #[test]
    fn capabilities_are_those_of_the_table() {
        let shape = shape();
        let added = |arguments: Vec<String>| -> Vec<String> {
            assert!(has(&arguments, "--cap-drop=all"));
            assert!(has(&arguments, "--security-opt=no-new-privileges"));
            assert!(has(&arguments, "--image-volume=ignore"));
            arguments.iter().filter_map(|a| a.strip_prefix("--cap-add=").map(str::to_owned)).collect()
        };
        assert!(added(shape.pause().unwrap()).is_empty());
        assert_eq!(added(shape.install(&PodIds::at(30_000, 2)).unwrap()), INSTALL_CAPABILITIES);
        assert_eq!(added(payload(&shape, 0)), PAYLOAD_CAPABILITIES);
        assert_eq!(added(shape.pilot(&pilot(), &PodIds::at(30_000, 2)).unwrap()), PILOT_CAPABILITIES);
    }

    #[test]
    fn a_payload_sees_its_own_slot_and_nothing_else() {
        let arguments = payload(&shape(), 1);
        assert_eq!(targets(&arguments), ["/shared/bin", "/etc/hosts", "/shared/slot/1/ctl", "/shared/slot/1/data"]);
        assert!(has(&arguments, "--shm-size=268435456b"));
        let bin = arguments.iter().find(|a| a.contains("/shared/bin\"")).unwrap();
        assert!(bin.ends_with(",nosuid,nodev,readonly"), "{bin}");
        assert!(has(&arguments, "--memory=1073741824b") && has(&arguments, "--memory-swap=1073741824b"));
        assert!(has(&arguments, "--cpus=0.5") && has(&arguments, "--pids-limit=64"));
        assert!(has(&arguments, "--pid=container:latebind-p-pause"));
        assert!(
            has(&arguments, "--runtime=/state/oci/runc")
                && has(&arguments, "--annotation=latebind.container=p/slot-1-7")
        );
        let glue = r#"--entrypoint=["/shared/bin/glue","run","--slot","1","--kill-uid","30003"]"#;
        assert!(has(&arguments, glue), "{arguments:?}");
        let arguments = payload(&PodShape { seccomp: false, ..shape() }, 1);
        let glue = glue.replace(']', ",\"--no-seccomp\"]");
        assert!(has(&arguments, &glue), "{arguments:?}");
        assert_eq!(arguments.last().unwrap(), "sha256:1");
    }

    #[test]
    fn payloads_share_neither_ipc_nor_where_they_are_several_a_network() {
        let mut shape = shape();
        let of_pause =
            |arguments: &[String], kind: &str| has(arguments, &format!("--{kind}=container:latebind-p-pause"));
        let several = payload(&shape, 0);
        assert!(has(&several, "--ipc=private") && has(&several, "--network=none"));
        assert!(["pid", "uts"].iter().all(|kind| of_pause(&several, kind)));
        shape.network = Network::Host;
        assert!(of_pause(&payload(&shape, 0), "network"), "the host's, as was asked for");
        (shape.network, shape.slots) = (Network::None, 1);
        let alone = payload(&shape, 0);
        assert!(has(&alone, "--ipc=private") && of_pause(&alone, "network"));
        let pilot = shape.pilot(&pilot(), &PodIds::at(30_000, 2)).unwrap();
        assert!(["pid", "uts", "ipc", "network"].iter().all(|kind| of_pause(&pilot, kind)));
    }

    #[test]
    fn slots_have_the_ids_of_the_pod() {
        let install = shape().install(&PodIds::at(30_000, 2)).unwrap();
        assert_eq!(install[install.len() - 4..], ["--slot", "0:30000:30000", "--slot", "1:30001:30001"]);
    }

    #[test]
    fn only_the_pilot_sees_the_bind_socket() {
        let shape = shape();
        let seen = |arguments: &[String]| targets(arguments).contains(&BIND_IN_PILOT);
        assert!(seen(&shape.pilot(&pilot(), &PodIds::at(30_000, 2)).unwrap()));
        for other in [shape.pause(), shape.install(&PodIds::at(30_000, 2)), Ok(payload(&shape, 0))] {
            assert!(!seen(&other.unwrap()));
        }
    }

    #[test]
    fn the_pilot_has_what_it_was_given() {
        let mut shape = shape();
        let arguments = shape.pilot(&pilot(), &PodIds::at(30_000, 2)).unwrap();
        assert!(has(&arguments, "--env=A=b c") && has(&arguments, "--env=LATEBIND_SLOTS=2"));
        assert!(has(&arguments, "--env=LATEBIND_SLOT_UIDS=30000,30001"));
        assert!(has(&arguments, "--memory=268435456b") && has(&arguments, "--memory-swap=268435456b"));
        assert!(has(&arguments, "--pids-limit=512") && !arguments.iter().any(|a| a.starts_with("--cpus")));
        shape.data_size = Some(1 << 20);
        assert!(
            has(&shape.pilot(&pilot(), &PodIds::at(30_000, 2)).unwrap(), "--memory=270532608b"),
            "two data volumes of 1 MiB in memory"
        );
        assert_eq!(arguments[arguments.len() - 2..], ["localhost/p:1", "serve"]);
        let quoted =
            r#"--mount=type=bind,"source=/a,b""c","target=/in",bind-propagation=rprivate,nosuid,nodev,readonly"#;
        assert!(has(&arguments, quoted), "{arguments:?}");
    }

    #[test]
    fn no_limit_is_said_to_the_engine_too() {
        let mut shape = shape();
        shape.limits = Limits { memory: None, cpus: None, pids: None };
        let arguments = payload(&shape, 0);
        assert!(has(&arguments, "--pids-limit=-1"));
        assert!(!arguments.iter().any(|a| a.starts_with("--memory") || a.starts_with("--cpus")));
    }
}
