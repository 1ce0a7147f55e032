//! What people look at: `watcher top`, metrics, a report, a timeline.

use latebind_tests::pod::{JOB_WITHIN, Options, Pod, eventually, podman, probe, shell};
use serde_json::Value;

/// `watcher ARGS` in the pilot container: its standard output.
#[track_caller]
fn watcher(pod: &Pod, arguments: &[&str]) -> String {
    let name = pod.container("pilot");
    let output = podman(&[&["exec", &name, "/usr/bin/watcher"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn top_shows_what_a_job_uses() {
    let pod = Options::new().slots(2).start();
    pod.put("shown", &shell("/probe memory 50 60 & /probe cpu 60"));
    pod.reaches("shown.1", "running");
    eventually("a sample of all that it uses", JOB_WITHIN, || {
        let slots = pod.top()?["slots"].as_array()?.clone();
        let usage = &slots.iter().find(|slot| slot["job"] == "shown.1")?["live"]["usage"];
        let has = |field: &str, least: u64| usage[field].as_f64().is_some_and(|n| n >= least as f64);
        (has("cpu_s", 1) && has("rss", 50 << 20) && has("processes", 2)).then_some(())
    });
    let table = watcher(&pod, &["top", "--times", "1"]);
    assert!(table.lines().all(|l| l.chars().count() <= 80), "{table}");
    assert!(table.contains(" shown.1 ") && table.contains(" running ") && table.contains("idle"), "{table}");
    watcher(&pod, &["stop", "shown"]);
    eventually("it is shown as stopped", JOB_WITHIN, || {
        watcher(&pod, &["top", "--times", "1"]).contains(" stopped ").then_some(())
    });
    watcher(&pod, &["signal", "shown", "KILL"]);
    pod.result("shown").is("final", "Signaled");
    let table = watcher(&pod, &["top", "--times", "1"]);
    assert!(!table.contains("shown"), "{table}");
}

#[test]
fn reports_and_a_timeline_are_drawn_from_the_spool() {
    // Where `watcher report` looks for keys: without one a record is not checked again.
    let pod = Options::new().slots(2).pilot(&["--keep-keys", "/var/lib/latebind/keys"]).start();
    for name in ["a", "b", "c"] {
        pod.put(name, &probe(&["sleep", "0.3"]));
    }
    for name in ["a", "b", "c"] {
        pod.result(name).is_good();
    }
    let svg = watcher(&pod, &["timeline", "/spool"]);
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    for name in ["a", "b", "c"] {
        assert!(svg.contains(&format!("<title>{name}.1: run ")), "{svg}");
        assert!(svg.contains(&format!("<title>{name}.1: bind ")), "{svg}");
    }
    let page = watcher(&pod, &["timeline", "--html", "/spool"]);
    assert!(page.contains("<p>3 Completed (final)</p>") && page.contains("<td>yes</td>"), "{page}");
    assert!(page.contains("<title>b.1: run ") && page.trim_end().ends_with("</html>"), "{page}");
    assert!(pod.result("a").report.pilot.starts_with("pilot-"), "{:?}", pod.result("a").report.pilot);
    let text = watcher(&pod, &["report", "/spool/done/a/result"]);
    for part in ["job        a.1, attempt 1", "result     Completed (final)", "record     verified", "run ", "CPU "] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn metrics_are_told_to_whoever_asks_over_http() {
    let pod = Options::new().pilot(&["--metrics", "127.0.0.1:9464"]).start();
    pod.job("good", &probe(&["hello"])).is_good();
    pod.job("bad", &probe(&["exit", "3"])).is("final", "Error");
    // The payload asks: it shares the pod's network, which is why no job is named there.
    let script = "printf 'GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | nc 127.0.0.1 9464; echo ===; \
        printf 'GET /other HTTP/1.1\\r\\n\\r\\n' | nc 127.0.0.1 9464; echo ===; \
        printf 'PUT /metrics HTTP/1.1\\r\\n\\r\\n' | nc 127.0.0.1 9464; \
        for n in 1 2 3 4 5 6 7 8; do nc 127.0.0.1 9464 </dev/zero >/dev/null 2>&1 & done; sleep 1; kill 0";
    let outcome = pod.job("asks", &shell(script));
    let said = outcome.text("stdout");
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
    for line in [
        "latebind_jobs_total{class=\"final\",reason=\"Completed\"} 1",
        "latebind_jobs_total{class=\"final\",reason=\"Error\"} 1",
        "latebind_binds_total 2",
        "latebind_busy_slots 1",
        "latebind_phase_seconds_count{phase=\"bind\"} 2",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(
        !said.contains("asks") && said.contains("404 Not Found") && said.contains("405 Method Not Allowed"),
        "{said}"
    );
    pod.job("after", &probe(&["hello"])).is_good();
}

#[test]
fn every_line_about_a_job_names_it_and_its_slot() {
    let pod = Pod::start();
    let job = shell("exit 3");
    pod.job("named", &job).is("final", "Error");
    pod.says("\"message\":\"over\"");
    let said = pod.said();
    let lines: Vec<Value> = said.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let over = lines.iter().find(|l| l["fields"]["message"] == "over").expect("the line that says it is over");
    assert_eq!((&over["span"]["job"], &over["span"]["slot"]), (&"named.1".into(), &0.into()), "{over}");
}

#[test]
fn glues_lines_have_the_form_of_the_watchers() {
    let pod = Pod::start();
    pod.job("quiet", &probe(&["hello"])).is_good();
    let log = std::fs::read_to_string(pod.place().join("log").join(pod.payload_role(0))).unwrap();
    // The engine puts time, stream and whether it is a whole line before each.
    let lines: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let keys = |line: &Value| {
        let mut keys: Vec<String> = line.as_object().unwrap().keys().cloned().collect();
        keys.retain(|key| key != "span");
        keys
    };
    let said = pod.said();
    let of_watcher = said.lines().find_map(|l| serde_json::from_str::<Value>(l).ok()).expect("a line of the watcher's");
    assert!(!lines.is_empty());
    for text in lines {
        let line: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(keys(&line), keys(&of_watcher), "{line}");
        assert_eq!(line["fields"]["slot"], 0, "{line}");
        assert!(["INFO", "WARN", "ERROR"].contains(&line["level"].as_str().unwrap()), "{line}");
        assert!(line["fields"]["message"].is_string(), "{line}");
    }
}
