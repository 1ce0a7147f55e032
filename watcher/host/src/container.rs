//! What each container of a pod is given, whatever the engine, and nothing that makes them.
//!
//! Whatever an image says of entry point, command, user, working directory, health check and volumes has no effect.
//! Its stop signal is left as it is: glue ends on any.

use crate::failure::{Failure, failure};
use crate::place::PodPlace;
use crate::uids::PodIds;
use latebind_contract::layout::{self, Ids};
use std::fmt;
use std::path::{Path, PathBuf};
use watcher::bind::host::ContainerLimits;
use watcher::serve::{pilot_jobs, sizes};

/// Label that has the pod's name.
pub const POD_LABEL: &str = "latebind.pod";
/// Label that has the container's part in the pod.
pub const ROLE_LABEL: &str = "latebind.role";
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
pub const INSTALL_CAPABILITIES: [&str; 3] = ["CHOWN", "FOWNER", "DAC_OVERRIDE"];
/// See [`INSTALL_CAPABILITIES`].
pub const PAYLOAD_CAPABILITIES: [&str; 4] = ["SETUID", "SETGID", "KILL", "SETPCAP"];
pub const PILOT_CAPABILITIES: [&str; 7] = ["SETUID", "SETGID", "KILL", "SETPCAP", "CHOWN", "FOWNER", "DAC_OVERRIDE"];

/// A container's limits as options of an engine; `None` is no limit, and memory is swap included. `swap_is_counted`:
/// whether swap can be limited on this machine.
fn options_of(limits: &ContainerLimits, swap_is_counted: bool) -> Vec<String> {
    let ContainerLimits { memory, cpus, pids } = limits;
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

/// What one slot's payload container may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotSize {
    /// Memory, processors, processes.
    pub limits: ContainerLimits,
    /// Bytes that its `/dev/shm` may have, where it is not the engine's default.
    pub shm_size: Option<u64>,
}

impl SlotSize {
    /// Of a slot of which nothing is said.
    const UNLIMITED: Self = Self { limits: ContainerLimits { memory: None, cpus: None, pids: None }, shm_size: None };
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

    /// What `--mount` of every engine takes, which is one line of CSV: quoted, so that commas in paths do no harm.
    pub fn fields(&self) -> Result<Vec<String>, Failure> {
        let source = text(&self.source)?;
        if source.contains('\n') || self.target.contains('\n') {
            return Err(failure(format!("the path {source:?} has a line end, which no engine can mount")));
        }
        let field = |key: &str, value: &str| format!("\"{key}={}\"", value.replace('"', "\"\""));
        let (source, target) = (field("source", source), field("target", &self.target));
        Ok(vec!["type=bind".to_owned(), source, target, "bind-propagation=rprivate".to_owned()])
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

/// The engine's name for the container of a pod that has this role.
pub fn container_name(pod: &str, role: impl fmt::Display) -> String {
    format!("latebind-{pod}-{role}")
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
    /// How many of them, the last ones, are for jobs that are pilots themselves.
    pub pilot_jobs: u32,
    /// Their sizes, slot by slot.
    pub sizes: Vec<SlotSize>,
    /// Bytes of each data volume, where it is to lie in memory.
    pub data_size: Option<u64>,
    /// Whether the pod has a network.
    pub network: Network,
    /// What payload containers get of the volumes that their images declare.
    pub image_volume: ImageVolume,
    /// Whether jobs run under glue's filter of system calls.
    pub seccomp: bool,
}

/// One container.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its pod.
    pub pod: String,
    /// Its part in the pod.
    pub role: Role,
    /// Name or ID of its image.
    pub image: String,
    /// What root has in it; all else is dropped.
    pub capabilities: &'static [&'static str],
    /// What it sees of the host.
    pub mounts: Vec<Mount>,
    /// What it may use, where that is limited.
    pub limits: Option<ContainerLimits>,
    /// Bytes that its `/dev/shm` may have, where it is not the engine's default.
    pub shm_size: Option<u64>,
    /// What it shares with others.
    pub namespaces: Namespaces,
    /// Whether it cannot write its own files.
    pub read_only: bool,
    /// Its program and what that is given first; empty: the image's.
    pub entrypoint: Vec<String>,
    /// Arguments of the program.
    pub arguments: Vec<String>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    /// Whether it reads our standard input.
    pub interactive: bool,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Where the number of its main process is written.
    pub pidfile: PathBuf,
    /// Where its output goes, where it is not ours.
    pub log: Option<PathBuf>,
    /// What it gets of the volumes that its image declares.
    pub image_volumes: ImageVolume,
}

/// Namespaces as the engines name them: `container:NAME`, `none`, `host`, `private`, `shareable`.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    /// Processes; its own where there is nothing.
    pub pid: Option<String>,
    /// Host name; its own where there is nothing.
    pub uts: Option<String>,
    /// System V IPC, message queues and `/dev/shm`; its own where there is nothing.
    pub ipc: Option<String>,
    /// Network.
    pub network: String,
    /// Host name of a namespace of its own.
    pub hostname: Option<String>,
}

