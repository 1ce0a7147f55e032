//! The pilot, its processes, files and sockets, as a payload reaches for them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use latebind_tests::pod::{JOB_WITHIN, Options, Outcome, Pod, eventually, host, probe, shell};

/// Prints what of any other UID's process can be looked into.
pub(super) const LOOK: &str = "exec 2>/dev/null; seen=; for p in /proc/[0-9]*; do \
    [ \"$(stat -c %u $p)\" = \"$(id -u)\" ] && continue; seen=\"$seen $(cat $p/comm)\"; \
    [ -n \"$(head -c 1 $p/environ | od -A n -t x1)\" ] && echo \"environ of $p\"; \
    [ -n \"$(ls $p/root/)\" ] && echo \"root of $p\"; \
    [ -n \"$(ls $p/cwd/)\" ] && echo \"cwd of $p\"; \
    [ -n \"$(ls $p/fd)\" ] && echo \"fd of $p\"; \
    [ -n \"$(ls $p/map_files)\" ] && echo \"map_files of $p\"; \
    for t in $p/task/*; do [ -n \"$(ls $t/fd)\" ] && echo \"fd of $t\"; done; \
    [ -n \"$(readlink $p/exe)\" ] && echo \"exe of $p\"; \
    head -c 1 $p/mem && echo \"mem of $p\"; \
    [ -n \"$(head -c 10 $p/maps)\" ] && echo \"maps of $p\"; \
    [ -n \"$(readlink $p/ns/mnt)\" ] && echo \"namespace of $p\"; \
    ( : >>$p/mem ) && echo \"mem of $p for writing\"; \
    echo 1 >$p/oom_score_adj && echo \"oom score of $p\"; \
         done; case $seen in *watcher*glue*|*glue*watcher*) echo looked;; *) echo \"saw only $seen\";; esac";

/// Sends signals to any other UID's process, and prints which got there.
pub(super) const SIGNAL: &str = "for s in 0 KILL STOP TERM USR1 CONT; do for p in /proc/[0-9]*; do p=${p#/proc/}; \
                  [ \"$(stat -c %u /proc/$p 2>/dev/null)\" = \"$(id -u)\" ] && continue; \
                  kill -$s $p 2>/dev/null && echo \"$s $p\"; done; done; kill -KILL 1 2>/dev/null && echo 1; echo tried";

/// Runs a script that prints what worked, one line each.
fn nothing_works(name: &str, script: &str) -> Outcome {
    let pod = Pod::start();
    let outcome = pod.job(name, &shell(script));
    outcome.is_good();
    assert_eq!(outcome.text("stdout"), "looked\n", "{}", outcome.text("stderr"));
    pod.job("next", &probe(&["hello"])).is_good();
    outcome
}

#[test]
fn the_pilots_process_cannot_be_looked_into() {
    nothing_works("looker", LOOK);
}

#[test]
fn control_files_and_sockets_are_out_of_reach() {
    nothing_works(
        "reacher",
        "exec 2>/dev/null; cd /shared/slot/0; ls ctl && echo list; cat ctl/status.json && echo status; cat ctl/record.jws && echo record; \
         echo x >ctl/startup.jsonl && echo startup; echo >ctl/glue.notify && echo notify; rm -rf ctl/* && [ -e ctl/x ] && echo removed; \
         mv ctl ctl2 && echo moved; rmdir ctl && echo rmdir; chmod 777 ctl && echo chmod; ln -s /tmp ctl/x && echo link; \
         echo x >data/x && echo data; mv data/work data/w && echo work; mkdir data/io2 && echo mkdir; ls -A data/io/x; \
         rm -f data/io/stdout && echo stdout; ln -sf /etc/passwd data/io/stdout && echo io; \
         mv /shared/bin/glue /x && echo glue; echo x >>/shared/bin/glue && echo glue; \
         for s in /run/latebind-host/bind.sock /var/lib/latebind/serve.sock /spool /var/lib/latebind; do [ -e $s ] && echo $s; done; \
         for p in /proc/[0-9]*; do for s in run/latebind-host/bind.sock var/lib/latebind/serve.sock spool; do \
           [ -e $p/root/$s ] && echo $p/root/$s; done; done; \
         grep -E 'bind.sock|serve.sock|@.*latebind' /proc/net/unix | while read -r a b c d e f g path; do \
           /probe connect \"$path\" </dev/null && echo \"connected $path\"; done; \
         echo looked",
    );
}

