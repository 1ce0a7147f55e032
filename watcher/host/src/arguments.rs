//! The command line.

use crate::container::{ImageVolume, Mount, Network, SlotSize};
use crate::images::Pull;
use crate::place::DEFAULT_STATE;
use crate::uids::IdRange;
use clap::{Args, Parser, Subcommand};
use latebind_contract::layout::SLOT_MAX;
use std::ffi::OsString;
use std::path::PathBuf;
use watcher::bind::host::ContainerLimits;
use watcher::docker_options::{Habits, Program};
use watcher::run::Streams;
use watcher::size::Bytes;

/// Pods of late-bound containers on one machine, without Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "latebind-host", version, disable_help_subcommand = true)]
pub struct Arguments {
    /// Where images, containers and pods are kept.
    #[arg(long, global = true, env = "LATEBIND_STATE", default_value = DEFAULT_STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// What makes the containers; auto: podman where it is installed, else docker.
    #[arg(long, global = true, value_enum, env = "LATEBIND_ENGINE", default_value = "auto")]
    pub engine: EngineName,
    /// Control group below which containers get theirs, as /proc/PID/cgroup has it; with podman [default: podman's
    /// choice].
    #[arg(long, global = true, env = "LATEBIND_CGROUP_PARENT", value_name = "GROUP")]
    pub cgroup_parent: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a pod until its pilot ends; its exit code is the pilot's.
    Pod(Box<PodArguments>),
    /// Run one command in an image; streams, exit code and signals as with `docker run`.
    Run(Box<RunArguments>),
    /// Start a command beside a job that runs in a pod: latebind-host exec POD[/JOB] CMD ARGS. The job has to be one
    /// that was made for this (run --exec, `exec` in job.json).
    Exec(ExecArguments),
    /// Remove what a run that was killed left behind, or one that was kept.
    Rm(RmArguments),
    /// List pods.
    Ps,
    /// For this program itself: removes IPC objects in the namespaces of a container.
    #[command(hide = true)]
    CleanIpc(CleanIpc),
    /// Call podman on the storage of this program.
    Podman {
        /// Arguments of podman.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<OsString>,
    },
}

/// A container engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineName {
    /// What is installed.
    Auto,
    /// Podman, on a storage of this program's own.
    Podman,
    /// Docker, with the daemon and storage that its client finds.
    Docker,
}

/// What pods of both kinds can be given.
#[derive(Args, Debug)]
pub struct Common {
    /// Name of the pod [default: a random one].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Memory of each payload container, in bytes or with k, m, g, t; 0: no limit.
    #[arg(short, long, default_value = "2g", value_parser = memory, value_name = "SIZE")]
    pub memory: Amount<u64>,
    /// Processors of each payload container; 0: no limit.
    #[arg(long, default_value = "1", value_parser = cpus, value_name = "NUMBER")]
    pub cpus: Amount<f64>,
    /// Processes and threads of each payload container; 0: no limit.
    #[arg(long, visible_alias = "pids-limit", default_value = "1024", value_parser = pids, value_name = "N")]
    pub pids: Amount<u64>,
    /// Size of each payload container's /dev/shm, whose pages count as its memory [default: that of --memory, else half
    /// of the machine's].
    #[arg(long, value_parser = memory, value_name = "SIZE")]
    pub shm_size: Option<Amount<u64>>,
    /// User IDs that the pod's are taken from, two for each slot: no other living pod of this host has the same
    /// [default: 20000-59999 without the host's accounts].
    #[arg(long, env = "LATEBIND_UIDS", value_parser = IdRange::parse, value_name = "FIRST-LAST")]
    pub uids: Option<IdRange>,
    /// Memory of the pilot container, to which data volumes in memory (--data-size) are added; 0: no limit.
    #[arg(long, default_value = "512m", value_parser = memory, value_name = "SIZE")]
    pub pilot_memory: Amount<u64>,
    /// Processes and threads of the pilot container; 0: no limit.
    #[arg(long, default_value = "1024", value_parser = pids, value_name = "N")]
    pub pilot_pids: Amount<u64>,
    /// Whether images that are not here are fetched.
    #[arg(long, value_enum, default_value = "missing")]
    pub pull: Pull,
    /// Image of the pilot container.
    #[arg(long, default_value = "localhost/latebind/pilot:1", value_name = "IMAGE")]
    pub pilot_image: String,
    /// Image of glue, which is the placeholder too.
    #[arg(long, default_value = "localhost/latebind/glue:1", value_name = "IMAGE")]
    pub glue_image: String,
    /// Directory or file that the pilot sees (not the payload); may be repeated.
    #[arg(long, value_parser = mount, value_name = "SRC:DST[:ro]")]
    pub mount: Vec<Mount>,
    /// Environment variable of the pilot (not of the payload); may be repeated.
    #[arg(long, value_parser = assignment, value_name = "NAME=VALUE")]
    pub pilot_env: Vec<String>,
    /// Directory for the pilot's private volume, which then outlives the pod.
    #[arg(long, value_name = "DIR")]
    pub private: Option<PathBuf>,
    /// Size of each slot's data volume, which then lies in memory; a directory of the machine's disk where none is
    /// given.
    #[arg(long, value_parser = memory, value_name = "SIZE")]
    pub data_size: Option<Amount<u64>>,
    /// Network of the pod.
    #[arg(long, alias = "net", value_enum, default_value = "none")]
    pub network: Network,
    /// Whether payload containers get the volumes that images declare. Never but to test what stands against such
    /// images.
    #[arg(long, value_enum, default_value = "ignore", hide = true)]
    pub image_volume: ImageVolume,
    /// Run jobs without glue's filter of system calls: for 32-bit programs, and for containers within jobs.
    #[arg(long)]
    pub no_seccomp: bool,
    /// Leave the pod as it is at its end.
    #[arg(long)]
    pub keep: bool,
}

