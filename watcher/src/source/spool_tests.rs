//! The spool's steps, one by one, also where they are interrupted, and with what users can leave there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::super::Queue;
use super::*;
use crate::job::{Fit, Requests};

const JOB: &str = r#"{"image":"i","argv":["x"]}"#;

/// A directory for a spool; it goes with the value.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path().join(path)
    }

    fn open(&self, pilot: &str) -> (Spool, Queue) {
        let spool = Spool::open(self.path(), pilot).unwrap();
        (spool.clone(), Queue::new(spool))
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        self.put_as(name, text, 0)
    }

    fn put_as(&self, name: &str, text: &str, uid: u32) -> PathBuf {
        let dir = self.join("new").join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("job.json"), text).unwrap();
        for path in [dir.clone(), dir.join("job.json")] {
            chown(path, Some(uid), Some(uid)).unwrap();
        }
        dir
    }
}

/// The next job, as the loop and its thread take it.
fn claim(queue: &mut Queue) -> Option<Claimed> {
    queue.claim().unwrap().map(|mut claimed| {
        claimed.prepare().unwrap();
        claimed
    })
}

/// A queue that has not looked yet.
fn claim_next(spool: &Spool) -> Option<Claimed> {
    claim(&mut Queue::new(spool.clone()))
}

fn report(claimed: &Claimed, class: Class) -> Report {
    let mut report = Report::new(&claimed.request().unwrap());
    report.class = class;
    report
}

/// Lets a job that waits for its next attempt have it now.
fn is_due(root: &Path, key: &str) {
    let path = root.join("retry").join(key).join("claim.json");
    let mut claim: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    claim["not_before"] = 0.into();
    fs::write(path, claim.to_string()).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_job_is_claimed_by_one_pilot_and_taken_up_again_by_its_next_life() {
    let scratch = Scratch::new();
    let ((first, mut queue), (_, mut other)) = (scratch.open("p"), scratch.open("q"));
    scratch.put("a", JOB);
    let claimed = claim(&mut queue).unwrap();
    assert_eq!((claimed.name.as_str(), claimed.attempt), ("a", 1));
    assert!(claim(&mut other).is_none() && queue.is_empty().unwrap());
    let request = claimed.request().unwrap();
    assert_eq!((request.id.as_str(), request.image.as_str()), ("a.1", "i"));
    let again = first.unfinished().unwrap().pop().unwrap();
    assert_eq!(again.request().unwrap(), request, "the same request, so that it attaches to the same job");
}

#[test]
fn classes_decide_where_a_job_goes() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    for (class, most, to) in
        [(Class::Final, 3, "done"), (Class::Hold, 3, "held"), (Class::Retry, 1, "held"), (Class::Retry, 3, "retry")]
    {
        scratch.put("a", JOB);
        let claimed = claim_next(&spool).unwrap();
        assert_eq!(spool.deliver(&claimed, &report(&claimed, class), most).unwrap(), to);
    }
    assert!(claim_next(&spool).is_none(), "not before its delay is over");
    assert!(!Queue::new(spool.clone()).is_empty().unwrap());
    assert_eq!(names(&scratch.join("held")), ["a", "a.2"], "the second of its name keeps a place of its own");
    assert_eq!(names(&scratch.join("retry/a")), ["claim.json", "job.json", "result.1", "submitted"]);
    is_due(scratch.path(), "a");
    let again = claim_next(&spool).unwrap();
    assert_eq!((again.name.as_str(), again.attempt), ("a", 2));
}

#[test]
fn what_others_have_done_costs_a_job_no_attempt() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    scratch.put("a", JOB);
    let deliver = |reason: Reason| {
        let claimed = claim_next(&spool).unwrap();
        let report = Report { reason, ..report(&claimed, Class::Retry) };
        let place = spool.deliver(&claimed, &report, 2).unwrap();
        if place == "retry" {
            is_due(scratch.path(), "a");
        }
        (claimed.attempt, place)
    };
    assert_eq!(deliver(Reason::VolumeHeld), (1, "retry"));
    assert_eq!(deliver(Reason::VolumeHeld), (2, "retry"));
    assert_eq!(deliver(Reason::VolumeFull), (3, "retry"), "the first one that counts");
    assert_eq!(deliver(Reason::VolumeHeld), (4, "retry"));
    assert_eq!(deliver(Reason::VolumeFull), (5, "held"), "the second one");
}

