//! A job that is a pilot itself, against the pilot that it runs beside, other slots, its socket, and the slot that it
//! serves.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use latebind_tests::pod::{BUSYBOX, JOB_WITHIN, NOSHELL, Options, Outcome, Pod, eventually, host, probe, program};
use latebind_tests::pod::{shell, with};
use serde_json::{Value, json};

use super::pilot::{LOOK, SIGNAL};

/// Where its socket is.
const SOCKET: &str = "/run/latebind/clients.sock";
/// The slot for pilot-jobs of a pod with one other slot.
const SLOT: u32 = 1;

fn pod() -> Pod {
    let pod = Options::new().host(&["--pilot-jobs", "1"]).start();
    pod.serves();
    pod
}

/// A script in an image with a shell and the watcher's program, which is its client. `./probe` is there too.
fn pilot_job(script: &str) -> Value {
    let script = format!("chmod +x probe; run() {{ watcher run --socket {SOCKET} \"$@\"; }}; {{ {script}\n}}");
    json!({"image": "localhost/latebind/pilot:1", "argv": ["/bin/sh", "-c", script], "pilot_job": true})
}

fn put(pod: &Pod, name: &str, job: &Value) {
    pod.put_with(name, job, &[("inputs/probe", &fs::read(program("probe")).unwrap())]);
}

/// Runs a script that prints what worked, one line each.
fn run(pod: &Pod, name: &str, script: &str) -> Outcome {
    put(pod, name, &pilot_job(script));
    pod.result(name)
}

/// A program in a container of the pod.
fn exec(pod: &Pod, role: &str, uid: u32, words: &[&str]) -> Command {
    let mut command = host(&["podman", "--", "exec", "--user", &format!("{uid}:{uid}"), &pod.container(role)]);
    command.args(words).stdin(Stdio::null());
    command
}

/// How many processes of this UID there are on the machine: no other pod has it.
fn processes_of(uid: u32) -> usize {
    let processes =
        fs::read_dir("/proc").unwrap().flatten().filter(|entry| entry.metadata().is_ok_and(|m| m.uid() == uid));
    processes.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok())).count()
}

/// What the watcher has open, once what was under way is over.
fn threads_of_clients(pod: &Pod) -> usize {
    let threads = fs::read_dir(format!("/proc/{}/task", pod.main_process("pilot"))).unwrap().flatten();
    let names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name.trim() == "client").count()
}

#[test]
fn neither_the_pilot_nor_its_own_jobs_can_be_looked_into_or_signalled() {
    let pod = pod();
    let (pilot, pause) = (pod.main_process("pilot"), pod.main_process("pause"));
    // A job of its own is there to be seen meanwhile: it has another UID.
    let begin = format!(
        "run {BUSYBOX} -- sh -c 'sleep 1000' & until grep -qa '^sleep.1000' /proc/[0-9]*/cmdline; do sleep 0.1; done"
    );
    let outcome = run(&pod, "looks", &format!("{begin} 2>/dev/null; ( {LOOK} ); ( {SIGNAL} )"));
    assert_eq!(outcome.is_good().text("stdout"), "looked\ntried\n", "{}", outcome.text("stderr"));
    assert_eq!((pod.main_process("pilot"), pod.main_process("pause")), (pilot, pause));
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn it_has_its_socket_and_nothing_else_of_the_pods() {
    let pod = pod();
    let script = "exec 2>/dev/null; \
        grep -E '^Cap(Eff|Prm|Bnd|Inh|Amb)|NoNewPrivs' /proc/self/status | tr -d '\\t'; \
        ls /shared/slot; ls /run/latebind; \
        ls /shared/slot/1/ctl && echo ctl; \
        for f in /clients /spool/new /scratch /run/latebind-host /var/lib/latebind/* /var/run/secrets \
          /shared/slot/0; do \
          [ -e $f ] && echo $f; done; \
        for p in /proc/[0-9]*; do [ \"$(stat -c %u $p)\" = \"$(id -u)\" ] && continue; \
          for f in clients var/lib/latebind/serve.sock run/latebind-host/bind.sock shared/slot/0/data spool; do \
            [ -e $p/root/$f ] && echo $p/root/$f; done; done; \
        grep -E 'bind.sock|serve.sock|@.*latebind' /proc/net/unix | while read -r a b c d e f g path; do \
          ./probe connect \"$path\" </dev/null && echo \"connected $path\"; done; \
        cd /run/latebind; rm -f clients.sock && echo removed; mv clients.sock x && echo moved; ( : >x ) && echo made; \
        chmod 777 . && echo mode; chmod 777 clients.sock && echo mode; ln -s /tmp x && echo link; echo over";
    let outcome = run(&pod, "reaches", script);
    let none = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| format!("{set}:0000000000000000\n"));
    let expected = format!("{}NoNewPrivs:1\n1\nclients.sock\nover\n", none.concat());
    assert_eq!(outcome.is_good().text("stdout"), expected, "{}", outcome.text("stderr"));
    // The socket is its slot's alone: a payload has no way to it, neither there nor by the pilot's own path.
    let script = "exec 2>/dev/null; ls /run/latebind; ls /clients; for p in /proc/[0-9]*; do \
                  [ -e $p/root/run/latebind/clients.sock ] && echo $p; done; \
                  for s in /run/latebind/clients.sock /clients/slot/1/clients.sock; do \
                    /probe connect $s && echo $s; done; echo over";
    assert_eq!(pod.job("payload", &shell(script)).is_good().text("stdout"), "over\n");
}