impl Common {
    /// Of each payload container of which nothing else is said.
    pub fn limits(&self) -> ContainerLimits {
        ContainerLimits { memory: self.memory.0, cpus: self.cpus.0, pids: self.pids.0 }
    }

    /// Of a payload container with these limits.
    pub fn slot_size(&self, limits: ContainerLimits) -> SlotSize {
        SlotSize { limits, shm_size: self.shm_size(limits.memory) }
    }

    /// Of `/dev/shm`, in bytes, in a container with so much memory. `None`: as the engine has it.
    fn shm_size(&self, memory: Option<u64>) -> Option<u64> {
        let half = || {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.saturating_mul(512))
        };
        self.shm_size.and_then(|size| size.0).or(memory).or_else(half)
    }

    /// Of the pilot container.
    pub fn pilot_limits(&self) -> ContainerLimits {
        ContainerLimits { memory: self.pilot_memory.0, cpus: None, pids: self.pilot_pids.0 }
    }
}

/// `latebind-host pod`.
#[derive(Args, Debug)]
pub struct PodArguments {
    #[command(flatten)]
    pub common: Common,
    /// Number of payload containers.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub slots: u32,
    /// One payload container with a size of its own: cpus=2,memory=4g,pids=100; what is left out is that of --cpus,
    /// --memory and --pids. Once for each slot, in place of --slots. Jobs are matched by their `requests`.
    #[arg(long, value_parser = slot, value_name = "KEY=VALUE,...", conflicts_with = "slots")]
    pub slot: Vec<SlotLimits>,
    /// Number of further containers for jobs that are pilots themselves (`pilot_job` in job.json); the first of them
    /// serves slot 0, the next one slot 1.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub pilot_jobs: u32,
    /// Memory of each of those; 0: no limit.
    #[arg(long, default_value = "512m", value_parser = memory, value_name = "SIZE")]
    pub pilot_job_memory: Amount<u64>,
    /// Images that the pilot may bind besides localhost/*, fully written, `*` for any text; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    pub allow: Vec<String>,
    /// Directory of jobs, which the pilot sees as /spool.
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// How many times a failed pilot is started again.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub restarts: u32,
    /// How long a pilot may take to end its jobs once it is stopped, before the pod is removed.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub stop_timeout: u32,
    /// Program of the pilot container.
    #[arg(long, default_value = crate::container::WATCHER, value_name = "PATH")]
    pub pilot_program: String,
    /// Arguments of the pilot's program [default: pilot --spool /spool].
    #[arg(last = true, value_name = "ARGS")]
    pub arguments: Vec<String>,
}

impl PodArguments {
    /// The slots' sizes, those for pilot-jobs last. There are too many where the number does not fit in a pod.
    pub fn sizes(&self) -> Vec<SlotSize> {
        let (common, usual) = (&self.common, self.common.limits());
        // One more than a pod can have: that is refused, and a number of billions takes no memory until then.
        let bounded = |n: u32| usize::try_from(n.min(SLOT_MAX + 2)).unwrap_or(usize::MAX);
        let payloads = match self.slot.as_slice() {
            [] => vec![usual; bounded(self.slots)],
            given => given.iter().map(|slot| slot.over(usual)).collect(),
        };
        let pilot_job = ContainerLimits { memory: self.pilot_job_memory.0, ..usual };
        let all = payloads.into_iter().chain(std::iter::repeat_n(pilot_job, bounded(self.pilot_jobs)));
        all.map(|limits| common.slot_size(limits)).collect()
    }
}

