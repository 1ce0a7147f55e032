//! What can be said on the command line.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use latebind_contract::startup::{Amount, Rlimit, Stop};
use watcher::bind::host;
use watcher::docker_options::{Habits, Program};
use watcher::job::PayloadHas;
use watcher::job::bounds::CopyBounds;
use watcher::job::download::UrlPrefix;
use watcher::job::life::Reuse;
use watcher::job::limits::{Bytes, Limits};
use watcher::run::Streams;
use watcher::serve;

/// Seconds that a job may need for its end by default: soft to hard kill, the kill routine, and its results.
pub const END_NEEDS: f64 = 30.0;

/// Binds images to a pod's payload containers, runs jobs there, and believes only signed records.
#[derive(Parser)]
#[command(name = "watcher", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Run one job: watcher run IMAGE [CMD ARGS]. Exit code: the job's, 128+n for a signal, 124 a limit was exceeded,
    /// 125 our failure, 126 not executable, 127 not found.
    Run(Box<RunArgs>),
    /// Serve jobs from a spool directory, as many at once as there are slots.
    Pilot(Box<PilotArgs>),
    /// Serve clients on the socket in the private volume.
    Serve(CoreArgs),
    /// Say whether jobs can be run in this pod, one line for each thing. Exit code: 0 they can, 1 they cannot.
    Check(CoreArgs),
    /// End glue for good in each slot, where that is what the pod waits for to complete; for a pilot whose watcher
    /// served, when both have no more work.
    Finish(CoreArgs),
    /// Check a record against a kept key.
    Verify {
        /// The record, a compact JWS.
        record: PathBuf,
        /// The kept key's file.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Print the reports in a spool or directory as a table.
    Results {
        /// The directory.
        dir: PathBuf,
        #[command(flatten)]
        keys: Keys,
    },
    /// Print one report for people.
    Report {
        /// report.json, the directory that has it, or a job's directory in a spool.
        path: PathBuf,
        #[command(flatten)]
        keys: Keys,
    },
    /// Draw what pilots did, from the reports in a spool or directory: all phases of all jobs, as an SVG on standard
    /// output.
    Timeline {
        /// The directory.
        dir: PathBuf,
        /// A page for a browser instead, one file: the picture, a table of the jobs, what failed, what was used.
        #[arg(long)]
        html: bool,
        #[command(flatten)]
        keys: Keys,
    },
    /// Show what the slots' jobs use now.
    Top {
        #[command(flatten)]
        private: Private,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
        /// How often, seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
        every: f64,
        /// End after so many times.
        #[arg(long, value_name = "N")]
        times: Option<u64>,
    },
    /// List the core's jobs.
    Jobs(Private),
    /// Send a signal to all processes of a running job.
    Signal {
        #[command(flatten)]
        private: Private,
        /// The job, with or without the number of its attempt.
        job: String,
        /// The signal: TERM, SIGUSR1, 10.
        signal: String,
        /// Only to its main process.
        #[arg(long)]
        main: bool,
    },
    /// Start a command in the container of a running job, with its user ID, environment and directory: watcher exec
    /// JOB CMD ARGS. The job has to be one that was made for this (run --exec, `exec` in job.json). Exit code: the
    /// command's, 128+n for a signal, 125 our failure, 126 not executable, 127 not found.
    Exec(ExecArgs),
    /// Stop all processes of a running job at once. Its limits go on counting.
    Stop(OneJob),
    /// Let a stopped job continue.
    Continue(OneJob),
    /// (internal) Work under the payload's rights.
    #[command(hide = true)]
    Helper { task: String, uid: u32, gid: u32, kill_uid: u32 },
}

#[derive(Args, Clone)]
pub struct Private {
    /// The pilot's private volume: state, keys, socket.
    #[arg(long, value_name = "DIR", default_value = serve::PRIVATE, env = "LATEBIND_PRIVATE")]
    pub private: PathBuf,
}

#[derive(Args)]
pub struct Keys {
    /// Where the pilot kept its keys (--keep-keys). Each record is verified again with its key; without one it is not
    /// checked.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/latebind/keys")]
    pub keys: PathBuf,
}

