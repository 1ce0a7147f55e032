//! One slot's payload against another slot of the same pod.

use latebind_tests::pod::{Options, shell};

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
