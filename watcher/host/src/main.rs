//! Pods of late-bound containers on a machine without Kubernetes, made of podman's containers.
//!
//! It stands outside of the pods that it makes. With what runs in them it shares the contract's names and numbers, and
//! the removal of IPC objects.

#![forbid(unsafe_code)]

mod arguments;
mod bind_server;
mod caller;
mod calls;
mod container;
mod docker;
mod engine;
mod failure;
mod hosts;
mod hung_start;
mod image_cache;
mod images;
mod ipc;
mod leftovers;
mod machine;
mod main_process;
mod metadata;
mod mountinfo;
mod one_command;
mod pattern;
mod pidfd;
mod place;
mod pod;
mod podman;
mod rootless;
mod search_path;
mod slot;
mod threads;
mod uids;
mod volumes;

use crate::arguments::{Arguments, Common, EngineName, ExecArguments, PodArguments, RunArguments, Verb};
use crate::container::{Mount, PilotShape, PodShape, Role, SPOOL_IN_PILOT, SlotSize, container_name};
use crate::docker::Docker;
use crate::engine::Engine;
use crate::failure::{Context, Failure, failure};
use crate::images::AllowList;
use crate::place::Place;
use crate::pod::Plan;
use crate::podman::{Podman, guard, nodev};
use crate::rootless::link::{self, Inside};
use crate::search_path::in_path;
use latebind_contract::layout::SLOT_MAX;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use watcher::reference::Reference;
use watcher::run::Streams;
use watcher::{docker_options, text};

/// Exit code of this program's own failures, as `docker run` has it.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    if let Some(root) = nodev::called_for() {
        return nodev::run(&root);
    }
    if let Some(called) = guard::called_as() {
        return guard::run(&called);
    }
    let arguments: Arguments = match text::arguments(OWN_FAILURE) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    // Before there are threads, and also where all that is done here is to wait for the pod of an ordinary user.
    let signals = watcher::caller::reset_signals().context(|| "cannot set the signals".into());
    let mut outside = None;
    let connect = || if rootless::is_inside() { Inside::connect() } else { Ok(None) };
    let connected = signals.and_then(|()| connect()).map(|inside| outside = inside);
    let code = connected.and_then(|()| obey(arguments)).unwrap_or_else(|e| {
        text::complain(&format!("latebind-host: {e}"));
        OWN_FAILURE
    });
    if let Some(outside) = outside {
        outside.report(code);
    }
    ExitCode::from(code)
}

fn obey(arguments: Arguments) -> Result<u8, Failure> {
    if let Verb::CleanIpc(task) = &arguments.verb {
        return ipc::obey(task).map(|()| 0);
    }
    // One command's standard error is the command's.
    log_at(if matches!(arguments.verb, Verb::Pod(_)) { "info" } else { "warn" });
    let docker = match arguments.engine {
        // The project's own storage is podman's.
        _ if matches!(arguments.verb, Verb::Podman { .. }) => false,
        EngineName::Auto => in_path("podman").is_none() && in_path("docker").is_some(),
        named => named == EngineName::Docker,
    };
    let is_root = nix::unistd::geteuid().is_root();
    if docker && (!is_root || rootless::is_inside()) {
        return Err(failure("with docker this must be run as root; an ordinary user's pods are podman's"));
    }
    if docker && arguments.cgroup_parent.is_some() {
        return Err(failure("--cgroup-parent is podman's: docker's daemon has an option of that name"));
    }
    if !is_root {
        let is_default = arguments.state == Path::new(place::DEFAULT_STATE);
        let mut again = rootless::again(is_default, arguments.cgroup_parent.is_some())?;
        if matches!(arguments.verb, Verb::Podman { .. }) {
            return Err(failure(format!("cannot run podman unshare: {}", again.exec())));
        }
        return link::run(again, &random_digits()?);
    }
    caller::settle()?;
    let place = Place::open(&arguments.state)?;
    let parent = arguments.cgroup_parent.as_deref();
    let engine: Arc<dyn Engine> =
        if docker { Arc::new(Docker::open(place)?) } else { Arc::new(Podman::open(place, parent)?) };
    match arguments.verb {
        Verb::Pod(pod) => {
            let plan = pod_plan(&*engine, *pod)?;
            pod::run(&engine, plan)
        }
        Verb::Run(run) => run_one(&engine, *run),
        Verb::Exec(exec) => exec_beside(&*engine, &exec),
        Verb::Rm(rm) => leftovers::remove(&*engine, &rm).map(|()| 0),
        Verb::Ps => leftovers::list(&*engine).map(|()| 0),
        Verb::CleanIpc(_) => Ok(0),
        Verb::Podman { arguments } => {
            let error = engine.calls().command().args(arguments).exec();
            Err(failure(format!("cannot run podman: {error}")))
        }
    }
}

