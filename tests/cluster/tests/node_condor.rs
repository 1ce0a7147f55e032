//! HTCondor's pilot in a pod, from `deploy/htcondor-before-1.32`, and from `deploy/htcondor` where the server is recent
//! enough: a real pool's container jobs, each in a container of its image. The pool is in the node's network, as its
//! pilots are.

use latebind_tests::pod::Signal;
use std::net::TcpListener;

use latebind_cluster_tests::condor::{Job, Pool, status};
use latebind_cluster_tests::relay::Relay;
use latebind_cluster_tests::{cluster, needs};
use serde_json::json;

/// The image's, for jobs without a shell.
const PROBE: &str = "executable = /probe\ntransfer_executable = False\n";

/// What a payload finds of the pilot's secrets: a line `OPEN ...` for each.
const LOOK_FOR_SECRETS: &str = r#"own=$(cat /proc/self/cgroup)
ls -d /etc/condor /pilot /run/latebind /var/run/secrets /run/secrets 2>/dev/null | sed 's/^/OPEN /'
for p in /proc/[0-9]*; do
    [ "$(cat $p/cgroup 2>/dev/null)" != "$own" ] || continue
    echo "seen $(cat $p/comm)"
    for f in environ mem root/pilot/tokens/pool root/etc/condor/tokens.d/pool root/var/run/secrets/kubernetes.io/serviceaccount/token; do
        head -c 1 $p/$f >/dev/null 2>&1 && echo "OPEN $p/$f $(cat $p/comm)"
    done
done
echo end"#;

fn secrets_are_out_of_reach(pool: &Pool) {
    let modes = pool.pilot.shell("stat -Lc '%a %u' /pilot/tokens/pool /etc/condor/tokens.d/pool");
    assert_eq!(modes, "600 0\n400 0\n");
    let job = pool.shell(LOOK_FOR_SECRETS);
    job.ends_with(0);
    let out = job.text("out");
    for program in ["singularity", "watcher", "condor_startd"] {
        assert!(out.contains(&format!("seen {program}\n")), "{out}");
    }
    assert!(out.ends_with("end\n") && !out.contains("OPEN"), "{out}");
}

/// The rights that the manifest gives are those that were enough for all of this, and no others.
fn rights_are_few(pool: &Pool) {
    let account = format!("--as=system:serviceaccount:{}:latebind-pilot", pool.pilot.namespace.name());
    let can = |verb: &str, what: &str| pool.pilot.namespace.call(&["auth", "can-i", verb, what, &account]).out();
    for verb in ["get", "watch", "patch"] {
        assert_eq!(can(verb, "pods").trim(), "yes", "{verb} pods");
    }
    for (verb, what) in [("create", "pods"), ("delete", "pods"), ("get", "secrets"), ("get", "configmaps")] {
        assert_eq!(can(verb, what).trim(), "no", "{verb} {what}");
    }
}

#[test]
fn jobs_in_several_images_go_through_one_pod_which_then_completes() {
    needs("1.20 or later; node, host network");
    let pool = Pool::start(|o| o.setting("ACCEPT_IDLE_MINUTES", "1").setting("GLIDEIN_Site", "Here"));
    // As big as the payload container; memory 5 % below, disk 10 %.
    let slot = pool.slot();
    let size = [&slot["Cpus"], &slot["Memory"], &slot["Disk"], &slot["GLIDEIN_Site"]];
    assert_eq!(size, [&json!(1), &json!(972), &json!((6 << 20) * 90 / 100), &json!("Here")]);
    let says = pool.submit(
        "busybox",
        "arguments = \"one 'two words'\"\nenvironment = \"A='b c' D=e\"\n",
        Some("echo \"$# $1 $2 $A $D\"; echo trouble >&2; echo x > made; exit 7"),
    );
    let missing = pool.submit("no-such-image", PROBE, None);
    // More binds than the backoffLimit of most Jobs: the controller takes each for a failure.
    let others: Vec<Job> = (10..20)
        .map(|n| match n % 3 {
            0 => pool.submit("noshell", &format!("{PROBE}arguments = exit {n}\n"), None),
            1 => pool.submit("debian", "", Some(&format!("cat /etc/debian_version; exit {n}"))),
            _ => pool.submit("passwd-link", "", Some(&format!("ls -d /bin/busybox; exit {n}"))),
        })
        .collect();
    says.ends_with(7);
    assert_eq!((says.text("out"), says.text("err")), ("2 one two words b c e\n".into(), "trouble\n".into()));
    assert_eq!(says.text("made"), "x\n");
    let (ad, reason) = missing.held_for();
    assert!(reason.contains("ImageNotFound") && reason.contains("no-such-image"), "{reason}");
    assert_eq!((&ad["HoldReasonCode"], &ad["HoldReasonSubCode"]), (&json!(21), &json!(201)));
    for (n, job) in (10..20).zip(&others) {
        job.ends_with(n);
        let of_image = ["", "12.", "/bin/busybox\n"][usize::try_from(n % 3).unwrap()];
        assert!(job.text("out").starts_with(of_image), "{}", job.text("out"));
    }
    // Each in a container of its own.
    let restarts = pool.pilot.status("payload")["restartCount"].as_u64();
    assert!(restarts >= Some(11), "{restarts:?}");
    assert_eq!(pool.pilot.status("pilot")["restartCount"], 0);
    secrets_are_out_of_reach(&pool);
    rights_are_few(&pool);
    // Nothing more to do.
    pool.completes();
}

