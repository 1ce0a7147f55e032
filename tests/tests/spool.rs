//! The spool: jobs in, results out, each with a record that anybody who has the key can check.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use latebind_tests::pod::{
    BUSYBOX, DEBIAN, JOB_WITHIN, NOSHELL, Options, Outcome, Pod, Scratch, Signal, eventually, look_into, podman, probe,
    program, put_into, shell, with,
};
use latebind_tests::slot::WAIT_FOR_GO;
use latebind_tests::tracer::Tracer;
use serde_json::{Value, json};

const KEYS: &str = "/var/lib/latebind/keys";

#[test]
fn jobs_in_several_images_run_one_after_the_other() {
    let pod = Pod::start();
    let images = [
        ("a-noshell", NOSHELL, json!(["/probe", "primes", "1000"])),
        ("b-debian", DEBIAN, json!(["/bin/bash", "-c", ". /etc/os-release; echo \"${ID}\""])),
        ("c-busybox", BUSYBOX, json!(["/bin/sh", "-c", "busybox | head -n 1"])),
    ];
    for (name, image, argv) in &images {
        pod.put(name, &json!({"image": image, "argv": argv}));
    }
    let outcomes: Vec<Outcome> = images.iter().map(|(name, ..)| pod.result(name)).collect();
    for (outcome, (name, image, _)) in outcomes.iter().zip(&images) {
        outcome.is_good();
        assert_eq!(outcome.place, "done");
        assert_eq!(
            (outcome.report.job.as_str(), outcome.report.image.as_str()),
            (format!("{name}.1").as_str(), *image)
        );
        assert_eq!((outcome.report.slot, outcome.report.attempt, outcome.report.version), (Some(0), 1, 1));
    }
    assert_eq!(outcomes[0].answers()[0]["primes"], 168);
    assert_eq!(outcomes[1].text("stdout"), "debian\n");
    assert!(outcomes[2].text("stdout").starts_with("BusyBox"));
    let finished: Vec<&str> = outcomes.iter().map(|o| o.report.finished_at.as_str()).collect();
    assert!(finished.is_sorted(), "one slot, so in the order of their names: {finished:?}");
    assert!(fs::read_dir(pod.spool.join("new")).unwrap().next().is_none());
}

#[test]
fn inputs_are_the_jobs_own_and_modes_hold() {
    let pod = Pod::start();
    let script = "cat data.txt deep/er/file; ./tool; echo changed >data.txt && stat -c '%u %a' data.txt tool deep/er";
    let files: [(&str, &[u8]); 4] = [
        ("inputs/data.txt", b"from the user\n"),
        ("inputs/deep/er/file", b"deep\n"),
        ("inputs/tool", b"#!/bin/sh\necho tool ran\n"),
        ("given", b"on standard input\n"),
    ];
    let spool = &pod.spool;
    let dir = spool.join("new").join("being-put");
    fs::create_dir_all(dir.join("inputs/deep/er")).unwrap();
    for (path, bytes) in files {
        fs::write(dir.join(path), bytes).unwrap();
    }
    fs::set_permissions(dir.join("inputs/tool"), fs::Permissions::from_mode(0o700)).unwrap();
    let job = with(shell(&format!("{script}; cat")), "stdin", json!("given"));
    // Not a job before it has its file, wherever it lies: the last rename is what counts.
    let elsewhere = spool.join("inputs-job");
    fs::rename(&dir, &elsewhere).unwrap();
    fs::write(elsewhere.join("job.json"), job.to_string()).unwrap();
    fs::rename(&elsewhere, spool.join("new/inputs-job")).unwrap();
    let outcome = pod.result("inputs-job");
    outcome.is_good();
    let uid = pod.uid(0);
    let wanted = format!("from the user\ndeep\ntool ran\n{uid} 644\n{uid} 755\n{uid} 755\non standard input\n");
    assert_eq!(outcome.text("stdout"), wanted, "{}", outcome.text("stderr"));
    assert_eq!(fs::read_to_string(outcome.dir.join("submitted/inputs/data.txt")).unwrap(), "from the user\n", "a copy");
}

