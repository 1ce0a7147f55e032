//! Each field of the startup file does what the contract says, seen by the job itself.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use latebind_contract::bytes::ByteString;
use latebind_contract::layout;
use latebind_contract::record::{Failure, Outcome, Record, Stage};
use latebind_contract::startup::{Amount, EnvFile, EnvFormat, EnvMode, Object, Rlimit, Stream};
use latebind_tests::job::{Submitted, errno_name, fifo, file, file_of, one};
use latebind_tests::scratch::Scratch;
use latebind_tests::slot::{Shape, Slot};
use latebind_tests::tracer::Tracer;
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde_json::Value;

const WORK: &str = "/shared/slot/0/data/work";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(json).collect()
}

/// What `probe env` printed.
fn variables(text: &str) -> BTreeMap<String, String> {
    let entries = text.split('\0').filter(|entry| !entry.is_empty());
    entries.map(|entry| entry.split_once('=').unwrap()).map(|(n, v)| (n.into(), v.into())).collect()
}

fn not_started(record: &Record) -> &Failure {
    assert_eq!(record.outcome, Outcome::NotStarted, "{record:?}");
    record.error.as_ref().unwrap()
}

#[test]
fn argv_reaches_the_program_word_for_word() {
    let slot = Slot::new("noshell");
    let long = "x".repeat(100_000);
    let words = [
        "/probe",
        "args",
        "",
        " ",
        "two words",
        "it's",
        "\"q\"",
        "$HOME",
        "*",
        "`id`",
        "\\n",
        "a\nb\t",
        "-c",
        "ü€😀",
        &long,
    ];
    let said = slot.run_args(&words);
    assert_eq!(said.record.exit_code, Some(0), "{}", said.err);
    assert_eq!(json(&said.out)["args"], serde_json::json!(words));
}

#[test]
fn arguments_variables_and_paths_that_are_not_text_reach_the_program_byte_for_byte() {
    let slot = Slot::new("busybox");
    let latin = b"caf\xe9";
    fs::create_dir(slot.work().join(OsStr::from_bytes(latin))).unwrap();
    let script = r#"printf %s "$1" >../argument; printf %s "$LATIN" >../variable; pwd >../directory"#;
    let mut startup = slot.job(&["/bin/sh", "-c", script, "sh"]);
    startup.argv.push(latin.into());
    startup.env = one("LATIN", latin.into());
    startup.cwd = Some([WORK.as_bytes(), b"/", latin].concat().into());
    let ran = slot.run(&startup);
    assert_eq!(ran.record.exit_code, Some(0), "{}", ran.err);
    let said = |name: &str| fs::read(slot.work().join(name)).unwrap();
    assert_eq!((said("argument"), said("variable")), (latin.to_vec(), latin.to_vec()));
    assert!(said("directory").ends_with(b"/caf\xe9\n"));
    startup = slot.job(&["x"]);
    startup.argv = vec![b"/bin/\xe9".into()];
    let record = slot.run(&startup).record;
    assert_eq!((not_started(&record).stage, errno_name(not_started(&record))), (Stage::Exec, "ENOENT".into()));
}

#[test]
fn a_program_without_a_slash_is_looked_for_in_the_jobs_path() {
    let slot = Slot::new("busybox");
    let bare = slot.run_args(&["true"]);
    assert_eq!(bare.record.exit_code, Some(0));
    let mut startup = slot.job(&["probe", "hello"]);
    startup.env = one("PATH", "/nowhere:/".into());
    assert_eq!(slot.run(&startup).record.exit_code, Some(0));
    startup = slot.job(&["true"]);
    startup.env = one("PATH", "/nowhere:/etc".into());
    let record = slot.run(&startup).record;
    let error = not_started(&record);
    assert_eq!((error.stage, errno_name(error).as_str()), (Stage::Exec, "ENOENT"));
    assert!(error.message.contains("/nowhere:/etc"), "{}", error.message);
}

