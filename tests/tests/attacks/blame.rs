//! Jobs that fail in ways in which a broken slot would, so that it is taken out of service and serves nobody else.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use latebind_tests::pod::{BUSYBOX, DEBIAN, Options, Outcome, Pod, probe, program, with};
use serde_json::{Value, json};

/// As many environment files as a job may have.
const FILES: usize = 16;

/// A pod whose jobs have one attempt each.
fn one_attempt() -> Pod {
    Options::new().pilot(&["--max-attempts", "1"]).start()
}

/// Runs four jobs of one kind, of two images by turns: failures of one image in a row would count once. Whatever they
/// do, the slot is in service.
fn fail(pod: &Pod, job: &Value, make: impl Fn(&Path), judge: impl Fn(&Outcome)) {
    for (n, image) in [BUSYBOX, DEBIAN, BUSYBOX, DEBIAN].into_iter().enumerate() {
        let name = format!("job-{n}");
        let dir = pod.spool.join(format!(".{name}.being-put"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("job.json"), with(job.clone(), "image", json!(image)).to_string()).unwrap();
        make(&dir);
        fs::rename(dir, pod.spool.join("new").join(&name)).unwrap();
        judge(&pod.result(&name));
    }
    pod.job("innocent", &probe(&["hello"])).is_good();
    assert!(!pod.said().contains("out of service"), "{}", pod.said());
}

fn with_environment_files() -> Value {
    let files: Vec<Value> = (0..FILES).map(|n| json!({"name": format!("e{n}"), "format": "nul"})).collect();
    json!({"argv": ["/bin/true"], "env_files": files})
}

fn put_environment_files(dir: &Path, text: impl Fn(usize) -> Vec<u8>) {
    for n in 0..FILES {
        fs::write(dir.join(format!("e{n}")), text(n)).unwrap();
    }
}

/// An ELF program whose header says that the name of its loader is behind the end of the file: the kernel answers as
/// for a broken disk.
fn cut_short() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes()); // executable, x86_64
    }
    file.extend(1u32.to_le_bytes());
    for long in [0x40_0078u64, 64, 0] {
        file.extend(long.to_le_bytes()); // entry, program headers, section headers
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [3u32, 5] {
        file.extend(word.to_le_bytes()); // PT_INTERP
    }
    for long in [100_000u64, 0x40_0000, 0x40_0000, 20, 20, 4096] {
        file.extend(long.to_le_bytes());
    }
    file
}

#[test]
fn environment_files_do_not_fill_the_control_volume() {
    let text = |n| [format!("A{n}=").into_bytes(), vec![b'x'; (1 << 20) - 8]].concat();
    fail(
        &one_attempt(),
        &with_environment_files(),
        |dir| put_environment_files(dir, text),
        |outcome| {
            outcome.is("hold", "EnvironmentError");
            assert!(outcome.report.message.contains("in all"), "{}", outcome.report.message);
        },
    );
}

#[test]
fn as_many_variables_as_there_can_be_hold_no_start() {
    let text = |n| (0..16_384).flat_map(|i| format!("{i:x}_{n:x}=\0").into_bytes()).collect();
    fail(
        &one_attempt(),
        &with_environment_files(),
        |dir| put_environment_files(dir, text),
        |outcome| {
            outcome.is("hold", "ArgumentTooLong");
            assert!(outcome.report.message.contains("arguments and variables have "), "{}", outcome.report.message);
        },
    );
}

#[test]
fn a_program_that_is_cut_short_is_no_broken_disk() {
    let put_program = |dir: &Path| {
        fs::create_dir(dir.join("inputs")).unwrap();
        fs::write(dir.join("inputs/cut"), cut_short()).unwrap();
        fs::set_permissions(dir.join("inputs/cut"), Permissions::from_mode(0o755)).unwrap();
    };
    fail(&one_attempt(), &json!({"argv": ["./cut"]}), put_program, |outcome| {
        outcome.is("retry", "CommandNotExecutable");
        assert!(outcome.report.message.contains("I/O error"), "{}", outcome.report.message);
    });
}

#[test]
fn inputs_that_take_more_room_than_they_seem_to_count_against_no_slot() {
    let pod = Options::new().host(&["--data-size", "32m"]).pilot(&["--max-attempts", "1"]).start();
    // One file where the user has it, two in the slot.
    let put_twice = |dir: &Path| {
        fs::create_dir(dir.join("inputs")).unwrap();
        fs::write(dir.join("inputs/a"), vec![1; 20 << 20]).unwrap();
        fs::hard_link(dir.join("inputs/a"), dir.join("inputs/b")).unwrap();
    };
    fail(&pod, &json!({"argv": ["/bin/true"]}), put_twice, |outcome| {
        outcome.is("retry", "InputUnusable");
        assert!(outcome.report.message.contains("by themselves"), "{}", outcome.report.message);
    });
}

/// Has a lease on a file, until it is dropped.
struct Leased(Child);

impl Leased {
    fn new(file: &Path) -> Self {
        let mut command = Command::new(program("probe"));
        let mut child = command.arg("lease").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("leased"), "{line}");
        Self(child)
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn an_input_on_which_its_user_has_a_lease_counts_against_no_slot() {
    for place in ["inputs/x", "in"] {
        let leases = std::cell::RefCell::new(Vec::new());
        let put_leased = |dir: &Path| {
            fs::create_dir(dir.join("inputs")).unwrap();
            for name in ["inputs/x", "in"] {
                fs::write(dir.join(name), "x").unwrap();
            }
            leases.borrow_mut().push(Leased::new(&dir.join(place)));
        };
        fail(&one_attempt(), &json!({"argv": ["/bin/true"], "stdin": "in"}), put_leased, |outcome| {
            outcome.is("retry", "InputUnusable");
            assert!(outcome.report.message.contains(place), "{}", outcome.report.message);
        });
    }
}