impl Spec {
    /// The engine's name for it.
    pub fn name(&self) -> String {
        container_name(&self.pod, self.role)
    }

    /// The options that all engines have. `swap_is_counted`: whether swap can be limited on this machine.
    pub fn options(&self, swap_is_counted: bool) -> Vec<String> {
        let role = match self.role {
            Role::Payload(slot, _) => format!("slot-{slot}"),
            other => other.to_string(),
        };
        let fixed = [
            "--pull=never",
            "--user=0:0",
            "--workdir=/",
            "--no-healthcheck",
            "--security-opt=no-new-privileges",
            "--cap-drop=all",
        ];
        let Namespaces { pid, ipc, network, hostname, .. } = &self.namespaces;
        let mut options: Vec<String> = fixed.map(str::to_owned).to_vec();
        options.extend(self.capabilities.iter().map(|c| format!("--cap-add={c}")));
        options.push(format!("--stop-timeout={STOP_SECONDS}"));
        options.push(format!("--name={}", self.name()));
        options.push(format!("--label={POD_LABEL}={}", self.pod));
        options.push(format!("--label={ROLE_LABEL}={role}"));
        options.extend(pid.iter().map(|pid| format!("--pid={pid}")));
        options.extend(ipc.iter().map(|ipc| format!("--ipc={ipc}")));
        options.push(format!("--network={network}"));
        options.extend(hostname.iter().map(|name| format!("--hostname={name}")));
        options.extend(self.limits.iter().flat_map(|limits| options_of(limits, swap_is_counted)));
        options.extend(self.shm_size.map(|bytes| format!("--shm-size={bytes}b")));
        options.extend(self.environment.iter().map(|e| format!("--env={e}")));
        options.extend(self.read_only.then(|| "--read-only".into()));
        options.extend(self.interactive.then(|| "--interactive".into()));
        options.extend(self.terminal.then(|| "--tty".into()));
        options
    }
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
    pub limits: ContainerLimits,
    /// Whether it reads our standard input.
    pub interactive: bool,
    /// Whether it has a terminal.
    pub terminal: bool,
}

