//! One job: from the command line to the core, and from its report to an ending.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use latebind_contract::layout;
use latebind_contract::order::is_account;
use nix::unistd::{User, getuid};
use watcher::bind::{Class, Reason};
use watcher::job::{Bind, Report, Request};
use watcher::serve::client::Client;
use watcher::serve::protocol::{CLIENTS, Hold, LINE_MAX};
use watcher::text::printable;

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
    request_at(job, &here, std::env::vars_os(), account(), &Table::open(Path::new(TABLE))?)
}

/// The name of this process's account, which is the slot's, where it can name the payload in its container too.
fn account() -> Option<String> {
    let user = User::from_uid(getuid()).ok().flatten()?;
    Some(user.name).filter(|name| is_account(name))
}

fn request_at(
    job: &Job,
    here: &Path,
    own: impl Iterator<Item = (OsString, OsString)>,
    account: Option<String>,
    table: &Table,
) -> Result<Request, String> {
    let data =
        data_of(here).ok_or_else(|| format!("{} is not beneath a slot's data/: set EXECUTE there", here.display()))?;
    let (env, left_out) = environment::of_job(job, own);
    for name in left_out {
        complain(&format!("the variable {} is left out: its name is not UTF-8", printable(&name.to_string_lossy())));
    }
    let sandbox = here.to_str().and_then(|here| here.strip_prefix(&data)?.strip_prefix('/'));
    let mut request = Request::new("htcondor".into());
    request.image = table.resolve(&job.image)?;
    let words = if job.runs_image { &mut request.args } else { &mut request.argv };
    *words = job.argv.clone();
    (request.cwd, request.env) = (job.cwd.clone(), env);
    (request.binds, request.account) = (job.binds.iter().map(|bind| absolute(bind, here)).collect(), account);
    (request.relay, request.sandbox) = (true, sandbox.map(str::to_owned));
    // It could not be handed on, however often.
    match serde_json::to_string(&request) {
        Ok(text) if text.len() > LINE_MAX - 1024 => Err("arguments and environment are more than 1 MiB".into()),
        _ => Ok(request),
    }
}

/// A source that is not absolute is meant from the working directory.
fn absolute(bind: &Bind, here: &Path) -> Bind {
    let path: PathBuf = here.join(&bind.source).components().collect();
    Bind { source: path.to_string_lossy().into_owned(), ..bind.clone() }
}

/// Whether this process is in a slot's directory, as a job's is.
pub fn is_in_slot() -> bool {
    std::env::current_dir().is_ok_and(|here| data_of(&here).is_some())
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

    fn bind(source: &str, target: &str) -> Bind {
        Bind { source: source.into(), target: target.into(), read_only: false }
    }

    fn job(binds: &[(&str, &str)]) -> Job {
        Job {
            image: "docker://alpine".into(),
            argv: vec!["a".into()],
            binds: binds.iter().map(|(source, target)| bind(source, target)).collect(),
            ..Job::default()
        }
    }

    fn request(job: &Job, here: &str) -> Result<Request, String> {
        request_at(job, Path::new(here), std::iter::empty(), Some("slot1".into()), &Table::default())
    }

    #[test]
    fn a_request_is_for_the_directory_it_is_made_in() {
        let request = request(&job(&[(D, "/work"), ("./in", "/in"), (".", "/here")]), D).unwrap();
        assert_eq!(request.sandbox.as_deref(), Some("execute/dir_7"));
        assert_eq!(request.image, "docker.io/library/alpine:latest");
        let inner = format!("{D}/in");
        let seen: Vec<_> = request.binds.iter().map(|bind| (bind.source.as_str(), bind.target.as_str())).collect();
        assert_eq!(seen, [(D, "/work"), (inner.as_str(), "/in"), (D, "/here")]);
        assert_eq!((request.account.as_deref(), request.passwd), (Some("slot1"), true));
        assert_eq!(request.check_unprivileged(), Ok(()));
    }

    #[test]
    fn what_an_image_runs_by_itself_is_asked_for_by_run() {
        for (runs_image, argv, args) in [(false, 1, 0), (true, 0, 1)] {
            let request = request(&Job { runs_image, ..job(&[]) }, D).unwrap();
            assert_eq!((request.argv.len(), request.args.len(), request.check()), (argv, args, Ok(())));
        }
        let none = Job { runs_image: true, argv: Vec::new(), ..job(&[]) };
        assert_eq!(request(&none, D).unwrap().check(), Ok(()));
    }

    #[test]
    fn directories_outside_of_a_slot_are_refused() {
        for here in [
            "/var/lib/condor/execute/dir_7",
            "/shared/slot/x/data/execute",
            "/shared/slot/1/ctl",
            "/shared/slot/1/data",
        ] {
            assert!(request(&job(&[]), here).is_err(), "{here}");
        }
    }

    #[test]
    fn what_cannot_be_handed_on_is_refused() {
        let mut job = job(&[]);
        job.argv.push("x".repeat(LINE_MAX).into());
        assert!(request(&job, D).is_err_and(|e| e.contains("1 MiB")));
    }

    #[test]
    fn only_a_jobs_own_ending_is_handed_on() {
        let request = request(&job(&[]), D).unwrap();
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