#[test]
fn a_delivery_that_was_interrupted_is_repeated() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    scratch.put("a", JOB);
    let claimed = claim_next(&spool).unwrap();
    let report = report(&claimed, Class::Retry);
    // Ended after the results were kept, and before the attempt was counted.
    claimed.create_result().unwrap();
    fs::write(claimed.result().join("report.json"), "{}").unwrap();
    fs::rename(claimed.result(), claimed.result_of(1)).unwrap();
    let again = spool.unfinished().unwrap().pop().unwrap();
    assert_eq!(again.attempt, 1);
    spool.deliver(&again, &report, 3).unwrap();
    is_due(scratch.path(), "a");
    // Ended after the next attempt was claimed.
    assert_eq!(claim_next(&spool).unwrap().attempt, 2);
    let again = spool.unfinished().unwrap().pop().unwrap();
    assert_eq!(again.attempt, 2);
    spool.deliver(&again, &report, 2).unwrap();
    assert_eq!(names(&scratch.join("held/a")), ["claim.json", "job.json", "result", "result.1", "submitted"]);
}

#[test]
fn a_claim_that_was_interrupted_is_finished_or_forgotten() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    let own = scratch.join("claimed/p");
    fs::create_dir_all(own.join("a")).unwrap();
    fs::create_dir_all(own.join("b")).unwrap();
    fs::write(own.join("b/claim.json"), "{").unwrap();
    fs::write(own.join(".room"), "x").unwrap();
    fs::create_dir_all(own.join("c/submitted")).unwrap();
    fs::write(own.join("c/submitted/job.json"), JOB).unwrap();
    // Garbled by a power loss, in its third attempt.
    fs::create_dir_all(own.join("d/submitted")).unwrap();
    fs::write(own.join("d/submitted/job.json"), JOB).unwrap();
    fs::write(own.join("d/claim.json"), "").unwrap();
    fs::create_dir_all(own.join("d/result.1")).unwrap();
    fs::create_dir_all(own.join("d/result.2")).unwrap();
    // Of somebody else, or of another version.
    fs::create_dir_all(own.join("e/submitted")).unwrap();
    chown(own.join("e"), Some(1000), Some(1000)).unwrap();
    fs::create_dir(own.join("f")).unwrap();
    fs::write(own.join("f/job.json"), JOB).unwrap();
    fs::create_dir_all(own.join(".aside-0123456789abcdef-g/claim")).unwrap();
    fs::create_dir_all(own.join(".aside-0123456789abcdee-h/result")).unwrap();
    let mut unfinished = spool.unfinished().unwrap();
    unfinished.sort_by(|a, b| a.name.cmp(&b.name));
    let found: Vec<_> = unfinished.iter().map(|c| (c.name.as_str(), c.attempt)).collect();
    assert_eq!(found, [("c", 1), ("d", 3)]);
    for claimed in &mut unfinished {
        claimed.prepare().unwrap();
        claimed.request().unwrap();
    }
    assert_eq!(names(&own), ["c", "d"]);
    assert_eq!(names(&scratch.join("held")), ["e", "f", "g"]);
    assert!(scratch.join("held/f/claim/job.json").exists() && scratch.join("held/f/result/report.json").exists());
}

#[test]
fn a_copy_of_a_job_that_a_power_loss_has_emptied_is_taken_again() {
    let scratch = Scratch::new();
    let (spool, mut queue) = scratch.open("p");
    scratch.put_as("a", JOB, 1000);
    let before = claim(&mut queue).unwrap().request().unwrap();
    let copy = scratch.join("claimed/p/a/job.json");
    for lose in [|copy: &Path| fs::write(copy, ""), |copy: &Path| fs::remove_file(copy)] {
        lose(&copy).unwrap();
        let mut claimed = spool.unfinished().unwrap().remove(0);
        claimed.prepare().unwrap();
        let after = claimed.request().unwrap();
        assert_eq!((&after.token, &after.argv, after.submitter), (&before.token, &before.argv, before.submitter));
        assert_eq!(fs::read_to_string(&copy).unwrap(), JOB);
    }
}

