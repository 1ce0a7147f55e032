//! `watcher timeline --html`: the lives of pilots as one HTML file that fetches nothing: timeline, jobs, what failed,
//! what was used.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::svg::escaped;
use super::timeline::seconds;
use super::{report, results, timeline};
use crate::bind::Reason;
use crate::job::Report;
use crate::job::usage::{Summary, bytes};
use crate::keys;

/// So many jobs are listed, the last ones: a browser has to draw them.
const LISTED_MAX: usize = 2000;
/// Size of a curve.
const WIDTH: f64 = 160.0;
const HEIGHT: f64 = 28.0;

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><title>Latebind: jobs</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<style>
body { font-family: sans-serif; font-size: 14px; margin: 1.5em; color: #222; background: #fff; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; } th, td { text-align: left; padding: 0.25em 1em 0.25em 0; vertical-align: top; }
th { border-bottom: 1px solid #999; } tr.bad td { background: #fdf0e6; }
pre { background: #f4f4f4; padding: 0.7em; white-space: pre-wrap; } svg { max-width: 100%; }
.memory { stroke: #0072b2; } .cpu { stroke: #e69f00; } polyline { fill: none; stroke-width: 1.3; }
.key { font-weight: bold; } .key.memory { color: #0072b2; } .key.cpu { color: #b87f00; }
</style></head><body>
"#;

/// The page of these reports, whose records are checked with the keys in `keys`; an error where none says when it was.
pub fn html(reports: &[(PathBuf, Report)], keys: &Path) -> Result<String, String> {
    let picture = timeline::svg(reports)?;
    let mut endings: BTreeMap<String, usize> = BTreeMap::new();
    for (_, report) in reports {
        *endings.entry(format!("{} ({})", report.reason, report.class.name())).or_default() += 1;
    }
    let counted: Vec<String> = endings.iter().map(|(ending, n)| format!("{n} {}", escaped(ending))).collect();
    let mut page = HEAD.to_owned();
    let mut add = |text: std::fmt::Arguments<'_>| {
        let _ = page.write_fmt(text);
        page.push('\n');
    };
    add(format_args!("<h1>{} jobs</h1>\n<p>{}</p>\n{picture}", reports.len(), counted.join(", ")));
    let listed = reports.get(reports.len().saturating_sub(LISTED_MAX)..).unwrap_or_default();
    if listed.len() < reports.len() {
        add(format_args!("<p>Of these the last {} are listed.</p>", listed.len()));
    }
    add(format_args!("<h2>Jobs</h2>\n<table><tr>"));
    for name in results::HEAD.iter().copied().chain(["CPU", "MEMORY", "OVER TIME"]) {
        add(format_args!("<th>{name}</th>"));
    }
    add(format_args!("</tr>"));
    let proofs: Vec<_> = listed.iter().map(|(dir, report)| keys::check_report(dir, report, keys)).collect();
    for ((_, report), proof) in listed.iter().zip(&proofs) {
        add(format_args!("<tr{}>", if report.reason == Reason::Completed { "" } else { r#" class="bad""# }));
        for cell in results::row(report, proof) {
            add(format_args!("<td>{}</td>", escaped(&cell)));
        }
        match &report.usage {
            Some(usage) => add(format_args!(
                "<td>{}</td><td>{}</td><td>{}</td>",
                seconds(usage.peak.cpu_s),
                bytes(usage.peak.memory()),
                curves(usage)
            )),
            None => add(format_args!("<td>-</td><td>-</td><td></td>")),
        }
        add(format_args!("</tr>"));
    }
    add(format_args!(
        r#"</table>
<p>Over time: <span class="key memory">memory</span> and <span class="key cpu">processors</span>, each up to its
own peak. A job that was over before it was looked at twice has neither.</p>
<h2>What did not complete</h2>"#
    ));
    let failed = listed.iter().zip(&proofs).filter(|((_, report), _)| report.reason != Reason::Completed);
    let mut any = false;
    for ((_, one), proof) in failed {
        any = true;
        let (job, reason) = (escaped(&one.job), one.reason);
        let text = report::text(one, proof);
        let text: Vec<String> = text.lines().map(escaped).collect();
        add(format_args!("<details><summary>{job}: {reason}</summary><pre>{}</pre></details>", text.join("\n")));
    }
    add(format_args!("{}</body></html>", if any { "" } else { "<p>Nothing.</p>" }));
    Ok(page)
}

/// Memory and processors of a job over its time.
fn curves(usage: &Summary) -> String {
    let rows = usage.series.rows();
    let Some(end) = rows.last().map(|[at, ..]| *at).filter(|at| *at > 0.0) else { return String::new() };
    let memory: Vec<(f64, f64)> = rows.iter().map(|[at, _, memory, ..]| (*at, *memory)).collect();
    let rate = |two: &[[f64; 6]]| match two {
        [[from, before, ..], [to, after, ..]] if to > from => Some((*to, (after - before).max(0.0) / (to - from))),
        _ => None,
    };
    let cpu: Vec<(f64, f64)> = rows.windows(2).filter_map(rate).filter(|(_, rate)| rate.is_finite()).collect();
    let peak = |curve: &[(f64, f64)]| curve.iter().fold(0.0, |peak: f64, (_, value)| peak.max(*value));
    let line = |curve: &[(f64, f64)], class: &str| {
        let most = peak(curve).max(f64::MIN_POSITIVE);
        let points = curve.iter().map(|(at, value)| {
            // A report is a file that anybody may have written.
            let [right, up] = [at / end, value / most].map(|share| share.clamp(0.0, 1.0));
            format!("{:.1},{:.1}", right * WIDTH, HEIGHT - 1.0 - up * (HEIGHT - 2.0))
        });
        format!(r#"<polyline class="{class}" points="{}"/>"#, points.collect::<Vec<_>>().join(" "))
    };
    format!(
        r#"<svg viewBox="0 0 {WIDTH:.0} {HEIGHT:.0}" width="{WIDTH:.0}" height="{HEIGHT:.0}">{}{}{}</svg>"#,
        format_args!("<title>memory up to {}, {:.2} processors</title>", bytes(peak(&memory) as u64), peak(&cpu)),
        line(&memory, "memory"),
        line(&cpu, "cpu")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use crate::bind::Class;
    use crate::job::usage::Usage;
    use crate::job::{Began, Phase, Request};

    fn report(job: &str) -> (PathBuf, Report) {
        let mut report = Report::new(&Request::new(job.into()));
        report.phases = vec![Began { phase: Phase::Running, at: 1e9 }, Began { phase: Phase::Done, at: 1e9 + 5.0 }];
        (report.class, report.reason) = (Class::Final, Reason::Completed);
        (PathBuf::from("/nowhere"), report)
    }

    #[test]
    fn jobs_failures_and_usage_are_on_the_page_and_nothing_of_theirs_is_markup() {
        let (dir, mut bad) = report("bad<script>.1");
        (bad.class, bad.reason) = (Class::Hold, Reason::ImageNotFound);
        bad.message = "no <img src=x> \u{1b}[31m there".into();
        let mut usage = Summary::new();
        for n in 0..4u32 {
            let at = f64::from(n);
            usage.add(at, &Usage { cpu_s: at * 2.0, rss: 1 << (20 + n), ..Usage::default() });
        }
        let (other, mut good) = report("good.1");
        good.usage = Some(usage);
        let page = html(&[(other, good), (dir, bad)], Path::new("/nowhere")).unwrap();
        assert!(page.contains("1 Completed (final), 1 ImageNotFound (hold)"), "{page}");
        assert!(page.contains("<title>memory up to 8.0M, 2.00 processors</title>"), "{page}");
        assert!(page.contains("no &lt;img src=x&gt; "), "{page}");
        assert!(!page.contains("<script") && !page.contains("<img") && !page.contains('\u{1b}'), "{page}");
        assert_eq!(page.matches("<details>").count(), 1, "{page}");
        // Nothing is fetched.
        assert!(!page.contains("src=\"") && !page.contains("href=") && page.matches("http").count() == 2, "{page}");
    }

    #[test]
    fn a_curve_stays_in_its_picture_whatever_a_report_says() {
        let rows = [[1e308, -1e308, -1e308, 0.0, 0.0, 0.0], [1e-3, 1e308, 1e308, 0.0, 0.0, 0.0]];
        let mut usage = serde_json::to_value(Summary::new()).unwrap();
        usage["series"]["rows"] = serde_json::json!(rows);
        let picture = curves(&serde_json::from_value(usage).unwrap());
        assert!(picture.contains("points=\"160.0,27.0 160.0,1.0\""), "{picture}");
        assert!(!picture.contains("inf") && !picture.contains("NaN"), "{picture}");
    }

    #[test]
    fn a_long_list_shows_its_last_jobs() {
        let reports: Vec<_> = (0..=LISTED_MAX).map(|n| report(&format!("job-{n}.1"))).collect();
        let page = html(&reports, Path::new("/nowhere")).unwrap();
        let listed = |n: usize| page.contains(&format!("<td>job-{n}</td>"));
        assert!(!listed(0) && listed(1) && listed(LISTED_MAX));
        assert!(page.contains(&format!("Of these the last {LISTED_MAX} are listed.")));
    }
}
