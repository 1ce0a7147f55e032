//! The watcher's command line.
#![forbid(unsafe_code)]

mod arguments;
mod asked;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use arguments::{BinderKind, Cli, CoreArgs, END_NEEDS, Idle, PilotArgs, Private, RunArgs, Verb};
use latebind_contract::layout::Ids;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use watcher::bind::Binder;
use watcher::bind::host::Host;
use watcher::bind::kubernetes::{self, Kubernetes};
use watcher::job::download::Web;
use watcher::job::life::Settings;
use watcher::serve::pilot_jobs::PilotJobSlots;
use watcher::serve::sizes::Sizes;
use watcher::serve::{self, Core, Parts, Running, clients, protocol, server};
use watcher::slot::Slot;
use watcher::source::remote::command::Commands;
use watcher::source::remote::http::{self, Server};
use watcher::source::remote::{JobSource, Places};
use watcher::stop::Stop;
use watcher::views::{self, metrics, page, results, timeline, top};
use watcher::{check, finding, helper, keys, pilot, run, text};

/// Our own failure, as docker-run(1) has it.
const OUR_FAILURE: u8 = 125;

fn main() -> ExitCode {
    // A client that is not root may have a payload's UID, which could look into it and end it as it likes.
    if !nix::unistd::geteuid().is_root() {
        let _ = nix::sys::prctl::set_dumpable(false);
    }
    // Best effort: whoever starts it seldom has changed them.
    let _ = watcher::caller::reset_signals();
    // A code of 2 would be the job's.
    let cli: Cli = match text::arguments(OUR_FAILURE) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let level = match &cli.verb {
        // What its job ends with is said once, at the end.
        Verb::Run(args) if !args.verbose => "error",
        Verb::Signal { .. } | Verb::Stop(_) | Verb::Continue(_) | Verb::Exec(_) | Verb::Top { .. } => "warn",
        Verb::Report { .. } | Verb::Timeline { .. } => "warn",
        Verb::Check(_) => "error",
        _ => "info",
    };
    start_log(level);
    let result = match cli.verb {
        Verb::Run(args) => run_one(&args),
        Verb::Pilot(args) => serve_jobs(&args),
        Verb::Serve(args) => serve_clients(&args),
        Verb::Check(args) => check_pod(&args),
        Verb::Finish(args) => binder(&args).map(|binder| {
            let done = finish(args.slots, binder.as_ref());
            if done { ExitCode::SUCCESS } else { ExitCode::from(OUR_FAILURE) }
        }),
        Verb::Verify { record, key } => verify(&record, &key),
        Verb::Results { dir, keys } => table(&dir, &keys.keys),
        Verb::Report { path, keys } => report(&path, &keys.keys),
        Verb::Timeline { dir, html, keys } => results::find(&dir)
            .and_then(|found| {
                let reports = &found.reports;
                let drawn = if html { page::html(reports, &keys.keys) } else { timeline::svg(reports) };
                drawn.map_err(|e| io::Error::other(format!("{}: {e}", dir.display())))
            })
            .and_then(|drawn| say(&drawn)),
        Verb::Top { private, json, every, times } => show_top(&private, json, every, times),
        Verb::Jobs(private) => list(&private),
        Verb::Signal { private, job, signal, main } => send_signal(&private, &job, &signal, main),
        Verb::Exec(args) => asked::exec(&args),
        Verb::Stop(one) => send_signal(&one.private, &one.job, "STOP", false),
        Verb::Continue(one) => send_signal(&one.private, &one.job, "CONT", false),
        Verb::Helper { task, uid, gid, kill_uid } => {
            helper::main(&task, Ids { uid, gid, kill_uid }).and_then(|said| say(&said))
        }
    };
    result.unwrap_or_else(|e| {
        tracing::error!("{e}");
        ExitCode::from(OUR_FAILURE)
    })
}

/// For people on a terminal, JSON otherwise; LATEBIND_LOG sets the level.
fn start_log(level: &str) {
    let wanted = std::env::var("LATEBIND_LOG").unwrap_or_else(|_| level.to_owned());
    // What the API client has to say comes with our own errors; who wants to see each request names the crate.
    let quiet =
        if wanted.contains("kube_client") { "" } else { ",kube_client=off,tower=off,hyper_util=off,rustls=off" };
    let filter = tracing_subscriber::EnvFilter::new(format!("{wanted}{quiet}"));
    let for_people = text::is_error_seen() || ["warn", "error"].contains(&level);
    text::log(filter, if for_people { text::Form::Text } else { text::Form::Json });
}

