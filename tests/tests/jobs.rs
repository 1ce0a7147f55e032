//! Jobs as people bring them: each works, or its message says what to change and where.

use std::fs;
use std::process::Command;

use latebind_tests::pod::{BUSYBOX, Outcome, Pod, host, podman, program, run, shell, unique, with};
use serde_json::{Value, json};

/// A job whose program is the input `run.sh`.
fn script() -> Value {
    json!({"image": BUSYBOX, "argv": ["./run.sh"]})
}

/// Fails unless the job is held for this reason with this in its message.
#[track_caller]
fn is_held(outcome: &Outcome, reason: &str, message: &str) {
    outcome.is("hold", reason);
    assert!(outcome.report.message.contains(message), "{message:?} is not in {:?}", outcome.report.message);
}

#[test]
fn a_script_that_cannot_be_executed_says_what_to_change_and_where() {
    let pod = Pod::start();
    let (long, euros) = (format!("#!/opt/{}/bin/python\n", "x".repeat(300)), "# \u{20ac}".repeat(60));
    let scripts: [(&str, &[u8], bool, &str); 5] = [
        ("no-bit", b"#!/bin/sh\n", false, "chmod +x it among the job's inputs"),
        ("long-line", long.as_bytes(), true, "its first line is longer than the 255 bytes"),
        ("order-mark", b"\xef\xbb\xbf#!/bin/sh\n", true, "begins with a byte order mark"),
        ("umlauts", "echo Gr\u{fc}\u{df}e\n".as_bytes(), true, "has no shebang line"),
        ("two-bytes-of-three", euros.as_bytes(), true, "has no shebang line"),
    ];
    for (name, text, executable, _) in scripts {
        put_script(&pod, name, text, executable);
    }
    for (name, _, _, message) in scripts {
        is_held(&pod.result(name), "CommandNotExecutable", message);
    }
}

fn put_script(pod: &Pod, name: &str, text: &[u8], executable: bool) {
    use std::os::unix::fs::PermissionsExt;
    let dir = pod.spool.join(format!("being-put-{name}"));
    fs::create_dir_all(dir.join("inputs")).unwrap();
    fs::write(dir.join("inputs/run.sh"), text).unwrap();
    let mode = if executable { 0o755 } else { 0o644 };
    fs::set_permissions(dir.join("inputs/run.sh"), fs::Permissions::from_mode(mode)).unwrap();
    fs::write(dir.join("job.json"), script().to_string()).unwrap();
    fs::rename(dir, pod.spool.join("new").join(name)).unwrap();
}

#[test]
fn what_is_longer_than_the_kernel_takes_is_named() {
    let pod = Pod::start();
    let long = "z".repeat(131_072);
    let argument = json!({"image": BUSYBOX, "argv": ["/bin/sh", "-c", format!("# {long}")]});
    is_held(&pod.job("argument", &argument), "ArgumentTooLong", "argument 2 of argv has 131075 bytes with its NUL");
    let variable = with(shell("true"), "env", json!({"SHORT": "x", "LONG": long}));
    is_held(&pod.job("variable", &variable), "ArgumentTooLong", "the variable LONG has 131078 bytes with its NUL");
    let fits = with(shell("echo ${#LONG}"), "env", json!({"LONG": "z".repeat(131_072 - 6)}));
    assert_eq!(pod.job("fits", &fits).is_good().text("stdout"), "131066\n");
    pod.put_with(
        "file",
        &with(shell("true"), "env_files", json!([{"name": "my.env", "format": "nul"}])),
        &[("my.env", format!("LONGER={long}").as_bytes())],
    );
    is_held(&pod.result("file"), "ArgumentTooLong", "a variable of the image or of an environment file, with a name");
}

