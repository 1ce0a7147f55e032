//! Target `record`: the signed exit record.

use std::sync::LazyLock;

use latebind_contract::encoding::{Bytes32, Key, base64url, sha256_hex};
use latebind_contract::record::{Failure, GlueIdentity, Outcome, Processes, Record, Stage, Usage, Used, sign};
use latebind_contract::verify::{Expected, Refusal, from_base64url, verify};

use crate::input::Input;

const SECRET: [u8; 32] = [1; 32];
static KEY: LazyLock<Key> = LazyLock::new(|| Key::new(Box::new(SECRET)));
static OTHER_KEY: LazyLock<Key> = LazyLock::new(|| Key::new(Box::new([3; 32])));
static NONCE: LazyLock<Bytes32> = LazyLock::new(|| Bytes32::new([2; 32]));
static OTHER: LazyLock<Bytes32> = LazyLock::new(|| Bytes32::new([3; 32]));
const JOB: &str = "a \"job\"";
const HEADER: &str = r#"{"alg":"HS256","typ":"latebind-record+jws","kid":"a \"job\""}"#;

fn expected() -> Expected<'static> {
    Expected { key: &KEY, job: JOB, nonce: &NONCE, incarnation: "i", startup_sha256: "s" }
}

/// The first byte says what the rest is: a whole record; a payload, or header and payload, that are signed with the
/// right key; values of a record; or changes to a true record.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(5) {
        0 => {
            let _ = verified(input.rest());
        }
        1 => {
            let _ = verified(jws(HEADER.as_bytes(), input.rest()).as_bytes());
        }
        2 => {
            let header = input.until_nul();
            let text = jws(header, input.rest());
            if verified(text.as_bytes()).is_ok() {
                let header: serde_json::Value = serde_json::from_slice(header).unwrap();
                assert_eq!((&header["alg"], &header["typ"]), (&"HS256".into(), &"latebind-record+jws".into()));
            }
        }
        3 => is_read_back(&record_of(&mut input)),
        _ => changed(input),
    }
}

/// Verifies, and checks what has to be true of a record that passed.
fn verified(text: &[u8]) -> Result<Record, Refusal> {
    let record = verify(Some(text), &expected())?;
    assert_eq!((record.version, record.job.as_str(), &record.nonce), (latebind_contract::VERSION, JOB, &*NONCE));
    assert_eq!((record.incarnation.as_str(), record.startup_sha256.as_str()), ("i", "s"));
    let text = str::from_utf8(text).unwrap();
    let (signed, signature) = text.rsplit_once('.').unwrap();
    assert_eq!(signature, base64url(&hmac(&SECRET, signed.as_bytes())), "a foreign signature was accepted");
    for part in text.split('.') {
        assert_eq!(base64url(&from_base64url(part).unwrap()), part, "one record, two texts");
    }
    is_read_back(&record);
    Ok(record)
}

/// A record that is signed is verified, comes back whole, and is nobody else's.
fn is_read_back(record: &Record) {
    let text = sign(record, &KEY).unwrap();
    let (signed, signature) = text.rsplit_once('.').unwrap();
    assert_eq!(signature, base64url(&hmac(&SECRET, signed.as_bytes())));
    let check = |with: &Expected<'_>| verify(Some(text.as_bytes()), with);
    assert_eq!(check(&expected()).as_ref(), Ok(record));
    for (with, why) in [
        (Expected { key: &OTHER_KEY, ..expected() }, Refusal::BadSignature),
        (Expected { job: "b", ..expected() }, Refusal::WrongJob),
        (Expected { nonce: &OTHER, ..expected() }, Refusal::WrongNonce),
        (Expected { incarnation: "j", ..expected() }, Refusal::WrongIncarnation),
        (Expected { startup_sha256: "t", ..expected() }, Refusal::WrongStartup),
    ] {
        assert_eq!(check(&with), Err(why));
    }
}

