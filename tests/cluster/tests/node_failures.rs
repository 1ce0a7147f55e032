//! Binds and jobs that fail: each is told at once, with its class and in the words of whoever has refused it, and the
//! slot runs the next job. The registries that fail are on this machine.

use std::time::Duration;

use latebind_cluster_tests::faulty::{Fault, Faulty};
use latebind_cluster_tests::manifest::container;
use latebind_cluster_tests::pilot::{Options, Pilot, shell};
use latebind_cluster_tests::{cluster, eventually, needs};
use latebind_tests::pod::Outcome;
use serde_json::{Value, json};

/// How long a bind may take until it is known to fail: the old container's end, and one answer of a registry.
const AT_ONCE: f64 = 10.0;
const LIMIT: Duration = Duration::from_secs(60);

/// A pilot that tries each job once.
fn pilot(arguments: &[&str]) -> Options {
    Options::new().spool(&[&["--max-attempts", "1"], arguments].concat())
}

fn in_image(image: &str) -> Value {
    json!({"image": image, "argv": ["/probe", "hello"]})
}

#[track_caller]
fn the_next_job_runs(pilot: &Pilot, after: &str) -> Outcome {
    let outcome = pilot.job(&format!("after-{after}"), &in_image(&cluster().image("noshell")));
    assert_eq!(outcome.class(), ("final", "Completed"), "after {after}: {:#?}", outcome.report);
    assert!(outcome.report.verified, "after {after}: {:#?}", outcome.report);
    outcome
}

/// A job that cannot run as it is: class and reason, one of these words in the message, nothing that claims to have
/// run, and a slot that goes on.
#[track_caller]
fn fails(pilot: &Pilot, name: &str, image: &str, class: &str, reason: &str, words: &[&str]) -> Outcome {
    let outcome = pilot.job(name, &in_image(image));
    let report = &outcome.report;
    assert_eq!(outcome.class(), (class, reason), "{name}: {report:#?}");
    assert!(words.iter().any(|w| report.message.contains(w)), "{name}: none of {words:?} in: {}", report.message);
    assert!(report.record.is_none() && !report.verified && report.exit_code.is_none(), "{name}: {report:#?}");
    assert!(report.durations.bind < AT_ONCE, "{name}: {report:#?}");
    the_next_job_runs(pilot, name);
    outcome
}