fn say(text: &str) -> io::Result<ExitCode> {
    text::say(text)?;
    Ok(ExitCode::SUCCESS)
}

fn seconds(s: f64) -> io::Result<Duration> {
    Duration::try_from_secs_f64(s).map_err(|e| io::Error::other(format!("{s} seconds: {e}")))
}

/// The binder that was asked for.
fn binder(args: &CoreArgs) -> io::Result<Arc<dyn Binder>> {
    if args.binder == BinderKind::Host {
        return Ok(Arc::new(Host::new(args.bind_socket.clone())));
    }
    let given = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
    let host_name = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let of_account = || {
        std::fs::read_to_string("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
            .ok()
            .map(|n| n.trim().to_owned())
    };
    let missing = |what: &str| {
        io::Error::other(format!("the pod's {what} is not known: set it in the pilot container's environment"))
    };
    Ok(Arc::new(Kubernetes::new(kubernetes::Options {
        pod: given(&args.pod).or_else(host_name).ok_or_else(|| missing("name (LATEBIND_POD_NAME)"))?,
        namespace: given(&args.namespace)
            .or_else(of_account)
            .ok_or_else(|| missing("namespace (LATEBIND_POD_NAMESPACE)"))?,
        uid: given(&args.pod_uid),
        proxy: args.api_proxy.clone(),
        pull_timeout: seconds(args.pull_timeout)?,
        registries: args.ask_registry.then(|| kubernetes::registry::Options {
            pull_secret: args.pull_secret.clone(),
            plain_http: args.plain_http.clone(),
            ca: args.registry_ca.clone(),
        }),
        end_needs: END_NEEDS,
    })?))
}

fn check_pod(args: &CoreArgs) -> io::Result<ExitCode> {
    let slots: Vec<u32> = (0..args.slots).collect();
    let lines = match binder(args) {
        Ok(binder) => check::all(binder.as_ref(), &slots, &args.private.private),
        Err(e) => vec![finding::Finding::fail(
            "binder",
            &e.to_string(),
            "see docs/kubernetes.md for what the pilot container needs",
        )],
    };
    say(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    Ok(ExitCode::from(u8::from(lines.iter().any(|line| line.grade == finding::Grade::Fail))))
}

/// Which slots are for pilot-jobs.
fn pilot_job_slots(args: &CoreArgs) -> io::Result<PilotJobSlots> {
    PilotJobSlots::new(args.slots, args.pilot_jobs).map_err(|e| io::Error::other(format!("--pilot-jobs: {e}")))
}

/// How large the slots are.
fn slot_sizes(args: &CoreArgs) -> io::Result<Sizes> {
    let said = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let sizes = Sizes::from_environment(args.slots, said).map_err(io::Error::other)?;
    for slot in 0..args.slots.saturating_sub(args.pilot_jobs) {
        tracing::debug!(slot, "has {}", sizes.describe(slot));
    }
    Ok(sizes)
}

/// Starts the core in this process, and its socket; `for_one_job`: the process ends with that job.
fn start_core(args: &CoreArgs, binder: &Arc<dyn Binder>, for_one_job: bool) -> io::Result<Running> {
    // The usual soft limit, 1024, is for programs that use select(2); all shares of clients together may need more.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let running = Core::start(Parts {
        slots: (0..args.slots).collect(),
        pilot_jobs: pilot_job_slots(args)?,
        sizes: slot_sizes(args)?,
        private: args.private.private.clone(),
        binder: binder.clone(),
        settings: Settings {
            reuse: args.reuse,
            ready_within: seconds(args.ready_within)?,
            placeholder_when_idle: !for_one_job && args.idle == Idle::Placeholder,
            idle_after: seconds(args.idle_after)?,
            keep_keys: args.keep_keys.clone(),
            limits: args.most.limits()?,
            payload_has: args.payload_has.clone(),
            max_grace_s: seconds(args.most.max_grace)?.as_secs_f64(),
            max_kill_s: seconds(args.most.max_kill)?.as_secs_f64(),
            copy: args.most.copy_bounds(),
            copy_within: seconds(args.most.copy_within)?,
            clean_within: seconds(args.most.clean_within)?,
            web: Web::new(args.input_url.clone(), args.input_ca.as_deref())?,
            disk_size: args.most.data_size,
        },
        // What an earlier watcher left then has no client any more.
        drop_unfinished: for_one_job,
    })?;
    server::listen(running.core(), &args.private.private.join(protocol::SOCKET))?;
    if let Some(address) = args.metrics {
        let local = metrics::listen(running.core(), address)?;
        tracing::info!("metrics: http://{local}/metrics");
    }
    clients::listen_to_pilot_jobs(&running.core())?;
    if let Some(path) = args.clients.as_ref().filter(|_| !for_one_job) {
        clients::listen(running.core(), path)?;
    }
    Ok(running)
}

