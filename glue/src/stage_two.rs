//! Stage two: the payload's side of the start. An ordinary process of the payload UID, without any privilege.
//!
//! It installs the filter of system calls, reads the environment files, sets umask, directory and streams, makes the
//! child that becomes the job, says its process ID, and ends. The child waits until the supervisor has reaped stage
//! two: no instruction of the job runs while this process is there. Trackers that judge a process by what it was when
//! first seen find a job that never was root. Where the job asks for it, an attendant stays ([`attend`]), to which
//! nothing of ours listens.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat, makedev};

use crate::prepare::OUT_OF_THE_WAY;
use crate::ready::{Limits, Ready, prepare};
use crate::start::{DATA_FD, EXEC_FD, FIRST_ENV_FD, GO_FD, JOB_FD, REPORT_FD, UNFILTERED, send};
use crate::{attend, exec_failure};
use latebind_contract::bytes::ByteString;
use latebind_contract::command::{self, Amount, Command, EnvFormat, EnvMode, FIELDS, Rlimit, Stream, rlimit_number};
use latebind_contract::environment::{
    Environment, OF_ROOT, SyntaxError, apply_docker, apply_export, apply_nul, apply_sh, halves,
};
use latebind_contract::layout;
use latebind_contract::order::Invalid;
use latebind_contract::report::{Report, What, number};
use latebind_linux::filter::FILTER;
use latebind_linux::sys::{self, Fork};
use latebind_linux::volume::{is, open_at, open_beneath, read_whole};

fn at(what: What) -> impl FnOnce(io::Error) -> Report {
    move |error| Report::of(what, &error)
}

/// The `index`th environment file has this error.
fn syntax(index: usize, e: &SyntaxError) -> Report {
    let numbers = [number(index), number(e.line), number(e.column), e.problem as u32, u32::from(e.byte)];
    Report { what: What::EnvSyntax, errno: 0, numbers }
}

/// The job's part is refused; what is said of it is the field's number.
fn refused(invalid: &Invalid) -> Report {
    let index = FIELDS.iter().position(|field| *field == invalid.field).unwrap_or(0);
    Report { what: What::Command, errno: 0, numbers: [number(index), 0, 0, 0, 0] }
}

/// Which standard streams are FIFOs, as the supervisor says it: `1` for one that is.
fn fifos(text: &str) -> [bool; 3] {
    let mut fifos = [false; 3];
    fifos.iter_mut().zip(text.bytes()).for_each(|(fifo, byte)| *fifo = byte == b'1');
    fifos
}

/// Runs stage two with the arguments of [`crate::start::begin`]. Returns its exit code: 0 where the child is made.
pub fn run(arguments: &[&str]) -> Option<i32> {
    let [slot, fifos, env_files, filter] = arguments else { return None };
    let (slot, env_files) = (slot.parse().ok()?, env_files.parse().ok()?);
    let started = confine(*filter != UNFILTERED).and_then(|()| start(slot, self::fifos(fifos), env_files));
    Some(match started {
        Ok(()) => 0,
        Err(report) => {
            send(&report, REPORT_FD);
            127
        }
    })
}

/// Before anything else: nobody else of this UID may look in here, and the filter holds for all that comes of this.
fn confine(filtered: bool) -> Result<(), Report> {
    let refused = |what| Err(Report::of(what, &io::Error::from_raw_os_error(nix::libc::EPERM)));
    // Since its exec: glue's binary can be read by root alone, so the kernel lets nobody else of this UID look in here.
    if sys::is_traceable().map_err(at(What::Dumpable))? {
        return refused(What::Dumpable);
    }
    if filtered {
        sys::install_filter(&FILTER).map_err(at(What::Filter))?; // needs no_new_privs, which the supervisor has set
        if !sys::keys_are_refused() {
            return refused(What::Filter);
        }
    }
    Ok(())
}

