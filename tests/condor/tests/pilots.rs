//! Pilots of their own: two slots at once, GPUs, volumes that are full or changed by others, and how a pilot ends.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use latebind_condor_tests::{JOB_WITHIN, Job, Pool, podman, status};
use latebind_tests::pod::eventually;
use latebind_tests::shortage::NoMoreFiles;

/// How long a pilot may take to end that has nothing left to do.
const PILOT_WITHIN: Duration = Duration::from_secs(300);

fn uid(job: &Job<'_>) -> String {
    job.text("out").lines().next().unwrap_or_default().to_owned()
}

#[test]
fn two_slots_do_not_harm_each_other() {
    let pool = Pool::own(2, &[]);
    let lines = "request_memory = 50MB\n";
    let script = "id -u; echo > begun; trap '' TERM; (trap '' TERM; sleep 1000) & sleep 25; echo whole";
    let (one, other) = (pool.shell(script, lines), pool.shell(script, lines));
    for job in [&one, &other] {
        job.comes_to(status::RUNNING);
    }
    for slot in [0, 1] {
        one.sandbox_has(slot, "begun");
    }
    // A job that has to be killed, with the same loop as its neighbour; then one that kills and stops all that it can.
    one.tool(&["condor_rm"]);
    one.comes_to(status::REMOVED);
    let hostile = pool.shell("/probe kill-loop 4 --i-am-in-a-container; sleep 2", lines);
    hostile.until("started", JOB_WITHIN, |ad| ad["NumJobStarts"].as_i64() >= Some(1));
    other.ends_with(0);
    assert!(other.text("out").ends_with("whole\n"));
    assert!([0, 1].map(|slot| pool.uid(slot).to_string()).contains(&uid(&other)), "{}", other.text("out"));
    // It may have ended or killed itself, or have stopped itself with all that is its own; removed it can be in any
    // case.
    hostile.tool(&["condor_rm"]);
    for slot in [0, 1] {
        pool.nothing_is_left(slot);
    }
    // Drained in the middle of a job, the pilot gives the job back and ends well.
    let last = pool.shell("echo > begun; sleep 1000", lines);
    last.comes_to(status::RUNNING);
    let names = pool.ask("pool", "alice", &["condor_status", "-af", "Name"]);
    pool.ask("pool", "root", &["condor_drain", "-exit-on-completion", names.lines().next().unwrap_or_default()]);
    assert_eq!(pool.exit_code(PILOT_WITHIN), "0");
    let log = last.text("log");
    assert!(log.contains("Job was evicted") && !log.contains("Job terminated"), "{log}");
}

#[test]
fn a_pilot_without_work_ends_with_0() {
    // It takes no job any more, and so never has one.
    let pool = Pool::own(1, &["ACCEPT_IDLE_MINUTES=1", "ACCEPT_JOBS_FOR_HOURS=0"]);
    let job = pool.shell("echo too late", "");
    assert_eq!(pool.exit_code(PILOT_WITHIN), "0");
    assert!(pool.said().contains("the pilot ends"));
    let log = job.text("log");
    assert!(log.contains("Job submitted") && !log.contains("Job executing"), "{log}");
}

