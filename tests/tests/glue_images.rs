//! Every hostile or odd image is harmless, or glue or the mount proof refuses it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use latebind_contract::mounts;
use latebind_contract::record::{Outcome, Stage};
use latebind_tests::engine::podman;
use latebind_tests::processes::Process;
use latebind_tests::slot::{Bin, Shape, Slot};
use latebind_tests::waiting::{LIMIT, within};

/// `run.rs` of glue: mounts, volumes, numbers or privileges are not what they have to be.
const REFUSED: i32 = 3;

fn in_root(slot: &Slot, path: &str) -> PathBuf {
    Path::new(&format!("/proc/{}/root", slot.glue())).join(path.trim_start_matches('/'))
}

/// What the watcher's mount proof says of the container as it runs.
fn mount_proof(slot: &Slot) -> Result<(), String> {
    let mountinfo = fs::read_to_string(format!("/proc/{}/mountinfo", slot.glue())).unwrap();
    mounts::check(&mounts::parse(&mountinfo).unwrap(), 0).map(drop)
}

/// Whether the image's false glue got to run as root: it leaves a marker wherever it can.
fn false_glue_ran(slot: &Slot) -> bool {
    let marked = [slot.ctl(), slot.data()].iter().any(|place| place.join("pwned").exists());
    marked || slot.log().contains("pwned")
}

#[test]
fn a_lying_shell_can_only_lie_about_its_own_job() {
    let slot = Slot::new("liar-shell");
    let lied = slot.run_args(&["/bin/sh", "-c", "exit 7"]);
    // It is what the job ran, and its exit code is the truth about it; the record it left is nobody's.
    assert_eq!((lied.record.outcome, lied.record.exit_code), (Outcome::Exited, Some(0)));
    assert!(lied.out.contains("job finished"), "{}", lied.out);
    let forged = fs::read(slot.work().join("record.jws")).unwrap();
    let submitted = slot.submit(&slot.job(&["/probe", "exit", "7"]));
    assert!(submitted.check(Some(&forged)).is_err());
    assert_eq!(slot.finish(&submitted).record.exit_code, Some(7));
}

#[test]
fn an_images_user_environment_and_working_directory_do_nothing_to_glue() {
    let slot = Slot::new("hostile-env");
    let uids = Process::look(slot.glue()).unwrap().uids;
    assert_eq!(uids, [0; 4], "the image's USER has no effect");
    assert!(!slot.log().contains("evil"), "{}", slot.log());
    let mut startup = slot.job(&["id", "-u"]);
    // An empty PATH is none: the usual places are looked at.
    let finished = slot.run(&startup);
    assert_eq!((finished.record.exit_code, finished.out.as_str()), (Some(0), "20000\n"), "{}", finished.err);
    startup = slot.job(&["/bin/sh", "-c", "echo $HOME $USER $PWD"]);
    startup.env_mode = latebind_contract::startup::EnvMode::Clear;
    let clean = slot.run(&startup);
    let work = "/shared/slot/0/data/work";
    assert_eq!((clean.out, clean.err), (format!("{work} payload {work}\n"), String::new()));
}

/// The engine's stop of a container of this image, while idle and during a job.
fn stops_as_any(image: &str) {
    let mut slot = Slot::new(image);
    podman(&["stop", "--time=20", slot.name()]);
    assert!(slot.log().contains("idle, told to stop by"), "{}", slot.log());
    assert_eq!(slot.exit_code(), 0);
    slot.start(&Shape::of(image));
    slot.await_ready();
    let mut startup = slot.job(&["/probe", "ignore-term", "1000"]);
    startup.grace_s = 0.3;
    let submitted = slot.submit(&startup);
    slot.await_term_handling(&submitted);
    podman(&["stop", "--time=20", slot.name()]);
    let record = slot.finish(&submitted).record;
    assert_eq!((record.outcome, record.signal), (Outcome::Stopped, Some(9)));
    assert_eq!(slot.exit_code(), 0, "the engine had to kill it");
}

#[test]
fn a_stop_signal_of_quit_stops() {
    stops_as_any("stopsignal-quit");
}

#[test]
fn a_stop_signal_of_winch_stops() {
    stops_as_any("stopsignal-winch");
}

#[test]
fn a_stop_signal_of_rtmin_plus_3_stops() {
    stops_as_any("stopsignal-rtmin3");
}

#[test]
fn an_image_without_tmp_and_etc_and_a_path_runs() {
    let slot = Slot::new("no-tmp-no-etc");
    let mut startup = slot.job(&["/only/probe", "hello"]);
    startup.passwd = true;
    let finished = slot.run(&startup);
    assert_eq!(finished.record.exit_code, Some(0), "{:?}", finished.record.error);
    assert!(finished.out.contains("from a static program"));
    let error = slot.run_args(&["probe"]).record.error.unwrap();
    assert!(error.message.contains("not found in PATH (/nowhere)"), "{}", error.message);
}

#[test]
fn an_image_of_one_static_program_runs_without_a_shell() {
    let slot = Slot::new("noshell");
    assert_eq!(slot.run_args(&["/probe", "hello"]).record.exit_code, Some(0));
    assert_eq!(slot.run_args(&["/bin/sh"]).record.error.map(|e| e.stage), Some(Stage::Exec));
}