/// A job that was interrupted is given back, with these words in its log, runs again and ends well.
#[track_caller]
fn runs_again(job: &Job, words: &str) {
    job.until("started again", |ad| ad["NumJobStarts"].as_i64() >= Some(2));
    let log = job.text("log");
    assert!(log.contains(words), "no {words:?} in {log}");
    job.ends_with(0);
    assert_eq!(job.text("out"), "whole\n");
}

#[test]
fn what_is_not_the_jobs_own_ending_is_none() {
    needs("1.20 or later; node, host network, loopback, registries");
    let pool = Pool::start(|o| o);
    // The registry is down for a while. An image that no other test has: the node would know it by another registry's
    // name, too.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let job = pool.submit(&format!("127.0.0.1:{free}/latebind/stopsignal-rtmin3:1"), "", Some("echo whole"));
    job.until("started again", |ad| ad["NumJobStarts"].as_i64() >= Some(2));
    let up_again = Relay::at(free, cluster().registry_port());
    runs_again(&job, "RegistryUnavailable");
    assert!(up_again.made() > 0);

    let job = pool.shell("echo > begun; sleep 10; echo whole");
    job.has_begun();
    cluster().node().kill_all(&pool.pilot.container_id("payload"), Signal::SIGKILL);
    runs_again(&job, "Lost");

    let (ad, reason) = pool.shell("exec /probe memory 3000 1").held_for();
    assert_eq!((&ad["HoldReasonCode"], &ad["HoldReasonSubCode"]), (&json!(21), &json!(102)), "{reason}");
    // The payload's limit, or the slot's, which HTCondor looks at; whoever is first.
    assert!(
        reason.contains("the payload container has 1024 MB") || reason.contains("the 972 MB of its slot"),
        "{reason}"
    );

    // Drained, the pilot gives its job back, and ends well.
    let job = pool.shell("echo > begun; sleep 1000");
    job.has_begun();
    pool.ask("root", "condor_drain -exit-on-completion \"$(condor_status -af Name)\"");
    job.until("given back", |ad| ad["JobStatus"] == status::IDLE);
    pool.completes();
    assert_eq!(job.ad()["JobStatus"], status::IDLE);
}

#[test]
fn a_deleted_pods_job_runs_in_the_next_one() {
    needs("1.20 or later; node, host network");
    deleted_in_mid_job(&mut Pool::start(|o| o));
}

/// Deletes the pilot's pod under a job, which then runs in the next pod.
fn deleted_in_mid_job(pool: &mut Pool) {
    let job = pool.shell("echo > begun; sleep 15; echo whole");
    job.has_begun();
    pool.pilot.namespace.ask(&["delete", "pod", &pool.pilot.pod, "--wait=false"]);
    runs_again(&job, "evicted");
    pool.follow();
    let log = pool.pilot.log("pilot");
    assert!(log.contains("\"reason\":\"Completed\""), "{log}");
}

/// The Job allows no failure, and takes the deletion for none.
#[test]
fn a_native_sidecars_jobs_go_on_in_the_next_pod_which_then_completes() {
    needs("1.32 or later; node, host network");
    let mut pool = Pool::of("deploy/htcondor", |o| o.setting("ACCEPT_IDLE_MINUTES", "1"));
    deleted_in_mid_job(&mut pool);
    let noshell = pool.submit("noshell", &format!("{PROBE}arguments = exit 3\n"), None);
    let debian = pool.submit("debian", "", Some("cat /etc/debian_version; exit 4"));
    noshell.ends_with(3);
    debian.ends_with(4);
    assert!(debian.text("out").starts_with("12."), "{}", debian.text("out"));
    pool.completes();
}
