use super::*;
use crate::contract::startup::{EnvFile, EnvFormat, Object};

fn job(program: &str, env: &[(&str, &str)]) -> Startup {
    let text = r#"{"version":1,"job":"j","nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","incarnation":"i","argv":[""],"uid":1,"gid":1}"#;
    let mut job: Startup = serde_json::from_str(text).unwrap();
    job.argv = vec![program.into()];
    job.env_mode = EnvMode::Clear;
    job.env = Object(env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect());
    job
}

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
    describe(&job(&program, &[]), &report.numbers, errno).unwrap()
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

fn described(job: &Startup, at: u32, reason: Reason) -> Option<String> {
    describe(job, &[at, reason as u32, 0o644, 1, 2], libc::ENOENT)
}

#[test]
fn a_program_is_named_as_far_as_glue_knows_where_it_is() {
    let said = |at, reason, job: &Startup| described(job, at, reason).unwrap_or_default();
    let known = job("nope", &[("PATH", "/a::/b")]);
    assert_eq!(said(0, Reason::Missing, &known), "nope: not found in PATH (/a::/b)");
    assert_eq!(said(1, Reason::Directory, &known), "./nope: is a directory, not a program");
    assert_eq!(said(2, Reason::Directory, &known), "/b/nope: is a directory, not a program");
    assert_eq!(described(&known, 3, Reason::Directory), None, "PATH has three entries");
    let default = job("nope", &[]);
    assert_eq!(said(0, Reason::Missing, &default), format!("nope: not found in PATH ({DEFAULT_PATH})"));
    let mut unknown = job("nope", &[]);
    unknown.env_files = vec![EnvFile { name: "env.a".into(), format: EnvFormat::Sh }];
    assert!(said(0, Reason::Missing, &unknown).starts_with("nope: not found in PATH, which"));
    assert_eq!(said(4, Reason::Empty, &unknown), "nope (entry 5 of PATH): is empty");
    let whole = job("/x/y", &[]);
    assert_eq!(said(0, Reason::Missing, &whole), "/x/y: there is no such file in the image");
    assert_eq!(
        described(&whole, 0, Reason::NoExecuteBit).unwrap(),
        "/x/y: has no execute bit (mode 644): chmod +x it in the image"
    );
    assert_eq!(describe(&whole, &[0, Reason::ALL.len() as u32, 0, 0, 0], 0), None, "there is no such reason");
}

#[test]
fn the_table_is_in_the_order_of_the_numbers() {
    for (n, reason) in (0..).zip(Reason::ALL) {
        assert_eq!(reason as u32, n);
    }
}

#[test]
fn candidates_are_those_of_execvp() {
    let of = |program: &str, path: &str| -> Vec<String> {
        let parts: Vec<_> = candidates(program, path.as_bytes()).map(|parts| parts.concat()).collect();
        parts.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
    };
    assert_eq!(of("a/b", "/x:/y"), ["a/b"]);
    assert_eq!(of("a", "/x::/y"), ["/x/a", "./a", "/y/a"]);
    assert_eq!(of("a", ""), ["./a"]);
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
