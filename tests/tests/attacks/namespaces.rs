//! Namespaces and mounts of the payload's own. Glue's filter refuses them; where it is left out, and the engine lets a
//! job have them, it is root there, and nothing changes for glue, for the watcher, or for the next job.

use latebind_tests::pod::{Options, Pod, probe, shell, with};
use serde_json::json;
use watcher::job::limits::Which;

/// Namespaces of all kinds that busybox can ask for; what follows is PID 1 and root there.
const OWN: &str = "unshare -U -r -m -u -i -n -p -f";

/// A pod whose jobs may make namespaces.
fn pod() -> Pod {
    Options::new().host(&["--no-seccomp"]).start()
}

#[test]
fn a_job_gets_no_namespace_and_no_mount_unless_the_filter_is_left_out() {
    let script = "for kind in U m u i n p C; do unshare -$kind true 2>/dev/null && echo $kind; done; \
         unshare -U -r -m true 2>/dev/null && echo mounts; mount -t tmpfs t /tmp 2>/dev/null && echo tmpfs; echo tried";
    let pod = Pod::start();
    assert_eq!(pod.job("filtered", &shell(script)).is_good().text("stdout"), "tried\n");
    assert_eq!(self::pod().job("unfiltered", &shell(script)).is_good().text("stdout"), "U\nmounts\ntried\n");
}

#[test]
fn mounts_of_a_payload_over_the_volumes_are_its_own() {
    let pod = self::pod();
    // The job's main process lives under its mounts: what it sees as work/ and as ctl/ is its own, what is collected is
    // the slot's.
    let script = "echo real >out; echo real >covered; exec unshare -U -r -m sh -c '\
         mount -t tmpfs t /shared && mkdir -p /shared/bin /shared/slot/0/ctl /shared/slot/0/data/work || exit 9; \
         cd /shared/slot/0; echo forged >ctl/record.jws; echo {} >ctl/status.json; echo {} >ctl/startup.jsonl; echo x >ctl/finish; \
         cp /bin/busybox /shared/bin/glue; echo forged >data/work/out; ln -s /etc/passwd data/work/covered; echo seen; exit 7'";
    let outcome = pod.job("mounter", &with(shell(script), "outputs", json!(["out", "covered"])));
    outcome.is("final", "Error");
    assert!(outcome.report.verified && outcome.report.exit_code == Some(7), "{:#?}", outcome.report);
    assert_eq!(
        (outcome.text("stdout").as_str(), outcome.text("outputs/out"), outcome.text("outputs/covered")),
        ("seen\n", "real\n".into(), "real\n".into())
    );
    let glue = pod.main_process(&pod.payload_role(0));
    // Each of the slot's own volumes moved, covered or bound elsewhere, and a process that keeps that namespace open to
    // the end.
    let script = "unshare -U -r -m sh -c '\
         mkdir a; mount --bind /shared/slot/0/data /shared/slot/0/ctl && mount --bind /shared/slot/0/data/io a && \
         mount --bind /shared/bin /shared/slot/0/data/work && touch /shared/slot/0/ctl/work/bound && exec sleep 3000' & \
         while [ ! -e bound ]; do sleep 0.02; done";
    let outcome = pod.job("binder", &shell(script));
    assert!(outcome.is_good().report.record.as_ref().unwrap().processes.left_over_killed >= 1, "{:#?}", outcome.report);
    assert_eq!(pod.main_process(&pod.payload_role(0)) == glue, outcome.report.reused_container);
    let next = pod.job("next", &shell("ls -A . /shared/slot/0/data; grep -c ' /shared' /proc/self/mountinfo"));
    assert_eq!(next.is_good().text("stdout"), ".:\n\n/shared/slot/0/data:\n.trash\nio\nwork\n3\n");
}

#[test]
fn a_payload_in_namespaces_of_its_own_ends_with_its_job() {
    let pod = self::pod();
    // PID 1 of a PID namespace ignores what it does not handle; it is killed from outside all the same, and all of its
    // own with it.
    let script = format!(
        "for n in 1 2 3; do {OWN} sh -c 'trap \"\" TERM HUP INT; (trap \"\" TERM; while :; do sleep 3071; done) & \
           ({OWN} sleep 3071) & touch ready.'$n'; while :; do sleep 3071; done' & done; \
         for n in 1 2 3; do while [ ! -e ready.$n ]; do sleep 0.02; done; done"
    );
    let outcome = pod.job("nested", &shell(&script));
    let processes = outcome.is_good().report.record.as_ref().unwrap().processes;
    assert!(processes.left_over_killed >= 3 && processes.unkilled == 0, "{processes:?}");
    let next = pod.job("next", &shell("ps -o args | grep -c '[s]leep 3071'; true"));
    assert_eq!(next.is_good().text("stdout"), "0\n");
}

