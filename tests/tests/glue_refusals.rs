//! Each startup file that must not be run is refused, says why, and glue serves the next one.
//!
//! Where there was no key to sign with, `status.json` says so; else there is a record `not-started`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use latebind_contract::bytes::ByteString;
use latebind_contract::encoding::{base64url, sha256_hex};
use latebind_contract::layout;
use latebind_contract::record::{Failure, Outcome, Stage};
use latebind_contract::startup::{EnvFile, EnvFormat, Startup};
use latebind_tests::job::{Submitted, file_of};
use latebind_tests::slot::Slot;
use nix::sys::stat::Mode;
use serde_json::{Value, json};

/// A good startup file with one field changed. The key stays as it is, so that a record can be checked.
fn changed(slot: &Slot, field: &str, value: Value) -> (Startup, Vec<u8>) {
    let startup = slot.job(&["/probe", "write-file", "ran", "the job ran"]);
    let mut json = serde_json::to_value(&startup).unwrap();
    json[field] = value;
    let mut submitted = startup;
    // What the record says of itself is what the file says.
    if let (true, Some(name)) = (field == "job", json["job"].as_str()) {
        submitted.job = name.into();
    }
    (submitted, file_of(&json))
}

fn nothing_ran(slot: &Slot, what: &str) {
    assert!(!slot.work().join("ran").exists(), "{what}: the job ran");
    assert!(slot.ctl().join(layout::STARTUP).symlink_metadata().is_err(), "{what}: the startup file is still there");
}

/// Puts `bytes`; they must be refused in the status with `reason`, and glue must serve.
fn refused_in_status(slot: &Slot, what: &str, bytes: &[u8], reason: &str) {
    slot.put(layout::STARTUP, bytes);
    refused_as_it_stands(slot, what, &sha256_hex(bytes), reason);
}

/// The same for something that lies there already.
fn refused_as_it_stands(slot: &Slot, what: &str, sha256: &str, reason: &str) {
    slot.notify();
    let status = slot.wait_for(what, |s| s.refused.is_some());
    let refused = status.refused.unwrap();
    assert!(refused.message.contains(reason), "{what}: {}", refused.message);
    assert_eq!(refused.startup_sha256, sha256, "{what}");
    nothing_ran(slot, what);
    slot.prove_that_it_serves();
    assert_eq!(slot.status().refused, None, "{what}: the refusal is over with the next job");
}

/// Puts `bytes`; there must be a record `not-started` of the stage with `reason`, and glue must serve.
fn refused_in_record(slot: &Slot, what: &str, startup: &Startup, bytes: &[u8], stage: Stage, reason: &str) -> Failure {
    slot.put(layout::STARTUP, bytes);
    slot.notify();
    let record = slot.finish(&Submitted::new(startup, bytes)).record;
    assert_eq!(record.outcome, Outcome::NotStarted, "{what}");
    let error = record.error.unwrap_or_else(|| panic!("{what}: no error in the record"));
    assert_eq!(error.stage, stage, "{what}");
    assert!(error.message.contains(reason), "{what}: {}", error.message);
    nothing_ran(slot, what);
    slot.prove_that_it_serves();
    error
}

/// A good startup file, as text.
fn good(slot: &Slot) -> String {
    String::from_utf8(slot.job(&["/probe", "write-file", "ran", "x"]).file().unwrap()).unwrap()
}

