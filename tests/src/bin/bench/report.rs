//! The table, and the same as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::sample::Sample;

/// One measured figure of one tool.
pub struct Row {
    /// What was measured.
    pub figure: &'static str,
    /// Of which tool.
    pub tool: String,
    /// The median, or the one value that there is.
    pub value: f64,
    /// What 95 of 100 tries did not exceed.
    pub p95: Option<f64>,
    /// The fastest try: the work itself, when nothing else of the machine got in its way.
    pub best: Option<f64>,
    /// Unit of all three.
    pub unit: &'static str,
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

/// Everything that is reported.
#[derive(Default)]
pub struct Report {
    /// In the order of the table.
    pub rows: Vec<Row>,
    /// Facts about the machine: name and text.
    pub facts: Vec<(&'static str, String)>,
}

impl Report {
    /// Adds the median of many tries, in milliseconds.
    pub fn add_sample(&mut self, figure: &'static str, tool: impl Into<String>, sample: &Sample) {
        if let Some(median) = sample.median() {
            let p95 = sample.percentile(95).map(|us| us / 1e3);
            let best = sample.percentile(0).map(|us| us / 1e3);
            let (tool, value, tries) = (tool.into(), median / 1e3, sample.0.len());
            self.rows.push(Row { figure, tool, value, p95, best, unit: "ms", tries });
        }
    }

    /// Adds one number.
    pub fn add(&mut self, figure: &'static str, tool: impl Into<String>, value: f64, unit: &'static str) {
        self.rows.push(Row { figure, tool: tool.into(), value, p95: None, best: None, unit, tries: 1 });
    }

    fn ratio(&self, row: &Row) -> Option<f64> {
        let bare = self.rows.iter().find(|r| r.figure == row.figure && r.tool == BARE)?;
        (bare.value > 0.0).then(|| row.value / bare.value)
    }

    /// Figures of ours that are above their goal.
    pub fn missed(&self, goals: &[Goal]) -> Vec<&Row> {
        self.rows.iter().filter(|row| met(row, goals) == Some(false)).collect()
    }

    /// The table.
    pub fn table(&self, goals: &[Goal]) -> String {
        let mut text = String::new();
        let head = ["figure / tool", "median", "best", "p95", "goal", "met", "x bare", "tries"];
        let mut rows: Vec<[String; COLUMNS]> = vec![head.map(str::to_owned)];
        let mut figure = "";
        for row in &self.rows {
            if row.figure != figure {
                figure = row.figure;
                let mut heading = [const { String::new() }; COLUMNS];
                if let Some(first) = heading.first_mut() {
                    *first = figure.to_owned();
                }
                rows.push(heading);
            }
            let goal = goal_of(row, goals);
            rows.push([
                format!("  {}", row.tool),
                shown(row.value, row.unit),
                row.best.map(|v| shown(v, row.unit)).unwrap_or_default(),
                row.p95.map(|v| shown(v, row.unit)).unwrap_or_default(),
                goal.map(|v| shown(v, row.unit)).unwrap_or_default(),
                met(row, goals).map(|m| if m { "yes" } else { "NO" }.to_owned()).unwrap_or_default(),
                self.ratio(row).map(|r| format!("{r:.1}")).unwrap_or_default(),
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
                    "ratio_to_bare": self.ratio(row),
                })
            })
            .collect();
        let facts: serde_json::Map<String, Value> =
            self.facts.iter().map(|(name, fact)| ((*name).to_owned(), json!(fact))).collect();
        json!({"version": 1, "machine": facts, "rows": rows})
    }
}

fn goal_of(row: &Row, goals: &[Goal]) -> Option<f64> {
    let ours = row.tool.starts_with(OURS);
    goals.iter().find(|goal| ours && goal.figure == row.figure).map(|goal| goal.most)
}

fn met(row: &Row, goals: &[Goal]) -> Option<bool> {
    goal_of(row, goals).map(|most| row.value <= most)
}

fn shown(value: f64, unit: &str) -> String {
    match unit {
        "ms" if value < 100.0 => format!("{value:.3} ms"),
        "ms" => format!("{value:.0} ms"),
        "" => format!("{value:.0}"),
        unit => format!("{value:.0} {unit}"),
    }
}
