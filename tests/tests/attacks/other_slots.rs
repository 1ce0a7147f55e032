//! One slot's payload against another slot of the same pod.

use std::fs;

use latebind_tests::pod::{JOB_WITHIN, Options, Pod, eventually, probe, shell};
use serde_json::Value;

#[test]
fn a_neighbouring_slot_is_out_of_reach() {
    let pod = Options::new().slots(2).start();
    pod.serves();
    pod.put("a-victim", &shell("echo secret >file; SECRET=1 sleep 8; cat file"));
    let (one, other) = (pod.uid(0), pod.uid(1));
    let script = "exec 2>/dev/null; sleep 2; own=$(id -u); for p in /proc/[0-9]*; do u=$(stat -c %u $p); \
                  case $u in $own) ;; ONE|OTHER) echo saw; [ -n \"$(head -c 1 $p/environ)\" ] && echo environ; ls $p/root/ && echo root; \
                  ls $p/cwd/ && echo cwd; kill -KILL ${p#/proc/} && echo killed;; esac; done | sort -u; ls /shared/slot";
    let script = script.replace("ONE", &one.to_string()).replace("OTHER", &other.to_string());
    pod.put("b-attacker", &shell(&script));
    let (victim, attacker) = (pod.result("a-victim"), pod.result("b-attacker"));
    assert_eq!(victim.is_good().text("stdout"), "secret\n");
    let own = attacker.report.slot.unwrap();
    assert_eq!(attacker.is_good().text("stdout"), format!("saw\n{own}\n"));
}

/// A job that offers a socket and IPC objects until its directory has a file `end`; returns once it has reached them
/// itself.
fn offers(pod: &Pod, name: &str) -> u32 {
    let script = "/probe abstract-serve latebind-offer 60 & /probe ipc >/dev/null; echo shared >/dev/shm/offer; \
                  until /probe abstract-connect latebind-offer; do sleep 0.05; done; touch up; \
                  while [ ! -e end ]; do sleep 0.05; done; cat /dev/shm/offer; kill $!";
    pod.put(name, &shell(script));
    let attempt = format!("{name}.1");
    pod.reaches(&attempt, "running");
    let slot = pod.kept_state(&attempt).unwrap()["slot"].as_u64().unwrap() as u32;
    eventually("the offer is there", JOB_WITHIN, || pod.work(slot).join("up").exists().then_some(()));
    slot
}

#[test]
fn slots_share_no_socket_and_no_ipc_object() {
    let pod = Options::new().slots(2).start();
    let slot = offers(&pod, "offers");
    let looks = pod.job("looks", &shell("/probe abstract-connect latebind-offer; ls -A /dev/shm /dev/mqueue; true"));
    assert_ne!(looks.is_good().report.slot, Some(slot));
    let said = looks.text("stdout");
    assert!(said.contains("\"connected\":false") && said.contains("refused"), "{said}");
    assert_eq!(said.lines().filter(|l| !l.starts_with('{')).collect::<Vec<_>>(), ["/dev/mqueue:", "", "/dev/shm:"]);
    let listed: Vec<Value> = pod.job("lists", &probe(&["ipc-list"])).is_good().answers();
    assert!(listed.is_empty(), "{listed:?}");
    // What it changes there is its own alone.
    pod.job("writes", &shell("echo mine >/dev/shm/offer; cat /dev/shm/offer")).is_good();
    fs::write(pod.work(slot).join("end"), "").unwrap();
    let offers = pod.result("offers");
    assert!(offers.is_good().text("stdout").ends_with("{\"connected\":true,\"error\":null}\nshared\n"));
}

#[test]
fn payloads_share_with_their_pod_what_they_must_and_nothing_else() {
    for slots in [1, 2] {
        let pod = Options::new().slots(slots).start();
        pod.serves();
        let namespace = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let pilot = pod.main_process("pilot");
        let glues: Vec<i32> = (0..slots).map(|n| pod.main_process(&pod.payload_role(n))).collect();
        let shared =
            |kind: &str| glues.iter().filter(|g| namespace(**g, kind) == namespace(pilot, kind)).count() as u32;
        assert_eq!([shared("pid"), shared("uts"), shared("ipc"), shared("mnt")], [slots, slots, 0, 0]);
        // HTCondor's chirp needs the pilot's loopback; neighbours could pass descriptors over it.
        assert_eq!(shared("net"), if slots == 1 { 1 } else { 0 });
        for kind in ["ipc", "net"] {
            assert!(glues.iter().skip(1).all(|g| namespace(*g, kind) != namespace(glues[0], kind)), "{kind}");
        }
    }
}
