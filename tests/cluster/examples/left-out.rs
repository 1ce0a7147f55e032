//! Lists the tests that the cluster under test is not for, a line each: `NAME FILE REASON`.

use std::error::Error;
use std::path::Path;

use latebind_cluster_tests::{cluster, needs};

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"))? {
        files.push(entry?.path());
    }
    files.sort();
    for file in files {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let tests = needs::of_source(&std::fs::read_to_string(&file)?).map_err(|e| format!("{stem}: {e}"))?;
        for (name, needs) in tests {
            if let Some(lacking) = needs.lacking(cluster()) {
                println!("{name} {stem} {lacking}");
            }
        }
    }
    Ok(())
}
