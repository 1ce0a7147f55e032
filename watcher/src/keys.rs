//! Kept keys: with `--keep-keys DIR` each start's key stays in the pilot's private directory, so that its record can be
//! checked later, by `watcher verify` or with nothing but openssl.

use std::io;
use std::path::Path;

use glue::contract::encoding::hex;
use glue::contract::record::{Expected, Record, Refusal, verify};
use serde::{Deserialize, Serialize};

use crate::job::Secrets;
use crate::store::Store;

/// A kept key with everything that its record has to match.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// What the record has to match.
    #[serde(flatten)]
    pub secrets: Secrets,
    /// The key once more, as hexadecimal, for `openssl dgst -mac HMAC -macopt hexkey:...`.
    pub key_hex: String,
}

/// Keeps the key of one start.
pub fn keep(dir: &Path, secrets: &Secrets) -> io::Result<()> {
    Store::open(dir)?.put(&secrets.job, &Kept { secrets: secrets.clone(), key_hex: hex(secrets.key.bytes()) })
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
