//! latebind-host itself: the allow list, restarts of the pilot, exit codes, names, limits, and what `rm`, `ps` and
//! `--keep` do.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use latebind_tests::pod::{
    BUSYBOX, Options, Pod, Ran, Running, Scratch, Signal, eventually, host, kill, look_into, podman, probe, shell,
    state, traces, unique, with,
};
use latebind_tests::slot::WAIT_FOR_GO;
use latebind_tests::waiting::deadline;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);

fn to_its_end(arguments: &[&str]) -> Ran {
    Running::start(&mut host(arguments), Vec::new()).finish(LIMIT)
}

/// A pod without a spool, whose pilot is a watcher with these arguments.
fn pod_of(name: &str, options: &[&str], pilot: &[&str]) -> Ran {
    let mut arguments = vec!["pod", "--name", name];
    arguments.extend(options);
    arguments.push("--");
    arguments.extend(pilot);
    to_its_end(&arguments)
}

#[test]
fn only_images_of_the_allow_list_are_bound() {
    let pod = Options::new().host(&["--pull", "never", "--allow", "registry.invalid/science/*"]).start();
    let job = |image: &str| json!({"image": image, "argv": ["x"]});
    // Allowed, so the next thing that is wrong with it.
    pod.job("allowed", &job("registry.invalid/science/tool:1")).is("hold", "ImageNotFound");
    for (n, image) in [
        "registry.invalid/other/tool:1",
        "registry.invalid/sciencefiction/tool:1",
        "registry.invalid:5000/science/tool:1",
        "evil.invalid/registry.invalid/science/tool:1",
        "localhost:5000/x:1",
    ]
    .into_iter()
    .enumerate()
    {
        pod.job(&format!("refused-{n}"), &job(image)).is("hold", "ImageNotAllowed");
    }
    pod.job("local", &probe(&["hello"])).is_good();
}

