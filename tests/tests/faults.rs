//! Faults: watcher, glue, payload container, pilot container, and pairs of them, killed at each step of a job and at
//! random moments. No job is lost, none is reported twice, and none is good without a verified record.
//!
//! `LATEBIND_FAULT_SEED` repeats a run, `LATEBIND_FAULT_RUNS` says how many jobs, and `make soak DURATION=600` goes on
//! for a time.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use latebind_tests::fault::{CASES, STEPS, TARGETS, Target, case, comes_to, is_reported_once, number, say};
use latebind_tests::pod::{JOB_WITHIN, Options, Pod, Signal, kill, podman, shell, with};
use serde_json::json;

/// How long a job may take, with all its attempts: the spool's delay doubles with each.
const RESULT_WITHIN: Duration = Duration::from_secs(120);

/// Jobs in one pod, then a new one: a pod's own start and end belong to what is tried.
const JOBS_OF_A_POD: u64 = 25;

/// latebind-host takes a pilot that fails 5 times within minutes for one that cannot run.
const PILOTS_OF_A_POD: u64 = 3;

/// When and what is killed.
enum Fault {
    /// One or two targets, each after a time.
    Moments(Vec<(Target, Duration)>),
    /// The targets, one right after the other, so long after the step was reached.
    Step(usize, Vec<Target>, Duration),
}

impl Fault {
    fn at_random(random: &mut Random) -> Self {
        let (first, pair) = (TARGETS[random.below(4) as usize], random.below(3) == 0);
        let second = TARGETS[random.below(4) as usize];
        // A bind takes about 0.3 s, the job 0.3 s: every phase has its share.
        let delays = [random.below(1_200), random.below(600)].map(Duration::from_millis);
        Self::Moments([(first, delays[0]), (second, delays[1])].into_iter().take(if pair { 2 } else { 1 }).collect())
    }

    /// The `n`th of those at a step.
    fn at_step(n: u64, seed: u64, random: &mut Random) -> Self {
        let (step, targets) = case(n, seed);
        // At once, and up to 63 ms later: most steps are shorter than that.
        let delay = (1 << random.below(7)) - 1;
        Self::Step(step, targets, Duration::from_millis(delay))
    }
}

/// SplitMix64: the same seed, the same faults.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

#[derive(Default)]
struct Counts {
    jobs: u64,
    attempts: u64,
    most_attempts: u32,
    pilots: u64,
    kills: BTreeMap<String, u64>,
}

/// Kills one of a pod's parts, if it is there just now.
fn strike(pod: &Pod, target: Target) -> bool {
    let main = |role: &str| {
        let pid: i32 = fs::read_to_string(pod.place().join("pid").join(role)).ok()?.trim().parse().ok()?;
        fs::metadata(format!("/proc/{pid}")).is_ok().then_some(pid)
    };
    let container = |role: &str| podman(&["kill", "--signal", "KILL", &pod.container(role)]).status.success();
    match target {
        Target::Watcher => main("pilot").map(|pid| kill(pid, Signal::SIGKILL)).is_some(),
        Target::Glue => main(&pod.payload_role(0)).map(|pid| kill(pid, Signal::SIGKILL)).is_some(),
        Target::PayloadContainer => container(&pod.payload_role(0)),
        Target::PilotContainer => container("pilot"),
    }
}

