//! The setting `fs.suid_dumpable` of a node: who may look into a process whose program it cannot read, as stage two is.

use std::fs;
use std::process::Output;

use latebind_tests::pod::BUSYBOX;
use latebind_v2_tests::{output, shown};

const SETTING: &str = "/proc/sys/fs/suid_dumpable";

/// Puts the setting back.
struct Setting(String);

impl Setting {
    fn keep() -> Self {
        Self(fs::read_to_string(SETTING).unwrap())
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(SETTING, &self.0);
    }
}

fn run(setting: &str) -> Output {
    fs::write(SETTING, setting).unwrap();
    output("../../dist/latebind-host", &["run", BUSYBOX, "--", "echo", "hello"])
}

#[test]
fn a_job_runs_only_where_nobody_of_its_user_may_look_into_its_start() {
    let _setting = Setting::keep();
    for setting in ["0", "2"] {
        let ran = run(setting);
        assert_eq!((ran.status.code(), &*ran.stdout), (Some(0), &b"hello\n"[..]), "{setting}: {}", shown(&ran));
    }
    let refused = run("1");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{}", shown(&refused));
    assert!(text.contains("fs.suid_dumpable of the node may not be 1"), "{text}");
}
