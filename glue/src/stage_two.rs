//! Stage two: the payload's side of the start. An ordinary process of the payload UID, without any privilege.
//!
//! It reads the environment files, sets umask, directory and streams, makes the job as its sibling (so glue's own child),
//! says its process ID, and ends. Trackers that judge a process by what it was when first seen find a job that never was root.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat, makedev};

use crate::contract::environment::{Environment, OF_ROOT, apply_nul, apply_sh};
use crate::contract::layout;
use crate::contract::record::Stage;
use crate::contract::startup::{self, Amount, EnvFormat, EnvMode, Startup, Stream, rlimit_number};
use crate::exec_failure;
use crate::stage_one::{DATA_FD, FIRST_ENV_FD, JOB_FD, REPORT_FD};
use crate::sys::{self, CStrings, Fork};
use crate::volume::open_beneath;

/// Where programs are looked for when the job's environment has no PATH; what container engines use.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Name of the payload's account where the image has none.
pub const ACCOUNT: &str = "payload";

/// Why the start failed, on its way to glue.
pub struct Failed {
    stage: Stage,
    errno: i32,
    message: String,
}

fn failed(stage: Stage, message: impl Into<String>, cause: Option<&io::Error>) -> Failed {
    let mut message = message.into();
    if let Some(cause) = cause {
        message = format!("{message}: {cause}");
    }
    Failed { stage, errno: cause.and_then(io::Error::raw_os_error).unwrap_or(0), message }
}

/// Longest message over the pipe: below PIPE_BUF, so that it arrives whole.
const MESSAGE_MAX: usize = 2000;

/// Tells glue the failure: `F`, stage, errno, text.
fn report(failed: &Failed) {
    let mut bytes = vec![b'F', failed.stage as u8];
    bytes.extend(failed.errno.to_le_bytes());
    bytes.extend(failed.message.bytes().take(MESSAGE_MAX));
    let _ = sys::write_raw(REPORT_FD, &bytes);
}

/// Runs stage two for `slot`. Returns its exit code, which nobody uses: what counts went over the pipe.
pub fn run(slot: u32) -> i32 {
    sys::close_range(JOB_FD, RawFd::MAX, true);
    match start(slot) {
        Ok(()) => 0,
        Err(failed) => {
            report(&failed);
            127
        }
    }
}

fn start(slot: u32) -> Result<(), Failed> {
    let mut text = Vec::new();
    File::from(
        sys::duplicate_above(sys::inherited(JOB_FD), 100).map_err(|e| failed(Stage::Startup, "no job", Some(&e)))?,
    )
    .read_to_end(&mut text)
    .map_err(|e| failed(Stage::Startup, "the job can not be read", Some(&e)))?;
    let job = startup::parse(&text).map_err(|e| failed(Stage::Startup, e.to_string(), None))?;
    drop(text);

    let work = layout::work(slot);
    let cwd = job.cwd.clone().unwrap_or_else(|| work.clone());
    let env = environment(&job, &work, &cwd)?;
    open_streams(&job)?;
    let mask = nix::sys::stat::Mode::from_bits_truncate(job.umask_bits().unwrap_or(0o022));
    nix::sys::stat::umask(mask);
    std::env::set_current_dir(&cwd).map_err(|e| {
        failed(
            Stage::Environment,
            format!("the working directory {cwd} can not be entered by UID {}", job.uid),
            Some(&e),
        )
    })?;
    launch(&job, &env)
}

