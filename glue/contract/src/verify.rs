//! When a record is believed: exactly if it is signed with the key of the start that it is the record of.

use base64ct::{Base64UrlUnpadded, Encoding};
use hmac::Mac;
use serde::{Deserialize, Serialize};

use super::encoding::{Bytes32, Key};
use super::record::{ALGORITHM, Header, Record, TYPE, mac};

/// What a record has to match to be the record of one start.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// Key of the startup file.
    pub key: &'a Key,
    /// Name of the job.
    pub job: &'a str,
    /// Nonce of the startup file.
    pub nonce: &'a Bytes32,
    /// Incarnation that the startup file was meant for.
    pub incarnation: &'a str,
    /// SHA-256 of the startup file, lower-case hex.
    pub startup_sha256: &'a str,
}

/// Why a record is refused: the first reason that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// There is none.
    Missing,
    /// It is not a compact JWS, or its parts are not what they have to be.
    Malformed,
    /// Its header names another algorithm or type.
    WrongAlgorithm,
    /// The signature is not that of the key.
    BadSignature,
    /// It is the record of another job.
    WrongJob,
    /// It is the record of another start of the job.
    WrongNonce,
    /// Another glue made it.
    WrongIncarnation,
    /// The startup file was another.
    WrongStartup,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Missing => "there is no record",
            Self::Malformed => "the record is malformed",
            Self::WrongAlgorithm => "the record's header names another algorithm or type",
            Self::BadSignature => "the record's signature is not that of this job's key",
            Self::WrongJob => "the record is of another job",
            Self::WrongNonce => "the record is of another start of this job",
            Self::WrongIncarnation => "the record was made by another glue than the one that was bound",
            Self::WrongStartup => "the record is of another startup file",
        })
    }
}

/// The bytes of a base64url text without padding, or `None` where it is not one.
pub fn from_base64url(text: &str) -> Option<Vec<u8>> {
    Base64UrlUnpadded::decode_vec(text).ok()
}