#[test]
fn an_input_that_is_a_link_is_not_followed() {
    let pod = Pod::start();
    let dir = pod.spool.join("being-put");
    fs::create_dir_all(dir.join("inputs")).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", dir.join("inputs/data")).unwrap();
    fs::write(dir.join("job.json"), shell("cat data; ls -l").to_string()).unwrap();
    fs::rename(&dir, pod.spool.join("new/linked")).unwrap();
    let outcome = pod.result("linked");
    // It will be the same wherever it runs: whoever made the link has to change it.
    outcome.is("hold", "InputUnusable");
    assert!(outcome.report.message.contains("data: "), "{}", outcome.report.message);
}

/// A job that was made by hand, with something in it that does not belong there.
fn odd(pod: &Pod, name: &str, make: impl FnOnce(&std::path::Path)) {
    let dir = pod.spool.join(format!("being-put-{name}"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("job.json"), shell("echo ran").to_string()).unwrap();
    make(&dir);
    fs::rename(&dir, pod.spool.join("new").join(name)).unwrap();
}

fn fifo(path: std::path::PathBuf) {
    let _ = fs::remove_file(&path);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn an_odd_entry_keeps_no_other_job_from_being_served() {
    let pod = Pod::start();
    odd(&pod, "a-attempts", |dir| fs::create_dir_all(dir.join("attempts/x")).unwrap());
    odd(&pod, "b-fifos", |dir| ["attempts", "not-before"].iter().for_each(|name| fifo(dir.join(name))));
    odd(&pod, "c-counted", |dir| fs::write(dir.join("attempts"), "4294967295").unwrap());
    odd(&pod, "d-never", |dir| fs::write(dir.join("not-before"), "inf").unwrap());
    odd(&pod, "e-job", |dir| fifo(dir.join("job.json")));
    odd(&pod, "f-stdin", |dir| {
        fifo(dir.join("stdin"));
        fs::write(dir.join("job.json"), with(shell("cat"), "stdin", json!("stdin")).to_string()).unwrap();
    });
    odd(&pod, "g-inputs", |dir| std::os::unix::fs::symlink("/var/lib/latebind", dir.join("inputs")).unwrap());
    odd(&pod, "h-job", |dir| {
        fs::remove_file(dir.join("job.json")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("job.json")).unwrap();
    });
    for name in ["a-attempts", "b-fifos", "c-counted", "d-never"] {
        pod.result(name).is_good();
    }
    for name in ["e-job", "h-job"] {
        pod.result(name).is("hold", "InvalidJob");
    }
    for name in ["f-stdin", "g-inputs"] {
        pod.result(name).is("hold", "InputUnusable");
    }
    pod.job("z-last", &shell("true")).is_good();
}

#[test]
fn a_result_that_is_there_before_the_job_is_not_ours() {
    let pod = Pod::start();
    odd(&pod, "linked", |dir| std::os::unix::fs::symlink("/usr/bin", dir.join("result")).unwrap());
    odd(&pod, "made", |dir| {
        fs::create_dir(dir.join("result")).unwrap();
        std::os::unix::fs::symlink("/usr/bin", dir.join("result/outputs")).unwrap();
        let job = with(shell("mkdir x; echo y >x/y"), "outputs", json!(["x/y"]));
        fs::write(dir.join("job.json"), job.to_string()).unwrap();
    });
    for name in ["linked", "made"] {
        let outcome = pod.result(name);
        outcome.is_good();
        assert!(fs::symlink_metadata(outcome.dir.join("result")).unwrap().is_dir(), "{name}");
        assert!(fs::symlink_metadata(outcome.dir.join("submitted/result")).is_ok(), "{name}: the user's is gone");
    }
    assert!(fs::symlink_metadata(pod.result("made").dir.join("result/outputs")).unwrap().is_dir());
}

#[test]
fn a_second_job_of_the_same_name_waits_for_its_turn() {
    let pod = Options::new().slots(2).start();
    pod.put("twin", &shell("sleep 1; echo first"));
    eventually("the first claim", JOB_WITHIN, || (!pod.spool.join("new/twin").exists()).then_some(()));
    pod.put("twin", &shell("echo second"));
    pod.job("other", &shell("true")).is_good();
    eventually("both twins", JOB_WITHIN, || {
        (pod.spool.join("done/twin").is_dir() && pod.spool.join("done/twin.2").is_dir()).then_some(())
    });
    let text = |name: &str| fs::read_to_string(pod.spool.join("done").join(name).join("result/stdout")).unwrap();
    assert_eq!((text("twin"), text("twin.2")), ("first\n".to_owned(), "second\n".to_owned()));
}

#[test]
fn outputs_are_fetched() {
    let pod = Pod::start();
    let script = "echo one >one; mkdir -p tree/deep empty; echo two >tree/two; echo three >tree/deep/three; \
                  head -c 3000000 /dev/zero >big; echo out; echo err >&2";
    let outcome =
        pod.job("outputs", &with(shell(script), "outputs", json!(["one", "tree", "empty", "big", "tree/deep/three"])));
    outcome.is_good();
    assert_eq!(outcome.text("outputs/one"), "one\n");
    assert_eq!(outcome.text("outputs/tree/two"), "two\n");
    assert_eq!(outcome.text("outputs/tree/deep/three"), "three\n");
    assert!(outcome.dir.join("result/outputs/empty").is_dir());
    assert_eq!(fs::metadata(outcome.dir.join("result/outputs/big")).unwrap().len(), 3_000_000);
    assert_eq!(outcome.text("stdout"), "out\n");
    assert_eq!(outcome.text("stderr"), "err\n");
    assert_eq!(outcome.report.outputs.len(), 5);
    assert_eq!(outcome.report.missing_outputs, Vec::<String>::new());
}

#[test]
fn outputs_that_lead_elsewhere_are_not_fetched() {
    let pod = Pod::start();
    // Also for the pilot there is an /etc/passwd: a link that is followed would show.
    let script = "ln -s /etc/passwd link; ln -s /etc dirlink; mkfifo fifo; mkdir sub; ln -s /etc/passwd sub/link; \
                  mkdir loop; ln -s . loop/self; ln -s ../../../../../../../etc up; echo kept >good; \
                  mkdir closed; echo x >closed/x; chmod 000 closed; echo s >locked; chmod 000 locked";
    let asked = [
        "link",
        "dirlink",
        "dirlink/passwd",
        "fifo",
        "sub",
        "loop",
        "up/passwd",
        "never-made",
        "good",
        "closed",
        "locked",
    ];
    let outcome = pod.job("escape", &with(shell(script), "outputs", json!(asked)));
    outcome.is_good();
    let missing = &outcome.report.missing_outputs;
    // Of a directory, the part that leads elsewhere is named.
    for name in ["link", "dirlink", "dirlink/passwd", "fifo", "sub/link", "up/passwd", "never-made"] {
        assert!(missing.iter().any(|m| m.starts_with(&format!("{name}: "))), "{name} is not named in {missing:#?}");
        assert!(!outcome.report.outputs.contains(&name.to_owned()), "{name} is said to be fetched");
    }
    assert_eq!(outcome.text("outputs/good"), "kept\n");
    // Modes are between the payload and itself.
    assert_eq!(outcome.text("outputs/closed/x"), "x\n");
    assert_eq!(outcome.text("outputs/locked"), "s\n");
    let found = Command::new("grep").args(["-rl", "root:"]).arg(outcome.dir.join("result/outputs")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "something of the pilot's was fetched");
    let links = Command::new("find").arg(outcome.dir.join("result")).args(["-type", "l"]).output().unwrap();
    // One that stays within its output is made again, and leads nowhere else.
    let kept = outcome.dir.join("result/outputs/loop/self");
    assert_eq!(String::from_utf8_lossy(&links.stdout), format!("{}\n", kept.display()), "links reached the results");
    assert_eq!(fs::read_link(kept).unwrap().to_str(), Some("."));
}

#[test]
fn a_hard_link_brings_no_file_of_another_owner() {
    let pod = Pod::start();
    // The payload's own file may have two names. Those of root it cannot link to, and they lie on other mounts.
    let script = "echo mine >a; ln a b; ln /shared/bin/glue glue || ln /etc/passwd glue || echo no link";
    let outcome = pod.job("hard", &with(shell(script), "outputs", json!(["b", "glue"])));
    outcome.is_good();
    assert_eq!(outcome.text("stdout"), "no link\n");
    assert_eq!(outcome.text("outputs/b"), "mine\n");
    assert_eq!(outcome.report.missing_outputs.len(), 1, "{:?}", outcome.report.missing_outputs);
}

#[test]
fn outputs_outside_of_work_hold_the_job() {
    let pod = Pod::start();
    for (n, path) in ["../io/stdout", "a/../../x", "/etc/passwd", "."].into_iter().enumerate() {
        let outcome = pod.job(&format!("outside-{n}"), &with(shell("touch ran"), "outputs", json!([path])));
        outcome.is("hold", "InvalidJob");
        assert_eq!(outcome.place, "held");
        assert!(outcome.report.message.contains("output"), "{}", outcome.report.message);
        assert!(outcome.report.container.is_none());
    }
}

#[test]
fn output_that_is_a_flood_is_fetched_whole() {
    let pod = Pod::start();
    let outcome = pod.job("flood", &shell("head -c 20000000 /dev/zero; echo; head -c 10000000 /dev/zero >&2"));
    outcome.is_good();
    assert_eq!(fs::metadata(outcome.dir.join("result/stdout")).unwrap().len(), 20_000_001);
    assert_eq!(fs::metadata(outcome.dir.join("result/stderr")).unwrap().len(), 10_000_000);
}

fn verify(record: &Path, key: &Path) -> Output {
    Command::new(program("watcher")).arg("verify").arg("--key").arg(key).arg(record).output().unwrap()
}

/// A pod that keeps keys, one job in it, its record, and its kept key.
fn kept() -> (Pod, Outcome, PathBuf, PathBuf) {
    let pod = Options::new().pilot(&["--keep-keys", KEYS]).start();
    let outcome = pod.job("kept", &probe(&["exit", "3"]));
    outcome.is("final", "Error");
    assert_eq!((outcome.report.exit_code, outcome.report.verified), (Some(3), true));
    let (record, key) = (outcome.dir.join("result/record.jws"), pod.private().join("keys/kept.1.json"));
    (pod, outcome, record, key)
}

#[test]
fn a_kept_record_is_verified_and_refused_with_one_bit_changed() {
    let (_pod, _outcome, record, key) = kept();
    let good = verify(&record, &key);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let said: Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!((&said["exit_code"], &said["job"]), (&json!(3), &json!("kept.1")));

    let scratch = Scratch::new();
    let text = fs::read(&record).unwrap();
    let bad = scratch.path().join("record");
    // A bit in the header, in the middle of the payload, and in the signature.
    let dots: Vec<usize> = (0..text.len()).filter(|n| text[*n] == b'.').collect();
    for at in [3, (dots[0] + dots[1]) / 2, dots[1] + 5] {
        let mut changed = text.clone();
        changed[at] ^= 1;
        fs::write(&bad, &changed).unwrap();
        let refused = verify(&bad, &key);
        assert_eq!(refused.status.code(), Some(1), "byte {at}: {}", String::from_utf8_lossy(&refused.stdout));
        assert!(refused.stdout.is_empty() && String::from_utf8_lossy(&refused.stderr).contains("refused: "));
    }
    for cut in [0, 1, text.len() / 2, text.len() - 1] {
        fs::write(&bad, &text[..cut]).unwrap();
        assert_eq!(verify(&bad, &key).status.code(), Some(1), "cut at {cut}");
    }
    let missing = verify(&scratch.path().join("not-there"), &key);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("refused: "));
}

#[test]
fn a_record_is_refused_with_the_key_of_another_start() {
    let pod = Options::new().pilot(&["--keep-keys", KEYS]).start();
    let first = pod.job("first", &probe(&["exit", "0"]));
    pod.job("second", &probe(&["exit", "0"])).is_good();
    let record = first.dir.join("result/record.jws");
    let key = |name: &str| pod.private().join(format!("keys/{name}.json"));
    assert!(verify(&record, &key("first.1")).status.success());
    assert_eq!(verify(&record, &key("second.1")).status.code(), Some(1));
    let mode = fs::metadata(key("first.1")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "a key is root's alone");
}

#[test]
fn openssl_alone_can_check_a_record() {
    let (_pod, _outcome, record, key) = kept();
    let kept: Value = serde_json::from_slice(&fs::read(key).unwrap()).unwrap();
    let hex = format!("hexkey:{}", kept["key_hex"].as_str().unwrap());
    let script = "head -c -0 \"$1\" | cut -d. -f1,2 | tr -d '\\n' | \
                  openssl dgst -sha256 -mac HMAC -macopt \"$2\" -binary | openssl base64 -A | tr '+/' '-_' | tr -d '='";
    let made = Command::new("sh").args(["-c", script, "sh"]).arg(&record).arg(&hex).output().unwrap();
    let text = fs::read_to_string(&record).unwrap();
    let signature = text.trim().rsplit('.').next().unwrap();
    assert_eq!(String::from_utf8_lossy(&made.stdout), signature, "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn without_keep_keys_no_key_stays() {
    let pod = Pod::start();
    pod.job("nothing-kept", &probe(&["exit", "0"])).is_good();
    let found = Command::new("grep").args(["-rlE", "\"key(_hex)?\""]).arg(pod.private()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn two_pods_share_a_spool_and_run_each_job_once() {
    let scratch = Scratch::new();
    let spool = scratch.path().join("spool");
    let pods = [Options::new().spool(&spool).start(), Options::new().spool(&spool).start()];
    pods.iter().for_each(Pod::serves);
    let names: Vec<String> = (0..8).map(|n| format!("job-{n}")).collect();
    for name in &names {
        put_into(&spool, name, probe(&["sleep", "0.2"]).to_string().as_bytes(), &[]);
    }
    let mut by: HashMap<&str, usize> = HashMap::new();
    for name in &names {
        let outcome = eventually(name, JOB_WITHIN, || look_into(&spool, name));
        outcome.is_good();
        // What a pilot says arrives through the engine, a little after its deeds.
        let ran = eventually(&format!("somebody says that it ran {name}"), JOB_WITHIN, || {
            let ran: Vec<&Pod> = pods.iter().filter(|p| p.said().contains(&format!("\"job\":\"{name}.1\""))).collect();
            (!ran.is_empty()).then_some(ran)
        });
        assert_eq!(ran.len(), 1, "{name} was run by {} pilots", ran.len());
        *by.entry(ran[0].name.as_str()).or_default() += 1;
    }
    assert_eq!(by.len(), 2, "one pilot had all the jobs: {by:?}");
    assert_eq!(fs::read_dir(spool.join("done")).unwrap().count(), names.len());
}

#[test]
fn a_bad_job_file_is_held_with_its_reason() {
    let pod = Pod::start();
    let cases: [(&str, &[u8], &str); 7] = [
        ("empty", b"", "job.json"),
        ("no-json", b"{image", "job.json"),
        ("no-image", br#"{"argv":["/probe"]}"#, "image"),
        ("typo", br#"{"image":"localhost/latebind/noshell:1","argv":["/probe"],"timeuot_s":1}"#, "timeuot_s"),
        ("no-program", br#"{"image":"localhost/latebind/noshell:1","argv":[""]}"#, "argv"),
        ("not-utf8", b"{\"image\":\"\xff\",\"argv\":[\"x\"]}", "job.json"),
        (
            "elsewhere",
            br#"{"image":"localhost/latebind/noshell:1","argv":["/probe"],"stdin":"../../../etc/passwd"}"#,
            "beside",
        ),
    ];
    for (name, text, _) in cases {
        put_into(&pod.spool, name, text, &[]);
    }
    fs::create_dir(pod.spool.join("new/nothing-in-it")).unwrap();
    for (name, _, why) in cases {
        let outcome = pod.result(name);
        outcome.is("hold", "InvalidJob");
        assert_eq!(outcome.place, "held");
        assert!(outcome.report.message.contains(why), "{name}: {}", outcome.report.message);
    }
    pod.result("nothing-in-it").is("hold", "InvalidJob");
    pod.job("good", &probe(&["hello"])).is_good();
}

#[test]
fn fields_that_glue_would_refuse_are_held_before_they_reach_it() {
    let pod = Pod::start();
    let good = probe(&["hello"]);
    for (n, (field, value)) in [
        ("timeout_s", json!(-1)),
        ("kill_s", json!(-1)),
        ("grace_s", json!(1e30)),
        ("umask", json!("abc")),
        ("cwd", json!("relative")),
        ("rlimits", json!({"no_such": {"soft": 1, "hard": 1}})),
        ("env", json!({"A=B": "c"})),
    ]
    .into_iter()
    .enumerate()
    {
        let outcome = pod.job(&format!("field-{n}"), &with(good.clone(), field, value));
        outcome.is("hold", "InvalidJob");
        assert!(outcome.report.message.contains(field), "{field}: {}", outcome.report.message);
    }
}

/// The results of two jobs, each of which waits until the other one runs too.
fn run_at_once(pod: &Pod, script: &str) -> [Outcome; 2] {
    let names = ["left", "right"];
    names.iter().for_each(|name| pod.put(name, &shell(script)));
    // A job is running from its handing over on; glue names its main process once the program runs.
    for slot in [0, 1] {
        eventually(&format!("slot {slot} has a main process"), Duration::from_secs(60), || {
            let status: Value = serde_json::from_slice(&fs::read(pod.ctl(slot).join("status.json")).ok()?).ok()?;
            status["main_pid"].as_i64()
        });
    }
    [0, 1].into_iter().for_each(|slot| pod.go(slot));
    names.map(|name| pod.result(name))
}

#[test]
fn two_slots_run_two_jobs_at_once() {
    let pod = Options::new().slots(2).start();
    pod.serves();
    let outcomes = run_at_once(&pod, WAIT_FOR_GO);
    let mut slots: Vec<_> = outcomes.iter().map(|o| o.is_good().report.slot).collect();
    slots.sort();
    assert_eq!(slots, [Some(0), Some(1)]);
    let moments: Vec<_> = outcomes.iter().map(|o| o.report.record.clone().unwrap()).collect();
    assert!(moments[0].started_at.as_ref().unwrap() < &moments[1].ended_at);
    assert!(moments[1].started_at.as_ref().unwrap() < &moments[0].ended_at);
}

#[test]
fn a_slots_payload_has_numbers_of_its_own() {
    let pod = Options::new().slots(2).start();
    pod.serves();
    let outcomes = run_at_once(&pod, &format!("id -u; id -g; {WAIT_FOR_GO}; ls /shared/slot"));
    let mut seen: Vec<String> = outcomes.iter().map(|outcome| outcome.is_good().text("stdout")).collect();
    seen.sort();
    let wanted = [0, 1].map(|slot| format!("{0}\n{0}\n{slot}\n", pod.uid(slot)));
    assert!(wanted[0] != wanted[1]);
    assert_eq!(seen, wanted);
}

#[test]
fn the_table_of_results_names_each_job_and_says_what_was_checked() {
    let pod = Options::new().pilot(&["--keep-keys", KEYS]).start();
    pod.job("fine", &probe(&["hello"])).is_good();
    pod.job("failed", &probe(&["exit", "3"])).is("final", "Error");
    pod.job("not-run", &json!({"image": probe(&[])["image"], "argv": ["/no/such"]})).is("hold", "CommandNotFound");
    pod.job("no-image", &json!({"image": "localhost/latebind/never-built:1", "argv": ["x"]}));
    let table = |keys: &Path| {
        let table = Command::new(program("watcher")).arg("results").arg(&pod.spool).arg("--keys").arg(keys).output();
        String::from_utf8_lossy(&table.unwrap().stdout).into_owned()
    };
    let row = |text: &str, name: &str| {
        text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{text}")).to_owned()
    };
    let text = table(&pod.private().join("keys"));
    assert!(row(&text, "fine").contains("exited 0") && row(&text, "fine").ends_with("yes"), "{text}");
    assert!(row(&text, "failed").contains("exited 3") && row(&text, "failed").contains("final"), "{text}");
    assert!(row(&text, "not-run").contains("hold") && row(&text, "not-run").ends_with("yes"), "{text}");
    assert!(row(&text, "no-image").contains("hold") && row(&text, "no-image").ends_with("no record"), "{text}");
    let without = table(Path::new("/nowhere"));
    assert!(row(&without, "fine").ends_with("not checked"), "{without}");
    let inside = podman(&["exec", &pod.container("pilot"), "watcher", "results", "/spool"]);
    let inside = String::from_utf8_lossy(&inside.stdout);
    assert!(row(&inside, "fine").ends_with("yes"), "the pilot's own keys are not found: {inside}");
}

/// With one slot: a delivery needs none, and the next job may take days.
#[test]
fn a_result_that_was_not_delivered_is_delivered_while_the_next_job_runs() {
    let pod = Pod::start();
    pod.put("first", &shell(WAIT_FOR_GO));
    pod.runs("first.1", 0);
    let claims = fs::read_dir(pod.spool.join("claimed")).unwrap().next().unwrap().unwrap().path();
    let in_the_way = claims.join("first/result/report.json");
    fs::create_dir_all(in_the_way.join("something")).unwrap();
    pod.go(0);
    pod.says("not delivered yet");
    pod.put("second", &shell(WAIT_FOR_GO));
    pod.runs("second.1", 0);
    fs::remove_dir_all(&in_the_way).unwrap();
    pod.result("first").is_good();
    assert_eq!(pod.phase("second.1").as_deref(), Some("running"));
    pod.go(0);
    pod.result("second").is_good();
}

#[test]
fn an_idle_pilot_ends_its_pod() {
    let mut pod = Options::new().pilot(&["--idle-exit", "1"]).start();
    pod.job("only", &probe(&["hello"])).is_good();
    assert_eq!(pod.end(Duration::from_secs(30)).code(), Some(0));
    assert_eq!(latebind_tests::pod::traces(&pod.name), Vec::<String>::new());
}

/// With a code that says so nobody takes a pilot that was stopped for one that has no more work.
#[test]
fn a_pilot_that_is_stopped_ends_with_the_code_it_was_given() {
    let mut pod = Options::new().pilot(&["--stop-code", "143"]).start();
    pod.job("only", &probe(&["hello"])).is_good();
    pod.signal(Signal::SIGTERM);
    assert_eq!(pod.end(Duration::from_secs(30)).code(), Some(143));
}

#[test]
fn a_result_is_on_disk_before_its_job_is_done() {
    let (pod, scratch) = (Pod::start(), Scratch::new());
    pod.serves();
    let log = scratch.path().join("calls");
    let tracer = Tracer::attach(pod.main_process("pilot"), &["-e", "trace=syncfs,/^rename"], &log).unwrap();
    pod.job("kept", &with(shell("echo made >out"), "outputs", json!(["out"]))).is_good();
    tracer.detach().unwrap();
    let calls = fs::read_to_string(&log).unwrap();
    let at = |what: &str| calls.find(what).unwrap_or_else(|| panic!("no {what} in {calls}"));
    assert!(at("syncfs(") < at("/done/kept"), "{calls}");
}