fn start(slot: u32, fifos: [bool; 3], env_files: usize) -> Result<(), Report> {
    sys::close_range(EXEC_FD, RawFd::MAX, true).map_err(at(What::Descriptors))?;
    let text = read_inherited(JOB_FD).map_err(at(What::Job))?;
    let job = command::parse(&text).map_err(|invalid| refused(&invalid))?;
    job.check(fifos, env_files).map_err(|invalid| refused(&invalid))?;
    drop(text);

    let work = layout::work(slot);
    let cwd = job.cwd.as_ref().map_or(work.as_bytes(), ByteString::as_bytes);
    let env = environment(&job, work.as_bytes(), cwd)?;
    match job.terminal_size() {
        Some(size) => attend::open_terminal(slot, size).map_err(at(What::Terminal))?,
        None => open_streams(&job)?,
    }
    let mask = nix::sys::stat::Mode::from_bits_truncate(job.umask_bits().unwrap_or(0o022));
    nix::sys::stat::umask(mask);
    nix::unistd::chdir(cwd).map_err(|e| at(What::Directory)(e.into()))?;
    launch(slot, &job, env)
}

/// What is in a file that the supervisor has handed on.
fn read_inherited(fd: RawFd) -> io::Result<Vec<u8>> {
    read_whole(&File::from(sys::inherited(fd).try_clone_to_owned()?))
}

/// The job's environment: the container's or nothing, defaults for what that leaves unset, then the files, then `env`.
fn environment(job: &Command, work: &[u8], cwd: &[u8]) -> Result<Environment, Report> {
    let mut env = Environment::new();
    if job.env_mode == EnvMode::Inherit {
        for variable in sys::environment() {
            if let Some((name, value)) = halves(variable)
                && !name.is_empty()
                && !OF_ROOT.iter().any(|of_root| of_root.as_bytes() == name)
            {
                env.set(name, value);
            }
        }
    }
    // Before the files, so that they can say $HOME.
    let account = layout::ACCOUNT.as_bytes();
    let defaults = [("HOME", work), ("USER", account), ("LOGNAME", account), ("TMPDIR", work), ("PWD", cwd)];
    // As docker says of a terminal.
    for (name, value) in defaults.into_iter().chain(job.terminal.map(|_| ("TERM", &b"xterm"[..]))) {
        if env.get(name.as_bytes()).is_none() {
            env.set(name.as_bytes(), value);
        }
    }
    for ((fd, format), index) in (FIRST_ENV_FD..).zip(&job.env_formats).zip(0..) {
        let text = read_inherited(fd).map_err(|e| Report::at(What::EnvFile, index, &e))?;
        match format {
            EnvFormat::Sh => apply_sh(&mut env, &text),
            EnvFormat::Nul => apply_nul(&mut env, &text),
            EnvFormat::Docker => apply_docker(&mut env, &text),
            EnvFormat::Export => apply_export(&mut env, &text),
        }
        .map_err(|e| syntax(index, &e))?;
    }
    for (name, value) in &job.env.0 {
        env.set(name.as_bytes(), value.as_bytes());
    }
    Ok(env)
}

/// Puts files and `/dev/null` on 0, 1 and 2; FIFOs are there already.
fn open_streams(job: &Command) -> Result<(), Report> {
    for (stream, n) in job.streams().into_iter().zip(0..) {
        let (opened, cannot, other_kind) = match stream {
            Some(Stream { fifo: Some(_), keep_open: true, .. }) => {
                (open_both_ends(n), What::StreamFile, What::StreamKind)
            }
            Some(Stream { fifo: Some(_), .. }) => continue,
            Some(Stream { file: Some(file), append, .. }) => {
                (open_stream_file(file, n, *append), What::StreamFile, What::StreamKind)
            }
            _ => (open_null(n), What::Null, What::NullKind),
        };
        let index = usize::try_from(n).unwrap_or(0);
        let failed = |e: io::Error| Report::at(if e.raw_os_error().is_some() { cannot } else { other_kind }, index, &e);
        opened.and_then(|fd| sys::duplicate_to(fd.as_fd(), n)).map_err(failed)?;
    }
    Ok(())
}

/// An error without an errno: the file is not of the kind that it has to be.
fn other_kind() -> io::Error {
    io::Error::from(io::ErrorKind::Unsupported)
}

fn open_null(n: RawFd) -> io::Result<OwnedFd> {
    let flags = if n == 0 { OFlag::O_RDONLY } else { OFlag::O_WRONLY };
    let fd = open_at(nix::fcntl::AT_FDCWD, "/dev/null", flags)?;
    let stat = fstat(&fd)?;
    if !is(&stat, SFlag::S_IFCHR) || stat.st_rdev != makedev(1, 3) {
        return Err(other_kind());
    }
    Ok(fd)
}