/// The record, if its signature, job, nonce, incarnation and startup digest all match; else the one reason why not.
///
/// Nothing of the payload is looked at before the signature holds.
pub fn verify(jws: Option<&[u8]>, expected: &Expected<'_>) -> Result<Record, Refusal> {
    let text = core::str::from_utf8(jws.ok_or(Refusal::Missing)?).map_err(|_| Refusal::Malformed)?;
    let mut parts = text.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Malformed);
    };
    let decoded = |part: &str| from_base64url(part).ok_or(Refusal::Malformed);
    let header_value: Header = serde_json::from_slice(&decoded(header)?).map_err(|_| Refusal::Malformed)?;
    if header_value.alg != ALGORITHM || header_value.typ != TYPE {
        return Err(Refusal::WrongAlgorithm);
    }
    let signature = decoded(signature)?;
    let signed = text.get(..header.len() + 1 + payload.len()).ok_or(Refusal::Malformed)?;
    mac(expected.key, signed.as_bytes())
        .ok_or(Refusal::BadSignature)?
        .verify_slice(&signature)
        .map_err(|_| Refusal::BadSignature)?;
    let record: Record = serde_json::from_slice(&decoded(payload)?).map_err(|_| Refusal::Malformed)?;
    if record.version != super::VERSION {
        return Err(Refusal::Malformed);
    }
    if record.job != expected.job || header_value.kid != expected.job {
        return Err(Refusal::WrongJob);
    }
    if &record.nonce != expected.nonce {
        return Err(Refusal::WrongNonce);
    }
    if record.incarnation != expected.incarnation {
        return Err(Refusal::WrongIncarnation);
    }
    if record.startup_sha256 != expected.startup_sha256 {
        return Err(Refusal::WrongStartup);
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::base64url;
    use crate::record::{GlueIdentity, Outcome, Processes, Usage, sign};

    fn record() -> Record {
        Record {
            version: crate::VERSION,
            job: "a \"job\"".into(),
            nonce: Bytes32::new([2; 32]),
            incarnation: "i".into(),
            startup_sha256: "s".into(),
            outcome: Outcome::Exited,
            exit_code: Some(3),
            signal: None,
            core_dumped: false,
            error: None,
            started_at: Some("t".into()),
            ended_at: "u".into(),
            wall_s: 1.25,
            usage: Usage::default(),
            processes: Processes::default(),
            seccomp: Some(true),
            warnings: Vec::new(),
            glue: GlueIdentity { version: "v".into(), sha256: "x".into() },
        }
    }

    fn check(jws: Option<&[u8]>, change: impl FnOnce(&mut Expected<'_>)) -> Result<Record, Refusal> {
        let (key, nonce) = (Key::new(Box::new([1; 32])), Bytes32::new([2; 32]));
        let mut expected =
            Expected { key: &key, job: "a \"job\"", nonce: &nonce, incarnation: "i", startup_sha256: "s" };
        change(&mut expected);
        verify(jws, &expected)
    }

    fn signed() -> String {
        sign(&record(), &Key::new(Box::new([1; 32]))).unwrap_or_default()
    }

    #[test]
    fn a_true_record_comes_back_whole() {
        assert_eq!(check(Some(signed().as_bytes()), |_| ()), Ok(record()));
    }

    #[test]
    fn each_refusal_has_its_own_reason() {
        let jws = signed();
        let good = Some(jws.as_bytes());
        static OTHER: std::sync::LazyLock<Bytes32> = std::sync::LazyLock::new(|| Bytes32::new([9; 32]));
        static OTHER_KEY: std::sync::LazyLock<Key> = std::sync::LazyLock::new(|| Key::new(Box::new([9; 32])));
        assert_eq!(check(None, |_| ()), Err(Refusal::Missing));
        assert_eq!(check(Some(b""), |_| ()), Err(Refusal::Malformed));
        assert_eq!(check(Some(b"a.b"), |_| ()), Err(Refusal::Malformed));
        assert_eq!(check(Some(format!("{jws}.").as_bytes()), |_| ()), Err(Refusal::Malformed));
        let other = std::sync::LazyLock::force(&OTHER_KEY);
        assert_eq!(check(good, |e| e.key = other), Err(Refusal::BadSignature));
        assert_eq!(check(good, |e| e.job = "b"), Err(Refusal::WrongJob));
        assert_eq!(check(good, |e| e.nonce = &OTHER), Err(Refusal::WrongNonce));
        assert_eq!(check(good, |e| e.incarnation = "j"), Err(Refusal::WrongIncarnation));
        assert_eq!(check(good, |e| e.startup_sha256 = "t"), Err(Refusal::WrongStartup));
    }

    #[test]
    fn other_algorithms_are_refused_before_any_signature() {
        let jws = signed();
        let (_, rest) = jws.split_once('.').unwrap_or_default();
        for (alg, typ) in [("none", TYPE), ("HS512", TYPE), ("RS256", TYPE), (ALGORITHM, "JWT")] {
            let header = format!("{{\"alg\":\"{alg}\",\"typ\":\"{typ}\",\"kid\":\"j\"}}");
            let forged = format!("{}.{rest}", base64url(header.as_bytes()));
            assert_eq!(check(Some(forged.as_bytes()), |_| ()), Err(Refusal::WrongAlgorithm), "{alg} {typ}");
        }
        let unsigned = jws.rsplit_once('.').map(|(signed, _)| format!("{signed}.")).unwrap_or_default();
        assert_eq!(check(Some(unsigned.as_bytes()), |_| ()), Err(Refusal::BadSignature));
    }

    #[test]
    fn every_single_bit_matters() {
        let jws = signed().into_bytes();
        for at in 0..jws.len() {
            for bit in 0..8 {
                let mut changed = jws.clone();
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1 << bit;
                }
                assert!(check(Some(&changed), |_| ()).is_err(), "byte {at}, bit {bit}");
            }
        }
        for length in 0..jws.len() {
            assert!(check(jws.get(..length), |_| ()).is_err(), "cut to {length}");
        }
    }
}