#[derive(Args)]
pub struct OneJob {
    #[command(flatten)]
    pub private: Private,
    /// The job, with or without the number of its attempt.
    pub job: String,
}

#[derive(Args)]
pub struct ExecArgs {
    #[command(flatten)]
    pub private: Private,
    #[command(flatten)]
    pub streams: Streams,
    /// Set a variable, beside the job's own.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<OsString>,
    /// Start there instead of in the job's own directory.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// The job, with or without the number of its attempt, or `.` for the only one that runs; then program and
    /// arguments, with or without `--` before them.
    #[arg(required = true, trailing_var_arg = true, value_names = ["JOB", "CMD"])]
    pub words: Vec<OsString>,
}

#[derive(Args, Clone)]
pub struct CoreArgs {
    #[command(flatten)]
    pub private: Private,
    /// How many slots the pod has. LATEBIND_CPUS_<n>, LATEBIND_MEMORY_<n> and LATEBIND_GPUS_<n> give the size of slot
    /// n, LATEBIND_CPUS, LATEBIND_MEMORY and LATEBIND_GPUS that of all others: jobs that request more are not taken.
    #[arg(long, value_name = "N", default_value_t = 1, env = "LATEBIND_SLOTS")]
    pub slots: u32,
    /// How many of them, the last ones, are for jobs that are pilots themselves; the first of these serves slot 0.
    #[arg(long, value_name = "N", default_value_t = 0, env = "LATEBIND_PILOT_JOBS")]
    pub pilot_jobs: u32,
    /// How images are bound: by patching the pod's payload container, or by asking latebind-host.
    #[arg(long, value_enum, default_value_t = BinderKind::Host, env = "LATEBIND_BINDER")]
    pub binder: BinderKind,
    /// Socket of the `host` binder.
    #[arg(long, value_name = "PATH", default_value = host::SOCKET)]
    pub bind_socket: PathBuf,
    /// A socket for clients that are not root but have a slot's payload UID, such as HTCondor's drop-in; in a directory
    /// that only the pilot container has.
    #[arg(long, value_name = "PATH", env = "LATEBIND_CLIENTS")]
    pub clients: Option<PathBuf>,
    /// Name of the pod, for the `kubernetes` binder; the host name where none is given.
    #[arg(long, value_name = "NAME", env = "LATEBIND_POD_NAME", hide_env_values = true)]
    pub pod: Option<String>,
    /// Its namespace; the service account's where none is given.
    #[arg(long, value_name = "NAME", env = "LATEBIND_POD_NAMESPACE", hide_env_values = true)]
    pub namespace: Option<String>,
    /// Its UID: a later pod may get its name, and is left alone.
    #[arg(long, value_name = "UID", env = "LATEBIND_POD_UID", hide_env_values = true)]
    pub pod_uid: Option<String>,
    /// A proxy to the API server; HTTPS_PROXY and its like are not looked at.
    #[arg(long, value_name = "URL", env = "LATEBIND_API_PROXY")]
    pub api_proxy: Option<http::Uri>,
    /// Ask an image's registry what the image runs by itself, for jobs without a program (kubernetes binder).
    #[arg(long, env = "LATEBIND_ASK_REGISTRY")]
    pub ask_registry: bool,
    /// The pull secret for that, as it is mounted: its .dockerconfigjson.
    #[arg(long, value_name = "FILE", env = "LATEBIND_PULL_SECRET", requires = "ask_registry")]
    pub pull_secret: Option<PathBuf>,
    /// Certificates of registries, PEM, in place of those of this container.
    #[arg(long, value_name = "FILE", env = "LATEBIND_REGISTRY_CA", requires = "ask_registry")]
    pub registry_ca: Option<PathBuf>,
    /// A registry that is asked by plain HTTP; may be repeated.
    #[arg(long = "plain-http-registry", value_name = "HOST[:PORT]", value_delimiter = ',')]
    #[arg(env = "LATEBIND_PLAIN_HTTP_REGISTRY", requires = "ask_registry")]
    pub plain_http: Vec<String>,
    /// How long the node may take to fetch an image, seconds (kubernetes binder).
    #[arg(long, value_name = "SECONDS", default_value_t = 1800.0)]
    pub pull_timeout: f64,
    /// What a slot without work holds: the placeholder, or still the last job's container.
    #[arg(long, value_enum, default_value_t = Idle::Placeholder)]
    pub idle: Idle,
    /// How long a slot is without work before it gets the placeholder, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub idle_after: f64,
    /// Whether a container serves one job or several of one owner.
    #[arg(long, value_enum, default_value_t = Reuse::Never)]
    pub reuse: Reuse,
    /// Keep each start's key there, so that its record can be checked later.
    #[arg(long, value_name = "DIR")]
    pub keep_keys: Option<PathBuf>,
    /// How long a new container may take until its glue is ready, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub ready_within: f64,
    /// Serve metrics (OpenMetrics) at http://ADDR/metrics. The payload shares the pod's network and can read them too.
    #[arg(long, value_name = "ADDR", env = "LATEBIND_METRICS")]
    pub metrics: Option<std::net::SocketAddr>,
    /// A path at which payload containers have a mount of yours, such as /cvmfs: jobs may ask for it and for what is
    /// beneath. :rw where they can write there.
    #[arg(long, value_name = "PATH[:rw]", value_delimiter = ',', env = "LATEBIND_PAYLOAD_HAS")]
    pub payload_has: Vec<PayloadHas>,
    /// URLs that jobs may have inputs from, by their beginning: https://HOST/, https://HOST/PATH/, or https:// for all.
    /// The pilot fetches them, from where it is in the network.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',', env = "LATEBIND_INPUT_URLS")]
    pub input_url: Vec<UrlPrefix>,
    /// A PEM file with the certificate authorities to trust for these servers, in place of the system's.
    #[arg(long, value_name = "FILE", env = "LATEBIND_INPUT_CA")]
    pub input_ca: Option<PathBuf>,
    #[command(flatten)]
    pub most: MostArgs,
}

