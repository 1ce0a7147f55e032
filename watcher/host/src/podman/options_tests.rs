//! What podman is given for each container of a pod.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
use super::{Podman, calls, options};
use crate::container::*;
use crate::engine::Engine;
use crate::place::{Place, PodPlace};
use crate::uids::PodIds;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use watcher::bind::host::ContainerLimits;

fn size(memory: u64) -> SlotSize {
    SlotSize {
        limits: ContainerLimits { memory: Some(memory), cpus: Some(0.5), pids: Some(64) },
        shm_size: Some(1 << 28),
    }
}

fn shape() -> PodShape {
    PodShape {
        name: "p".into(),
        place: PodPlace::at("/state/pods/p"),
        base: Role::Pause,
        glue_image: "localhost/g:1".into(),
        pilot_image: "localhost/p:1".into(),
        slots: 2,
        pilot_jobs: 0,
        data_size: None,
        sizes: vec![size(2 << 30), size(1 << 30)],
        network: Network::None,
        image_volume: ImageVolume::Ignore,
        seccomp: true,
    }
}

fn pilot() -> PilotShape {
    PilotShape {
        program: WATCHER.into(),
        arguments: vec!["serve".into()],
        mounts: vec![Mount::read_only("/a,b\"c", "/in")],
        private: "/private".into(),
        environment: vec!["A=b c".into()],
        limits: ContainerLimits { memory: Some(256 << 20), cpus: None, pids: Some(512) },
        interactive: false,
        terminal: false,
    }
}

fn given(spec: &Spec) -> Vec<String> {
    options(spec, Path::new("/state/oci/runc"), true).unwrap()
}

fn payload(shape: &PodShape, slot: u32) -> Vec<String> {
    given(&shape.payload(slot, 7, &PodIds::at(30_000, shape.slots).of(slot), "sha256:1"))
}

fn has(arguments: &[String], argument: &str) -> bool {
    arguments.iter().any(|a| a == argument)
}

fn targets(arguments: &[String]) -> Vec<&str> {
    arguments.iter().filter_map(|a| a.strip_prefix("--mount=")?.split("\"target=").nth(1)?.split('"').next()).collect()
}

#[test]
fn capabilities_are_those_of_the_table() {
    let shape = shape();
    let added = |arguments: Vec<String>| -> Vec<String> {
        assert!(has(&arguments, "--cap-drop=all"));
        assert!(has(&arguments, "--security-opt=no-new-privileges"));
        assert!(has(&arguments, "--image-volume=ignore"));
        arguments.iter().filter_map(|a| a.strip_prefix("--cap-add=").map(str::to_owned)).collect()
    };
    assert!(added(given(&shape.pause())).is_empty());
    assert_eq!(added(given(&shape.install(&PodIds::at(30_000, 2)))), INSTALL_CAPABILITIES);
    assert_eq!(added(payload(&shape, 0)), PAYLOAD_CAPABILITIES);
    assert_eq!(added(given(&shape.pilot(&pilot(), &PodIds::at(30_000, 2)))), PILOT_CAPABILITIES);
}

#[test]
fn a_payload_sees_its_own_slot_and_nothing_else() {
    let arguments = payload(&shape(), 1);
    assert_eq!(targets(&arguments), ["/shared/bin", "/etc/hosts", "/shared/slot/1/ctl", "/shared/slot/1/data"]);
    assert!(has(&arguments, "--shm-size=268435456b"));
    let bin = arguments.iter().find(|a| a.contains("/shared/bin\"")).unwrap();
    assert!(bin.ends_with(",nosuid,nodev,readonly"), "{bin}");
    assert!(has(&arguments, "--memory=1073741824b") && has(&arguments, "--memory-swap=1073741824b"));
    assert!(has(&arguments, "--cpus=0.5") && has(&arguments, "--pids-limit=64"));
    assert!(has(&arguments, "--pid=container:latebind-p-pause"));
    assert!(
        has(&arguments, "--runtime=/state/oci/runc") && has(&arguments, "--annotation=latebind.container=p/slot-1-7")
    );
    let glue = r#"--entrypoint=["/shared/bin/glue","run","--slot","1","--kill-uid","30003"]"#;
    assert!(has(&arguments, glue), "{arguments:?}");
    let arguments = payload(&PodShape { seccomp: false, ..shape() }, 1);
    let glue = glue.replace(']', ",\"--no-seccomp\"]");
    assert!(has(&arguments, &glue), "{arguments:?}");
    assert_eq!(arguments.last().unwrap(), "sha256:1");
}

