//! What the processes of a start tell glue: numbers of a fixed form, and nothing else.
//!
//! Stage two and the waiting child have the payload's UID, so nothing that they write goes into a record as it is. Glue
//! checks that each number is one it knows, and takes the words from its own tables and from the startup file.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use crate::exec_reason::{self, NUMBERS};
use crate::names;
use latebind_contract::environment::{Problem, SyntaxError};
use latebind_contract::numbered;
use latebind_contract::record::{Failure, Stage};
use latebind_contract::startup::Startup;
use latebind_linux::error::errno_of;
use latebind_linux::sys;

/// Bytes of one report: what, errno, and the numbers, little-endian. Below PIPE_BUF, so that it arrives whole.
pub const SIZE: usize = 1 + 4 + 4 * NUMBERS;

/// Largest error number that the kernel gives (MAX_ERRNO of `linux/err.h`).
const ERRNO_MAX: i32 = 4095;

/// Longest message of a failure, in bytes: far below what a record may have.
const MESSAGE_MAX: usize = 2000;

numbered! {
    /// What is reported.
    What {
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
        /// The filter of system calls.
        Filter,
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
        /// The program; see [`exec_reason`].
        Exec,
    }
}

impl What {
    /// Where a failure belongs, and what to say of it behind what it is about.
    fn words(self) -> (Stage, &'static str) {
        use Stage::{Environment, Exec, Privileges, Startup, Stdio};
        match self {
            Self::Child => (Startup, ""),
            Self::Signals => (Startup, "signals could not be reset"),
            Self::Descriptors => (Startup, "descriptors could not be handed on or closed"),
            Self::Groups => (Privileges, "supplementary groups could not be set"),
            Self::Gid => (Privileges, "the payload GID could not be set"),
            Self::Bounding => (Privileges, "the bounding set could not be emptied"),
            Self::Uid => {
                (Privileges, "the payload UID could not be set: the container needs SETUID and the UID must be mapped")
            }
            Self::Capabilities => (Privileges, "the capabilities could not be dropped"),
            Self::NoNewPrivs => (Privileges, "no_new_privs could not be set"),
            Self::Filter => (
                Privileges,
                "the filter of system calls could not be installed; `glue run --no-seccomp` does without it",
            ),
            Self::ReadBack => (Privileges, "what was read back after the drop is not what was set: nothing was run"),
            Self::StageTwo => (Startup, "stage two could not be started"),
            Self::Dumpable => (
                Privileges,
                "stage two could be traced by others of its UID, so it ran nothing: only root may be able to read glue's \
                 binary; run `glue install`",
            ),
            Self::Job => (Startup, "the job's part of the startup file could not be read"),
            Self::EnvFile => (Environment, " could not be read"),
            Self::EnvSyntax => (Environment, ": "),
            Self::StreamFile | Self::Null => (Stdio, " cannot be opened"),
            Self::StreamKind => (Stdio, " is not a regular file"),
            Self::NullKind => (Stdio, " is not the null device"),
            Self::Directory => (Environment, " cannot be entered by the payload's UID"),
            Self::Arguments => (Startup, "arguments and environment could not be prepared"),
            Self::Fork => (Startup, "no process could be made for the job (pids limit?)"),
            Self::Session => (Startup, "a session of the job's own could not be made"),
            Self::Limit => (Environment, " cannot be set for the payload's UID"),
            Self::Exec => (Exec, ""),
        }
    }

    /// What a failure is about. `None` where the job has no such thing.
    fn subject(self, index: usize, job: &Startup) -> Option<String> {
        let stream = || ["stdin", "stdout", "stderr"].get(index);
        let file = || [&job.stdin, &job.stdout, &job.stderr].get(index)?.as_ref()?.file.as_deref();
        Some(match self {
            Self::EnvFile | Self::EnvSyntax => job.env_files.get(index)?.name.clone(),
            Self::StreamFile | Self::StreamKind => format!("{}: {} beneath data/", stream()?, file()?),
            Self::Null | Self::NullKind => format!("{}: /dev/null", stream()?),
            Self::Directory => format!("the working directory {}", job.cwd.as_deref().unwrap_or("work/")),
            Self::Limit => format!("the limit {}", job.rlimits.0.get(index)?.0),
            _ => String::new(),
        })
    }
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
        let what = What::of_number(u32::from(*what))?;
        let mut fields = rest.chunks_exact(4).filter_map(|four| four.try_into().ok());
        let errno = i32::from_le_bytes(fields.next()?);
        let mut numbers = [0; NUMBERS];
        numbers.iter_mut().zip(fields).for_each(|(to, four)| *to = u32::from_le_bytes(four));
        (0..=ERRNO_MAX).contains(&errno).then_some(Self { what, errno, numbers })
    }

    /// The failure in glue's words. `None` where a number cannot be true of this job.
    pub fn failure(&self, job: &Startup) -> Option<Failure> {
        let [index, line, column, problem, byte] = self.numbers;
        let (stage, words) = self.what.words();
        let subject = self.what.subject(index as usize, job)?;
        let say =
            |more: &dyn core::fmt::Display| Some(failure(stage, self.errno, format_args!("{subject}{words}{more}")));
        match self.what {
            What::Child => None,
            What::Exec => say(&exec_reason::describe(job, &self.numbers, self.errno)?),
            What::EnvSyntax => say(&SyntaxError {
                line: line as usize,
                column: column as usize,
                problem: Problem::of_number(problem)?,
                byte: u8::try_from(byte).ok()?,
            }),
            _ if self.errno == 0 => say(&""),
            _ => say(&format_args!(": {}", io::Error::from_raw_os_error(self.errno))),
        }
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
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