#[test]
fn cwd_is_work_unless_it_is_given() {
    let slot = Slot::new("busybox");
    let cwd = |cwd: Option<&str>| {
        let mut startup = slot.job(&["/probe", "cwd"]);
        startup.cwd = cwd.map(ByteString::from);
        slot.run(&startup)
    };
    assert_eq!(json(&cwd(None).out)["cwd"], WORK);
    assert_eq!(json(&cwd(Some("/tmp")).out)["cwd"], "/tmp");
    assert_eq!(json(&cwd(Some("/bin/../usr")).out)["cwd"], "/usr");
    // /root is closed to the payload: the directory is entered after the drop.
    for (path, errno) in [("/nowhere", "ENOENT"), ("/etc/passwd", "ENOTDIR"), ("/root", "EACCES")] {
        let record = cwd(Some(path)).record;
        let error = not_started(&record);
        assert_eq!((error.stage, errno_name(error).as_str()), (Stage::Environment, errno), "{path}");
        assert!(error.message.contains(path), "{}", error.message);
    }
}

#[test]
fn env_mode_inherit_takes_the_containers_environment_but_for_roots() {
    let shape = Shape::of("busybox")
        .option("--env=FROM_THE_CONTAINER=a b")
        .option("--env=USER=root")
        .option("--env=HOME=/root");
    let slot = Slot::with(&shape);
    let has = variables(&slot.run_args(&["/probe", "env"]).out);
    assert_eq!(has["FROM_THE_CONTAINER"], "a b");
    assert_eq!(has["PATH"], "/usr/bin:/bin");
    assert_eq!((has["HOME"].as_str(), has["USER"].as_str()), (WORK, "payload"));
}

#[test]
fn env_mode_clear_starts_from_nothing_but_defaults() {
    let slot = Slot::with(&Shape::of("busybox").option("--env=FROM_THE_CONTAINER=a"));
    let mut startup = slot.job(&["/probe", "env"]);
    startup.env_mode = EnvMode::Clear;
    let has = variables(&slot.run(&startup).out);
    let names: Vec<&str> = has.keys().map(String::as_str).collect();
    assert_eq!(names, ["HOME", "LOGNAME", "PWD", "TMPDIR", "USER"]);
}

#[test]
fn home_user_logname_tmpdir_and_pwd_have_defaults_where_nothing_sets_them() {
    let slot = Slot::new("busybox");
    let mut startup = slot.job(&["/probe", "env"]);
    startup.cwd = Some("/tmp".into());
    let has = variables(&slot.run(&startup).out);
    for (name, value) in
        [("HOME", WORK), ("USER", "payload"), ("LOGNAME", "payload"), ("TMPDIR", WORK), ("PWD", "/tmp")]
    {
        assert_eq!(has[name], value, "{name}");
        startup = slot.job(&["/probe", "env"]);
        startup.env = one(name, "mine".into());
        assert_eq!(variables(&slot.run(&startup).out)[name], "mine", "{name}");
    }
}

#[test]
fn env_files_are_applied_in_their_order_and_env_last() {
    let slot = Slot::with(&Shape::of("busybox").option("--env=A=container").option("--env=B=container"));
    slot.put("env.first", b"# a comment\nA='first file'\nexport B=\"b of $A\"\nC=${UNSET:-word}\nD=$HOME/d\nE=first\n");
    slot.put("env.second", b"E=second\0NL=two\nlines\0EMPTY=\0G=second\0");
    let mut startup = slot.job(&["/probe", "env"]);
    let named = |name: &str, format| EnvFile { name: name.into(), format };
    startup.env_files = vec![named("env.first", EnvFormat::Sh), named("env.second", EnvFormat::Nul)];
    startup.env = Object(vec![("G".into(), "env".into()), ("WITH".into(), " $HOME = 'ü' ".into())]);
    let finished = slot.run(&startup);
    assert_eq!(finished.record.exit_code, Some(0), "{:?}", finished.record.error);
    let has = variables(&finished.out);
    let expected = [
        ("A", "first file"),
        ("B", "b of first file"),
        ("C", "word"),
        ("D", "/shared/slot/0/data/work/d"),
        ("E", "second"),
        ("NL", "two\nlines"),
        ("EMPTY", ""),
        ("G", "env"),
        ("WITH", " $HOME = 'ü' "),
    ];
    for (name, value) in expected {
        assert_eq!(has[name], value, "{name}");
    }
    for name in ["env.first", "env.second"] {
        assert!(!slot.ctl().join(name).exists(), "{name} may hold secrets and was for this job alone");
    }
}