/// One job with a fault, and what has to be true of it in the end.
fn one(pod: &Pod, fault: Fault, name: &str, counts: &mut Counts) {
    let mut hit = |target: Target| {
        let phase = pod.phase(&format!("{name}.1")).unwrap_or_else(|| "no attempt".into());
        if strike(pod, target) {
            counts.pilots += u64::from(target.is_of_the_pilot());
            *counts.kills.entry(format!("{target:?} while {phase}")).or_default() += 1;
        }
    };
    // Inputs and outputs make the steps long enough to be met.
    let job = with(shell(&format!("sleep 0.3; echo {name}")), "outputs", json!(["big"]));
    pod.put_with(name, &job, &[("inputs/big", &vec![1; 4 << 20])]);
    match fault {
        Fault::Moments(moments) => {
            for (target, delay) in moments {
                thread::sleep(delay);
                hit(target);
            }
        }
        Fault::Step(step, targets, delay) => {
            let there = comes_to(step, JOB_WITHIN, || pod.phase(&format!("{name}.1")));
            assert!(there, "{name} has not come to {}:\n{}", STEPS[step], pod.said());
            thread::sleep(delay);
            targets.into_iter().for_each(hit);
        }
    }
    let outcome = pod.result_within(name, RESULT_WITHIN);
    is_reported_once(&outcome, &pod.spool, name);
    let report = &outcome.report;
    counts.jobs += 1;
    counts.attempts += u64::from(report.attempt);
    counts.most_attempts = counts.most_attempts.max(report.attempt);
}

fn run(seed: u64, next: impl Fn(u64, &mut Random) -> Option<Fault>) -> Counts {
    let (mut random, mut counts) = (Random(seed), Counts::default());
    say(&format!("faults: seed {seed} (LATEBIND_FAULT_SEED={seed} repeats it)"));
    let mut pod = None;
    while let Some(fault) = next(counts.jobs, &mut random) {
        if counts.jobs.is_multiple_of(JOBS_OF_A_POD) || counts.pilots >= PILOTS_OF_A_POD {
            pod = None; // the old one goes first
            counts.pilots = 0;
        }
        let pod = pod.get_or_insert_with(|| {
            let pod = Options::new().pilot(&["--max-attempts", "20"]).start();
            pod.serves();
            pod
        });
        let name = format!("f{}", counts.jobs);
        one(pod, fault, &name, &mut counts);
    }
    say(&summary(&counts, seed));
    counts
}

fn summary(counts: &Counts, seed: u64) -> String {
    let mut text = String::new();
    for (what, n) in &counts.kills {
        text += &format!("  {n:>4}  {what}\n");
    }
    let kills: u64 = counts.kills.values().sum();
    text + &format!(
        "faults: seed {seed}: {} jobs, {kills} kills, {} attempts (at most {}): none lost, none reported twice, none good without a record",
        counts.jobs, counts.attempts, counts.most_attempts
    )
}

fn tried(counts: &Counts) {
    assert!(counts.jobs > 0 && counts.kills.values().sum::<u64>() > counts.jobs / 2, "{:?}", counts.kills);
}

/// With a fixed seed and a few jobs; under `make soak` for as long as LATEBIND_SOAK_SECONDS says, with a seed of its
/// own and the steps in between.
#[test]
fn at_random_moments_no_job_is_lost_and_none_reported_twice() {
    let soak = number("LATEBIND_SOAK_SECONDS").map(Duration::from_secs);
    let clock = latebind_contract::time::wall().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let seed = number("LATEBIND_FAULT_SEED").unwrap_or(if soak.is_some() { clock } else { 1 });
    let began = Instant::now();
    tried(&run(seed, |jobs, random| match soak {
        Some(time) if began.elapsed() >= time => None,
        Some(_) if jobs % 2 == 0 => Some(Fault::at_step(random.below(CASES), 0, random)),
        None if jobs >= 8 => None,
        _ => Some(Fault::at_random(random)),
    }));
}

/// Each step once, with a fixed seed; all cases of all steps with LATEBIND_FAULT_RUNS=160, twice with 320.
#[test]
fn at_each_step_no_job_is_lost_and_none_reported_twice() {
    let (seed, runs) = (number("LATEBIND_FAULT_SEED").unwrap_or(2), number("LATEBIND_FAULT_RUNS").unwrap_or(8));
    tried(&run(seed, |jobs, random| (jobs < runs).then(|| Fault::at_step(jobs, seed, random))));
}
