//! `watcher report`: one report for people.

use std::fmt::Write;

use crate::job::Report;
use crate::job::usage::bytes;
use crate::keys::Proof;
use crate::text::one_line;

/// How many missing outputs, or warnings, are shown.
const LISTED_MAX: usize = 100;

/// A report as text, with what a check of its record has shown.
pub fn text(report: &Report, proof: &Proof) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10} {}", one_line(value));
    };
    line("job", &format!("{}, attempt {}", report.job, report.attempt));
    line("result", &format!("{} ({})", report.reason, report.class.name()));
    if !report.message.is_empty() {
        line("", &report.message);
    }
    match (report.exit_code, report.signal) {
        (Some(code), _) => line("exit code", &code.to_string()),
        (None, Some(signal)) => line("signal", &signal.to_string()),
        (None, None) => {}
    }
    line(
        "record",
        &match proof {
            Proof::Verified => "verified".into(),
            Proof::Refused(why) => format!("refused: {why}"),
            Proof::NotChecked(why) => format!("not checked: {why}"),
            Proof::NoRecord => "none".into(),
        },
    );
    line("image", &report.image);
    if let Some(container) = &report.container {
        line("", &container.image_id);
        let again = if report.reused_container { ", used again" } else { "" };
        line("container", &format!("{}{again}", container.id.get(..12).unwrap_or(&container.id)));
    }
    if let Some(slot) = report.slot {
        line("slot", &slot.to_string());
    }
    let phases = report.durations.by_name();
    let taken: Vec<String> =
        phases.iter().filter(|(_, s)| *s >= 0.0005).map(|(name, s)| format!("{name} {s:.3} s")).collect();
    line("phases", &taken.join(", "));
    if let Some(usage) = &report.usage {
        let peak = &usage.peak;
        let mut parts = vec![format!("CPU {:.2} s", peak.cpu_s)];
        // A job that was over before anybody looked has what glue counted, and no peaks.
        if usage.samples > 0 {
            parts.push(format!("{} processes", peak.processes));
            parts.push(format!("{} threads", peak.threads));
        }
        parts.push(format!("memory {}", bytes(peak.memory())));
        parts.extend(peak.files.map(|n| format!("{n} open files")));
        parts.extend(peak.disk.map(|n| format!("disk {}", bytes(n))));
        parts.extend(peak.read_bytes.map(|n| format!("read {}", bytes(n))));
        parts.extend(peak.written_bytes.map(|n| format!("written {}", bytes(n))));
        line("used", &parts.join(", "));
    }
    let l = &report.limits;
    let limits: Vec<String> = [
        l.wall_s.map(|s| format!("wall {s} s")),
        l.cpu_s.map(|s| format!("CPU {s} s")),
        l.memory.map(|b| format!("memory {}", bytes(b.0))),
        l.processes.map(|n| format!("{n} processes")),
        l.disk.map(|b| format!("disk {}", bytes(b.0))),
        l.output.map(|b| format!("output {}", bytes(b.0))),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !limits.is_empty() {
        line("limits", &limits.join(", "));
    }
    if let Some(crossed) = &report.limit {
        line("crossed", &format!("{crossed}, at {}", crossed.at));
    }
    if !report.outputs.is_empty() {
        line("outputs", &report.outputs.join(", "));
    }
    let mut each = |name: &str, values: &[String]| {
        values.iter().take(LISTED_MAX).for_each(|value| line(name, value));
        if let Some(more) = values.len().checked_sub(LISTED_MAX).filter(|more| *more > 0) {
            line("", &format!("and {more} more"));
        }
    };
    each("missing", &report.missing_outputs);
    if report.missing_left_out > 0 {
        each("missing", &[format!("and {} more, not named", report.missing_left_out)]);
    }
    each("warning", report.record.as_ref().map_or(&[], |record| &record.warnings));
    line("finished", &report.finished_at);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::limits::{Bytes, Crossed, Which};
    use crate::job::usage::{Summary, Usage};

    #[test]
    fn a_report_is_told() {
        let request =
            serde_json::from_value(serde_json::json!({"id": "a.1", "image": "i\x1b[2J", "argv": ["x"]})).unwrap();
        let mut report = Report::new(&request);
        report.reason = crate::bind::Reason::LimitExceeded;
        report.limits.memory = Some(Bytes(64 << 20));
        report.limit =
            Some(Crossed { which: Which::Memory, limit: 67_108_864.0, value: 1e8, at: "2026-01-01T00:00:00Z".into() });
        let mut usage = Summary::new();
        usage.add(0.0, &Usage { rss: 1 << 20, processes: 2, threads: 3, ..Usage::default() });
        report.usage = Some(usage);
        let text = text(&report, &Proof::NoRecord);
        for part in
            ["LimitExceeded (retry)", "2 processes", "memory 64M", "it used 95M of memory, its limit is 64M, at 2026"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\x1b'));
    }
}
