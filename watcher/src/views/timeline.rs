//! `watcher timeline`: the lives of pilots as one SVG. A row for each slot of each pilot, a bar for each job, a colour for
//! each phase.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use super::svg::{escaped, tick};
use crate::bind::{Class, Reason};
use crate::job::{Phase, Report, rfc3339};
use crate::text::printable;

/// Width of the drawn time, and of the names left of it: of slots, and of pilots where there are several.
const WIDTH: f64 = 1200.0;
const SLOT: f64 = 70.0;
const PILOT: f64 = 150.0;
/// So many characters of a pilot's name are shown.
const NAME_MAX: usize = 22;
const ROW: f64 = 44.0;
const TOP: f64 = 56.0;
/// Height of what says how a job ended.
const ENDING: u32 = 4;

/// Phases in their order, each with what the legend says, its name and its colour: those that people who see red and
/// green alike can distinguish.
const COLOURS: [(Phase, &str, &str, &str); 7] = [
    (Phase::Staging, "slot is filled", "stage", "#999999"),
    (Phase::Binding, "image is bound", "bind", "#e69f00"),
    (Phase::Pulling, "of that, pulled", "pull", "#f0c860"),
    (Phase::Starting, "job starts", "start", "#cc79a7"),
    (Phase::Running, "job runs", "run", "#0072b2"),
    (Phase::Collecting, "results are fetched", "collect", "#56b4e9"),
    (Phase::Cleaning, "slot is cleaned", "clean", "#bbbbbb"),
];

/// What is drawn below the bar of a job that did not complete, by its class.
const ENDINGS: [(Class, &str, &str); 3] = [
    (Class::Final, "ended with an error", "#333333"),
    (Class::Hold, "held", "#d55e00"),
    (Class::Retry, "lost, runs again", "#882255"),
];

/// Longest time that is drawn, in seconds: a thousand years.
const SPAN_MAX: f64 = 3.2e10;