#[test]
fn a_file_without_an_order_of_this_version_is_refused_in_the_status() {
    let slot = Slot::new("noshell");
    let good = good(&slot);
    let (first, second) = good.split_once('\n').unwrap();
    let nonce = |n: usize| json!(base64url(&vec![7; n]));
    for (what, bytes) in [
        ("an empty file", Vec::new()),
        ("no JSON", b"x\nx".to_vec()),
        ("half a file", first.as_bytes()[..first.len() / 2].to_vec()),
        ("one line", first.into()),
        ("two values", format!("{first}{first}\n{second}").into_bytes()),
        ("an array", format!("[{first}]\n{second}").into_bytes()),
        ("not UTF-8", good.bytes().map(|b| if b == b't' { 0xff } else { b }).collect()),
    ] {
        refused_in_status(&slot, what, &bytes, "");
    }
    for (what, field, value, reason) in [
        ("an unknown field", "unheard-of", json!(1), "unheard-of"),
        ("version 1", "version", json!(1), "version"),
        ("another version", "version", json!(3), "version"),
        ("a version as text", "version", json!("2"), ""),
        ("a short nonce", "nonce", nonce(31), "32 bytes"),
        ("a long nonce", "nonce", nonce(33), "32 bytes"),
        ("a short key", "key", nonce(31), "32 bytes"),
        ("no key", "key", Value::Null, ""),
        ("a negative uid", "uid", json!(-1), ""),
        ("a uid of 33 bits", "uid", json!(1_u64 << 32), ""),
        ("a group of 33 bits", "groups", json!([1_u64 << 32]), ""),
        ("a time as text", "timeout_s", json!("1"), ""),
    ] {
        refused_in_status(&slot, what, &changed(&slot, field, value).1, reason);
    }
    // What a JSON library would not write.
    let with = |from: &str, to: &str| {
        assert!(first.contains(from), "{from} is in {first}");
        format!("{}\n{second}", first.replacen(from, to, 1)).into_bytes()
    };
    for (what, bytes, reason) in [
        ("a repeated field", with("\"version\":2", "\"version\":2,\"version\":2"), "version"),
        ("a time that is not a number", with("\"timeout_s\":0.0", "\"timeout_s\":NaN"), ""),
        ("a time beyond all numbers", with("\"timeout_s\":0.0", "\"timeout_s\":1e999"), ""),
        ("a missing uid", with("\"uid\":20000,", ""), "uid"),
    ] {
        refused_in_status(&slot, what, &bytes, reason);
    }
}

/// Stage two reads the second line, as the payload: there is a key by then, so there is a record.
#[test]
fn a_command_that_cannot_be_read_is_a_record_of_stage_startup() {
    let slot = Slot::new("noshell");
    let refused = |what: &str, startup: &Startup, bytes: &[u8]| {
        let why = "command of the job's part of the startup file is refused";
        refused_in_record(&slot, what, startup, bytes, Stage::Startup, why);
    };
    for (what, field, value) in [
        ("argv as text", "argv", json!("/probe")),
        ("argv of numbers", "argv", json!([1])),
        ("an unknown mode", "env_mode", json!("keep")),
        ("an unknown field of a stream", "stdout", json!({"file": "work/x", "mode": 438})),
        ("an unknown field of a limit", "rlimits", json!({"core": {"soft": 1, "hard": 2, "max": 3}})),
        ("a negative limit", "rlimits", json!({"core": {"soft": -1, "hard": 2}})),
    ] {
        let (startup, bytes) = changed(&slot, field, value);
        refused(what, &startup, &bytes);
    }
    let limit = "\"core\":{\"soft\":1,\"hard\":1}";
    for (what, from, to) in [
        ("a repeated variable", "\"env\":{}", "\"env\":{\"A\":\"1\",\"A\":\"2\"}".to_owned()),
        ("a repeated limit", "\"rlimits\":{}", format!("\"rlimits\":{{{limit},{limit}}}")),
        ("an unknown field", "\"env\":{}", "\"env\":{},\"key\":\"x\"".to_owned()),
        ("no JSON", "\"env\":{}", "\"env\"".to_owned()),
    ] {
        let startup = slot.job(&["/probe", "write-file", "ran", "x"]);
        let file = String::from_utf8(startup.file().unwrap()).unwrap();
        assert!(file.contains(from), "{from} is in {file}");
        refused(what, &startup, file.replacen(from, &to, 1).as_bytes());
    }
    slot.put("env.a", b"A=1\n");
    let (startup, bytes) = changed(&slot, "env_files", json!([{"name": "env.a", "format": "bash"}]));
    refused("an unknown format", &startup, &bytes);
    slot.put("env.a", b"A=1\n");
    let (startup, bytes) = changed(&slot, "env_files", json!([{"name": "env.a", "format": "sh"}]));
    let without = String::from_utf8(bytes).unwrap().replace("\"env_formats\":[\"sh\"]", "\"env_formats\":[]");
    let why = "env_formats of the job's part of the startup file is refused";
    refused_in_record(&slot, "a file without a format", &startup, without.as_bytes(), Stage::Startup, why);
}

