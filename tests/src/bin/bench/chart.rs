//! Bar charts of what was measured, as SVG: the same numbers give the same bytes.

use std::fmt::Write;

use watcher::views::svg::{escaped, tick};

use crate::report::{BARE, OURS, Report, Row, shown};
use crate::{DIRTY, RSS, TO_EXEC, TO_KNOWN, in_place};

/// A picture, of one or more figures that share an axis.
pub struct Chart {
    /// The file's name.
    pub file: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// Which figures, one below the other.
    pub figures: &'static [&'static str],
    /// What the axis counts.
    pub axis: &'static str,
    /// Powers of ten: for values that a common axis would hide beside each other.
    pub logarithmic: bool,
    /// How the tools' names begin that are ours.
    pub ours: &'static str,
    /// The tool that the ratios are to, and how they call it.
    pub compared_with: (&'static str, &'static str),
}

/// The pictures of `docs/benchmarks.md`.
pub const CHARTS: [Chart; 3] = [
    Chart {
        file: "benchmarks-start.svg",
        title: "Start of a job, and the way back of its end",
        figures: &[TO_EXEC, TO_KNOWN],
        axis: "milliseconds, logarithmic; less is better",
        logarithmic: true,
        ours: OURS,
        compared_with: (BARE, "bare"),
    },
    Chart {
        file: "benchmarks-idle.svg",
        title: "Memory while waiting",
        figures: &[RSS, DIRTY],
        axis: "KiB; less is better",
        logarithmic: false,
        ours: OURS,
        compared_with: (OURS, "glue"),
    },
    Chart {
        file: "benchmarks-jobs.svg",
        title: "Trivial jobs a second",
        figures: &[in_place::RATE],
        axis: "jobs a second; more is better",
        logarithmic: false,
        ours: in_place::OURS,
        compared_with: ("podman run", "podman run"),
    },
];

const WIDTH: f64 = 900.0;
const MARGIN: f64 = 16.0;
/// Where bars begin, right of the tools' names, and how much room they have: what is right of that is for values.
const LEFT: f64 = 280.0;
const PLOT: f64 = 400.0;
/// Height of the head, of a figure's name, of a row with its bar, and of the axis.
const HEAD: f64 = 66.0;
const NAME: f64 = 26.0;
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;
const AXIS: f64 = 46.0;
/// The width of a character is taken to be this part of its size: a little more than that of most in a sans-serif font.
const CHARACTER: f64 = 0.6;

