//! Jobs that come from an HTTP server, and results that go there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use latebind_tests::pod::{JOB_WITHIN, Options, Scratch, eventually, shell, with};
use latebind_tests::shortage::NoMoreProcesses;
use latebind_tests::web::{Asked, Says, WebServer, make_certificates};
use serde_json::{Value, json};
use watcher::job::{Report, Request};
use watcher::source::remote::http::{self, Server};
use watcher::source::remote::{Answer, JobSource, Over, SourceError, TimeLimit};

const MINUTE: Duration = Duration::from_secs(60);

/// A client of this server with these files, and a time for each request.
fn client(url: &str, dir: &Path, within: Duration) -> Server {
    let given = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
    let (token, ca) = (given("token"), given("ca.pem"));
    let options = http::Options {
        url: url.into(),
        token,
        ca,
        fetch_within: within,
        report_within: within,
        archive: dir.join("archive"),
    };
    Server::new(options).unwrap()
}

fn fetch(server: &Server) -> Result<Answer, SourceError> {
    server.fetch(Path::new("/nowhere"), &TimeLimit::default())
}

/// What a server that always says this is understood as.
fn answered(says: Says) -> Result<Answer, SourceError> {
    let scratch = Scratch::new();
    let server = WebServer::start(None, move |_| says.clone());
    fetch(&client(&server.url("/jobs"), scratch.path(), MINUTE))
}

#[test]
fn statuses_say_what_there_is_and_a_server_is_left_alone_as_it_asks() {
    assert_eq!(answered(Says::body("job")), Ok(Answer::Job(b"job".to_vec())));
    assert_eq!(answered(Says::status(204)), Ok(Answer::Nothing(None)));
    let wait = |says: Says| says.with("Retry-After: 7");
    assert_eq!(answered(wait(Says::status(204))), Ok(Answer::Nothing(Some(Duration::from_secs(7)))));
    let error = answered(wait(Says { status: 429, ..Says::body("too many") })).unwrap_err();
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
    assert!(error.why.contains("429") && error.why.contains("too many"), "{error}");
    for status in [201, 301, 302, 400, 401, 404, 500, 503] {
        let says = Says { status, ..Says::body(vec![b'x'; 100_000]) }.with("Location: http://127.0.0.1:1/");
        let error = answered(says).unwrap_err();
        assert!(error.why.contains(&status.to_string()) && error.why.len() < 1_000, "{status}: {error}");
    }
}

#[test]
fn what_a_server_sends_has_a_bound_and_a_deadline() {
    let most = 1 << 20;
    assert!(matches!(answered(Says::body(vec![b' '; most])), Ok(Answer::Job(body)) if body.len() == most));
    assert!(answered(Says::body(vec![b' '; most + 1])).is_err());
    let scratch = Scratch::new();
    let silent = WebServer::start(None, |_| {
        std::thread::sleep(Duration::from_secs(3600));
        Says::status(204)
    });
    let within = Duration::from_millis(300);
    assert!(fetch(&client(&silent.url("/"), scratch.path(), within)).is_err());
    let limit = TimeLimit::default();
    limit.end_at(Instant::now() + within);
    let patient = client(&silent.url("/"), scratch.path(), Duration::from_secs(3600));
    assert!(patient.fetch(scratch.path(), &limit).is_err(), "the end of the pilot is a deadline too");
}

#[test]
fn a_token_is_read_again_and_certificates_are_checked() {
    let scratch = Scratch::new();
    let dir = scratch.path();
    make_certificates(dir);
    let server = WebServer::start(Some(dir), |asked| {
        Says::body(asked.headers.get("authorization").cloned().unwrap_or_default())
    });
    let said = |client: &Server| match fetch(client).unwrap() {
        Answer::Job(text) => String::from_utf8(text).unwrap(),
        Answer::Nothing(_) => panic!("nothing"),
    };
    fs::write(dir.join("token"), "first\n").unwrap();
    let known = client(&server.url("/"), dir, MINUTE);
    assert_eq!(said(&known), "Bearer first");
    fs::write(dir.join("token"), "second").unwrap();
    assert_eq!(said(&known), "Bearer second");
    fs::remove_file(dir.join("token")).unwrap();
    assert!(fetch(&known).unwrap_err().why.contains("token"));
    let other = Scratch::new();
    make_certificates(other.path());
    for stranger in [other.path(), &dir.join("none")] {
        let error = fetch(&client(&server.url("/"), stranger, MINUTE)).unwrap_err();
        assert!(error.why.to_lowercase().contains("certificate"), "{error}");
    }
}

