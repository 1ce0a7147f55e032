//! What the processes of a start tell glue: numbers of a fixed form, and nothing else.
//!
//! Stage two and the waiting child have the payload's UID, so nothing that they write goes into a record as it is. Glue checks
//! that each number is one it knows, and takes the words from its own tables and from the startup file.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use crate::contract::environment::{Problem, SyntaxError};
use crate::contract::record::{Failure, Stage};
use crate::contract::startup::Startup;
use crate::error::errno_of;
use crate::exec_failure;
use crate::names;
use crate::sys;

/// Bytes of one report: what, errno, and the numbers, little-endian. Below PIPE_BUF, so that it arrives whole.
pub const SIZE: usize = 1 + 4 + 4 * NUMBERS;

/// How many numbers a report has; what they mean depends on what is reported.
pub const NUMBERS: usize = 5;

/// Largest error number that the kernel gives (MAX_ERRNO of `linux/err.h`).
const ERRNO_MAX: i32 = 4095;

/// Longest message of a failure, in bytes: far below what a record may have.
const MESSAGE_MAX: usize = 2000;

/// What is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum What {
    /// Stage two made the child that becomes the job; the first number is its process ID.
    Child,
    /// Default dispositions, empty mask.
    Signals,
    /// Handing descriptors on, or closing the others.
    Descriptors,
    /// Supplementary groups.
    Groups,
    /// GID.
    Gid,
    /// Bounding and ambient set.
    Bounding,
    /// UID.
    Uid,
    /// Permitted, effective, inheritable set.
    Capabilities,
    /// no_new_privs.
    NoNewPrivs,
    /// What was read back is not what was set.
    ReadBack,
    /// Starting stage two.
    StageTwo,
    /// Stage two found that others of its UID could trace it.
    Dumpable,
    /// The job's part of the startup file.
    Job,
    /// Reading an environment file; its index.
    EnvFile,
    /// The content of an environment file; its index, line, column, the problem's number, the byte in the way.
    EnvSyntax,
    /// Opening the file of a standard stream; the stream.
    StreamFile,
    /// The file of a standard stream is not a regular file; the stream.
    StreamKind,
    /// Opening `/dev/null` for a standard stream; the stream.
    Null,
    /// `/dev/null` is not the null device; the stream.
    NullKind,
    /// The working directory.
    Directory,
    /// Arguments and environment in the form that the kernel wants.
    Arguments,
    /// Making the child.
    Fork,
    /// A session of the job's own.
    Session,
    /// A resource limit; its index.
    Limit,
    /// The program; see [`exec_failure`].
    Exec,
}

impl What {
    const ALL: [Self; 25] = [
        Self::Child,
        Self::Signals,
        Self::Descriptors,
        Self::Groups,
        Self::Gid,
        Self::Bounding,
        Self::Uid,
        Self::Capabilities,
        Self::NoNewPrivs,
        Self::ReadBack,
        Self::StageTwo,
        Self::Dumpable,
        Self::Job,
        Self::EnvFile,
        Self::EnvSyntax,
        Self::StreamFile,
        Self::StreamKind,
        Self::Null,
        Self::NullKind,
        Self::Directory,
        Self::Arguments,
        Self::Fork,
        Self::Session,
        Self::Limit,
        Self::Exec,
    ];
}

/// One report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it is about.
    pub what: What,
    /// The error number, 0 where there is none.
    pub errno: i32,
    /// What there is to say besides.
    pub numbers: [u32; NUMBERS],
}

impl Report {
    /// A failure without further numbers.
    pub fn of(what: What, error: &io::Error) -> Self {
        Self::at(what, 0, error)
    }

    /// A failure of the `index`th of several things.
    pub fn at(what: What, index: usize, error: &io::Error) -> Self {
        Self { what, errno: errno_of(error), numbers: [number(index), 0, 0, 0, 0] }
    }

    /// The child was made.
    pub fn child(pid: i32) -> Self {
        Self { what: What::Child, errno: 0, numbers: [u32::try_from(pid).unwrap_or(0), 0, 0, 0, 0] }
    }

    /// The `index`th environment file has this error.
    pub fn syntax(index: usize, e: &SyntaxError) -> Self {
        let numbers = [number(index), number(e.line), number(e.column), e.problem as u32, u32::from(e.byte)];
        Self { what: What::EnvSyntax, errno: 0, numbers }
    }

    /// Writes it to a pipe, by the pipe's descriptor. Allocates nothing.
    pub fn send(&self, fd: RawFd) {
        let mut bytes = [0; SIZE];
        let fields = [self.errno.to_le_bytes()].into_iter().chain(self.numbers.map(u32::to_le_bytes));
        let values = core::iter::once(self.what as u8).chain(fields.flatten());
        bytes.iter_mut().zip(values).for_each(|(to, from)| *to = from);
        // Where glue is gone, nobody misses it.
        let _ = sys::write_raw(fd, &bytes);
    }