#[test]
fn gpus_are_looked_for_in_the_payload_container() {
    // A stand-in: HTCondor's own discovery, told to simulate; and a word about where it ran.
    let discovery = "LATEBIND_GPU_DISCOVERY=/usr/libexec/condor/condor_gpu_discovery -properties -simulate:4,2; \
                     echo \"LookedForBy=\\\"$(id -u) $(readlink /proc/self/ns/mnt)\\\"\"; echo 'no attribute'";
    let image = "LATEBIND_GPU_IMAGE=localhost/latebind/htcondor-pilot:1";
    let start = "GLIDEIN_Start_Extra=TARGET.IsWelcome =?= True";
    let pool = Pool::own(1, &["LATEBIND_GPUS=2", image, discovery, "TOKEN", start]);
    let said = pool.said();
    assert_eq!(said.matches("latebind-htcondor: GPUs: DetectedGPUs").count(), 1, "{said}");
    let ad = |name: &str| pool.ask("pool", "alice", &["condor_status", "-af", name]).trim().to_owned();
    assert_eq!(ad("TotalGPUs"), "2");
    let found = pool.in_pilot("cat /pilot/gpus; readlink /proc/self/ns/mnt");
    let pilots = found.lines().last().unwrap_or_default();
    assert!(
        found.contains(&format!("LookedForBy=\"{} mnt:", pool.uid(0))) && found.matches(pilots).count() == 1,
        "{found}"
    );
    assert!(!found.contains("no attribute"), "{found}");
    // Only a job that asks for it, and that meets the operator's further condition, is taken.
    let unwelcome = pool.shell("echo never", "request_gpus = 1\n");
    let script = "echo \"$CUDA_VISIBLE_DEVICES|$_CONDOR_AssignedGPUs\"";
    let job = pool.shell(script, "request_gpus = 2\nrequire_gpus = Capability >= 8.0\n+IsWelcome = True\n");
    job.ends_with(0);
    let out = job.text("out");
    let (devices, assigned) = out.trim().split_once('|').unwrap_or_default();
    assert_eq!(devices.matches("GPU-").count(), 2, "{out}");
    assert_eq!(assigned.matches("GPU-").count(), 2, "{out}");
    assert_eq!(unwelcome.ad()["JobStatus"], status::IDLE);
    // Retired by the pool's administrator in the middle of a job: that one ends first, and the pilot then with 0.
    let last = pool.shell("echo > begun; sleep 15; echo whole", "+IsWelcome = True\n");
    last.sandbox_has(0, "begun");
    pool.ask("pool", "root", &["condor_off", "-peaceful", "-startd", "-constraint", "GLIDEIN_Site == \"Test\""]);
    last.ends_with(0);
    assert_eq!(last.text("out"), "whole\n");
    assert_eq!(pool.exit_code(PILOT_WITHIN), "0");
}

#[test]
fn the_end_of_a_pod_is_no_jobs_result() {
    let pool = Pool::own(1, &["LATEBIND_STOP_CODE=143"]);
    // Would end well when told to.
    let job = pool.shell("trap 'echo told; exit 0' TERM; echo > begun; while :; do sleep 0.2; done", "");
    job.sandbox_has(0, "begun");
    // As the kubelet does it: both main processes at once.
    pool.in_pilot("kill -TERM $(pgrep -f '^/shared/bin/glue run') $(pgrep -o -f latebind-htcondor)");
    assert_eq!(pool.exit_code(PILOT_WITHIN), "143");
    let log = job.text("log");
    assert!(log.contains("Job was evicted") && !log.contains("Job terminated"), "{log}");
}

#[test]
fn the_container_while_its_volume_is_full() {
    let pool = Pool::of_host("--restarts 0 --data-size 64m", 1, &[]);
    let job = pool.begun();
    let full = NoMoreFiles::new(&pool.pod().join("slot-0/data"));
    let killed = podman(&["kill", &pool.payload(0)]).output().unwrap();
    assert!(killed.status.success(), "{killed:?}");
    eventually("the watcher has noticed", JOB_WITHIN, || pool.said().contains("Lost").then_some(()));
    // The starter is told of a loss by a file, for which there is no room. It would take the job for done now.
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        full.also_now();
        std::thread::sleep(Duration::from_millis(20));
    }
    let ad = job.ad();
    let (now, starts) = (ad["JobStatus"].as_i64(), ad["NumJobStarts"].as_i64());
    assert_eq!((now, starts), (Some(status::RUNNING), Some(1)), "{}\n{}", job.text("log"), pool.logs());
    drop(full);
    job.runs_again("Lost");
}

