//! Slots of different sizes in one pod: which job runs in which one, what it has there, and that nothing of one reaches
//! another.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use latebind_tests::pod::{DEBIAN, JOB_WITHIN, Options, Outcome, Pod, eventually, shell, with};
use serde_json::{Value, json};

/// Memory, in MiB, and processors of the four slots: neither goes up from slot to slot.
const SIZES: [(u64, &str); 4] = [(160, "2"), (64, "0.5"), (256, "0.5"), (96, "1")];

/// What a job reads of its own limits: bytes of memory, and microseconds of processor time in each 100 ms. The two
/// hierarchies of control groups name them differently.
const LIMITS: &str = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes 2>/dev/null; \
                      cat cpu.max cpu/cpu.cfs_quota_us 2>/dev/null | cut -d' ' -f1; cd - >/dev/null";

fn start() -> Pod {
    let slots = SIZES.map(|(memory, cpus)| ["--slot".to_owned(), format!("cpus={cpus},memory={memory}m")]);
    let words: Vec<&str> = slots.iter().flatten().map(String::as_str).collect();
    Options::without_slots().host(&words).start()
}

/// A job that needs this.
fn needs(job: Value, requests: Value) -> Value {
    with(job, "requests", requests)
}

fn memory(mib: u64) -> Value {
    json!({"memory": format!("{mib}M")})
}