#[test]
fn images_that_cannot_be_had() {
    needs("1.20 or later; node, loopback, registries");
    let pilot = pilot(&[]).start();
    let here = cluster();
    fails(&pilot, "bad-name", "UPPER/case:is not a name", "hold", "InvalidImageName", &["InvalidImageName: "]);
    fails(&pilot, "no-tag", &here.missing_image(), "hold", "ImageNotFound", &["not found"]);
    let nothing = format!("{}@sha256:{}", here.image("busybox"), "0".repeat(64));
    fails(&pilot, "no-digest", &nothing, "hold", "ImageNotFound", &["not found"]);
    // The kubelet knows the text of a bind by digest no second time, so it does not wait.
    fails(&pilot, "no-digest-again", &nothing, "hold", "ImageNotFound", &["not found"]);
    let denied = ["401 Unauthorized", "no basic auth credentials"];
    fails(&pilot, "denied", &here.denied_image(), "hold", "ImageAccessDenied", &denied);
    let busy = Faulty::start(Fault::too_many_requests(1));
    fails(&pilot, "busy", &busy.image(), "retry", "RegistryBusy", &["429"]);
    assert!(busy.asked() > 0);
    for status in [500, 503] {
        let broken = Faulty::start(Fault::Status(status, vec![]));
        let words = status.to_string();
        fails(&pilot, &words, &broken.image(), "retry", "RegistryUnavailable", &[&words]);
    }
    let gone = Faulty::start(Fault::Hang).image();
    fails(&pilot, "gone", &gone, "retry", "RegistryUnavailable", &["connection refused"]);
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

#[test]
fn images_that_cannot_be_run() {
    needs("1.20 or later; node");
    let pilot = pilot(&[]).start();
    let image = |name| cluster().image(name);
    let words = ["is not directory"];
    fails(&pilot, "not-created", &image("volume-is-a-file"), "hold", "CreateContainerError", &words);
    let words = ["must be mounted on ordinary directory"];
    fails(&pilot, "not-started", &image("proc-is-a-file"), "hold", "CreateContainerError", &words);
    let outcome = fails(&pilot, "refused", &image("volume-bin-link"), "hold", "MountProofFailed", &["/shared/bin"]);
    assert!(outcome.report.container.is_some());
    // glue sees it by itself, says so, and ends: its words are in the container's log, which the kubelet quotes.
    fails(&pilot, "glue-ends", &image("volume-below"), "hold", "ContainerCannotRun", &["/shared/more"]);
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

/// What `watcher jobs` says of a job.
fn phase(pilot: &Pilot, name: &str) -> String {
    let listed = pilot.shell("watcher jobs");
    let line =
        listed.lines().find(|line| line.starts_with(&format!("{name}.")) || line.starts_with(&format!("{name}\t")));
    line.and_then(|line| line.split('\t').nth(1)).unwrap_or_default().to_owned()
}

#[test]
fn a_registry_that_is_late_and_one_that_never_answers() {
    needs("1.20 or later; node, loopback, registries");
    let pilot = pilot(&["--pull-timeout", "15"]).start();
    // While the node waits for the image, the job's inputs are put in place.
    let late = Faulty::start(Fault::Late(cluster().registry_port()));
    let job = json!({"image": late.image_of("stopsignal-quit"), "argv": ["/bin/cat", "input"]});
    pilot.put_with("late", &job, &[("inputs/input", b"from the spool\n")]);
    eventually("late is pulling", LIMIT, || (phase(&pilot, "late") == "pulling").then_some(()));
    assert_eq!(pilot.shell("cat /shared/slot/0/data/work/input"), "from the spool\n");
    assert!(late.asked() > 0);
    late.release();
    let outcome = pilot.result("late");
    outcome.is_good();
    assert_eq!(outcome.text("stdout"), "from the spool\n");
    let durations = &outcome.report.durations;
    assert!(durations.stage > 0.0 && durations.pull > 0.0 && durations.pull <= durations.bind, "{durations:?}");

    let silent = Faulty::start(Fault::Hang);
    pilot.put("silent", &in_image(&silent.image()));
    eventually("silent is pulling", LIMIT, || (phase(&pilot, "silent") == "pulling").then_some(()));
    let outcome = pilot.result("silent");
    outcome.is("retry", "PullTimeout");
    let report = &outcome.report;
    assert!(report.message.contains("--pull-timeout") && report.message.contains(&silent.image()), "{report:#?}");
    assert!((15.0..25.0).contains(&report.durations.bind), "{report:#?}");
    assert!(report.durations.pull > 5.0, "{report:#?}");
    // The node still waits for it, so there is no slot; when that ends there is one again.
    pilot.put("next", &in_image(&cluster().image("noshell")));
    drop(silent);
    pilot.result("next").is_good();
}

#[test]
fn a_job_that_takes_too_much_memory() {
    needs("1.20 or later; node");
    let small = |spec: &mut Value| {
        let resources = &mut container(spec, "payload")["resources"];
        resources["requests"]["memory"] = json!("64Mi");
        resources["limits"]["memory"] = json!("64Mi");
    };
    let pilot = pilot(&[]).change(small).start();
    let outcome = pilot.job("all", &shell("exec tail /dev/zero"));
    outcome.is("hold", "OutOfMemory");
    // Newer kubelets have the kernel end all of a container (memory.oom.group), glue too: then there is no record.
    let record = outcome.report.record.is_some();
    assert!(outcome.report.verified || (!record && cluster().server() >= (1, 28)), "{:#?}", outcome.report);
    the_next_job_runs(&pilot, "all");
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

/// A data volume of 16 MiB.
fn small_volume(spec: &mut Value) {
    for volume in spec["volumes"].as_array_mut().unwrap() {
        if volume["name"] == "data-0" {
            volume["emptyDir"]["sizeLimit"] = json!("16Mi");
        }
    }
}

#[test]
fn a_job_that_fills_its_volume_is_ended_before_the_pod_is_where_the_size_is_known() {
    needs("1.20 or later; node");
    let pilot = pilot(&[]).change(small_volume).env("LATEBIND_DATA_SIZE", "16Mi").start();
    let uid = pilot.object()["metadata"]["uid"].clone();
    let script =
        "dd if=/dev/zero of=big bs=1M count=11; while sleep 0.5; do dd if=/dev/zero bs=256k count=1 >>big; done";
    let job = latebind_tests::pod::with(shell(script), "grace_s", json!(1));
    let outcome = pilot.job("big", &job);
    outcome.is("final", "LimitExceeded");
    let limit = outcome.report.limit.as_ref().map(|l| (l.which, l.limit));
    assert_eq!(limit, Some((watcher::job::limits::Which::Disk, (0.9 * f64::from(16 << 20)).floor())));
    the_next_job_runs(&pilot, "big");
    assert_eq!(pilot.object()["metadata"]["uid"], uid, "the pod was evicted");
}

#[test]
fn a_job_that_fills_its_volume_costs_the_pod() {
    needs("1.20 or later; node");
    let pilot = pilot(&["--name", "same"]).change(small_volume).start();
    let uid = pilot.object()["metadata"]["uid"].clone();
    pilot.put("big", &shell("dd if=/dev/zero of=big bs=1M count=64 && sleep 600"));
    pilot.until("another pod has the name", Duration::from_secs(120), |pod| {
        (pod["metadata"]["uid"] != uid).then_some(())
    });
    // The kubelet leaves the pilot no time for a word, so it is the next one's, which finds the job claimed. In no case
    // is that the job's result.
    let outcome = pilot.result("big");
    let (class, reason) = outcome.class();
    assert!(class == "retry" && ["PilotLost", "Evicted", "Stopped"].contains(&reason), "{:#?}", outcome.report);
    assert_eq!((outcome.place, outcome.report.exit_code), ("held", None), "{:#?}", outcome.report);
    let evicted = pilot.namespace.events().into_iter().find(|(reason, _)| reason == "Evicted");
    let (_, words) = evicted.expect("an event of the eviction");
    assert!(words.contains("data-0"), "{words}");
    the_next_job_runs(&pilot, "big");
    assert!(std::fs::read_dir(pilot.spool().join("claimed/same")).unwrap().next().is_none());
}