#[test]
fn the_pilot_while_its_directory_leads_elsewhere() {
    let pool = Pool::of_host("--restarts 3", 1, &[]);
    pool.shell("echo first", "").ends_with(0);
    // As the root of an image that shadows our mounts could have left it.
    let execute = pool.pod().join("slot-0/data/execute");
    fs::remove_dir_all(&execute).unwrap();
    symlink("/etc", &execute).unwrap();
    let killed = podman(&["kill", &pool.container("pilot")]).output().unwrap();
    assert!(killed.status.success(), "{killed:?}");
    pool.shell("echo second", "").ends_with(0);
    assert_eq!(pool.in_pilot("stat -c %U:%a /etc"), "root:755\n");
    assert!(fs::symlink_metadata(&execute).unwrap().is_dir());
}

/// Lets a job of this slot go on that waits for the file `go`, and has made `begun`.
fn go(pool: &Pool, slot: u32) {
    let sandboxes = pool.pod().join(format!("slot-{slot}/data/execute"));
    // HTCondor 25 has the job's files one directory deeper.
    let dirs = fs::read_dir(sandboxes).unwrap().flatten().flat_map(|dir| [dir.path(), dir.path().join("scratch")]);
    let dir = dirs.into_iter().find(|dir| dir.join("begun").exists()).unwrap();
    fs::write(dir.join("go"), "").unwrap();
}

#[test]
fn each_slot_has_its_own_size_and_gets_the_jobs_that_fit() {
    let pool = Pool::of_sizes(&["cpus=0.5,memory=256m", "cpus=2,memory=768m"]);
    let ads = ["condor_status", "-sort", "SlotID", "-af", "SlotID", "Cpus", "Memory", "LatebindMemoryMB"];
    assert_eq!(pool.ask("pool", "alice", &ads), "1 1 243 256\n2 2 729 768\n");
    let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; id -u";
    let waits = format!("{limit}; echo > begun; until [ -e go ]; do sleep 0.1; done");
    let large = pool.shell(&waits, "request_memory = 400MB\n");
    large.sandbox_has(1, "begun");
    // What needs the larger slot waits for it, and what does not has the smaller one meanwhile.
    let other = pool.shell(limit, "request_memory = 100MB\nrequest_cpus = 2\n");
    let small = pool.shell(limit, "request_memory = 100MB\n");
    small.ends_with(0);
    assert_eq!(small.text("out"), format!("{}\n{}\n", 256 << 20, pool.uid(0)));
    assert_eq!(other.ad()["JobStatus"], status::IDLE);
    go(&pool, 1);
    for job in [&large, &other] {
        job.ends_with(0);
        assert_eq!(job.text("out"), format!("{}\n{}\n", 768 << 20, pool.uid(1)));
    }
}

/// A job that is a pilot itself: a script in an image with a shell and the watcher's program, its client.
fn pilot_job<'a>(pool: &'a Pool, script: &str, lines: &str) -> Job<'a> {
    let all = format!(
        "universe = container\ncontainer_image = docker://localhost/latebind/pilot:1\nexecutable = job.sh\n\
         +LatebindPilot = True\n{lines}"
    );
    let run = "run() { watcher run --socket /run/latebind/clients.sock \"$@\"; }";
    pool.submit(&all, &[("job.sh", &format!("#!/bin/sh\n{run}\n{script}\n"))])
}

