//! Starting one job: what stage one needs is prepared here, and what comes back over the pipe is understood here.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{SFlag, fstat};

use crate::claim::Claimed;
use crate::contract::record::{Failure, Stage};
use crate::contract::startup::EnvMode;
use crate::error::{errno_of, error, refused};
use crate::names;
use crate::stage_one;
use crate::stage_one::{DATA_FD, FIRST_ENV_FD, JOB_FD, Prepared, REPORT_FD, Step};
use crate::sys::{self, CStrings, Fork};
use crate::volume::Dir;

/// Descriptors that are to be handed on wait above this number, out of the way of those that stage two gets.
pub const OUT_OF_THE_WAY: RawFd = 64;

/// A start under way.
pub struct Starting {
    /// Process ID of stage two.
    pub stage_two: i32,
    pipe: File,
    said: Vec<u8>,
}

/// What stage two and the job's process have said, once they have closed the pipe.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// Process ID of the job's main process.
    pub main: Option<i32>,
    /// Why it was not started.
    pub failure: Option<Failure>,
}

/// A failure with the name of its error number.
pub fn failure(stage: Stage, errno: i32, message: core::fmt::Arguments<'_>) -> Failure {
    let name = match errno {
        0 => String::new(),
        n => names::errno(n).map_or_else(|| n.to_string(), str::to_owned),
    };
    Failure { stage, errno: name, message: message.to_string() }
}

/// Makes stage two. `program` is our own binary, open; `slot` its argument.
pub fn begin(
    claimed: &mut Claimed,
    slot: u32,
    program: BorrowedFd<'_>,
    ctl: &Dir,
    data: &Dir,
) -> Result<Starting, Failure> {
    let at = |what: &'static str, stage: Stage| {
        move |e: io::Error| failure(stage, errno_of(&e), format_args!("{what}: {e}"))
    };
    let startup = &claimed.startup;
    let mut descriptors = Vec::new();
    let streams = [("stdin", &startup.stdin), ("stdout", &startup.stdout), ("stderr", &startup.stderr)];
    for (n, (name, stream)) in (0..).zip(streams) {
        if let Some(fifo) = stream.as_ref().and_then(|s| s.fifo.as_deref()) {
            let fd = open_stream_fifo(ctl, fifo, n == 0).map_err(at(name, Stage::Stdio))?;
            descriptors.push((fd, n));
        }
    }
    let job = memory_file(startup).map_err(at("the job can not be handed on", Stage::Startup))?;
    descriptors.push((job, JOB_FD));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let data = sys::openat(data.as_fd(), c".", flags.bits(), 0).map_err(at("data/", Stage::Startup))?;
    descriptors.push((data, DATA_FD));
    for (file, n) in claimed.env_files.drain(..).zip(FIRST_ENV_FD..) {
        descriptors.push((file.into(), n));
    }
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| at("pipe", Stage::Startup)(e.into()))?;
    let high = |fd: &OwnedFd| sys::duplicate_above(fd.as_fd(), OUT_OF_THE_WAY);
    let report = high(&write).map_err(at("pipe", Stage::Startup))?;
    descriptors.push((write, REPORT_FD));
    let moved = descriptors.iter().map(|(fd, n)| Ok((high(fd)?, *n))).collect::<io::Result<Vec<_>>>();
    drop(descriptors);
    let slot = slot.to_string();
    let argv = c_strings(&[b"glue", b"stage-two", slot.as_bytes()]).map_err(at("slot", Stage::Startup))?;
    let variables = if startup.env_mode == EnvMode::Inherit { sys::environment() } else { Vec::new() };
    let env = c_strings(&variables).map_err(at("environment", Stage::Startup))?;
    let prepared = Prepared {
        uid: startup.uid,
        gid: startup.gid,
        groups: &startup.groups,
        program,
        argv,
        env,
        descriptors: moved.map_err(at("descriptors can not be handed on", Stage::Startup))?,
        report,
    };
    match sys::fork() {
        Ok(Fork::Child) => stage_one::run(&prepared, &mut claimed.key),
        Ok(Fork::Parent(stage_two)) => Ok(Starting { stage_two, pipe: File::from(read), said: Vec::new() }),
        Err(e) => Err(at("no process could be made (pids limit?)", Stage::Startup)(e)),
    }
}

fn c_strings(texts: &[&[u8]]) -> io::Result<CStrings> {
    let mut strings = CStrings::new();
    texts.iter().try_for_each(|text| strings.push(&[text]))?;
    Ok(strings)
}

