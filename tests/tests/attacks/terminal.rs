//! Escape sequences, marks of direction and forged lines in whatever foreign text is shown to people: names in an
//! image, jobs, their outputs, their programs, and the messages made of them.

use std::fs;
use std::process::Command;

use latebind_contract::text::is_harmless;
use latebind_tests::engine::LinkedImage;
use latebind_tests::pod::{BUSYBOX, Options, Pod, podman, program, run, shell, with};
use serde_json::{Value, json};

/// What terminals act upon: sequences of C0 and C1, DEL, an override of direction, and a line of its own.
const HOSTILE: &str = "\x1b]0;pwn\x07\x1b[2J\u{9b}31m\x7f\u{202e}\n2026-01-01T00:00:00Z ERROR forged";

/// Fails where these bytes would do more to a terminal than show text.
#[track_caller]
fn assert_harmless(what: &str, bytes: &[u8]) -> String {
    let text = String::from_utf8(bytes.to_vec()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let harmful: Vec<char> = text.chars().filter(|c| !"\n\t".contains(*c) && !is_harmless(*c)).collect();
    assert!(harmful.is_empty(), "{what}: {harmful:?} in {text:?}");
    for line in text.lines() {
        assert!(!line.starts_with("2026-01-01T00:00:00Z ERROR"), "{what}: a line of somebody else's in {text:?}");
    }
    text
}

/// `watcher ARGS` in the pilot container: what it prints.
#[track_caller]
fn watcher(pod: &Pod, arguments: &[&str]) -> String {
    let name = pod.container("pilot");
    let output = podman(&[&["exec", &name, "/usr/bin/watcher"], arguments].concat());
    assert_harmless(&format!("{arguments:?}: standard error"), &output.stderr);
    assert_harmless(&format!("{arguments:?}"), &output.stdout)
}

#[test]
fn names_in_an_image_reach_no_terminal() {
    let image = LinkedImage::new(HOSTILE);
    for verbose in [&[][..], &["--watcher-arg", "--verbose"]] {
        let ran = run(&[verbose, &[image.name(), "--", "true"]].concat());
        assert_ne!(ran.code, Some(0), "the image has no program");
        assert_harmless("run: standard output", &ran.stdout);
        let said = assert_harmless("run: standard error", &ran.stderr);
        assert!(!said.is_empty());
    }
    let pod = Pod::start();
    let outcome = pod.job("linked", &json!({"image": image.name(), "argv": ["true"]}));
    assert!(!outcome.report.verified, "{:#?}", outcome.report);
    let report = fs::read(outcome.dir.join("result/report.json")).unwrap();
    assert!(report.is_ascii(), "{}", String::from_utf8_lossy(&report));
    assert_harmless("report.json", &report);
    assert_harmless("the pod's log", pod.said().as_bytes());
    for arguments in [&["report", "/spool/held/linked/result"][..], &["results", "/spool"], &["timeline", "/spool"]] {
        watcher(&pod, arguments);
    }
}

#[test]
fn nothing_that_a_job_names_reaches_a_terminal() {
    let pod = Options::new().slots(1).start();
    let files =
        format!("mkdir out; cd out; ln -s x \"$(printf '{}')\"; mkfifo plain; exit 3", "l\\033[2J\\302\\233\\n2026");
    let outputs = json!([HOSTILE, format!("out/{HOSTILE}"), "out"]);
    let jobs = [
        ("outputs", with(shell(&files), "outputs", outputs)),
        ("program", json!({"image": BUSYBOX, "argv": [format!("/bin/{HOSTILE}")]})),
        ("argument", json!({"image": BUSYBOX, "argv": ["/bin/sh", "-c", "exit 4", HOSTILE]})),
        ("directory", with(shell("true"), "cwd", json!(format!("/{HOSTILE}")))),
        ("image", json!({"image": format!("localhost/{HOSTILE}:1"), "argv": ["true"]})),
        ("limit", with(shell("true"), "rlimits", json!({HOSTILE: {"soft": 1, "hard": 1}}))),
        ("field", with(shell("true"), HOSTILE, json!(1))),
        ("owner", with(shell("true"), "owner", json!(HOSTILE))),
        ("stdin", with(shell("true"), "stdin", json!(HOSTILE))),
        ("variable", with(shell("true"), "env", json!({HOSTILE: "x=\u{0}"}))),
        ("link", with(shell("true"), "links", json!({format!("/{HOSTILE}"): HOSTILE}))),
    ];
    let named = pod.spool.join("new").join(HOSTILE);
    fs::create_dir(&named).unwrap();
    fs::write(named.join("job.json"), shell("true").to_string()).unwrap();
    for (name, job) in &jobs {
        pod.put(name, job);
    }
    for (name, _) in &jobs {
        let outcome = pod.result(name);
        let report = fs::read(outcome.dir.join("result/report.json")).unwrap();
        assert_harmless(&format!("report.json of {name}"), &report);
        let shown = watcher(&pod, &["report", &format!("/spool/{}/{name}/result", outcome.place)]);
        assert!(shown.contains(&outcome.report.reason.to_string()), "{name}: {shown}");
    }
    let missing = &pod.result("outputs").report.missing_outputs;
    assert!(missing.iter().any(|m| m.contains("pwn")), "the report has the names as they are: {missing:?}");
    assert_harmless("results", watcher(&pod, &["results", "/spool"]).as_bytes());
    watcher(&pod, &["timeline", "/spool"]);
    watcher(&pod, &["timeline", "--html", "/spool"]);
    // A job that runs, with an image of the longest kind, and one that waits for the slot.
    pod.put("long", &with(shell("exec sleep 600"), "env", json!({"X": HOSTILE})));
    pod.put("waits", &json!({"image": BUSYBOX, "argv": ["/bin/true", HOSTILE]}));
    pod.reaches("long.1", "running");
    for arguments in
        [&["top", "--times", "1"][..], &["top", "--times", "1", "--json"], &["jobs"], &["signal", "long", "KILL"]]
    {
        watcher(&pod, arguments);
    }
    pod.result("long").is("final", "Signaled");
    let log = assert_harmless("the pod's log", pod.said().as_bytes());
    for line in log.lines().filter(|line| line.starts_with('{')) {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(event["timestamp"].is_string() && event["level"].is_string(), "{line}");
    }
    // What is wrong with the command line is shown as well.
    for arguments in [&["report", HOSTILE][..], &["signal", HOSTILE, "KILL"], &["jobs", HOSTILE], &[HOSTILE]] {
        watcher(&pod, arguments);
    }
    let ran = run(&["--", HOSTILE]);
    assert_harmless("run with a hostile argument", &ran.stderr);
    let ran = run(&[HOSTILE, "--", "true"]);
    assert_harmless("run with a hostile image", &ran.stderr);
    let output = Command::new(program("latebind-host")).args(["rm", HOSTILE]).output().unwrap();
    assert_harmless("rm with a hostile name", &output.stderr);
}