    /// Understands what came through a pipe: exactly one report, of a known kind, with an error number that can be one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        let (what, rest) = bytes.split_first()?;
        let what = *What::ALL.get(usize::from(*what))?;
        let mut fields = rest.chunks_exact(4).filter_map(|four| four.try_into().ok());
        let errno = i32::from_le_bytes(fields.next()?);
        let mut numbers = [0; NUMBERS];
        numbers.iter_mut().zip(fields).for_each(|(to, four)| *to = u32::from_le_bytes(four));
        (0..=ERRNO_MAX).contains(&errno).then_some(Self { what, errno, numbers })
    }

    /// The failure in glue's words. `None` where a number cannot be true of this job.
    pub fn failure(&self, job: &Startup) -> Option<Failure> {
        let [first, ..] = self.numbers;
        let index = first as usize;
        let cause = Cause(self.errno);
        let at = |stage, message: core::fmt::Arguments<'_>| Some(failure(stage, self.errno, message));
        let plain = |stage, text: &str| at(stage, format_args!("{text}{cause}"));
        let stream = ["stdin", "stdout", "stderr"].get(index);
        let file = [&job.stdin, &job.stdout, &job.stderr].get(index).and_then(|s| s.as_ref()?.file.as_deref());
        let env_file = job.env_files.get(index).map(|file| file.name.as_str());
        match self.what {
            What::Child => None,
            What::Signals => plain(Stage::Startup, "signals could not be reset"),
            What::Descriptors => plain(Stage::Startup, "descriptors could not be handed on or closed"),
            What::Groups => plain(Stage::Privileges, "supplementary groups could not be set"),
            What::Gid => plain(Stage::Privileges, "the payload GID could not be set"),
            What::Bounding => plain(Stage::Privileges, "the bounding set could not be emptied"),
            What::Uid => plain(
                Stage::Privileges,
                "the payload UID could not be set: the container needs SETUID and the UID must be mapped",
            ),
            What::Capabilities => plain(Stage::Privileges, "the capabilities could not be dropped"),
            What::NoNewPrivs => plain(Stage::Privileges, "no_new_privs could not be set"),
            What::ReadBack => {
                plain(Stage::Privileges, "what was read back after the drop is not what was set: nothing was run")
            }
            What::StageTwo => plain(Stage::Startup, "stage two could not be started"),
            What::Dumpable => plain(
                Stage::Privileges,
                "stage two could be traced by others of its UID, so it ran nothing: glue's binary must not be readable \
                 by others; run `glue install`",
            ),
            What::Job => plain(Stage::Startup, "the job's part of the startup file could not be read"),
            What::EnvFile => at(Stage::Environment, format_args!("{} could not be read{cause}", env_file?)),
            What::EnvSyntax => {
                let [_, line, column, problem, byte] = self.numbers;
                let (line, column) = (line as usize, column as usize);
                let problem = Problem::of_number(problem)?;
                let error = SyntaxError { line, column, problem, byte: u8::try_from(byte).ok()? };
                at(Stage::Environment, format_args!("{}: {error}", env_file?))
            }
            What::StreamFile => {
                at(Stage::Stdio, format_args!("{}: {} beneath data/ cannot be opened{cause}", stream?, file?))
            }
            What::StreamKind => {
                at(Stage::Stdio, format_args!("{}: {} beneath data/ is not a regular file", stream?, file?))
            }
            What::Null => at(Stage::Stdio, format_args!("{}: /dev/null cannot be opened{cause}", stream?)),
            What::NullKind => at(Stage::Stdio, format_args!("{}: /dev/null is not the null device", stream?)),
            What::Directory => {
                let cwd = job.cwd.as_deref().unwrap_or("work/");
                let uid = job.uid;
                at(
                    Stage::Environment,
                    format_args!("the working directory {cwd} cannot be entered by UID {uid}{cause}"),
                )
            }
            What::Arguments => plain(Stage::Startup, "arguments and environment could not be prepared"),
            What::Fork => plain(Stage::Startup, "no process could be made for the job (pids limit?)"),
            What::Session => plain(Stage::Startup, "a session of the job's own could not be made"),
            What::Limit => {
                let (name, _) = job.rlimits.0.get(index)?;
                at(Stage::Environment, format_args!("the limit {name} cannot be set for UID {}{cause}", job.uid))
            }
            What::Exec => {
                let text = exec_failure::describe(job, &self.numbers, self.errno)?;
                at(Stage::Exec, format_args!("{text}"))
            }
        }
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The error number's text after a colon; nothing for 0.
struct Cause(i32);

impl core::fmt::Display for Cause {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            0 => Ok(()),
            errno => write!(f, ": {}", io::Error::from_raw_os_error(errno)),
        }
    }
}

/// A failure with the name of its error number. The message is cut to a length that a record can hold.
pub fn failure(stage: Stage, errno: i32, message: core::fmt::Arguments<'_>) -> Failure {
    let name = match errno {
        0 => String::new(),
        n => names::errno(n).map_or_else(|| n.to_string(), str::to_owned),
    };
    let mut message = message.to_string();
    let end = (0..=MESSAGE_MAX).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    message.truncate(end);
    Failure { stage, errno: name, message }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