/// A result with a report of this class, and what there may be beside it.
fn result(dir: &Path) -> Report {
    let report = Report { finished_at: "x".into(), ..Report::new(&Request::new("a.1".into())) };
    fs::create_dir_all(dir.join("outputs/deep")).unwrap();
    fs::write(dir.join("report.json"), serde_json::to_vec(&report).unwrap()).unwrap();
    fs::write(dir.join("outputs/deep/file"), vec![7; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("deep/file", dir.join("outputs/link")).unwrap();
    report
}

type Requests = Arc<Mutex<Vec<Asked>>>;

#[test]
fn a_result_is_an_archive_and_then_the_report_and_is_not_taken_by_half() {
    let scratch = Scratch::new();
    let dir = scratch.path().join("result");
    let report = result(&dir);
    let asked: Requests = Arc::default();
    let refuses: Arc<Mutex<Option<&str>>> = Arc::default();
    let server = WebServer::start(None, {
        let (asked, refuses) = (asked.clone(), refuses.clone());
        move |one| {
            asked.lock().unwrap().push(one.clone());
            Says::status(if *refuses.lock().unwrap() == Some(one.method.as_str()) { 503 } else { 201 })
        }
    });
    let client = client(&server.url("/jobs?queue=a"), scratch.path(), MINUTE);
    let over = Over { name: "a", result: &dir, report: &report };
    let say = || client.report(&over, &TimeLimit::default());
    let had = || asked.lock().unwrap().drain(..).map(|a| (a.method, a.path)).collect::<Vec<_>>();
    let put = ("PUT".to_owned(), "/jobs/a/result.tar.gz?queue=a".to_owned());
    let post = ("POST".to_owned(), "/jobs/a?queue=a".to_owned());
    for (method, requests) in [("PUT", vec![put.clone()]), ("POST", vec![put, post])] {
        *refuses.lock().unwrap() = Some(method);
        assert!(say().is_err_and(|e| e.why.contains("503")));
        assert_eq!(had(), requests);
    }
    *refuses.lock().unwrap() = None;
    say().unwrap();
    let asked = asked.lock().unwrap();
    assert_eq!(serde_json::from_slice::<Report>(&asked[1].body).unwrap(), report);
    let to = unpacked(&asked[0].body, scratch.path());
    assert_eq!(fs::read(to.join("outputs/deep/file")).unwrap(), vec![7; 3 << 20]);
    assert_eq!(fs::read_link(to.join("outputs/link")).unwrap(), Path::new("deep/file"));
    assert!(to.join("report.json").exists());
}

fn unpacked(archive: &[u8], scratch: &Path) -> PathBuf {
    let to = scratch.join("unpacked");
    fs::create_dir(&to).unwrap();
    fs::write(scratch.join("got.tar.gz"), archive).unwrap();
    let tar = Command::new("tar").arg("-xzf").arg(scratch.join("got.tar.gz")).arg("-C").arg(&to).status().unwrap();
    assert!(tar.success());
    to
}

#[test]
fn a_pod_serves_a_server_of_jobs_until_it_has_none() {
    let scratch = Scratch::new();
    let dir = scratch.path();
    make_certificates(dir);
    fs::write(dir.join("token"), "secret").unwrap();
    let job = |name: &str, job: Value| with(job, "name", json!(name)).to_string();
    let outputs = with(shell("echo said; echo kept >file"), "outputs", json!(["file"]));
    let jobs = Mutex::new(vec![job("b", shell("exit 3")), job("a", outputs)]);
    let taken: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    let trouble = Mutex::new(2);
    let server = WebServer::start(Some(dir), {
        let taken = taken.clone();
        move |asked| {
            if asked.headers.get("authorization").map(String::as_str) != Some("Bearer secret") {
                return Says::status(401);
            }
            if asked.method == "GET" {
                return jobs.lock().unwrap().pop().map_or(Says::status(204), Says::body);
            }
            let mut trouble = trouble.lock().unwrap();
            if *trouble > 0 {
                *trouble -= 1;
                return Says::status(500);
            }
            let known = taken.lock().unwrap().insert(asked.path.clone(), asked.body.clone());
            Says::status(if known.is_some() { 409 } else { 200 })
        }
    });
    let url = server.url("/jobs");
    let mount = format!("{}:/etc/source:ro", dir.display());
    let mut pod = Options::new()
        .host(&["--network", "host", "--mount", &mount])
        .source(&["--source", &url, "--source-token", "/etc/source/token", "--source-ca", "/etc/source/ca.pem"])
        .pilot(&["--idle-exit", "2"])
        .start();
    let has = |path: &str| taken.lock().unwrap().get(path).cloned();
    for (name, code) in [("a", 0), ("b", 3)] {
        let what = format!("{name} is reported\n{}", pod.said());
        let report = eventually(&what, JOB_WITHIN, || has(&format!("/jobs/{name}")));
        let report: Report = serde_json::from_slice(&report).unwrap();
        assert_eq!((report.verified, report.exit_code), (true, Some(code)));
    }
    let to = unpacked(&has("/jobs/a/result.tar.gz").unwrap(), dir);
    assert_eq!(fs::read_to_string(to.join("stdout")).unwrap(), "said\n");
    assert_eq!(fs::read_to_string(to.join("outputs/file")).unwrap(), "kept\n");
    assert!(pod.end(JOB_WITHIN).success());
}

/// As where another job has used up the process numbers of the pod.
#[test]
fn a_pilot_that_can_make_no_thread_asks_and_reports_later() {
    let jobs: Arc<Mutex<Vec<String>>> = Arc::default();
    let taken: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    // Of the pilot; its processes are limited when the first result comes, which is not taken.
    let pilot: Arc<Mutex<Option<i32>>> = Arc::default();
    let lack: Arc<Mutex<Option<NoMoreProcesses>>> = Arc::default();
    let server = WebServer::start(None, {
        let (jobs, taken, pilot, lack) = (jobs.clone(), taken.clone(), pilot.clone(), lack.clone());
        move |asked| {
            if asked.method == "GET" {
                return jobs.lock().unwrap().pop().map_or(Says::status(204), Says::body);
            }
            if let Some(pilot) = pilot.lock().unwrap().take() {
                *lack.lock().unwrap() = Some(NoMoreProcesses::beside(pilot));
                return Says::status(503);
            }
            taken.lock().unwrap().insert(asked.path.clone(), asked.body.clone());
            Says::status(200)
        }
    });
    let url = server.url_by_name("/jobs");
    let pod = Options::new().host(&["--network", "host"]).source(&["--source", &url]).start();
    let watcher = pod.main_process("pilot");
    *pilot.lock().unwrap() = Some(watcher);
    let put = |name: &str| jobs.lock().unwrap().push(with(shell("echo ran"), "name", json!(name)).to_string());
    let is_reported = |name: &str| {
        let report = eventually(&format!("{name} is reported\n{}", pod.said()), JOB_WITHIN, || {
            taken.lock().unwrap().get(&format!("/jobs/{name}")).cloned()
        });
        let report: Report = serde_json::from_slice(&report).unwrap();
        assert_eq!((report.verified, report.exit_code), (true, Some(0)));
    };
    put("a");
    for request in ["GET", "PUT"] {
        eventually(&format!("{request} without a thread\n{}", pod.said()), JOB_WITHIN, || {
            let is_one = |line: &str| line.contains(request) && line.contains("no thread to look up localhost");
            pod.said().lines().any(is_one).then_some(())
        });
    }
    lack.lock().unwrap().take();
    is_reported("a");
    put("b");
    is_reported("b");
    assert_eq!(pod.main_process("pilot"), watcher, "{}", pod.said());
    assert!(!pod.said().contains("is started again"), "{}", pod.said());
}
