//! Why a program could not be executed: found out as the payload, from the file itself, and put into words by glue.
//!
//! The first half runs in the child after its last exec has failed, allocates nothing, and tells numbers. The second half runs in
//! glue, which does not believe that the numbers are true, only that they do no harm.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::libc;
use nix::sys::stat::{SFlag, lstat, stat};

use crate::contract::startup::{EnvMode, Startup};
use crate::report::{NUMBERS, Report, What};
use crate::sys;

/// Machine of this binary, so of this node (`e_machine` of elf(5)).
const OWN_MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

/// How much of a file is looked at.
const LOOK_AT: usize = 4096;

/// Where programs are looked for when the job's environment has no PATH; what container engines use.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is wrong with the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Reason {
    Missing,
    Unknown,
    Directory,
    NotRegular,
    NoExecuteBit,
    Denied,
    DeniedReadable,
    DosInterpreter,
    NoInterpreter,
    BadInterpreter,
    OtherMachine,
    NoLoader,
    BadElf,
    Empty,
    NoShebang,
    NotAProgram,
}

impl Reason {
    const ALL: [Self; 16] = [
        Self::Missing,
        Self::Unknown,
        Self::Directory,
        Self::NotRegular,
        Self::NoExecuteBit,
        Self::Denied,
        Self::DeniedReadable,
        Self::DosInterpreter,
        Self::NoInterpreter,
        Self::BadInterpreter,
        Self::OtherMachine,
        Self::NoLoader,
        Self::BadElf,
        Self::Empty,
        Self::NoShebang,
        Self::NotAProgram,
    ];
}

/// Why `candidates[at]` (or, for a bare name, none of them) could be executed. Allocates nothing.
pub fn examine(candidates: &[CString], at: usize, error: &io::Error) -> Report {
    let errno = error.raw_os_error().unwrap_or(0);
    // A script whose interpreter is missing answers ENOENT just as a missing file does: so the first that exists counts.
    let at = match errno {
        libc::ENOENT => candidates.iter().position(|file| lstat(file.as_c_str()).is_ok()),
        _ => Some(at),
    };
    let file = at.and_then(|at| Some((at, candidates.get(at)?)));
    let (at, reason, more) = match file {
        None => (0, Reason::Missing, [0; 3]),
        Some((at, file)) => {
            let (reason, more) = of_file(file, errno);
            (at, reason, more)
        }
    };
    let [a, b, c] = more;
    let numbers: [u32; NUMBERS] = [u32::try_from(at).unwrap_or(u32::MAX), reason as u32, a, b, c];
    Report { what: What::Exec, errno, numbers }
}

fn of_file(file: &CStr, errno: i32) -> (Reason, [u32; 3]) {
    let Ok(stat) = stat(file) else { return (Reason::Unknown, [0; 3]) };
    let mode = stat.st_mode & 0o7777;
    match stat.st_mode & SFlag::S_IFMT.bits() {
        kind if kind == SFlag::S_IFDIR.bits() => return (Reason::Directory, [0; 3]),
        kind if kind != SFlag::S_IFREG.bits() => return (Reason::NotRegular, [0; 3]),
        _ => {}
    }
    let denied = errno == libc::EACCES;
    if denied && mode & 0o111 == 0 {
        return (Reason::NoExecuteBit, [mode, 0, 0]);
    }
    let mut bytes = [0; LOOK_AT];
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let read = sys::openat(AT_FDCWD, file, flags.bits(), 0).map(|fd| read_start(fd.as_fd(), &mut bytes));
    if denied {
        let reason = if read.is_ok() { Reason::DeniedReadable } else { Reason::Denied };
        return (reason, [mode, stat.st_uid, stat.st_gid]);
    }
    match read {
        Ok(bytes) => of_content(bytes, errno),
        Err(_) => (Reason::Unknown, [0; 3]),
    }
}

/// The first bytes of a file, as many as there are and fit.
fn read_start<'a>(fd: std::os::fd::BorrowedFd<'_>, bytes: &'a mut [u8]) -> &'a [u8] {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match nix::unistd::read(fd, rest) {
            Ok(0) | Err(_) => break,
            Ok(n) => filled += n,
        }
    }
    bytes.get(..filled).unwrap_or_default()
}

/// What the first bytes of the file say.
fn of_content(bytes: &[u8], errno: i32) -> (Reason, [u32; 3]) {
    let plain = |reason| (reason, [0; 3]);
    if let Some(rest) = bytes.strip_prefix(b"#!") {
        let line = rest.split(|b| *b == b'\n').next().unwrap_or_default();
        // As the kernel reads it: a CR is part of the name, and the usual reason why a shell that is there is not found.
        let interpreter = line.split(|b| matches!(b, b' ' | b'\t')).find(|word| !word.is_empty()).unwrap_or_default();
        return plain(match errno {
            _ if interpreter.ends_with(b"\r") => Reason::DosInterpreter,
            libc::ENOENT => Reason::NoInterpreter,
            _ => Reason::BadInterpreter,
        });
    }
    if bytes.starts_with(b"\x7fELF") {
        return of_elf(bytes, errno);
    }
    if errno != libc::ENOEXEC {
        return plain(Reason::Unknown);
    }
    let text = bytes.iter().take(256).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    plain(match (bytes, text) {
        ([], _) => Reason::Empty,
        (_, true) => Reason::NoShebang,
        (_, false) => Reason::NotAProgram,
    })
}

