//! A user of the spool, who is not root: against root's files, other users' containers and files, and the slot that
//! serves all.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use latebind_tests::pod::{
    BUSYBOX, JOB_WITHIN, Options, Pod, Scratch, eventually, look_into, probe, program, shell, with,
};
use serde_json::{Value, json};

const USER: u32 = 1234;
const OTHER: u32 = 1235;

/// An image whose registry does not answer: each attempt at it is a `retry`.
const AWAY: &str = "localhost:1/x:1";

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn give(dir: &Path, uid: u32) {
    run(Command::new("chown").arg("-hR").arg(format!("{uid}:{uid}")).arg(dir));
}

/// What a shell of a user's prints.
fn as_user(uid: u32, script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).uid(uid).gid(uid).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Puts a job as a user does, with what `make` leaves in its directory.
fn put_as(spool: &Path, uid: u32, name: &str, job: &Value, make: impl FnOnce(&Path)) {
    let dir = spool.join(format!(".{name}.being-put"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("job.json"), job.to_string()).unwrap();
    give(&dir, uid);
    make(&dir);
    fs::rename(dir, spool.join("new").join(name)).unwrap();
}

fn default_acl(dir: &Path, uid: u32) {
    run(Command::new(program("probe")).arg("default-acl").arg(dir).arg(uid.to_string()));
}

fn away() -> Value {
    json!({"image": AWAY, "argv": ["true"]})
}

fn allow_all() -> Options {
    Options::new().host(&["--allow", "*"])
}

#[test]
fn default_acls_give_no_user_a_hand_in_roots_files() {
    let scratch = Scratch::new();
    let spool = scratch.path().join("spool");
    // Also where root has taken over directories that a user had prepared.
    for name in ["claimed", "retry", "done", "held"] {
        fs::create_dir_all(spool.join(name)).unwrap();
        default_acl(&spool.join(name), USER);
    }
    default_acl(&spool, USER);
    let pod = Options::new().spool(&spool).start();
    put_as(&spool, USER, "held", &json!({"image": "localhost/latebind/no-such:1", "argv": ["true"]}), |dir| {
        default_acl(dir, USER);
    });
    put_as(&spool, USER, "done", &with(shell("mkdir d; echo x >d/x"), "outputs", json!(["d"])), |dir| {
        fs::create_dir(dir.join("result")).unwrap();
        give(&dir.join("result"), USER);
        default_acl(&dir.join("result"), USER);
        default_acl(dir, USER);
    });
    pod.result("held").is("hold", "ImageNotFound");
    let done = pod.result("done");
    done.is_good();
    for dir in [pod.result("held").dir, done.dir.clone()] {
        let try_all = format!(
            "cd {} && for d in . result result/outputs result/outputs/d ../../claimed ../../claimed/* ../../retry \
             ../../done ../../held; do [ -d $d ] && touch $d/mine && echo made $d/mine; done 2>/dev/null; \
             for f in result/* result/outputs/d/x *.json; do \
             [ -f $f ] && ( : >>$f ) && echo wrote $f; done 2>/dev/null; \
             mv -f result mine 2>/dev/null && echo moved; cat result/report.json >/dev/null && echo read",
            dir.display()
        );
        assert_eq!(as_user(USER, &try_all), "read\n", "{}", dir.display());
        for name in ["", "result"] {
            let stat = dir.join(name).metadata().unwrap();
            assert_eq!((stat.uid(), stat.mode() & 0o7777), (0, 0o755), "{}", dir.join(name).display());
        }
    }
    let mode = |name: &str| done.dir.join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode("result/stdout"), mode("result/outputs/d"), mode("result/outputs/d/x")), (0o644, 0o755, 0o644));
}