/// A FIFO for a standard stream. The watcher has to hold its other end open already.
fn open_stream_fifo(ctl: &Dir, name: &str, input: bool) -> io::Result<OwnedFd> {
    let flags = if input { OFlag::O_RDONLY } else { OFlag::O_WRONLY };
    let fd = ctl.open_beneath(name, flags | OFlag::O_NONBLOCK, 0).map_err(|e| match e.raw_os_error() {
        Some(nix::libc::ENXIO) => error(format_args!("the FIFO {name} has no reader"), &e),
        _ => error(format_args!("the FIFO {name} can not be opened"), &e),
    })?;
    let stat = fstat(&fd)?;
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFIFO.bits() || stat.st_uid != 0 {
        return Err(refused(format_args!("{name} in ctl/ is no FIFO of root")));
    }
    sys::set_blocking(fd.as_fd())?;
    Ok(fd)
}

/// The job's part of the startup file, its key wiped, in memory that has no name.
fn memory_file(startup: &crate::contract::startup::Startup) -> io::Result<OwnedFd> {
    let text = serde_json::to_vec(startup).map_err(|e| refused(format_args!("{e}")))?;
    let mut file = File::from(memfd_create(c"job", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&text)?;
    file.rewind()?;
    Ok(file.into())
}

impl Starting {
    /// The pipe, to wait for.
    pub fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads what is there. `Some` once both processes have closed the pipe: by exec or by their end.
    pub fn listen(&mut self) -> io::Result<Option<Said>> {
        let mut bytes = [0; 4096];
        let n = self.pipe.read(&mut bytes)?;
        // Nobody but our own code has the other end; the bound only keeps a mistake small.
        if n > 0 && self.said.len() < 16_384 {
            self.said.extend(bytes.get(..n).unwrap_or_default());
            return Ok(None);
        }
        Ok(Some(understand(&self.said)))
    }
}

/// Takes the messages of stage one (`E`), stage two (`P`, `F`) and the job's process (`F`) apart. The last two may have
/// written in either order.
fn understand(mut said: &[u8]) -> Said {
    let mut result = Said { main: None, failure: None };
    let number = |bytes: [u8; 4]| i32::from_le_bytes(bytes);
    loop {
        match *said {
            [b'P', a, b, c, d, ref rest @ ..] => {
                result.main = Some(number([a, b, c, d]));
                said = rest;
            }
            [b'E', step, a, b, c, d, ref rest @ ..] => {
                let (stage, message) = Step::describe(step);
                result.failure = Some(failure(stage, number([a, b, c, d]), format_args!("{message}")));
                said = rest;
            }
            [b'F', stage, a, b, c, d, low, high, ref rest @ ..] => {
                const STAGES: [Stage; 5] =
                    [Stage::Startup, Stage::Environment, Stage::Privileges, Stage::Stdio, Stage::Exec];
                let stage = STAGES.get(usize::from(stage)).copied().unwrap_or(Stage::Startup);
                let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
                let (text, rest) = rest.split_at(length);
                let message = String::from_utf8_lossy(text);
                result.failure = Some(failure(stage, number([a, b, c, d]), format_args!("{message}")));
                said = rest;
            }
            _ => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood() {
        assert_eq!(understand(b""), Said { main: None, failure: None });
        assert_eq!(understand(b"P\x07\0\0\0"), Said { main: Some(7), failure: None });
        let both = understand(b"P\x07\0\0\0F\x04\x02\0\0\0\x0c\0no such file");
        assert_eq!(both, understand(b"F\x04\x02\0\0\0\x0c\0no such fileP\x07\0\0\0"));
        assert_eq!(both.main, Some(7));
        assert_eq!(both.failure, Some(failure(Stage::Exec, 2, format_args!("no such file"))));
        assert_eq!(both.failure.map(|f| f.errno), Some("ENOENT".to_owned()));
        let early = understand(&[b'E', Step::Uid as u8, 1, 0, 0, 0]).failure;
        assert_eq!(early.map(|f| (f.stage, f.errno)), Some((Stage::Privileges, "EPERM".to_owned())));
        for cut in [&b"P\x07"[..], b"E", b"E\x01", b"F\x04\x02", b"F\x04\0\0\0\0\x01", b"x"] {
            assert_eq!(understand(cut), Said { main: None, failure: None });
        }
    }
}