#[test]
fn a_clock_that_was_set_back_keeps_no_job_waiting() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    for (name, at, is_due) in
        [("a", now() + 200.0, false), ("b", now() + 3_600.0, true), ("c", now() - 1e9, true), ("d", 1e300, true)]
    {
        scratch.put(name, JOB);
        let claimed = claim_next(&spool).unwrap();
        spool.deliver(&claimed, &report(&claimed, Class::Retry), 3).unwrap();
        let path = scratch.join("retry").join(name).join("claim.json");
        let mut claim: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        claim["not_before"] = at.into();
        fs::write(path, claim.to_string()).unwrap();
        assert_eq!(claim_next(&spool).map(|c| c.name), is_due.then(|| name.to_owned()), "{name}");
    }
}

#[test]
fn bad_job_files_say_why() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    // Of the largest size that a file may have; with what else a request says, it is longer than a line.
    let long = format!(r#"{{"image":"i","argv":["x","{}"]}}"#, "x".repeat((1 << 20) - 29));
    for (name, text, why) in [
        ("a", "{", "EOF"),
        ("b", r#"{"argv":["x"]}"#, "image"),
        ("c", r#"{"image":"i","argv":[],"imgae":1}"#, "imgae"),
        ("d", r#"{"image":"i","argv":["x"],"stdin":"../x"}"#, "beside"),
        ("e", &long, "the request has"),
        ("f", &" ".repeat(2 << 20), "more than 1048576 bytes"),
    ] {
        scratch.put(name, text);
        let refused = claim_next(&spool).unwrap().request();
        assert_eq!(refused.as_ref().err().map(|e| e.contains(why)), Some(true), "{name}: {:?}", refused.err());
    }
}

#[test]
fn what_a_user_leaves_in_the_directory_decides_nothing() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    let dir = scratch.put_as("a", JOB, 1234);
    for name in ["result", "result.1", "report.json", "attempts", "claim.tmp"] {
        fs::write(dir.join(name), "4294967295").unwrap();
    }
    fs::write(dir.join("claim.json"), r#"{"version":1,"name":"b","attempt":7,"token":"","uid":0,"not_before":1e9}"#)
        .unwrap();
    symlink("/etc", dir.join("outputs")).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2755)).unwrap();
    let claimed = claim_next(&spool).unwrap();
    let request = claimed.request().unwrap();
    assert_eq!((request.id.as_str(), request.submitter), ("a.1", Some(1234)));
    assert_eq!(spool.deliver(&claimed, &report(&claimed, Class::Retry), 2).unwrap(), "retry");
    let own = scratch.join("retry/a");
    let stat = own.metadata().unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (0, 0, 0o755));
    assert_eq!(names(&own), ["claim.json", "job.json", "result.1", "submitted"]);
    assert_eq!(own.join("job.json").metadata().unwrap().mode() & 0o777, 0o600, "the user's may be closed to others");
    let theirs = own.join("submitted").metadata().unwrap();
    assert_eq!((theirs.uid(), theirs.mode() & 0o7777), (1234, 0o2755), "the user's directory is left as it was");
}

#[test]
fn a_jobs_owner_is_who_owned_the_directory_in_each_attempt() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.open("p").0, scratch.open("q").0);
    scratch.put_as("a", r#"{"image":"i","argv":["x"],"owner":"alice"}"#, 1234);
    let claimed = claim_next(&first).unwrap();
    let (identity, before) = (Some((Some(1234), "alice".to_owned())), claimed.request().unwrap());
    assert_eq!(before.identity(), identity);
    first.deliver(&claimed, &report(&claimed, Class::Retry), 3).unwrap();
    // What the user may still change is not looked at again.
    fs::write(scratch.join("retry/a/submitted/job.json"), JOB).unwrap();
    is_due(scratch.path(), "a");
    let again = claim_next(&second).unwrap();
    let request = again.request().unwrap();
    assert_eq!((again.attempt, request.identity()), (2, identity));
    assert_ne!(request.token, before.token, "another attempt is another job to the core");
}

