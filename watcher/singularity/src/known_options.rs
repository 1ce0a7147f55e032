//! The options of singularity and apptainer: which are taken, and what to say of those that cannot be served.
//! `docs/htcondor.md` has the same table.

use watcher::text::printable;

/// How an option is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Alone.
    Flag,
    /// With a value.
    Valued,
}

/// Options with a value. Those that [`super::arguments`] does nothing with ask for what the container has of its own.
pub const VALUED: [&str; 14] = [
    "-B",
    "--bind",
    "-W",
    "--workdir",
    "-S",
    "--scratch",
    "--pwd",
    "--cwd",
    "-H",
    "--home",
    "--env",
    "--no-mount",
    "--hostname",
    "--network",
];

/// Options that say what is so in any case, or what a container of its own has no use for. GPUs are the pod's matter.
pub const FLAGS: [&str; 36] = [
    "-s",
    "--silent",
    "-q",
    "--quiet",
    "-d",
    "--debug",
    "-v",
    "--verbose",
    "--nocolor",
    "-c",
    "--contain",
    "-C",
    "--containall",
    "--compat",
    "-i",
    "--ipc",
    "-p",
    "--pid",
    "-u",
    "--userns",
    "--uts",
    "-n",
    "--net",
    "-e",
    "--cleanenv",
    "--nv",
    "--nvccli",
    "--rocm",
    "--no-home",
    "--no-privs",
    "--no-init",
    "--no-eval",
    "--no-umask",
    "--no-https",
    "--disable-cache",
    "--writable-tmpfs",
];

/// Options that cannot be served, and what to do instead.
pub const REFUSED: [(&str, &str); 21] = [
    ("--mount", "write it as --bind SOURCE:TARGET"),
    ("--env-file", "give the variables with --env or in the job's environment"),
    ("-o", OVERLAY),
    ("--overlay", OVERLAY),
    ("-w", WRITABLE),
    ("--writable", WRITABLE),
    ("--fusemount", "nothing can be mounted in the container; the pod's operator can mount it there"),
    ("-f", ROOT),
    ("--fakeroot", ROOT),
    ("--allow-setuid", ROOT),
    ("--keep-privs", ROOT),
    ("--add-caps", ROOT),
    ("--security", ROOT),
    ("--app", "call the app's program by its path"),
    ("--apply-cgroups", LIMITS),
    ("--cpus", LIMITS),
    ("--memory", LIMITS),
    ("--pids-limit", LIMITS),
    ("--dns", "name servers are the pod's"),
    ("--docker-login", LOGIN),
    ("--authfile", LOGIN),
];

const OVERLAY: &str = "an overlay cannot be mounted; put the files into the image or the job's sandbox";
const WRITABLE: &str = "an image cannot be changed by a job; write into the job's sandbox";
const ROOT: &str = "the job runs without root's rights, in any form";
const LIMITS: &str = "ask for processors and memory in the submit file";
const LOGIN: &str = "images are fetched with the pull secret of the pod";

/// How an option is written; or why it cannot be served.
pub fn kind(name: &str) -> Result<Kind, String> {
    if FLAGS.contains(&name) {
        return Ok(Kind::Flag);
    }
    if VALUED.contains(&name) {
        return Ok(Kind::Valued);
    }
    match REFUSED.iter().find(|(refused, _)| *refused == name) {
        Some((_, instead)) => Err(format!("the option {name} cannot be served: {instead}")),
        None => Err(format!("the option {} is not known here", printable(name))),
    }
}
