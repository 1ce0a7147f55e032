//! How `latebind-host run` and `watcher run` are called as `docker run` is, and what to do in place of those of its
//! options that they do not have.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Args;
use latebind_contract::environment::halves;

use crate::text::printable;

/// Where the image of a late-bound container has no say, so that there is nothing to be set.
const ALWAYS: &str = "it is always so here: leave it out";
const NO_CAPABILITIES: &str = "a job has no capability and cannot gain any, whatever is asked for: leave it out";
const OF_THE_HOST: &str = "a job gets no more of the host than any other: leave it out";
const NO_NETWORK: &str = "a job has the pod's network: none, or with `latebind-host run --network host` the host's, in \
                          which each port that it opens can be reached";
const NO_CHECKS: &str = "nobody looks at a job's health: its exit code is its result, --timeout ends one that hangs";
const NO_LOG: &str = "the output goes to whoever started the command: redirect it, or keep it with --results DIR";
const CPU_LIMIT: &str = "the limit on processors is --cpus NUMBER of latebind-host, in a pod the payload container's";
const MEMORY_LIMIT: &str = "the limit on memory is --memory SIZE of latebind-host, in a pod the payload container's; \
                            swap is never added to it";
const NO_DEVICES: &str = "latebind-host gives payload containers no devices; on Kubernetes the payload container's \
                          `resources` ask for them (docs/kubernetes.md), and with docker the engine's own `docker run` \
                          does";
const NO_VOLUMES: &str = "a job sees no directory of the host: copy what it reads with `latebind-host run --input \
                          FILE` (in a pod --inputs DIR), and fetch what it makes with --results DIR --output PATH";
const OF_THE_POD: &str = "it is set where the pod is made (`latebind-host run`, or the manifest): a running container \
                          cannot be given another";
const NO_LABELS: &str = "labels and annotations are the pod's own: `latebind-host run --name NAME` names it";

/// Each option, and what is said of it. Both forms of an option are here; those that one of the programs has are said
/// by the other one.
const TABLE: &[(&[&str], &str)] = &[
    (&["--add-host", "--dns", "--dns-opt", "--dns-option", "--dns-search"], NO_NETWORK),
    (&["--annotation", "--label", "-l", "--label-file"], NO_LABELS),
    (&["--attach", "-a"], "standard output and error are always attached, standard input with -i"),
    (&["--blkio-weight", "--blkio-weight-device"], OF_THE_POD),
    (&["--cap-add"], NO_CAPABILITIES),
    (&["--cap-drop"], ALWAYS),
    (&["--cgroup-parent", "--cgroupns"], OF_THE_HOST),
    (&["--cidfile"], "the report of --results DIR names the container"),
    (&["--cpu-count", "--cpu-percent", "--io-maxbandwidth", "--io-maxiops", "--isolation"], "it is Windows' alone"),
    (&["--cpu-period", "--cpu-quota", "--cpu-rt-period", "--cpu-rt-runtime", "--cpu-shares", "-c"], CPU_LIMIT),
    (&["--cpus", "--cpuset-cpus", "--cpuset-mems"], CPU_LIMIT),
    (
        &["--detach", "-d"],
        "a command in the background is the shell's: end the line with `&`, or put a job into the spool of \
         `latebind-host pod --spool DIR`",
    ),
    (&["--detach-keys"], "nobody can detach from a command and leave it running: put a job into a spool"),
    (&["--device", "--device-cgroup-rule", "--gpus"], NO_DEVICES),
    (&["--device-read-bps", "--device-read-iops", "--device-write-bps", "--device-write-iops"], OF_THE_POD),
    (&["--disable-content-trust"], "no signature of an image is looked at: leave it out, or name a digest"),
    (&["--domainname", "--hostname", "-h"], "the host name is the pod's: `latebind-host run --name NAME`"),
    (&["--expose", "--publish", "-p", "--publish-all", "-P"], NO_NETWORK),
    (&["--group-add"], "a job has its own group and no other, so that it has no rights of the host's groups"),
    (&["--health-cmd", "--health-interval", "--health-retries", "--health-start-interval"], NO_CHECKS),
    (&["--health-start-period", "--health-timeout", "--no-healthcheck"], NO_CHECKS),
    (&["--ip", "--ip6", "--link", "--link-local-ip", "--mac-address"], NO_NETWORK),
    (&["--ipc", "--pid", "--userns", "--uts"], OF_THE_HOST),
    (&["--kernel-memory", "--memory", "-m", "--memory-reservation", "--memory-swap"], MEMORY_LIMIT),
    (&["--memory-swappiness", "--oom-kill-disable"], MEMORY_LIMIT),
    (&["--log-driver", "--log-opt"], NO_LOG),
    (&["--mount", "--volume", "-v", "--volume-driver", "--volumes-from"], NO_VOLUMES),
    (&["--network", "--net", "--network-alias", "--net-alias"], NO_NETWORK),
    (&["--oom-score-adj"], OF_THE_HOST),
    (&["--pids-limit"], "the limit on processes is --pids N of latebind-host; in a pod a job's is --max-processes N"),
    (&["--platform"], "an image of another architecture is refused: name one of this machine's"),
    (&["--privileged"], NO_CAPABILITIES),
    (&["--pull"], "in a pod the node pulls images, by the container's imagePullPolicy"),
    (&["--quiet", "-q"], "with `--pull never` nothing is pulled, and so nothing is said of it"),
    (&["--read-only"], "a job writes into a file system of its own, which goes with it: leave it out"),
    (&["--restart"], "a command runs once; the jobs of a spool are tried again where the machine was at fault"),
    (&["--runtime"], "the runtime is the engine's own: runc, or crun"),
    (
        &["--security-opt"],
        "no_new_privs and a filter of system calls are always on; --no-seccomp of latebind-host \
                           leaves glue's filter out",
    ),
    (&["--shm-size"], OF_THE_POD),
    (&["--stop-signal"], "a command is stopped by TERM; --stop says which of its processes get it"),
    (&["--storage-opt"], "the limit on a job's files is --data-size SIZE of latebind-host; in a pod --max-disk BYTES"),
    (&["--sysctl"], OF_THE_HOST),
    (&["--tmpfs"], "/dev/shm is in memory; --data-size SIZE of latebind-host puts the job's directory there, too"),
    (&["--use-api-socket"], "no job reaches the engine"),
    (
        &["--user", "-u"],
        "a job has a user ID of its pod's own, which nothing else on the machine has: so it can touch nobody's files, \
         and can be distinguished from other jobs; its name is `payload`",
    ),
];

