//! Faults: watcher, glue, payload container, pilot container, and pairs of them, killed at each step of a job and at random moments. No
//! job is lost, none is reported twice, and none is good without a verified record.
//!
//! `LATEBIND_FAULT_SEED` repeats a run, `LATEBIND_FAULT_RUNS` says how many jobs, and `make soak DURATION=600` goes on for a time.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use latebind_tests::pod::{JOB_WITHIN, Options, Pod, kill, look_into, podman, shell, with};
use serde_json::json;

/// How long a job may take, with all its attempts: the spool's delay doubles with each.
const RESULT_WITHIN: Duration = Duration::from_secs(120);

/// Jobs in one pod, then a new one: a pod's own start and end belong to what is tried.
const JOBS_OF_A_POD: u64 = 25;

/// latebind-host takes a pilot that fails 5 times within minutes for one that can not run.
const PILOTS_OF_A_POD: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Watcher,
    Glue,
    PayloadContainer,
    PilotContainer,
}

const TARGETS: [Target; 4] = [Target::Watcher, Target::Glue, Target::PayloadContainer, Target::PilotContainer];

/// A job's steps in their order, as the watcher writes them down.
const STEPS: [&str; 8] = ["queued", "staging", "binding", "starting", "running", "collecting", "cleaning", "done"];

/// Each step with each target alone, and with each pair of them.
const CASES: u64 = 8 * (4 + 16);

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

    /// The case of this number, of `CASES`.
    fn at_step(case: u64, random: &mut Random) -> Self {
        let (step, combination) = ((case % 8) as usize, (case / 8 % 20) as usize);
        let targets = match combination.checked_sub(4) {
            None => vec![TARGETS[combination]],
            Some(pair) => vec![TARGETS[pair / 4], TARGETS[pair % 4]],
        };
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
        Target::Watcher => main("pilot").map(|pid| kill(pid, 9)).is_some(),
        Target::Glue => main(&pod.payload_role(0)).map(|pid| kill(pid, 9)).is_some(),
        Target::PayloadContainer => container(&pod.payload_role(0)),
        Target::PilotContainer => container("pilot"),
    }
}

/// Waits until a job has come to a step, or is beyond it.
fn comes_to(pod: &Pod, attempt: &str, step: usize) {
    let give_up = Instant::now() + JOB_WITHIN;
    let mut seen = false;
    while Instant::now() < give_up {
        let phase = pod.phase(attempt);
        let at = phase.as_deref().and_then(|phase| STEPS.iter().position(|name| *name == phase));
        // What is delivered is forgotten.
        if at.is_some_and(|at| at >= step) || seen && phase.is_none() {
            return;
        }
        seen |= phase.is_some();
        thread::sleep(Duration::from_micros(200));
    }
    panic!("{attempt} has not come to {}:\n{}", STEPS[step], pod.said());
}

/// One job with a fault, and what has to be true of it in the end.
fn one(pod: &Pod, fault: Fault, name: &str, counts: &mut Counts) {
    let mut hit = |target: Target| {
        let phase = pod.phase(&format!("{name}.1")).unwrap_or_else(|| "no attempt".into());
        if strike(pod, target) {
            counts.pilots += u64::from(matches!(target, Target::Watcher | Target::PilotContainer));
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
            comes_to(pod, &format!("{name}.1"), step);
            thread::sleep(delay);
            targets.into_iter().for_each(hit);
        }
    }
    let outcome = pod.result_within(name, RESULT_WITHIN);
    outcome.is_good();
    let report = &outcome.report;
    let record = report.record.as_ref().unwrap_or_else(|| panic!("good without a record: {report:#?}"));
    assert_eq!((record.job.as_str(), outcome.text("stdout")), (report.job.as_str(), format!("{name}\n")));
    assert!(outcome.dir.join("result/record.jws").is_file());
    // Reported once, and nowhere else.
    thread::sleep(Duration::from_millis(20));
    let places = ["new", "done", "held"].iter().map(|place| pod.spool.join(place));
    let claimed = fs::read_dir(pod.spool.join("claimed")).into_iter().flatten().flatten().map(|e| e.path());
    let here: Vec<_> = places
        .chain(claimed)
        .flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n == name || n.starts_with(&format!("{name}.")))
        })
        .collect();
    assert_eq!(here, [pod.spool.join("done").join(name)], "the job is in one place");
    assert!(look_into(&pod.spool, name).is_some());
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

fn say(text: &str) {
    // Past the test harness, which would keep it to itself.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|s| s.parse().ok())
}

fn tried(counts: &Counts) {
    assert!(counts.jobs > 0 && counts.kills.values().sum::<u64>() > counts.jobs / 2, "{:?}", counts.kills);
}

/// With a fixed seed and a few jobs; under `make soak` for as long as LATEBIND_SOAK_SECONDS says, with a seed of its own and the
/// steps in between.
#[test]
fn at_random_moments_no_job_is_lost_and_none_reported_twice() {
    let soak = number("LATEBIND_SOAK_SECONDS").map(Duration::from_secs);
    let clock = glue::contract::time::wall().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let seed = number("LATEBIND_FAULT_SEED").unwrap_or(if soak.is_some() { clock } else { 1 });
    let began = Instant::now();
    tried(&run(seed, |jobs, random| match soak {
        Some(time) if began.elapsed() >= time => None,
        Some(_) if jobs % 2 == 0 => Some(Fault::at_step(random.below(CASES), random)),
        None if jobs >= 8 => None,
        _ => Some(Fault::at_random(random)),
    }));
}

/// Each step once, with a fixed seed; all cases of all steps with LATEBIND_FAULT_RUNS=160, twice with 320.
#[test]
fn at_each_step_no_job_is_lost_and_none_reported_twice() {
    let (seed, runs) = (number("LATEBIND_FAULT_SEED").unwrap_or(2), number("LATEBIND_FAULT_RUNS").unwrap_or(8));
    // So that a few runs meet each step and different targets: 57 is one more than a multiple of 8, and has no factor in common with
    // the number of cases.
    tried(&run(seed, |jobs, random| (jobs < runs).then(|| Fault::at_step(jobs * 57 + seed, random))));
}
