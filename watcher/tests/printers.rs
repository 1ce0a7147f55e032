//! Every printer of reports, jobs, slots and checks, with a hostile text in each field that can hold one.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends where it fails")]

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use watcher::finding::Finding;
use watcher::job::Report;
use watcher::job::usage::{Summary, Usage};
use watcher::keys::Proof;
use watcher::serve::protocol::{self, JobLine, SlotLine};
use watcher::text;
use watcher::views::{report, results, timeline, top};

const HOSTILE: &str =
    "x\x1b[2J\x1b]0;t\x07\u{9b}31m\x7f\u{202e}y\u{2066}\u{2028}z\r\u{0}\u{feff}\n2026 ERROR fake\tend";

/// Fails where a terminal would be given more than text, or more lines than the printer makes of harmless text.
#[track_caller]
fn assert_harmless(shown: &str, like: &str, what: &str) {
    let harmful: Vec<char> = shown.chars().filter(|c| !"\n\t".contains(*c) && !text::is_harmless(*c)).collect();
    assert!(harmful.is_empty(), "{what}: {harmful:?} in {shown:?}");
    assert_eq!(shown.lines().count(), like.lines().count(), "{what}: {shown}");
    assert_eq!(shown.matches('\t').count(), like.matches('\t').count(), "{what}: {shown}");
}

/// The value with a hostile text in each of its texts, one by one, as far as the type takes it; and the place of that.
fn hostile<T: DeserializeOwned>(value: &Value) -> Vec<(String, T)> {
    let mut places = Vec::new();
    find_texts(value, String::new(), &mut places);
    let with = |place: String| {
        let mut changed = value.clone();
        *changed.pointer_mut(&place).unwrap() = HOSTILE.into();
        Some((place, parse(&changed)?))
    };
    places.into_iter().filter_map(with).collect()
}

/// As a program reads it: from text.
fn parse<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_str(&value.to_string()).ok()
}

fn find_texts(value: &Value, place: String, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(place),
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(n, value)| find_texts(value, format!("{place}/{n}"), found));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| find_texts(value, format!("{place}/{name}"), found));
        }
        _ => {}
    }
}

/// A report in which all fields are there.
fn report() -> Value {
    let key = "A".repeat(43);
    let used = json!({"user_s": 0.1, "system_s": 0.1, "max_rss_kib": 1, "read_blocks": 0, "written_blocks": 0, "major_faults": 0});
    let mut usage = Summary::new();
    usage.add(0.0, &Usage { rss: 1 << 20, processes: 2, threads: 3, ..Usage::default() });
    json!({
        "version": 1, "job": "a.1", "attempt": 1, "slot": 0, "image": "r/x:1",
        "container": {"id": "0123456789abcdef", "image": "r/x:1", "image_id": "sha256:1", "reference": "r/x@sha256:1"},
        "class": "final", "reason": "LimitExceeded", "message": "m", "exit_code": 1, "signal": null, "verified": true,
        "refusal": null,
        "record": {
            "version": 2, "job": "a.1", "nonce": key, "incarnation": "i", "startup_sha256": "s", "outcome": "exited",
            "exit_code": 1, "core_dumped": false, "error": {"stage": "exec", "errno": 2, "message": "m", "path": "/bin"},
            "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:01Z", "wall_s": 1.0,
            "usage": {"main": used, "tree": used}, "processes": {"reaped": 1, "left_over_killed": 0, "unkilled": 0},
            "warnings": ["w"], "glue": {"version": "1", "sha256": "s"}
        },
        "durations": {"queued": 0.0, "stage": 0.1, "bind": 0.1, "pull": 0.0, "start": 0.1, "run": 1.0, "collect": 0.0, "clean": 0.0},
        "start_latency_ms": 0.5, "reused_container": true, "outputs": ["o", "p"], "missing_outputs": ["m: why"],
        "finished_at": "2026-01-01T00:00:02Z",
        "usage": usage,
        "limits": {"memory": 1, "wall_s": 1.0},
        "limit": {"which": "memory", "limit": 1.0, "value": 2.0, "at": "2026-01-01T00:00:01Z"},
        "phases": [{"phase": "staging", "at": 1.0}, {"phase": "running", "at": 2.0}, {"phase": "done", "at": 3.0}]
    })
}

type Printer = (&'static str, fn(&Report) -> String);

const PRINTERS: [Printer; 3] = [
    ("report", |report| report::text(report, &Proof::NotChecked(report.message.clone()))),
    ("results", |report| results::table(&[(PathBuf::new(), report.clone())], Path::new("/nowhere"))),
    ("timeline", |report| timeline::svg(&[(PathBuf::new(), report.clone())]).unwrap()),
];

#[test]
fn no_field_of_a_report_reaches_a_terminal_but_as_text() {
    let value = report();
    let good: Report = parse(&value).unwrap();
    let changed = hostile::<Report>(&value);
    for place in [
        "/job",
        "/image",
        "/message",
        "/outputs/0",
        "/missing_outputs/0",
        "/record/warnings/0",
        "/record/error/path",
        "/limit/at",
    ] {
        assert!(changed.iter().any(|(changed, _)| changed == place), "{place}");
    }
    for (place, bad) in &changed {
        for (name, print) in PRINTERS {
            assert_harmless(&print(bad), &print(&good), &format!("{name}, {place}"));
        }
        let json = text::json_for_people(bad).unwrap();
        assert_harmless(&json, &text::json_for_people(&good).unwrap(), place);
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), serde_json::to_value(bad).unwrap(), "{place}");
    }
}

#[test]
fn a_long_report_is_shown_in_part() {
    let mut value = report();
    value["message"] = "m".repeat(1 << 20).into();
    value["missing_outputs"] = vec!["m".repeat(1_000); 1_000].into();
    value["outputs"] = vec!["o".repeat(1_000); 1_000].into();
    let long: Report = parse(&value).unwrap();
    let text = report::text(&long, &Proof::Verified);
    assert!(text.len() < 1 << 20 && text.contains("and 900 more"), "{} bytes", text.len());
}

#[test]
fn no_job_or_slot_reaches_a_terminal_but_as_text() {
    let job = json!({"job": "a", "phase": "running", "slot": 1, "image": "r/x:1"});
    let good = protocol::table(&[parse(&job).unwrap()]);
    let changed = hostile::<JobLine>(&job);
    assert_eq!(changed.len(), 2, "name and image");
    for (place, bad) in changed {
        assert_harmless(&protocol::table(&[bad]), &good, &place);
    }
    let slot = json!({
        "slot": 1, "job": "a", "image": "r/x:1", "phase": "running", "phase_s": 1.0, "left_s": null, "live": null,
        "failed_starts": 3, "out_s": 9.0, "why": "w"
    });
    let good: SlotLine = parse(&slot).unwrap();
    let changed = hostile::<SlotLine>(&slot);
    assert_eq!(changed.len(), 3, "name, image and why");
    for (place, bad) in changed {
        let table = |line: &SlotLine| top::table(std::slice::from_ref(line), &[None], 0);
        assert_harmless(&table(&bad), &table(&good), &place);
        assert!(text::json(&bad).unwrap().is_ascii());
    }
}

#[test]
fn no_check_reaches_a_terminal_but_as_text() {
    let good = Finding::fail("a", "b", "c").to_string();
    for line in [Finding::fail(HOSTILE, "b", "c"), Finding::fail("a", HOSTILE, "c"), Finding::fail("a", "b", HOSTILE)] {
        assert_harmless(&line.to_string(), &good, "check");
    }
}
