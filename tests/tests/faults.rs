//! Faults: watcher, glue, payload container, pilot container, and pairs of them, killed at random moments of a job. No job is lost,
//! none is reported twice, and none is good without a verified record.
//!
//! `LATEBIND_FAULT_SEED` repeats a run; `make soak DURATION=600` goes on for a time.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use latebind_tests::pod::{Options, Pod, kill, look_into, podman, shell};

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

/// One job with faults at random moments, and what has to be true of it in the end.
fn one(pod: &Pod, random: &mut Random, name: &str, counts: &mut Counts) {
    let (first, pair) = (TARGETS[random.below(4) as usize], random.below(3) == 0);
    let second = TARGETS[random.below(4) as usize];
    // A bind takes about 0.3 s, the job 0.3 s: every phase has its share.
    let delays = [random.below(1_200), random.below(600)].map(Duration::from_millis);
    pod.put(name, &shell(&format!("sleep 0.3; echo {name}")));
    for (target, delay) in [(first, delays[0]), (second, delays[1])].into_iter().take(if pair { 2 } else { 1 }) {
        thread::sleep(delay);
        let phase = pod.phase(&format!("{name}.1")).unwrap_or_else(|| "no attempt".into());
        if strike(pod, target) {
            counts.pilots += u64::from(matches!(target, Target::Watcher | Target::PilotContainer));
            *counts.kills.entry(format!("{target:?} while {phase}")).or_default() += 1;
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

fn run(seed: u64, goes_on: impl Fn(u64) -> bool) -> Counts {
    let (mut random, mut counts) = (Random(seed), Counts::default());
    say(&format!("faults: seed {seed} (LATEBIND_FAULT_SEED={seed} repeats it)"));
    let mut pod = None;
    while goes_on(counts.jobs) {
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
        one(pod, &mut random, &name, &mut counts);
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

/// With a fixed seed and a few jobs; under `make soak` for as long as LATEBIND_SOAK_SECONDS says, with a seed of its own.
#[test]
fn no_job_is_lost_and_none_reported_twice() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let soak = number("LATEBIND_SOAK_SECONDS").map(Duration::from_secs);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let seed = number("LATEBIND_FAULT_SEED").unwrap_or(if soak.is_some() { clock } else { 1 });
    let began = Instant::now();
    let counts = run(seed, |jobs| soak.map_or(jobs < 12, |time| began.elapsed() < time));
    assert!(counts.jobs > 0 && counts.kills.values().sum::<u64>() > counts.jobs / 2, "{:?}", counts.kills);
}
