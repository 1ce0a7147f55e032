//! What a hostile payload goes for in a pod of Kubernetes: the pilot's token and files, pilot and glue themselves, the
//! jobs before it and beside it. It gets none of them, and the next job runs.

use latebind_cluster_tests::pilot::{Options, Pilot};
use latebind_cluster_tests::{cluster, eventually, needs};
use serde_json::Value;

/// Runs a script that prints what worked, one line each, and then `looked`.
#[track_caller]
fn nothing_works(pilot: &Pilot, what: &str, options: &[&str], script: &str) {
    let image = cluster().image("busybox");
    let script = format!("exec 2>/dev/null; {script}; echo looked");
    let ran = pilot.run(&[options, &[image.as_str(), "--", "/bin/sh", "-c", &script]].concat());
    assert_eq!((ran.code, ran.out().as_str()), (Some(0), "looked\n"), "{what}: {}", ran.err());
}

/// A loop over the processes of the pod that are not the payload's own, which must contain pilot and glue, or nothing
/// was tried.
fn each_other_process(attempt: &str) -> String {
    format!(
        "seen=; for p in /proc/[0-9]*; do [ \"$(stat -c %u $p)\" = 0 ] || continue; seen=\"$seen $(cat $p/comm)\"; \
         {attempt}; done; case $seen in *watcher*glue*|*glue*watcher*) ;; *) echo \"saw only $seen\" ;; esac"
    )
}

#[test]
fn the_pilots_secrets_are_out_of_reach() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    // A token that a payload could find would be there.
    let token = pilot.shell("cat /var/run/secrets/kubernetes.io/serviceaccount/token");
    assert!(token.len() > 100, "the pilot has no token: nothing to be found");
    nothing_works(
        &pilot,
        "the token and the private volume, by their paths",
        &[],
        "for d in /var/run/secrets /run/secrets /var/lib/latebind /scratch /spool /results; do [ -e $d ] && echo $d; done; \
         find / -xdev -name '*serviceaccount*' -o -xdev -name token -o -xdev -name serve.sock; \
         cut -d ' ' -f 5 /proc/self/mountinfo | grep -E 'secret|latebind|token'; \
         env | grep -v ^HOSTNAME= | grep -iE 'token|latebind'; grep -l 'ey[J]' /proc/[0-9]*/cmdline",
    );
    nothing_works(
        &pilot,
        "the pilot's and glue's /proc",
        &[],
        &each_other_process(
            "[ -n \"$(head -c 1 $p/environ | od -A n -t x1)\" ] && echo \"environ of $p\"; \
             for d in root cwd fd fdinfo map_files task/${p#/proc/}/fd; do [ -n \"$(ls $p/$d/)\" ] && echo \"$d of $p\"; done; \
             cat $p/root/var/run/secrets/kubernetes.io/serviceaccount/token && echo \"token of $p\"; \
             ls $p/root/var/lib/latebind && echo \"private volume of $p\"; \
             [ -n \"$(readlink $p/exe)\" ] && echo \"exe of $p\"; \
             head -c 1 $p/mem && echo \"mem of $p\"; ( : >>$p/mem ) && echo \"mem of $p for writing\"; \
             for f in maps auxv syscall stack io; do [ -n \"$(head -c 10 $p/$f)\" ] && echo \"$f of $p\"; done; \
             [ -n \"$(readlink $p/ns/mnt)\" ] && echo \"namespace of $p\"; \
             ( echo 1 >$p/oom_score_adj ) && echo \"oom score of $p\"",
        ),
    );
    nothing_works(
        &pilot,
        "sockets",
        &[],
        "grep -E 'serve.sock|@.*latebind' /proc/net/unix | while read -r a b c d e f g path; do \
         /probe connect \"$path\" </dev/null && echo \"connected $path\"; done",
    );
    nothing_works(
        &pilot,
        "what glue and watcher say to each other",
        &[],
        "cd /shared/slot/0; ls ctl && echo list; cat ctl/status.json ctl/record.jws ctl/startup.jsonl && echo read; \
         echo x >ctl/startup.jsonl && echo startup; echo >ctl/glue.notify && echo notify; mv ctl ctl2 && echo moved; \
         chmod 777 ctl && echo chmod; echo x >data/x && echo data; mv data/work data/w && echo work; \
         ln -s /etc/passwd data/io/x && echo io; mkdir data/own && echo mkdir; mv /shared/bin/glue /x && echo glue; echo x >>/shared/bin/glue && echo glue",
    );
}

/// What an attempt of `probe forge` may say that it did: write in the payload's own directory.
fn is_its_own(what: &str) -> bool {
    what == "record in /shared/slot/0/data/work"
}

#[test]
fn a_forger_gets_nothing_but_its_own_files() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    let ran = pilot.run(&[&cluster().image("busybox"), "--", "/probe", "forge"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out(), ran.err());
    let tried: Vec<Value> = ran.out().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let attempts = || tried.iter().filter_map(|t| Some((t["attempt"].as_str()?, t["ok"] == true)));
    for wanted in
        ["environment of watcher", "root of watcher", "stop watcher", "glue's memory", "trace glue", "/ctl/record.jws"]
    {
        assert!(attempts().any(|(what, _)| what.contains(wanted)), "{wanted} was not tried: {}", ran.out());
    }
    let worked: Vec<&str> = attempts().filter(|(what, ok)| *ok && !is_its_own(what)).map(|(what, _)| what).collect();
    assert_eq!(worked, Vec::<&str>::new());
    nothing_works(&pilot, "the job after it", &[], "ls -A | grep record");
}

