//! The table, and the same as JSON, from which it can be made again.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::sample::Sample;

/// One measured figure of one tool.
pub struct Row {
    /// What was measured.
    pub figure: String,
    /// Of which tool.
    pub tool: String,
    /// The median, or the one value that there is.
    pub value: f64,
    /// What 95 of 100 tries did not exceed.
    pub p95: Option<f64>,
    /// The fastest try: the work itself, when nothing else of the machine got in its way.
    pub best: Option<f64>,
    /// Unit of all three.
    pub unit: String,
    /// Number of tries.
    pub tries: usize,
}

/// A goal for glue: figure, and the most it may be.
pub struct Goal {
    /// Which figure.
    pub figure: &'static str,
    /// The most it may be, in the figure's unit.
    pub most: f64,
}

/// The tool whose goals these are: every row of a tool that begins so is held to them.
pub const OURS: &str = "glue";
/// What the others are set against.
pub const BARE: &str = "bare fork+exec+wait";

const COLUMNS: usize = 8;

/// What is said of the machine, in this order.
pub const FACTS: [&str; 6] =
    ["machine", "kernel", "system", "tries", "load (1, 5, 15 min) at the start", "load at the end"];

/// Everything that is reported.
#[derive(Default)]
pub struct Report {
    /// In the order of the table.
    pub rows: Vec<Row>,
    /// Facts about the machine: one of [`FACTS`], and text.
    pub facts: Vec<(&'static str, String)>,
}

impl Report {
    /// Adds the median of many tries, in milliseconds.
    pub fn add_sample(&mut self, figure: &str, tool: impl Into<String>, sample: &Sample) {
        if let Some(median) = sample.median() {
            let p95 = sample.percentile(95).map(|us| us / 1e3);
            let best = sample.percentile(0).map(|us| us / 1e3);
            let (figure, tool, unit) = (figure.into(), tool.into(), "ms".into());
            self.rows.push(Row { figure, tool, value: median / 1e3, p95, best, unit, tries: sample.0.len() });
        }
    }

    /// Adds one number.
    pub fn add(&mut self, figure: &str, tool: impl Into<String>, value: f64, unit: &str) {
        let (figure, tool, unit) = (figure.into(), tool.into(), unit.into());
        self.rows.push(Row { figure, tool, value, p95: None, best: None, unit, tries: 1 });
    }

    /// How many times the value of the tool `of` this one is, where that has been measured too.
    pub fn ratio(&self, row: &Row, of: &str) -> Option<f64> {
        let other = self.rows.iter().find(|r| r.figure == row.figure && r.tool == of)?;
        (other.value > 0.0).then(|| row.value / other.value)
    }

    /// Figures of ours that are above their goal.
    pub fn missed(&self, goals: &[Goal]) -> Vec<&Row> {
        self.rows.iter().filter(|row| met(row, goals) == Some(false)).collect()
    }

    /// The table alone.
    pub fn table(&self, goals: &[Goal]) -> String {
        let mut text = String::new();
        let head = ["figure / tool", "median", "best", "p95", "goal", "met", "x bare", "tries"];
        let mut rows: Vec<[String; COLUMNS]> = vec![head.map(str::to_owned)];
        let mut figure = "";
        for row in &self.rows {
            if row.figure != figure {
                figure = &row.figure;
                let mut heading = [const { String::new() }; COLUMNS];
                if let Some(first) = heading.first_mut() {
                    *first = figure.to_owned();
                }
                rows.push(heading);
            }
            let goal = goal_of(row, goals);
            rows.push([
                format!("  {}", row.tool),
                shown(row.value, &row.unit),
                row.best.map(|v| shown(v, &row.unit)).unwrap_or_default(),
                row.p95.map(|v| shown(v, &row.unit)).unwrap_or_default(),
                goal.map(|v| shown(v, &row.unit)).unwrap_or_default(),
                met(row, goals).map(|m| if m { "yes" } else { "NO" }.to_owned()).unwrap_or_default(),
                self.ratio(row, BARE).map(|r| format!("{r:.1}")).unwrap_or_default(),
                row.tries.to_string(),
            ]);
        }
        let width = |n: usize| rows.iter().filter_map(|r| r.get(n)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
        for row in &rows {
            let mut line = String::new();
            for (n, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = if n == 0 { write!(line, "{cell:width$}") } else { write!(line, "  {cell:>width$}") };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.push('\n');
        for (name, fact) in &self.facts {
            let _ = writeln!(text, "{name}: {fact}");
        }
        text
    }

    /// The table, and which goals were not met.
    pub fn verdict(&self, goals: &[Goal]) -> String {
        let missed: Vec<String> =
            self.missed(goals).iter().map(|row| format!("{}: {}", row.tool, row.figure)).collect();
        let verdict = match missed.as_slice() {
            [] => "every goal is met".to_owned(),
            missed => format!("above the goal:\n  {}", missed.join("\n  ")),
        };
        format!("{}\n{verdict}\n", self.table(goals))
    }

    /// The same for programs.
    pub fn json(&self, goals: &[Goal]) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "figure": row.figure,
                    "tool": row.tool,
                    "median": row.value,
                    "best": row.best,
                    "p95": row.p95,
                    "unit": row.unit,
                    "tries": row.tries,
                    "goal": goal_of(row, goals),
                    "met": met(row, goals),
                    "ratio_to_bare": self.ratio(row, BARE),
                })
            })
            .collect();
        let facts: serde_json::Map<String, Value> =
            self.facts.iter().map(|(name, fact)| ((*name).to_owned(), json!(fact))).collect();
        json!({"version": 1, "machine": facts, "rows": rows})
    }

    /// What [`Report::json`] has written.
    pub fn from_json(value: &Value) -> Option<Self> {
        let text = |of: &Value, name: &str| Some(of.get(name)?.as_str()?.to_owned());
        let row = |row: &Value| {
            let number = |name: &str| row.get(name)?.as_f64();
            Some(Row {
                figure: text(row, "figure")?,
                tool: text(row, "tool")?,
                value: number("median").unwrap_or(f64::NAN), // JSON has no other numbers than finite ones
                best: number("best"),
                p95: number("p95"),
                unit: text(row, "unit")?,
                tries: usize::try_from(row.get("tries")?.as_u64()?).ok()?,
            })
        };
        let machine = value.get("machine")?;
        Some(Self {
            rows: value.get("rows")?.as_array()?.iter().map(row).collect::<Option<_>>()?,
            facts: FACTS.into_iter().filter_map(|name| Some((name, text(machine, name)?))).collect(),
        })
    }
}

fn goal_of(row: &Row, goals: &[Goal]) -> Option<f64> {
    let ours = row.tool.starts_with(OURS);
    goals.iter().find(|goal| ours && goal.figure == row.figure).map(|goal| goal.most)
}

fn met(row: &Row, goals: &[Goal]) -> Option<bool> {
    goal_of(row, goals).map(|most| row.value <= most)
}

/// A value as people read it.
pub fn shown(value: f64, unit: &str) -> String {
    match unit {
        "/s" if value < 10.0 => format!("{value:.1} /s"),
        "ms" if value < 100.0 => format!("{value:.3} ms"),
        "ms" => format!("{value:.0} ms"),
        "" => format!("{value:.0}"),
        unit => format!("{value:.0} {unit}"),
    }
}