/// Puts a job into a spool as a user does.
fn put_as(pod: &Pod, owner: u32, name: &str, job: &Value) {
    let dir = pod.spool.join(format!(".{name}"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("job.json"), job.to_string()).unwrap();
    for path in [&dir, &dir.join("job.json")] {
        chown(path, Some(owner), Some(owner)).unwrap();
    }
    fs::rename(dir, pod.spool.join("new").join(name)).unwrap();
}

/// What [`LIMITS`] says in a slot.
fn limits_of(slot: u32) -> String {
    let (mib, cpus) = SIZES[slot as usize];
    format!("{}\n{}\n", mib << 20, cpus.parse::<f64>().unwrap() * 100_000.0)
}

fn slot_of(outcome: &Outcome) -> u32 {
    outcome.report.slot.unwrap_or_else(|| panic!("no slot in {:#?}", outcome.report))
}

#[test]
fn each_job_gets_the_smallest_slot_that_is_large_enough() {
    let pod = start();
    for (name, requests, slot) in [
        ("any", json!({}), 1),
        ("memory", memory(90), 3),
        ("much-memory", memory(256), 2),
        ("processors", json!({"cpus": 1.5}), 0),
        ("both", json!({"cpus": 1, "memory": "100M"}), 0),
        ("a-little", json!({"cpus": 0.5, "memory": "64M"}), 1),
    ] {
        let outcome = pod.job(name, &needs(shell(LIMITS), requests));
        assert_eq!(slot_of(outcome.is_good()), slot, "{name}");
        assert_eq!(outcome.text("stdout"), limits_of(slot), "{name}");
        all_are_free(&pod);
    }
}

/// A slot is cleaned after its result is out, and only then free again.
fn all_are_free(pod: &Pod) {
    eventually("all slots are free", JOB_WITHIN, || {
        let top = pod.top()?;
        top["slots"].as_array()?.iter().all(|row| row["job"].is_null()).then_some(())
    });
}

/// The number alone: no device is here.
#[test]
fn gpus_are_for_the_jobs_that_request_them() {
    let gpus = ["--pilot-env", "LATEBIND_GPUS_0=2"];
    let slots = ["--slot", "memory=64m", "--slot", "memory=128m"];
    let pod = Options::without_slots().host(&[slots.as_slice(), &gpus].concat()).start();
    pod.put("0-too-many", &needs(shell("true"), json!({"gpus": 3})));
    for (name, requests, slot) in [
        // The other one is smaller, but for its GPUs.
        ("none", json!({}), 1),
        ("one", json!({"gpus": 1}), 0),
        ("two", json!({"gpus": 2, "memory": "64M"}), 0),
        ("zero", json!({"gpus": 0}), 1),
    ] {
        let outcome = pod.job(name, &needs(shell("true"), requests));
        assert_eq!(slot_of(outcome.is_good()), slot, "{name}");
        all_are_free(&pod);
    }
    assert!(pod.spool.join("new/0-too-many/job.json").exists(), "another pilot may have a slot for it");
}

/// Tries whatever one slot's payload could do to another's, and prints what worked, behind the number of other payloads
/// that it has seen. UIDS are those of all slots.
const ATTACK: &str = r#"
own=$(id -u) seen=
for p in /proc/[0-9]*; do
    u=$(stat -c %u $p 2>/dev/null) || continue
    [ "$u" != "$own" ] || continue
    case " UIDS " in *" $u "*) ;; *) continue ;; esac
    seen="$seen$u\n"
    [ -z "$(head -c 1 $p/environ 2>/dev/null)" ] || echo "environment of $u"
    ls $p/root/ >/dev/null 2>&1 && echo "root directory of $u"
    ls $p/cwd/ >/dev/null 2>&1 && echo "directory of $u"
    ls $p/fd/ >/dev/null 2>&1 && echo "descriptors of $u"
    for signal in 0 STOP KILL; do kill -$signal ${p#/proc/} 2>/dev/null && echo "signal $signal to $u"; done
done
printf "$seen" | sort -u | wc -l
ls /shared/slot | wc -l
find / -xdev -name secret -not -path "/shared/slot/SLOT/*" 2>/dev/null
"#;

#[test]
fn four_slots_serve_three_owners_and_nothing_of_one_reaches_another() {
    let pod = start();
    pod.serves();
    let uids: Vec<String> = (0..4).map(|slot| pod.uid(slot).to_string()).collect();
    // One job for each slot, of three owners and with two images: they run all at once.
    let jobs = [("large", 2, 256, 7001), ("middle", 0, 160, 7002), ("small", 3, 96, 7001), ("least", 1, 10, 7003)];
    for (name, slot, mib, owner) in jobs {
        let attack = ATTACK.replace("UIDS", &uids.join(" ")).replace("SLOT", &slot.to_string());
        let script = format!(
            "{LIMITS}; echo {name} >secret; touch up; while [ ! -e go ]; do sleep 0.02; done; {attack}\n\
             touch attacked; while [ ! -e end ]; do sleep 0.02; done; cat secret"
        );
        let job = match slot {
            2 => with(shell(&script), "image", json!(DEBIAN)),
            _ => shell(&script),
        };
        put_as(&pod, owner, name, &needs(job, memory(mib)));
    }
    let all_have = |file: &str| {
        eventually(&format!("{file} in all slots\n{}", pod.said()), JOB_WITHIN, || {
            (0..4).all(|slot| pod.work(slot).join(file).exists()).then_some(())
        });
    };
    let give_all = |file: &str| (0..4).for_each(|slot| fs::write(pod.work(slot).join(file), "").unwrap());
    all_have("up");
    // Nobody's turn: the slots are taken, and this one is larger than each.
    put_as(&pod, 7002, "too-large", &needs(shell("true"), memory(257)));
    give_all("go");
    all_have("attacked");
    give_all("end");
    for (name, slot, ..) in jobs {
        let outcome = pod.result(name);
        assert_eq!(slot_of(outcome.is_good()), slot, "{name}");
        assert_eq!(outcome.text("stdout"), format!("{}3\n1\n{name}\n", limits_of(slot)), "{name}");
    }
    // More jobs than slots, of all sizes and owners: each in a slot that is large enough.
    let mixed: Vec<_> =
        (0..12).map(|n| (format!("mixed-{n:02}"), [10, 90, 150, 200][n % 4], 7001 + n as u32 % 3)).collect();
    for (name, mib, owner) in &mixed {
        put_as(&pod, *owner, name, &needs(shell(&format!("{LIMITS}; id -u; ls -A")), memory(*mib)));
    }
    for (name, mib, _) in &mixed {
        let outcome = pod.result(name);
        let slot = slot_of(outcome.is_good());
        assert!(SIZES[slot as usize].0 >= *mib, "{name} in slot {slot}");
        assert_eq!(outcome.text("stdout"), format!("{}{}\n", limits_of(slot), uids[slot as usize]), "{name}");
    }
    assert!(pod.spool.join("new/too-large/job.json").exists(), "another pilot may have a slot for it");
}

#[test]
fn a_job_too_large_for_one_pilot_is_run_by_another() {
    let scratch = latebind_tests::pod::Scratch::new();
    let pod_of = |words: &[&str]| {
        Options::without_slots().spool(scratch.path()).host(words).pilot(&["--idle-exit", "1"]).start()
    };
    let mut small = pod_of(&["--slot", "memory=64m"]);
    small.put("a-large", &needs(shell(LIMITS), memory(128)));
    small.put("b-small", &needs(shell(LIMITS), memory(64)));
    assert_eq!(small.result("b-small").is_good().text("stdout").lines().next(), Some("67108864"));
    // It has nothing to do, though there is a job.
    assert_eq!(small.end(Duration::from_secs(60)).code(), Some(0), "{}", small.said());
    assert_eq!(names(&scratch.path().join("new")), ["a-large"]);
    let large = pod_of(&["--slot", "memory=64m", "--slot", "memory=200m"]);
    let outcome = large.result("a-large");
    assert_eq!(slot_of(outcome.is_good()), 1);
    assert_eq!(outcome.text("stdout").lines().next(), Some("209715200"));
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
