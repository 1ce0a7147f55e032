//! `watcher results`: the reports in a spool or a directory, as a table for people.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use glue::contract::record::Outcome;

use crate::job::Report;
use crate::text::printable;

/// All reports below `dir` (two levels of job directories, as a spool has them), by the time of their end.
pub fn find(dir: &Path) -> io::Result<Vec<(PathBuf, Report)>> {
    let mut found = Vec::new();
    look(dir, 0, &mut found)?;
    found.sort_by(|a, b| a.1.finished_at.cmp(&b.1.finished_at));
    Ok(found)
}

fn look(dir: &Path, depth: usize, found: &mut Vec<(PathBuf, Report)>) -> io::Result<()> {
    let path = dir.join("report.json");
    if let Ok(text) = fs::read(&path) {
        let report = serde_json::from_slice(&text).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))?;
        found.push((dir.to_owned(), report));
    }
    if depth < 4 {
        for entry in fs::read_dir(dir)?.flatten() {
            // `outputs` is the payload's: nothing in it is a report of ours.
            if entry.file_type().is_ok_and(|t| t.is_dir())
                && entry.file_name() != "outputs"
                && entry.file_name() != "inputs"
            {
                look(&entry.path(), depth + 1, found)?;
            }
        }
    }
    Ok(())
}

/// The table: job, image, outcome, class, bind time, start latency, wall time, verified.
pub fn table(reports: &[(PathBuf, Report)]) -> String {
    let head = ["JOB", "IMAGE", "OUTCOME", "CLASS", "BIND", "START", "WALL", "VERIFIED"].map(str::to_owned);
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(reports.iter().map(|(_, report)| row(report))).collect();
    let width = |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(report: &Report) -> [String; 8] {
    let record = report.record.as_ref();
    let outcome = match record.map(|r| r.outcome) {
        Some(Outcome::Exited) => format!("exited {}", report.exit_code.unwrap_or(-1)),
        Some(Outcome::Signaled) => format!("signaled {}", report.signal.unwrap_or(0)),
        Some(Outcome::TimedOut) => "timed-out".into(),
        Some(Outcome::Stopped) => "stopped".into(),
        Some(Outcome::NotStarted) => format!("not-started: {}", report.reason),
        None => format!("- ({})", report.reason),
    };
    let image = printable(&report.image);
    let image = image.strip_prefix("localhost/latebind/").map_or(image.clone(), str::to_owned);
    [
        printable(report.job.rsplit_once('.').map_or(report.job.as_str(), |(job, _)| job)),
        image,
        printable(&outcome),
        report.class.name().into(),
        if report.durations.bind > 0.0 { format!("{:.2} s", report.durations.bind) } else { "-".into() },
        report.start_latency_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.2} ms")),
        record.map_or_else(|| "-".into(), |r| format!("{:.3} s", r.wall_s)),
        match (report.verified, report.refusal) {
            (true, _) => "yes".into(),
            (false, Some(refusal)) => format!("no: {refusal}"),
            (false, None) => "no record".into(),
        },
    ]
}
