//! What each ending means to the pilot: `final` is the job's own result, `retry` was nobody's fault, `hold` has to be
//! fixed by its user.

use std::fs;
use std::time::Duration;

use latebind_tests::pod::{BUSYBOX, NOSHELL, Options, Pod, Signal, eventually, is_gone, kill, probe, shell, with};
use latebind_tests::shortage::Unwatched;
use serde_json::json;

#[test]
fn an_image_that_is_not_there_holds_the_job() {
    let pod = Pod::start();
    let outcome = pod.job("missing", &json!({"image": "localhost/latebind/never-built:1", "argv": ["x"]}));
    outcome.is("hold", "ImageNotFound");
    assert_eq!(outcome.place, "held");
    assert!(!outcome.report.verified && outcome.report.record.is_none() && outcome.report.exit_code.is_none());
    assert!(outcome.report.message.contains("never-built"), "{}", outcome.report.message);
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn a_name_that_is_no_image_holds_the_job() {
    let pod = Pod::start();
    for (n, name) in ["debian", "LOCALHOST/X:1", "--privileged", "localhost/../x:1"].into_iter().enumerate() {
        let outcome = pod.job(&format!("name-{n}"), &json!({"image": name, "argv": ["x"]}));
        outcome.is("hold", "InvalidImageName");
    }
}

#[test]
fn an_image_that_is_not_allowed_holds_the_job() {
    let pod = Pod::start();
    let outcome = pod.job("foreign", &json!({"image": "registry.invalid/some/image:1", "argv": ["x"]}));
    outcome.is("hold", "ImageNotAllowed");
    assert!(outcome.report.message.contains("registry.invalid/some/image:1"), "{}", outcome.report.message);
}

#[test]
fn what_is_not_found_or_cannot_run_holds_the_job() {
    let pod = Pod::start();
    let bad = "localhost/latebind/bad-formats:1";
    for (name, image, program, reason) in [
        ("not-found", BUSYBOX, "no-such-program", "CommandNotFound"),
        ("no-path", NOSHELL, "/bin/sh", "CommandNotFound"),
        ("no-bit", bad, "/bad/not-executable", "CommandNotExecutable"),
        ("directory", bad, "/bad/directory", "CommandNotExecutable"),
        ("wrong-arch", bad, "/bad/aarch64", "CommandNotExecutable"),
        ("no-interpreter", bad, "/bad/missing-interpreter", "CommandNotFound"),
    ] {
        let outcome = pod.job(name, &json!({"image": image, "argv": [program]}));
        outcome.is("hold", reason);
        assert!(outcome.report.verified, "glue says so in a record: {:#?}", outcome.report);
        assert!(outcome.report.message.contains(program), "{}", outcome.report.message);
        assert_eq!(outcome.report.exit_code, None);
    }
}

#[test]
fn an_environment_file_or_directory_that_is_wrong_holds_the_job() {
    let pod = Pod::start();
    let env = with(probe(&["env"]), "env_files", json!([{"name": "vars", "format": "sh"}]));
    pod.put_with("substitution", &env, &[("vars", b"A=1\nB=`id`\n")]);
    let outcome = pod.result("substitution");
    outcome.is("hold", "EnvironmentError");
    assert!(outcome.report.message.contains('2'), "the line is named: {}", outcome.report.message);
    pod.job("no-directory", &with(probe(&["cwd"]), "cwd", json!("/not/there"))).is("hold", "EnvironmentError");
    pod.put("no-file", &env);
    pod.result("no-file").is("hold", "EnvironmentError");
    pod.job("no-stdin", &with(probe(&["hello"]), "stdin", json!("not-there"))).is("hold", "InputUnusable");
}

#[test]
fn a_job_that_is_killed_for_memory_is_held() {
    let pod = Options::new().host(&["--memory", "64m"]).start();
    let outcome = pod.job("greedy", &probe(&["memory", "200", "1"]));
    outcome.is("hold", "OutOfMemory");
    assert!(outcome.report.message.contains("memory"), "{}", outcome.report.message);
    pod.job("modest", &probe(&["memory", "5", "0"])).is_good();
}

#[test]
fn a_child_that_is_killed_for_memory_does_not_decide_for_the_job() {
    let pod = Options::new().host(&["--memory", "64m"]).start();
    // The job saw it, and made of it what it wanted.
    let script = "while [ ! -e go ]; do sleep 0.1; done; /probe memory 200 1; code=$?; sleep 0.1; echo $code; exit 5";
    pod.put("parent", &shell(script));
    let job = pod.runs("parent.1", 0);
    let unwatched = Unwatched::new(&pod);
    fs::write(pod.work(0).join("go"), "").unwrap();
    eventually("the job is over", Duration::from_secs(20), || is_gone(job).then_some(()));
    drop(unwatched);
    let outcome = pod.result("parent");
    outcome.is("final", "Error");
    assert_eq!((outcome.report.exit_code, outcome.text("stdout").as_str()), (Some(5), "137\n"));
}

#[test]
fn the_wall_limit_is_the_jobs_result() {
    let pod = Pod::start();
    let job = with(with(probe(&["sleep", "1000"]), "timeout_s", json!(1)), "grace_s", json!(0.5));
    let outcome = pod.job("slow", &job);
    outcome.is("final", "TimedOut");
    assert!(outcome.report.verified && outcome.place == "done");
    let deaf = with(with(probe(&["ignore-term", "1000"]), "timeout_s", json!(0.5)), "grace_s", json!(0.5));
    pod.job("deaf", &deaf).is("final", "TimedOut");
}

#[test]
fn codes_and_signals_are_the_jobs_result() {
    let pod = Pod::start();
    for code in [1, 3, 126, 127, 137, 255] {
        let outcome = pod.job(&format!("code-{code}"), &probe(&["exit", &code.to_string()]));
        outcome.is("final", "Error");
        assert_eq!((outcome.report.exit_code, outcome.report.signal), (Some(code), None));
    }
    for signal in [9, 11, 15] {
        let outcome = pod.job(&format!("signal-{signal}"), &probe(&["signal", &signal.to_string()]));
        outcome.is("final", "Signaled");
        assert_eq!((outcome.report.exit_code, outcome.report.signal), (None, Some(signal)));
        assert!(outcome.report.verified && outcome.place == "done");
    }
}

/// Kills the slot's glue whenever a job runs, until the job has a result.
fn lose_every_attempt(pod: &Pod, name: &str, attempts: u32) {
    for attempt in 1..=attempts {
        pod.runs(&format!("{name}.{attempt}"), 0);
        kill(pod.main_process(&pod.payload_role(0)), Signal::SIGKILL);
        eventually("the loss is noticed", Duration::from_secs(20), || {
            (pod.phase(&format!("{name}.{attempt}")).as_deref() != Some("running")).then_some(())
        });
    }
}

#[test]
fn a_lost_job_goes_back_into_the_spool_and_is_counted() {
    let pod = Pod::start();
    pod.put("unlucky", &shell("echo $$; sleep 2"));
    lose_every_attempt(&pod, "unlucky", 1);
    let first = pod.attempt("unlucky", 1);
    assert_eq!(
        (format!("{:?}", first.class).as_str(), first.attempt, first.verified),
        ("Retry", 1, false),
        "{first:#?}"
    );
    let outcome = pod.result("unlucky");
    outcome.is_good();
    assert_eq!((outcome.report.attempt, outcome.report.job.as_str()), (2, "unlucky.2"));
    assert!(outcome.dir.join("result.1/report.json").exists(), "the first attempt's report is kept");
}

#[test]
fn after_the_last_attempt_the_job_is_held() {
    let pod = Options::new().pilot(&["--max-attempts", "2"]).start();
    pod.put("hopeless", &probe(&["sleep", "60"]));
    lose_every_attempt(&pod, "hopeless", 2);
    let outcome = pod.result("hopeless");
    assert_eq!(outcome.place, "held");
    assert_eq!((outcome.class().0, outcome.report.attempt), ("retry", 2), "{:#?}", outcome.report);
    assert!(!outcome.report.verified && outcome.report.exit_code.is_none());
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn a_retry_waits_for_its_delay() {
    let pod = Pod::start();
    pod.put("delayed", &probe(&["sleep", "2"]));
    lose_every_attempt(&pod, "delayed", 1);
    let lost = pod.attempt("delayed", 1);
    // Others do not wait for it.
    pod.job("other", &probe(&["hello"])).is_good();
    let (over, again) = (lost.phases.last().unwrap().at, pod.result("delayed").is_good().report.phases[0].at);
    assert!(again - over >= 2.0, "{} s", again - over);
}
