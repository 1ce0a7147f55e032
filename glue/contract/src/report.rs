//! What the processes of a start tell glue: numbers of a fixed form, and nothing else.
//!
//! Stage two and the waiting child have the payload's UID, so nothing that they write goes into a record but numbers of
//! this form. The words for them are the watcher's ([`super::words`]).

use std::io;

use super::numbered;
use super::record::{Failure, NUMBERS, Stage};

/// Bytes of one report: what, errno, and the numbers, each in four bytes. Below PIPE_BUF, so that it arrives whole.
pub const SIZE: usize = 4 * (2 + NUMBERS);

/// Largest error number that the kernel gives (MAX_ERRNO of `linux/err.h`).
const ERRNO_MAX: i32 = 4095;

numbered! {
    /// What is reported.
    What {
        /// Stage two made the child that becomes the job; the first number is its process ID, the second one that of
        /// the job's attendant, or 0.
        Child,
        /// Default dispositions, empty mask.
        Signals,
        /// Handing descriptors on, or closing the others.
        Descriptors,
        /// Supplementary groups. These five are of earlier glues, whose numbers stay theirs: Groups, Gid, Bounding,
        /// Capabilities and NoNewPrivs. A supervisor that cannot take its rights ends without a record.
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
        /// Reading the job's part of the startup file.
        Job,
        /// The job's part of the startup file is refused; the field, by its index in `command::FIELDS`.
        Command,
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
        /// The program; see [`super::exec_reason`].
        Exec,
        /// A terminal, or handing its master on.
        Terminal,
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
        Self { what, errno: error.raw_os_error().unwrap_or(0), numbers: [number(index), 0, 0, 0, 0] }
    }

    /// The child was made.
    pub fn child(pid: i32, attendant: i32) -> Self {
        let number = |pid| u32::try_from(pid).unwrap_or(0);
        Self { what: What::Child, errno: 0, numbers: [number(pid), number(attendant), 0, 0, 0] }
    }

    /// As it is written to a pipe, number by number. Allocates nothing.
    pub fn bytes(&self) -> [[u8; 4]; 2 + NUMBERS] {
        let [a, b, c, d, e] = self.numbers;
        [self.what as u32, self.errno.unsigned_abs(), a, b, c, d, e].map(u32::to_le_bytes)
    }

    /// Understands what came through a pipe: exactly one report, of a known kind, with an error number that can be one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (fours, []) = bytes.as_chunks() else { return None };
        let fours: [[u8; 4]; 2 + NUMBERS] = fours.try_into().ok()?;
        let [what, errno, numbers @ ..] = fours.map(u32::from_le_bytes);
        let errno = i32::try_from(errno).ok().filter(|errno| *errno <= ERRNO_MAX)?;
        Some(Self { what: What::of_number(what)?, errno, numbers })
    }

    /// The failure as it goes into a record: numbers, and where it belongs. `None` for the report of a child.
    pub fn failure(&self) -> Option<Failure> {
        let stage = self.what.stage()?;
        let reported = Some((self.what as u8, self.numbers));
        Some(Failure { stage, errno: self.errno, message: String::new(), path: None, reported })
    }
}

impl What {
    /// Where a failure belongs.
    fn stage(self) -> Option<Stage> {
        Some(match self {
            Self::Child => return None,
            Self::Groups | Self::Gid | Self::Bounding | Self::Uid | Self::Capabilities => Stage::Privileges,
            Self::NoNewPrivs | Self::Filter | Self::ReadBack | Self::Dumpable => Stage::Privileges,
            Self::EnvFile | Self::EnvSyntax | Self::Directory | Self::Limit => Stage::Environment,
            Self::StreamFile | Self::StreamKind | Self::Null | Self::NullKind | Self::Terminal => Stage::Stdio,
            Self::Exec => Stage::Exec,
            _ => Stage::Startup,
        })
    }
}

/// A number as a report carries it.
pub fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