#[test]
fn what_it_may_not_ask_for_is_refused() {
    let pod = pod();
    let job = |more: &str| {
        format!(r#"{{"verb":"submit","job":{{"id":"x","image":"{NOSHELL}","argv":["/probe","hello"],{more}}}}}"#)
    };
    let lines = [
        (job(r#""relay":true,"sandbox":"execute/a""#), "sandbox: "),
        (job(r#""relay":true,"pilot_job":true"#), "pilot_job: only root"),
        (job(r#""relay":true,"parent":"other.1""#), "parent: only root"),
        (job(r#""relay":true,"results":"/spool/x""#), "results: only root"),
        (job(r#""relay":true,"outputs":["a"]"#), "outputs: only root"),
        (job(r#""relay":true,"inputs":"/etc""#), "inputs: only root"),
        (job(r#""relay":true,"owner":"root""#), "owner: only root"),
        (job(r#""relay":false"#), "relay has to be true"),
        (job(r#""terminal":[1,1]"#), "terminal: "),
        (r#"{"verb":"holds"}"#.into(), "its own jobs alone"),
        (r#"{"verb":"hold","hold":{"reason":"InvalidJob","message":"x"}}"#.into(), "only a slot's own UID"),
        (r#"{"verb":"cancel","job":"x","why":"x"}"#.into(), "has no job"),
        (r#"{"verb":"jobs"}"#.into(), "root's socket"),
        (r#"{"verb":"top"}"#.into(), "root's socket"),
        (r#"{"verb":"exec","job":"x"}"#.into(), "root's socket"),
        (r#"{"verb":"steer","job":"x","signal":9}"#.into(), "root's socket"),
    ];
    // Then half a line, which ends the connection.
    let all: String = lines.iter().map(|(line, _)| format!("{line}\n")).collect::<String>() + "{";
    let outcome = run(&pod, "asks", &format!("./probe half {SOCKET} '{all}'"));
    let said = outcome.is_good().answers()[0]["said"].as_str().unwrap().to_owned();
    let answers: Vec<&str> = said.lines().collect();
    assert_eq!(answers.len(), lines.len() + 1, "{said}");
    for ((line, expected), answer) in lines.iter().zip(answers) {
        assert!(answer.contains("\"event\":\"error\"") && answer.contains(expected), "{line}: {answer}");
    }
}

#[test]
fn a_flood_of_its_connections_keeps_nobody_else_away() {
    let pod = pod();
    let holds = "{\"verb\":\"holds\"}\n".repeat(100);
    let script = format!(
        "(while [ ! -e go ]; do sleep 0.05; done) | ./probe flood {SOCKET} 300 '{holds}' >flood; \
         until run {BUSYBOX} -- echo served; do sleep 0.1; done"
    );
    put(&pod, "floods", &pilot_job(&script));
    let flooded = || fs::read_to_string(pod.work(SLOT).join("flood")).is_ok_and(|said| said.contains("300"));
    eventually("300 connections", JOB_WITHIN, || flooded().then_some(()));
    eventually("eight of them are left", JOB_WITHIN, || (threads_of_clients(&pod) <= 8).then_some(()));
    let jobs = exec(&pod, "pilot", 0, &["watcher", "jobs"]).output().unwrap();
    assert!(String::from_utf8_lossy(&jobs.stdout).contains("floods.1\trunning"), "{jobs:?}");
    pod.go(SLOT);
    assert_eq!(pod.result("floods").is_good().text("stdout"), "served\n");
    eventually("no client is left", JOB_WITHIN, || (threads_of_clients(&pod) == 0).then_some(()));
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn what_runs_for_it_ends_with_it_and_leaves_the_slot_clean() {
    let pod = pod();
    // Deaf to TERM, with a daemon beside it and files in its directory.
    let inner = "trap \"\" TERM HUP INT; setsid sleep 1000 & touch up /tmp/left; while :; do sleep 0.1; done";
    let begin = format!("run {BUSYBOX} -- sh -c '{inner}' & until [ -e go ]; do sleep 0.05; done");
    for (name, end, class) in
        [("exits", "exit 0", ("final", "Completed")), ("killed", "kill -9 $$", ("final", "Signaled"))]
    {
        put(&pod, name, &pilot_job(&format!("{begin}; {end}")));
        eventually("its job runs", JOB_WITHIN, || pod.work(0).join("up").exists().then_some(()));
        assert!(processes_of(pod.uid(0)) >= 2);
        pod.go(SLOT);
        pod.result(name).is(class.0, class.1);
        let next =
            pod.job(&format!("after-{name}"), &shell("ls -A . /tmp; ps -o args | grep -c '[s]leep 1000'; id -u"));
        assert_eq!(next.is_good().text("stdout"), format!(".:\n\n/tmp:\n0\n{}\n", pod.uid(0)));
    }
    // So it is where its time is over, and where root ends it.
    put(&pod, "late", &with(pilot_job(&begin), "timeout_s", json!(8)));
    pod.result("late").is("final", "TimedOut");
    pod.job("after-late", &probe(&["hello"])).is_good();
    assert_eq!((processes_of(pod.uid(0)), processes_of(pod.uid(SLOT))), (0, 0));
}

#[test]
fn the_socket_serves_nobody_while_no_pilot_job_runs() {
    let pod = Options::new().host(&["--pilot-jobs", "1"]).pilot(&["--idle", "keep"]).start();
    run(&pod, "first", "true").is_good();
    // Its container is there still, and what has its UID there, or is root of an image, is no pilot-job.
    let role = pod.payload_role(SLOT);
    let asks = |uid: u32| {
        let words = ["watcher", "run", "--socket", SOCKET, BUSYBOX, "--", "true"];
        let ran = exec(&pod, &role, uid, &words).output().unwrap();
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    for (uid, why) in [(pod.uid(SLOT), "runs no pilot-job"), (0, "UID 0"), (pod.uid(0), "UID")] {
        let (code, said) = asks(uid);
        assert!(code == Some(125) && said.contains(why), "{uid}: {code:?} {said}");
    }
    // An ordinary job of the pod has another UID, whatever container it is in.
    assert_ne!(pod.uid(0), pod.uid(SLOT));
}

#[test]
fn what_its_jobs_do_wrong_is_not_held_against_others() {
    let pod = pod();
    // More than takes a slot out of service if they are one image's.
    let script = "for n in 1 2 3 4 5; do run localhost/latebind/no-such-image:$n -- true; done; true";
    run(&pod, "fails", script).is_good();
    pod.job("next", &probe(&["hello"])).is_good();
    let bomb = "run localhost/latebind/noshell:1 -- /probe daemons 50; true";
    run(&pod, "leaves", bomb).is_good();
    eventually("nothing of it is left", Duration::from_secs(30), || (processes_of(pod.uid(0)) == 0).then_some(()));
    pod.job("last", &probe(&["hello"])).is_good();
}
