//! Images that lie, that have no shell, that stop by odd signals, or that put something in glue's way: their jobs end
//! as their own programs do, or are refused before glue gets a key; and the slot serves the next job.

use latebind_cluster_tests::pilot::Pilot;
use latebind_cluster_tests::{cluster, needs};
use latebind_tests::pod::Ran;
use serde_json::Value;

const RESULTS: &str = "/var/lib/latebind/results";

/// Runs a job in an image; returns how it ran, and its report.
#[track_caller]
fn run(pilot: &Pilot, image: &str, options: &[&str], argv: &[&str]) -> (Ran, Value) {
    let image = cluster().image(image);
    let ran = pilot.run(&[&["--results", RESULTS], options, &[image.as_str(), "--"], argv].concat());
    let report = pilot.shell(&format!("cat {RESULTS}/report.json"));
    let report: Value = serde_json::from_str(&report).unwrap_or_else(|e| panic!("{image}: {e}: {report}{}", ran.err()));
    assert!(report["container"]["image"].is_null() || report["container"]["image"] == image.as_str(), "{report:#}");
    (ran, report)
}

/// The job's own code and output, by a record that was verified.
#[track_caller]
fn ends_with(pilot: &Pilot, image: &str, options: &[&str], argv: &[&str], code: i32, out: &str) -> Value {
    let (ran, report) = run(pilot, image, options, argv);
    assert_eq!(ran.code, Some(code), "{image}: {}{report:#}", ran.err());
    assert!(ran.out().contains(out), "{image}: {}", ran.out());
    assert_eq!(report["verified"], true, "{image}: {report:#}");
    report
}

#[track_caller]
fn the_next_job_runs(pilot: &Pilot) -> Value {
    ends_with(pilot, "noshell", &[], &["/probe", "hello"], 0, "from a static program")
}

/// No foreign glue was root here, or it got no key.
#[track_caller]
fn nothing_was_stolen(pilot: &Pilot, image: &str) {
    let found = pilot.shell("for f in ctl/pwned data/pwned; do [ ! -e /shared/slot/0/$f ] || echo $f; done");
    assert_eq!(found, "", "{image}: a foreign glue ran as root");
    for log in [pilot.log("payload"), pilot.namespace.call(&["logs", "--previous", &pilot.pod, "-c", "payload"]).out()]
    {
        assert!(!log.contains("stolen_key_of"), "{image}: {log}");
    }
}

#[test]
fn images_that_lie_or_lack_something() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    // It is what the job ran, and its code is the truth about it.
    ends_with(&pilot, "liar-shell", &[], &["/bin/sh", "-c", "exit 7"], 0, "job finished");
    ends_with(&pilot, "liar-shell", &[], &["/probe", "exit", "4"], 4, "");
    // USER, PATH, LD_PRELOAD and the like are the job's affair.
    ends_with(&pilot, "hostile-env", &[], &["id", "-u"], 0, "20000\n");
    let work = "/shared/slot/0/data/work";
    let words = ["/bin/sh", "-c", "echo $HOME $USER $PWD; exit 6"];
    ends_with(&pilot, "hostile-env", &["--clean-env"], &words, 6, &format!("{work} payload {work}\n"));
    ends_with(&pilot, "no-tmp-no-etc", &[], &["/only/probe", "exit", "5"], 5, "");
    ends_with(&pilot, "noshell", &[], &["/probe", "exit", "8"], 8, "");
    let (ran, report) = run(&pilot, "noshell", &[], &["/bin/sh"]);
    assert_eq!((ran.code, &report["reason"]), (Some(127), &"CommandNotFound".into()), "{report:#}");
    let (ran, report) = run(&pilot, "bad-formats", &[], &["/bad/directory"]);
    assert_eq!((ran.code, &report["reason"]), (Some(126), &"CommandNotExecutable".into()), "{report:#}");
    the_next_job_runs(&pilot);
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

#[test]
fn images_of_any_stop_signal_give_way_to_the_next() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    for signal in ["quit", "winch", "rtmin3"] {
        ends_with(&pilot, &format!("stopsignal-{signal}"), &[], &["/bin/sh", "-c", "echo ran"], 0, "ran\n");
        let next = the_next_job_runs(&pilot);
        // The engine's own patience with a container that does not heed its signal is 60 s here.
        let bind = next["durations"]["bind"].as_f64().unwrap();
        assert!(bind < 15.0, "glue did not end at {signal}: {next:#}");
    }
}

#[test]
fn images_with_volumes_over_ours() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    // containerd leaves a volume out whose path is one of our mounts.
    for image in ["volume-bin", "volume-ctl"] {
        ends_with(&pilot, image, &[], &["/bin/sh", "-c", "echo ran; id -u"], 0, "ran\n20000\n");
        nothing_was_stolen(&pilot, image);
    }
}

/// What the watcher says of a job that it refused before it had started, as class and reason.
#[track_caller]
fn is_refused(pilot: &Pilot, image: &str) -> (String, String) {
    let (ran, report) = run(pilot, image, &[], &["/probe", "exit", "0"]);
    assert_eq!(ran.code, Some(125), "{image}: {}{report:#}", ran.err());
    assert_eq!(report["verified"], false, "{image}: {report:#}");
    assert!(report["record"].is_null() && report["exit_code"].is_null(), "{image}: {report:#}");
    let text = |field: &str| report[field].as_str().unwrap_or_default().to_owned();
    assert!(!text("message").is_empty(), "{image}: {report:#}");
    (text("class"), text("reason"))
}

#[test]
fn an_image_that_shadows_glue_is_refused_before_it_gets_a_key() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    // Its link leads the engine to put the image's own volume, with a glue in it, over ours: the foreign one runs as
    // root, says that it is ready, and waits for a key. What it says is in its log, or this test would prove nothing.
    let image = "volume-bin-link";
    let logs = [pilot.log("payload")];
    assert_eq!(is_refused(&pilot, image), ("hold".into(), "MountProofFailed".into()), "{logs:?}");
    let log =
        || pilot.namespace.call(&["logs", "--previous", &pilot.pod, "-c", "payload"]).out() + &pilot.log("payload");
    latebind_cluster_tests::eventually("the foreign glue's word", latebind_cluster_tests::pilot::JOB_WITHIN, || {
        log().contains("pwned").then_some(())
    });
    assert!(!log().contains("stolen_key_of"), "{}", log());
    the_next_job_runs(&pilot);
    // Nothing of it is left that could have an effect on the next one.
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

#[test]
fn an_image_that_owns_the_way_to_the_volumes_is_refused() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    let (class, reason) = is_refused(&pilot, "shared-writable");
    assert_eq!((class.as_str(), reason.as_str()), ("hold", "ContainerCannotRun"));
    nothing_was_stolen(&pilot, "shared-writable");
    the_next_job_runs(&pilot);
}