#[test]
fn a_slot_for_pilot_jobs_has_a_socket_that_it_cannot_replace_and_its_own_memory() {
    let shape = PodShape { pilot_jobs: 1, sizes: vec![size(1 << 30), size(64 << 20)], ..shape() };
    let (payload, pilot_job) = (payload(&shape, 0), payload(&shape, 1));
    assert!(!targets(&payload).contains(&"/run/latebind"), "{payload:?}");
    assert_eq!(targets(&pilot_job).last(), Some(&"/run/latebind"));
    let mount = pilot_job.iter().find(|a| a.contains("/run/latebind")).unwrap();
    assert!(mount.contains("source=/state/pods/p/slot-1/clients") && mount.ends_with(",nosuid,nodev,readonly"));
    assert!(has(&payload, "--memory=1073741824b") && has(&pilot_job, "--memory=67108864b"), "{pilot_job:?}");
    let added = |given: &[String]| given.iter().filter(|a| a.starts_with("--cap-add=")).count();
    assert_eq!(added(&pilot_job), added(&payload), "no more rights than any other slot");
    let pilot = given(&shape.pilot(&pilot(), &PodIds::at(30_000, 2)));
    assert!(has(&pilot, "--env=LATEBIND_MEMORY_0=1073741824") && !pilot.iter().any(|a| a.contains("MEMORY_1")));
    assert!(targets(&pilot).contains(&"/clients/slot/1") && has(&pilot, "--env=LATEBIND_PILOT_JOBS=1"), "{pilot:?}");
}

#[test]
fn payloads_share_neither_ipc_nor_where_they_are_several_a_network() {
    let mut shape = shape();
    let of_pause = |arguments: &[String], kind: &str| has(arguments, &format!("--{kind}=container:latebind-p-pause"));
    let several = payload(&shape, 0);
    assert!(has(&several, "--ipc=private") && has(&several, "--network=none"));
    assert!(["pid", "uts"].iter().all(|kind| of_pause(&several, kind)));
    shape.network = Network::Host;
    assert!(of_pause(&payload(&shape, 0), "network"), "the host's, as was asked for");
    (shape.network, shape.slots) = (Network::None, 1);
    let alone = payload(&shape, 0);
    assert!(has(&alone, "--ipc=private") && of_pause(&alone, "network"));
    let pilot = given(&shape.pilot(&pilot(), &PodIds::at(30_000, 2)));
    assert!(["pid", "uts", "ipc", "network"].iter().all(|kind| of_pause(&pilot, kind)));
}

#[test]
fn slots_have_the_ids_of_the_pod() {
    let install = given(&shape().install(&PodIds::at(30_000, 2)));
    assert_eq!(install[install.len() - 4..], ["--slot", "0:30000:30000", "--slot", "1:30001:30001"]);
}

#[test]
fn only_the_pilot_sees_the_bind_socket() {
    let shape = shape();
    let seen = |arguments: &[String]| targets(arguments).contains(&BIND_IN_PILOT);
    assert!(seen(&given(&shape.pilot(&pilot(), &PodIds::at(30_000, 2)))));
    for other in [given(&shape.pause()), given(&shape.install(&PodIds::at(30_000, 2))), payload(&shape, 0)] {
        assert!(!seen(&other));
    }
}

#[test]
fn the_pilot_has_what_it_was_given() {
    let mut shape = shape();
    let arguments = given(&shape.pilot(&pilot(), &PodIds::at(30_000, 2)));
    assert!(has(&arguments, "--env=A=b c") && has(&arguments, "--env=LATEBIND_SLOTS=2"));
    assert!(has(&arguments, "--env=LATEBIND_SLOT_UIDS=30000,30001"));
    assert!(has(&arguments, "--memory=268435456b") && has(&arguments, "--memory-swap=268435456b"));
    assert!(has(&arguments, "--pids-limit=512") && !arguments.iter().any(|a| a.starts_with("--cpus")));
    shape.data_size = Some(1 << 20);
    assert!(
        has(&given(&shape.pilot(&pilot(), &PodIds::at(30_000, 2))), "--memory=270532608b"),
        "two data volumes of 1 MiB in memory"
    );
    assert_eq!(arguments[arguments.len() - 2..], ["localhost/p:1", "serve"]);
    let quoted = r#"--mount=type=bind,"source=/a,b""c","target=/in",bind-propagation=rprivate,nosuid,nodev,readonly"#;
    assert!(has(&arguments, quoted), "{arguments:?}");
}

