//! `docs/threat-model.md` names where each attack is tried: what it names exists, and no file of attacks is left out.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All that the document has between backticks.
fn quoted() -> Vec<String> {
    let document = fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    document.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn collect_sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether the text defines a function of this name that the test harness runs.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let defined = lines.iter().position(|line| line.starts_with(&format!("fn {name}(")));
    let attributes = defined.and_then(|at| lines.get(..at)).unwrap_or_default();
    attributes.iter().rev().take_while(|line| line.starts_with("#[")).any(|line| *line == "#[test]")
}

#[test]
fn each_file_and_each_test_that_the_threat_model_names_exists() {
    let mut sources = Vec::new();
    for dir in ["tests", "glue", "watcher"] {
        collect_sources(&root().join(dir), &mut sources);
    }
    let mut tests = 0;
    for name in quoted().iter().filter(|name| name.contains(".rs")) {
        let (file, test) = name.split_once("::").map_or((name.as_str(), None), |(file, test)| (file, Some(test)));
        let mut files = sources.iter().filter(|path| path.ends_with(file)).peekable();
        assert!(files.peek().is_some(), "there is no {file}");
        if let Some(test) = test {
            assert!(files.any(|path| has_test(&fs::read_to_string(path).unwrap(), test)), "{file} has no test {test}");
            tests += 1;
        }
    }
    assert!(tests > 0, "the threat model names no test");
}

#[test]
fn each_file_of_attacks_is_named_in_the_threat_model() {
    let quoted = quoted();
    for entry in fs::read_dir(root().join("tests/tests/attacks")).unwrap() {
        let name = format!("attacks/{}", entry.unwrap().file_name().display());
        let is_named = |quoted: &String| quoted.split("::").next() == Some(name.as_str());
        assert!(name == "attacks/main.rs" || quoted.iter().any(is_named), "{name} is not named");
    }
}
