//! What earlier lives of the pilot have left.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::one_job::{forget, give_back};
use crate::bind::{Failure, Reason};
use crate::job::Phase;
use crate::serve::Core;
use crate::source::Claimed;
use crate::source::spool::Spool;

/// What an earlier life of this pod has left unfinished. What another pod of this name had claimed is lost with that
/// pod: it goes back as an attempt that was made, else a job that ends its pilots would be every next one's first.
pub fn give_back_lost(private: &Path, spool: &Spool, most: u32) -> io::Result<Vec<Claimed>> {
    let (mark, mut unfinished) = (private.join("serves"), spool.unfinished()?);
    if mark.exists() {
        return Ok(unfinished);
    }
    let mut undelivered = Vec::new();
    for mut claimed in unfinished.drain(..) {
        let message = "the pod in which this attempt was made is gone, and all that it knew";
        let lost = Failure::retry(Reason::PilotLost, message);
        match give_back(spool, &mut claimed, &lost, most) {
            Ok(to) => {
                let attempt = claimed.attempt;
                tracing::warn!(job = %claimed.name, attempt, to, "claimed by an earlier pod of this name");
            }
            Err(e) => {
                tracing::error!(job = %claimed.name, "of an earlier pod of this name; not delivered yet: {e}");
                claimed.verdict = Some(lost);
                undelivered.push(claimed);
            }
        }
    }
    crate::store::put_file(&mark, b"", 0o600)?;
    Ok(undelivered)
}

/// Reports that were delivered before the core could forget them.
pub fn forget_delivered(core: &Core, unfinished: &[Claimed]) {
    let wanted: BTreeSet<String> = unfinished.iter().map(Claimed::core_name).collect();
    for line in core.jobs() {
        if line.phase == Phase::Done && !wanted.contains(&line.job) {
            forget(core, &line.job);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use crate::source::Queue;
    use std::fs;

    #[test]
    fn what_a_lost_pod_had_claimed_is_an_attempt() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        let job = top.join("spool/new/a");
        fs::create_dir_all(&job).unwrap();
        fs::write(job.join("job.json"), r#"{"image":"i","argv":["x"]}"#).unwrap();
        let spool = Spool::open(&top.join("spool"), "p").unwrap();
        let claim = || Queue::new(spool.clone()).claim().unwrap();
        let begin = |pod: &str| {
            fs::create_dir_all(top.join(pod)).unwrap();
            give_back_lost(&top.join(pod), &spool, 2).unwrap().len()
        };
        assert_eq!(begin("first"), 0);
        assert!(claim().is_some());
        assert_eq!(begin("first"), 1, "the same pod goes on with it");
        assert_eq!(begin("second"), 0);
        let waits = top.join("spool/retry/a");
        assert!(waits.join("result.1/report.json").is_file(), "it waits for its next attempt");
        let claim_file = waits.join("claim.json");
        let mut kept: serde_json::Value = serde_json::from_slice(&fs::read(&claim_file).unwrap()).unwrap();
        kept["not_before"] = 0.into();
        fs::write(claim_file, kept.to_string()).unwrap();
        assert_eq!(claim().unwrap().attempt, 2);
        assert_eq!(begin("third"), 0);
        assert!(top.join("spool/held/a/result/report.json").is_file(), "after the last one it is held");
    }
}