/// The job's environment: the container's or nothing, defaults for what that leaves unset, then the files, then `env`.
fn environment(job: &Startup, work: &str, cwd: &str) -> Result<Environment, Failed> {
    let mut env = Environment::new();
    if job.env_mode == EnvMode::Inherit {
        for (name, value) in std::env::vars_os() {
            let (name, value) = (name.into_vec(), value.into_vec());
            if !OF_ROOT.iter().any(|of_root| of_root.as_bytes() == name) {
                env.set(&name, &value);
            }
        }
    }
    // Before the files, so that they can say $HOME.
    for (name, value) in [("HOME", work), ("USER", ACCOUNT), ("LOGNAME", ACCOUNT), ("TMPDIR", work), ("PWD", cwd)] {
        if env.get(name.as_bytes()).is_none() {
            env.set(name.as_bytes(), value.as_bytes());
        }
    }
    for (n, file) in (FIRST_ENV_FD..).zip(&job.env_files) {
        let at = |e: io::Error| failed(Stage::Environment, format!("{} can not be read", file.name), Some(&e));
        let mut text = Vec::new();
        File::from(sys::duplicate_above(sys::inherited(n), 100).map_err(at)?).read_to_end(&mut text).map_err(at)?;
        match file.format {
            EnvFormat::Sh => apply_sh(&mut env, &text),
            EnvFormat::Nul => apply_nul(&mut env, &text),
        }
        .map_err(|e| failed(Stage::Environment, format!("{}: {e}", file.name), None))?;
    }
    for (name, value) in &job.env.0 {
        env.set(name.as_bytes(), value.as_bytes());
    }
    Ok(env)
}

/// Puts files and `/dev/null` on 0, 1 and 2; FIFOs stand there already.
fn open_streams(job: &Startup) -> Result<(), Failed> {
    let streams = [("stdin", &job.stdin), ("stdout", &job.stdout), ("stderr", &job.stderr)];
    for (n, (name, stream)) in (0..).zip(streams) {
        let fd = match stream {
            Some(Stream { fifo: Some(_), .. }) => continue,
            Some(Stream { file: Some(file), append, .. }) => open_stream_file(name, file, n, *append)?,
            _ => {
                let flags = if n == 0 { OFlag::O_RDONLY } else { OFlag::O_WRONLY };
                let at = |e: &io::Error| failed(Stage::Stdio, format!("{name}: /dev/null can not be opened"), Some(e));
                let fd = sys::openat(nix::fcntl::AT_FDCWD, c"/dev/null", (flags | OFlag::O_CLOEXEC).bits(), 0)
                    .map_err(|e| at(&e))?;
                let stat = fstat(&fd).map_err(|e| at(&e.into()))?;
                if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFCHR.bits() || stat.st_rdev != makedev(1, 3) {
                    return Err(failed(Stage::Stdio, format!("{name}: /dev/null is not the null device"), None));
                }
                fd
            }
        };
        sys::duplicate_to(fd.as_fd(), n).map_err(|e| failed(Stage::Stdio, name, Some(&e)))?;
    }
    Ok(())
}

fn open_stream_file(name: &str, file: &str, n: RawFd, append: bool) -> Result<std::os::fd::OwnedFd, Failed> {
    let flags = match (n, append) {
        (0, _) => OFlag::O_RDONLY,
        (_, true) => OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND,
        (_, false) => OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC,
    };
    let at = |e: &io::Error| failed(Stage::Stdio, format!("{name}: {file} beneath data/ can not be opened"), Some(e));
    // O_NONBLOCK, so that a FIFO that somebody put there is an error and not a wait.
    let fd = open_beneath(sys::inherited(DATA_FD), file, flags | OFlag::O_NONBLOCK, 0o600).map_err(|e| at(&e))?;
    let kind = fstat(&fd).map_err(|e| at(&e.into()))?.st_mode & SFlag::S_IFMT.bits();
    if kind != SFlag::S_IFREG.bits() {
        return Err(failed(Stage::Stdio, format!("{name}: {file} beneath data/ is no regular file"), None));
    }
    sys::set_blocking(fd.as_fd()).map_err(|e| at(&e))?;
    Ok(fd)
}

/// Everything the job's process needs between its making and its exec, so that nothing is allocated there.
struct Ready {
    candidates: Vec<CString>,
    argv: CStrings,
    env: CStrings,
    limits: Vec<(u32, u64, u64)>,
}

