//! What a hostile payload or image tries against the pilot and against the truth of a result, and that it gains nothing.

use std::fs;
use std::time::Duration;

use latebind_tests::pod::{BUSYBOX, JOB_WITHIN, Options, Outcome, Pod, eventually, probe, shell, with};
use serde_json::{Value, json};

/// What an attempt of `probe forge` may say that it did: write in the payload's own directory.
fn is_its_own(what: &str) -> bool {
    what == "record in /shared/slot/0/data/work"
}

#[test]
fn a_forger_gets_nothing_but_its_own_files() {
    let pod = Pod::start();
    let outcome = pod
        .job("forger", &with(json!({"image": BUSYBOX, "argv": ["/probe", "forge"]}), "outputs", json!(["record.jws"])));
    outcome.is_good();
    let tried = outcome.answers();
    assert!(tried.len() > 40, "only {} attempts", tried.len());
    for wanted in ["environment of watcher", "root of watcher", "stop watcher", "glue's memory", "/ctl/record.jws"] {
        assert!(
            tried.iter().any(|t| t["attempt"].as_str().is_some_and(|a| a.contains(wanted))),
            "{wanted} was not tried"
        );
    }
    let worked: Vec<&str> = tried
        .iter()
        .filter(|t| t["ok"] == true)
        .filter_map(|t| t["attempt"].as_str())
        .filter(|a| !is_its_own(a))
        .collect();
    assert_eq!(worked, Vec::<&str>::new());
    // What it fetched by the name of a record is an output among others, and the record is glue's.
    let (forged, record) = (outcome.text("outputs/record.jws"), outcome.text("record.jws"));
    assert_ne!(forged, record);
    assert_eq!(outcome.report.record.as_ref().unwrap().job, "forger.1");
}

/// Puts what looks like a record wherever the payload may write.
const FORGE: &str = "h=eyJhbGciOiJIUzI1NiIsInR5cCI6ImxhdGViaW5kLXJlY29yZCtqd3MiLCJraWQiOiJ4In0; \
                     for d in . .. ../../ctl ../io /tmp; do echo $h.e30.AAAA 2>/dev/null >$d/record.jws; done 2>/dev/null";

#[test]
fn a_forged_record_does_not_hide_a_failure() {
    let pod = Pod::start();
    let outcome = pod.job("liar", &shell(&format!("{FORGE}; [ -e record.jws ] && exit 3")));
    outcome.is("final", "Error");
    assert_eq!((outcome.report.exit_code, outcome.report.refusal), (Some(3), None));
    let liar = "localhost/latebind/liar-shell:1";
    let outcome = pod.job("liar-shell", &json!({"image": liar, "argv": ["/probe", "exit", "4"]}));
    assert_eq!(outcome.report.exit_code, Some(4));
}

#[test]
fn a_forged_record_does_not_stand_in_for_a_lost_job() {
    let pod = Options::new().pilot(&["--max-attempts", "1"]).start();
    pod.put("lost", &shell(&format!("{FORGE}; touch made; sleep 60")));
    pod.runs("lost.1", 0);
    eventually("the forgery", JOB_WITHIN, || pod.work(0).join("made").exists().then_some(()));
    assert!(pod.work(0).join("record.jws").exists());
    latebind_tests::pod::kill(pod.main_process(&pod.payload_role(0)), 9);
    let outcome = pod.result("lost");
    assert_eq!(outcome.class().0, "retry", "{:#?}", outcome.report);
    assert!(!outcome.report.verified && outcome.report.record.is_none());
}

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
fn the_pilots_process_can_not_be_looked_into() {
    nothing_works(
        "looker",
        "exec 2>/dev/null; seen=; for p in /proc/[0-9]*; do \
           [ \"$(stat -c %u $p)\" = 20000 ] && continue; seen=\"$seen $(cat $p/comm)\"; \
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
         done; case $seen in *watcher*glue*|*glue*watcher*) echo looked;; *) echo \"saw only $seen\";; esac",
    );
}

