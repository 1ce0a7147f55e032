//! The memory of a waiting glue, as the kernel tells it: how much is resident, and what of its program can be written.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test ends by panicking")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use latebind_tests::pod::program;
use latebind_tests::slot::Slot;
use latebind_tests::waiting::within;

/// KiB that may be resident while glue waits.
const IDLE_MOST: u64 = 256;

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// Where PT_GNU_RELRO of a program begins and ends, as readelf says it.
fn relro(program: &std::path::Path) -> (u64, u64) {
    let output = Command::new("readelf").arg("-lW").arg(program).output().expect("readelf of binutils");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.trim_start().starts_with("GNU_RELRO")).unwrap();
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    (hex(fields[2]), hex(fields[2]) + hex(fields[5]))
}

#[test]
fn a_waiting_glue_takes_little_memory_and_its_constants_cannot_be_written() {
    let slot = Slot::new("busybox");
    let proc = format!("/proc/{}", slot.glue());
    // Ready is said before the wait, so this is waited for.
    within(Duration::from_secs(20), "little resident memory", || {
        let text = fs::read_to_string(format!("{proc}/smaps_rollup")).unwrap();
        let rss = text.lines().find_map(|line| line.strip_prefix("Rss:")?.split_ascii_whitespace().next()).unwrap();
        (rss.parse::<u64>().unwrap() <= IDLE_MOST).then_some(())
    });

    let (start, end) = relro(&program("glue"));
    let maps = fs::read_to_string(format!("{proc}/maps")).unwrap();
    let own: Vec<Vec<&str>> =
        maps.lines().filter(|line| line.ends_with("/glue")).map(|line| line.split(' ').collect()).collect();
    let address = |mapping: &Vec<&str>| mapping[0].split_once('-').map(|(from, to)| (hex(from), hex(to))).unwrap();
    let base = own.first().map(|first| address(first).0).unwrap();
    let page = 4096;
    let (first, last) = (base + start / page * page, base + end / page * page);
    assert!(first < last, "the program has no whole page of relocated constants: {start:x}-{end:x}");
    for mapping in &own {
        let (from, to) = address(mapping);
        let overlaps = from < last && first < to;
        assert!(!overlaps || mapping[1].starts_with("r--"), "relocated constants can be written: {mapping:?}\n{maps}");
        assert!(!mapping[1].starts_with("rwx"), "{maps}");
    }
}