#[test]
fn account_files_that_are_traps_are_left_alone() {
    let slot = Slot::new("passwd-link");
    let mut startup = slot.job(&["/probe", "hello"]);
    startup.passwd = true;
    let record = slot.run(&startup).record;
    assert_eq!((record.exit_code, record.warnings.len()), (Some(0), 2), "{:?}", record.warnings);
    assert_eq!(fs::read_to_string(in_root(&slot, "/etc/target")).unwrap(), "untouched\n");
    assert!(in_root(&slot, "/etc/passwd").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn a_read_only_root_is_enough() {
    let slot = Slot::with(&Shape::of("busybox").option("--read-only").option("--read-only-tmpfs=false"));
    let finished = slot.run_script("echo kept >file; cat file; touch /x || echo closed");
    assert_eq!(finished.out, "kept\nclosed\n");
}

#[test]
fn an_image_that_owns_the_way_to_the_volumes_is_refused() {
    let mut slot = Slot::installed();
    slot.start(&Shape::of("shared-writable"));
    assert_eq!(slot.exit_code(), REFUSED);
    let log = slot.log();
    assert!(log.contains("/shared has owner 20000") && log.contains("glue install"), "{log}");
}

#[test]
fn volumes_of_an_image_over_ours_are_harmless_where_the_engine_ignores_them() {
    for image in ["volume-bin", "volume-ctl"] {
        let slot = Slot::new(image);
        assert_eq!(mount_proof(&slot), Ok(()), "{image}");
        slot.prove_that_it_serves();
        assert!(!false_glue_ran(&slot), "{image}");
    }
}

#[test]
fn a_link_of_an_image_in_the_way_to_glue_is_refused() {
    let mut slot = Slot::installed();
    slot.start(&Shape::of("volume-bin-link"));
    assert_eq!(slot.exit_code(), REFUSED);
    assert!(slot.log().contains("link in its path"), "{}", slot.log());
    assert!(!false_glue_ran(&slot));
}

/// An image whose volumes the engine honours.
fn honoured(image: &str) -> Shape {
    Shape { image_volumes: None, ..Shape::of(image) }
}

#[test]
fn volumes_of_an_image_over_ours_are_harmless_where_the_engine_prefers_ours() {
    for image in ["volume-bin", "volume-ctl"] {
        let slot = Slot::with(&honoured(image));
        assert_eq!(mount_proof(&slot), Ok(()), "{image}");
        slot.prove_that_it_serves();
        assert!(!false_glue_ran(&slot), "{image}");
    }
}

#[test]
fn a_volume_over_the_binary_through_a_link_does_not_pass_the_mount_proof_where_the_engine_honours_it() {
    let mut slot = Slot::installed();
    // Ours is mounted where the link leads, and the image's volume on top of it: root runs what the image brought.
    slot.start(&honoured("volume-bin-link"));
    within(LIMIT, "the false glue's word", || false_glue_ran(&slot).then_some(()));
    slot.await_ready();
    let refused = mount_proof(&slot).unwrap_err();
    assert!(refused.contains("/shared/bin is not mounted"), "{refused}");
}

#[test]
fn a_foreign_glue_runs_as_root_and_does_not_pass_the_mount_proof() {
    for (image, reason) in
        [("volume-bin", "/shared/bin is mounted writable"), ("volume-bin-link", "/shared/bin is not mounted")]
    {
        let mut slot = Slot::installed();
        // What an engine does that mounts the image's volume in place of ours.
        slot.start(&Shape { bin: Bin::Missing, ..honoured(image) });
        within(LIMIT, "the false glue's word", || false_glue_ran(&slot).then_some(()));
        // It says all that glue would say: nothing but the proof tells the two apart.
        slot.await_ready();
        let refused = mount_proof(&slot).unwrap_err();
        assert!(refused.contains(reason), "{image}: {refused}");
    }
}

#[test]
fn a_foreign_glue_without_any_volume_does_not_pass_the_mount_proof() {
    let mut slot = Slot::installed();
    slot.start(&Shape { bin: Bin::Missing, ..Shape::of("volume-bin") });
    within(LIMIT, "the false glue's word", || false_glue_ran(&slot).then_some(()));
    assert!(mount_proof(&slot).unwrap_err().contains("/shared/bin is not mounted"));
}

#[test]
fn a_ctl_of_the_image_is_refused_by_glue() {
    let mut slot = Slot::installed();
    slot.start(&Shape { ctl: false, ..honoured("volume-ctl") });
    assert_eq!(slot.exit_code(), REFUSED, "{}", slot.log());
    assert!(slot.log().contains("/shared/slot/0/ctl has owner 0 and mode 777"), "{}", slot.log());
    slot.start(&Shape { ctl: false, ..Shape::of("volume-ctl") });
    assert_eq!(slot.exit_code(), REFUSED, "{}", slot.log());
    assert!(slot.log().contains("/shared/slot/0/ctl is not mounted"), "{}", slot.log());
}
