//! The exit record: a JSON Web Signature (RFC 7515) in compact form, HS256, signed with the key of the startup file.
//!
//! HS256 is a MAC: the record is evidence for whoever made the key, and whoever holds the key can forge it.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::encoding::{Bytes32, Key, base64url, from_base64url};

/// The `typ` of a record's header.
pub const TYPE: &str = "latebind-record+jws";
/// The only algorithm that is accepted.
pub const ALGORITHM: &str = "HS256";

/// Protected header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Always `HS256`.
    pub alg: String,
    /// Always `latebind-record+jws`.
    pub typ: String,
    /// The job's name, to find the key by.
    pub kid: String,
}

/// How a job came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The main process exited by itself.
    Exited,
    /// A signal ended the main process.
    Signaled,
    /// The wall limit of the startup file passed.
    TimedOut,
    /// Glue was told to stop while the job ran.
    Stopped,
    /// The job's program never ran.
    NotStarted,
}

/// Where a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Checking the startup file, links, accounts, or making the process.
    Startup,
    /// Environment files, limits, umask, working directory.
    Environment,
    /// Dropping privileges, or reading back that they are gone.
    Privileges,
    /// Opening the standard streams.
    Stdio,
    /// Finding and executing the program.
    Exec,
}

/// Why a job was not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Where it failed.
    pub stage: Stage,
    /// Symbolic name of the error number, such as `ENOENT`, or empty where none applies.
    pub errno: String,
    /// What, where, and what to do.
    pub message: String,
}

/// Resources that processes used, as wait4(2) reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// CPU time in user mode, seconds.
    pub user_s: f64,
    /// CPU time in the kernel, seconds.
    pub system_s: f64,
    /// Largest resident set of any one process, KiB.
    pub max_rss_kib: u64,
    /// Blocks of 512 bytes read from storage.
    pub read_blocks: u64,
    /// Blocks of 512 bytes written to storage.
    pub written_blocks: u64,
    /// Page faults that needed storage.
    pub major_faults: u64,
}

/// Usage of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// The main process and the children that it waited for.
    pub main: Used,
    /// All that glue reaped. A lower bound: a parent that ignores SIGCHLD hides its children.
    pub tree: Used,
}

/// What the container's cgroup says, where a real cgroup file system is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CgroupUse {
    /// CPU time of the container since the claim, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_s: Option<f64>,
    /// Processes that the kernel killed for memory since the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Peak memory in bytes **since the container started**, not since the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_since_container_start: Option<u64>,
}

/// What became of the job's processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// Processes that glue reaped, the main process included.
    pub reaped: u64,
    /// Processes that outlived the main process and were killed.
    pub left_over_killed: u64,
    /// Processes that could not be ended within `kill_s`.
    pub unkilled: u64,
}

/// Which glue wrote the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlueIdentity {
    /// Its version.
    pub version: String,
    /// SHA-256 of the running binary, lower-case hex.
    pub sha256: String,
}

/// The signed payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Contract version, 1.
    pub version: u32,
    /// The job that this is the record of.
    pub job: String,
    /// The nonce of its startup file.
    pub nonce: Bytes32,
    /// The glue instance that ran it.
    pub incarnation: String,
    /// SHA-256 of its startup file, lower-case hex.
    pub startup_sha256: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Exit code of the main process, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended the main process, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel reported a core dump.
    pub core_dumped: bool,
    /// Why it was not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// When the program ran, RFC 3339 UTC; absent where it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When the main process was reaped, or the start given up, RFC 3339 UTC.
    pub ended_at: String,
    /// Seconds between the two, by the monotonic clock.
    pub wall_s: f64,
    /// Resources used.
    pub usage: Usage,
    /// What the cgroup adds, where there is one to be believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupUse>,
    /// What became of the processes.
    pub processes: Processes,
    /// Whether the jobs of this glue run under its filter of system calls; absent where a glue had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<bool>,
    /// Things that were asked for and could not be done, though the job ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Which glue wrote this.
    pub glue: GlueIdentity,
}

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
    /// It is no compact JWS, or its parts are not what they have to be.
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

fn mac(key: &Key, text: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.bytes()).ok()?;
    mac.update(text);
    Some(mac)
}

/// The record as a compact JWS, signed with `key`. `None` where it cannot be written as JSON, which no record is.
pub fn sign(record: &Record, key: &Key) -> Option<String> {
    let header = Header { alg: ALGORITHM.into(), typ: TYPE.into(), kid: record.job.clone() };
    let mut text = base64url(&serde_json::to_vec(&header).ok()?);
    text.push('.');
    text.push_str(&base64url(&serde_json::to_vec(record).ok()?));
    let signature = mac(key, text.as_bytes())?.finalize().into_bytes();
    text.push('.');
    text.push_str(&base64url(&signature));
    Some(text)
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

    fn record() -> Record {
        Record {
            version: 1,
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
            cgroup: None,
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
        static OTHER: Bytes32 = Bytes32::new([9; 32]);
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
