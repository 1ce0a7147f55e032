//! Jobs without a program: what the image's configuration says is run, in its directory.

use std::time::Duration;

use latebind_tests::made_image::MadeImage;
use latebind_tests::pod::{BUSYBOX, Options, Ran, Signal, kill, run, with};
use serde_json::json;

/// Says its arguments and where it is.
const SAY: &str = r#"RUN mkdir -p /dir && printf '#!/bin/sh\necho "$@ in $PWD"\n' >/say && chmod 755 /say"#;

fn image(lines: &str) -> MadeImage {
    MadeImage::new(&format!("{SAY}\n{lines}"), &[])
}

#[track_caller]
fn says(ran: &Ran, wanted: &str) {
    assert_eq!((ran.code, ran.out().trim_end()), (Some(0), wanted), "{}", ran.err());
}

#[test]
fn an_images_entrypoint_and_cmd_are_run_where_no_command_is_given() {
    let both = image("WORKDIR /dir\nENTRYPOINT [\"/say\", \"e\"]\nCMD [\"c\", \"d\"]");
    let both = both.name();
    says(&run(&[both]), "e c d in /dir");
    says(&run(&["--args", both, "--", "x", "-y"]), "e x -y in /dir");
    says(&run(&["--workdir", "/tmp", both]), "e c d in /tmp");
    let own = run(&["--workdir", ".", both]);
    assert!(own.out().starts_with("e c d in /shared/slot/0/data/work"), "{} {}", own.out(), own.err());
    let beneath = run(&["--workdir", "./none", both]);
    assert!(beneath.code == Some(125) && beneath.err().contains("./none"), "{}", beneath.err());
    // A command is a command, whatever the image runs by itself.
    let command = run(&[both, "--", "/say", "x"]);
    assert!(command.out().starts_with("x in /shared/slot/0/data/work"), "{} {}", command.out(), command.err());
    let other = run(&["--entrypoint", "/bin/echo", both, "--", "x"]);
    says(&other, "x");
    says(&run(&["--entrypoint", "/bin/pwd", "--workdir", "/dir", both]), "/dir");
    says(&run(&["--entrypoint", "", both, "--", "/bin/echo", "y"]), "y");
    let none = run(&["--entrypoint", "", both]);
    assert!(none.code == Some(125) && none.err().contains("give a command"), "{}", none.err());
}

#[test]
fn an_entrypoint_alone_a_cmd_alone_and_the_shell_form_are_run() {
    says(&run(&[image("WORKDIR /dir\nENTRYPOINT [\"/say\", \"e\"]\nCMD []").name()]), "e in /dir");
    let cmd = image("WORKDIR /dir\nCMD [\"/say\", \"c\"]");
    says(&run(&[cmd.name()]), "c in /dir");
    says(&run(&["--args", cmd.name(), "--", "/bin/echo", "mine"]), "mine");
    says(&run(&[image("ENV A=1\nCMD echo shell $A").name()]), "shell 1");
    says(&run(&[image("ENTRYPOINT echo shell; pwd\nWORKDIR /dir").name()]), "shell\n/dir");
    // A name is looked for in the image's PATH, a path from its directory.
    let named = |lines: &str| image(&format!("RUN ln -s ../say /dir/named\n{lines}"));
    let of_path = run(&[named("ENV PATH=/dir\nENTRYPOINT [\"named\", \"e\"]").name()]);
    assert!(of_path.out().starts_with("e in /shared/slot/0/data/work"), "{} {}", of_path.out(), of_path.err());
    says(&run(&[named("WORKDIR /dir\nENTRYPOINT [\"./named\", \"e\"]").name()]), "e in /dir");
}

#[test]
fn an_image_that_runs_nothing_by_itself_is_a_hold_that_says_so() {
    let config = |entrypoint: &[&str], cmd: &[&str]| json!({"Entrypoint": entrypoint, "Cmd": cmd});
    // One image after the other in one pod, whose slots hold the containers.
    let pod = Options::new().host(&["--allow", "*"]).start();
    let job = |image: &MadeImage| json!({"image": image.name()});
    let neither = MadeImage::of_config(&config(&[], &[]));
    let outcome = pod.job("neither", &job(&neither));
    outcome.is("hold", "InvalidJob");
    assert!(outcome.report.message.contains("has neither ENTRYPOINT nor CMD"), "{}", outcome.report.message);
    let long = MadeImage::of_config(&config(&["/x"], &vec!["y"; 2000]));
    let outcome = pod.job("long", &job(&long));
    outcome.is("hold", "InvalidJob");
    assert!(outcome.report.message.contains("more than 1024 words"), "{}", outcome.report.message);
    let missing = MadeImage::of_config(&config(&["/no/such\u{1b}[2J"], &["y"]));
    let outcome = pod.job("missing", &job(&missing));
    outcome.is("hold", "CommandNotFound");
    assert!(outcome.report.message.contains("/no/such") && !outcome.report.message.contains('\u{1b}'));
    let nul = MadeImage::of_config(&config(&["/x"], &["a\0b"]));
    pod.job("nul", &job(&nul)).is("hold", "InvalidJob");
    let both = json!({"image": BUSYBOX, "argv": ["true"], "args": ["x"]});
    pod.job("both", &both).is("hold", "InvalidJob");
    // Its directory is the payload's to enter, or not.
    let closed = image("RUN mkdir -m 700 /closed\nWORKDIR /closed\nCMD [\"/say\", \"c\"]");
    let outcome = pod.job("closed", &job(&closed));
    outcome.is("hold", "EnvironmentError");
    assert!(outcome.report.message.contains("/closed"), "{}", outcome.report.message);
    let moved = with(job(&closed), "cwd", json!("."));
    assert!(pod.job("moved", &moved).is_good().text("stdout").contains("c in /shared/slot/0/data/work"));
}

#[test]
fn a_container_that_is_used_again_runs_its_images_command_again() {
    let both = image("ENTRYPOINT [\"/say\", \"e\"]\nCMD [\"c\"]");
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    let job = json!({"image": both.name(), "owner": "somebody", "cwd": "/"});
    assert_eq!(pod.job("first", &job).is_good().text("stdout"), "e c in /\n");
    let again = pod.job("again", &with(job, "args", json!(["x"])));
    assert_eq!(again.is_good().text("stdout"), "e x in /\n");
    assert!(again.report.reused_container);
}

#[test]
fn a_restarted_pilot_goes_on_with_an_images_own_command() {
    let long = image("CMD [\"/bin/sh\", \"-c\", \"echo up; while [ ! -e /dir/go ]; do sleep 0.1; done; echo over\"]");
    let pod = Options::new().start();
    pod.put("long", &json!({"image": long.name(), "timeout_s": 60}));
    let main = pod.runs("long.1", 0);
    kill(pod.main_process("pilot"), Signal::SIGKILL);
    assert!(std::fs::write(format!("/proc/{main}/root/dir/go"), "").is_ok());
    assert_eq!(pod.result_within("long", Duration::from_secs(60)).is_good().text("stdout"), "up\nover\n");
}