#[test]
fn groups_are_exactly_those_of_the_file() {
    let slot = Slot::with(&Shape::of("noshell").option("--group-add=4711"));
    for groups in [vec![], vec![7], vec![4_000_000_000, 100, 20_000]] {
        let mut startup = slot.job(&["/probe", "status"]);
        startup.groups = groups.clone();
        let mut has: Vec<u64> = serde_json::from_value(json(&slot.run(&startup).out)["Groups"].clone()).unwrap();
        let mut wanted: Vec<u64> = groups.into_iter().map(u64::from).collect();
        has.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(has, wanted);
    }
}

#[test]
fn uid_and_gid_are_those_of_the_owner_of_work() {
    let mut slot = Slot::empty();
    assert!(slot.install(&["--slot", "0:12345:23456"]).status.success());
    slot.start(&Shape::of("noshell"));
    let status = slot.await_ready();
    assert_eq!((status.uid, status.gid), (12_345, 23_456));
    let has = json(&slot.run_args(&["/probe", "status"]).out);
    assert_eq!((&has["Uid"], &has["Gid"]), (&Value::from(vec![12_345; 4]), &Value::from(vec![23_456; 4])));
    let work = slot.work().metadata().unwrap();
    assert_eq!((work.uid(), work.gid(), work.mode() & 0o7777), (12_345, 23_456, 0o700));
}

#[test]
fn umask_is_set() {
    let slot = Slot::new("busybox");
    for (umask, mode) in [("022", 0o644), ("0", 0o666), ("0077", 0o600), ("777", 0)] {
        let mut startup = slot.job(&["/bin/sh", "-c", "rm -f made; : >made"]);
        startup.umask = umask.into();
        assert_eq!(slot.run(&startup).record.exit_code, Some(0));
        assert_eq!(slot.work().join("made").metadata().unwrap().mode() & 0o777, mode, "umask {umask}");
    }
}

#[test]
fn stdin_is_read_from_a_file() {
    let slot = Slot::new("noshell");
    fs::write(slot.data().join("input"), "what root put beside work/").unwrap();
    fs::set_permissions(slot.data().join("input"), Permissions::from_mode(0o644)).unwrap();
    let mut startup = slot.job(&["/probe", "echo-stdin"]);
    startup.stdin = file("input");
    assert_eq!(slot.run(&startup).out, "what root put beside work/");
}

#[test]
fn files_are_opened_with_the_payloads_rights_and_follow_no_link() {
    let slot = Slot::new("noshell");
    fs::write(slot.data().join("secret"), "of root").unwrap();
    fs::set_permissions(slot.data().join("secret"), Permissions::from_mode(0o600)).unwrap();
    symlink("/etc/passwd", slot.work().join("link")).unwrap();
    symlink("/tmp", slot.work().join("directory")).unwrap();
    fs::create_dir(slot.work().join("real")).unwrap();
    nix::unistd::mkfifo(&slot.work().join("pipe"), Mode::from_bits_truncate(0o666)).unwrap();
    let cases = [
        ("stdin", "secret", "EACCES"),
        ("stdin", "work/none", "ENOENT"),
        ("stdin", "work/link", "ELOOP"),
        ("stdout", "work/link", "ELOOP"),
        ("stderr", "work/directory/x", "ELOOP"),
        ("stdout", "beside-work", "EACCES"),
        ("stdout", "work/real", "EISDIR"),
        ("stdin", "work/pipe", ""),
    ];
    for (stream, path, errno) in cases {
        let mut startup = slot.job(&["/probe", "hello"]);
        match stream {
            "stdin" => startup.stdin = file(path),
            "stdout" => startup.stdout = file(path),
            _ => startup.stderr = file(path),
        }
        let record = slot.run(&startup).record;
        let error = not_started(&record);
        assert_eq!(
            (error.stage, errno_name(error).as_str()),
            (Stage::Stdio, errno),
            "{stream} {path}: {}",
            error.message
        );
        assert!(error.message.contains(stream) && error.message.contains(path), "{}", error.message);
    }
    assert_eq!(fs::read(slot.data().join("secret")).unwrap(), b"of root");
}

