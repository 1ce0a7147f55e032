//! What it costs to claim a job from a spool with very many, and to look at very many results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use serde_json::json;
use watcher::source::Queue;
use watcher::source::spool::Spool;

use crate::Failed;
use crate::pod::output;
use crate::report::Report;
use crate::sample::{Sample, now};

/// Most claims that are made of one spool.
const CLAIMS: usize = 10_000;

/// A directory that goes with the value.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self, Failed> {
        let path = std::env::temp_dir().join(format!("latebind-bench-claims-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Claims jobs of a spool with `jobs` of them, by so many pilots at a time, until none is left or enough were claimed.
pub fn claims(report: &mut Report, jobs: usize, pilots: usize) -> Result<(), Failed> {
    let dir = Directory::new()?;
    latebind_tests::rate::put(&dir.0, jobs, "busybox:1")?;
    let most = (jobs / 2).min(CLAIMS) / pilots.max(1);
    let start = Barrier::new(pilots);
    let began = now();
    let taken: Result<Vec<(Vec<u64>, u64)>, Failed> = thread::scope(|scope| {
        let pilots: Vec<_> = (0..pilots)
            .map(|n| {
                let (dir, start) = (&dir.0, &start);
                scope.spawn(move || {
                    let opened = Spool::open(dir, &format!("pilot-{n}"));
                    start.wait();
                    claim_all(Queue::new(opened.map_err(|e| e.to_string())?), most)
                })
            })
            .collect();
        pilots.into_iter().map(|pilot| pilot.join().map_err(|_| "a pilot has panicked".to_owned())?).collect()
    });
    let took = now().saturating_sub(began);
    let taken = taken?;
    let (times, waits): (Vec<Vec<u64>>, Vec<u64>) = taken.into_iter().unzip();
    let who = format!("{jobs} jobs, {pilots} pilots");
    let claimed = times.iter().map(Vec::len).sum::<usize>();
    let longest = times.iter().flatten().copied().max().unwrap_or_default();
    let sample = Sample(times.into_iter().flatten().collect());
    report.add_sample("a claim from a spool", who.clone(), &sample);
    report.add("the longest claim", who.clone(), longest as f64 / 1e6, "ms");
    report.add("looks that found no job though there were some", who.clone(), waits.iter().sum::<u64>() as f64, "");
    report.add("claims a second of all pilots", who, claimed as f64 / (took as f64 / 1e9), "/s");
    Ok(())
}

/// How long each of so many claims took, and how often there was none.
fn claim_all(mut queue: Queue, most: usize) -> Result<(Vec<u64>, u64), Failed> {
    let (mut times, mut waits) = (Vec::new(), 0);
    while times.len() < most {
        let began = now();
        match queue.claim().map_err(|e| e.to_string())? {
            Some(_) => times.push(now().saturating_sub(began)),
            None if waits > 10_000 => return Err("no job is found any more".into()),
            None => {
                waits += 1;
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    Ok((times, waits))
}

/// How long the views take for a spool with so many results.
pub fn results(report: &mut Report, jobs: usize) -> Result<(), Failed> {
    let dir = Directory::new()?;
    put_results(&dir.0, jobs).map_err(|e| e.to_string())?;
    let spool = dir.0.to_string_lossy().into_owned();
    for (figure, words) in [
        ("watcher results", &["results"][..]),
        ("watcher timeline", &["timeline"]),
        ("watcher timeline --html", &["timeline", "--html"]),
    ] {
        let mut times = Vec::new();
        for _ in 0..5 {
            let began = now();
            output(Command::new("dist/watcher").args(words).args([
                spool.as_str(),
                "--keys",
                &format!("{spool}/keys"),
            ]))?;
            times.push(now().saturating_sub(began));
        }
        report.add_sample(figure, format!("{jobs} results"), &Sample(times));
    }
    Ok(())
}

/// Results as a pod leaves them.
fn put_results(spool: &Path, jobs: usize) -> std::io::Result<()> {
    for n in 0..jobs {
        let dir = spool.join(format!("done/job-{n:06}"));
        fs::create_dir_all(dir.join("result"))?;
        fs::create_dir(dir.join("submitted"))?;
        for file in ["claim.json", "job.json", "result/stdout", "result/stderr"] {
            fs::write(dir.join(file), "{}")?;
        }
        let at = n as f64;
        let phases: Vec<_> = ["staging", "binding", "starting", "running", "collecting", "cleaning", "done"]
            .iter()
            .zip(0u32..)
            .map(|(phase, k)| json!({"phase": phase, "at": 1e9 + at + f64::from(k) / 10.0}))
            .collect();
        let mut one =
            serde_json::to_value(watcher::job::Report::new(&watcher::job::Request::new(format!("job-{n:06}.1"))))?;
        if let Some(one) = one.as_object_mut() {
            one.insert("phases".into(), json!(phases));
            one.insert("slot".into(), json!(n % 4));
            one.insert("pilot".into(), json!(format!("pilot-{}", n % 20)));
        }
        fs::write(dir.join("result/report.json"), serde_json::to_vec_pretty(&one)?)?;
    }
    Ok(())
}
