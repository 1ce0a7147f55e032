//! Programs and images of the other architecture on a node that cannot run them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use latebind_aarch64_tests::program;
use latebind_tests::pod::{BUSYBOX, Pod, run};
use serde_json::json;

const IMAGE: &str = "localhost/latebind/busybox:1-arm64";

#[test]
fn a_program_of_another_architecture_is_said_to_be_one() {
    let pod = Pod::start();
    let upload = pod.spool.join(".foreign");
    fs::create_dir_all(upload.join("inputs")).unwrap();
    let job = json!({"image": BUSYBOX, "argv": ["./probe", "hello"]});
    fs::write(upload.join("job.json"), job.to_string()).unwrap();
    fs::write(upload.join("inputs/probe"), program("probe")).unwrap();
    fs::set_permissions(upload.join("inputs/probe"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(upload, pod.spool.join("new/foreign")).unwrap();
    let outcome = pod.result("foreign");
    let said = &outcome.report.message;
    assert!(said.contains("built for aarch64, this node is x86_64"), "{said}");
    pod.job("next", &json!({"image": BUSYBOX, "argv": ["true"]})).is_good();
}

#[test]
fn an_image_of_another_architecture_is_held_and_the_next_job_runs() {
    let pod = Pod::start();
    let outcome = pod.job("foreign", &json!({"image": IMAGE, "argv": ["true"]}));
    let said = &outcome.report.message;
    assert!(said.contains("is made for arm64, this machine is amd64"), "{said}");
    assert_eq!(outcome.place, "held");
    pod.job("next", &json!({"image": BUSYBOX, "argv": ["true"]})).is_good();
}

#[test]
fn run_says_that_an_image_is_of_another_architecture() {
    let ran = run(&[IMAGE, "--", "true"]);
    assert_eq!(ran.code, Some(125), "{}", ran.err());
    assert!(ran.err().contains("is made for arm64, this machine is amd64"), "{}", ran.err());
}