#[test]
fn a_startup_file_for_another_glue_is_refused_in_the_status() {
    let slot = Slot::new("noshell");
    for other in [json!("0".repeat(32)), json!(""), json!(slot.status().incarnation.to_uppercase() + "x")] {
        let bytes = changed(&slot, "incarnation", other).1;
        refused_in_status(&slot, "another incarnation", &bytes, "incarnation");
    }
}

#[test]
fn a_refusal_does_not_show_the_key() {
    let slot = Slot::new("noshell");
    let startup = slot.job(&["/probe"]);
    let good = String::from_utf8(startup.file().unwrap()).unwrap();
    let key = base64url(startup.key.bytes());
    for bytes in [
        good.replace(&key, &format!("{key}{key}")),
        good.replacen("\"key\":", "\"key\":1,\"key\":", 1),
        good.replacen(&key, &format!("{key}\\u0041"), 1),
    ] {
        refused_in_status(&slot, "a key that cannot be used", bytes.as_bytes(), "");
        let log = slot.log();
        assert!(!log.contains(&key[..20]), "{log}");
    }
}

#[test]
fn numbers_that_could_be_or_stay_root_never_run_anything() {
    let slot = Slot::new("noshell");
    let kill_uid = slot.status().kill_uid;
    for (field, value) in [
        ("uid", json!(0)),
        ("uid", json!(u32::MAX)),
        ("uid", json!(kill_uid)),
        ("uid", json!(20_001)),
        ("gid", json!(0)),
        ("gid", json!(u32::MAX)),
        ("gid", json!(kill_uid)),
        ("gid", json!(20_001)),
        ("groups", json!([20_000, 0])),
        ("groups", json!([u32::MAX])),
        ("groups", json!([kill_uid])),
        ("groups", json!((1..100).collect::<Vec<u32>>())),
    ] {
        let what = format!("{field} {value}");
        let (startup, bytes) = changed(&slot, field, value);
        refused_in_record(&slot, &what, &startup, &bytes, Stage::Startup, field);
    }
}

#[test]
fn fields_that_make_no_sense_are_a_record_of_stage_startup() {
    let slot = Slot::new("noshell");
    for (field, value) in [
        ("job", json!("")),
        ("job", json!("x".repeat(129))),
        ("job", json!("line\nend")),
        ("job", json!("ü")),
        ("argv", json!([])),
        ("argv", json!([""])),
        ("argv", json!(["/probe", "a\u{0}b"])),
        ("cwd", json!("work")),
        ("cwd", json!("")),
        ("cwd", json!("/a\u{0}")),
        ("cwd", json!(format!("/{}", "x".repeat(5000)))),
        ("env", json!({"": "x"})),
        ("env", json!({"A=B": "x"})),
        ("env", json!({"A": "x\u{0}"})),
        ("umask", json!("")),
        ("umask", json!("9")),
        ("umask", json!("1000")),
        ("umask", json!("-22")),
        ("umask", json!("0o22")),
        ("rlimits", json!({"files": {"soft": 1, "hard": 1}})),
        ("rlimits", json!({"NOFILE": {"soft": 1, "hard": 1}})),
        ("rlimits", json!({"nofile": {"soft": 2, "hard": 1}})),
        ("rlimits", json!({"nofile": {"soft": "unlimited", "hard": 1}})),
        ("stdin", json!({})),
        ("stdin", json!({"file": "work/a", "append": true})),
        ("stdout", json!({"file": "../ctl/record.jws"})),
        ("stdout", json!({"file": "work/../../ctl/record.jws"})),
        ("stdout", json!({"file": "/etc/passwd"})),
        ("stdout", json!({"file": ""})),
        ("stdout", json!({"file": "work/./a"})),
        ("stdout", json!({"file": "work//a"})),
        ("timeout_s", json!(-1)),
        ("timeout_s", json!(1e12)),
        ("grace_s", json!(-0.001)),
        ("grace_s", json!(1e7)),
        ("kill_s", json!(601)),
        ("links", json!({"relative": "/tmp"})),
        ("links", json!({"/a/../b": "/tmp"})),
        ("links", json!({"/shared/bin/glue": "/tmp"})),
        ("links", json!({"/shared": "/tmp"})),
        ("links", json!({"/a": ""})),
        ("links", json!([["/a", "b"], ["/c", "d"], ["/a", "e"]])),
    ] {
        let what = format!("{field} {}", value.to_string().chars().take(60).collect::<String>());
        let (startup, bytes) = changed(&slot, field, value);
        refused_in_record(&slot, &what, &startup, &bytes, Stage::Startup, field);
    }
    // Root opens the FIFO by its own name, whatever name the command has for it, and there is none.
    for (field, value) in [
        ("stdin", json!({"file": "work/a", "fifo": "in"})),
        ("stdin", json!({"fifo": "out"})),
        ("stdout", json!({"fifo": "../out"})),
        ("stderr", json!({"fifo": "err", "append": true})),
    ] {
        let (startup, bytes) = changed(&slot, field, value);
        refused_in_record(&slot, field, &startup, &bytes, Stage::Stdio, "the FIFO ");
    }
}