/// The picture of these reports; an error where none of them says when it was.
pub fn svg(reports: &[(PathBuf, Report)]) -> Result<String, String> {
    let drawn: Vec<&Report> = reports.iter().map(|(_, r)| r).filter(|r| !r.phases.is_empty()).collect();
    let times = || drawn.iter().flat_map(|r| r.phases.iter().map(|b| b.at));
    let (from, to) = (times().fold(f64::INFINITY, f64::min), times().fold(f64::NEG_INFINITY, f64::max));
    if !from.is_finite() || !to.is_finite() {
        return Err("no report there says when its phases began".into());
    }
    let span = (to - from).max(0.001);
    if span > SPAN_MAX {
        return Err(format!("the reports there are {span:e} s apart: a time in one of them cannot be right"));
    }
    let pilots: BTreeSet<&str> = drawn.iter().map(|r| r.pilot.as_str()).collect();
    let left = if pilots.len() > 1 { SLOT + PILOT } else { SLOT };
    let x = |at: f64| left + (at - from) / span * WIDTH;
    let mut rows: BTreeMap<(&str, Option<u32>), usize> =
        drawn.iter().map(|r| ((r.pilot.as_str(), r.slot), 0)).collect();
    rows.values_mut().enumerate().for_each(|(n, row)| *row = n);
    let height = TOP + ROW * rows.len() as f64 + 40.0;
    let mut svg = String::new();
    let mut add = |text: std::fmt::Arguments<'_>| {
        let _ = svg.write_fmt(text);
        svg.push('\n');
    };
    add(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:.0} {height:.0}" font-family="sans-serif" font-size="11">"#,
        left + WIDTH + 20.0
    ));
    add(format_args!(r##"<rect width="100%" height="100%" fill="#ffffff"/>"##));
    add(format_args!(
        r#"<text x="10" y="18" font-size="13">{} jobs, pilots: {}; {} from {}</text>"#,
        drawn.len(),
        pilots.len(),
        seconds(span),
        rfc3339(from)
    ));
    let legend = COLOURS.iter().map(|(_, says, _, colour)| (*says, *colour, 10));
    let legend = legend.chain(ENDINGS.iter().map(|(_, says, colour)| (*says, *colour, ENDING)));
    for (n, (says, colour, height)) in legend.enumerate() {
        let (x, y) = (10.0 + n as f64 * 130.0, 38 - height);
        add(format_args!(r#"<rect x="{x:.0}" y="{y}" width="10" height="{height}" fill="{colour}"/>"#));
        add(format_args!(r#"<text x="{:.0}" y="37">{says}</text>"#, x + 14.0));
    }
    let step = tick(span);
    for n in 0..=(span / step) as u32 {
        let at = f64::from(n) * step;
        let (x, bottom) = (x(from + at), height - 30.0);
        add(format_args!(r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom:.1}" stroke="#e0e0e0"/>"##));
        add(format_args!(r##"<text x="{x:.1}" y="{:.1}" fill="#606060">{}</text>"##, bottom + 14.0, seconds(at)));
    }
    for ((pilot, slot), row) in &rows {
        let y = TOP + ROW * *row as f64 + 26.0;
        let name = slot.map_or_else(|| "no slot".into(), |n| format!("slot {n}"));
        add(format_args!(r#"<text x="{:.0}" y="{y:.1}">{name}</text>"#, left - SLOT + 10.0));
        if pilots.len() > 1 {
            let name: String = printable(pilot).chars().take(NAME_MAX).collect();
            add(format_args!(r#"<text x="10" y="{y:.1}">{}</text>"#, escaped(&name)));
        }
    }
    for report in drawn {
        let row = rows.get(&(report.pilot.as_str(), report.slot)).copied().unwrap_or(0);
        let y = TOP + ROW * row as f64;
        add(format_args!("<g>"));
        for two in report.phases.windows(2) {
            let [began, next] = two else { continue };
            let Some((_, _, name, colour)) = COLOURS.iter().find(|(phase, ..)| *phase == began.phase) else { continue };
            // A clock that was set back meanwhile gives no width.
            let width = (x(next.at) - x(began.at)).max(0.0);
            add(format_args!(
                r#"<rect x="{:.2}" y="{:.1}" width="{width:.2}" height="16" fill="{colour}"><title>{}: {name} {}</title></rect>"#,
                x(began.at),
                y + 14.0,
                escaped(&report.job),
                seconds(next.at - began.at)
            ));
        }
        if let (Some(first), Some(last)) = (report.phases.first(), report.phases.last()) {
            let room = x(last.at) - x(first.at);
            let mut end = String::new();
            if report.reason != Reason::Completed {
                end = format!(" ({})", report.reason);
                if let Some((_, _, colour)) = ENDINGS.iter().find(|(class, ..)| *class == report.class) {
                    add(format_args!(
                        r#"<rect x="{:.2}" y="{:.1}" width="{:.2}" height="{ENDING}" fill="{colour}"/>"#,
                        x(first.at),
                        y + 31.0,
                        room.max(2.0)
                    ));
                }
            }
            let label = format!("{}{end}", printable(&report.job));
            // Roughly as wide as these letters are; the title has the whole.
            let fits = label.chars().take((room / 6.0) as usize).collect::<String>();
            if fits.chars().count() >= label.chars().count().min(4) {
                add(format_args!(
                    r#"<text x="{:.1}" y="{:.1}"><title>{}</title>{}</text>"#,
                    x(first.at),
                    y + 10.0,
                    escaped(&format!("{label}: {}", report.image)),
                    escaped(&fits)
                ));
            }
        }
        add(format_args!("</g>"));
    }
    add(format_args!("</svg>"));
    Ok(svg)
}

pub(super) fn seconds(s: f64) -> String {
    match s.abs() {
        n if n < 10.0 => format!("{s:.2} s"),
        n if n < 600.0 => format!("{s:.0} s"),
        n if n < 36_000.0 => format!("{:.0} min", s / 60.0),
        _ => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Began;

    fn report(job: &str, slot: u32, from: f64) -> (PathBuf, Report) {
        let request = serde_json::from_value(serde_json::json!({"id": job, "image": "<i>&", "argv": ["x"]})).unwrap();
        let mut report = Report::new(&request);
        let order = [Phase::Staging, Phase::Binding, Phase::Starting, Phase::Running, Phase::Cleaning, Phase::Done];
        report.phases =
            order.iter().enumerate().map(|(n, phase)| Began { phase: *phase, at: from + n as f64 }).collect();
        report.slot = Some(slot);
        (PathBuf::new(), report)
    }

    #[test]
    fn every_phase_of_every_job_is_drawn() {
        let svg = svg(&[report("a", 0, 1e9), report("b", 1, 1e9 + 2.0)]).unwrap();
        assert_eq!(svg.matches("<title>a: ").count(), 5);
        assert_eq!(svg.matches(": run 1.00 s</title>").count(), 2);
        assert!(svg.contains(">slot 0<") && svg.contains(">slot 1<"));
        assert!(svg.contains("2 jobs, pilots: 1; "), "{svg}");
        assert!(!svg.contains("<i>"), "names are escaped");
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn slots_of_several_pilots_have_rows_of_their_own_and_failures_a_mark() {
        let (path, mut other) = report("b", 0, 1e9);
        other.pilot = "another<pilot>".into();
        (other.class, other.reason) = (Class::Hold, Reason::ImageNotFound);
        let (one, mut good) = report("a", 0, 1e9);
        good.reason = Reason::Completed;
        let svg = svg(&[(one, good), (path, other)]).unwrap();
        assert_eq!(svg.matches(">slot 0<").count(), 2, "{svg}");
        assert!(svg.contains(">another&lt;pilot&gt;<"), "{svg}");
        let marks = svg.matches(&format!("height=\"{ENDING}\"")).count();
        assert_eq!(marks, ENDINGS.len() + 1, "the legend's, and that of the job that was held");
        assert!(svg.contains("b (ImageNotFound)"), "{svg}");
    }

    #[test]
    fn reports_without_times_are_refused() {
        let (path, mut bare) = report("a", 0, 0.0);
        bare.phases.clear();
        assert!(svg(&[(path, bare)]).is_err());
        assert!(svg(&[]).is_err());
    }

    #[test]
    fn times_that_nobody_could_draw_are_refused() {
        for (first, last) in [(-1e308, 1e308), (0.0, 1e308), (-f64::MAX, f64::MAX), (1e9, 1e11)] {
            let said = svg(&[report("a", 0, first), report("b", 0, last)]).unwrap_err();
            assert!(said.contains("cannot be right"), "{said}");
        }
        let svg = svg(&[report("a", 0, 1e9), report("b", 0, 1e9 + SPAN_MAX / 2.0)]).unwrap();
        assert!(svg.matches("<line ").count() < 20, "{svg}");
    }
}