#[test]
fn an_output_file_is_truncated_or_appended_to() {
    let slot = Slot::new("busybox");
    let script = "echo out; echo err >&2";
    slot.run_script(script);
    fs::write(slot.work().join("stdout"), "something that is longer than what follows\n").unwrap();
    fs::write(slot.work().join("stderr"), "before\n").unwrap();
    let mut startup = slot.job(&["/bin/sh", "-c", script]);
    startup.stderr = Some(Stream { append: true, ..file("work/stderr").unwrap() });
    let finished = slot.run(&startup);
    assert_eq!((finished.out.as_str(), finished.err.as_str()), ("out\n", "before\nerr\n"));
    // Both on one file, appended to: nothing is overwritten.
    let both = Some(Stream { append: true, ..file("work/both").unwrap() });
    (startup.nonce, startup.stdout, startup.stderr) = (slot.job(&["x"]).nonce, both.clone(), both);
    slot.run(&startup);
    assert_eq!(fs::read_to_string(slot.work().join("both")).unwrap(), "out\nerr\n");
}

#[test]
fn a_stream_that_is_null_is_the_null_device() {
    let slot = Slot::new("busybox");
    let mut startup = slot.job(&["/bin/sh", "-c", "cat; /probe fds >fds; echo gone; echo gone >&2"]);
    (startup.stdout, startup.stderr) = (None, None);
    assert_eq!(slot.run(&startup).record.exit_code, Some(0));
    let fds = lines(&fs::read_to_string(slot.work().join("fds")).unwrap());
    let target = |n: usize| fds[n]["target"].clone();
    assert_eq!((target(0), target(2)), ("/dev/null".into(), "/dev/null".into()));
}

/// Opens a FIFO of `ctl/` as a watcher does; created again.
fn made_fifo(slot: &Slot, name: &str) -> File {
    let path = slot.ctl().join(name);
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap()
}

/// Reads until `wanted` bytes are there.
fn relayed(mut from: &File, wanted: usize) -> String {
    let mut text = Vec::new();
    while text.len() < wanted {
        assert!(
            poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], 10_000u16).unwrap() > 0,
            "only {text:?} came"
        );
        let mut bytes = [0; 4096];
        let n = from.read(&mut bytes).unwrap();
        text.extend_from_slice(&bytes[..n]);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn streams_are_relayed_through_fifos() {
    let slot = Slot::new("busybox");
    let (input, out, err) = (made_fifo(&slot, "in"), made_fifo(&slot, "out"), made_fifo(&slot, "err"));
    let mut startup = slot.job(&["/bin/sh", "-c", "read line; echo \"out: $line\"; echo err >&2"]);
    (startup.stdin, startup.stdout, startup.stderr) = (fifo("in"), fifo("out"), fifo("err"));
    let submitted = slot.submit(&startup);
    slot.await_start(&submitted);
    (&input).write_all(b"typed\n").unwrap();
    assert_eq!(slot.finish(&submitted).record.exit_code, Some(0));
    assert_eq!(relayed(&out, 11), "out: typed\n");
    assert_eq!(relayed(&err, 4), "err\n");
}

#[test]
fn whoever_writes_to_a_job_that_has_closed_its_input_learns_of_it_at_once() {
    let slot = Slot::new("busybox");
    let (both, out) = (made_fifo(&slot, "in"), made_fifo(&slot, "out"));
    let mut startup = slot.job(&["/bin/sh", "-c", "read line; exec <&-; echo closed; exec sleep 1000"]);
    (startup.stdin, startup.stdout) = (fifo("in"), fifo("out"));
    let submitted = slot.submit(&startup);
    slot.await_start(&submitted);
    let mut input = fs::OpenOptions::new().write(true).open(slot.ctl().join("in")).unwrap();
    drop(both);
    input.write_all(b"go on\n").unwrap();
    assert_eq!(relayed(&out, 7), "closed\n");
    assert_eq!(input.write(b"more").map_err(|e| e.raw_os_error()), Err(Some(nix::libc::EPIPE)));
    slot.signal(Signal::SIGTERM);
    assert_eq!(slot.finish(&submitted).record.outcome, Outcome::Stopped);
}

