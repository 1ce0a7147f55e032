//! Jobs that come from elsewhere: fetched when a slot is free, run once, and reported until that has succeeded.

use std::fs;
use std::path::Path;
use std::time::Duration;

use latebind_tests::pod::{JOB_WITHIN, Options, Pod, Signal, eventually, kill, probe, shell, with};
use latebind_tests::slot::WAIT_FOR_GO;
use serde_json::{Value, json};
use watcher::job::Report;

/// Gives out what is in `/spool/jobs`, in the order of the names, each once; one that is named `again` each time.
const FETCH: &str = "for f in /spool/jobs/*; do \
    [ -e \"$f\" ] || exit 1; echo \"${f##*/}\" >>/spool/given; cat \"$f\"; \
    [ \"${f##*/}\" = again ] || rm \"$f\"; exit 0; done";

/// Takes what came of a job, once there is `/spool/takes`.
const REPORT: &str = "echo \"$2 $3\" >>/spool/offered; [ -e /spool/takes ] || { echo not now >&2; exit 1; }; \
    mkdir \"/spool/results/$2\" && cp -R \"$1/.\" \"/spool/results/$2/\" && echo \"$LATEBIND_JOB $LATEBIND_CLASS\" \
    >>/spool/taken";

/// A pod with a source in the directory that it shares with the test.
struct Source {
    pod: Pod,
}

impl Source {
    fn start(options: Options, jobs: &[(&str, Value)]) -> Self {
        let pod = options.source(&["--fetch", FETCH, "--report", REPORT]).start();
        for dir in ["jobs", "results"] {
            fs::create_dir_all(pod.spool.join(dir)).unwrap();
        }
        let source = Self { pod };
        jobs.iter().for_each(|(name, job)| source.offer(name, job));
        source
    }

    fn takes(self) -> Self {
        fs::write(self.pod.spool.join("takes"), "").unwrap();
        self
    }

    fn offer(&self, name: &str, job: &Value) {
        self.offer_text(name, with(job.clone(), "name", json!(name)).to_string().as_bytes());
    }