#[test]
fn control_files_and_sockets_are_out_of_reach() {
    nothing_works(
        "reacher",
        "exec 2>/dev/null; cd /shared/slot/0; ls ctl && echo list; cat ctl/status.json && echo status; cat ctl/record.jws && echo record; \
         echo x >ctl/startup.json && echo startup; echo >ctl/bell && echo bell; rm -rf ctl/* && [ -e ctl/x ] && echo removed; \
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
    let script = "for s in 0 KILL STOP TERM USR1 CONT; do for p in /proc/[0-9]*; do p=${p#/proc/}; \
                  [ \"$(stat -c %u /proc/$p 2>/dev/null)\" = 20000 ] && continue; \
                  kill -$s $p 2>/dev/null && echo \"$s $p\"; done; done; kill -KILL 1 2>/dev/null && echo 1; echo tried";
    let outcome = pod.job("killer", &shell(script));
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
        let began = std::time::Instant::now();
        let outcome = pod.job(name, &probe(&[attack, "4", "--i-am-in-a-container"]));
        outcome.is_good();
        assert_eq!(outcome.report.record.as_ref().unwrap().processes.unkilled, 0);
        assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    }
    assert_eq!(pod.main_process("pilot"), pilot);
    let next = pod.job("next", &shell("ps -o user,args | grep -c '[p]robe [ks]'"));
    assert_eq!(next.text("stdout"), "0\n");
}

#[test]
fn a_neighbouring_slot_is_out_of_reach() {
    let pod = Options::new().slots(2).start();
    pod.serves();
    pod.put("a-victim", &shell("echo secret >file; SECRET=1 sleep 8; cat file"));
    let script = "exec 2>/dev/null; sleep 2; own=$(id -u); for p in /proc/[0-9]*; do u=$(stat -c %u $p); \
                  case $u in $own) ;; 2000?) echo saw; [ -n \"$(head -c 1 $p/environ)\" ] && echo environ; ls $p/root/ && echo root; \
                  ls $p/cwd/ && echo cwd; kill -KILL ${p#/proc/} && echo killed;; esac; done | sort -u; ls /shared/slot";
    pod.put("b-attacker", &shell(script));
    let (victim, attacker) = (pod.result("a-victim"), pod.result("b-attacker"));
    assert_eq!(victim.is_good().text("stdout"), "secret\n");
    let own = attacker.report.slot.unwrap();
    assert_eq!(attacker.is_good().text("stdout"), format!("saw\n{own}\n"));
}

#[test]
fn images_that_declare_volumes_over_ours_are_harmless() {
    let pod = Pod::start();
    for (name, image) in [("bin", "localhost/latebind/volume-bin:1"), ("ctl", "localhost/latebind/volume-ctl:1")] {
        let outcome = pod.job(name, &json!({"image": image, "argv": ["/bin/sh", "-c", "echo ran; id -u"]}));
        assert_eq!(outcome.is_good().text("stdout"), "ran\n20000\n", "{image}");
    }
    // An image whose own link leads our volume astray, and one whose /shared anybody may change: glue itself refuses.
    for (name, image) in
        [("link", "localhost/latebind/volume-bin-link:1"), ("shared", "localhost/latebind/shared-writable:1")]
    {
        let outcome = pod.job(name, &json!({"image": image, "argv": ["/bin/sh", "-c", "true"]}));
        outcome.is("hold", "ContainerCannotRun");
        assert!(!outcome.report.verified);
    }
    no_trace_of_a_foreign_glue(&pod);
    pod.job("next", &probe(&["hello"])).is_good();
}

fn no_trace_of_a_foreign_glue(pod: &Pod) {
    for place in [pod.ctl(0).join("pwned"), pod.work(0).join("../pwned"), pod.place().join("bin/pwned")] {
        assert!(!place.exists(), "root ran what the image brought: {}", place.display());
    }
    assert!(!pod.said().contains("stolen_key_of"));
}