#[test]
fn neither_watcher_nor_glue_can_be_signalled() {
    let pod = Pod::start();
    pod.serves();
    let pilot = pod.main_process("pilot");
    let pause = pod.main_process("pause");
    let outcome = pod.job("killer", &shell(SIGNAL));
    assert_eq!(outcome.is_good().text("stdout"), "tried\n");
    assert_eq!((pod.main_process("pilot"), pod.main_process("pause")), (pilot, pause));
    assert!(!pod.said().contains("is started again"));
}

#[test]
fn a_loop_of_kills_hurts_nobody_but_the_payload() {
    let pod = Pod::start();
    pod.serves();
    let pilot = pod.main_process("pilot");
    // PID 1 of the pod is glue's pause, which is what the probe asks for before it does this.
    for (name, attack) in [("kills", "kill-loop"), ("stops", "stop-everything")] {
        let outcome = pod.job(name, &probe(&[attack, "4", "--i-am-in-a-container"]));
        outcome.is_good();
        assert_eq!(outcome.report.record.as_ref().unwrap().processes.unkilled, 0);
    }
    assert_eq!(pod.main_process("pilot"), pilot);
    let next = pod.job("next", &shell("ps -o user,args | grep -c '[p]robe [ks]'"));
    assert_eq!(next.text("stdout"), "0\n");
}

/// Processes of this UID in the pod, with their states.
fn of_uid(pod: &Pod, uid: u32) -> Vec<(i32, char)> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let pods = namespace(pod.main_process("pilot"));
    let state = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let owned = entries.filter(|entry| entry.metadata().is_ok_and(|file| file.uid() == uid));
    let pids = owned.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| namespace(*pid) == pods);
    pids.filter_map(|pid| Some((pid, state(pid)?))).collect()
}

/// A foreign root may have left a status file that names somebody else's UID as the one to kill with: what is ended
/// with that UID would take its processes along.
#[test]
fn a_status_file_that_is_not_proven_names_nobody_to_be_stopped() {
    const BYSTANDER: u32 = 29_999;
    // The container stays between the two jobs, however long the steps here take.
    let pod = Options::new().pilot(&["--idle", "keep"]).start();
    pod.job("first", &probe(&["hello"])).is_good();
    let payload = fs::metadata(pod.work(0)).unwrap().uid();
    let exec = |uid: u32, role: &str, words: &[&str]| {
        let mut command =
            host(&["podman", "--", "exec", "-i", "--user", &format!("{uid}:{uid}"), &pod.container(role)]);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    };
    let mut bystander = exec(BYSTANDER, "pilot", &["cat"]);
    eventually("the bystander runs", JOB_WITHIN, || (of_uid(&pod, BYSTANDER).len() == 1).then_some(()));
    // What an earlier job may have left, to be ended before the next one's files are put there.
    let mut left = exec(payload, &pod.payload_role(0), &["/shared/bin/glue", "pause"]);
    eventually("something is left over", JOB_WITHIN, || (!of_uid(&pod, payload).is_empty()).then_some(()));
    let path = pod.ctl(0).join("status.json");
    let mut status: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    status["kill_uid"] = BYSTANDER.into();
    fs::write(&path, status.to_string()).unwrap();
    pod.job("next", &probe(&["hello"])).is_good();
    assert!(pod.said().contains("left over from an earlier job"), "{}", pod.said());
    assert_eq!(of_uid(&pod, payload), []);
    let states: Vec<char> = of_uid(&pod, BYSTANDER).into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, ['S'], "neither ended nor stopped");
    drop(bystander.stdin.take());
    bystander.wait().unwrap();
    let _ = left.wait();
}
