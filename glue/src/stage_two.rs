//! Stage two: the payload's side of the start. An ordinary process of the payload UID, without any privilege.
//!
//! It reads the environment files, sets umask, directory and streams, makes the job as its sibling (so glue's own child),
//! says its process ID, and ends. Trackers that judge a process by what it was when first seen find a job that never was root.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat, makedev};

use crate::contract::environment::{Environment, OF_ROOT, apply_nul, apply_sh};
use crate::contract::layout;
use crate::contract::record::Stage;
use crate::contract::startup::{self, Amount, EnvFormat, EnvMode, Startup, Stream, rlimit_number};
use crate::error::{errno_of, error, refused};
use crate::exec_failure;
use crate::stage_one::{DATA_FD, FIRST_ENV_FD, JOB_FD, REPORT_FD};
use crate::sys::{self, CStrings, Fork};
use crate::volume::{open_beneath, read_whole};

/// Where programs are looked for when the job's environment has no PATH; what container engines use.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Name of the payload's account where the image has none.
pub const ACCOUNT: &str = "payload";

/// Why the start failed, on its way to glue.
struct Failed {
    stage: Stage,
    error: io::Error,
}

fn at(stage: Stage) -> impl FnOnce(io::Error) -> Failed {
    move |error| Failed { stage, error }
}

/// Longest message over the pipe: below PIPE_BUF, so that it arrives whole.
const MESSAGE_MAX: usize = 2000;

/// Tells glue the failure: `F`, stage, errno, length, text.
fn report(stage: Stage, errno: i32, message: &str) {
    let text = message.as_bytes().get(..MESSAGE_MAX).unwrap_or(message.as_bytes());
    let mut bytes = vec![b'F', stage as u8];
    bytes.extend(errno.to_le_bytes());
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text);
    let _ = sys::write_raw(REPORT_FD, &bytes);
}

/// Runs stage two for `slot`. Returns its exit code, which nobody uses: what counts went over the pipe.
pub fn run(slot: u32) -> i32 {
    sys::close_range(JOB_FD, RawFd::MAX, true);
    match start(slot) {
        Ok(()) => 0,
        Err(Failed { stage, error }) => {
            report(stage, errno_of(&error), &error.to_string());
            127
        }
    }
}

fn start(slot: u32) -> Result<(), Failed> {
    let text = read_whole(sys::inherited(JOB_FD), usize::MAX)
        .map_err(|e| at(Stage::Startup)(error(format_args!("the job can not be read"), &e)))?;
    let job = startup::parse(&text).map_err(|e| at(Stage::Startup)(refused(format_args!("{e}"))))?;
    drop(text);

    let work = layout::work(slot);
    let cwd = job.cwd.as_ref().unwrap_or(&work);
    let env = environment(&job, &work, cwd).map_err(at(Stage::Environment))?;
    open_streams(&job).map_err(at(Stage::Stdio))?;
    let mask = nix::sys::stat::Mode::from_bits_truncate(job.umask_bits().unwrap_or(0o022));
    nix::sys::stat::umask(mask);
    nix::unistd::chdir(cwd.as_str()).map_err(|e| {
        let what = format_args!("the working directory {cwd} can not be entered by UID {}", job.uid);
        at(Stage::Environment)(error(what, &e.into()))
    })?;
    launch(&job, &env)
}

