//! Why a program could not be executed, told from the file itself. Runs as the payload, after the last exec has failed.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::libc;
use nix::sys::stat::{SFlag, lstat, stat};

use crate::contract::startup::printable;
use crate::sys;
use crate::volume::read_whole;

/// Machine of this binary, so of this node (`e_machine` of elf(5)).
const OWN_MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

/// How much of a file is looked at.
const LOOK_AT: usize = 4096;

/// One sentence on why `candidates[at]` (or, for a bare name, none of them) could be executed.
pub fn explain(program: &str, path: &[u8], candidates: &[CString], at: usize, error: &io::Error) -> String {
    // A script whose interpreter is missing answers ENOENT just as a missing file does: so the first that exists counts.
    let file = match error.raw_os_error() {
        Some(libc::ENOENT) => candidates.iter().find(|file| lstat(file.as_c_str()).is_ok()),
        _ => candidates.get(at),
    };
    match file {
        Some(file) => format!("{}: {}", file.to_string_lossy(), of_file(file, error)),
        None if program.contains('/') => format!("{program}: there is no such file in the image"),
        None => format!("{program}: not found in PATH ({})", String::from_utf8_lossy(path)),
    }
}

fn of_file(file: &CStr, error: &io::Error) -> String {
    let (kind, mode, owner) = match stat(file) {
        Ok(stat) => (stat.st_mode & SFlag::S_IFMT.bits(), stat.st_mode & 0o7777, (stat.st_uid, stat.st_gid)),
        Err(e) => return format!("can not be looked at: {}", io::Error::from(e)),
    };
    if kind == SFlag::S_IFDIR.bits() {
        return "is a directory, not a program".into();
    }
    if kind != SFlag::S_IFREG.bits() {
        return "is no regular file".into();
    }
    let denied = error.raw_os_error() == Some(libc::EACCES);
    if denied && mode & 0o111 == 0 {
        return format!("has no execute bit (mode {mode:o}): chmod +x it in the image");
    }
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let bytes = sys::openat(AT_FDCWD, file, flags.bits(), 0).and_then(|fd| read_whole(fd.as_fd(), LOOK_AT));
    if denied {
        let why = match bytes {
            Err(e) => format!(": {e}"),
            Ok(_) => ", or its interpreter may not, or its file system is mounted noexec".into(),
        };
        return format!("may not be executed by this UID (mode {mode:o}, owner {}:{}){why}", owner.0, owner.1);
    }
    let known = bytes.ok().and_then(|bytes| of_content(&bytes, error));
    known.unwrap_or_else(|| format!("can not be executed: {error}"))
}

/// What the first bytes of the file say.
fn of_content(bytes: &[u8], error: &io::Error) -> Option<String> {
    if let Some(rest) = bytes.strip_prefix(b"#!") {
        let line = rest.split(|b| *b == b'\n').next().unwrap_or_default();
        // As the kernel reads it: a CR is part of the name, and the usual reason why a shell that is there is not found.
        let interpreter = line.split(|b| matches!(b, b' ' | b'\t')).find(|word| !word.is_empty()).unwrap_or_default();
        if interpreter.ends_with(b"\r") {
            return Some("its lines end in CR LF, and so does its interpreter's name: save it with LF alone".into());
        }
        let text = printable(&String::from_utf8_lossy(interpreter));
        return Some(match error.raw_os_error() {
            Some(libc::ENOENT) => format!("its interpreter {text} does not exist in the image"),
            _ => format!("its interpreter {text} can not be executed: {error}"),
        });
    }
    if bytes.starts_with(b"\x7fELF") {
        return Some(of_elf(bytes, error));
    }
    if error.raw_os_error() != Some(libc::ENOEXEC) {
        return None;
    }
    let text = bytes.iter().take(256).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    let what = match (bytes, text) {
        ([], _) => "is empty",
        (_, true) => "has no shebang line: no shell is assumed here, so put one such as #!/bin/sh at its top",
        (_, false) => "is no program that this node knows",
    };
    Some(what.into())
}