#[test]
fn a_startup_file_that_is_no_file_of_root_alone_is_refused_in_the_status() {
    let slot = Slot::new("noshell");
    let path = slot.ctl().join(layout::STARTUP);
    let good = good(&slot);
    let aside = slot.ctl().join("aside");
    // glue looks by itself too: what it finds in the startup file's place must be complete from the first moment.
    let write = |mode: u32, owner: u32| {
        fs::write(&aside, &good).unwrap();
        chown(&aside, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&aside, Permissions::from_mode(mode)).unwrap();
    };

    fs::write(&aside, &good).unwrap();
    symlink("aside", &path).unwrap();
    refused_as_it_stands(&slot, "a link", "", "");
    assert!(aside.exists(), "what a link points to is not touched");
    symlink("nowhere", &path).unwrap();
    refused_as_it_stands(&slot, "a link to nothing", "", "");
    fs::remove_file(&aside).unwrap();

    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    refused_as_it_stands(&slot, "a FIFO", "", "not a regular file");

    for (what, mode, owner) in [
        ("a file of the payload", 0o644, 20_000),
        ("a file that everybody may write", 0o666, 0),
        ("a file that a group may write", 0o620, 0),
    ] {
        write(mode, owner);
        fs::rename(&aside, &path).unwrap();
        refused_as_it_stands(&slot, what, "", "not root's alone");
    }

    write(0o600, 0);
    fs::hard_link(&aside, &path).unwrap();
    refused_as_it_stands(&slot, "a file with two names", "", "2 names");
    fs::remove_file(&aside).unwrap();
}

#[test]
fn a_directory_in_the_startup_files_place_is_refused_in_the_status() {
    let slot = Slot::new("noshell");
    fs::create_dir(slot.ctl().join(layout::STARTUP)).unwrap();
    refused_as_it_stands(&slot, "a directory", "", "not a regular file");
}

#[test]
fn a_startup_file_has_at_most_one_mebibyte() {
    let slot = Slot::new("noshell");
    let mut startup = slot.job(&["/probe", "exit", "0"]);
    startup.argv.push(ByteString::default());
    let empty = startup.file().unwrap().len();
    // One argument may have 128 KiB, so it is the environment file's name that fills the file: a blank is not refused
    // before.
    let padded = |size: usize| {
        let mut bytes = startup.file().unwrap();
        bytes.resize(size, b' ');
        bytes
    };
    assert!(empty < 1 << 20);
    let most = padded(1 << 20);
    slot.put(layout::STARTUP, &most);
    slot.notify();
    assert_eq!(slot.finish(&Submitted::new(&startup, &most)).record.exit_code, Some(0));
    refused_in_status_without_digest(&slot, "one byte more", &padded((1 << 20) + 1), "1048576");
}

