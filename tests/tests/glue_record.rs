//! A record that is not exactly the one of this start is refused, each time with its own reason. All records are real
//! ones.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::fs;

use latebind_contract::encoding::{Key, base64url};
use latebind_contract::layout;
use latebind_contract::record::{Outcome, Record, sign};
use latebind_contract::status::Phase;
use latebind_contract::verify::{Refusal, from_base64url};
use latebind_tests::job::{Submitted, random};
use latebind_tests::slot::{Shape, Slot};
use watcher::job::cgroup::Group;

/// A job's hand-over, and its record.
fn real_record(slot: &Slot, change: impl FnOnce(&mut latebind_contract::startup::Startup)) -> (Submitted, Vec<u8>) {
    let mut startup = slot.job(&["/probe", "exit", "3"]);
    change(&mut startup);
    let submitted = slot.submit(&startup);
    let jws = slot.finish(&submitted).jws;
    (submitted, jws)
}

/// The record inside a JWS, whatever its signature.
fn content(jws: &[u8]) -> Record {
    let text = std::str::from_utf8(jws).unwrap();
    serde_json::from_slice(&from_base64url(text.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[test]
fn a_changed_record_is_refused() {
    let slot = Slot::new("noshell");
    let (submitted, jws) = real_record(&slot, |_| ());
    assert_eq!(submitted.check(Some(&jws)).map(|r| r.exit_code), Ok(Some(3)));
    for at in 0..jws.len() {
        for bit in [1, 4, 32] {
            let mut changed = jws.clone();
            changed[at] ^= bit;
            assert!(submitted.check(Some(&changed)).is_err(), "byte {at}");
        }
    }
    // As somebody would who wants success: another exit code, the same signature.
    let parts: Vec<&str> = std::str::from_utf8(&jws).unwrap().split('.').collect();
    let mut better = content(&jws);
    (better.exit_code, better.outcome) = (Some(0), Outcome::Exited);
    let forged = format!("{}.{}.{}", parts[0], base64url(&serde_json::to_vec(&better).unwrap()), parts[2]);
    assert_eq!(submitted.check(Some(forged.as_bytes())), Err(Refusal::BadSignature));
}

#[test]
fn a_truncated_or_lengthened_record_is_refused() {
    let slot = Slot::new("noshell");
    let (submitted, jws) = real_record(&slot, |_| ());
    assert_eq!(submitted.check(None), Err(Refusal::Missing));
    assert_eq!(submitted.check(Some(b"")), Err(Refusal::Malformed));
    for length in 1..jws.len() {
        let refusal = submitted.check(Some(&jws[..length])).unwrap_err();
        assert!(matches!(refusal, Refusal::Malformed | Refusal::BadSignature), "{length}: {refusal:?}");
    }
    for more in ["\n", "A", ".", "=="] {
        let longer = [jws.as_slice(), more.as_bytes()].concat();
        assert!(submitted.check(Some(&longer)).is_err(), "{more:?}");
    }
}

#[test]
fn a_record_of_an_earlier_job_is_refused() {
    let slot = Slot::new("noshell");
    let key = Key::new(Box::new(random()));
    // The worst case: a pilot that gives several jobs the same key.
    let (first, earlier) = real_record(&slot, |s| s.key = key.clone());
    let (same_name, later) = real_record(&slot, |s| s.key = key.clone());
    let (other_name, _) = real_record(&slot, |s| (s.key, s.job) = (key.clone(), "another".into()));
    let (other_key, _) = real_record(&slot, |_| ());
    assert!(first.check(Some(&earlier)).is_ok() && same_name.check(Some(&later)).is_ok());
    assert_eq!(same_name.check(Some(&earlier)), Err(Refusal::WrongNonce));
    assert_eq!(other_name.check(Some(&earlier)), Err(Refusal::WrongJob));
    assert_eq!(other_key.check(Some(&earlier)), Err(Refusal::BadSignature));
}

#[test]
fn a_record_of_another_glue_or_another_startup_file_is_refused() {
    let slot = Slot::new("noshell");
    let (submitted, jws) = real_record(&slot, |_| ());
    let mut other_glue = submitted.clone();
    other_glue.startup.incarnation = "0".repeat(32);
    assert_eq!(other_glue.check(Some(&jws)), Err(Refusal::WrongIncarnation));
    let mut other_file = submitted.clone();
    other_file.sha256 = "0".repeat(64);
    assert_eq!(other_file.check(Some(&jws)), Err(Refusal::WrongStartup));
}

#[test]
fn a_wrongly_signed_record_is_refused() {
    let slot = Slot::new("noshell");
    let (submitted, jws) = real_record(&slot, |_| ());
    let record = content(&jws);
    let signed = |key: [u8; 32]| sign(&record, &Key::new(Box::new(key))).unwrap().into_bytes();
    assert_eq!(submitted.check(Some(&signed([0; 32]))), Err(Refusal::BadSignature));
    assert_eq!(signed(*submitted.startup.key.bytes()), jws, "the right key makes the very same record");
    let (_, rest) = std::str::from_utf8(&jws).unwrap().split_once('.').unwrap();
    for (alg, typ) in [("none", "latebind-record+jws"), ("HS512", "latebind-record+jws"), ("HS256", "JWT")] {
        let header = base64url(format!("{{\"alg\":\"{alg}\",\"typ\":\"{typ}\",\"kid\":\"test job\"}}").as_bytes());
        let unsigned = rest.rsplit_once('.').unwrap().0;
        for forged in [format!("{header}.{rest}"), format!("{header}.{unsigned}.")] {
            assert_eq!(submitted.check(Some(forged.as_bytes())), Err(Refusal::WrongAlgorithm), "{alg} {typ}");
        }
    }
}

#[test]
fn a_startup_file_that_is_put_a_second_time_has_a_record_of_its_own_and_no_other() {
    let slot = Slot::new("noshell");
    let startup = slot.job(&["/probe", "exit", "3"]);
    let first = slot.finish(&slot.submit(&startup));
    // Glue remembers no nonces: that each start has a fresh one is the watcher's part. What must hold: the record of
    // the first run does not outlive the claim of the second.
    let again = slot.submit(&startup);
    // The status has the same nonce both times: it may still be that of the first.
    let another = || fs::read(slot.ctl().join(layout::RECORD)).is_ok_and(|jws| jws != first.jws);
    slot.wait_for("the second record", |s| s.phase == Phase::Done && another());
    let second = slot.finish(&again);
    assert_eq!((first.record.exit_code, second.record.exit_code), (Some(3), Some(3)));
}

#[test]
fn the_record_is_a_compact_jws_that_anybody_can_check_with_the_key() {
    let slot = Slot::new("noshell");
    let (submitted, jws) = real_record(&slot, |s| s.job = "job-7".into());
    let text = String::from_utf8(jws).unwrap();
    let (signed, signature) = text.rsplit_once('.').unwrap();
    let header = from_base64url(signed.split('.').next().unwrap()).unwrap();
    assert_eq!(header, br#"{"alg":"HS256","typ":"latebind-record+jws","kid":"job-7"}"#);
    let key: String = submitted.startup.key.bytes().iter().map(|b| format!("{b:02x}")).collect();
    let file = slot.data().join("signed");
    fs::write(&file, signed).unwrap();
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-mac", "HMAC", "-macopt", &format!("hexkey:{key}"), "-binary"]).arg(&file);
    let said = openssl.output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert_eq!(base64url(&said.stdout), signature);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&slot.ctl().join(layout::RECORD).metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn no_counters_are_read_of_a_cgroup_that_is_not_the_containers_own() {
    let own = Slot::new("noshell");
    let counted = Group::open(own.glue()).map(|group| group.counters.now());
    assert!(counted.is_some_and(|of| of.cpu_s.is_some()), "the container's own cgroup is mounted there: {counted:?}");
    drop(own);
    let machine = Slot::with(&Shape::of("noshell").option("--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro"));
    assert!(Group::open(machine.glue()).is_none());
}