#[test]
fn a_fifo_blocks_the_job_and_not_glue() {
    let slot = Slot::new("busybox");
    let out = made_fifo(&slot, "out");
    let mut startup = slot.job(&["/bin/sh", "-c", "head -c 1000000 /dev/zero"]);
    (startup.stdout, startup.timeout_s) = (fifo("out"), 0.5);
    let submitted = slot.submit(&startup);
    let record = slot.finish(&submitted).record;
    assert_eq!(record.outcome, Outcome::TimedOut);
    drop(out);
}

#[test]
fn a_fifo_that_is_missing_or_no_fifo_or_without_a_reader_is_an_error_of_stdio() {
    let slot = Slot::new("noshell");
    let run = || {
        let mut startup = slot.job(&["/probe", "hello"]);
        startup.stdout = fifo("out");
        let record = slot.run(&startup).record;
        let error = not_started(&record).clone();
        assert_eq!(error.stage, Stage::Stdio);
        error
    };
    assert_eq!(errno_name(&run()), "ENOENT");
    nix::unistd::mkfifo(&slot.ctl().join("out"), Mode::from_bits_truncate(0o600)).unwrap();
    let unread = run();
    assert_eq!(errno_name(&unread), "ENXIO");
    assert!(unread.message.contains("no reader"), "{}", unread.message);
    fs::remove_file(slot.ctl().join("out")).unwrap();
    slot.put("out", b"a file");
    assert!(run().message.contains("not a FIFO"));
}

#[test]
fn rlimits_are_set_by_their_linux_names() {
    let slot = Slot::new("noshell");
    let limit = |soft, hard| Rlimit { soft: Amount::Of(soft), hard: Amount::Of(hard) };
    let wanted = [
        ("core", limit(0, 0)),
        ("cpu", limit(100, 200)),
        ("fsize", limit(1 << 30, 1 << 31)),
        ("nofile", limit(50, 60)),
        ("nproc", limit(100, 110)),
        ("stack", Rlimit { soft: Amount::Of(1 << 20), hard: Amount::Unlimited }),
        ("as", Rlimit { soft: Amount::Unlimited, hard: Amount::Unlimited }),
        ("msgqueue", limit(1000, 1001)),
        ("rttime", limit(5, 6)),
    ];
    let mut startup = slot.job(&["/probe", "limits"]);
    startup.rlimits = Object(wanted.iter().map(|(name, limit)| ((*name).into(), *limit)).collect());
    let finished = slot.run(&startup);
    assert_eq!(finished.record.exit_code, Some(0), "{:?}", finished.record.error);
    let has = json(&finished.out);
    let shown = |amount: Amount| if let Amount::Of(n) = amount { Value::from(n) } else { Value::Null };
    for (name, limit) in wanted {
        assert_eq!((&has[name]["soft"], &has[name]["hard"]), (&shown(limit.soft), &shown(limit.hard)), "{name}");
    }
}

#[test]
fn a_limit_above_the_containers_is_an_error_that_names_it() {
    let slot = Slot::new("noshell");
    let has = json(&slot.run_args(&["/probe", "limits"]).out);
    let hard = has["nofile"]["hard"].as_u64().unwrap();
    let mut startup = slot.job(&["/probe", "limits"]);
    startup.rlimits = one("nofile", Rlimit { soft: Amount::Of(100), hard: Amount::Of(hard + 1) });
    let record = slot.run(&startup).record;
    let error = not_started(&record);
    assert_eq!((error.stage, errno_name(error).as_str()), (Stage::Environment, "EPERM"));
    assert!(error.message.contains("nofile"), "{}", error.message);
}

fn in_root(slot: &Slot, path: &str) -> std::path::PathBuf {
    Path::new(&format!("/proc/{}/root", slot.glue())).join(path.trim_start_matches('/'))
}