fn refused_in_status_without_digest(slot: &Slot, what: &str, bytes: &[u8], reason: &str) {
    slot.put(layout::STARTUP, bytes);
    refused_as_it_stands(slot, what, "", reason);
}

/// A job with one environment file.
fn with_env(slot: &Slot, name: &str, format: EnvFormat) -> (Startup, Vec<u8>) {
    let mut startup = slot.job(&["/probe", "write-file", "ran", "the job ran"]);
    startup.env_files = vec![EnvFile { name: name.into(), format }];
    let bytes = startup.file().unwrap();
    (startup, bytes)
}

#[test]
fn an_environment_file_that_is_no_file_of_root_alone_is_a_record_of_stage_environment() {
    let slot = Slot::new("noshell");
    let refused = |what: &str, name: &str, reason: &str| {
        let (startup, bytes) = with_env(&slot, name, EnvFormat::Sh);
        let error = refused_in_record(&slot, what, &startup, &bytes, Stage::Environment, reason);
        assert!(error.message.contains("env_files"), "{what}: {}", error.message);
    };
    let path = slot.ctl().join("env.x");
    refused("missing", "env.x", "env.x");
    refused("another name", "record.jws", "env.");
    refused("a path", "env.x/../status.json", "env.");
    refused("a temporary name", "env.tmp", "env.");
    symlink("status.json", &path).unwrap();
    refused("a link", "env.x", "env.x");
    fs::write(&path, "A=b\n").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    refused("writable by everybody", "env.x", "not root's alone");
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    refused("a FIFO", "env.x", "not a regular file");
    slot.put("env.x", &vec![b'\n'; (1 << 20) + 1]);
    refused("more than a mebibyte", "env.x", "1048576");
}

#[test]
fn a_syntax_error_in_an_environment_file_is_named_with_file_line_and_column() {
    let slot = Slot::new("noshell");
    for (format, text, place) in [
        (EnvFormat::Sh, "A=1\nB=$(id)\n", "env.x: line 2, column 3"),
        (EnvFormat::Sh, "A=1\n\n  echo hello\n", "env.x: line 3, column 3"),
        (EnvFormat::Sh, "A='not closed\n", "env.x: line 1, column 3"),
        (EnvFormat::Sh, "A=1; B=`id`\n", "env.x: line 1, column"),
        (EnvFormat::Sh, "PATH=/evil if true\n", "env.x: line 1, column"),
        (EnvFormat::Nul, "A=1\0B\0", "env.x: line 2, column 1"),
        (EnvFormat::Nul, "=1\0", "env.x: line 1, column 1"),
    ] {
        slot.put("env.x", text.as_bytes());
        let (startup, bytes) = with_env(&slot, "env.x", format);
        refused_in_record(&slot, text, &startup, &bytes, Stage::Environment, place);
        assert!(!slot.ctl().join("env.x").exists());
    }
}

#[test]
fn an_environment_file_is_read_without_roots_rights() {
    let slot = Slot::new("busybox");
    // Names of the shell that would run something, if a shell read them.
    slot.put("env.x", b"ENV=/evil\nBASH_ENV=/evil\nLD_PRELOAD=/evil.so\nPATH=/bin\n");
    let (mut startup, _) = with_env(&slot, "env.x", EnvFormat::Sh);
    startup.argv = ["/bin/sh", "-c", "id -u; echo $LD_PRELOAD"].map(ByteString::from).to_vec();
    let finished = slot.run(&startup);
    assert_eq!(finished.out, "20000\n/evil.so\n");
}

#[test]
fn a_work_directory_that_changes_hands_during_a_job_ends_glue() {
    let slot = Slot::new("busybox");
    let submitted = slot.submit(&slot.job(&["/bin/sh", "-c", latebind_tests::slot::WAIT_FOR_GO]));
    slot.await_start(&submitted);
    chown(slot.work(), Some(20_001), Some(20_001)).unwrap();
    fs::set_permissions(slot.work(), Permissions::from_mode(0o777)).unwrap();
    slot.go();
    assert_ne!(slot.exit_code(), 0);
    assert!(slot.log().contains("data/work has got another owner"), "{}", slot.log());
}