/// `latebind-host run`.
#[derive(Args, Debug)]
pub struct RunArguments {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub streams: Streams,
    /// Let `latebind-host exec` start further commands beside it.
    #[arg(long)]
    pub exec: bool,
    /// Environment variable of the command; without a value, ours; may be repeated.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// File with environment variables of the command: shell assignments, or another format (sh, nul, docker,
    /// export); may be repeated.
    #[arg(long, value_name = "[FORMAT:]FILE")]
    pub env_file: Vec<PathBuf>,
    /// File or directory that is copied into the command's sandbox; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub input: Vec<PathBuf>,
    /// Path beneath the sandbox that is fetched into --results; may be repeated.
    #[arg(long, requires = "results", value_name = "PATH")]
    pub output: Vec<String>,
    /// Directory for the signed record, the report and the outputs.
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// Directory that the command starts in [default: its sandbox].
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Seconds after which the command is ended.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<String>,
    /// Resource limit of the command, which can only be lowered: nofile=1024 or nofile=1024:4096; may be repeated.
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// Seconds that the command has to end once it is stopped [default: 10].
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<String>,
    #[command(flatten)]
    pub habits: Habits,
    /// Further argument of `watcher run`, taken as it is; may be repeated.
    #[arg(long, allow_hyphen_values = true, value_name = "ARG")]
    pub watcher_arg: Vec<String>,
    #[command(flatten)]
    pub program: Program,
    /// The image, fully written: docker.io/library/debian:12, localhost/mine:1; then the command and its arguments,
    /// with or without `--` before them; without a command, what the image runs by itself: its ENTRYPOINT and CMD.
    /// Options come before the image.
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "CMD"])]
    pub words: Vec<OsString>,
}

/// `latebind-host exec`.
#[derive(Args, Debug)]
pub struct ExecArguments {
    #[command(flatten)]
    pub streams: Streams,
    /// Environment variable of the command, beside the job's own; without a value, ours; may be repeated.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Directory that the command starts in [default: the job's].
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The pod, and its job where it has more than one that runs; then the command, with or without `--` before it.
    #[arg(required = true, trailing_var_arg = true, value_names = ["POD[/JOB]", "CMD"])]
    pub words: Vec<OsString>,
}

/// `latebind-host rm`.
#[derive(Args, Debug)]
pub struct RmArguments {
    /// Pods to remove.
    #[arg(required_unless_present = "all", value_name = "NAME")]
    pub names: Vec<String>,
    /// All that no running latebind-host has.
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
}

/// `latebind-host clean-ipc`.
#[derive(Args, Debug)]
pub struct CleanIpc {
    /// A process of the container.
    pub pid: i32,
    /// The container's ID.
    pub container: String,
    /// The payload's user ID.
    pub uid: u32,
    /// Its group ID.
    pub gid: u32,
    /// User ID of the kill routine.
    pub kill_uid: u32,
}

/// A limit; none where the user said 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount<T>(pub Option<T>);

/// What `--slot` says of one payload container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SlotLimits {
    memory: Option<Amount<u64>>,
    cpus: Option<Amount<f64>>,
    pids: Option<Amount<u64>>,
}

impl SlotLimits {
    /// These, and of `usual` what is left out.
    fn over(self, usual: ContainerLimits) -> ContainerLimits {
        ContainerLimits {
            memory: self.memory.map_or(usual.memory, |amount| amount.0),
            cpus: self.cpus.map_or(usual.cpus, |amount| amount.0),
            pids: self.pids.map_or(usual.pids, |amount| amount.0),
        }
    }
}

fn slot(text: &str) -> Result<SlotLimits, String> {
    let mut slot = SlotLimits::default();
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let repeated = match key {
            "memory" => slot.memory.replace(memory(value)?).is_some(),
            "cpus" => slot.cpus.replace(cpus(value)?).is_some(),
            "pids" => slot.pids.replace(pids(value)?).is_some(),
            _ => return Err(format!("{pair:?} is not a size of a slot: write cpus=2,memory=4g,pids=100")),
        };
        if repeated {
            return Err(format!("{key} is given twice"));
        }
    }
    Ok(slot)
}

fn memory(text: &str) -> Result<Amount<u64>, String> {
    Ok(Amount(Some(text.parse::<Bytes>()?.0).filter(|bytes| *bytes > 0)))
}