/// The FIFO at `n` for reading and writing. Where the image's /proc does not lead there, the job keeps the end it has.
fn open_both_ends(n: RawFd) -> io::Result<OwnedFd> {
    let given = sys::inherited(n);
    let path = if n == 1 { "/proc/self/fd/1" } else { "/proc/self/fd/2" };
    let both = open_at(nix::fcntl::AT_FDCWD, path, OFlag::O_RDWR);
    let one = fstat(given)?;
    let is_same = |both: &OwnedFd| fstat(both).is_ok_and(|s| (s.st_dev, s.st_ino) == (one.st_dev, one.st_ino));
    match both.ok().filter(is_same) {
        Some(both) => Ok(both),
        None => sys::duplicate_above(given, OUT_OF_THE_WAY),
    }
}

fn open_stream_file(file: &str, n: RawFd, append: bool) -> io::Result<OwnedFd> {
    let flags = match (n, append) {
        (0, _) => OFlag::O_RDONLY,
        (_, true) => OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND,
        (_, false) => OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC,
    };
    // O_NONBLOCK, so that a FIFO that somebody put there is an error and not a wait.
    let fd = open_beneath(sys::inherited(DATA_FD), file, flags | OFlag::O_NONBLOCK, 0o600)?;
    if !is(&fstat(&fd)?, SFlag::S_IFREG) {
        return Err(other_kind());
    }
    sys::set_blocking(fd.as_fd())?;
    Ok(fd)
}

/// The job's resource limits by the kernel's numbers.
fn limits(job: &Command) -> Limits {
    let bound = |amount: Amount| if let Amount::Of(n) = amount { n } else { u64::MAX };
    // A name that is not a limit was refused long before.
    let one = |(name, limit): &(String, Rlimit)| {
        (rlimit_number(name).unwrap_or(u32::MAX), bound(limit.soft), bound(limit.hard))
    };
    job.rlimits.0.iter().map(one).collect()
}

fn launch(slot: u32, job: &Command, env: Environment) -> Result<(), Report> {
    let argv: Vec<&[u8]> = job.argv.iter().map(ByteString::as_bytes).collect();
    let ready = prepare(&argv, &env, limits(job)).map_err(at(What::Arguments))?;
    match sys::fork().map_err(at(What::Fork))? {
        Fork::Parent(pid) => {
            let mut attendant = 0;
            if job.exec {
                match sys::fork().map_err(at(What::Fork))? {
                    Fork::Child => attend::serve(attend::Job { slot, main: pid, env, limits: ready.limits }),
                    Fork::Parent(pid) => attendant = pid,
                }
            }
            send(&Report::child(pid, attendant), REPORT_FD);
            Ok(())
        }
        Fork::Child => {
            let failed = become_job(&ready, job.terminal.is_some());
            send(&failed, EXEC_FD);
            sys::exit_now(127)
        }
    }
}

/// The child, up to its exec. Returns only why there was none, and allocates nothing.
fn become_job(ready: &Ready, has_terminal: bool) -> Report {
    // What is left is close-on-exec.
    if let Err(e) = sys::close_range(REPORT_FD, RawFd::MAX, false) {
        return Report::of(What::Descriptors, &e);
    }
    if let Err(e) = sys::new_session() {
        return Report::of(What::Session, &e);
    }
    if let Err(e) = sys::reset_signals() {
        return Report::of(What::Signals, &e);
    }
    if has_terminal && let Err(e) = sys::take_terminal() {
        return Report::of(What::Terminal, &e);
    }
    if let Err((index, e)) = ready.set_limits() {
        return Report::at(What::Limit, index, &e);
    }
    wait_for_supervisor();
    let (n, error) = ready.exec();
    exec_failure::examine(ready.candidates.as_slice(), n, &error, ready.argv.as_slice(), ready.env.as_slice())
}

/// Returns once the supervisor lets the program run: stage two is reaped, and the status names the job. Ends if the
/// supervisor has ended, or has given the start up.
fn wait_for_supervisor() {
    loop {
        match nix::unistd::read(sys::inherited(GO_FD), &mut [0]) {
            Ok(1) => return,
            Err(nix::errno::Errno::EINTR) => {}
            _ => sys::exit_now(127),
        }
    }
}