/// In light and dark surroundings, each with a background of its own: a picture that a page embeds does not know the
/// page's. Blue and grey, which people who see red and green alike can distinguish.
const STYLE: &str = "\
.back{fill:#ffffff}text{fill:#1f2328}.soft{fill:#57606a}.grid{stroke:#d8dee4}.range{stroke:#1f2328}
.bar{fill:#9aa4ae}.ours{fill:#0072b2}.value{font-weight:bold}
@media(prefers-color-scheme:dark){.back{fill:#0d1117}text{fill:#e6edf3}.soft{fill:#9198a1}.grid{stroke:#30363d}
.range{stroke:#e6edf3}.bar{fill:#656d76}.ours{fill:#56b4e9}}";

/// From values to places.
struct Scale {
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(rows: &[&Row], logarithmic: bool) -> Self {
        let all = || rows.iter().flat_map(|row| [Some(row.value), row.best, row.p95]).flatten();
        let most = all().filter(|v| v.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
        if !logarithmic {
            let step = tick(most);
            return Self { from: 0.0, to: (most / step).ceil() * step, logarithmic };
        }
        let least = all().filter(|v| *v > 0.0).fold(most, f64::min);
        let (from, to) = (least.log10().floor(), most.log10().ceil());
        Self { from, to: to.max(from + 1.0), logarithmic }
    }

    /// Where a value is, right of where bars begin.
    fn place(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.log10() } else { value };
        let share = (value - self.from) / (self.to - self.from);
        // Zero has no logarithm.
        if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) * PLOT }
    }

    /// The values of the axis that have a mark.
    fn marks(&self) -> Vec<f64> {
        if self.logarithmic {
            return (0..=(self.to - self.from) as i32).map(|n| 10f64.powf(self.from + f64::from(n))).collect();
        }
        let step = tick(self.to);
        (0..=(self.to / step).round() as u32).map(|n| f64::from(n) * step).collect()
    }
}

/// As much of a text as has room in so many pixels, escaped.
fn fitting(text: &str, size: f64, room: f64) -> String {
    let most = (room / (size * CHARACTER)) as usize;
    if text.chars().count() <= most {
        return escaped(text);
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    escaped(&kept) + "…"
}

/// A mark of the axis: a power of ten, or a multiple of a round number.
fn mark(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The picture; `None` where nothing of it was measured.
pub fn svg(chart: &Chart, report: &Report) -> Option<String> {
    let rows = |figure: &str| report.rows.iter().filter(|row| row.figure == figure).collect::<Vec<_>>();
    let figures: Vec<(&str, Vec<&Row>)> =
        chart.figures.iter().map(|f| (*f, rows(f))).filter(|(_, rows)| !rows.is_empty()).collect();
    let all: Vec<&Row> = figures.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
    let unit = &all.first()?.unit;
    let mut drawing = Drawing { chart, report, unit, scale: Scale::of(&all, chart.logarithmic), svg: String::new() };
    drawing.head(&figures, HEAD + all.len() as f64 * ROW + figures.len() as f64 * (NAME + AXIS) + MARGIN);
    let mut top = HEAD;
    for (figure, rows) in &figures {
        drawing.figure(figure, rows, top);
        top += NAME + rows.len() as f64 * ROW + AXIS;
    }
    drawing.line(format_args!("</svg>"));
    Some(drawing.svg)
}

/// A picture that is being drawn.
struct Drawing<'a> {
    chart: &'a Chart,
    report: &'a Report,
    unit: &'a str,
    scale: Scale,
    svg: String,
}

impl Drawing<'_> {
    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.svg.write_fmt(text);
        self.svg.push('\n');
    }

    /// How many times the value of the tool that all are compared with this is; nothing of that one.
    fn ratio(&self, row: &Row) -> Option<String> {
        let (other, name) = self.chart.compared_with;
        let ratio = self.report.ratio(row, other).filter(|_| row.tool != other)?;
        Some(if ratio < 100.0 { format!("{ratio:.1} × {name}") } else { format!("{ratio:.0} × {name}") })
    }

    /// Size, the whole picture in words, background, title, and what is known of the machine.
    fn head(&mut self, figures: &[(&str, Vec<&Row>)], height: f64) {
        let title = escaped(self.chart.title);
        self.line(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0} {height:.0}" width="{WIDTH:.0}""#
        ));
        self.line(format_args!(
            r#" height="{height:.0}" role="img" aria-labelledby="title desc" font-family="sans-serif" font-size="12">"#
        ));
        self.line(format_args!(r#"<title id="title">{title}</title>"#));
        self.line(format_args!(r#"<desc id="desc">Medians, {}."#, escaped(self.chart.axis)));
        for (figure, rows) in figures {
            let values: Vec<String> = rows.iter().map(|row| self.in_words(row)).collect();
            self.line(format_args!("{}: {}.", escaped(figure), values.join("; ")));
        }
        self.line(format_args!("</desc>\n<style>{STYLE}</style>"));
        self.line(format_args!(r#"<rect class="back" width="100%" height="100%"/>"#));
        self.line(format_args!(r#"<text x="{MARGIN}" y="26" font-size="17">{title}</text>"#));
        let facts: Vec<String> = self.report.facts.iter().map(|(name, fact)| format!("{name}: {fact}")).collect();
        // The first three are the machine's, the others the run's.
        for (n, facts) in facts.chunks(3).take(2).enumerate() {
            let (y, text) = (44.0 + n as f64 * 15.0, fitting(&facts.join("; "), 11.0, WIDTH - 2.0 * MARGIN));
            self.line(format_args!(r#"<text class="soft" x="{MARGIN}" y="{y:.0}" font-size="11">{text}</text>"#));
        }
    }

    fn in_words(&self, row: &Row) -> String {
        let ratio = self.ratio(row).map(|ratio| format!(" ({ratio})")).unwrap_or_default();
        escaped(&format!("{} {}{ratio}", row.tool, shown(row.value, self.unit)))
    }

    /// One figure: its name, the axis with its marks, and the bars.
    fn figure(&mut self, figure: &str, rows: &[&Row], top: f64) {
        let name = fitting(figure, 13.0, WIDTH - 2.0 * MARGIN);
        self.line(format_args!(r#"<text x="{MARGIN}" y="{:.0}" font-size="13">{name}</text>"#, top + 18.0));
        let top = top + NAME;
        let bottom = top + rows.len() as f64 * ROW;
        for value in self.scale.marks() {
            let (x, mark) = (LEFT + self.scale.place(value), mark(value));
            self.line(format_args!(r#"<line class="grid" x1="{x:.1}" y1="{top:.0}" x2="{x:.1}" y2="{bottom:.0}"/>"#));
            self.under_axis(x, 1, bottom + 14.0, &mark);
        }
        let axis = fitting(self.chart.axis, 11.0, PLOT);
        self.under_axis(LEFT + PLOT / 2.0, 0, bottom + 30.0, &axis);
        for (n, row) in rows.iter().enumerate() {
            self.bar(row, top + (n as f64 + 0.5) * ROW);
        }
    }

    /// Text with its middle at `x`, which is written with so many digits.
    fn under_axis(&mut self, x: f64, digits: usize, y: f64, text: &str) {
        self.line(format_args!(
            r#"<text class="soft" x="{x:.digits$}" y="{y:.0}" font-size="11" text-anchor="middle">{text}</text>"#
        ));
    }

    /// The tool's name, its bar with the range of the tries, and its value.
    fn bar(&mut self, row: &Row, middle: f64) {
        let width = self.scale.place(row.value);
        let class = if row.tool.starts_with(self.chart.ours) { "bar ours" } else { "bar" };
        let (baseline, tool) = (middle + 4.0, fitting(&row.tool, 12.0, LEFT - 8.0 - MARGIN));
        self.line(format_args!("<g><title>{}</title>", escaped(&about(row))));
        self.line(format_args!(r#"<text x="{:.0}" y="{baseline:.0}" text-anchor="end">{tool}</text>"#, LEFT - 8.0));
        self.line(format_args!(
            r#"<rect class="{class}" x="{LEFT:.0}" y="{:.0}" width="{width:.1}" height="{BAR:.0}"/>"#,
            middle - BAR / 2.0
        ));
        let mut end = width;
        if let Some((best, p95)) = row.best.zip(row.p95) {
            let (best, p95) = (self.scale.place(best), self.scale.place(p95));
            end = end.max(p95);
            self.line(format_args!(
                r#"<line class="range" x1="{:.1}" y1="{middle:.0}" x2="{:.1}" y2="{middle:.0}"/>"#,
                LEFT + best,
                LEFT + p95
            ));
        }
        let ratio = self.ratio(row).map(|ratio| format!(r#"<tspan class="soft" dx="8">{}</tspan>"#, escaped(&ratio)));
        self.line(format_args!(
            r#"<text x="{:.1}" y="{baseline:.0}"><tspan class="value">{}</tspan>{}</text></g>"#,
            LEFT + end + 8.0,
            escaped(&shown(row.value, self.unit)),
            ratio.unwrap_or_default()
        ));
    }
}

/// All that is known of a bar.
fn about(row: &Row) -> String {
    let range = row.best.zip(row.p95).map(|(best, p95)| {
        format!(", the fastest of {} {}, 95 % within {}", row.tries, shown(best, &row.unit), shown(p95, &row.unit))
    });
    format!("{}: {}{}", row.tool, shown(row.value, &row.unit), range.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    /// Tool and time in microseconds of three tries.
    fn report(rows: &[(&str, u64)]) -> Report {
        let mut report = Report { rows: Vec::new(), facts: vec![("tries", "3 <quiet> & \"idle\"".into())] };
        for (tool, median) in rows {
            report.add_sample(TO_EXEC, *tool, &Sample(vec![median * 500, median * 1000, median * 2000]));
        }
        report
    }

    fn drawn(report: &Report) -> String {
        svg(&CHARTS[0], report).unwrap()
    }

    /// The value of an attribute in a tag.
    fn attribute(tag: &str, name: &str) -> Option<f64> {
        let rest = tag.split_once(&format!(" {name}=\""))?.1;
        rest.split_once('"')?.0.parse().ok()
    }

    /// Each `<name ...>` of a picture.
    fn tags<'a>(svg: &'a str, name: &str) -> Vec<&'a str> {
        let begin = format!("<{name} ");
        svg.match_indices(&begin).map(|(at, _)| svg[at..].split_once('>').unwrap().0).collect()
    }

    /// Fails where tags are not closed in order, or text holds what it must not.
    #[track_caller]
    fn assert_well_formed(svg: &str) {
        let mut open = Vec::new();
        for part in svg.split('<').skip(1) {
            let (tag, text) = part.split_once('>').expect(part);
            assert!(!text.contains('>') && tag.matches('"').count() % 2 == 0, "{part}");
            for (at, _) in text.match_indices('&') {
                assert!(["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|e| text[at..].starts_with(e)), "{text}");
            }
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "{svg}"),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split(' ').next().unwrap()),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn bars_are_as_long_as_their_values_say() {
        let svg = drawn(&report(&[(OURS, 1_000), (BARE, 100), ("dumb-init", 10_000)]));
        // From 0.05 to 20 ms: the axis has the powers of ten from 0.01 to 100.
        let bars: Vec<f64> = tags(&svg, "rect").iter().filter_map(|tag| attribute(tag, "width")).collect();
        let part = PLOT / 4.0;
        assert_eq!(bars, [2.0 * part, part, 3.0 * part]);
        for (value, ratio) in [("1.000 ms", "10.0 × bare"), ("10.000 ms", "100 × bare")] {
            assert!(svg.contains(&format!("{value}</tspan><tspan class=\"soft\" dx=\"8\">{ratio}<")), "{svg}");
        }
        for mark in ["0.01", "0.1", "1", "10", "100"] {
            assert!(svg.contains(&format!(">{mark}</text>")), "{mark}");
        }
        assert_eq!(svg.matches("class=\"bar ours\"").count(), 1);
        assert!(svg.contains("glue: 1.000 ms, the fastest of 3 0.500 ms, 95 % within 2.000 ms</title>"), "{svg}");
        let mut jobs = Report::default();
        jobs.add(in_place::RATE, in_place::OURS, 100.0, "/s");
        jobs.add(in_place::RATE, "podman run", 5.0, "/s");
        let svg = super::svg(&CHARTS[2], &jobs).unwrap();
        let bars: Vec<f64> = tags(&svg, "rect").iter().filter_map(|tag| attribute(tag, "width")).collect();
        assert_eq!(bars, [PLOT, PLOT / 20.0]);
        assert!(svg.contains("20.0 × podman run"), "{svg}");
    }

    #[test]
    fn a_picture_says_in_words_what_it_shows() {
        let svg = drawn(&report(&[(OURS, 1_000), (BARE, 100)]));
        let words = svg.split_once("<desc id=\"desc\">").unwrap().1.split_once("</desc>").unwrap().0;
        assert!(words.contains("glue 1.000 ms (10.0 × bare); bare fork+exec+wait 0.100 ms."), "{words}");
        assert!(svg.contains("<title id=\"title\">Start of a job"), "{svg}");
        assert_eq!(svg, drawn(&report(&[(OURS, 1_000), (BARE, 100)])), "the same numbers, the same bytes");
    }

    #[test]
    fn names_are_text_and_stay_in_their_column() {
        let long = "a tool <script> & \"more\" ".repeat(9);
        let mut report = report(&[(&long, 1_000), (BARE, 1)]);
        report.facts.push(("machine", "x".repeat(500)));
        let svg = drawn(&report);
        assert_well_formed(&svg);
        assert!(!svg.contains("<script"), "{svg}");
        for part in svg.split("<text ").skip(1) {
            let tag = format!(" {}", part.split_once('>').unwrap().0);
            let words = part.split_once('>').unwrap().1.split_once("</text>").unwrap().0;
            let mut words = words.to_owned();
            while let Some((before, rest)) = words.split_once('<') {
                words = format!("{before}{}", rest.split_once('>').unwrap().1);
            }
            let words = words.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
            let width = words.chars().count() as f64 * attribute(&tag, "font-size").unwrap_or(12.0) * CHARACTER;
            let x = attribute(&tag, "x").unwrap();
            let begin = if tag.contains("\"end\"") {
                x - width
            } else if tag.contains("\"middle\"") {
                x - width / 2.0
            } else {
                x
            };
            assert!(begin >= 0.0 && begin + width <= WIDTH, "{begin} {width} {part}");
        }
    }

    #[test]
    fn odd_values_stay_in_the_picture() {
        let mut report = report(&[(OURS, 0), (BARE, 0)]);
        for (tool, value) in [("a", f64::NAN), ("b", f64::INFINITY), ("c", -1.0), ("d", 1e300)] {
            report.add(TO_EXEC, tool, value, "ms");
        }
        for chart in [&CHARTS[0], &Chart { logarithmic: false, ..CHARTS[0] }] {
            let svg = super::svg(chart, &report).unwrap();
            assert_well_formed(&svg);
            for width in tags(&svg, "rect").iter().filter_map(|tag| attribute(tag, "width")) {
                assert!((0.0..=PLOT).contains(&width), "{width}");
            }
        }
        assert!(super::svg(&CHARTS[1], &report).is_none(), "nothing was measured");
    }
}
