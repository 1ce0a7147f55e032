//! A record: forged, replayed, hidden behind another, or made to say what did not happen.

use latebind_tests::pod::{BUSYBOX, JOB_WITHIN, Options, Pod, Signal, eventually, shell, with};
use serde_json::json;

/// What an attempt of `probe forge` may say that it did: write in the payload's own directory.
fn is_its_own(what: &str) -> bool {
    what == "record in /shared/slot/0/data/work"
}

#[test]
fn a_forger_gets_nothing_but_its_own_files() {
    let pod = Pod::start();
    let outcome = pod
        .job("forger", &with(json!({"image": BUSYBOX, "argv": ["/probe", "forge"]}), "outputs", json!(["record.jws"])));
    outcome.is_good();
    let tried = outcome.answers();
    assert!(tried.len() > 40, "only {} attempts", tried.len());
    for wanted in ["environment of watcher", "root of watcher", "stop watcher", "glue's memory", "/ctl/record.jws"] {
        assert!(
            tried.iter().any(|t| t["attempt"].as_str().is_some_and(|a| a.contains(wanted))),
            "{wanted} was not tried"
        );
    }
    let worked: Vec<&str> = tried
        .iter()
        .filter(|t| t["ok"] == true)
        .filter_map(|t| t["attempt"].as_str())
        .filter(|a| !is_its_own(a))
        .collect();
    assert_eq!(worked, Vec::<&str>::new());
    // What it fetched by the name of a record is an output among others, and the record is glue's.
    let (forged, record) = (outcome.text("outputs/record.jws"), outcome.text("record.jws"));
    assert_ne!(forged, record);
    assert_eq!(outcome.report.record.as_ref().unwrap().job, "forger.1");
}

/// Puts what looks like a record wherever the payload may write.
const FORGE: &str = "h=eyJhbGciOiJIUzI1NiIsInR5cCI6ImxhdGViaW5kLXJlY29yZCtqd3MiLCJraWQiOiJ4In0; \
                     for d in . .. ../../ctl ../io /tmp; do echo $h.e30.AAAA 2>/dev/null >$d/record.jws; done 2>/dev/null";

#[test]
fn a_forged_record_does_not_hide_a_failure() {
    let pod = Pod::start();
    let outcome = pod.job("liar", &shell(&format!("{FORGE}; [ -e record.jws ] && exit 3")));
    outcome.is("final", "Error");
    assert_eq!((outcome.report.exit_code, outcome.report.refusal), (Some(3), None));
    let liar = "localhost/latebind/liar-shell:1";
    let outcome = pod.job("liar-shell", &json!({"image": liar, "argv": ["/probe", "exit", "4"]}));
    assert_eq!(outcome.report.exit_code, Some(4));
}

#[test]
fn a_forged_record_does_not_stand_in_for_a_lost_job() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    pod.put("lost", &shell(&format!("{FORGE}; touch made; sleep 60")));
    pod.runs("lost.1", 0);
    eventually("the forgery", JOB_WITHIN, || pod.work(0).join("made").exists().then_some(()));
    assert!(pod.work(0).join("record.jws").exists());
    latebind_tests::pod::kill(pod.main_process(&pod.payload_role(0)), Signal::SIGKILL);
    let outcome = pod.result("lost");
    assert_eq!(outcome.class().0, "retry", "{:#?}", outcome.report);
    assert!(!outcome.report.verified && outcome.report.record.is_none());
}
