//! Why a program could not be executed, found out from the file itself. Runs in the child, as the payload, after its
//! last exec has failed; allocates nothing, and tells numbers; `latebind_contract::words` has the words.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, lstat, stat};

use latebind_contract::exec_reason::{OWN_MACHINE, Reason, SHEBANG_MAX, STRING_MAX};
use latebind_contract::record::NUMBERS;
use latebind_contract::report::{Report, What, number};
use latebind_linux::volume::is;

/// How much of a file is looked at.
const LOOK_AT: usize = 4096;

/// Why `candidates[at]` (or, for a bare name, none of them) could be executed, with these arguments and variables.
/// Allocates nothing.
pub fn examine(candidates: &[CString], at: usize, error: &io::Error, argv: &[CString], env: &[CString]) -> Report {
    let errno = error.raw_os_error().unwrap_or(0);
    if errno == libc::E2BIG {
        let [a, b, c] = too_long(argv, env);
        return Report { what: What::Exec, errno, numbers: [number(at), Reason::TooLong as u32, a, b, c] };
    }
    // A script whose interpreter is missing answers ENOENT just as a missing file does: so the first that exists
    // counts.
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

/// The argument or variable that is longer than the kernel takes, else the length of all.
fn too_long(argv: &[CString], env: &[CString]) -> [u32; 3] {
    let size = |string: &CString| string.as_bytes_with_nul().len();
    let long = |strings: &[CString]| strings.iter().position(|string| size(string) > STRING_MAX);
    if let Some((at, argument)) = long(argv).and_then(|at| Some((at, argv.get(at)?))) {
        return [number(at.saturating_add(1)), 0, number(size(argument))];
    }
    if let Some(variable) = long(env).and_then(|at| env.get(at)) {
        let name = variable.as_bytes().iter().position(|b| *b == b'=').unwrap_or(0);
        return [0, number(name), number(size(variable))];
    }
    [0, 0, number(argv.iter().chain(env).map(size).sum())]
}

fn of_file(file: &CStr, errno: i32) -> (Reason, [u32; 3]) {
    let Ok(stat) = stat(file) else { return (Reason::Unknown, [0; 3]) };
    let mode = stat.st_mode & 0o7777;
    if is(&stat, SFlag::S_IFDIR) {
        return (Reason::Directory, [0; 3]);
    }
    if !is(&stat, SFlag::S_IFREG) {
        return (Reason::NotRegular, [0; 3]);
    }
    let denied = errno == libc::EACCES;
    if denied && mode & 0o111 == 0 {
        return (Reason::NoExecuteBit, [mode, 0, 0]);
    }
    let mut bytes = [0; LOOK_AT];
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let read = openat(AT_FDCWD, file, flags, Mode::empty()).map(|fd| read_start(fd.as_fd(), &mut bytes));
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
        // With the two bytes before it.
        if errno == libc::ENOEXEC && line.len() > SHEBANG_MAX - 2 {
            return plain(Reason::LongShebang);
        }
        // As the kernel reads it: a CR is part of the name, and the usual reason why a shell that is there is not
        // found.
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
    plain(match (bytes, is_text(bytes.get(..256).unwrap_or(bytes))) {
        ([], _) => Reason::Empty,
        ([0xef, 0xbb, 0xbf, ..], true) => Reason::ByteOrderMark,
        (_, true) => Reason::NoShebang,
        (_, false) => Reason::NotAProgram,
    })
}

/// Whether these first bytes of a file are UTF-8 without control characters; the last character may be cut.
fn is_text(bytes: &[u8]) -> bool {
    let utf8 = core::str::from_utf8(bytes).err().is_none_or(|e| e.error_len().is_none());
    utf8 && !bytes.iter().any(|b| b.is_ascii_control() && !b.is_ascii_whitespace())
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

#[cfg(test)]
#[path = "exec_failure_tests.rs"]
mod tests;
