use super::*;
use latebind_contract::exec_reason::OWN_MACHINE;
use latebind_contract::words::{self, About};

/// The other one of the two architectures that glue is built for, and what is said of its programs.
const FOREIGN: (u16, &str) = match OWN_MACHINE {
    183 => (62, "built for x86_64, this node is aarch64"),
    _ => (183, "built for aarch64, this node is x86_64"),
};

/// What is said of a file with this content and mode whose exec has ended with this errno.
fn of(name: &str, bytes: &[u8], mode: u32, errno: i32) -> String {
    use std::os::unix::fs::PermissionsExt;
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    let program = path.display().to_string();
    let candidates = [CString::new(program.as_str()).unwrap()];
    let report = examine(&candidates, 0, &io::Error::from_raw_os_error(errno), &[], &[]);
    assert_eq!((report.what, report.errno), (What::Exec, errno));
    let about = About { program: &program, ..About::default() };
    words::message(&report.failure().unwrap(), &about)
}

fn elf(machine: u16) -> Vec<u8> {
    let mut bytes = vec![0; 64 + 56];
    bytes.splice(..6, *b"\x7fELF\x02\x01");
    bytes.splice(18..20, machine.to_le_bytes());
    bytes.splice(32..40, 64u64.to_le_bytes());
    bytes.splice(54..58, [56, 0, 1, 0]);
    bytes.splice(64..68, 3u32.to_le_bytes());
    bytes
}

/// A script whose first line has so many bytes.
fn long_shebang(bytes: usize) -> Vec<u8> {
    format!("#!/{}\necho\n", "x".repeat(bytes - 3)).into_bytes()
}

#[test]
fn what_is_too_long_is_found() {
    let strings = |texts: &[usize]| -> Vec<CString> {
        texts.iter().map(|n| CString::new(format!("NAME={}", "x".repeat(n - 6))).unwrap()).collect()
    };
    let max = STRING_MAX;
    let (short, long) = (strings(&[10, max]), strings(&[10, max + 1]));
    let of = |argv: &[CString], env: &[CString]| {
        let report = examine(&[], 0, &io::Error::from_raw_os_error(libc::E2BIG), argv, env);
        assert_eq!((report.what, report.numbers[1]), (What::Exec, Reason::TooLong as u32));
        [report.numbers[2], report.numbers[3], report.numbers[4]]
    };
    let bytes = number(max);
    assert_eq!(of(&long, &long), [2, 0, bytes + 1]);
    assert_eq!(of(&short, &long), [0, 4, bytes + 1]);
    assert_eq!(of(&short, &short), [0, 0, 2 * (bytes + 10)]);
}

#[test]
fn each_failure_is_told_apart() {
    let cases = [
        (of("plain", b"echo hello\n", 0o755, libc::ENOEXEC), "no shebang line"),
        (of("empty", b"", 0o755, libc::ENOEXEC), "is empty"),
        (of("binary", b"\0\x01\x02\xff", 0o755, libc::ENOEXEC), "not a program that this node knows"),
        (
            of("script", b"#! /no/such -x\n", 0o755, libc::ENOENT),
            "interpreter that its first line names does not exist",
        ),
        (of("denied", b"#!/etc\n", 0o755, libc::EIO), "interpreter that its first line names cannot be executed"),
        (of("crlf", b"#!/bin/sh\r\n", 0o755, libc::ENOENT), "end in CR LF"),
        (of("bits", b"#!/bin/sh\n", 0o644, libc::EACCES), "no execute bit (mode 644)"),
        (of("owner", b"#!/bin/sh\n", 0o755, libc::EACCES), "may not be executed by this UID (mode 755, owner 0:0)"),
        (of("foreign", &elf(FOREIGN.0), 0o755, libc::ENOEXEC), FOREIGN.1),
        (of("loader", &elf(OWN_MACHINE), 0o755, libc::ENOENT), "its loader does not exist"),
        (of("broken", &elf(OWN_MACHINE), 0o755, libc::EIO), "this ELF file cannot be executed"),
        (of("umlaut", "echo Gr\u{fc}\u{df}e\n".as_bytes(), 0o755, libc::ENOEXEC), "no shebang line"),
        (of("cut", "\u{20ac}".repeat(100).as_bytes(), 0o755, libc::ENOEXEC), "no shebang line"),
        (of("mark", b"\xef\xbb\xbf#!/bin/sh\n", 0o755, libc::ENOEXEC), "begins with a byte order mark"),
        (of("long", &long_shebang(256), 0o755, libc::ENOEXEC), "first line is longer than the 255 bytes"),
        (of("as-long", &long_shebang(255), 0o755, libc::ENOEXEC), "cannot be executed"),
        (of("capable", &elf(OWN_MACHINE), 0o755, libc::EPERM), "has file capabilities (setcap)"),
        (of("by-capable", b"#!/bin/ping\n", 0o755, libc::EPERM), "first line names has file capabilities"),
    ];
    for (said, wanted) in cases {
        assert!(said.contains(wanted), "{wanted:?}: {said}");
    }
}

#[test]
fn cut_and_broken_elf_files_do_no_harm() {
    let whole = elf(62);
    assert_eq!(has_loader(&whole), Some(true));
    for length in 0..whole.len() {
        let _ = has_loader(whole.get(..length).unwrap_or_default());
    }
    let mut broken = whole;
    broken.splice(32..40, u64::MAX.to_le_bytes());
    assert_eq!(has_loader(&broken), None);
}
