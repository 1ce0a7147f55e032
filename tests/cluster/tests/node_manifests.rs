//! The other manifests of `deploy/`, as they are shipped. Their jobs name images of this project without a registry, and their servers
//! are pods that only this node reaches: our own cluster only.

use std::time::Duration;

use latebind_cluster_tests::cluster;
use latebind_cluster_tests::namespace::Namespace;
use latebind_cluster_tests::pilot::{Options, shell, status_of};

const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn a_job_for_servers_before_1_29_completes_with_its_pilot() {
    let pilot =
        Options::new().manifests(&["deploy/job-before-1.29"]).spool(&["--name", "pilot", "--idle-exit", "5"]).start();
    pilot.job("good", &shell("echo from the job")).is_good();
    pilot.job("bad", &shell("exit 3")).is("final", "Error");
    assert_eq!(pilot.ended(LIMIT), "Succeeded");
    let pod = pilot.object();
    for container in ["pilot", "payload"] {
        let status = status_of(&pod, container).unwrap();
        assert_eq!(status["state"]["terminated"]["exitCode"], 0, "{container}: {status:#}");
    }
    pilot.namespace.ask(&["wait", "--for=condition=complete", "job/latebind", "--timeout=30s"]);
}

#[test]
fn a_sequence_of_two_steps_in_two_images() {
    let (first, second) = (cluster().image("debian"), cluster().image("busybox"));
    let pilot = Options::new()
        .manifests(&["deploy/base", "deploy/examples/fixed-sequence"])
        .env("FIRST_IMAGE", &first)
        .env("SECOND_IMAGE", &second)
        .start();
    let over = pilot.until("the sequence is over", LIMIT, |_| {
        let log = pilot.log("pilot");
        log.contains("sequence: both steps are over").then_some(log)
    });
    // Of the second step's sort and count, by way of the first one's output.
    assert!(over.contains("2 late"), "{over}");
}

#[test]
fn a_pilot_that_asks_a_server_for_jobs() {
    let namespace = Namespace::new();
    namespace.ask(&["create", "secret", "generic", "latebind-jobs", "--from-literal=password=of-this-test"]);
    // The server first: there is no name service in our cluster, so the pilot is told its address.
    let directory = "deploy/examples/dynamic";
    let mut objects = latebind_cluster_tests::manifest::for_namespace(directory, namespace.name());
    let is_pilot =
        |object: &serde_json::Value| object["metadata"]["name"] == "latebind-dynamic" && object["kind"] == "Pod";
    objects.retain(|o| !is_pilot(o));
    for object in objects.iter_mut().filter(|o| o["metadata"]["name"] == "latebind-jobs" && o["kind"] == "ConfigMap") {
        for (_, job) in object["data"].as_object_mut().unwrap() {
            let text = job.as_str().unwrap().replace("localhost/latebind/", &cluster().image("").replace(":1", ""));
            *job = serde_json::json!(text);
        }
    }
    namespace.create(&objects);
    let address = latebind_cluster_tests::eventually("the server is ready", LIMIT, || {
        let pod = namespace.pod("latebind-jobs")?;
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        ready.then(|| pod["status"]["podIP"].as_str().unwrap().to_owned())
    });
    let pilot = Options::new()
        .manifests(&["deploy/base", directory])
        .keep(move |o| is_pilot(o) || ["ServiceAccount", "Role", "RoleBinding"].iter().any(|kind| o["kind"] == *kind))
        .env("JOB_SERVER", &format!("{address}:8080"))
        .start_in(namespace);
    pilot.until("three results", LIMIT, |_| {
        let results = pilot.namespace.ask(&["exec", "latebind-jobs", "--", "ls", "/state/results"]);
        (results.lines().filter(|l| l.ends_with(".tar")).count() == 3).then_some(())
    });
    let words =
        pilot.namespace.ask(&["exec", "latebind-jobs", "--", "tar", "-xOf", "/state/results/1-hello.tar", "./stdout"]);
    assert!(!words.is_empty(), "{words}");
}