#[test]
fn a_job_of_doubtful_owner_shares_nothing() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    let owned = r#"{"image":"i","argv":["x"],"owner":"alice"}"#;
    let identity = |name: &str, text: &str, uid: u32, mode: u32| {
        let dir = scratch.put_as(name, text, uid);
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
        claim_next(&spool).unwrap().request().unwrap().identity()
    };
    assert_eq!(identity("a", JOB, 1234, 0o700), Some((Some(1234), String::new())));
    assert_eq!(identity("b", owned, 1234, 0o775), None, "the group could have put its job there");
    assert_eq!(identity("c", owned, 1234, 0o757), None);
    assert_eq!(identity("d", JOB, 0, 0o755), None, "root puts jobs for many, and says whose each is");
    assert_eq!(identity("e", owned, 0, 0o755), Some((Some(0), "alice".to_owned())));
    let dir = scratch.put_as("f", owned, 1234);
    chown(dir.join("job.json"), Some(1235), None).unwrap();
    let refused = claim_next(&spool).unwrap().request();
    assert!(
        refused.as_ref().is_err_and(|e| e.contains("belongs to UID 1235, its directory to UID 1234")),
        "{refused:?}"
    );
}

#[test]
fn the_longest_name_comes_back_as_often_as_it_is_put() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    let name = "a".repeat(NAME_MAX);
    for _ in 0..3 {
        scratch.put(&name, JOB);
        let claimed = claim_next(&spool).unwrap();
        spool.deliver(&claimed, &report(&claimed, Class::Retry), 2).unwrap();
    }
    let waiting = names(&scratch.join("retry"));
    assert_eq!(waiting.len(), 3);
    waiting.iter().for_each(|key| is_due(scratch.path(), key));
    for _ in 0..3 {
        let claimed = claim_next(&spool).unwrap();
        assert_eq!((claimed.name.as_str(), claimed.attempt), (name.as_str(), 2));
        assert!(claim_next(&spool).is_none(), "the next of this name waits for its turn");
        spool.deliver(&claimed, &report(&claimed, Class::Final), 2).unwrap();
    }
    assert_eq!(names(&scratch.join("done")).len(), 3);
}

#[test]
fn what_is_not_a_job_is_held_with_the_reason() {
    let scratch = Scratch::new();
    let (spool, queue) = scratch.open("p");
    let new = scratch.join("new");
    fs::write(new.join("file"), "").unwrap();
    symlink("/etc", new.join("link")).unwrap();
    fs::create_dir(new.join("no-job")).unwrap();
    let odd = [OsStr::new("a b"), OsStr::new("\u{1b}[2J"), OsStr::from_bytes(b"\xff\xfe"), OsStr::new("é")];
    for name in odd {
        fs::create_dir(new.join(name)).unwrap();
        fs::write(new.join(name).join("job.json"), JOB).unwrap();
    }
    fs::write(new.join("x".repeat(255)), "").unwrap();
    fs::create_dir(new.join(".being-put")).unwrap();
    scratch.put("z", JOB);
    let mut jobs = Vec::new();
    while !queue.is_empty().unwrap() {
        let Some(claimed) = claim_next(&spool) else { continue };
        match claimed.request() {
            Ok(_) => jobs.push(claimed.name),
            Err(why) => {
                let failure = Failure::hold(Reason::InvalidJob, why);
                spool.deliver(&claimed, &claimed.refusal(&failure), 3).unwrap();
            }
        }
    }
    assert_eq!(jobs, ["z"]);
    assert_eq!(names(&new), [".being-put"]);
    let held = names(&scratch.join("held"));
    assert_eq!(held.len(), 3 + odd.len() + 1, "{held:?}");
    for name in held {
        let dir = scratch.join("held").join(&name);
        let report: Report = serde_json::from_slice(&fs::read(dir.join("result/report.json")).unwrap()).unwrap();
        assert_eq!((report.class, report.reason), (Class::Hold, Reason::InvalidJob), "{name}");
        assert!(dir.join("submitted").symlink_metadata().is_ok(), "{name} is lost");
        assert!(report.message.len() > 20 && !report.message.contains('\u{1b}'), "{name}: {}", report.message);
    }
    assert_eq!(names(&scratch.join("claimed/p")), ["z"]);
}

#[test]
fn an_entry_that_cannot_be_moved_keeps_no_other_from_being_served() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let scratch = Scratch::new();
    let (_, mut queue) = scratch.open("p");
    let dir = scratch.put("a", JOB);
    mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    scratch.put("b", JOB);
    let claimed = claim(&mut queue);
    let is_empty = queue.is_empty().unwrap();
    umount2(&dir, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(claimed.unwrap().name, "b");
    assert!(is_empty, "a pilot does not wait for what cannot be claimed");
    assert_eq!(names(&scratch.join("claimed/p")), ["b"]);
}