#[test]
fn the_mount_proof_refuses_an_image_that_shadows_glue() {
    let pod = Options::new().host(&["--image-volume", "bind"]).start();
    pod.serves();
    // Whatever appears in ctl/ while the foreign glue stands there.
    let ctl = pod.ctl(0);
    let watching = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = watching.clone();
    let watched = std::thread::spawn(move || {
        let (mut startup, mut pwned) = (false, false);
        while flag.load(std::sync::atomic::Ordering::Relaxed) {
            startup |= ["startup.json", "startup.json.tmp"].iter().any(|name| ctl.join(name).exists());
            pwned |= ctl.join("pwned").exists();
            std::thread::sleep(Duration::from_micros(100));
        }
        (startup, pwned)
    });
    let outcome =
        pod.job("shadowed", &json!({"image": "localhost/latebind/volume-bin-link:1", "argv": ["/probe", "exit", "0"]}));
    watching.store(false, std::sync::atomic::Ordering::Relaxed);
    let (startup, pwned) = watched.join().unwrap();
    assert!(pwned, "the foreign glue never ran, so this test proves nothing:\n{}", pod.said());
    outcome.is("hold", "MountProofFailed");
    assert_eq!(outcome.place, "held");
    assert!(!outcome.report.verified && outcome.report.record.is_none() && outcome.report.exit_code.is_none());
    assert!(!startup, "a startup file was written for a glue that was not proven");
    assert!(!outcome.dir.join("result/record.jws").exists());
    let said = pod.said();
    let log = fs::read_dir(pod.place().join("log"))
        .unwrap()
        .flatten()
        .map(|e| fs::read_to_string(e.path()).unwrap_or_default());
    assert!(!said.contains("stolen_key_of") && !log.collect::<String>().contains("stolen_key_of"), "it got a key");
    pod.job("next", &probe(&["hello"])).is_good();
    assert!(!pod.ctl(0).join("pwned").exists(), "what the foreign root left was not removed");
}

#[test]
fn other_images_with_volumes_fare_no_better_where_the_engine_makes_them() {
    let pod = Options::new().host(&["--image-volume", "bind"]).start();
    for (name, image) in [("bin", "localhost/latebind/volume-bin:1"), ("ctl", "localhost/latebind/volume-ctl:1")] {
        let outcome = pod.job(name, &json!({"image": image, "argv": ["/probe", "exit", "3"]}));
        match outcome.report.verified {
            true => assert_eq!(outcome.report.exit_code, Some(3), "{image}"),
            false => {
                outcome.is("hold", "MountProofFailed");
            }
        }
    }
    let next: Vec<Value> = pod.job("next", &probe(&["hello"])).is_good().answers();
    assert_eq!(next.len(), 1);
}

#[test]
fn images_of_any_stop_signal_give_way_to_the_next() {
    let pod = Pod::start();
    for signal in ["quit", "winch", "rtmin3"] {
        let image = format!("localhost/latebind/stopsignal-{signal}:1");
        let outcome = pod.job(signal, &json!({"image": image, "argv": ["/bin/sh", "-c", "echo ran"]}));
        assert_eq!(outcome.is_good().text("stdout"), "ran\n");
        let next = pod.job(&format!("after-{signal}"), &probe(&["hello"]));
        assert!(
            next.is_good().report.durations.bind < 8.0,
            "glue did not end at {signal}: {:?}",
            next.report.durations
        );
    }
}

#[test]
fn hostile_images_run_like_any_other() {
    let pod = Pod::start();
    for (name, image, program) in [
        ("no-etc", "localhost/latebind/no-tmp-no-etc:1", "/only/probe"),
        ("liar", "localhost/latebind/liar-shell:1", "/probe"),
    ] {
        let outcome = pod.job(name, &json!({"image": image, "argv": [program, "exit", "5"]}));
        outcome.is("final", "Error");
        assert_eq!(outcome.report.exit_code, Some(5), "{image}");
    }
    let env =
        pod.job("env", &json!({"image": "localhost/latebind/hostile-env:1", "argv": ["/bin/sh", "-c", "exit 6"]}));
    assert!(env.report.verified && env.report.exit_code == Some(6), "{:#?}", env.report);
}