/// A true record, some of whose bytes are replaced, left out or doubled: nothing but the text itself is accepted.
fn changed(mut input: Input<'_>) {
    let base = record_of(&mut input);
    let text = sign(&base, &KEY).unwrap().into_bytes();
    let mut other = text.clone();
    while !input.is_empty() {
        let at = usize::from(input.byte()) << 8 | usize::from(input.byte());
        let at = at % (other.len() + 1);
        match input.below(3) {
            0 if at < other.len() => other[at] = input.byte(),
            1 if at < other.len() => drop(other.remove(at)),
            _ => other.insert(at, input.byte()),
        }
    }
    assert_eq!(verified(&other).is_ok(), other == text, "{:?}", String::from_utf8_lossy(&other));
}

/// A record for [`expected`], its other values from the input.
fn record_of(input: &mut Input<'_>) -> Record {
    let text = |input: &mut Input<'_>| String::from_utf8_lossy(input.string()).into_owned();
    let number = |input: &mut Input<'_>| input.bytes(8).iter().fold(0, |n, b| n << 8 | u64::from(*b));
    // JSON has no infinity and no "not a number"; glue's times never are.
    let seconds = |input: &mut Input<'_>| Some(f64::from_bits(number(input))).filter(|s| s.is_finite()).unwrap_or(0.5);
    let used = |input: &mut Input<'_>| Used {
        user_s: seconds(input),
        system_s: seconds(input),
        max_rss_kib: number(input),
        read_blocks: number(input),
        written_blocks: number(input),
        major_faults: number(input),
    };
    let outcomes = [Outcome::Exited, Outcome::Signaled, Outcome::TimedOut, Outcome::Stopped, Outcome::NotStarted];
    let stages = [Stage::Startup, Stage::Environment, Stage::Privileges, Stage::Stdio, Stage::Exec];
    let given = input.byte();
    Record {
        version: latebind_contract::VERSION,
        job: JOB.into(),
        nonce: NONCE.clone(),
        incarnation: "i".into(),
        startup_sha256: "s".into(),
        outcome: outcomes[input.below(5)],
        exit_code: (given & 1 != 0).then(|| number(input) as i32),
        signal: (given & 2 != 0).then(|| number(input) as i32),
        core_dumped: given & 4 != 0,
        error: (given & 8 != 0).then(|| Failure {
            stage: stages[input.below(5)],
            errno: number(input) as i32,
            message: text(input),
            path: input.byte().is_multiple_of(2).then(|| text(input)),
            reported: input.byte().is_multiple_of(2).then(|| (input.byte(), [0; 5].map(|_: u32| number(input) as u32))),
        }),
        started_at: (given & 16 != 0).then(|| text(input)),
        ended_at: text(input),
        wall_s: seconds(input),
        usage: Usage { main: used(input), tree: used(input) },
        processes: Processes { reaped: number(input), left_over_killed: number(input), unkilled: number(input) },
        seccomp: [None, Some(true), Some(false)][usize::from(given % 3)],
        warnings: (0..input.below(4)).map(|_| text(input)).collect(),
        glue: GlueIdentity { version: text(input), sha256: text(input) },
    }
}

fn jws(header: &[u8], payload: &[u8]) -> String {
    let signed = format!("{}.{}", base64url(header), base64url(payload));
    let signature = base64url(&hmac(&SECRET, signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// HMAC-SHA256 as RFC 2104 writes it, for a key that is shorter than a block: independent of the crate that signs.
fn hmac(key: &[u8; 32], text: &[u8]) -> Vec<u8> {
    let pad = |with: u8| -> Vec<u8> { (0..64).map(|n| key.get(n).copied().unwrap_or(0) ^ with).collect() };
    let hash = |parts: [&[u8]; 2]| -> Vec<u8> {
        let hex = sha256_hex(&parts.concat());
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    hash([&pad(0x5c), &hash([&pad(0x36), text])])
}
