//! One job: from the command line to the core, and from its report to an ending.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use latebind_contract::layout;
use serde_json::json;
use watcher::bind::{Class, Reason};
use watcher::job::{Report, Request};
use watcher::serve::client::Client;
use watcher::serve::protocol::{CLIENTS, Hold, LINE_MAX};

use super::arguments::Job;
use super::ending::{Ending, complain};
use super::environment;
use super::image::{TABLE, Table};
use super::signals::Signals;

/// How long a watcher that is being started again is waited for.
const WATCHER_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the startd may take to hold the job. Where its policy does not, the job goes back to its queue.
const HELD_WITHIN: Duration = Duration::from_secs(120);
/// Wait before a job is given back whose watcher has gone.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Runs the job, or holds what cannot be a job.
pub fn run(job: Result<Job, String>) -> Ending {
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(e) => return Ending::Again(format!("signals cannot be taken: {e}")),
    };
    let request = job.and_then(|job| request_of(&job));
    let client = match connect(&signals) {
        Ok(client) => client,
        Err(e) => return again(&signals, AGAIN_AFTER, format!("the watcher cannot be reached at {CLIENTS}: {e}")),
    };
    match request {
        Err(why) => {
            let hold = Hold { reason: Reason::InvalidJob, message: why.clone() };
            match client.hold(hold) {
                Ok(()) => held(&signals, why),
                Err(e) => again(&signals, AGAIN_AFTER, format!("{why}; the job could not be held: {e}")),
            }
        }
        Ok(request) => match submit(&client, &request, &signals) {
            Ok((report, back_off_s)) => of_report(&report, back_off_s, &signals),
            Err(e) => again(&signals, AGAIN_AFTER, format!("the watcher did not end the job: {e}")),
        },
    }
}

fn connect(signals: &Signals) -> io::Result<Client> {
    let give_up = Instant::now() + WATCHER_WITHIN;
    loop {
        match Client::connect(Path::new(CLIENTS)) {
            Err(e) if Instant::now() >= give_up || signals.ending().is_some() => return Err(e),
            Err(_) => signals.wait(LOOK_EVERY),
            client => return client,
        }
    }
}

fn submit(client: &Client, request: &Request, signals: &Signals) -> io::Result<(Report, f64)> {
    let fds: Vec<OwnedFd> =
        (0..3).map(|n| latebind_linux::sys::inherited(n).try_clone_to_owned()).collect::<io::Result<_>>()?;
    let fds: Vec<&dyn AsFd> = fds.iter().map(|fd| fd as &dyn AsFd).collect();
    let mut passer = Some(client.try_clone()?);
    // The first word about the job says that it is there, and can be signalled.
    client.run_to_end(request, &fds, |_| {
        if let Some(passer) = passer.take() {
            signals.pass_to(passer);
        }
    })
}

/// The request for a job whose sandbox is where the starter put this process.
fn request_of(job: &Job) -> Result<Request, String> {
    let here = std::env::current_dir().map_err(|e| format!("the working directory is not known: {e}"))?;
    let own: Result<Vec<_>, _> = std::env::vars_os()
        .map(|(name, value)| Ok((name.into_string().map_err(|_| "a name".to_owned())?, value)))
        .map(|pair: Result<_, String>| {
            let (name, value) = pair?;
            let value = value.into_string().map_err(|_| name.clone())?;
            Ok::<_, String>((name, value))
        })
        .collect();
    let own = own.map_err(|what| format!("the environment cannot be handed on: {what} is not UTF-8"))?;
    request_at(job, &here, own, &Table::open(Path::new(TABLE))?)
}

fn request_at(job: &Job, here: &Path, own: Vec<(String, String)>, table: &Table) -> Result<Request, String> {
    let data =
        data_of(here).ok_or_else(|| format!("{} is not beneath a slot's data/: set EXECUTE there", here.display()))?;
    let inside = |path: &str| path == data || path.strip_prefix(&data).is_some_and(|rest| rest.starts_with('/'));
    let mut links = BTreeMap::new();
    for (source, target) in &job.binds {
        if !inside(source) {
            return Err(format!("{source} cannot be bound into the container: only what is in the job's sandbox can"));
        }
        if source != target {
            links.insert(target.clone(), source.clone());
        }
    }
    let sandbox = here.to_str().and_then(|here| here.strip_prefix(&data)?.strip_prefix('/'));
    let request: Request = serde_json::from_value(json!({
        "id": "htcondor",
        "image": table.resolve(&job.image)?,
        "argv": job.argv,
        "env": environment::of_job(job, own.into_iter()),
        "cwd": job.cwd,
        "links": links,
        "relay": true,
        "sandbox": sandbox,
    }))
    .map_err(|e| e.to_string())?;
    // It could not be handed on, however often.
    match serde_json::to_string(&request) {
        Ok(text) if text.len() > LINE_MAX - 1024 => Err("arguments and environment are more than 1 MiB".into()),
        _ => Ok(request),
    }
}

