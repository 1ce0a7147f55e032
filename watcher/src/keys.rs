//! Kept keys: with `--keep-keys DIR` each start's key stays in the pilot's private directory, so that its record can be
//! checked later, by `watcher verify` or with nothing but openssl.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use latebind_contract::encoding::{Bytes32, hex};
use latebind_contract::layout;
use latebind_contract::record::{Outcome, Record};
use latebind_contract::verify::{Expected, Refusal, verify};
use serde::{Deserialize, Serialize};

use crate::bind::Reason;
use crate::job::{Report, Secrets, is_id};
use crate::store::Store;
use crate::tree;

/// A kept key with everything that its record has to match.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// What the record has to match.
    #[serde(flatten)]
    pub secrets: Secrets,
    /// The key once more, as hexadecimal, for `openssl dgst -mac HMAC -macopt hexkey:...`.
    pub key_hex: String,
}

/// Name of a kept key: of the job's newest start, or of an earlier one.
fn earlier(job: &str, nonce: &Bytes32) -> String {
    let nonce: String = hex(nonce.bytes()).chars().take(16).collect();
    format!("{job}+{nonce}") // no job's name has a plus sign
}

/// Keeps the key of one start. One that was kept of an earlier start of the same name stays, under another name.
pub fn keep(dir: &Path, secrets: &Secrets) -> io::Result<()> {
    let store = Store::open(dir)?;
    if let Ok(Some(kept)) = store.get::<Kept>(&secrets.job)
        && kept.secrets.nonce != secrets.nonce
    {
        fs::rename(store.path(&secrets.job), store.path(&earlier(&secrets.job, &kept.secrets.nonce)))?;
    }
    store.put(&secrets.job, &Kept { secrets: secrets.clone(), key_hex: hex(secrets.key.bytes()) })
}

/// What a check of a report with a kept key has shown. What a report says of itself proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The record beside the report verifies, and the report says what the record says.
    Verified,
    /// There is no such record, it does not verify, or the report says something else.
    Refused(String),
    /// No key of this start was kept there, for this reason.
    NotChecked(String),
    /// The report does not claim a record.
    NoRecord,
}

/// Checks a report, which is in the directory `results`, and the record beside it with a key in `keys`.
pub fn check_report(results: &Path, report: &Report, keys: &Path) -> Proof {
    if !report.verified && report.record.is_none() {
        return report.refusal.map_or(Proof::NoRecord, |refusal| Proof::Refused(refusal.to_string()));
    }
    let kept = match kept_of(report, keys) {
        Ok(kept) => kept,
        Err(why) => return Proof::NotChecked(why),
    };
    let mut bytes = Vec::new();
    let read = tree::open_file(&results.join(layout::RECORD))
        .and_then(|file| file.take(layout::RECORD_MAX).read_to_end(&mut bytes));
    if let Err(e) = read {
        return Proof::Refused(format!("{}: {e}", layout::RECORD));
    }
    match check(Some(&bytes), &kept.secrets) {
        Err(refusal) => Proof::Refused(refusal.to_string()),
        Ok(record) if says(report, &record) => Proof::Verified,
        Ok(_) => Proof::Refused("the report is not what its record says".into()),
    }
}

/// Whether a report says what its record says.
fn says(report: &Report, record: &Record) -> bool {
    let completed = record.outcome == Outcome::Exited && record.exit_code == Some(0);
    report.verified
        && report.record.as_ref() == Some(record)
        && report.job == record.job
        && (report.exit_code, report.signal) == (record.exit_code, record.signal)
        && (completed || report.reason != Reason::Completed)
}

/// The key that was kept of the start that the report is about; the report only says where to look.
fn kept_of(report: &Report, keys: &Path) -> Result<Kept, String> {
    if !is_id(&report.job) {
        return Err("the report does not name a job".into());
    }
    let nonce = report.record.as_ref().map(|record| &record.nonce);
    let names = nonce.map(|nonce| earlier(&report.job, nonce)).into_iter().chain([report.job.clone()]);
    let mut why = String::new();
    for path in names.map(|name| keys.join(format!("{name}.json"))) {
        match fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
            Ok(kept) => return Ok(kept),
            Err(e) => why = format!("{}: {e}", path.display()),
        }
    }
    Err(why)
}