fn log_at(level: &str) {
    let filter = EnvFilter::try_from_env("LATEBIND_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    text::log(filter, text::Form::Text);
}

/// Becomes the engine, which runs the pod's own watcher: its job's attendant starts the command.
fn exec_beside(engine: &dyn Engine, exec: &ExecArguments) -> Result<u8, Failure> {
    check(exec.streams)?;
    let (name, command) = docker_options::image_and_command(&exec.words).map_err(failure)?;
    let (pod, job) = name.split_once('/').unwrap_or((&name, "."));
    if command.is_empty() {
        return Err(failure("no command is given after the pod"));
    }
    if !place::is_pod_name(pod) || !engine.place().pod(pod).top().exists() {
        return Err(failure(format!("there is no pod {pod:?} here: see latebind-host ps")));
    }
    let mut call = engine.calls().command();
    call.arg("exec").args(exec.streams.options());
    call.args(exec.streams.variables().flat_map(|variable| ["--env".to_owned(), variable]));
    call.arg(container_name(pod, Role::Pilot));
    call.args([container::WATCHER, "exec"]).args(exec.streams.options());
    for (name, value) in one_command::variables(&exec.env)? {
        let value =
            String::from_utf8(value).map_err(|_| failure(format!("--env {name}: the value has to be UTF-8")))?;
        call.args(["--env".to_owned(), format!("{name}={value}")]);
    }
    call.args(exec.workdir.iter().flat_map(|directory| ["--workdir", directory]));
    let error = call.args([job, "--"]).args(command).exec();
    Err(failure(format!("cannot run the engine: {error}")))
}

/// As docker says it, before a pod is made.
fn check(streams: Streams) -> Result<(), Failure> {
    streams.check().map_err(|e| failure(e.to_string()))
}

fn run_one(engine: &Arc<dyn Engine>, run: RunArguments) -> Result<u8, Failure> {
    check(run.streams)?;
    let one = one_command::translate(&run)?;
    let image = Reference::parse_full(&one.image).map_err(failure)?;
    // The pilot is started once and takes the pod with it, so it needs nobody to hold the namespaces for the next one;
    // but who keeps a pod wants to look at its containers.
    let base = if run.common.keep { Role::Pause } else { Role::Pilot };
    let shape =
        PodShape { base, ..shape(&**engine, &run.common, "run", vec![run.common.slot_size(run.common.limits())])? };
    let mut mounts = one.mounts;
    mounts.extend(host_mounts(&run.common)?);
    let plan = Plan {
        pilot: PilotShape {
            program: container::WATCHER.to_owned(),
            arguments: one.arguments,
            mounts,
            private: private(&shape, &run.common)?,
            environment: run.streams.variables().chain(run.common.pilot_env.iter().cloned()).collect(),
            limits: run.common.pilot_limits(),
            interactive: run.streams.interactive,
            terminal: run.streams.terminal,
        },
        shape,
        uids: run.common.uids,
        allowed: AllowList::only(image.clone()),
        only: Some(image),
        pull: run.common.pull,
        // A code that is not 0 is the command's.
        restarts: 0,
        stop_within: None,
        keep: run.common.keep,
    };
    pod::run(engine, plan)
}

fn pod_plan(engine: &dyn Engine, pod: PodArguments) -> Result<Plan, Failure> {
    let common = &pod.common;
    let shape = PodShape { pilot_jobs: pod.pilot_jobs, ..shape(engine, common, "pod", pod.sizes())? };
    if pod.pilot_jobs > shape.slots / 2 {
        return Err(failure(format!("--pilot-jobs {}: each needs a slot to serve", pod.pilot_jobs)));
    }
    let mut mounts = host_mounts(common)?;
    if let Some(spool) = &pod.spool {
        mounts.push(existing(&Mount::writable(spool, SPOOL_IN_PILOT))?);
    }
    let arguments = match (pod.arguments.is_empty(), &pod.spool) {
        (false, _) => pod.arguments,
        (true, Some(_)) => ["pilot", "--spool", SPOOL_IN_PILOT].map(str::to_owned).to_vec(),
        (true, None) if pod.pilot_program != container::WATCHER => Vec::new(),
        (true, None) => return Err(failure("no jobs to run: give --spool DIR, or the watcher's arguments after --")),
    };
    Ok(Plan {
        pilot: PilotShape {
            program: pod.pilot_program.clone(),
            arguments,
            mounts,
            private: private(&shape, common)?,
            environment: common.pilot_env.clone(),
            limits: common.pilot_limits(),
            interactive: false,
            terminal: false,
        },
        shape,
        uids: common.uids,
        allowed: AllowList::new(&pod.allow),
        only: None,
        pull: common.pull,
        restarts: pod.restarts,
        stop_within: Some(std::time::Duration::from_secs(u64::from(pod.stop_timeout))),
        keep: common.keep,
    })
}

fn shape(engine: &dyn Engine, common: &Common, kind: &str, sizes: Vec<SlotSize>) -> Result<PodShape, Failure> {
    let slots = u32::try_from(sizes.len()).unwrap_or(u32::MAX);
    if !(1..=SLOT_MAX + 1).contains(&slots) {
        return Err(failure(format!("a pod has 1 to {} slots", SLOT_MAX + 1)));
    }
    let name = match &common.name {
        Some(name) if place::is_pod_name(name) => name.clone(),
        Some(name) => {
            return Err(failure(format!(
                "{name:?} is not a name for a pod: at most 40 lower-case letters, digits and '-', the last not at its \
                 ends"
            )));
        }
        None => format!("{kind}-{}", random_digits()?),
    };
    for image in [&common.glue_image, &common.pilot_image] {
        Reference::parse_full(image).map_err(failure)?;
    }
    Ok(PodShape {
        place: engine.place().pod(&name),
        name,
        base: Role::Pause,
        glue_image: common.glue_image.clone(),
        pilot_image: common.pilot_image.clone(),
        slots,
        pilot_jobs: 0,
        sizes,
        data_size: common.data_size.and_then(|size| size.0),
        network: common.network,
        image_volume: common.image_volume,
        seccomp: !common.no_seccomp,
    })
}

fn random_digits() -> Result<String, Failure> {
    let mut bytes = [0u8; 4];
    let read = fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    read.context(|| "cannot read /dev/urandom".into())?;
    Ok(format!("{:08x}", u32::from_ne_bytes(bytes)))
}

fn private(shape: &PodShape, common: &Common) -> Result<std::path::PathBuf, Failure> {
    let Some(private) = &common.private else { return Ok(shape.place.private()) };
    volumes::own_private(private)?;
    absolute(private)
}

fn host_mounts(common: &Common) -> Result<Vec<Mount>, Failure> {
    common.mount.iter().map(existing).collect()
}

fn existing(mount: &Mount) -> Result<Mount, Failure> {
    Ok(Mount { source: absolute(&mount.source)?, ..mount.clone() })
}

fn absolute(path: &Path) -> Result<std::path::PathBuf, Failure> {
    fs::canonicalize(path).context(|| format!("cannot mount {} in the pilot container", path.display()))
}
