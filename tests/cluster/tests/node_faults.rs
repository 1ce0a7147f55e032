//! Watcher, glue, payload container, pilot container and pairs of them are killed at each step of a job, and the pod's
//! sandbox under it:
//! no job is lost, none is reported twice, and none is good without a verified record.
//!
//! `LATEBIND_CLUSTER_FAULTS` says how many jobs, `LATEBIND_FAULT_SEED` repeats a run.

use latebind_tests::pod::Signal;
use std::collections::BTreeMap;
use std::time::Duration;

use latebind_cluster_tests::inside::until_let_go;
use latebind_cluster_tests::pilot::{JOB_WITHIN, Options, Pilot, shell};
use latebind_cluster_tests::{cluster, eventually, needs};
use latebind_tests::fault::{STEPS, Target, case, comes_to, is_reported_once, number, places, say};
use watcher::bind::Class;

/// The kubelet lets a container that ended wait for longer each time: after so many it is cheaper to have a new pod.
const PILOTS_OF_A_POD: u32 = 2;
/// How long a job may take with all its attempts and the kubelet's waits.
const RESULT_WITHIN: Duration = Duration::from_secs(240);

/// Kills a part of the pod, if it is there just now.
fn strike(pilot: &Pilot, target: Target) -> bool {
    let name = if target.is_of_the_pilot() { "pilot" } else { "payload" };
    let status = latebind_cluster_tests::pilot::status_of(&pilot.object(), name);
    let Some(container) = status.as_ref().and_then(latebind_cluster_tests::pilot::container_id) else { return false };
    let all = cluster().node().processes(&container);
    let hit = match target {
        Target::Watcher | Target::Glue => all.into_iter().take(1).collect(),
        Target::PayloadContainer | Target::PilotContainer => all,
    };
    cluster().node().kill(&hit, Signal::SIGKILL);
    !hit.is_empty()
}

#[test]
fn at_each_step_no_job_is_lost_and_none_reported_twice() {
    needs("1.20 or later; node");
    let (seed, runs) = (number("LATEBIND_FAULT_SEED").unwrap_or(3), number("LATEBIND_CLUSTER_FAULTS").unwrap_or(6));
    say(&format!("faults on the cluster: {runs} jobs, seed {seed} (LATEBIND_FAULT_SEED={seed} repeats it)"));
    let (mut kills, mut attempts, mut pilots) = (BTreeMap::<String, u32>::new(), 0, 0);
    let mut pilot: Option<Pilot> = None;
    for run in 0..runs {
        if pilots >= PILOTS_OF_A_POD {
            (pilot, pilots) = (None, 0);
        }
        let pilot = pilot.get_or_insert_with(|| Options::new().spool(&["--max-attempts", "20"]).start());
        let inside = pilot.inside();
        let (step, targets) = case(run, seed);
        let name = format!("f{run}");
        pilot.put(&name, &shell(&format!("sleep 1; echo {name}")));
        let there = comes_to(step, JOB_WITHIN, || inside.phase(&format!("{name}.1")));
        assert!(there, "{name} has not come to {}", STEPS[step]);
        for target in targets {
            let phase = inside.phase(&format!("{name}.1")).unwrap_or_else(|| "no attempt".into());
            if strike(pilot, target) {
                pilots += u32::from(target.is_of_the_pilot());
                *kills.entry(format!("{target:?} while {phase}")).or_default() += 1;
            }
        }
        let outcome = eventually(&format!("a result of {name}"), RESULT_WITHIN, || {
            latebind_tests::pod::look_into(&pilot.spool(), &name)
        });
        is_reported_once(&outcome, &pilot.spool(), &name);
        attempts += outcome.report.attempt;
    }
    kills.iter().for_each(|(what, n)| say(&format!("  {n:>4}  {what}")));
    let total: u32 = kills.values().sum();
    say(&format!(
        "faults on the cluster: seed {seed}: {runs} jobs, {total} kills, {attempts} attempts: none lost, none reported twice, none good without a record"
    ));
    assert!(u64::from(total) > runs / 2, "{kills:?}");
}

/// All containers of the pod end at once, and others are made over the same volumes, install among them.
#[test]
fn a_sandbox_is_made_again_over_the_old_volumes() {
    needs("1.20 or later; node");
    let pilot = Options::new().spool(&[]).start();
    let inside = pilot.inside();
    pilot.put("under-way", &until_let_go());
    inside.runs("under-way.1", 0);
    inside.write("ctl-0", "left", "by the sandbox before");
    let (uid, before) = (pilot.object()["metadata"]["uid"].clone(), pilot.container_id("pilot"));
    // The first process of the pod's PID namespace holds its sandbox.
    let pause = inside.process(1).expect("a PID namespace has a first process");
    cluster().node().kill(&[pause], Signal::SIGKILL);
    pilot.replaced("pilot", &before, RESULT_WITHIN);
    inside.runs("under-way.2", 0);
    inside.let_go(0);
    let outcome = eventually("a result of under-way", RESULT_WITHIN, || {
        latebind_tests::pod::look_into(&pilot.spool(), "under-way")
    });
    assert_eq!((outcome.is_good().text("stdout").as_str(), outcome.report.attempt), ("begun\nended\n", 2));
    let lost = pilot.attempt("under-way", 1);
    assert_eq!(lost.class, Class::Retry, "{lost:#?}");
    assert!(["GlueLost", "ContainerLost"].contains(&lost.reason.as_str()) && !lost.verified, "{lost:#?}");
    assert_eq!(pilot.object()["metadata"]["uid"], uid, "another pod, not another sandbox");
    assert_eq!(pilot.job("next", &shell("echo ran")).is_good().report.attempt, 1);
    assert_eq!(places(&pilot.spool(), "under-way"), ["done/under-way"]);
}