#[test]
fn nobody_but_the_payload_can_be_signalled() {
    needs("1.20 or later");
    let pilot = Pilot::start();
    let before = pilot.container_id("pilot");
    nothing_works(
        &pilot,
        "signals to each process",
        &[],
        &each_other_process("for s in 0 KILL STOP TERM USR1 CONT; do kill -$s ${p#/proc/} && echo \"$s to $p\"; done"),
    );
    nothing_works(&pilot, "PID 1", &[], "for s in KILL STOP TERM; do kill -$s 1 && echo $s; done");
    // To all that it may signal, again and again: itself, and no other.
    let image = cluster().image("busybox");
    for attack in ["kill-loop", "stop-everything"] {
        let ran = pilot.run(&[&image, "--", "/probe", attack, "4", "--i-am-in-a-container"]);
        assert_eq!(ran.code, Some(0), "{attack}: {}{}", ran.out(), ran.err());
    }
    // It leaves processes that ignore what can be ignored, and sessions of their own.
    let daemons = "for n in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1; done' & done; sleep 1";
    let ran = pilot.run(&[&image, "--", "/bin/sh", "-c", daemons]);
    assert_eq!(ran.code, Some(0), "{}", ran.err());
    nothing_works(&pilot, "processes of the job before", &[], "ps -o user,args | grep '[t]rap \"\" TERM'");
    assert_eq!((pilot.container_id("pilot"), &pilot.status("pilot")["restartCount"]), (before, &0.into()));
}

/// Everything that a job can leave where another one could find it.
const LEAVE: &str = "umask 0; for d in /tmp /dev/shm /var/tmp /run /usr . /shared/slot/0/data/work; do \
    mkdir -p $d/left-behind/in && echo secret-of-one >$d/left-behind/in/file && echo secret-of-one >$d/.left-behind; \
    mkdir -m 000 $d/left-behind-closed; done; ln -s / /tmp/left-behind-link; mkfifo /tmp/left-behind-fifo; /probe ipc >/dev/null; \
    [ -e /tmp/left-behind/in/file ] && [ -e /dev/shm/left-behind/in/file ] && echo left";

/// What a job sees of them; /proc has everybody's command line, its own among them.
const LOOK: &str = "find / -path /proc -prune -o -path /sys -prune -o -name '*left-behind*' -print; \
    grep -rl secret-of-one /tmp /dev/shm /var /run /shared; \
    /probe ipc-list | grep -E '\"c?uid\":20000' | grep -v '\"name\":null'; find /tmp /dev/shm ! -path /tmp ! -path /dev/shm";

fn another_owner_sees_nothing(arguments: &[&str]) {
    let pilot = Options::new().pilot(&[&["serve"], arguments].concat()).start();
    let image = cluster().image("busybox");
    for (owner, next) in [("alice", "bob"), ("bob", "alice")] {
        let left = pilot.run(&["--owner", owner, &image, "--", "/bin/sh", "-c", LEAVE]);
        assert!(left.code == Some(0) && left.out().ends_with("left\n"), "{owner}: {}{}", left.out(), left.err());
        nothing_works(&pilot, &format!("{next} after {owner}"), &["--owner", next], LOOK);
    }
}

#[test]
fn nothing_of_a_job_reaches_the_next_one() {
    needs("1.20 or later");
    another_owner_sees_nothing(&[]);
}

#[test]
fn nothing_of_a_job_reaches_another_owners_where_containers_are_kept() {
    needs("1.20 or later");
    another_owner_sees_nothing(&["--reuse", "same-owner", "--idle", "keep"]);
}

#[test]
fn a_neighbouring_slot_is_out_of_reach() {
    needs("1.20 or later");
    let pilot = Options::new().slots(2).start();
    let image = cluster().image("busybox");
    let name = pilot.namespace.name();
    let secret = "echo secret >file; echo secret >/tmp/file; echo secret >/dev/shm/file; export SECRET=1; sleep 20 & wait; cat file";
    let victim = pilot.spawn(&["--name", "victim", &image, "--", "/bin/sh", "-c", secret]);
    let slot = eventually("the victim runs", std::time::Duration::from_secs(60), || {
        (0..2).find(|slot| pilot.glue(*slot)["job"] == "victim" && pilot.glue(*slot)["phase"] == "running")
    });
    let script = format!(
        "seen=; for p in /proc/[0-9]*; do [ \"$(stat -c %u $p)\" = {uid} ] || continue; seen=1; \
         [ -n \"$(head -c 1 $p/environ)\" ] && echo environ; ls $p/root/ && echo root; ls $p/cwd/ && echo cwd; ls $p/fd/ && echo fd; \
         kill -KILL ${{p#/proc/}} && echo killed; kill -STOP ${{p#/proc/}} && echo stopped; done; [ -n \"$seen\" ] || echo blind; \
         cat /tmp/file /dev/shm/file && echo files; ls /shared/slot | grep -x {slot}",
        uid = 20_000 + slot
    );
    nothing_works(&pilot, &format!("the neighbour in {name}"), &[], &script);
    let ran = victim.finish(std::time::Duration::from_secs(60));
    assert_eq!((ran.code, ran.out().as_str()), (Some(0), "secret\n"), "{}", ran.err());
}