#[test]
fn a_job_that_labels_itself_a_pilot_runs_its_own_jobs_in_the_payload() {
    let pool = Pool::with_pilot_jobs();
    let script = "id -u; for image in busybox noshell; do run localhost/latebind/$image:1 -- /probe hello >$image; done
        run --report report localhost/latebind/busybox:1 -- sh -c 'id -u; exit 3'; echo $?
        run localhost/latebind/no-such-image:1 -- true; echo $?
        echo > begun; until [ -e go ]; do sleep 0.1; done; run localhost/latebind/busybox:1 -- echo last";
    let outer = pilot_job(&pool, script, "");
    outer.sandbox_has(1, "begun");
    // What is no pilot-job waits for its own slot meanwhile, in its queue and not in the pilot's.
    let other = pool.shell("id -u; echo other", "");
    // A negotiator that had not heard yet of the pilot-job's start gives it the slot, where its start is refused.
    pool.has_negotiated();
    eventually("it waits", JOB_WITHIN, || (other.ad()["JobStatus"] == status::IDLE).then_some(()));
    assert_eq!(other.ad()["NumJobStarts"].as_i64().unwrap_or(0), 0);
    go(&pool, 1);
    outer.ends_with(0);
    // The missing image is a hold of that job alone.
    assert_eq!(outer.text("out"), format!("{}\n{}\n3\n125\nlast\n", pool.uid(1), pool.uid(0)), "{}", outer.text("err"));
    assert!(
        outer.text("busybox").contains("from a static program") && outer.text("noshell").contains("static program")
    );
    let report: serde_json::Value = serde_json::from_str(&outer.text("report")).unwrap();
    assert_eq!((&report["verified"], &report["slot"], &report["exit_code"]), (&true.into(), &0.into(), &3.into()));
    other.ends_with(0);
    assert_eq!(other.text("out"), format!("{}\nother\n", pool.uid(0)));
    for slot in [0, 1] {
        pool.nothing_is_left(slot);
    }
    // Removed while its job runs, it leaves nothing of it.
    let removed = pilot_job(&pool, "run localhost/latebind/busybox:1 -- sh -c 'trap \"\" TERM; sleep 1000' & wait", "");
    eventually("its job runs", JOB_WITHIN, || (!pool.processes(0).is_empty()).then_some(()));
    removed.tool(&["condor_rm"]);
    removed.comes_to(status::REMOVED);
    for slot in [0, 1] {
        pool.nothing_is_left(slot);
    }
}

#[test]
fn a_pilot_job_and_a_job_that_are_matched_at_once_run_one_after_the_other() {
    let pool = Pool::with_pilot_jobs();
    let span = "now() { read -r up idle </proc/uptime; echo $up; }; now; sleep 4; now";
    let jobs = [pilot_job(&pool, span, "hold = True\n"), pool.shell(span, "hold = True\n")];
    pool.ask("pool", "alice", &["condor_release", "alice"]);
    let mut spans = jobs.map(|job| {
        job.ends_with(0);
        let text = job.text("out");
        text.lines().map(|line| line.parse::<f64>().unwrap()).collect::<Vec<_>>()
    });
    spans.sort_by(|a, b| a[0].total_cmp(&b[0]));
    assert!(spans[0][1] < spans[1][0], "{spans:?}");
    assert_eq!(pool.dead_daemons(), "");
}

#[test]
fn a_condition_that_turns_false_as_the_slot_is_claimed_costs_no_other_job() {
    let pool = Pool::own(2, &["GLIDEIN_Start_Extra=TARGET.IsWelcome =?= True || State =!= \"Claimed\""]);
    let other = pool.shell("echo > begun; until [ -e go ]; do sleep 0.1; done", "+IsWelcome = True\n");
    eventually("it has begun", JOB_WITHIN, || (other.ad()["JobStatus"] == status::RUNNING).then_some(()));
    let job = pool.shell("echo never", "");
    let refused = "grep -q 'Requirements check failed' /pilot/log/StartLog && echo yes || :";
    eventually("its start is refused", JOB_WITHIN, || (pool.in_pilot(refused) == "yes\n").then_some(()));
    assert_eq!(pool.dead_daemons(), "");
    let slot = u32::from(!pool.pod().join("slot-0/data/execute").read_dir().unwrap().any(|_| true));
    other.sandbox_has(slot, "begun");
    go(&pool, slot);
    other.ends_with(0);
    assert_eq!((other.ad()["NumJobStarts"].as_i64(), job.text("out")), (Some(1), String::new()));
}