#[test]
fn root_of_a_user_namespace_is_nobody_elses() {
    let pod = self::pod();
    pod.serves();
    let (pilot, pause) = (pod.main_process("pilot"), pod.main_process("pause"));
    // What worked, a line each. In a PID namespace of the pod, since /proc is the pod's.
    let script = "exec 2>/dev/null; glue=$PPID; export glue; exec unshare -U -r -m sh -c '\
         [ $(id -u) = 0 ] || echo not root; \
         [ \"$(cat /proc/$glue/comm)\" = glue ] || echo no glue; \
         seen=; for p in $(ls /proc | grep \"^[0-9]*$\"); do \
           [ \"$(cat /proc/$p/comm)\" = sh ] && continue; [ $p = $$ ] && continue; \
           case $(stat -c %u /proc/$p) in 0) continue;; esac; seen=\"$seen $(cat /proc/$p/comm)\"; \
           for s in 0 STOP KILL; do kill -$s $p && echo \"$s $(cat /proc/$p/comm)\"; done; \
           ls /proc/$p/root/ && echo \"root of $p\"; [ -n \"$(head -c 1 /proc/$p/environ)\" ] && echo \"environ of $p\"; \
           for n in m n u i p C; do nsenter -t $p -$n true && echo \"entered $n of $p\"; done; \
         done; \
         umount /shared/bin && echo unmounted bin; umount -l /shared/slot/0/ctl && echo unmounted ctl; \
         mount -o remount,rw,bind /shared/bin && echo remounted bin; mount -o remount,rw / && touch /shared/bin/x && echo wrote bin; \
         ls /shared/slot/0/ctl && echo listed ctl; mkdir c d; mount --bind /shared/slot/0/ctl c && ls c && echo listed its copy; \
         mount -t overlay o -o lowerdir=/shared/slot/0/ctl:/shared/bin,upperdir=c,workdir=d,userxattr d && ls d/status.json && echo overlaid; \
         mount -t proc p c && echo proc; mount -t sysfs s c && echo sysfs; mount -t cgroup -o pids g c && echo cgroup; \
         mount -t devtmpfs t c && echo devtmpfs; mknod n b 254 0 && echo device; mknod n c 1 1 && echo memory; \
         touch f; chown 0:0 /shared/slot/0/data && echo owner; chown 1:1 f && echo chown; setpriv --reuid 20001 true && echo another UID; \
         hostname x && echo hostname; echo 1 >/proc/sys/kernel/ns_last_pid && echo sysctl; \
         echo -1000 >/proc/$glue/oom_score_adj && echo oom; chroot /proc/$glue/root true && echo root of glue; \
         case $seen in *watcher*glue*|*glue*watcher*) echo tried;; *) echo \"saw only $seen\";; esac'";
    let outcome = pod.job("root", &shell(script));
    assert_eq!(outcome.is_good().text("stdout"), "tried\n");
    assert_eq!((pod.main_process("pilot"), pod.main_process("pause")), (pilot, pause));
    pod.job("next", &probe(&["hello"])).is_good();
}

#[test]
fn what_an_overlay_leaves_in_work_is_collected_and_cleaned_like_anything_else() {
    let pod = self::pod();
    // Whiteouts are devices, the only ones that need no right; the overlay's own directory is closed to its owner.
    let script = "mkdir low up own top; echo a >low/gone; echo b >low/kept; unshare -U -r -m sh -c '\
         mount -t overlay o -o lowerdir=low,upperdir=up,workdir=own,userxattr top && rm top/gone && echo c >top/new && echo d >>top/kept' && \
         mknod white c 0 0; ls -l up/gone white | cut -c1; stat -c %a own/work";
    let outcome = pod.job("overlay", &with(shell(script), "outputs", json!(["up", "white", "own"])));
    outcome.is_good();
    assert_eq!(outcome.text("stdout"), "c\nc\n0\n");
    assert_eq!((outcome.text("outputs/up/new"), outcome.text("outputs/up/kept")), ("c\n".into(), "b\nd\n".into()));
    let missing = &outcome.report.missing_outputs;
    for name in ["up/gone: ", "white: "] {
        assert!(missing.iter().any(|m| m.starts_with(name)), "{name}: {missing:?}");
        assert!(!outcome.dir.join("result/outputs").join(name.trim_end_matches(": ")).exists(), "{name}");
    }
    assert_eq!(pod.job("next", &shell("ls -A")).is_good().text("stdout"), "");
}

#[test]
fn limits_and_ends_reach_into_namespaces() {
    let pod = self::pod();
    let script = format!("trap '' TERM; exec {OWN} sh -c 'for n in 1 2 3 4 5 6 7 8 9; do sleep 3072 & done; wait'");
    let job = with(with(shell(&script), "limits", json!({"processes": 5})), "grace_s", json!(0.5));
    let outcome = pod.job("many", &job);
    outcome.is("final", "LimitExceeded");
    assert_eq!(outcome.report.limit.as_ref().map(|crossed| crossed.which), Some(Which::Processes));
    assert!(outcome.report.verified, "{:#?}", outcome.report);
    let script = format!("trap '' TERM; exec {OWN} sh -c 'while :; do sleep 3072; done'");
    let job = with(with(shell(&script), "timeout_s", json!(1)), "grace_s", json!(0.5));
    let outcome = pod.job("long", &job);
    outcome.is("final", "TimedOut");
    assert!(outcome.report.verified && outcome.report.signal == Some(9), "{:#?}", outcome.report);
    let next = pod.job("next", &shell("ps -o args | grep -c '[s]leep 3072'; true"));
    assert_eq!(next.is_good().text("stdout"), "0\n");
}
