//! `watcher results`: the reports in a spool or a directory, as a table for people.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use latebind_contract::record::Outcome;

use crate::job::Report;
use crate::keys::{self, Proof};
use crate::text::printable;
use crate::tree;

/// Largest report that is read: far more than one has.
const REPORT_MAX: u64 = 64 << 20;
/// No more room than this is made on a file's word for its size.
const REPORT_USUAL: u64 = 1 << 20;
/// How deep reports are looked for: `claimed/<pilot>/<job>/result/` of a spool.
const DEPTH_MAX: usize = 4;
/// Directories of a job in which others have put what they like.
const FOREIGN: [&str; 3] = ["inputs", "outputs", "submitted"];
/// Directories of a spool that have jobs in them, of any name.
const PLACES: [&str; 3] = ["retry", "done", "held"];

/// What was found below a directory.
#[derive(Debug, Default)]
pub struct Found {
    /// Reports with the directory that each is in, by the time of their end.
    pub reports: Vec<(PathBuf, Report)>,
    /// What could not be read, and why.
    pub unreadable: Vec<String>,
}

/// All reports below `dir`, which is a spool, a part of one, or a directory of results. One that cannot be read hides
/// no other.
pub fn find(dir: &Path) -> io::Result<Found> {
    fs::read_dir(dir).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", dir.display())))?;
    let mut found = Found::default();
    look(dir, 0, &mut found);
    found.reports.sort_by(|a, b| a.1.finished_at.cmp(&b.1.finished_at));
    Ok(found)
}

/// Reads a report; a link is not followed, and nothing is waited for.
pub fn read(path: &Path) -> io::Result<Report> {
    let at = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut text = Vec::new();
    let file = tree::open_file(path).map_err(at)?;
    // Read at once: there may be very many of them.
    text.reserve(usize::try_from(file.metadata().map_err(at)?.len().min(REPORT_USUAL) + 1).unwrap_or(0));
    file.take(REPORT_MAX).read_to_end(&mut text).map_err(at)?;
    serde_json::from_slice(&text).map_err(|e| at(e.into()))
}

fn look(dir: &Path, depth: usize, found: &mut Found) {
    let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
    if has("report.json") {
        match read(&dir.join("report.json")) {
            Ok(report) => found.reports.push((dir.to_owned(), report)),
            Err(e) => found.unreadable.push(e.to_string()),
        }
        return; // what else is there are the job's outputs
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) if depth < DEPTH_MAX => entries,
        Ok(_) => return,
        Err(e) => return found.unreadable.push(format!("{}: {e}", dir.display())),
    };
    let (is_claim, is_spool) = (has("claim.json"), has("claimed"));
    let is_place = dir.file_name().is_some_and(|name| PLACES.iter().any(|place| name == *place));
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())) {
        let name = entry.file_name();
        let is_result = name.to_string_lossy().split('.').next() == Some("result");
        let is_foreign = !is_place && FOREIGN.iter().any(|foreign| name == *foreign) || is_spool && name == "new";
        if is_claim && is_result {
            look(&entry.path(), DEPTH_MAX, found);
        } else if !is_claim && !is_foreign {
            look(&entry.path(), depth + 1, found);
        }
    }
}

/// Names of the table's columns.
pub(super) const HEAD: [&str; 8] = ["JOB", "IMAGE", "OUTCOME", "CLASS", "BIND", "START", "WALL", "VERIFIED"];

/// The table: job, image, outcome, class, bind time, start latency, wall time, and what a check of the record with a
/// key in `keys` has shown.
pub fn table(reports: &[(PathBuf, Report)], keys: &Path) -> String {
    let rows: Vec<[String; 8]> = std::iter::once(HEAD.map(str::to_owned))
        .chain(reports.iter().map(|(dir, report)| row(report, &keys::check_report(dir, report, keys))))
        .collect();
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

/// The cells of one report.
pub(super) fn row(report: &Report, proof: &Proof) -> [String; 8] {
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
        match proof {
            Proof::Verified => "yes".into(),
            Proof::Refused(why) => format!("no: {}", printable(why)),
            Proof::NotChecked(_) => "not checked".into(),
            Proof::NoRecord => "no record".into(),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: PathBuf, job: &str) {
        let report = Report::new(&crate::job::Request::new(job.into()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("report.json"), serde_json::to_vec(&report).unwrap()).unwrap();
    }

    #[test]
    fn reports_are_found_where_root_puts_them_and_nowhere_else() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |path: &str| scratch.path().join(path);
        for (claim, job) in [("done/a", "a"), ("held/outputs", "outputs"), ("retry/b", "b"), ("claimed/p/c", "c")] {
            put(at(claim).join("result.1"), &format!("{job}.1"));
            put(at(claim).join("result/outputs"), "forged-output");
            put(at(claim).join("submitted/result"), "forged-by-user");
            fs::write(at(claim).join("claim.json"), "{}").unwrap();
        }
        put(at("done/a/result"), "a.2");
        put(at("held/aside/result"), "aside.1");
        put(at("new/x"), "forged-in-new");
        put(at("elsewhere/run"), "run-1");
        fs::create_dir_all(at("done/bad/result")).unwrap();
        fs::write(at("done/bad/claim.json"), "").unwrap();
        fs::write(at("done/bad/result/report.json"), "{").unwrap();
        fs::create_dir_all(at("done/linked/result")).unwrap();
        std::os::unix::fs::symlink(at("done/a/result/report.json"), at("done/linked/result/report.json")).unwrap();
        let found = find(scratch.path()).unwrap();
        let mut jobs: Vec<_> = found.reports.iter().map(|(_, report)| report.job.as_str()).collect();
        jobs.sort_unstable();
        assert_eq!(jobs, ["a.1", "a.2", "aside.1", "b.1", "c.1", "outputs.1", "run-1"]);
        assert_eq!(found.unreadable.len(), 2, "{:?}", found.unreadable);
        assert!(find(&at("not-there")).is_err());
    }
}
