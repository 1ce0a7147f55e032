//! What `docs/` shows of a run: the table in `benchmarks.md`, and the pictures. Both come from one file, so that they
//! agree.

use std::fs;
use std::path::Path;

use crate::chart::{CHARTS, svg};
use crate::report::Report;
use crate::{Failed, GOALS};

const DOCUMENT: &str = "benchmarks.md";
/// What is between these lines of the document is a run's.
const BEGIN: &str = "<!-- written by make bench: begin -->\n";
const END: &str = "<!-- written by make bench: end -->\n";

/// Draws what a run has written to `measured`, and puts its table into the document.
pub fn write(measured: &Path, docs: &Path) -> Result<(), Failed> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let text = read(measured)?;
    let value = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", measured.display()))?;
    let report = Report::from_json(&value).ok_or_else(|| format!("{} is not a run's", measured.display()))?;
    let document = docs.join(DOCUMENT);
    let mut files = vec![(document.clone(), with_table(&read(&document)?, &report.verdict(&GOALS))?)];
    for chart in &CHARTS {
        let picture = svg(chart, &report);
        let picture = picture.ok_or_else(|| format!("{} has nothing for {}", measured.display(), chart.file))?;
        files.push((docs.join(chart.file), picture));
    }
    files.iter().try_for_each(|(path, text)| fs::write(path, text).map_err(|e| format!("{}: {e}", path.display())))
}

/// The document with this table in place of the one that is there.
fn with_table(document: &str, table: &str) -> Result<String, Failed> {
    let parts = document.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or_else(|| format!("{DOCUMENT} has no place for the table: {BEGIN}{END}"))?;
    Ok(format!("{before}{BEGIN}```\n{table}```\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;
    use crate::{DIRTY, RSS, TO_EXEC, in_place};

    fn docs() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
    }

    /// A run that measured a little of everything that is drawn.
    fn report() -> Report {
        let facts = crate::report::FACTS.into_iter().map(|name| (name, format!("{name}'s"))).collect();
        let mut report = Report { rows: Vec::new(), facts };
        for (tool, ns) in [("glue", 575_000), ("bare fork+exec+wait", 107_000), ("glue-exec", 700_000)] {
            report.add_sample(TO_EXEC, tool, &Sample(vec![ns / 2, ns, ns * 2]));
        }
        for figure in [RSS, DIRTY] {
            report.add(figure, "glue", 200.0, "KiB");
        }
        report.add(in_place::RATE, in_place::OURS, 108.4, "/s");
        report.add(in_place::RATE, "podman run", 7.25, "/s");
        report
    }

    #[test]
    fn a_run_that_was_written_down_is_the_same_when_read() {
        let report = report();
        let read = Report::from_json(&report.json(&GOALS)).unwrap();
        assert_eq!(read.verdict(&GOALS), report.verdict(&GOALS));
        assert_eq!(read.json(&GOALS), report.json(&GOALS));
        assert!(Report::from_json(&serde_json::json!({"machine": {}, "rows": [{}]})).is_none());
    }

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let document = format!("a\n{BEGIN}old\n{END}b\n");
        let new = with_table(&document, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}```\nnew\n```\n{END}b\n"));
        assert_eq!(with_table(&new, "new\n").unwrap(), new);
        assert!(with_table("a\nb\n", "new\n").is_err());
    }

    #[test]
    fn a_run_becomes_table_and_pictures() {
        let dir = std::env::temp_dir().join(format!("latebind-bench-documents-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let measured = dir.join("bench.json");
        fs::write(&measured, report().json(&GOALS).to_string()).unwrap();
        fs::write(dir.join(DOCUMENT), format!("{BEGIN}{END}")).unwrap();
        write(&measured, &dir).unwrap();
        let table = fs::read_to_string(dir.join(DOCUMENT)).unwrap();
        assert!(table.contains("0.575 ms") && table.contains("machine: machine's"), "{table}");
        let picture = fs::read_to_string(dir.join(CHARTS[0].file)).unwrap();
        assert!(picture.contains(">glue-exec</text>") && picture.contains(">0.700 ms<"), "{picture}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_pictures_of_the_documentation_are_of_the_run_in_its_table() {
        let document = fs::read_to_string(docs().join(DOCUMENT)).unwrap();
        let table = document.split_once(BEGIN).unwrap().1.split_once(END).unwrap().0;
        for chart in &CHARTS {
            assert!(document.contains(&format!("({})", chart.file)), "{} is not shown", chart.file);
            let picture = fs::read_to_string(docs().join(chart.file)).unwrap();
            for figure in chart.figures {
                let rows = table.split_once(&format!("\n{figure}\n")).expect(figure).1;
                let rows: Vec<&str> = rows.lines().take_while(|line| line.starts_with("  ")).collect();
                assert!(rows.len() > 1, "{figure}");
                for row in rows {
                    // Columns are two spaces apart at least.
                    let mut cells = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
                    let (tool, value) = (cells.next().unwrap(), cells.next().unwrap());
                    assert!(picture.contains(&format!("<title>{tool}: {value}")), "{}: {row}", chart.file);
                }
            }
        }
        assert!(table.contains("\n  glue-exec "), "{table}");
    }
}
