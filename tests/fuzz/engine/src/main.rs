//! libFuzzer on one target: `LATEBIND_FUZZ_TARGET=NAME fuzz [libFuzzer's options] [corpora]`.
#![no_main]

use std::sync::LazyLock;

use latebind_fuzz::{TARGETS, Target, target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("LATEBIND_FUZZ_TARGET").unwrap_or_default();
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    target(&name).unwrap_or_else(|| panic!("LATEBIND_FUZZ_TARGET is {name:?}: use one of {}", names.join(", ")))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