#[test]
fn links_are_there_while_the_job_runs_and_gone_afterwards() {
    let slot = Slot::new("busybox");
    let mut startup = slot.job(&["/bin/sh", "-c", "readlink /var/there; readlink /etc/here; cat /var/there/made"]);
    startup.links = Object(vec![("/var/there".into(), WORK.into()), ("/etc/here".into(), "some where".into())]);
    fs::write(slot.work().join("made"), "through the link\n").unwrap();
    let finished = slot.run(&startup);
    assert_eq!(finished.out, format!("{WORK}\nsome where\nthrough the link\n"));
    for path in ["/var/there", "/etc/here"] {
        assert!(in_root(&slot, path).symlink_metadata().is_err(), "{path} is still there");
    }
}

#[test]
fn a_link_is_made_at_the_top_of_a_container_too() {
    let slot = Slot::new("busybox");
    let mode = || in_root(&slot, "/").metadata().unwrap().mode() & 0o7777;
    let before = mode();
    let mut startup = slot.job(&["/bin/sh", "-c", "readlink /target; touch /x || echo closed"]);
    startup.links = one("/target", WORK.into());
    assert_eq!(slot.run(&startup).out, format!("{WORK}\nclosed\n"));
    assert!(in_root(&slot, "/target").symlink_metadata().is_err());
    assert_eq!(mode(), before);
}

#[test]
fn a_link_takes_the_place_of_what_is_there_until_the_job_is_over() {
    let slot = Slot::new("busybox");
    let entries = || {
        let listed = |path: &str| {
            let entries = fs::read_dir(in_root(&slot, path)).unwrap().map(|entry| entry.unwrap());
            let mut all: Vec<_> = entries
                .map(|entry| (entry.file_name(), entry.metadata().unwrap()))
                .map(|(name, about)| (name, about.mode(), about.uid()))
                .collect();
            all.sort();
            all
        };
        (listed("/"), listed("/etc"), fs::read(in_root(&slot, "/etc/passwd")).unwrap())
    };
    let before = entries();
    assert!(in_root(&slot, "/tmp").metadata().unwrap().is_dir());
    // A file, an empty directory of the image, and what has missing parents, one of which the other needs too.
    let paths = ["/etc/passwd", "/tmp", "/nowhere/a/b", "/nowhere/c"];
    for _ in 0..2 {
        let script = "for f; do readlink $f; done; echo x >/tmp/made; touch /nowhere/x || echo closed";
        let mut startup = slot.job(&["/bin/sh", "-c", script, "sh"]);
        startup.argv.extend(paths.map(ByteString::from));
        startup.links = Object(paths.map(|path| (path.into(), WORK.into())).to_vec());
        let finished = slot.run(&startup);
        assert_eq!(finished.out, format!("{}closed\n", format!("{WORK}\n").repeat(4)), "{:?}", finished.record.error);
        assert_eq!(fs::read_to_string(slot.work().join("made")).unwrap(), "x\n");
        assert_eq!(entries(), before);
    }
}

#[test]
fn a_link_that_cannot_be_made_says_why_and_changes_nothing() {
    let slot = Slot::new("busybox");
    for (path, errno, why) in [
        ("/bin", "ENOTEMPTY", "name another path"),
        ("/proc", "EBUSY", "mount point"),
        ("/dev/shm", "EXDEV", "mount point"),
        ("/sys/x", "EXDEV", "mount point"),
        ("/bin/ls/x", "ENOTDIR", "a link or a file"),
        ("/etc/first/x", "ENOTDIR", "a link or a file"),
    ] {
        let mut startup = slot.job(&["/probe", "hello"]);
        let first = [("/etc/first", "/tmp"), ("/etc/group", "/tmp"), ("/new/dir/x", "/tmp"), (path, "/tmp")];
        startup.links = Object(first.map(|(path, target)| (path.into(), target.into())).to_vec());
        let record = slot.run(&startup).record;
        let error = not_started(&record);
        assert_eq!((error.stage, errno_name(error).as_str()), (Stage::Startup, errno), "{path}: {}", error.message);
        assert!(error.message.contains(path) && error.message.contains(why), "{}", error.message);
        let is_there = |path: &str| in_root(&slot, path).symlink_metadata().is_ok();
        assert!(!is_there("/etc/first") && !is_there("/new"), "what was made before is gone");
        assert!(in_root(&slot, "/etc/group").symlink_metadata().unwrap().is_file(), "and what was moved is back");
    }
}

