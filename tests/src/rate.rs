//! How many trivial jobs of one owner and image a spool's slot runs in a second.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

fn name(n: usize) -> String {
    format!("job-{n:05}")
}

/// Puts `jobs` jobs into a spool.
///
/// # Errors
/// What could not be written.
pub fn put(spool: &Path, jobs: usize, image: &str) -> Result<(), String> {
    for n in 0..jobs {
        let dir = spool.join("new").join(name(n));
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let job = json!({"image": image, "argv": ["true"], "owner": "bench"});
        fs::write(dir.join("job.json"), job.to_string()).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    Ok(())
}

/// Jobs a second from the end of the first, which has to bind its image, to the end of the last.
///
/// # Errors
/// A job without a result, one that is not verified, or, but for the first, one in a container of its own.
pub fn in_place(spool: &Path, jobs: usize) -> Result<f64, String> {
    let (mut ends, mut reused) = (Vec::new(), 0);
    for n in 0..jobs {
        let path = spool.join(format!("done/{}/result/report.json", name(n)));
        let text = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let report: Value = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let is = |name: &str| report.get(name).and_then(Value::as_bool) == Some(true);
        if !is("verified") {
            return Err(format!("{}: is not verified", path.display()));
        }
        reused += usize::from(is("reused_container"));
        let last = report.get("phases").and_then(Value::as_array).and_then(|all| all.last());
        let end = last.and_then(|phase| phase.get("at")).and_then(Value::as_f64);
        ends.push(end.ok_or_else(|| format!("{}: no phases", path.display()))?);
    }
    if reused + 1 < jobs {
        return Err(format!("only {reused} of {jobs} jobs have used the container of the one before"));
    }
    ends.sort_by(f64::total_cmp);
    let (first, last) = ends.first().zip(ends.last()).ok_or("no jobs")?;
    Ok((jobs - 1) as f64 / (last - first))
}
