//! Target `report`: reports, which hold text of jobs, images and engines, as people are shown them.

use std::path::{Path, PathBuf};

use latebind_contract::text::is_harmless;
use watcher::job::Report;
use watcher::keys::Proof;
use watcher::views::{page, report::text as report_text, results, timeline};

/// The input is a `report.json`.
pub fn run(data: &[u8]) {
    let Ok(report) = serde_json::from_slice::<Report>(data) else { return };
    let written = serde_json::to_vec(&report).unwrap();
    let again: Report = serde_json::from_slice(&written).unwrap();
    assert_eq!(serde_json::to_vec(&again).unwrap(), written, "what is written is not what is read back");

    let plain = |text: &str| text.chars().all(|c| c == '\n' || is_harmless(c));
    let text = report_text(&report, &Proof::NotChecked(report.message.clone()));
    assert!(plain(&text) && !text.is_empty(), "{text:?}");
    let reports = [(PathBuf::from("r"), report)];
    let table = results::table(&reports, Path::new("/nowhere"));
    assert!(plain(&table), "{table:?}");
    assert_eq!(table.lines().count(), 2, "a row for the report, below the head: {table:?}");
    if let Ok(picture) = timeline::svg(&reports) {
        assert!(plain(&picture));
        is_well_formed(&picture, &PICTURE);
        let page = page::html(&reports, Path::new("/nowhere")).unwrap();
        assert!(plain(&page));
        is_well_formed(page.strip_prefix("<!DOCTYPE html>").unwrap(), &[&PAGE[..], &PICTURE].concat());
    }
}

/// The elements of a picture, and the others of a page.
const PICTURE: [&str; 6] = ["svg", "rect", "text", "title", "line", "g"];
const PAGE: [&str; 17] = [
    "html", "head", "meta", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td", "span", "details", "summary",
    "pre", "polyline",
];

/// Each element is closed, and nothing of a report opens one.
fn is_well_formed(picture: &str, known: &[&str]) {
    let mut open = Vec::new();
    for tag in picture.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').unwrap_or_else(|| panic!("a tag without an end: {tag:?}"));
        assert!(!text.contains('>'), "{text:?}");
        for entity in text.split('&').skip(1) {
            assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|entities| entity.starts_with(entities)), "{text:?}");
        }
        let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap_or_default();
        assert!(known.contains(&name), "{tag:?}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag:?}");
        assert!(!tag.contains("NaN") && !tag.contains("inf"), "{tag:?}");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag:?}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} is never closed");
}