#[test]
fn what_was_changed_for_a_link_is_undone_whatever_failed_after_it() {
    let slot = Slot::new("busybox");
    let scratch = Scratch::new();
    // The top of a container is closed to root itself: opened, changed, and then closed again, which fails.
    let inject = ["--inject=fchmod:error=EIO:when=2"];
    let tracer = Tracer::attach(slot.glue(), &inject, &scratch.path().join("strace")).unwrap();
    let mut startup = slot.job(&["/probe", "hello"]);
    startup.links = one("/new/link", "/tmp".into());
    let record = slot.run(&startup).record;
    tracer.detach().unwrap();
    let error = not_started(&record);
    assert_eq!((error.stage, errno_name(error).as_str()), (Stage::Startup, "EIO"), "{}", error.message);
    assert!(in_root(&slot, "/new").symlink_metadata().is_err(), "it was made, and has to go");
    slot.prove_that_it_serves();
}

#[test]
fn an_account_file_that_is_too_long_is_a_warning_in_the_record() {
    let slot = Slot::new("busybox");
    let before = fs::read(in_root(&slot, "/etc/passwd")).unwrap();
    // The line that is looked for may be anywhere.
    let long = [before, vec![b'#'; 1 << 20], b"\npayload:x:20000:20000::/:/bin/sh\n".to_vec()].concat();
    fs::write(in_root(&slot, "/etc/passwd"), &long).unwrap();
    let mut startup = slot.job(&["/probe", "hello"]);
    startup.passwd = true;
    let record = slot.run(&startup).record;
    assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(0)));
    assert!(matches!(record.warnings.as_slice(), [one] if one.contains("/etc/passwd") && one.contains("more than")));
    assert_eq!(fs::read(in_root(&slot, "/etc/passwd")).unwrap(), long);
}

#[test]
fn passwd_gives_the_payload_an_account() {
    let slot = Slot::new("busybox");
    let script = "id -un; id -gn; grep -c payload /etc/passwd /etc/group; grep -e ^root -e payload /etc/passwd";
    let mut startup = slot.job(&["/bin/sh", "-c", script]);
    startup.passwd = true;
    let finished = slot.run(&startup);
    assert_eq!(finished.record.warnings, Vec::<String>::new());
    let lines = finished.out.strip_prefix("payload\npayload\n/etc/passwd:1\n/etc/group:1\n");
    let passwd = lines.unwrap_or_else(|| panic!("{}", finished.out));
    assert!(passwd.starts_with("root:x:0:0:"), "{passwd}");
    assert!(passwd.ends_with(&format!("\npayload:x:20000:20000:payload:{WORK}:/bin/sh\n")), "{passwd}");
}

#[test]
fn the_account_has_the_name_and_the_home_that_were_asked_for() {
    let slot = Slot::new("busybox");
    let of_the_image = slot.run_script("cat /etc/passwd /etc/group").out;
    // Each job of an owner has what it asked for, and not what an earlier one did.
    for (account, home) in [("slot1_2", "/some/where else"), ("payload", "/tmp"), ("payload", "/tmp"), ("slot1_2", "/")]
    {
        let script = format!("id -un; id -gn; echo ~{account}; cat /etc/passwd /etc/group | wc -l");
        let mut startup = slot.job(&["/bin/sh", "-c", &script]);
        (startup.passwd, startup.account, startup.home) = (true, account.into(), Some(home.into()));
        let lines = of_the_image.lines().count() + 2;
        assert_eq!(slot.run(&startup).out, format!("{account}\n{account}\n{home}\n{lines}\n"));
    }
    assert_eq!(slot.run_script("cat /etc/passwd /etc/group").out, of_the_image);
}