#[test]
fn a_job_that_cannot_be_delivered_is_set_aside_with_all_that_is_there() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    scratch.put("a", JOB);
    let claimed = claim_next(&spool).unwrap();
    // Root's own directories have nothing in the way; should they have, once.
    claimed.create_result().unwrap();
    fs::create_dir_all(claimed.result().join("report.json/x")).unwrap();
    let report = report(&claimed, Class::Final);
    spool.deliver(&claimed, &report, 3).unwrap_err();
    spool.set_aside(claimed.dir(), "a", &report).unwrap();
    assert!(names(&scratch.join("claimed/p")).is_empty() && names(&scratch.join("done")).is_empty());
    let held = scratch.join("held/a");
    assert_eq!((names(&held), names(&held.join("claim")).len()), (vec!["claim".to_owned(), "result".to_owned()], 4));
    assert!(held.join("result/report.json").is_file());
}

#[test]
fn places_that_were_removed_are_made_again() {
    let scratch = Scratch::new();
    let (spool, _) = scratch.open("p");
    scratch.put("a", JOB);
    let claimed = claim_next(&spool).unwrap();
    fs::remove_dir(scratch.join("done")).unwrap();
    spool.deliver(&claimed, &report(&claimed, Class::Final), 3).unwrap();
    assert_eq!(names(&scratch.join("done")), ["a"]);
}

#[test]
fn a_spool_that_others_could_exchange_is_refused_or_closed() {
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(scratch.join("done")).unwrap();
    fs::set_permissions(scratch.join("done"), fs::Permissions::from_mode(0o777)).unwrap();
    scratch.open("p");
    let mode = |name: &str| scratch.join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode(""), mode("done"), mode("claimed"), mode("retry")), (0o1777, 0o755, 0o755, 0o755));
    let refused = || Spool::open(scratch.path(), "p").unwrap_err().to_string();
    for name in ["", "claimed", "claimed/p", "retry", "done", "held"] {
        chown(scratch.join(name), Some(1000), None).unwrap();
        assert!(refused().contains("belongs to UID 1000"), "{name}: {}", refused());
        chown(scratch.join(name), Some(0), None).unwrap();
    }
    fs::remove_dir(scratch.join("done")).unwrap();
    symlink("/etc", scratch.join("done")).unwrap();
    assert!(refused().contains("done"), "{}", refused());
}

/// What a pilot does whose only free slot has so many bytes, and whose largest one has 40.
fn fit_in(free: u64) -> impl Fn(&Requests) -> Fit {
    move |requests| match requests.memory.map_or(0, |bytes| bytes.0) {
        wanted if wanted <= free => Fit::Now,
        wanted if wanted <= 40 => Fit::Later,
        _ => Fit::Never,
    }
}