fn cpus(text: &str) -> Result<Amount<f64>, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of processors: write 2 or 0.5"))?;
    if number.is_finite() && (0.0..=4096.0).contains(&number) && (number == 0.0 || number >= 0.01) {
        Ok(Amount(Some(number).filter(|n| *n > 0.0)))
    } else {
        Err(format!("{text:?} processors cannot be given: write at least 0.01, or 0 for no limit"))
    }
}

fn pids(text: &str) -> Result<Amount<u64>, String> {
    let number: u32 = text.parse().map_err(|_| format!("{text:?} is not a number of processes"))?;
    Ok(Amount(Some(u64::from(number)).filter(|n| *n > 0)))
}

fn mount(text: &str) -> Result<Mount, String> {
    let wrong = || {
        format!(
            "{text:?} is not a mount: write SOURCE:TARGET or SOURCE:TARGET:ro, with an absolute target; the pilot sees \
             it, and no job does"
        )
    };
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next().filter(|s| !s.is_empty()), parts.next()) else {
        return Err(wrong());
    };
    let read_only = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(wrong()),
    };
    if !target.starts_with('/') || target == "/" {
        return Err(wrong());
    }
    Ok(Mount { source: source.into(), target: target.to_owned(), read_only })
}

fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(memory("2g").unwrap().0, Some(2 << 30));
        assert_eq!(memory("0").unwrap().0, None);
        assert!(memory("2gg").is_err());
        assert_eq!(cpus("0.5").unwrap().0, Some(0.5));
        assert_eq!(cpus("0").unwrap().0, None);
        for bad in ["", "nan", "inf", "-1", "0.001", "x"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn slots_have_sizes_of_their_own_and_the_usual_ones_where_nothing_is_said() {
        let pod = |words: &[&str]| {
            let arguments = Arguments::try_parse_from([&["latebind-host", "pod"], words].concat())?;
            let Verb::Pod(pod) = arguments.verb else { panic!("not a pod") };
            Ok::<_, clap::Error>(pod.sizes().iter().map(|s| (s.limits.memory, s.limits.cpus, s.shm_size)).collect())
        };
        let both: Vec<_> = pod(&["--slot", "cpus=2,memory=1g", "--slot", "memory=64m", "--pilot-jobs", "1"]).unwrap();
        let (large, small, pilot_job) = (1 << 30, 64 << 20, 512 << 20);
        assert_eq!(both[..2], [(Some(large), Some(2.0), Some(large)), (Some(small), Some(1.0), Some(small))]);
        assert_eq!(both[2..], [(Some(pilot_job), Some(1.0), Some(pilot_job))]);
        assert_eq!(pod(&["--slots", "2", "--memory", "64m"]).unwrap(), vec![(Some(small), Some(1.0), Some(small)); 2]);
        assert_eq!(pod(&["--slots", "4294967295", "--pilot-jobs", "1"]).unwrap().len(), 66);
        assert!(pod(&["--slots", "1", "--slot", "cpus=1"]).is_err());
        for bad in ["", "2", "cpus", "cpus=", "cpus=1,cpus=2", "gpu=1", "memory=1g,", "memory=x"] {
            assert!(slot(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts() {
        assert_eq!(mount("/a:/b").unwrap(), Mount::writable("/a", "/b"));
        assert_eq!(mount("a:/b:ro").unwrap(), Mount::read_only("a", "/b"));
        for bad in ["", "/a", ":/b", "/a:b", "/a:/", "/a:/b:x", "/a:/b:ro:rw"] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_command_may_look_like_options() {
        let line = [
            "latebind-host",
            "run",
            "-i",
            "-e",
            "A=b",
            "--watcher-arg",
            "--x",
            "localhost/a:1",
            "--",
            "ls",
            "-l",
            "--",
            "--help",
        ];
        let Verb::Run(run) = Arguments::try_parse_from(line).unwrap().verb else { panic!("not run") };
        assert_eq!(run.words, ["localhost/a:1", "--", "ls", "-l", "--", "--help"]);
        assert_eq!(run.watcher_arg, ["--x"]);
        assert!(run.streams.interactive);
        assert!(Arguments::try_parse_from(["latebind-host", "run"]).is_err());
        let line = ["latebind-host", "podman", "--", "ps", "-a"];
        let Verb::Podman { arguments } = Arguments::try_parse_from(line).unwrap().verb else { panic!("not podman") };
        assert_eq!(arguments, ["ps", "-a"]);
    }
}