fn of_elf(bytes: &[u8], errno: i32) -> (Reason, [u32; 3]) {
    let machine = bytes.get(18..20).and_then(|b| b.try_into().ok());
    let big_endian = bytes.get(5) == Some(&2);
    let machine = machine.map(|b| if big_endian { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) });
    match machine.filter(|m| *m != OWN_MACHINE) {
        Some(other) => (Reason::OtherMachine, [u32::from(other), 0, 0]),
        None if errno == libc::ENOENT && has_loader(bytes).unwrap_or(false) => (Reason::NoLoader, [0; 3]),
        None => (Reason::BadElf, [0; 3]),
    }
}

/// Whether a 64-bit little-endian ELF file names a loader (PT_INTERP), as far as its program headers lie in `bytes`.
fn has_loader(bytes: &[u8]) -> Option<bool> {
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?)));
    let u64_at =
        |at: usize| usize::try_from(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok();
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if bytes.get(4..6)? != [2, 1] {
        return None;
    }
    let (table, size, count) = (u64_at(32)?, u16_at(54)?, u16_at(56)?);
    for n in 0..count {
        if u32_at(table.checked_add(n.checked_mul(size)?)?)? == 3 {
            return Some(true);
        }
    }
    Some(false)
}

/// The paths to try for `program`: itself where it has a slash, else one in each entry of `path`, as execvp(3) does.
pub fn candidates<'a>(program: &'a str, path: &'a [u8]) -> impl Iterator<Item = [&'a [u8]; 3]> {
    let bare = !program.contains('/');
    let itself = (!bare).then_some([&b""[..], b"", program.as_bytes()]);
    // An empty entry is the working directory.
    let entries = bare.then(|| path.split(|b| *b == b':')).into_iter().flatten();
    let inside = entries.map(|dir| [if dir.is_empty() { b"." } else { dir }, b"/", program.as_bytes()]);
    itself.into_iter().chain(inside)
}

/// Glue's sentence on what [`examine`] has found. `None` where the numbers cannot be true.
pub fn describe(job: &Startup, numbers: &[u32; NUMBERS], errno: i32) -> Option<String> {
    let program = job.argv.first().map(String::as_str).unwrap_or_default();
    let [at, reason, a, b, c] = *numbers;
    let reason = *Reason::ALL.get(reason as usize)?;
    let path = path_of(job);
    if reason == Reason::Missing {
        return Some(match path {
            _ if program.contains('/') => format!("{program}: there is no such file in the image"),
            Some(path) => format!("{program}: not found in PATH ({})", String::from_utf8_lossy(&path)),
            None => format!("{program}: not found in PATH, which an environment file may have set"),
        });
    }
    let file = match &path {
        _ if program.contains('/') => program.to_owned(),
        Some(path) => String::from_utf8_lossy(&candidates(program, path).nth(at as usize)?.concat()).into_owned(),
        None => format!("{program} (entry {} of PATH)", at.saturating_add(1)),
    };
    let error = io::Error::from_raw_os_error(errno);
    let mode = a & 0o7777;
    let why = match reason {
        Reason::Missing | Reason::Unknown => format!("cannot be executed: {error}"),
        Reason::Directory => "is a directory, not a program".into(),
        Reason::NotRegular => "is not a regular file".into(),
        Reason::NoExecuteBit => format!("has no execute bit (mode {mode:o}): chmod +x it in the image"),
        Reason::Denied => format!("may not be executed by this UID (mode {mode:o}, owner {b}:{c})"),
        Reason::DeniedReadable => format!(
            "may not be executed by this UID (mode {mode:o}, owner {b}:{c}), or its interpreter may not, or its file \
             system is mounted noexec"
        ),
        Reason::DosInterpreter => {
            "its lines end in CR LF, and so does its interpreter's name: save it with LF alone".into()
        }
        Reason::NoInterpreter => "the interpreter that its first line names does not exist in the image".into(),
        Reason::BadInterpreter => format!("the interpreter that its first line names cannot be executed: {error}"),
        Reason::OtherMachine => {
            format!("built for {}, this node is {}", machine_name(a), machine_name(u32::from(OWN_MACHINE)))
        }
        Reason::NoLoader => "its loader does not exist in the image: it was linked for another system".into(),
        Reason::BadElf => format!("this ELF file cannot be executed: {error}"),
        Reason::Empty => "is empty".into(),
        Reason::NoShebang => {
            "has no shebang line: no shell is assumed here, so put one such as #!/bin/sh at its top".into()
        }
        Reason::NotAProgram => "is not a program that this node knows".into(),
    };
    Some(format!("{file}: {why}"))
}

/// The job's PATH, as far as glue knows it: an environment file, which glue does not read, may set another.
fn path_of(job: &Startup) -> Option<Vec<u8>> {
    let own = job.env.0.iter().rfind(|(name, _)| name == "PATH").map(|(_, path)| path.as_bytes().to_vec());
    let inherited = || {
        let all = if job.env_mode == EnvMode::Inherit { sys::environment() } else { Vec::new() };
        all.iter().rev().find_map(|variable| variable.strip_prefix(b"PATH=")).unwrap_or_default().to_vec()
    };
    let path = own.or_else(|| job.env_files.is_empty().then(inherited))?;
    Some(if path.is_empty() { DEFAULT_PATH.into() } else { path })
}

fn machine_name(machine: u32) -> String {
    let name = match machine {
        3 => "i386",
        8 => "mips",
        20 => "ppc",
        21 => "ppc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        258 => "loongarch64",
        n => return format!("machine {n}"),
    };
    name.to_owned()
}

#[cfg(test)]
#[path = "exec_failure_tests.rs"]
mod tests;