/// What to do in place of `option`, which is written with its dashes.
pub fn advice(option: &str) -> Option<&'static str> {
    TABLE.iter().find(|(names, _)| names.contains(&option)).map(|(_, advice)| *advice)
}

/// Options of docker that change nothing here.
#[derive(Debug, Clone, Args)]
pub struct Habits {
    /// No effect: whatever was made for a command is always removed with it.
    #[arg(long)]
    pub rm: bool,
    /// No effect: glue is the init process of every command.
    #[arg(long)]
    pub init: bool,
    /// No effect: signals are always passed on.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = ["true"])]
    #[arg(value_name = "true", hide = true)]
    pub sig_proxy: Option<String>,
}

/// Which program of an image a command is given to.
#[derive(Debug, Clone, Args)]
pub struct Program {
    /// The command is arguments of the image's ENTRYPOINT, in place of its CMD, as docker always has it.
    #[arg(long, conflicts_with = "entrypoint")]
    pub args: bool,
    /// Run this program, with the command as its arguments; empty: the command as it is.
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<OsString>,
}

/// The image (or the job), and the command, which may be empty, without the `--` that may stand between them.
pub fn image_and_command(words: &[OsString]) -> Result<(String, Vec<OsString>), String> {
    let (image, rest) = words.split_first().ok_or("no image is given")?;
    let shown = || printable(&image.to_string_lossy());
    let image = image.to_str().ok_or_else(|| format!("{}: a name is text", shown()))?;
    let command = rest.strip_prefix(&["--".into()]).unwrap_or(rest);
    Ok((image.to_owned(), command.to_vec()))
}

/// `NAME=VALUE`; a bare name has the value that it has here, if any.
pub fn variable(given: &OsStr) -> Result<(String, Option<Vec<u8>>), String> {
    let bytes = given.as_bytes();
    let (name, value) = match halves(bytes) {
        Some((name, value)) => (name, Some(value.to_vec())),
        None => (bytes, std::env::var_os(given).map(OsString::into_vec)),
    };
    match std::str::from_utf8(name) {
        Ok("") => Err(format!("--env {}: a variable has a name", printable(&given.to_string_lossy()))),
        Ok(name) => Ok((name.to_owned(), value)),
        Err(_) => Err(format!("--env {}: the name of a variable has to be UTF-8", printable(&given.to_string_lossy()))),
    }
}

#[cfg(test)]
mod tests {
    use super::{TABLE, advice};

    #[test]
    fn each_option_is_there_once_and_says_what_to_do() {
        let mut all: Vec<&str> = TABLE.iter().flat_map(|(names, _)| names.iter().copied()).collect();
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
        for (names, advice) in TABLE {
            assert!(names.iter().all(|name| name.starts_with('-')) && advice.len() > 10, "{names:?}: {advice}");
        }
        assert!(advice("--user").is_some_and(|text| text.contains("user ID")));
        assert!(advice("--no-such").is_none());
    }
}