/// Whoever can write a report can write anything into it, but no record.
#[test]
fn a_forged_report_is_never_shown_as_verified() {
    let pod = Options::new().pilot(&["--keep-keys", "/var/lib/latebind/keys"]).start();
    let failed = pod.job("failed", &probe(&["exit", "3"]));
    let never_ran = pod.job("never-ran", &json!({"image": "localhost/latebind/no-such:1", "argv": ["true"]}));
    let other = pod.job("other", &probe(&["exit", "0"]));
    let scratch = Scratch::new();
    let forge = |name: &str, of: &Path, record: &Path| {
        let text = fs::read_to_string(of.join("result/report.json")).unwrap();
        let mut report: Value = serde_json::from_str(&text).unwrap();
        for (field, value) in [
            ("class", json!("final")),
            ("reason", json!("Completed")),
            ("message", json!("")),
            ("exit_code", json!(0)),
            ("verified", json!(true)),
            ("refusal", Value::Null),
        ] {
            report[field] = value;
        }
        if let Value::Object(record) = &mut report["record"] {
            record["exit_code"] = json!(0);
        }
        let dir = scratch.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("report.json"), report.to_string()).unwrap();
        let _ = fs::copy(record.join("result/record.jws"), dir.join("record.jws"));
    };
    forge("1", &failed.dir, &failed.dir);
    forge("2", &failed.dir, &other.dir);
    forge("3", &never_ran.dir, &other.dir);
    forge("4", &never_ran.dir, &never_ran.dir);
    let keys = pod.private().join("keys");
    let keys = keys.to_str().unwrap();
    for keys in [&["--keys", keys][..], &[]] {
        let table = run(Command::new(program("watcher")).arg("results").arg(scratch.path()).args(keys));
        let text = String::from_utf8_lossy(&table.stdout);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.lines().skip(1).all(|l| l.contains("  no: ") || l.ends_with("not checked")), "{text}");
        for n in ["1", "2", "3", "4"] {
            let shown = run(Command::new(program("watcher")).arg("report").arg(scratch.path().join(n)).args(keys));
            let text = String::from_utf8_lossy(&shown.stdout);
            let record = text.lines().find(|l| l.starts_with("record")).unwrap_or_default();
            assert!(record.contains("refused: ") || record.contains("not checked: "), "{n}: {text}");
        }
    }
    let genuine = run(Command::new(program("watcher")).arg("results").arg(&pod.spool).args(["--keys", keys]));
    let text = String::from_utf8_lossy(&genuine.stdout);
    assert_eq!(text.lines().filter(|l| l.ends_with("yes")).count(), 2, "{text}");
}

#[test]
fn a_user_that_names_another_as_owner_gets_no_container_of_his() {
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    let job = |script: &str, owner: &str| with(shell(script), "owner", json!(owner));
    let leave = "umask 077; echo token >/tmp/token";
    let look = "cat /tmp/token; true";
    for (name, uid, job) in [
        ("1-leaves", USER, job(leave, "alice")),
        ("2-other-uid", OTHER, job(look, "alice")),
        ("3-leaves", USER, job(leave, "alice")),
        ("4-root", 0, job(look, "alice")),
        ("5-leaves", USER, job(leave, "alice")),
        ("6-other-name", USER, job(look, "")),
        ("7-leaves", USER, job(leave, "alice")),
        ("8-the-same", USER, job(look, "alice")),
    ] {
        put_as(&pod.spool, uid, name, &job, |_| ());
        let outcome = pod.result(name);
        outcome.is_good();
        let shares = name == "8-the-same";
        assert_eq!(outcome.report.reused_container, shares, "{name}");
        assert_eq!(outcome.text("stdout"), if shares { "token\n" } else { "" }, "{name}");
    }
}

