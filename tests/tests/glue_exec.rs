//! Why a program could not be executed is told apart, in words that say what to change.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use latebind_contract::record::{Outcome, Stage};
use latebind_tests::job::errno_name;
use latebind_tests::slot::{Shape, Slot};

#[test]
fn each_reason_why_a_program_cannot_run_has_its_own_message() {
    let slot = Slot::new("bad-formats");
    let this_node = std::env::consts::ARCH;
    let arch = if this_node == "aarch64" { "this ELF" } else { "built for aarch64, this node is x86_64" };
    for (program, errno, reason) in [
        ("/bad/no-shebang", "ENOEXEC", "no shebang line"),
        ("/bad/aarch64", "ENOEXEC", arch),
        ("/bad/missing-interpreter", "ENOENT", "the interpreter that its first line names does not exist"),
        ("/bad/crlf-interpreter", "ENOENT", "lines end in CR LF"),
        ("/bad/interpreter-not-executable", "EACCES", ""),
        ("/bad/interpreter-is-directory", "EACCES", ""),
        ("/bad/missing-loader", "ENOENT", "its loader does not exist"),
        ("/bad/directory", "EACCES", "is a directory"),
        ("/bad/not-executable", "EACCES", "no execute bit"),
        ("/bad/closed/busybox", "EACCES", "/bad/closed/busybox"),
        ("/bad/empty", "ENOEXEC", "is empty"),
        ("/bad/truncated", "ENOEXEC", "/bad/truncated"),
        ("/bad/loop", "ELOOP", "/bad/loop"),
        ("/bad/dangling", "ENOENT", "/bad/dangling"),
        ("/bad/none", "ENOENT", "no such file in the image"),
        ("/bad/no-shebang/x", "ENOENT", "/bad/no-shebang/x"),
        ("no-such-program", "ENOENT", "not found in PATH (/usr/bin:/bin)"),
        ("/shared/slot/0/ctl/status.json", "EACCES", "/shared/slot/0/ctl/status.json"),
    ] {
        let record = slot.run_args(&[program]).record;
        assert_eq!(record.outcome, Outcome::NotStarted, "{program}");
        let error = record.error.unwrap();
        assert_eq!((error.stage, errno_name(&error).as_str()), (Stage::Exec, errno), "{program}: {}", error.message);
        assert!(error.message.contains(reason) && error.message.contains(program), "{program}: {}", error.message);
        assert!(slot.processes_of_the_payload().is_empty(), "{program}");
    }
    slot.prove_that_it_serves();
}

#[test]
fn a_program_in_the_path_that_may_not_run_does_not_hide_a_later_one() {
    let slot = Slot::with(&Shape::of("bad-formats").option("--env=PATH=/bad/first:/bad/second:/bin"));
    let finished = slot.run_args(&["program"]);
    assert_eq!((finished.record.exit_code, finished.out.as_str()), (Some(0), "second\n"));
}

#[test]
fn a_program_in_the_path_that_may_not_run_is_named_where_there_is_no_other() {
    let slot = Slot::with(&Shape::of("bad-formats").option("--env=PATH=/nowhere:/bad/first"));
    let error = slot.run_args(&["program"]).record.error.unwrap();
    assert_eq!((error.stage, errno_name(&error).as_str()), (Stage::Exec, "EACCES"));
    assert!(error.message.contains("/bad/first/program: has no execute bit"), "{}", error.message);
}

#[test]
fn an_image_without_a_shell_has_none() {
    let slot = Slot::new("noshell");
    let error = slot.run_args(&["sh", "-c", "echo hello"]).record.error.unwrap();
    assert_eq!(errno_name(&error), "ENOENT");
    assert!(error.message.contains("sh: not found in PATH"), "{}", error.message);
}
