//! Images for arm64 in containers, whose programs the emulator runs. `glue run` is not tried here: it executes its own
//! binary by a descriptor of `/proc/self/exe`, which is the emulator's.

use std::fs;
use std::os::unix::fs::MetadataExt;

use latebind_aarch64_tests::program;
use latebind_contract::layout::GLUE_MODE;
use latebind_tests::engine::image;
use latebind_tests::pod::podman;
use latebind_tests::slot::Slot;

#[test]
fn glue_install_sets_a_slot_up() {
    let slot = Slot::installed();
    let glue = slot.bin().join("glue");
    assert_eq!(fs::read(&glue).unwrap(), program("glue"));
    assert_eq!(fs::metadata(&glue).unwrap().mode() & 0o7777, GLUE_MODE);
    assert_eq!(fs::metadata(slot.work()).unwrap().uid(), slot.uid);
}

#[test]
fn programs_of_the_images_run() {
    let said = |words: &[&str]| {
        let output = podman(&[&["run", "--rm", "--pull=never", "--network=none"], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(said(&[&image("busybox"), "uname", "-m"]), "aarch64\n");
    assert!(said(&[&image("noshell"), "hello"]).contains("from a static program"));
    assert!(said(&["--entrypoint=/usr/bin/watcher", &image("pilot"), "--version"]).starts_with("watcher "));
}