fn launch(job: &Startup, env: &Environment) -> Result<(), Failed> {
    let no_nul = |_| failed(Stage::Startup, "an argument or a variable has a NUL byte", None);
    let program = job.argv.first().map(String::as_str).unwrap_or_default();
    let path = env.get(b"PATH").filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH.as_bytes()).to_vec();
    let candidates = candidates(program, &path).map_err(no_nul)?;
    let argv = job.argv.iter().map(|a| CString::new(a.as_str())).collect::<Result<_, _>>().map_err(no_nul)?;
    let variable = |(name, value): (&[u8], &[u8])| CString::new([name, b"=", value].concat());
    let variables = env.iter().map(variable).collect::<Result<_, _>>().map_err(no_nul)?;
    let bound = |amount: Amount| if let Amount::Of(n) = amount { n } else { u64::MAX };
    let limits =
        job.rlimits.0.iter().filter_map(|(name, l)| Some((rlimit_number(name)?, bound(l.soft), bound(l.hard))));
    let ready =
        Ready { candidates, argv: CStrings::new(argv), env: CStrings::new(variables), limits: limits.collect() };

    match sys::fork_as_sibling() {
        Err(e) => Err(failed(Stage::Startup, "no process could be made for the job (pids limit?)", Some(&e))),
        Ok(Fork::Parent(pid)) => {
            let mut message = Vec::from([b'P']);
            message.extend(pid.to_le_bytes());
            let mut to = File::from(
                sys::duplicate_above(sys::inherited(REPORT_FD), 100)
                    .map_err(|e| failed(Stage::Startup, "no report could be made", Some(&e)))?,
            );
            to.write_all(&message).map_err(|e| failed(Stage::Startup, "no report could be made", Some(&e)))
        }
        Ok(Fork::Child) => {
            let (denied, error) = become_job(&ready);
            let (stage, message) = match denied {
                Denied::Session => (Stage::Startup, format!("session or signals could not be set: {error}")),
                Denied::Limit(n) => {
                    let name = job.rlimits.0.get(n).map(|(name, _)| name.as_str()).unwrap_or_default();
                    (Stage::Environment, format!("the limit {name} can not be set for UID {}: {error}", job.uid))
                }
                Denied::Exec(n) => (Stage::Exec, exec_failure::explain(program, &path, &ready.candidates, n, &error)),
            };
            report(&Failed { stage, errno: error.raw_os_error().unwrap_or(0), message });
            sys::exit_now(127)
        }
    }
}

/// What the job's process could not do.
enum Denied {
    /// A session of its own, default signals.
    Session,
    /// The limit with this index.
    Limit(usize),
    /// To run the candidate with this index.
    Exec(usize),
}

/// The job's process up to its exec. Returns only what failed, and allocates nothing until then.
fn become_job(ready: &Ready) -> (Denied, io::Error) {
    if let Err(e) = sys::new_session().and_then(|()| sys::reset_signals()) {
        return (Denied::Session, e);
    }
    sys::close_range(JOB_FD, REPORT_FD - 1, false);
    sys::close_range(REPORT_FD + 1, RawFd::MAX, false);
    for (n, (number, soft, hard)) in ready.limits.iter().enumerate() {
        if let Err(e) = sys::set_rlimit(*number, *soft, *hard) {
            return (Denied::Limit(n), e);
        }
    }
    // As execvp(3) does: what is not there is passed over, what may not be run is remembered, all else ends the search.
    let mut last = (Denied::Exec(0), io::Error::from_raw_os_error(nix::libc::ENOENT));
    for (n, candidate) in ready.candidates.iter().enumerate() {
        let error = sys::exec(candidate, &ready.argv, &ready.env);
        match error.raw_os_error() {
            Some(nix::libc::ENOENT | nix::libc::ENOTDIR) => {}
            Some(nix::libc::EACCES) => last = (Denied::Exec(n), error),
            _ => return (Denied::Exec(n), error),
        }
    }
    last
}

/// The paths to try for `program`: itself where it has a slash, else one for each entry of `path`.
fn candidates(program: &str, path: &[u8]) -> Result<Vec<CString>, std::ffi::NulError> {
    if program.contains('/') {
        return Ok(vec![CString::new(program)?]);
    }
    let joined = |dir: &[u8]| {
        // An empty entry is the working directory (execvp(3)).
        let dir = if dir.is_empty() { b".".as_slice() } else { dir };
        CString::new([OsStr::from_bytes(dir).as_bytes(), b"/", program.as_bytes()].concat())
    };
    path.split(|b| *b == b':').map(joined).collect()
}