#[test]
fn an_environment_file_is_named_as_its_user_names_it() {
    let pod = Pod::start();
    let job = with(shell("env"), "env_files", json!([{"name": "my.env", "format": "sh"}]));
    pod.put_with("order-mark", &job, &[("my.env", b"\xef\xbb\xbfA=1\n")]);
    pod.put_with("line-ends", &job, &[("my.env", b"A=1\r\nB=2\r\n")]);
    is_held(&pod.result("order-mark"), "EnvironmentError", "my.env: line 1, column 1: byte order mark");
    is_held(&pod.result("line-ends"), "EnvironmentError", "my.env: line 1, column 4: carriage return");
}

#[test]
fn a_variable_that_is_given_twice_holds_the_job() {
    let pod = Pod::start();
    let job = format!(r#"{{"image":"{BUSYBOX}","argv":["/bin/true"],"env":{{"A":"1","A":"2"}}}}"#);
    latebind_tests::pod::put_into(&pod.spool, "twice", job.as_bytes(), &[]);
    is_held(&pod.result("twice"), "InvalidJob", "\"A\" appears twice");
}

#[test]
fn a_program_with_file_capabilities_is_refused_in_these_words() {
    let scratch = latebind_tests::pod::Scratch::new();
    let bin = scratch.path().join("image/bin");
    fs::create_dir_all(&bin).unwrap();
    let name = format!("localhost/latebind/{}:1", unique("setcap"));
    let script = "cp /bin/busybox \"$1/image/bin/busybox\" && setcap cap_net_raw+ep \"$1/image/bin/busybox\" && \
                  tar --xattrs --xattrs-include='*' -C \"$1/image\" -cf \"$1/image.tar\" .";
    let made = Command::new("sh").args(["-c", script, "sh"]).arg(scratch.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let archive = scratch.path().join("image.tar");
    let imported = podman(&["import", "--quiet", archive.to_str().unwrap(), &name]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let ran = run(&[&name, "--", "/bin/busybox", "id"]);
    podman(&["rmi", &name]);
    assert_eq!(ran.code, Some(126), "{}", ran.err());
    assert!(ran.err().contains("has file capabilities (setcap)"), "{}", ran.err());
}

#[test]
fn an_error_is_said_once_and_without_colours() {
    let ran = run(&["-w", "relative", BUSYBOX, "--", "true"]);
    assert_eq!(ran.code, Some(125), "{}", ran.err());
    assert_eq!(ran.err().matches("must be an absolute path").count(), 1, "{}", ran.err());
    assert!(!ran.stderr.contains(&0x1b), "{:?}", ran.err());
    let missing = run(&[BUSYBOX, "--", "no-such-program"]);
    assert_eq!(missing.err().lines().count(), 1, "{}", missing.err());
    let unknown = latebind_tests::pod::Running::start(&mut host(&["run", "--no-such", BUSYBOX]), Vec::new());
    assert!(!unknown.finish(latebind_tests::pod::JOB_WITHIN).stderr.contains(&0x1b));
}

#[test]
fn a_report_is_found_in_a_jobs_directory() {
    let pod = Pod::start();
    let outcome = pod.job("fine", &shell("true"));
    outcome.is_good();
    let report = |path: &std::path::Path| {
        let said = Command::new(program("watcher")).arg("report").arg(path).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let of_job = report(&outcome.dir);
    assert!(of_job.contains("fine.1, attempt 1") && of_job.contains("Completed (final)"), "{of_job}");
    assert_eq!(of_job, report(&outcome.dir.join("result")));
    assert_eq!(of_job, report(&outcome.dir.join("result/report.json")));
}

#[test]
fn outputs_are_named_as_people_write_paths() {
    let pod = Pod::start();
    let job = with(shell("mkdir r; echo x >r/a; echo y >b"), "outputs", json!(["r/", "./b", "r//a"]));
    let outcome = pod.job("slashes", &job);
    outcome.is_good();
    assert_eq!((outcome.text("outputs/r/a"), outcome.text("outputs/b")), ("x\n".to_owned(), "y\n".to_owned()));
    assert_eq!(outcome.report.outputs, ["b", "r", "r/a"]);
}