/// Checks a record against what was kept or remembered of its start.
pub fn check(record: Option<&[u8]>, secrets: &Secrets) -> Result<Record, Refusal> {
    verify(
        record,
        &Expected {
            key: &secrets.key,
            job: &secrets.job,
            nonce: &secrets.nonce,
            incarnation: &secrets.incarnation,
            startup_sha256: &secrets.startup_sha256,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind::Class;
    use crate::job::Request;
    use latebind_contract::encoding::Key;
    use latebind_contract::record::sign;

    fn secrets(job: &str, byte: u8) -> Secrets {
        let (key, nonce) = (Key::new(Box::new([byte; 32])), Bytes32::new([byte + 100; 32]));
        Secrets { job: job.into(), key, nonce, incarnation: "i".into(), startup_sha256: "s".into() }
    }

    /// The record of a start, whose job has exited with this code.
    fn record(secrets: &Secrets, code: i32) -> Record {
        let used = serde_json::json!({"user_s": 0.1, "system_s": 0.3, "max_rss_kib": 1, "read_blocks": 0,
            "written_blocks": 0, "major_faults": 0});
        let text = serde_json::json!({"version": latebind_contract::VERSION, "job": secrets.job, "nonce": secrets.nonce,
            "incarnation": secrets.incarnation, "startup_sha256": secrets.startup_sha256, "outcome": "exited",
            "exit_code": code, "core_dumped": false, "started_at": "2026-01-01T00:00:00Z",
            "ended_at": "2026-01-01T00:00:01Z", "wall_s": 0.123_456_789, "usage": {"main": used, "tree": used},
            "processes": {"reaped": 1, "left_over_killed": 0, "unkilled": 0}, "warnings": ["w"],
            "glue": {"version": "1", "sha256": "s"}});
        serde_json::from_str(&text.to_string()).unwrap()
    }

    fn report(record: &Record, reason: Reason) -> Report {
        let mut report = Report::new(&Request::new(record.job.clone()));
        (report.class, report.reason, report.verified) = (Class::Final, reason, true);
        (report.exit_code, report.record) = (record.exit_code, Some(record.clone()));
        report
    }

    #[test]
    fn a_report_is_as_good_as_its_record_and_no_better_without_a_key() {
        let scratch = tempfile::tempdir().unwrap();
        let (results, keys) = (scratch.path().join("results"), scratch.path().join("keys"));
        fs::create_dir(&results).unwrap();
        let (ours, theirs) = (secrets("a.1", 1), secrets("a.1", 2));
        let failed = record(&ours, 3);
        let put = |record: &Record, secrets: &Secrets| {
            fs::write(results.join(layout::RECORD), sign(record, &secrets.key).unwrap()).unwrap();
        };
        put(&failed, &ours);
        let proof = |report: &Report| check_report(&results, report, &keys);
        let good = report(&failed, Reason::Error);
        assert!(matches!(proof(&good), Proof::NotChecked(_)), "no key was kept");
        keep(&keys, &ours).unwrap();
        assert_eq!(proof(&good), Proof::Verified);
        // As it is read back from its file.
        let again: Report = serde_json::from_str(&crate::text::json_for_people(&good).unwrap()).unwrap();
        assert_eq!(proof(&again), Proof::Verified);
        // What a forger makes of it.
        let differs =
            |report: Report| matches!(proof(&report), Proof::Refused(why) if why.contains("what its record says"));
        assert!(differs(Report { reason: Reason::Completed, ..good.clone() }));
        assert!(differs(Report { exit_code: Some(0), ..good.clone() }));
        assert!(differs(Report { verified: false, ..good.clone() }));
        let succeeded = report(&record(&ours, 0), Reason::Completed);
        assert!(differs(succeeded.clone()));
        put(&record(&ours, 0), &theirs);
        assert!(matches!(proof(&succeeded), Proof::Refused(_)), "signed with another key");
        for job in ["../a.1", "b.1", ""] {
            let elsewhere = Report { job: job.into(), ..good.clone() };
            assert!(matches!(proof(&elsewhere), Proof::NotChecked(_)), "{job}");
        }
        fs::remove_file(results.join(layout::RECORD)).unwrap();
        assert!(matches!(proof(&good), Proof::Refused(_)), "there is no record");
        let bare = Report::new(&Request::new("a.1".into()));
        assert_eq!(proof(&bare), Proof::NoRecord);
        assert!(matches!(proof(&Report { verified: true, ..bare }), Proof::Refused(_)));
    }

    #[test]
    fn a_second_job_of_a_name_takes_no_key_from_the_first() {
        let scratch = tempfile::tempdir().unwrap();
        let (results, keys) = (scratch.path().join("results"), scratch.path().join("keys"));
        fs::create_dir(&results).unwrap();
        let starts = [1, 2, 3].map(|byte| secrets("a.1", byte));
        starts.iter().for_each(|secrets| keep(&keys, secrets).unwrap());
        for secrets in &starts {
            let record = record(secrets, 0);
            fs::write(results.join(layout::RECORD), sign(&record, &secrets.key).unwrap()).unwrap();
            assert_eq!(check_report(&results, &report(&record, Reason::Completed), &keys), Proof::Verified);
        }
        keep(&keys, &starts[2]).unwrap();
        assert_eq!(fs::read_dir(&keys).unwrap().count(), 3, "the same start has one key");
    }
}