fn of_elf(bytes: &[u8], error: &io::Error) -> String {
    let machine = bytes.get(18..20).and_then(|b| b.try_into().ok());
    let big_endian = bytes.get(5) == Some(&2);
    let machine = machine.map(|b| if big_endian { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) });
    if let Some(machine) = machine.filter(|m| *m != OWN_MACHINE) {
        return format!("built for {}, this node is {}", machine_name(machine), machine_name(OWN_MACHINE));
    }
    match (error.raw_os_error(), elf_interpreter(bytes)) {
        (Some(libc::ENOENT), Some(name)) => {
            let name = printable(&String::from_utf8_lossy(name));
            format!("its loader {name} does not exist in the image: it was linked for another system")
        }
        _ => format!("this ELF file can not be executed: {error}"),
    }
}

/// PT_INTERP of a 64-bit little-endian ELF file, as far as it lies in `bytes`.
fn elf_interpreter(bytes: &[u8]) -> Option<&[u8]> {
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?)));
    let u64_at =
        |at: usize| usize::try_from(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok();
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if bytes.get(4..6)? != [2, 1] {
        return None;
    }
    let (table, size, count) = (u64_at(32)?, u16_at(54)?, u16_at(56)?);
    for n in 0..count {
        let header = table.checked_add(n.checked_mul(size)?)?;
        if u32_at(header)? == 3 {
            let (offset, length) = (u64_at(header.checked_add(8)?)?, u64_at(header.checked_add(32)?)?);
            let name = bytes.get(offset..offset.checked_add(length)?)?;
            return name.split(|b| *b == 0).next();
        }
    }
    None
}

fn machine_name(machine: u16) -> String {
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
mod tests {
    use super::*;

    fn of(name: &str, bytes: &[u8], mode: u32, errno: i32) -> String {
        use std::os::unix::fs::PermissionsExt;
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let program = path.display().to_string();
        let candidates = [CString::new(program.as_str()).unwrap_or_default()];
        explain(&program, b"", &candidates, 0, &io::Error::from_raw_os_error(errno))
    }

    fn elf(machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes.splice(..6, *b"\x7fELF\x02\x01");
        bytes.splice(18..20, machine.to_le_bytes());
        bytes.splice(32..40, 64u64.to_le_bytes());
        bytes.splice(54..58, [56, 0, 1, 0]);
        bytes.splice(64..68, 3u32.to_le_bytes());
        bytes.splice(72..80, 120u64.to_le_bytes());
        bytes.splice(96..104, 9u64.to_le_bytes());
        bytes.extend(b"/lib/ld.x\0");
        bytes
    }

    #[test]
    fn each_failure_is_told_apart() {
        let cases = [
            (of("plain", b"echo hello\n", 0o755, libc::ENOEXEC), "no shebang line"),
            (of("empty", b"", 0o755, libc::ENOEXEC), "is empty"),
            (of("binary", b"\0\x01\x02\xff", 0o755, libc::ENOEXEC), "no program that this node knows"),
            (of("script", b"#! /no/such -x\n", 0o755, libc::ENOENT), "its interpreter /no/such does not exist"),
            (of("crlf", b"#!/bin/sh\r\n", 0o755, libc::ENOENT), "end in CR LF"),
            (of("bits", b"#!/bin/sh\n", 0o644, libc::EACCES), "no execute bit"),
            (of("arm", &elf(183), 0o755, libc::ENOEXEC), "built for aarch64, this node is x86_64"),
            (of("loader", &elf(62), 0o755, libc::ENOENT), "its loader /lib/ld.x does not exist"),
        ];
        for (said, wanted) in cases {
            assert!(said.contains(wanted), "{wanted:?}: {said}");
        }
        let missing = explain("nope", b"/a:/b", &[], 0, &io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(missing, "nope: not found in PATH (/a:/b)");
    }

    #[test]
    fn cut_and_broken_elf_files_do_no_harm() {
        let whole = elf(62);
        for length in 0..whole.len() {
            let _ = elf_interpreter(whole.get(..length).unwrap_or_default());
        }
        let mut broken = whole;
        broken.splice(32..40, u64::MAX.to_le_bytes());
        assert_eq!(elf_interpreter(&broken), None);
    }
}
