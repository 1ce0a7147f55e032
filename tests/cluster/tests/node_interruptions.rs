//! API server, kubelet and the connections between go away in mid-job and in mid-bind: the job is not touched, the bind
//! goes on once they are back.

use std::thread::sleep;
use std::time::{Duration, Instant};

use latebind_cluster_tests::inside::Inside;
use latebind_cluster_tests::node::{Node, Outage};
use latebind_cluster_tests::pilot::{Options, Pilot, debian, probe, shell};
use latebind_cluster_tests::relay::Relay;
use latebind_cluster_tests::{cluster, eventually, needs};
use latebind_tests::pod::{Outcome, look_into};

const LIMIT: Duration = Duration::from_secs(60);
/// How long the API server is away: longer than a client waits for an answer without being told to.
const AWAY: Duration = Duration::from_secs(30);

/// Longer than a kubelet may take to end a container: 90 s.
const LONGER_THAN_A_KUBELET_NEEDS: Duration = Duration::from_secs(95);

const JOB: &str = "echo begun; sleep 4; echo ended";

fn alone() -> (Pilot, Inside) {
    let pilot = Options::new().alone().spool(&[]).start();
    let inside = pilot.inside();
    (pilot, inside)
}

/// A good end at the first attempt, in Debian.
#[track_caller]
fn ran_in_debian_at_once(outcome: &Outcome) {
    outcome.is_good();
    assert!(outcome.text("stdout").starts_with("12."), "{}", outcome.text("stdout"));
    assert_eq!(outcome.report.attempt, 1, "{:#?}", outcome.report);
}

/// Puts a job in Debian and waits until the kubelet has ended the container before it, so has seen the patch.
#[track_caller]
fn patched(pilot: &Pilot, inside: &Inside, name: &str) {
    let old = pilot.container_id("payload");
    pilot.put(name, &debian("cat /etc/debian_version"));
    inside.reaches(&format!("{name}.1"), "binding");
    eventually("the old container ends", LIMIT, || cluster().node().processes(&old).is_empty().then_some(()));
}

/// The API server is taken in mid-job, and is away while the job ends and the next one is put.
fn a_job_ends_and_the_next_one_waits(take: fn(&'static Node) -> Outage<'static>) {
    let (pilot, inside) = alone();
    pilot.put("under-way", &shell(JOB));
    inside.runs("under-way.1", 0);
    let outage = take(cluster().node());
    let began = Instant::now();
    // It waits for no API server: there is none until this result has come.
    let outcome = pilot.result("under-way");
    assert_eq!(outcome.is_good().text("stdout"), "begun\nended\n");
    pilot.put("next", &debian("cat /etc/debian_version"));
    sleep(AWAY.saturating_sub(began.elapsed()));
    assert!(look_into(&pilot.spool(), "next").is_none(), "a bind without an API server");
    outage.end();
    ran_in_debian_at_once(&pilot.result("next"));
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

#[test]
fn the_api_server_is_gone_while_a_job_runs() {
    needs("1.20 or later; node, parts");
    a_job_ends_and_the_next_one_waits(|node| node.stop("kube-apiserver"));
}

#[test]
fn the_api_server_hangs_while_a_job_runs() {
    needs("1.20 or later; node, parts");
    a_job_ends_and_the_next_one_waits(|node| node.freeze("kube-apiserver"));
}

#[test]
fn the_api_server_goes_right_after_the_patch() {
    needs("1.20 or later; node, parts");
    let (pilot, inside) = alone();
    patched(&pilot, &inside, "bound");
    let outage = cluster().node().stop("kube-apiserver");
    sleep(AWAY);
    outage.end();
    ran_in_debian_at_once(&pilot.result("bound"));
    pilot.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn a_server_and_a_kubelet_that_are_away_for_long_end_no_bind() {
    needs("1.20 or later; node, parts");
    let (pilot, inside) = alone();
    pilot.job("first", &probe(&["hello"])).is_good();
    // The kubelet sees nothing of the patch.
    let kubelet = cluster().node().freeze("kubelet");
    pilot.put("bound", &debian("cat /etc/debian_version"));
    inside.reaches("bound.1", "binding");
    eventually("the patch", LIMIT, || pilot.object()["spec"].to_string().contains("/debian").then_some(()));
    let server = cluster().node().stop("kube-apiserver");
    sleep(LONGER_THAN_A_KUBELET_NEEDS);
    kubelet.end(); // and brings the server back
    server.end();
    ran_in_debian_at_once(&pilot.result("bound"));
}

#[test]
fn the_kubelet_is_started_again_in_mid_job_and_in_mid_bind() {
    needs("1.20 or later; node, parts");
    let (pilot, inside) = alone();
    pilot.put("under-way", &shell("echo begun; sleep 8; echo ended"));
    inside.runs("under-way.1", 0);
    cluster().node().restart("kubelet");
    let outcome = pilot.result("under-way");
    assert_eq!((outcome.is_good().text("stdout").as_str(), outcome.report.attempt), ("begun\nended\n", 1));
    patched(&pilot, &inside, "bound");
    cluster().node().restart("kubelet");
    ran_in_debian_at_once(&pilot.result("bound"));
    pilot.job("next", &probe(&["hello"])).is_good();
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

#[test]
fn connections_to_the_api_server_are_cut() {
    needs("1.20 or later; node, host network, loopback");
    let relay = Relay::to(cluster().api_port());
    let pilot = Options::new().spool(&[]).env("KUBERNETES_SERVICE_PORT", &relay.port().to_string()).start();
    let inside = pilot.inside();
    // Once, while the new container is on its way.
    patched(&pilot, &inside, "once");
    assert!(relay.cut() > 0, "no connection was there to be cut, after {}", relay.made());
    ran_in_debian_at_once(&pilot.result("once"));
    // Again and again, from before the bind on, for longer than it would last; so quickly that hardly any request gets
    // through.
    pilot.put("often", &probe(&["hello"]));
    let (mut cuts, began) = (0, Instant::now());
    while look_into(&pilot.spool(), "often").is_none() && began.elapsed() < Duration::from_secs(5) {
        cuts += relay.cut();
        sleep(Duration::from_millis(40));
    }
    let often = pilot.result("often");
    assert_eq!(often.is_good().report.attempt, 1, "{:#?}", often.report);
    assert!(cuts > 1, "{cuts} connections were cut: nothing was tried");
    // Of a pilot without work, whose next bind finds a connection that is no more.
    relay.cut();
    ran_in_debian_at_once(&pilot.job("after", &debian("cat /etc/debian_version")));
}
