use super::*;
use latebind_contract::words::{self, About};

/// What is said of a file with this content and mode whose exec has ended with this errno.
fn of(name: &str, bytes: &[u8], mode: u32, errno: i32) -> String {
    use std::os::unix::fs::PermissionsExt;
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    let program = path.display().to_string();
    let candidates = [CString::new(program.as_str()).unwrap()];
    let report = examine(&candidates, 0, &io::Error::from_raw_os_error(errno));
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
        (of("arm", &elf(183), 0o755, libc::ENOEXEC), "built for aarch64, this node is x86_64"),
        (of("loader", &elf(62), 0o755, libc::ENOENT), "its loader does not exist"),
        (of("broken", &elf(62), 0o755, libc::EIO), "this ELF file cannot be executed"),
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
