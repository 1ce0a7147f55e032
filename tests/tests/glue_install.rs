//! `glue install` makes the volumes what they have to be, and `glue run` refuses what they must not be.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use latebind_contract::layout;
use latebind_tests::slot::{Bin, PAYLOAD_CAPABILITIES, Shape, Slot, said};

/// `run.rs` of glue.
const REFUSED: i32 = 3;
/// `main.rs` of glue.
const BAD_USAGE: i32 = 2;

/// Owner, group and mode.
fn about(path: &Path) -> (u32, u32, u32) {
    let metadata = path.symlink_metadata().unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

fn is_installed(slot: &Slot) {
    assert_eq!(about(&slot.bin()), (0, 0, 0o755));
    assert_eq!(about(&slot.bin().join("glue")), (0, 0, 0o511));
    assert_eq!(about(&slot.ctl()), (0, 0, 0o700));
    assert_eq!(about(&slot.data()), (0, 0, 0o755));
    assert_eq!(about(&slot.work()), (20_000, 20_000, 0o700));
    assert!(!slot.bin().join("glue.tmp").exists());
}

/// Starts glue, which must refuse and say so.
fn refused(slot: &mut Slot, shape: &Shape, reasons: &[&str]) {
    slot.start(shape);
    assert_eq!(slot.exit_code(), REFUSED, "{reasons:?}: {}", slot.log());
    let log = slot.log();
    for reason in reasons {
        assert!(log.contains(reason), "{reason}: {log}");
    }
    assert!(!slot.ctl().join(layout::STATUS).exists(), "{reasons:?}: it said that it was ready");
}

#[test]
fn install_takes_open_volumes_over() {
    let slot = Slot::empty();
    assert_eq!(about(&slot.ctl()).2, 0o777);
    chown(slot.data(), Some(20_000), Some(20_000)).unwrap();
    assert!(slot.install(&["--slot", "0"]).status.success());
    is_installed(&slot);
}

#[test]
fn install_is_safe_to_run_twice_and_takes_back_what_was_changed() {
    let slot = Slot::installed();
    let binary = fs::read(slot.bin().join("glue")).unwrap();
    fs::write(slot.work().join("of-a-job"), "kept").unwrap();
    fs::set_permissions(slot.work(), Permissions::from_mode(0o777)).unwrap();
    chown(slot.work(), Some(5), Some(6)).unwrap();
    fs::set_permissions(slot.ctl(), Permissions::from_mode(0o777)).unwrap();
    chown(slot.bin(), Some(20_000), Some(20_000)).unwrap();
    assert!(slot.install(&["--slot", "0"]).status.success());
    is_installed(&slot);
    assert_eq!(fs::read(slot.bin().join("glue")).unwrap(), binary);
    assert_eq!(fs::read_to_string(slot.work().join("of-a-job")).unwrap(), "kept");
}

#[test]
fn install_beside_a_running_job_does_it_no_harm() {
    let slot = Slot::new("busybox");
    let submitted = slot.submit(&slot.job(&["/bin/sh", "-c", "while [ ! -e seen ]; do sleep 0.02; done"]));
    let main = slot.await_start(&submitted);
    let output = slot.install(&["--slot", "0"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(slot.main_process().map(|process| process.pid), Some(main.pid));
    fs::write(slot.work().join("seen"), "").unwrap();
    assert_eq!(slot.finish(&submitted).record.exit_code, Some(0));
    slot.prove_that_it_serves();
    is_installed(&slot);
}

#[test]
fn install_completes_what_a_killed_one_left_half_done() {
    let mut slot = Slot::empty();
    fs::write(slot.bin().join("glue.tmp"), "half a bina").unwrap();
    fs::create_dir(slot.work()).unwrap();
    assert!(slot.install(&["--slot", "0"]).status.success());
    is_installed(&slot);
    slot.start(&Shape::of("noshell"));
    slot.await_ready();
    slot.prove_that_it_serves();
}

#[test]
fn install_follows_no_link_that_a_payload_put() {
    let slot = Slot::empty();
    let outside = slot.bin().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink("../bin/outside", slot.work()).unwrap();
    let output = slot.install(&["--slot", "0"]);
    assert!(!output.status.success(), "work/ is a link");
    assert_eq!(about(&outside).0, 0, "what the link points to is not given away");
    fs::remove_file(slot.work()).unwrap();
    symlink("outside", slot.bin().join("glue.tmp")).unwrap();
    assert!(slot.install(&["--slot", "0"]).status.success());
    is_installed(&slot);
}

#[test]
fn install_refuses_numbers_that_are_roots_and_arguments_that_it_does_not_know() {
    let slot = Slot::empty();
    for arguments in [
        vec![],
        vec!["--slot"],
        vec!["--slot", "x"],
        vec!["--slot", "0:0"],
        vec!["--slot", "0:20000:0"],
        vec!["--slot", "0:4294967295"],
        vec!["--slot", "0:4294967296"],
        vec!["--slot", "64"],
        vec!["--slots", "0"],
    ] {
        let output = slot.install(&arguments);
        assert_eq!(output.status.code(), Some(BAD_USAGE), "{arguments:?}: {}", said(&output));
    }
    assert!(!slot.bin().join("glue").exists());
}

#[test]
fn volumes_that_somebody_else_could_change_are_refused_with_a_mend() {
    let mut slot = Slot::installed();
    let shape = Shape::of("noshell");
    for (path, owner, mode, reason) in [
        (slot.ctl(), 0, 0o777, "/shared/slot/0/ctl has owner 0 and mode 777"),
        (slot.ctl(), 0, 0o750, "/shared/slot/0/ctl has owner 0 and mode 750"),
        (slot.ctl(), 20_000, 0o700, "/shared/slot/0/ctl"),
        (slot.data(), 0, 0o775, "/shared/slot/0/data has owner 0 and mode 775"),
        (slot.data(), 20_000, 0o755, "/shared/slot/0/data has owner 20000"),
        (slot.bin(), 0, 0o757, "/shared/bin has owner 0 and mode 757"),
        (slot.bin(), 20_000, 0o755, "/shared/bin has owner 20000"),
    ] {
        let before = about(&path);
        chown(&path, Some(owner), Some(0)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        refused(&mut slot, &shape, &[reason]);
        if owner != 20_000 || !reason.ends_with("ctl") {
            assert!(slot.log().contains("Run `glue install`"), "{}", slot.log());
        }
        chown(&path, Some(before.0), Some(before.1)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(before.2)).unwrap();
    }
    slot.start(&shape);
    slot.await_ready();
}

#[test]
fn an_owner_of_work_that_can_be_no_payload_is_refused() {
    let mut slot = Slot::installed();
    for (uid, gid, reason) in
        [(0, 20_000, "payload UID is 0"), (20_000, 0, "payload GID is 0"), (65_100, 20_000, "both 65100")]
    {
        chown(slot.work(), Some(uid), Some(gid)).unwrap();
        refused(&mut slot, &Shape::of("noshell"), &[reason]);
    }
    fs::remove_dir(slot.work()).unwrap();
    refused(&mut slot, &Shape::of("noshell"), &["data/work", "glue install"]);
    fs::write(slot.work(), "").unwrap();
    refused(&mut slot, &Shape::of("noshell"), &["data/work is not a directory"]);
}

#[test]
fn a_kill_uid_that_is_roots_or_the_payloads_is_refused() {
    let mut slot = Slot::installed();
    for (kill_uid, reason) in [("0", "kill UID is 0"), ("4294967295", "4294967295"), ("20000", "both 20000")] {
        let mut shape = Shape::of("noshell");
        shape.arguments = vec!["--kill-uid".into(), kill_uid.into()];
        refused(&mut slot, &shape, &[reason]);
    }
    let mut shape = Shape::of("noshell");
    shape.arguments = vec!["--kill-uid".into(), "60000".into()];
    slot.start(&shape);
    assert_eq!(slot.await_ready().kill_uid, 60_000);
    assert_eq!(slot.run_args(&["/probe", "daemons", "3"]).record.processes.left_over_killed, 3);
}

#[test]
fn without_one_of_its_four_capabilities_glue_refuses() {
    let mut slot = Slot::installed();
    for missing in PAYLOAD_CAPABILITIES {
        let mut shape = Shape::of("noshell");
        shape.capabilities.retain(|capability| capability != missing);
        refused(&mut slot, &shape, &["SETUID, SETGID, KILL and SETPCAP"]);
    }
    refused(&mut slot, &Shape::of("noshell").option("--user=20000:20000"), &["needs UID 0"]);
}

#[test]
fn mounts_that_are_not_exactly_ours_are_refused() {
    let mut slot = Slot::installed();
    let mut writable = Shape::of("noshell");
    writable.bin = Bin::Writable;
    refused(&mut slot, &writable, &["/shared/bin is mounted writable"]);
    for more in ["/shared/slot/1/ctl", "/shared/slot/0/data/work", "/shared/more"] {
        let shape = Shape::of("noshell").option(&format!("--mount=type=tmpfs,target={more}"));
        refused(&mut slot, &shape, &["may be mounted at or below /shared", more]);
    }
    let shape = Shape::of("noshell").option("--mount=type=tmpfs,target=/elsewhere");
    slot.start(&shape);
    slot.await_ready();
}

#[test]
fn everything_stale_is_gone_before_glue_says_ready() {
    let mut slot = Slot::installed();
    let stale = [layout::STARTUP, layout::RECORD, layout::STATUS, "env.secret", "record.jws.tmp", "startup.jsonl.tmp"];
    for name in stale {
        slot.put(name, b"{}");
    }
    slot.put("not-ours", b"");
    symlink("not-ours", slot.ctl().join("env.link")).unwrap();
    slot.start(&Shape::of("noshell"));
    let status = slot.await_ready();
    assert_eq!((status.job, status.refused), (None, None));
    let mut names: Vec<String> =
        slot.ctl().read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["glue.notify", "not-ours", "status.json", "watcher.notify"]);
}

#[test]
fn a_notification_fifo_that_is_not_roots_is_made_again() {
    let mut slot = Slot::installed();
    slot.put("glue.notify", b"a file");
    symlink("not-ours", slot.ctl().join("watcher.notify")).unwrap();
    slot.start(&Shape::of("noshell"));
    slot.await_ready();
    slot.prove_that_it_serves();
}