/// How much any job may use; a job's own limits can only be lower.
#[derive(Args, Clone)]
#[command(next_help_heading = "Limits of every job")]
pub struct MostArgs {
    /// Wall time, seconds.
    #[arg(long, value_name = "SECONDS", env = "LATEBIND_MAX_WALL")]
    pub max_wall: Option<f64>,
    /// CPU time of all its processes, seconds.
    #[arg(long, value_name = "SECONDS", env = "LATEBIND_MAX_CPU")]
    pub max_cpu: Option<f64>,
    /// Memory of all its processes (512M, 4G); 95 % of the container's where that can be read.
    #[arg(long, value_name = "BYTES", env = "LATEBIND_MAX_MEMORY")]
    pub max_memory: Option<Bytes>,
    /// Processes at once.
    #[arg(long, value_name = "N", env = "LATEBIND_MAX_PROCESSES")]
    pub max_processes: Option<u64>,
    /// Bytes in the data volume; 90 % of its size where that is known.
    #[arg(long, value_name = "BYTES", env = "LATEBIND_MAX_DISK")]
    pub max_disk: Option<Bytes>,
    /// Bytes of standard output and error, and of all that is fetched; 16G where it is not set.
    #[arg(long, value_name = "BYTES", env = "LATEBIND_MAX_OUTPUT")]
    pub max_output: Option<Bytes>,
    /// Files and directories that are fetched.
    #[arg(long, value_name = "N", default_value_t = 100_000, env = "LATEBIND_MAX_OUTPUT_FILES")]
    pub max_output_files: u64,
    /// Bytes of its inputs and standard input.
    #[arg(long, value_name = "BYTES", default_value = "64G", env = "LATEBIND_MAX_INPUT")]
    pub max_input: Bytes,
    /// Files and directories of its inputs.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, env = "LATEBIND_MAX_INPUT_FILES")]
    pub max_input_files: u64,
    /// Seconds between TERM and KILL; what is ended for any of these has so much longer.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, env = "LATEBIND_MAX_GRACE")]
    pub max_grace: f64,
    /// Seconds for ending what is left of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, env = "LATEBIND_MAX_KILL")]
    pub max_kill: f64,
    /// Seconds for copying its inputs, and for fetching its outputs.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800.0, env = "LATEBIND_COPY_WITHIN")]
    pub copy_within: f64,
    /// Seconds that its result waits for the slot to be cleaned.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, env = "LATEBIND_CLEAN_WITHIN")]
    pub clean_within: f64,
    /// Size of a slot's data volume, where its file system does not say so: the emptyDir's sizeLimit.
    #[arg(long, value_name = "BYTES", env = "LATEBIND_DATA_SIZE")]
    pub data_size: Option<Bytes>,
}