fn needs(bytes: u64) -> String {
    format!(r#"{{"image":"i","argv":["x"],"requests":{{"memory":{bytes}}}}}"#)
}

#[test]
fn a_job_is_claimed_once_a_slot_is_free_that_is_large_enough() {
    let scratch = Scratch::new();
    let (_, mut queue) = scratch.open("p");
    for (name, bytes) in [("a-too-large", 50), ("b-large", 30), ("c-small", 5), ("d-small", 6)] {
        scratch.put(name, &needs(bytes));
    }
    let mut claim = |free: u64| queue.claim_fitting(fit_in(free)).unwrap().map(|claimed| claimed.name);
    assert_eq!(claim(10).as_deref(), Some("c-small"));
    // It came first, and nothing that came later takes the slot that it waits for.
    assert_eq!(claim(30).as_deref(), Some("b-large"));
    assert_eq!(claim(30).as_deref(), Some("d-small"));
    assert_eq!(claim(40), None);
    assert_eq!(names(&scratch.join("new")), ["a-too-large"], "it is another pilot's, and not held");
    assert!(queue.is_empty().unwrap(), "nothing waits for this one");
    let mut larger = scratch.open("q").1;
    assert_eq!(larger.claim_fitting(|_| Fit::Now).unwrap().unwrap().requests.memory.unwrap().0, 50);
}

#[test]
fn the_next_attempt_waits_for_a_slot_that_is_large_enough_too() {
    let scratch = Scratch::new();
    let (spool, mut queue) = scratch.open("p");
    for (name, bytes) in [("large", 30), ("too-large", 50)] {
        scratch.put(name, &needs(bytes));
        let claimed = claim_next(&spool).unwrap();
        spool.deliver(&claimed, &report(&claimed, Class::Retry), 3).unwrap();
    }
    ["large", "too-large"].iter().for_each(|name| is_due(scratch.path(), name));
    scratch.put("small", &needs(5));
    let mut claim =
        |free: u64| queue.claim_fitting(fit_in(free)).unwrap().map(|claimed| (claimed.name, claimed.attempt));
    assert_eq!(claim(10), Some(("small".into(), 1)));
    assert_eq!(claim(10), None);
    assert_eq!(claim(30), Some(("large".into(), 2)), "though the directory was not read again");
    assert_eq!(claim(30), None);
    assert!(queue.is_empty().unwrap());
    assert_eq!(names(&scratch.join("retry")), ["too-large"]);
}

#[test]
fn what_cannot_be_read_before_the_claim_is_claimed_and_held_with_the_reason() {
    let scratch = Scratch::new();
    let (_, mut queue) = scratch.open("p");
    scratch.put("a-bad", r#"{"image":"i","argv":["x"],"requests":{"cpu":1}}"#);
    scratch.put("b-no-json", "{");
    fs::remove_file(scratch.put("c-fifo", JOB).join("job.json")).unwrap();
    nix::unistd::mkfifo(&scratch.join("new/c-fifo/job.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::remove_file(scratch.put("d-link", JOB).join("job.json")).unwrap();
    symlink("/etc/passwd", scratch.join("new/d-link/job.json")).unwrap();
    fs::write(scratch.join("new/e-file"), "").unwrap();
    for name in ["a-bad", "b-no-json", "c-fifo", "d-link", "e-file"] {
        let mut claimed = queue.claim_fitting(fit_in(0)).unwrap().unwrap();
        claimed.prepare().unwrap();
        assert_eq!(claimed.name, name);
        assert!(claimed.request().is_err(), "{name}");
    }
}

#[test]
fn pilots_that_share_jobs_of_which_half_have_to_wait_lose_none_and_do_not_read_them_again_and_again() {
    let (scratch, jobs) = (Scratch::new(), 2000);
    let mut pilots: Vec<_> = (0..20).map(|n| scratch.open(&format!("p{n}")).1).collect();
    for n in 0..jobs {
        scratch.put(&format!("{n:04}"), &needs(if n % 2 == 0 { 30 } else { 5 }));
    }
    let mut claimed = BTreeSet::new();
    // Always the next one in turn. A claim may find nothing because its time is over.
    let mut claim_all = |pilots: &mut [Queue], free: u64, most: usize| {
        let mut in_vain = 0;
        while claimed.len() < most {
            match pilots.first_mut().unwrap().claim_fitting(fit_in(free)).unwrap() {
                Some(job) => assert!(claimed.insert(job.name), "claimed twice"),
                None => in_vain += 1,
            }
            assert!(in_vain < 100_000, "{} claimed", claimed.len());
            pilots.rotate_left(1);
        }
        pilots.iter().map(Queue::entries_read).sum::<u64>()
    };
    let read = claim_all(&mut pilots, 10, jobs / 2);
    assert!(read < 250 * jobs as u64, "{read} entries read by all");
    assert_eq!(names(&scratch.join("new")), (0..jobs).step_by(2).map(|n| format!("{n:04}")).collect::<Vec<_>>());
    for pilot in &mut pilots {
        let name = scratch.put("9999", &needs(5)).file_name().unwrap().to_owned();
        let found = (0..1_000_000).find_map(|_| pilot.claim_fitting(fit_in(10)).unwrap()).unwrap();
        assert_eq!(OsStr::new(&found.name), name, "the others wait, and this one came last");
    }
    let before = pilots.iter().map(Queue::entries_read).sum::<u64>();
    let read = claim_all(&mut pilots, 40, jobs) - before;
    assert!(read < 250 * jobs as u64, "{read} entries read by all");
    assert!(pilots.iter().all(|pilot| pilot.is_empty().unwrap()));
}