/// What is fetched from elsewhere, if that is where jobs come from.
fn remote(args: &PilotArgs) -> io::Result<Option<pilot::Remote>> {
    let (fetch_within, report_within) = (seconds(args.source.fetch_within)?, seconds(args.source.report_within)?);
    let source: Arc<dyn JobSource> = match (&args.from.fetch, &args.source.report, &args.from.source) {
        (Some(fetch), Some(report), _) => {
            Arc::new(Commands { fetch: fetch.clone(), report: report.clone(), fetch_within, report_within })
        }
        (_, _, Some(url)) => Arc::new(Server::new(http::Options {
            url: url.clone(),
            token: args.source.source_token.clone(),
            ca: args.source.source_ca.clone(),
            fetch_within,
            report_within,
            archive: Places::new(&args.core.private.private).archive(),
        })?),
        _ => return Ok(None),
    };
    Ok(Some(pilot::Remote { source, wait_most: seconds(args.source.fetch_wait)? }))
}

fn serve_jobs(args: &PilotArgs) -> io::Result<ExitCode> {
    let remote = remote(args)?;
    let own_spool = || Places::new(&args.core.private.private).spool();
    let spool = args.from.spool.clone().unwrap_or_else(own_spool);
    let stop = Stop::on_signals()?;
    let binder = binder(&args.core)?;
    let running = start_core(&args.core, &binder, false)?;
    let settings = pilot::Loop {
        spool,
        remote,
        binder: binder.clone(),
        core: running.core(),
        private: args.core.private.private.clone(),
        name: args.name.clone(),
        slots: pilot_job_slots(&args.core)?.payloads() as usize,
        all_slots: args.core.slots as usize,
        max_attempts: args.max_attempts.max(1),
        idle_exit: args.idle_exit.map(seconds).transpose()?,
    };
    let over = pilot::run(&settings, &stop)?;
    running.finish();
    if stop.is_requested() {
        tracing::info!(jobs = over, "stopped: the pilot ends");
        return Ok(ExitCode::from(args.stop_code));
    }
    finish(args.core.slots, binder.as_ref());
    tracing::info!(jobs = over, "no more work: the pilot ends");
    Ok(ExitCode::SUCCESS)
}

/// Ends glue in all slots, where the pod does not complete without. Whether that could be done.
fn finish(slots: u32, binder: &dyn Binder) -> bool {
    if !binder.pod_waits_for_glue() {
        return true;
    }
    let mut done = true;
    for number in 0..slots {
        let ended = Slot::open(number).and_then(|slot| slot.finish(Duration::from_secs(10)));
        if let Err(e) = ended {
            tracing::error!(slot = number, "glue could not be ended, so the pod may not complete: {e}");
            done = false;
        }
    }
    done
}

fn serve_clients(args: &CoreArgs) -> io::Result<ExitCode> {
    let stop = Stop::on_signals()?;
    let binder = binder(args)?;
    let running = start_core(args, &binder, false)?;
    // Jobs are taken all the same: who submits one gets the reason as its failure.
    let slots: Vec<u32> = (0..args.slots).collect();
    for line in check::all(binder.as_ref(), &slots, &args.private.private) {
        match line.grade {
            finding::Grade::Good => tracing::debug!("check: {line}"),
            finding::Grade::Warning => tracing::warn!("check: {line}"),
            finding::Grade::Fail => tracing::error!("check: {line}"),
        }
    }
    stop.wait();
    // As a pod ends: what is under way has to end within its grace period.
    running.core().cancel_all("the pilot was told to stop");
    running.finish();
    Ok(ExitCode::SUCCESS)
}