#[test]
fn an_account_file_that_an_image_lacks_has_the_line_for_the_job_alone() {
    let slot = Slot::new("busybox");
    fs::remove_file(in_root(&slot, "/etc/group")).unwrap();
    for _ in 0..2 {
        let mut startup = slot.job(&["/bin/sh", "-c", "id -gn; cat /etc/group"]);
        startup.passwd = true;
        assert_eq!(slot.run(&startup).out, "payload\npayload:x:20000:\n");
        assert_eq!(slot.run_script("cat /etc/group").out, "");
    }
}

#[test]
fn what_a_job_sent_of_the_account_files_stays_as_it_was() {
    let slot = Slot::new("busybox");
    let mut out = made_fifo(&slot, "out");
    let mut startup = slot.job(&["/bin/cat", "/etc/passwd"]);
    (startup.passwd, startup.stdout) = (true, fifo("out"));
    // Nobody reads before the job is over, and what cat(1) has sent is the file's own page.
    slot.finish(&slot.submit(&startup));
    let mut text = vec![0; 65_536];
    let n = out.read(&mut text).unwrap();
    assert!(text[..n].ends_with(format!("payload:{WORK}:/bin/sh\n").as_bytes()), "{:?}", &text[..n]);
}

#[test]
fn without_passwd_the_accounts_are_the_images() {
    let slot = Slot::new("busybox");
    assert_eq!(slot.run_script("grep -c payload /etc/passwd").out, "0\n");
}

#[test]
fn passwd_on_a_read_only_root_is_a_warning_in_the_record() {
    let slot = Slot::with(&Shape::of("busybox").option("--read-only").option("--read-only-tmpfs=false"));
    let mut startup = slot.job(&["/probe", "hello"]);
    startup.passwd = true;
    let record = slot.run(&startup).record;
    assert_eq!((record.outcome, record.exit_code), (Outcome::Exited, Some(0)));
    assert_eq!(record.warnings.len(), 2);
    assert!(record.warnings[0].contains("/etc/passwd") && record.warnings[1].contains("/etc/group"));
    assert!(record.warnings.iter().all(|w| w.contains("Read-only")), "{:?}", record.warnings);
}

#[test]
fn the_session_is_the_jobs_own() {
    let slot = Slot::new("noshell");
    let has = json(&slot.run_args(&["/probe", "status"]).out);
    assert_eq!((&has["sid"], &has["pgid"]), (&has["pid"], &has["pid"]));
    assert_eq!(has["tty"], 0);
}

#[test]
fn the_job_is_the_child_of_its_supervisor_which_is_glues() {
    let slot = Slot::new("noshell");
    let submitted = slot.submit(&slot.job(&["/probe", "term-exit", "0"]));
    let main = slot.await_term_handling(&submitted);
    let supervisor = slot.supervisor().expect("a supervisor");
    let parent = |pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse::<i32>().unwrap()
    };
    assert_eq!((parent(main.pid), parent(supervisor.pid)), (supervisor.pid, slot.glue()));
    assert_eq!(supervisor.uids, [slot.kill_uid(), slot.uid, slot.kill_uid(), slot.uid]);
    kill(Pid::from_raw(main.pid), Signal::SIGTERM).unwrap();
    slot.finish(&submitted);
    assert_eq!(slot.supervisor(), None, "it has ended with its job");
}

#[test]
fn defaults_are_those_of_the_contract_where_a_field_is_left_out() {
    let slot = Slot::new("busybox");
    let startup = slot.job(&["/bin/sh", "-c", "umask >u; pwd >>u"]);
    let full = serde_json::to_value(&startup).unwrap();
    let needed = ["version", "job", "nonce", "key", "incarnation", "argv", "uid", "gid"];
    let least: serde_json::Map<String, Value> =
        full.as_object().unwrap().clone().into_iter().filter(|(name, _)| needed.contains(&name.as_str())).collect();
    let bytes = file_of(&Value::Object(least));
    slot.put(layout::STARTUP, &bytes);
    slot.notify();
    let submitted = Submitted::new(&startup, &bytes);
    let record = slot.finish_at_most(Duration::from_secs(10), &submitted).record;
    assert_eq!(record.exit_code, Some(0));
    assert_eq!(fs::read_to_string(slot.work().join("u")).unwrap(), format!("0022\n{WORK}\n"));
    assert!(!slot.work().join("stdout").exists());
}