#[test]
fn files_in_a_jobs_directory_keep_no_slot_busy() {
    let pod = allow_all().pilot(&["--max-attempts", "2"]).start();
    pod.serves();
    let names = ["1-file", "2-directory", "3-link", "4-claim"];
    put_as(&pod.spool, USER, names[0], &away(), |dir| {
        ["result.1", "result.2", "result", "attempts"]
            .iter()
            .for_each(|name| fs::write(dir.join(name), "mine").unwrap());
    });
    put_as(&pod.spool, USER, names[1], &away(), |dir| fs::create_dir_all(dir.join("result.1/x/y")).unwrap());
    put_as(&pod.spool, USER, names[2], &away(), |dir| symlink("/etc", dir.join("result.1")).unwrap());
    put_as(&pod.spool, USER, names[3], &away(), |dir| {
        fs::write(dir.join("claim.json"), r#"{"version":1,"name":"x","attempt":4294967295,"token":"","uid":0}"#)
            .unwrap();
        fs::write(dir.join("not-before"), "1e300").unwrap();
    });
    pod.job("5-innocent", &probe(&["hello"])).is_good();
    for name in names {
        let outcome = pod.result(name);
        assert_eq!((outcome.place, outcome.class().0, outcome.report.attempt), ("held", "retry", 2), "{name}");
        assert!(outcome.dir.join("result.1/report.json").is_file(), "{name}: the first attempt's report is kept");
    }
    assert!(!pod.said().contains("not delivered"), "{}", pod.said());
}

#[test]
fn the_longest_name_is_not_lost() {
    let pod = allow_all().pilot(&["--max-attempts", "2"]).start();
    pod.serves();
    let name = "a".repeat(117);
    pod.put(&name, &away());
    // While its first attempt is under way, another job takes its name.
    eventually("the first claim", JOB_WITHIN, || (!pod.spool.join("new").join(&name).exists()).then_some(()));
    pod.put(&name, &probe(&["hello"]));
    eventually(&format!("both\n{}", pod.said()), JOB_WITHIN, || {
        let reported = |place: &str| pod.spool.join(place).join(&name).join("result/report.json").exists();
        (reported("done") && reported("held")).then_some(())
    });
    for place in ["new", "retry"] {
        assert_eq!(fs::read_dir(pod.spool.join(place)).unwrap().count(), 0, "{place}");
    }
}

#[test]
fn what_is_not_a_job_is_held_and_keeps_nobody_waiting() {
    let pod = Pod::start();
    let new = pod.spool.join("new");
    fs::write(new.join("a-file"), "job").unwrap();
    symlink("/var/lib/latebind", new.join("b-link")).unwrap();
    fs::create_dir(new.join(" not a name")).unwrap();
    fs::write(new.join("n".repeat(200)), "").unwrap();
    nix::unistd::mkfifo(&new.join("c-fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // As many bad names as a look remembers, and before all others in their order.
    for n in 0..1500 {
        fs::write(new.join(format!("!{n}")), "").unwrap();
    }
    fs::create_dir(new.join(".upload")).unwrap();
    pod.job("z-good", &probe(&["hello"])).is_good();
    for name in ["a-file", "b-link", "c-fifo"] {
        let outcome = pod.result(name);
        outcome.is("hold", "InvalidJob");
        assert!(outcome.report.message.contains("is not a directory"), "{}", outcome.report.message);
        assert!(outcome.dir.join("submitted").symlink_metadata().is_ok(), "{name} is lost");
    }
    let held = |name: &str| eventually(name, JOB_WITHIN, || look_into(&pod.spool, name));
    assert!(held("_0").report.message.contains("new/!0: the name of a job is"));
    assert!(new.join(".upload").exists(), "somebody is about to put that");
}

#[test]
fn a_request_longer_than_a_line_is_held() {
    let pod = Pod::start();
    let argv = ["true".to_owned(), "x".repeat((1 << 20) - 100)];
    pod.put("long", &json!({"image": BUSYBOX, "argv": argv}));
    let outcome = pod.result("long");
    outcome.is("hold", "InvalidJob");
    assert!(outcome.report.message.contains("bytes, more than"), "{}", outcome.report.message);
    assert!(outcome.report.container.is_none(), "an image was bound for it");
    pod.job("next", &probe(&["hello"])).is_good();
}

/// A user who changes the directory while root reads in it: what is read is the user's own, or nothing.
#[test]
fn a_directory_that_changes_while_it_is_read_leads_nowhere() {
    let pod = Pod::start();
    pod.serves();
    let end = AtomicBool::new(false);
    let names: Vec<String> = (0..6).map(|n| format!("changing-{n}")).collect();
    let job = with(shell("cat data secret 2>/dev/null; cat; true"), "stdin", json!("given"));
    std::thread::scope(|scope| {
        for name in &names {
            put_as(&pod.spool, USER, name, &job, |dir| {
                fs::create_dir(dir.join("mine")).unwrap();
                fs::write(dir.join("mine/data"), "own\n").unwrap();
                fs::write(dir.join("own"), "own\n").unwrap();
                symlink("/var/lib/latebind", dir.join("theirs")).unwrap();
                symlink("/etc/shadow", dir.join("link")).unwrap();
                give(dir, USER);
                // Whoever has the directory open can change it wherever it is.
                let dir = fs::File::open(dir).unwrap();
                let end = &end;
                scope.spawn(move || swap(&dir, end));
            });
        }
        names.iter().for_each(|name| drop(pod.result(name)));
        end.store(true, Ordering::Relaxed);
    });
    for name in &names {
        let outcome = pod.result(name);
        match outcome.class() {
            ("final", "Completed") => {
                let text = outcome.text("stdout");
                assert!(["own\n", "own\nown\n", ""].contains(&text.as_str()), "{name} has read {text:?}");
            }
            ("hold", "InputUnusable") => {}
            other => panic!("{name}: {other:?}: {}", outcome.report.message),
        }
    }
    pod.job("next", &probe(&["hello"])).is_good();
}

/// Exchanges `inputs` and `given` for links and back, as fast as it can.
fn swap(dir: &fs::File, end: &AtomicBool) {
    use std::os::fd::AsRawFd;
    let at = |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
    while !end.load(Ordering::Relaxed) {
        for (from, to) in [("mine", "inputs"), ("own", "given"), ("inputs", "mine"), ("given", "own")] {
            let _ = fs::rename(at(from), at(to));
        }
        for (from, to) in [("theirs", "inputs"), ("link", "given"), ("inputs", "theirs"), ("given", "link")] {
            let _ = fs::rename(at(from), at(to));
        }
    }
}

/// What is another's can be linked or moved into a directory by whoever may write where it is, and is not his to read
/// for that.
#[test]
fn root_reads_no_file_for_a_user_that_the_user_cannot_read() {
    let pod = Pod::start();
    let secret = |path: PathBuf| {
        fs::write(&path, "SECRET=another's\n").unwrap();
        give(&path, OTHER);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let job = shell("cat secret; cat; echo $SECRET");
    put_as(&pod.spool, USER, "1-inputs", &job, |dir| {
        fs::create_dir(dir.join("inputs")).unwrap();
        give(&dir.join("inputs"), USER);
        secret(dir.join("inputs/secret"));
    });
    put_as(&pod.spool, USER, "2-stdin", &with(job.clone(), "stdin", json!("secret")), |dir| secret(dir.join("secret")));
    let env = with(job.clone(), "env_files", json!([{"name": "secret", "format": "sh"}]));
    put_as(&pod.spool, USER, "3-env", &env, |dir| secret(dir.join("secret")));
    put_as(&pod.spool, USER, "4-directory", &job, |dir| {
        fs::create_dir(dir.join("inputs")).unwrap();
        fs::write(dir.join("inputs/secret"), "another's\n").unwrap();
        give(&dir.join("inputs"), OTHER);
        fs::set_permissions(dir.join("inputs"), fs::Permissions::from_mode(0o700)).unwrap();
    });
    put_as(&pod.spool, USER, "5-job", &job, |dir| {
        secret(dir.join("job.json"));
    });
    // What everybody may read, the user may hand on.
    put_as(&pod.spool, USER, "6-open", &with(job, "stdin", json!("open")), |dir| {
        fs::write(dir.join("open"), "for all\n").unwrap();
        give(&dir.join("open"), OTHER);
    });
    for (name, reason) in [
        ("1-inputs", "InputUnusable"),
        ("2-stdin", "InputUnusable"),
        ("3-env", "EnvironmentError"),
        ("4-directory", "InputUnusable"),
        ("5-job", "InvalidJob"),
    ] {
        let outcome = pod.result(name);
        outcome.is("hold", reason);
        assert!(outcome.report.message.contains("belongs to UID 1235"), "{name}: {}", outcome.report.message);
    }
    assert_eq!(pod.result("6-open").is_good().text("stdout"), "for all\n\n");
}

#[test]
fn a_claim_that_is_removed_meanwhile_gives_its_result_to_no_other_job() {
    let pod = Pod::start();
    pod.put("removed", &probe(&["sleep", "3"]));
    pod.runs("removed.1", 0);
    let claimed = fs::read_dir(pod.spool.join("claimed")).unwrap().flatten().next().unwrap().path();
    fs::remove_dir_all(claimed.join("removed")).unwrap();
    // A second job of that name is another job, whatever is remembered of the first.
    pod.put("removed", &shell("echo second"));
    let second = eventually(&format!("the second job\n{}", pod.said()), JOB_WITHIN, || {
        ["removed", "removed.2"]
            .into_iter()
            .find_map(|name| look_into(&pod.spool, name).filter(|o| o.dir.join("submitted/job.json").exists()))
    });
    assert_eq!(second.is_good().text("stdout"), "second\n");
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn a_spool_that_a_user_could_exchange_is_refused() {
    let scratch = Scratch::new();
    let spool = scratch.path().join("spool");
    fs::create_dir_all(spool.join("done")).unwrap();
    give(&spool.join("done"), USER);
    let mut pod = Options::new().spool(&spool).host(&["--restarts", "0"]).start();
    assert_ne!(pod.end(JOB_WITHIN).code(), Some(0));
    assert!(pod.said().contains("/spool/done belongs to UID 1234"), "{}", pod.said());
    // One that all may write in is theirs to put things into, not to exchange what is root's.
    give(&spool.join("done"), 0);
    fs::set_permissions(&spool, fs::Permissions::from_mode(0o777)).unwrap();
    let pod = Options::new().spool(&spool).start();
    pod.job("good", &probe(&["hello"])).is_good();
    let try_all = format!(
        "cd {} || exit; for d in new claimed retry done held; do mv $d x && echo moved $d; done 2>/dev/null; \
         echo tried",
        spool.display()
    );
    assert_eq!(as_user(USER, &try_all), "tried\n");
}