impl MostArgs {
    pub fn copy_bounds(&self) -> CopyBounds {
        CopyBounds {
            input_bytes: self.max_input.0,
            input_entries: self.max_input_files,
            output_bytes: self.max_output.map_or(CopyBounds::default().output_bytes, |bytes| bytes.0),
            output_entries: self.max_output_files,
        }
    }

    pub fn limits(&self) -> io::Result<Limits> {
        let limits = Limits {
            wall_s: self.max_wall,
            cpu_s: self.max_cpu,
            memory: self.max_memory,
            processes: self.max_processes,
            disk: self.max_disk,
            output: self.max_output,
        };
        limits.check().map(|()| limits).map_err(io::Error::other)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BinderKind {
    Host,
    Kubernetes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Idle {
    Placeholder,
    Keep,
}

#[derive(Args)]
pub struct PilotArgs {
    #[command(flatten)]
    pub core: CoreArgs,
    #[command(flatten)]
    pub from: From,
    #[command(flatten)]
    pub source: SourceArgs,
    /// Name to claim jobs under; kept in the private volume where none is given.
    #[arg(long)]
    pub name: Option<String>,
    /// Attempts that a job has before it is held.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_attempts: u32,
    /// End once nothing waited for this long, seconds.
    #[arg(long, value_name = "SECONDS")]
    pub idle_exit: Option<f64>,
    /// Exit code after a stop by SIGTERM or SIGINT. A code other than 0 keeps a Kubernetes Job from counting a drained
    /// pod as complete.
    #[arg(long, value_name = "CODE", default_value_t = 0)]
    pub stop_code: u8,
}

/// Where jobs come from: one of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct From {
    /// The spool.
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// A line of shell that prints a job (job.json with a name) whenever a slot is free. Exit code: 0 a job, 1 none
    /// now, others an error.
    #[arg(long, value_name = "CMD", requires = "report")]
    pub fetch: Option<String>,
    /// An HTTP server: GET URL gives a job (200) or none now (204); PUT URL/NAME/result.tar.gz and POST URL/NAME take
    /// what came of it.
    #[arg(long, value_name = "URL")]
    pub source: Option<String>,
}

/// What belongs to jobs from elsewhere (docs/sources.md).
#[derive(Args)]
#[command(next_help_heading = "Jobs from elsewhere")]
pub struct SourceArgs {
    /// A line of shell that takes what came of a job: $1 is the directory of its result, $2 its name, $3 its class. It
    /// is run again until it ends with 0.
    #[arg(long, value_name = "CMD", requires = "fetch")]
    pub report: Option<String>,
    /// A file with a token for the server (Authorization: Bearer), read again for each request.
    #[arg(long, value_name = "FILE", requires = "source")]
    pub source_token: Option<PathBuf>,
    /// A PEM file with the certificate authorities to trust for the server, in place of the system's.
    #[arg(long, value_name = "FILE", requires = "source")]
    pub source_ca: Option<PathBuf>,
    /// How long fetching a job may take, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub fetch_within: f64,
    /// How long reporting one may take, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    pub report_within: f64,
    /// Longest wait before a source that had no job is asked again, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub fetch_wait: f64,
}

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub core: CoreArgs,
    /// Have the job run by the watcher that listens there, and end it when this command ends; the only way for a caller
    /// that is not root but has a slot's payload UID.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["results", "owner", "env_file", "inputs", "terminal"])]
    pub socket: Option<PathBuf>,
    /// A directory of the payload's beneath the slot's data/ to run in, instead of work/; nothing in it is copied or
    /// removed.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["inputs", "output"])]
    pub sandbox: Option<String>,
    #[command(flatten)]
    pub streams: Streams,
    /// Let `watcher exec` start further commands beside it.
    #[arg(long)]
    pub exec: bool,
    /// Set a variable.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<OsString>,
    /// Set a variable to bytes that no engine passes on as an argument.
    #[arg(long, value_name = "NAME=BASE64URL", hide = true)]
    pub env_base64: Vec<String>,
    /// The command's words are written in base64url.
    #[arg(long, hide = true)]
    pub argv_base64: bool,
    /// Read variables from a file of shell assignments, or of another format: sh, nul, docker, export
    /// (docs/environment-files.md).
    #[arg(long, value_name = "[FORMAT:]FILE")]
    pub env_file: Vec<PathBuf>,
    /// Start from an empty environment instead of the image's.
    #[arg(long)]
    pub clean_env: bool,
    /// Working directory in the image.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Copy this directory's content into the job's work directory.
    #[arg(long, value_name = "DIR")]
    pub inputs: Option<PathBuf>,
    /// Fetch this path beneath the work directory into --results.
    #[arg(long, value_name = "PATH", requires = "results")]
    pub output: Vec<String>,
    /// Put record, report and outputs there.
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// Write the report to this file, with the caller's own rights.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// The job is a pilot itself: it gets a slot for such jobs, and a socket at which it runs jobs in the slot that this
    /// one serves.
    #[arg(long, conflicts_with = "socket")]
    pub pilot_job: bool,
    /// Wall limit, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub timeout: f64,
    /// Resource limit, which can only be lowered: nofile=1024 or nofile=1024:4096.
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit)]
    pub ulimit: Vec<(String, Rlimit)>,
    #[command(flatten)]
    pub habits: Habits,
    /// Seconds between soft and hard kill.
    #[arg(long, visible_alias = "stop-timeout", value_name = "SECONDS", default_value_t = 10.0)]
    pub grace: f64,
    /// Who gets TERM when the command is to end: its main process, that one's process group, or all its processes.
    #[arg(long, value_name = "main|group|all", default_value = "main", value_parser = stop)]
    pub stop: Stop,
    /// Whose job it is, for --reuse same-owner.
    #[arg(long, default_value = "")]
    pub owner: String,
    /// Name of the job.
    #[arg(long)]
    pub name: Option<String>,
    /// End by the signal that ended the job, instead of with 128+n.
    #[arg(long)]
    pub same_signal: bool,
    /// Say what goes on.
    #[arg(long)]
    pub verbose: bool,
    #[command(flatten)]
    pub program: Program,
    /// The image, then program and arguments, with or without `--` before them; without, what the image runs by itself:
    /// its ENTRYPOINT and CMD. Options come before the image.
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "CMD"])]
    pub words: Vec<OsString>,
}

fn ulimit(text: &str) -> Result<(String, Rlimit), String> {
    let wrong = || format!("{text:?} is not a limit: write nofile=1024 or nofile=1024:4096, -1 for unlimited");
    let amount = |text: &str| match text {
        "-1" | "unlimited" => Some(Amount::Unlimited),
        number => number.parse().ok().map(Amount::Of),
    };
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    match (amount(soft), amount(hard)) {
        (Some(soft), Some(hard)) => Ok((name.to_owned(), Rlimit { soft, hard })),
        _ => Err(wrong()),
    }
}

fn stop(text: &str) -> Result<Stop, String> {
    match text {
        "main" => Ok(Stop::Main),
        "group" => Ok(Stop::Group),
        "all" => Ok(Stop::All),
        _ => Err("write main, group or all".into()),
    }
}