impl PodShape {
    /// What all containers of the pod have in common.
    pub fn spec(&self, role: Role, image: &str, capabilities: &'static [&'static str]) -> Spec {
        Spec {
            pod: self.name.clone(),
            role,
            image: image.to_owned(),
            capabilities,
            mounts: Vec::new(),
            limits: None,
            shm_size: None,
            namespaces: self.namespaces(role),
            read_only: false,
            entrypoint: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            interactive: false,
            terminal: false,
            pidfile: self.place.pidfile(&role.to_string()),
            log: Some(self.place.log(&role.to_string())),
            image_volumes: ImageVolume::Ignore,
        }
    }

    /// The namespaces of the base: what makes several containers one pod. A payload has IPC objects and /dev/shm to
    /// itself, and where it has neighbours, a network too: by an abstract socket they could pass descriptors on.
    /// With one slot it shares the pilot's loopback, which HTCondor's chirp needs.
    fn namespaces(&self, role: Role) -> Namespaces {
        let (none, host) = ("none".to_owned(), "host".to_owned());
        let own_network = if self.network == Network::Host { host } else { none.clone() };
        if role == Role::Install {
            return Namespaces { network: none, ..Namespaces::default() };
        }
        if role == self.base {
            let (ipc, hostname) = (Some("shareable".to_owned()), Some(self.name.clone()));
            return Namespaces { ipc, network: own_network, hostname, ..Namespaces::default() };
        }
        let base = format!("container:{}", container_name(&self.name, self.base));
        let payload = matches!(role, Role::Payload(..));
        let alone = payload && self.slots > 1 && self.network == Network::None;
        Namespaces {
            pid: Some(base.clone()),
            uts: Some(base.clone()),
            ipc: Some(if payload { "private".to_owned() } else { base.clone() }),
            network: if alone { none } else { base },
            hostname: None,
        }
    }

    /// The container that holds the namespaces. No capability: it only reaps.
    pub fn pause(&self) -> Spec {
        let spec = self.spec(Role::Pause, &self.glue_image, &[]);
        Spec { read_only: true, arguments: vec!["pause".into()], ..spec }
    }

    /// The container that fills the volumes and gives them their owners.
    pub fn install(&self, ids: &PodIds) -> Spec {
        let mut arguments = vec!["install".to_owned()];
        let mut mounts = vec![Mount::writable(self.place.bin(), layout::BIN)];
        for slot in 0..self.slots {
            let Ids { uid, gid, .. } = ids.of(slot);
            arguments.extend(["--slot".into(), format!("{slot}:{uid}:{gid}")]);
            mounts.extend(self.slot_volumes(slot));
        }
        let spec = self.spec(Role::Install, &self.glue_image, &INSTALL_CAPABILITIES);
        Spec { read_only: true, arguments, mounts, ..spec }
    }

    /// A payload container: its own volumes, its limits, and whatever image. `image_id` is what was looked at before,
    /// so that a name that is given to another image meanwhile changes nothing.
    pub fn payload(&self, slot: u32, life: u64, ids: &Ids, image_id: &str) -> Spec {
        let mut mounts = vec![Mount::read_only(self.place.bin(), layout::BIN), self.hosts()];
        mounts.extend(self.slot_volumes(slot));
        if self.is_for_pilot_jobs(slot) {
            // As with the bind socket: it can be connected to, and not be replaced.
            mounts.push(Mount::read_only(self.place.clients(slot), pilot_jobs::SOCKET_DIR));
        }
        let SlotSize { limits, shm_size } = self.size(slot);
        let (number, kill_uid) = (slot.to_string(), ids.kill_uid.to_string());
        let mut entrypoint =
            [layout::GLUE, "run", "--slot", &number, "--kill-uid", &kill_uid].map(str::to_owned).to_vec();
        entrypoint.extend((!self.seccomp).then(|| "--no-seccomp".to_owned()));
        let spec = self.spec(Role::Payload(slot, life), image_id, &PAYLOAD_CAPABILITIES);
        Spec { mounts, entrypoint, limits: Some(limits), shm_size, image_volumes: self.image_volume, ..spec }
    }

    /// The slot's size.
    pub fn size(&self, slot: u32) -> SlotSize {
        let size = usize::try_from(slot).ok().and_then(|n| self.sizes.get(n));
        size.copied().unwrap_or(SlotSize::UNLIMITED)
    }

    /// What the pilot is told of the sizes of its payload slots: variables for each limit that there is.
    fn size_variables(&self) -> impl Iterator<Item = String> {
        let payloads = (0..self.slots).filter(|slot| !self.is_for_pilot_jobs(*slot));
        payloads.flat_map(|slot| {
            let ContainerLimits { memory, cpus, .. } = self.size(slot).limits;
            let cpus = cpus.map(|cpus| format!("{}={cpus}", sizes::variable(sizes::CPUS, slot)));
            let memory = memory.map(|bytes| format!("{}={bytes}", sizes::variable(sizes::MEMORY, slot)));
            [cpus, memory].into_iter().flatten()
        })
    }

    /// Whether the slot is for jobs that are pilots themselves.
    pub fn is_for_pilot_jobs(&self, slot: u32) -> bool {
        slot >= self.slots.saturating_sub(self.pilot_jobs)
    }

    /// The pilot container: all volumes, the bind socket, limits of its own. Its output is ours, so it needs no log.
    pub fn pilot(&self, pilot: &PilotShape, ids: &PodIds) -> Spec {
        let mut mounts = vec![
            Mount::read_only(self.place.bin(), layout::BIN),
            Mount::writable(&pilot.private, PRIVATE_IN_PILOT),
            // A socket can be connected to on a read-only mount, and not be replaced there.
            Mount::read_only(self.place.bind(), BIND_IN_PILOT),
        ];
        mounts.extend((0..self.slots).flat_map(|slot| self.slot_volumes(slot)));
        let for_pilot_jobs = (0..self.slots).filter(|slot| self.is_for_pilot_jobs(*slot));
        mounts.extend(
            for_pilot_jobs.map(|slot| {
                Mount::writable(self.place.clients(slot), pilot_jobs::dir_in_pilot(slot).to_string_lossy())
            }),
        );
        // The user's own list, where there is one.
        mounts.extend((!pilot.mounts.iter().any(|mount| mount.target == HOSTS)).then(|| self.hosts()));
        mounts.extend(pilot.mounts.iter().cloned());
        let uids: Vec<String> = (0..self.slots).map(|slot| ids.of(slot).uid.to_string()).collect();
        let mut environment = vec!["LATEBIND_BINDER=host".to_owned(), format!("LATEBIND_SLOTS={}", self.slots)];
        environment.push(format!("LATEBIND_SLOT_UIDS={}", uids.join(",")));
        environment.push(format!("LATEBIND_PILOT_JOBS={}", self.pilot_jobs));
        environment.extend(self.size_variables());
        environment.extend(pilot.environment.iter().cloned());
        Spec {
            mounts,
            environment,
            limits: Some(self.pilot_limits(pilot)),
            interactive: pilot.interactive,
            terminal: pilot.terminal,
            entrypoint: vec![pilot.program.clone()],
            arguments: pilot.arguments.clone(),
            log: None,
            ..self.spec(Role::Pilot, &self.pilot_image, &PILOT_CAPABILITIES)
        }
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
    pub fn pilot_limits(&self, pilot: &PilotShape) -> ContainerLimits {
        let volumes = self.data_size.unwrap_or(0).saturating_mul(u64::from(self.slots));
        ContainerLimits { memory: pilot.limits.memory.map(|bytes| bytes.saturating_add(volumes)), ..pilot.limits }
    }
}

/// A path as an engine's argument.
pub fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| failure(format!("the path {} is not UTF-8, which engines need", path.display())))
}