#[test]
fn the_pilot_has_one_list_of_hosts_the_users_where_there_is_one() {
    let shape = shape();
    let own = PilotShape { mounts: vec![Mount::read_only("/mine", "/etc/hosts")], ..pilot() };
    for (pilot, source) in [(pilot(), "\"source=/state/pods/p/hosts\""), (own, "\"source=/mine\"")] {
        let arguments = given(&shape.pilot(&pilot, &PodIds::at(30_000, 2)));
        let lists: Vec<_> = arguments.iter().filter(|a| a.contains("\"target=/etc/hosts\"")).collect();
        assert!(lists.len() == 1 && lists[0].contains(source), "{lists:?}");
    }
}

#[test]
fn each_slot_has_its_own_size_and_the_pilot_hears_of_it() {
    let shape = shape();
    let [first, second] = [0, 1].map(|slot| payload(&shape, slot));
    assert!(has(&first, "--memory=2147483648b") && has(&second, "--memory=1073741824b"), "{second:?}");
    let pilot = given(&shape.pilot(&pilot(), &PodIds::at(30_000, 2)));
    for variable in ["MEMORY_0=2147483648", "MEMORY_1=1073741824", "CPUS_0=0.5", "CPUS_1=0.5"] {
        assert!(has(&pilot, &format!("--env=LATEBIND_{variable}")), "{pilot:?}");
    }
}

#[test]
fn no_limit_is_said_to_the_engine_too() {
    let mut shape = shape();
    shape.sizes = vec![SlotSize { limits: ContainerLimits::default(), shm_size: None }];
    let arguments = payload(&shape, 0);
    assert!(has(&arguments, "--pids-limit=-1"));
    assert!(!arguments.iter().any(|a| a.starts_with("--memory") || a.starts_with("--cpus")));
}

/// Podman 5.4 with crun, now and then: `rm` names the pause container as removed, succeeds, and leaves it. This one
/// does so as often as `faults` says.
const FORGETFUL: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit
while [ "$1" != ps ] && [ "$1" != rm ]; do shift; done
[ "$1" = rm ] || { ls containers; exit; }
echo "$@" >>calls
for name; do
    case $name in
    latebind-p-pause)
        rm -f containers/latebind-p-pilot containers/latebind-p-slot-*
        if [ -s faults ]; then sed -i 1d faults; else rm -f containers/latebind-p-pause; fi ;;
    latebind-p-*) rm -f "containers/$name" ;;
    esac
done
"#;

#[test]
fn what_podman_says_to_have_removed_is_listed_and_removed_again() {
    for (faults, removed) in [("", true), ("x\n", true), ("x\nx\nx\n", true), ("x\nx\nx\nx\n", false)] {
        let dir = tempfile::tempdir().unwrap();
        let podman = dir.path().join("podman");
        // By another process: a file that a thread of this one has open for writing cannot be executed.
        let write = ["-c", "printf %s \"$1\" >\"$0\"; chmod 755 \"$0\"", podman.to_str().unwrap(), FORGETFUL];
        assert!(Command::new("sh").args(write).status().unwrap().success());
        fs::write(dir.path().join("faults"), faults).unwrap();
        fs::create_dir(dir.path().join("containers")).unwrap();
        for name in ["latebind-p-pause", "latebind-p-pilot", "latebind-p-slot-0-1"] {
            fs::write(dir.path().join("containers").join(name), "").unwrap();
        }
        let place = Place::open(&dir.path().join("state")).unwrap();
        let engine = Podman {
            calls: calls(podman, &place, PathBuf::new(), true),
            place,
            guard: PathBuf::new(),
            swap_is_counted: true,
            parent: None,
        };
        let done = engine.remove_pod("p", "pause");
        let left = fs::read_dir(dir.path().join("containers")).unwrap().count();
        let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
        if removed {
            assert_eq!((done.is_ok(), left), (true, 0), "{faults:?}: {done:?}\n{calls}");
        } else {
            assert!(done.is_err_and(|e| e.to_string().contains("p-pause")), "{calls}");
        }
        let with_others = calls.lines().filter(|call| call.contains("p-pause") && call.contains("p-pilot"));
        assert_eq!(with_others.count(), 0, "the pause container is removed by itself: {calls}");
    }
}