    fn offer_text(&self, file: &str, text: &[u8]) {
        let hidden = self.pod.spool.join(".offer");
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, self.pod.spool.join("jobs").join(file)).unwrap();
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.pod.spool.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The report, once the source has it.
    #[track_caller]
    fn report(&self, name: &str) -> Report {
        let what = format!("{name} is reported\n{}", self.pod.said());
        eventually(&what, JOB_WITHIN, || self.lines("taken").iter().any(|l| l.starts_with(name)).then_some(()));
        let path = self.pod.spool.join("results").join(name).join("report.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn kept(&self, place: &str) -> Vec<String> {
        let dir = self.pod.private().join("source/spool").join(place);
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }
}

fn waits_for_go() -> Value {
    shell(WAIT_FOR_GO)
}

fn text(source: &Source, path: &str) -> String {
    fs::read_to_string(source.pod.spool.join("results").join(path)).unwrap()
}

#[test]
fn jobs_are_fetched_as_slots_are_free_and_each_result_is_reported() {
    let outputs = with(shell("echo out; echo err >&2; echo kept >file"), "outputs", json!(["file"]));
    let jobs = [
        ("a", waits_for_go()),
        ("b", outputs),
        ("c", probe(&["exit", "3"])),
        ("d", json!({"image": "localhost/latebind/none:1", "argv": ["x"]})),
        ("e", json!({"image": "i", "argv": ["x"], "no-such-field": 1})),
    ];
    let mut source = Source::start(Options::new().pilot(&["--idle-exit", "2"]), &jobs).takes();
    source.pod.reaches("a.1", "running");
    assert_eq!(source.lines("given"), ["a"], "nothing is fetched while no slot is free");
    source.pod.go(0);
    for (name, class, reason) in [
        ("a", "final", "Completed"),
        ("b", "final", "Completed"),
        ("c", "final", "Error"),
        ("d", "hold", "ImageNotFound"),
        ("e", "hold", "InvalidJob"),
    ] {
        let report = source.report(name);
        assert_eq!((report.class.name(), report.reason.as_str()), (class, reason), "{name}: {report:#?}");
        assert_eq!(report.verified, class == "final");
    }
    assert_eq!((text(&source, "b/stdout"), text(&source, "b/stderr")), ("out\n".into(), "err\n".into()));
    assert_eq!(text(&source, "b/outputs/file"), "kept\n");
    assert!(source.pod.end(JOB_WITHIN).success(), "it ends when there is no job for a while");
    let taken: Vec<_> = ["a final", "b final", "c final", "d hold", "e hold"].into();
    assert_eq!(source.lines("taken"), taken, "each once, in the order in which they were over");
}

#[test]
fn a_result_that_is_not_taken_waits_also_for_a_restarted_pilot_and_the_job_is_not_run_again() {
    let source = Source::start(Options::new(), &[("a", shell("echo ran")), ("b", shell("echo ran too"))]);
    let offered = |name: &str| source.lines("offered").iter().filter(|l| l.starts_with(name)).count();
    eventually("both are offered, and one again", JOB_WITHIN, || {
        (offered("a final") >= 2 && offered("b final") >= 1).then_some(())
    });
    assert_eq!(source.kept("done").len(), 2);
    kill(source.pod.main_process("pilot"), Signal::SIGKILL);
    let before = offered("a final");
    source.pod.says("the pilot failed and is started again");
    eventually("the next life goes on with it", JOB_WITHIN, || (offered("a final") > before).then_some(()));
    let source = source.takes();
    assert_eq!((source.report("a").attempt, source.report("b").attempt), (1, 1));
    eventually("nothing is kept", JOB_WITHIN, || source.kept("done").is_empty().then_some(()));
    assert_eq!((source.lines("given"), source.lines("taken").len()), (vec!["a".to_owned(), "b".into()], 2));
}

#[test]
fn a_name_that_comes_again_is_not_run_twice() {
    let again = with(shell("echo ran; while [ ! -e go ]; do sleep 0.1; done"), "name", json!("same"));
    let source = Source::start(Options::new().slots(2), &[]).takes();
    source.offer_text("again", again.to_string().as_bytes());
    source.pod.reaches("same.1", "running");
    source.pod.says("which this pilot has");
    source.pod.go(source.pod.kept_state("same.1").unwrap()["slot"].as_u64().unwrap() as u32);
    source.report("same");
    source.pod.says("whose result it has");
    kill(source.pod.main_process("pilot"), Signal::SIGKILL);
    source.pod.says("the pilot failed and is started again");
    let times = || source.pod.said().matches("whose result it has").count();
    let before = times();
    eventually("a restarted pilot knows it", JOB_WITHIN, || (times() > before).then_some(()));
    fs::remove_file(source.pod.spool.join("jobs/again")).unwrap();
    source.offer("other", &shell("true"));
    source.report("other");
    assert_eq!(source.lines("taken"), ["same final", "other final"]);
}

#[test]
fn an_answer_that_is_not_a_job_keeps_no_other_one_from_being_run() {
    let source = Source::start(Options::new().pilot(&["--fetch-within", "20"]), &[]).takes();
    source.offer_text("1", b"{");
    source.pod.says("is not a job.json with a name");
    let long = vec![b' '; (1 << 20) + 1];
    source.offer_text("2", &long);
    source.pod.says("has printed more than");
    // Still there if the command was killed in the midst of it.
    let _ = fs::remove_file(source.pod.spool.join("jobs/2"));
    source.offer_text("3", br#"{"name":"../../../etc/cron.d/x","image":"i","argv":["x"]}"#);
    source.pod.says("a name is 1 to");
    source.offer("4", &shell("true"));
    source.report("4");
    assert_eq!(source.lines("taken"), ["4 final"]);
}

#[test]
fn what_lies_beside_a_fetched_job_are_its_inputs() {
    let fetch = "[ ! -e /spool/given ] && touch /spool/given || exit 1; mkdir inputs; echo data >inputs/file; \
        echo in >\"$LATEBIND_JOB_DIR/given\"; echo \"$JOB\"";
    let job = with(with(shell("cat file -"), "stdin", json!("given")), "name", json!("a")).to_string();
    let report = "cp \"$LATEBIND_RESULT/stdout\" /spool/out.tmp && mv /spool/out.tmp /spool/out";
    let pod = Options::new()
        .host(&["--pilot-env", &format!("JOB={job}")])
        .source(&["--fetch", fetch, "--report", report])
        .start();
    let out = || fs::read_to_string(pod.spool.join("out")).ok();
    assert_eq!(eventually(&pod.said(), JOB_WITHIN, out), "data\nin\n");
}

#[test]
fn a_pilot_that_is_stopped_gives_back_what_it_has_not_ended() {
    let mut source = Source::start(Options::new(), &[("a", shell("exec sleep 1000"))]).takes();
    source.pod.runs("a.1", 0);
    source.pod.signal(Signal::SIGTERM);
    source.pod.end(Duration::from_secs(60));
    assert_eq!(source.lines("taken"), ["a retry"], "{}", source.pod.said());
    let report: Report = serde_json::from_str(&text(&source, "a/report.json")).unwrap();
    assert_eq!(report.reason.as_str(), "Cancelled");
    assert!(!Path::new(&source.pod.private()).join("source/spool/retry/a").exists());
}

/// Nobody else has it, so it cannot wait for another pilot.
#[test]
fn a_job_that_is_larger_than_every_slot_goes_back_to_its_source() {
    let requests = |memory: &str| with(shell("echo ran"), "requests", json!({"memory": memory}));
    let jobs = [("a-large", requests("65M")), ("b-small", requests("64M"))];
    let options = Options::without_slots().host(&["--slot", "memory=64m"]).pilot(&["--max-attempts", "2"]);
    let source = Source::start(options, &jobs).takes();
    let small = source.report("b-small");
    assert!(small.verified && small.class.name() == "final", "{small:#?}");
    let large = source.report("a-large");
    assert_eq!((large.class.name(), large.reason.as_str()), ("retry", "SlotTooSmall"), "{large:#?}");
    assert!(large.message.contains("requests 65M of memory"), "{}", large.message);
}