/// `/shared/slot/<n>/data` above this directory.
fn data_of(here: &Path) -> Option<String> {
    let rest = here.to_str()?.strip_prefix(layout::SHARED)?.strip_prefix("/slot/")?;
    let (number, rest) = rest.split_once('/')?;
    rest.starts_with("data/").then(|| number.parse().ok().map(layout::data))?
}

fn of_report(report: &Report, back_off_s: f64, signals: &Signals) -> Ending {
    let why = format!("{}: {}", report.reason, report.message);
    if Hold::of(report).is_some() {
        return held(signals, why);
    }
    match (report.class, report.exit_code, report.signal) {
        (Class::Final, Some(code), _) => Ending::Code(code),
        (Class::Final, None, Some(signal)) => Ending::Signal(signal),
        _ => again(signals, Duration::try_from_secs_f64(back_off_s).unwrap_or(AGAIN_AFTER), why),
    }
}

/// The core has told the startd; this process waits for the starter to be told in turn, and to end it.
fn held(signals: &Signals, why: String) -> Ending {
    complain(&why);
    signals.wait(HELD_WITHIN);
    again(signals, Duration::ZERO, format!("not held within {HELD_WITHIN:?}: {why}"))
}

/// The starter asked for an end: then how this ends is no matter, and it must not look like a failure. Else the job is
/// given back.
fn again(signals: &Signals, after: Duration, why: String) -> Ending {
    signals.wait(after);
    signals.ending().map_or(Ending::Again(why), Ending::Signal)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    const D: &str = "/shared/slot/1/data/execute/dir_7";

    fn job(binds: &[(&str, &str)]) -> Job {
        Job {
            image: "docker://alpine".into(),
            argv: vec!["a".into()],
            binds: binds.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
            ..Job::default()
        }
    }

    #[test]
    fn a_request_is_for_the_directory_it_is_made_in() {
        let request = request_at(&job(&[(D, "/work"), (D, D)]), Path::new(D), Vec::new(), &Table::default()).unwrap();
        assert_eq!(request.sandbox.as_deref(), Some("execute/dir_7"));
        assert_eq!(request.image, "docker.io/library/alpine:latest");
        assert_eq!(request.links.0, [("/work".to_owned(), D.to_owned())]);
        assert_eq!(request.check_unprivileged(), Ok(()));
    }

    #[test]
    fn binds_and_directories_outside_are_refused() {
        for bind in ["/etc", "/shared/slot/1/data2", "/shared/slot/0/data/execute"] {
            assert!(request_at(&job(&[(bind, bind)]), Path::new(D), Vec::new(), &Table::default()).is_err(), "{bind}");
        }
        for here in [
            "/var/lib/condor/execute/dir_7",
            "/shared/slot/x/data/execute",
            "/shared/slot/1/ctl",
            "/shared/slot/1/data",
        ] {
            assert!(request_at(&job(&[]), Path::new(here), Vec::new(), &Table::default()).is_err(), "{here}");
        }
    }

    #[test]
    fn what_can_not_be_handed_on_is_refused() {
        let mut job = job(&[]);
        job.argv.push("x".repeat(LINE_MAX));
        assert!(request_at(&job, Path::new(D), Vec::new(), &Table::default()).is_err_and(|e| e.contains("1 MiB")));
    }

    #[test]
    fn only_a_jobs_own_ending_is_handed_on() {
        let request = request_at(&job(&[]), Path::new(D), Vec::new(), &Table::default()).unwrap();
        let signals = Signals::new().unwrap();
        let with = |class, exit_code, signal| {
            let report = Report { class, exit_code, signal, message: "why".into(), ..Report::new(&request) };
            of_report(&report, 0.0, &signals)
        };
        assert_eq!(with(Class::Final, Some(3), None), Ending::Code(3));
        assert_eq!(with(Class::Final, None, Some(11)), Ending::Signal(11));
        assert_eq!(with(Class::Retry, Some(0), None), Ending::Again("Unknown: why".into()));
        assert_eq!(with(Class::Final, None, None), Ending::Again("Unknown: why".into()));
    }
}