/// The job's environment: the container's or nothing, defaults for what that leaves unset, then the files, then `env`.
fn environment(job: &Startup, work: &str, cwd: &str) -> io::Result<Environment> {
    let mut env = Environment::new();
    if job.env_mode == EnvMode::Inherit {
        for variable in sys::environment() {
            let mut halves = variable.splitn(2, |b| *b == b'=');
            if let (Some(name), Some(value)) = (halves.next(), halves.next())
                && !name.is_empty()
                && !OF_ROOT.iter().any(|of_root| of_root.as_bytes() == name)
            {
                env.set(name, value);
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
        let text = read_whole(sys::inherited(n), usize::MAX)
            .map_err(|e| error(format_args!("{} can not be read", file.name), &e))?;
        match file.format {
            EnvFormat::Sh => apply_sh(&mut env, &text),
            EnvFormat::Nul => apply_nul(&mut env, &text),
        }
        .map_err(|e| refused(format_args!("{}: {e}", file.name)))?;
    }
    for (name, value) in &job.env.0 {
        env.set(name.as_bytes(), value.as_bytes());
    }
    Ok(env)
}

/// Puts files and `/dev/null` on 0, 1 and 2; FIFOs stand there already.
fn open_streams(job: &Startup) -> io::Result<()> {
    let streams = [("stdin", &job.stdin), ("stdout", &job.stdout), ("stderr", &job.stderr)];
    for (n, (name, stream)) in (0..).zip(streams) {
        let put = |opened: io::Result<OwnedFd>| opened.and_then(|fd| sys::duplicate_to(fd.as_fd(), n));
        match stream {
            Some(Stream { fifo: Some(_), .. }) => Ok(()),
            Some(Stream { file: Some(file), append, .. }) => put(open_stream_file(file, n, *append))
                .map_err(|e| error(format_args!("{name}: {file} beneath data/ can not be opened"), &e)),
            _ => put(open_null(n)).map_err(|e| error(format_args!("{name}: /dev/null can not be opened"), &e)),
        }?;
    }
    Ok(())
}

fn open_null(n: RawFd) -> io::Result<OwnedFd> {
    let flags = if n == 0 { OFlag::O_RDONLY } else { OFlag::O_WRONLY };
    let fd = sys::openat(nix::fcntl::AT_FDCWD, c"/dev/null", (flags | OFlag::O_CLOEXEC).bits(), 0)?;
    let stat = fstat(&fd)?;
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFCHR.bits() || stat.st_rdev != makedev(1, 3) {
        return Err(refused(format_args!("it is not the null device")));
    }
    Ok(fd)
}

fn open_stream_file(file: &str, n: RawFd, append: bool) -> io::Result<OwnedFd> {
    let flags = match (n, append) {
        (0, _) => OFlag::O_RDONLY,
        (_, true) => OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND,
        (_, false) => OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC,
    };
    // O_NONBLOCK, so that a FIFO that somebody put there is an error and not a wait.
    let fd = open_beneath(sys::inherited(DATA_FD), file, flags | OFlag::O_NONBLOCK, 0o600)?;
    if fstat(&fd)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
        return Err(refused(format_args!("it is no regular file")));
    }
    sys::set_blocking(fd.as_fd())?;
    Ok(fd)
}

/// Everything the job's process needs between its making and its exec, so that nothing is allocated there.
struct Ready {
    candidates: CStrings,
    argv: CStrings,
    env: CStrings,
    limits: Vec<(u32, u64, u64)>,
}

fn prepare(job: &Startup, env: &Environment, program: &str, path: &[u8]) -> io::Result<Ready> {
    let (mut argv, mut variables) = (CStrings::new(), CStrings::new());
    for argument in &job.argv {
        argv.push(&[argument.as_bytes()])?;
    }
    for (name, value) in env.iter() {
        variables.push(&[name, b"=", value])?;
    }
    let mut limits = Vec::new();
    let bound = |amount: Amount| if let Amount::Of(n) = amount { n } else { u64::MAX };
    for (name, limit) in &job.rlimits.0 {
        if let Some(number) = rlimit_number(name) {
            limits.push((number, bound(limit.soft), bound(limit.hard)));
        }
    }
    Ok(Ready { candidates: candidates(program, path)?, argv, env: variables, limits })
}

fn launch(job: &Startup, env: &Environment) -> Result<(), Failed> {
    let program = job.argv.first().map(String::as_str).unwrap_or_default();
    let path = env.get(b"PATH").filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH.as_bytes());
    let ready = prepare(job, env, program, path).map_err(at(Stage::Startup))?;
    match sys::fork_as_sibling() {
        Err(e) => {
            Err(at(Stage::Startup)(error(format_args!("no process could be made for the job (pids limit?)"), &e)))
        }
        Ok(Fork::Parent(pid)) => {
            let [a, b, c, d] = pid.to_le_bytes();
            let said = sys::write_raw(REPORT_FD, &[b'P', a, b, c, d]);
            said.map(drop).map_err(|e| at(Stage::Startup)(error(format_args!("no report could be made"), &e)))
        }
        Ok(Fork::Child) => {
            let (denied, error) = become_job(&ready);
            let (stage, message) = match denied {
                Denied::Session => (Stage::Startup, format!("session or signals could not be set: {error}")),
                Denied::Limit(n) => {
                    let name = job.rlimits.0.get(n).map(|(name, _)| name.as_str()).unwrap_or_default();
                    (Stage::Environment, format!("the limit {name} can not be set for UID {}: {error}", job.uid))
                }
                Denied::Exec(n) => {
                    (Stage::Exec, exec_failure::explain(program, path, ready.candidates.as_slice(), n, &error))
                }
            };
            report(stage, errno_of(&error), &message);
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
    for (n, candidate) in ready.candidates.as_slice().iter().enumerate() {
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
fn candidates(program: &str, path: &[u8]) -> io::Result<CStrings> {
    let mut candidates = CStrings::new();
    if program.contains('/') {
        candidates.push(&[program.as_bytes()])?;
        return Ok(candidates);
    }
    for dir in path.split(|b| *b == b':') {
        // An empty entry is the working directory (execvp(3)).
        let dir = if dir.is_empty() { b"." } else { dir };
        candidates.push(&[dir, b"/", program.as_bytes()])?;
    }
    Ok(candidates)
}