fn run_one(args: &RunArgs) -> io::Result<ExitCode> {
    args.streams.check()?;
    let request = asked::request_of(args)?;
    let socket = args.socket.clone().unwrap_or_else(|| args.core.private.private.join(protocol::SOCKET));
    // A watcher that serves already does it; else this process is one, for one job.
    let running = match std::os::unix::net::UnixStream::connect(&socket) {
        Ok(_) => None,
        Err(e) if args.socket.is_some() => {
            return Err(io::Error::new(e.kind(), format!("{}: {e}: does a watcher serve there?", socket.display())));
        }
        Err(_) => Some(start_core(&args.core, &binder(&args.core)?, true)?),
    };
    let (report, code) = run::run(&socket, &request, args.streams, args.verbose)?;
    if let Some(dir) = &args.results {
        std::fs::create_dir_all(dir)?;
    }
    let in_results = args.results.iter().map(|dir| dir.join("report.json"));
    for file in in_results.chain(args.report.clone()) {
        // A bare name has no directory of its own.
        let file = std::path::absolute(file)?;
        watcher::store::put_file(&file, text::json_for_people(&report)?.as_bytes(), 0o644)?;
    }
    let has_error = report.record.as_ref().is_some_and(|record| record.error.is_some());
    if report.class != watcher::bind::Class::Final || has_error || report.limit.is_some() {
        text::complain(&format!("watcher: {} ({}): {}", report.reason, report.class.name(), report.message));
    }
    for missing in &report.missing_outputs {
        text::complain(&format!("watcher: missing output: {missing}"));
    }
    drop(running);
    if let Some(signal) = report.signal.filter(|_| args.same_signal && report.verified) {
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(OUR_FAILURE)))
}

fn verify(record: &PathBuf, key: &PathBuf) -> io::Result<ExitCode> {
    let at = |path: &PathBuf, e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let kept: keys::Kept =
        serde_json::from_slice(&std::fs::read(key).map_err(|e| at(key, e))?).map_err(|e| at(key, e.into()))?;
    let bytes = match std::fs::read(record) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(at(record, e)),
    };
    match keys::check(bytes.as_deref(), &kept.secrets) {
        Ok(record) => say(&format!("{}\n", text::json_for_people(&record)?)),
        Err(refusal) => {
            text::complain(&format!("refused: {refusal}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn table(dir: &Path, keys: &Path) -> io::Result<ExitCode> {
    let found = results::find(dir)?;
    text::say(&results::table(&found.reports, keys))?;
    for unreadable in &found.unreadable {
        text::complain(&format!("watcher: {unreadable}"));
    }
    Ok(if found.unreadable.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(OUR_FAILURE) })
}

fn report(path: &Path, keys: &Path) -> io::Result<ExitCode> {
    let file = if path.is_dir() {
        // A job's directory in a spool has its result in one of its own.
        let [file, in_result] = ["report.json", "result/report.json"].map(|name| path.join(name));
        if in_result.exists() && !file.exists() { in_result } else { file }
    } else {
        path.to_owned()
    };
    let report = results::read(&file)?;
    let dir = file.parent().unwrap_or(Path::new("."));
    say(&views::report::text(&report, &keys::check_report(dir, &report, keys)))
}

fn show_top(private: &Private, json: bool, every: f64, times: Option<u64>) -> io::Result<ExitCode> {
    let options = top::Options { json, every: seconds(every)?.max(Duration::from_millis(100)), times };
    top::run(&private.private.join(protocol::SOCKET), &options, &Stop::on_signals()?)?;
    Ok(ExitCode::SUCCESS)
}

fn send_signal(private: &Private, job: &str, signal: &str, main: bool) -> io::Result<ExitCode> {
    let number = signal.parse().ok().or_else(|| {
        let upper = signal.to_ascii_uppercase();
        let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
        name.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
    });
    let number = number.filter(|n| (1..=31).contains(n)).ok_or_else(|| {
        io::Error::other(format!("there is no signal {:?}: use a name such as USR1, or a number from 1 to 31", signal))
    })?;
    let client = serve::client::Client::connect(&private.private.join(protocol::SOCKET))?;
    let jobs = client.jobs()?;
    let id = protocol::find(&jobs, job).map_err(io::Error::other)?;
    if main {
        client.signal(&id, number)?;
        return Ok(ExitCode::SUCCESS);
    }
    let reached = client.steer(&id, number)?;
    say(&format!("{id}: sent to {reached} processes\n"))
}

fn list(private: &Private) -> io::Result<ExitCode> {
    let jobs = serve::client::Client::connect(&private.private.join(protocol::SOCKET))?.jobs()?;
    say(&protocol::table(&jobs))
}
