//! Runs every kept input of every fuzz target: `corpus/` has one for each part of the code that fuzzing has reached,
//! `regressions/` those that once broke a property, each with a name that says which.

use std::any::Any;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use latebind_fuzz::{TARGETS, Target, target};

/// Most bytes of all corpora together.
const CORPORA_MAX: u64 = 1 << 20;
/// Most inputs of one.
const INPUTS_MAX: usize = 200;

fn files(kind: &str, target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target);
    let Ok(entries) = fs::read_dir(&dir) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without text")
}

fn replay(name: &str) {
    let Target { run, .. } = target(name).unwrap_or_else(|| panic!("there is no target {name}"));
    let (corpus, regressions) = (files("corpus", name), files("regressions", name));
    assert!(!corpus.is_empty(), "the target {name} has no corpus");
    run(b"");
    let failed: Vec<String> = corpus
        .iter()
        .chain(&regressions)
        .filter_map(|file| {
            let data = fs::read(file).unwrap();
            let panic = catch_unwind(|| run(&data)).err()?;
            Some(format!("{}: {}", file.display(), said(panic.as_ref())))
        })
        .collect();
    assert!(failed.is_empty(), "{} inputs of {name} break a property:\n{}", failed.len(), failed.join("\n"));
}

macro_rules! replayed {
    ($($test:ident $name:literal)*) => {
        $(#[test] fn $test() { replay($name); })*

        #[test]
        fn every_target_is_replayed() {
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), [$($name),*]);
        }
    };
}

replayed! {
    startup_files "startup"
    records "record"
    environment_files_in_shell "environment-sh"
    environment_files_with_nul "environment-nul"
    environment_files_for_docker "environment-docker"
    environments_as_export_prints_them "environment-export"
    mountinfo_texts "mountinfo"
    status_files "status"
    reports "report"
    what_the_kernel_says_of_processes "proc"
    command_lines_of_singularity "argv"
    times "time"
    image_references "reference"
    sizes "size"
    foreign_text "text"
    what_is_put_into_a_spool "spool"
    lines_of_clients "socket"
}

#[test]
fn corpora_stay_small_and_belong_to_targets() {
    let mut bytes = 0;
    for kind in ["corpus", "regressions"] {
        for dir in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)).unwrap() {
            let name = dir.unwrap().file_name().into_string().unwrap();
            assert!(target(&name).is_some(), "{kind}/{name} belongs to no target");
            let files = files(kind, &name);
            assert!(files.len() <= INPUTS_MAX, "{kind}/{name} has {} inputs: run.sh merge leaves fewer", files.len());
            bytes += files.iter().map(|file| file.metadata().unwrap().len()).sum::<u64>();
        }
    }
    assert!(bytes <= CORPORA_MAX, "the corpora have {bytes} bytes: minimise them (tests/fuzz/run.sh merge)");
}
