//! `watcher timeline`: a pilot's life as one SVG. A row for each slot, a bar for each job, a colour for each phase.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use crate::job::{Phase, Report, rfc3339};
use crate::text::printable;

/// Width of the drawn time, and of what stands left of it.
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 70.0;
const ROW: f64 = 44.0;
const TOP: f64 = 56.0;

/// Phases in their order, with colours that are told apart by people who see red and green alike.
const COLOURS: [(Phase, &str, &str); 7] = [
    (Phase::Staging, "stage", "#999999"),
    (Phase::Binding, "bind", "#e69f00"),
    (Phase::Pulling, "pull", "#f0c860"),
    (Phase::Starting, "start", "#cc79a7"),
    (Phase::Running, "run", "#0072b2"),
    (Phase::Collecting, "collect", "#56b4e9"),
    (Phase::Cleaning, "clean", "#bbbbbb"),
];

/// The picture of these reports; an error where none of them says when it was.
pub fn svg(reports: &[(PathBuf, Report)]) -> Result<String, String> {
    let drawn: Vec<&Report> = reports.iter().map(|(_, r)| r).filter(|r| !r.phases.is_empty()).collect();
    let times = || drawn.iter().flat_map(|r| r.phases.iter().map(|b| b.at));
    let (from, to) = (times().fold(f64::INFINITY, f64::min), times().fold(f64::NEG_INFINITY, f64::max));
    if !from.is_finite() || !to.is_finite() {
        return Err("no report there says when its phases began".into());
    }
    let span = (to - from).max(0.001);
    let x = |at: f64| LEFT + (at - from) / span * WIDTH;
    let mut rows: BTreeMap<Option<u32>, usize> = drawn.iter().map(|r| (r.slot, 0)).collect();
    rows.values_mut().enumerate().for_each(|(n, row)| *row = n);
    let height = TOP + ROW * rows.len() as f64 + 40.0;
    let mut svg = String::new();
    let mut add = |text: std::fmt::Arguments<'_>| {
        let _ = svg.write_fmt(text);
        svg.push('\n');
    };
    add(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:.0} {height:.0}" font-family="sans-serif" font-size="11">"#,
        LEFT + WIDTH + 20.0
    ));
    add(format_args!(r##"<rect width="100%" height="100%" fill="#ffffff"/>"##));
    add(format_args!(
        r#"<text x="10" y="18" font-size="13">{} jobs, {} from {}</text>"#,
        drawn.len(),
        seconds(span),
        rfc3339(from)
    ));
    for (n, (_, name, colour)) in COLOURS.iter().enumerate() {
        let at = LEFT + n as f64 * 80.0;
        add(format_args!(r#"<rect x="{at:.0}" y="28" width="10" height="10" fill="{colour}"/>"#));
        add(format_args!(r#"<text x="{:.0}" y="37">{name}</text>"#, at + 14.0));
    }
    let step = tick(span);
    let mut at = 0.0;
    while at <= span {
        let (x, bottom) = (x(from + at), height - 30.0);
        add(format_args!(r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom:.1}" stroke="#e0e0e0"/>"##));
        add(format_args!(r##"<text x="{x:.1}" y="{:.1}" fill="#606060">{}</text>"##, bottom + 14.0, seconds(at)));
        at += step;
    }
    for (slot, row) in &rows {
        let y = TOP + ROW * *row as f64;
        let name = slot.map_or_else(|| "no slot".into(), |n| format!("slot {n}"));
        add(format_args!(r#"<text x="10" y="{:.1}">{name}</text>"#, y + 26.0));
    }
    for report in drawn {
        let y = TOP + ROW * rows.get(&report.slot).copied().unwrap_or(0) as f64;
        add(format_args!("<g>"));
        for two in report.phases.windows(2) {
            let [began, next] = two else { continue };
            let Some((_, name, colour)) = COLOURS.iter().find(|(phase, ..)| *phase == began.phase) else { continue };
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
            let end = if report.reason == crate::bind::Reason::Completed {
                String::new()
            } else {
                format!(" ({})", report.reason)
            };
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

/// A round distance between two marks, so that there are 5 to 12 of them.
fn tick(span: f64) -> f64 {
    let rough = span / 10.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(rough)
}

fn seconds(s: f64) -> String {
    match s.abs() {
        n if n < 10.0 => format!("{s:.2} s"),
        n if n < 600.0 => format!("{s:.0} s"),
        n if n < 36_000.0 => format!("{:.0} min", s / 60.0),
        _ => format!("{:.1} h", s / 3600.0),
    }
}

fn escaped(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
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
        assert!(!svg.contains("<i>"), "names are escaped");
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn reports_without_times_are_refused() {
        let (path, mut bare) = report("a", 0, 0.0);
        bare.phases.clear();
        assert!(svg(&[(path, bare)]).is_err());
        assert!(svg(&[]).is_err());
    }

    #[test]
    fn marks_are_round() {
        assert_eq!([tick(10.0), tick(60.0), tick(3600.0)], [1.0, 10.0, 500.0]);
    }
}