#[test]
fn a_run_may_bind_its_own_image_and_no_other() {
    // The socket is the pilot's; what it may ask for is fixed when the pod is made.
    let name = unique("only");
    let mut child = host(&["run", "--name", &name, BUSYBOX, "--", "sleep", "60"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = state().join("pods").join(&name).join("slot-0/ctl/status.json");
    eventually("the job runs", LIMIT, || fs::read_to_string(&status).ok().filter(|t| t.contains("main_pid")));
    let socket = state().join("pods").join(&name).join("bind/bind.sock");
    let ask = |line: &str| {
        use std::io::{Read, Write};
        // A socket's path has at most 107 bytes; a link's has not.
        let scratch = Scratch::new();
        let short = scratch.path().join("s");
        std::os::unix::fs::symlink(&socket, &short).unwrap();
        let mut stream = std::os::unix::net::UnixStream::connect(short).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()
    };
    let refused = ask(r#"{"version":1,"verb":"bind","slot":0,"image":"localhost/latebind/noshell:1"}"#);
    let info = ask(r#"{"version":1,"verb":"info"}"#);
    let unknown = ask(r#"{"version":1,"verb":"bind","slot":0,"image":"x","privileged":true}"#);
    kill(child.id() as i32, Signal::SIGTERM);
    kill(child.id() as i32, Signal::SIGINT);
    eventually("the end", LIMIT, || child.try_wait().unwrap());
    assert_eq!((&refused["ok"], &refused["reason"]), (&json!(false), &json!("ImageNotAllowed")), "{refused}");
    assert_eq!((&info["name"], &info["slots"]), (&json!(name), &json!(1)), "{info}");
    assert_eq!(unknown["reason"], "BadRequest", "{unknown}");
}

#[test]
fn a_pilot_that_fails_is_started_again_and_its_code_passed_on() {
    let name = unique("fails");
    let ran = pod_of(&name, &["--restarts", "2"], &["no-such-verb"]);
    let starts = ran.err().matches("is started again").count();
    assert_eq!(starts, 2, "{}", ran.err());
    assert_eq!(ran.code, Some(125), "{}", ran.err());
    assert_eq!(ran.err().matches("unrecognized subcommand").count(), 3, "{}", ran.err());
    assert_eq!(traces(&name), Vec::<String>::new());
    let once = pod_of(&unique("fails"), &["--restarts", "0"], &["no-such-verb"]);
    assert_eq!((once.code, once.err().matches("is started again").count()), (Some(125), 0));
}

#[test]
fn a_pilot_that_ends_well_is_not_started_again() {
    let ran = pod_of(&unique("well"), &[], &["--version"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err());
    assert_eq!(ran.out().matches("watcher").count(), 1, "{}", ran.out());
}

#[test]
fn a_pilot_that_is_killed_is_started_again() {
    let pod = Pod::start();
    pod.serves();
    let first = pod.main_process("pilot");
    kill(first, Signal::SIGKILL);
    eventually("the restart is said", LIMIT, || pod.said().contains("is started again").then_some(()));
    pod.job("after", &probe(&["hello"])).is_good();
    assert_ne!(pod.main_process("pilot"), first);
}

/// Hit before it runs the pilot's program, a container can neither be started nor does it end: another one is made.
#[test]
fn a_pilot_that_is_killed_while_it_is_being_started_is_made_again() {
    let pod = Options::new().host(&["--restarts", "30"]).start();
    pod.serves();
    let pidfile = pod.place().join("pid/pilot");
    let read = || fs::read_to_string(&pidfile).ok()?.trim().parse::<i32>().ok();
    let mut last = pod.main_process("pilot");
    kill(last, Signal::SIGKILL);
    for _ in 0..6 {
        last = eventually("another pilot", LIMIT, || read().filter(|pid| *pid != last));
        kill(last, Signal::SIGKILL);
    }
    pod.job("after", &probe(&["hello"])).is_good();
    assert!(pod.said().contains("another one is made"), "it was never hit in time: {}", pod.said());
}

#[test]
fn a_second_pod_of_a_name_is_refused_and_the_first_not_hurt() {
    let pod = Pod::start();
    pod.serves();
    pod.put("long", &shell(WAIT_FOR_GO));
    pod.runs("long.1", 0);
    let second = pod_of(&pod.name, &[], &["--version"]);
    assert_eq!(second.code, Some(125), "{}", second.err());
    assert!(second.err().contains(&pod.name) && second.err().contains("--name"), "{}", second.err());
    pod.go(0);
    pod.result("long").is_good();
}

/// As when the sandbox of a pod is re-created: the containers are others, and the private volume is as it was left.
#[test]
fn a_pod_takes_the_place_of_one_that_was_killed() {
    let (spool, private, name) = (Scratch::new(), Scratch::new(), unique("again"));
    let start = || {
        let (path, private) = (spool.path().to_str().unwrap(), private.path().to_str().unwrap());
        let mut command = host(&["pod", "--name", &name, "--private", private, "--spool", path]);
        command.args(["--", "pilot", "--spool", "/spool", "--idle-exit", "1"]);
        let log = fs::File::options().create(true).append(true).open(spool.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    };
    let put = |name: &str, seconds: &[u8]| {
        let job = shell("sleep $(cat seconds); echo ran").to_string();
        latebind_tests::pod::put_into(spool.path(), name, job.as_bytes(), &[("inputs/seconds", seconds)]);
    };
    fs::create_dir(spool.path().join("new")).unwrap();
    put("first", b"600");
    let mut killed = start();
    let kept = private.path().join("jobs/first.1.json");
    eventually("the job runs", LIMIT, || {
        fs::read_to_string(&kept).ok().filter(|t| t.contains("\"phase\": \"running\""))
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    let pilot = fs::read_dir(spool.path().join("claimed")).unwrap().flatten().next().unwrap().path();
    fs::write(pilot.join("first/submitted/inputs/seconds"), "0").unwrap();
    put("second", b"0");
    let mut second = start();
    let what = || format!("its end; they said:\n{}", fs::read_to_string(spool.path().join("log")).unwrap());
    let give_up = deadline(LIMIT);
    while second.try_wait().unwrap().is_none() {
        assert!(Instant::now() < give_up, "not within {LIMIT:?}: {}", what());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(second.wait().unwrap().code(), Some(0), "{}", what());
    for (job, attempt) in [("first", 2), ("second", 1)] {
        let outcome = look_into(spool.path(), job).unwrap_or_else(|| panic!("no result of {job}: {}", what()));
        assert_eq!((outcome.is_good().report.attempt, outcome.text("stdout").as_str()), (attempt, "ran\n"), "{job}");
    }
    let lost = fs::read(spool.path().join("done/first/result.1/report.json")).unwrap();
    let lost: watcher::job::Report = serde_json::from_slice(&lost).unwrap();
    assert_eq!(format!("{:?}", lost.class), "Retry", "{lost:#?}");
    assert!(["GlueLost", "ContainerLost"].contains(&lost.reason.as_str()) && !lost.verified, "{lost:#?}");
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_pod_that_is_told_to_stop_gives_its_job_back() {
    let mut pod = Pod::start();
    pod.put("given-back", &with(probe(&["sleep", "60"]), "grace_s", json!(1)));
    pod.runs("given-back.1", 0);
    pod.signal(Signal::SIGTERM);
    let status = pod.end(Duration::from_secs(40));
    assert!(status.code().is_some(), "{status:?}");
    let report = pod.attempt("given-back", 1);
    assert_eq!((format!("{:?}", report.class).as_str(), report.reason.as_str()), ("Retry", "Cancelled"), "{report:#?}");
    assert!(pod.spool.join("retry/given-back/job.json").exists(), "the next pilot finds it there");
    assert_eq!(traces(&pod.name), Vec::<String>::new());
}

/// As systemd stops a service under its default KillMode: the engine's client that holds the pilot's streams ends at
/// once, and not with the pilot's exit code.
#[test]
fn a_stop_signal_to_all_of_our_processes_is_a_drain() {
    let mut pod = Pod::start();
    pod.put("given-back", &with(probe(&["sleep", "60"]), "grace_s", json!(1)));
    pod.runs("given-back.1", 0);
    let host = pod.host_process();
    let children = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        status.contains(&format!("PPid:\t{host}\n")).then(|| entry.file_name().to_str()?.parse::<i32>().ok())?
    });
    let children: Vec<i32> = children.collect();
    assert!(!children.is_empty(), "the client that holds the pilot's streams");
    children.iter().for_each(|child| kill(*child, Signal::SIGTERM));
    pod.signal(Signal::SIGTERM);
    assert_eq!(pod.end(Duration::from_secs(40)).code(), Some(0), "{}", pod.said());
    assert_eq!(pod.attempt("given-back", 1).reason.as_str(), "Cancelled");
    assert_eq!(traces(&pod.name), Vec::<String>::new());
}

#[test]
fn a_second_signal_removes_the_pod_at_once() {
    let mut pod = Options::new().pilot(&["--max-grace", "50"]).start();
    pod.put("stubborn", &with(probe(&["ignore-term", "60"]), "grace_s", json!(50)));
    pod.runs("stubborn.1", 0);
    pod.signal(Signal::SIGTERM);
    eventually("the first is heard", LIMIT, || pod.said().contains("told to stop").then_some(()));
    pod.signal(Signal::SIGINT);
    let status = pod.end(Duration::from_secs(20));
    assert_eq!(status.code(), Some(130));
    assert_eq!(traces(&pod.name), Vec::<String>::new());
    assert!(look_into(&pod.spool, "stubborn").is_none());
}

#[test]
fn keep_leaves_the_pod_until_rm() {
    let name = unique("kept");
    let ran = to_its_end(&["run", "--keep", "--name", &name, BUSYBOX, "--", "true"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err());
    assert!(ran.err().contains(&format!("rm {name}")), "{}", ran.err());
    assert_ne!(traces(&name), Vec::<String>::new());
    let listed = to_its_end(&["ps"]);
    let line = listed.out().lines().find(|l| l.starts_with(&name)).map(str::to_owned);
    assert!(line.as_ref().is_some_and(|l| l.contains("left over")), "{line:?}");
    assert_eq!(to_its_end(&["rm", &name]).code, Some(0));
    assert_eq!(traces(&name), Vec::<String>::new());
    assert_eq!(to_its_end(&["rm", &name]).code, Some(125), "there is none by now");
}

#[test]
fn ps_shows_a_pod_that_runs() {
    let pod = Pod::start();
    pod.serves();
    let listed = to_its_end(&["ps"]).out();
    let line = listed.lines().find(|l| l.starts_with(&pod.name)).unwrap_or_else(|| panic!("{listed}")).to_owned();
    assert!(
        line.contains("running") && line.contains("pilot") && line.contains("pause") && line.contains("slot-0"),
        "{line}"
    );
}

#[test]
fn limits_are_those_of_the_payload() {
    let pod = Options::new().host(&["--pids", "20", "--memory", "96m", "--cpus", "0.5"]).start();
    let forks = "i=0; while [ $i -lt 40 ]; do sleep 5 2>/dev/null & i=$((i+1)); done; echo all";
    let outcome = pod.job("forks", &shell(&format!("({forks}) 2>&1; echo end")));
    assert!(!outcome.text("stdout").contains("all"), "more than 20 processes: {}", outcome.text("stdout"));
    pod.job("small", &probe(&["memory", "40", "0"])).is_good();
    pod.job("large", &probe(&["memory", "120", "0"])).is("hold", "OutOfMemory");
    let inspected = podman(&[
        "inspect",
        "--format",
        "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}",
        &pod.container(&pod.payload_role(0)),
    ]);
    assert_eq!(String::from_utf8_lossy(&inspected.stdout).trim(), "100663296 500000000 20");
}

#[test]
fn what_is_asked_for_wrongly_is_refused_before_there_is_a_pod() {
    for arguments in [
        &["pod"][..],
        &["pod", "--slots", "0", "--", "--version"],
        &["pod", "--slots", "65", "--", "--version"],
        &["pod", "--name", "Not A Name", "--", "--version"],
        &["pod", "--name", "../x", "--", "--version"],
        &["pod", "--spool", "/not/there"],
        &["pod", "--memory", "much", "--", "--version"],
        &["pod", "--mount", "/not/there:/x", "--", "--version"],
        &["rm", "no-such-pod"],
        &["rm", "../x"],
    ] {
        let ran = to_its_end(arguments);
        assert_eq!(ran.code, Some(125), "{arguments:?}: {}", ran.err());
        assert!(!ran.stderr.is_empty(), "{arguments:?} says nothing");
    }
}

#[test]
fn a_private_volume_of_the_users_outlives_the_pod() {
    let private = Scratch::new();
    let path = private.path().to_str().unwrap();
    let pod = Options::new().host(&["--private", path]).pilot(&["--keep-keys", "/var/lib/latebind/keys"]).start();
    pod.job("kept", &probe(&["hello"])).is_good();
    drop(pod);
    assert!(private.path().join("keys/kept.1.json").exists());
}

/// With another driver there would be other images.
#[test]
fn the_machines_own_storage_settings_do_not_count() {
    let state = Scratch::new();
    let set = "mount -t tmpfs none /etc/containers && cp -r /proc/$$/cwd/* /etc/containers/ && \
               printf '[storage]\\ndriver = \"vfs\"\\nrunroot = \"/run/x\"\\ngraphroot = \"/run/y\"\\n' >/etc/containers/storage.conf && exec \"$@\"";
    let ours = host(&["podman", "--", "info", "--format={{.Store.GraphDriverName}}"]);
    let mut command = std::process::Command::new("unshare");
    // Seen by nobody else; `$$/cwd` is the directory as it was before the mount.
    command.args(["--mount", "--propagation=private", "sh", "-c", set, "sh"]).arg(ours.get_program());
    command.args(ours.get_args()).current_dir("/etc/containers").env("LATEBIND_STATE", state.path());
    for _ in 0..2 {
        let ran = Running::start(&mut command, Vec::new()).finish(LIMIT);
        assert_eq!((ran.code, ran.out().trim()), (Some(0), "overlay"), "{}", ran.err());
    }
}

/// Payload and kill UIDs of a pod, from what runs in it.
fn ids(pod: &Pod, slot: u32) -> [u32; 2] {
    let status = fs::read(pod.ctl(slot).join("status.json")).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    [&status["uid"], &status["kill_uid"]].map(|id| id.as_u64().unwrap() as u32)
}

#[test]
fn no_two_living_pods_share_a_user_id() {
    let pods = [Options::new().slots(2).start(), Options::new().start()];
    let mut all = Vec::new();
    for (pod, slots) in pods.iter().zip([2, 1]) {
        pod.serves();
        let own: Vec<u32> = (0..slots).flat_map(|slot| ids(pod, slot)).collect();
        assert_eq!(fs::read_to_string(pod.place().join("uids")).unwrap().trim(), {
            let (first, last) = (own.iter().min().unwrap(), own.iter().max().unwrap());
            format!("{first}-{last}")
        });
        all.extend(own);
    }
    let ran = pods[1].job("who", &shell("id -u; id -g"));
    assert_eq!(ran.is_good().text("stdout"), format!("{0}\n{0}\n", pods[1].uid(0)));
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!((count, all.len()), (6, 6), "{all:?}");
}

#[test]
fn a_pod_that_was_killed_keeps_its_user_ids_until_it_is_removed() {
    // Beyond the default range, so that no other test's pod is in the way; as many as one pod of one slot needs.
    let range = "61000-61001";
    let mut pod = Options::new().host(&["--uids", range]).start();
    pod.serves();
    assert_eq!(ids(&pod, 0), [61_000, 61_001]);
    kill(pod.host_process(), Signal::SIGKILL);
    pod.end(LIMIT);
    let second = pod_of(&unique("second"), &["--uids", range], &["--version"]);
    assert_eq!(second.code, Some(125), "{}", second.err());
    assert!(second.err().contains("--uids") && second.err().contains("1 pods"), "{}", second.err());
    assert_eq!(to_its_end(&["rm", &pod.name]).code, Some(0));
    let third = pod_of(&unique("third"), &["--uids", range], &["--version"]);
    assert_eq!(third.code, Some(0), "{}", third.err());
}

#[test]
fn a_pilot_has_limits_of_its_own_and_says_when_it_meets_them() {
    let name = unique("small");
    let pilot = ["--pilot-image", BUSYBOX, "--pilot-program", "/probe", "--pilot-memory", "64m", "--pilot-pids", "77"];
    let limited = [&pilot[..], &["--restarts", "0", "--keep"]].concat();
    let ran = pod_of(&name, &limited, &["memory", "200", "0"]);
    assert_eq!(ran.code, Some(137), "{}", ran.err());
    assert!(ran.err().contains("for memory") && ran.err().contains("--pilot-memory"), "{}", ran.err());
    let format = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.PidsLimit}}";
    let inspected = podman(&["inspect", "--format", format, &format!("latebind-{name}-pilot")]);
    let inspected = String::from_utf8_lossy(&inspected.stdout).trim().to_owned();
    assert!(["67108864 67108864 77", "67108864 0 77"].contains(&inspected.as_str()), "{inspected}");
    assert_eq!(to_its_end(&["rm", &name]).code, Some(0));
    // With enough, the same ends as it should, and nothing is said of memory.
    let ran = pod_of(&unique("enough"), &[&pilot[..4], &["--pilot-memory", "400m"]].concat(), &["memory", "200", "0"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err());
    assert!(!ran.err().contains("for memory"), "{}", ran.err());
}
