//! Hostile images: volumes over our mounts, stop signals, labels, annotations.

use std::fs;
use std::time::Duration;

use latebind_tests::engine::LinkedImage;
use latebind_tests::made_image::MadeImage;
use latebind_tests::pod::{BUSYBOX, JOB_WITHIN, Options, Pod, eventually, podman, probe, run, state};
use serde_json::{Value, json};

#[test]
fn images_that_declare_volumes_over_ours_are_harmless() {
    let pod = Pod::start();
    for (name, image) in [("bin", "localhost/latebind/volume-bin:1"), ("ctl", "localhost/latebind/volume-ctl:1")] {
        let outcome = pod.job(name, &json!({"image": image, "argv": ["/bin/sh", "-c", "echo ran; id -u"]}));
        assert_eq!(outcome.is_good().text("stdout"), format!("ran\n{}\n", pod.uid(0)), "{image}");
    }
    // An image whose own link leads our volume astray, and one whose /shared anybody may change: glue itself refuses.
    for (name, image) in
        [("link", "localhost/latebind/volume-bin-link:1"), ("shared", "localhost/latebind/shared-writable:1")]
    {
        let outcome = pod.job(name, &json!({"image": image, "argv": ["/bin/sh", "-c", "true"]}));
        outcome.is("hold", "ContainerCannotRun");
        assert!(!outcome.report.verified);
        // What glue said is in the message, not only in a log.
        let message = &outcome.report.message;
        let said = message.split_once("exit code 3 before its glue was ready; it said: ").map(|(_, said)| said);
        assert!(said.is_some_and(|said| said.contains("/shared")), "{message}");
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
            startup |= ["startup.jsonl", "startup.jsonl.tmp"].iter().any(|name| ctl.join(name).exists());
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

#[test]
fn names_of_files_in_an_image_decide_no_class() {
    let pod = Pod::start();
    // Each would be a shortage of the machine, if words of a message decided, and three of those take the slot out of
    // service.
    for (n, name) in [
        "a: no space left on device",
        "a\nError: context deadline exceeded",
        "a\": cannot allocate memory",
        "a: no space left on device\nlevel=warning",
    ]
    .iter()
    .enumerate()
    {
        let image = LinkedImage::new(name);
        let outcome = pod.job(&format!("linked-{n}"), &json!({"image": image.name(), "argv": ["true"]}));
        assert_eq!(outcome.class().0, "hold", "{name:?}: {:#?}", outcome.report);
        assert!(!outcome.report.verified && outcome.report.attempt == 1, "{name:?}: {:#?}", outcome.report);
    }
    assert!(!pod.said().contains("out of service"), "{}", pod.said());
    pod.job("next", &probe(&["hello"])).is_good();
}

/// A job that only wants to run.
fn of(image: &str) -> Value {
    json!({"image": image, "argv": ["/bin/true"]})
}

#[test]
fn an_image_that_would_control_the_engine_is_held_by_name_and_the_slot_stays_everybodys() {
    // What crun, runc with systemd, podman and others would obey as root of the host.
    let keys =
        ["run.oci.seccomp_bpf_data", "run.oci.pidfd_receiver", "run.oci.handler", "org.systemd.property.Description"];
    let keys = [&keys[..], &["io.podman.annotations.userns", "org.criu.config", "krun.ram_mib", "bundle"]].concat();
    let annotations: Vec<String> = keys.iter().map(|key| format!("{key}=/x")).collect();
    let annotated = MadeImage::new("", &annotations.iter().map(String::as_str).collect::<Vec<_>>());
    let labels = ["io.containers.autoupdate", "io.containers.capabilities", "PODMAN_SYSTEMD_UNIT", "run.oci.handler"];
    let lines: Vec<String> = labels.iter().map(|key| format!("LABEL {key}=registry")).collect();
    let labelled = MadeImage::new(&lines.join("\n"), &[]);
    let pod = Pod::start();
    for (name, image, keys) in [("annotated", &annotated, &keys[..]), ("labelled", &labelled, &labels[..])] {
        for n in 0..4 {
            let outcome = pod.job(&format!("{name}-{n}"), &of(image.name()));
            outcome.is("hold", "ImageControlsEngine");
            let message = &outcome.report.message;
            assert!(keys.iter().all(|key| message.contains(&format!("\"{key}\""))), "{message}");
        }
    }
    pod.job("innocent", &probe(&["hello"])).is_good();
    assert!(!pod.said().contains("out of service"), "{}", pod.said());
    let ran = run(&[annotated.name(), "--", "true"]);
    assert_eq!(ran.code, Some(125), "{}", ran.err());
    assert!(ran.err().contains("run.oci.seccomp_bpf_data") && ran.err().contains("crun"), "{}", ran.err());
}

#[test]
fn what_ordinary_images_carry_has_no_effect_and_does_not_reach_the_runtime() {
    let lines = "LABEL maintainer=somebody com.docker.compose.project=x io.k8s.display-name=x\n\
                 HEALTHCHECK --interval=1s CMD touch /unhealthy\nENTRYPOINT [\"/bin/false\"]\n\
                 USER 12345\nWORKDIR /nowhere";
    let image = MadeImage::new(
        lines,
        &[
            "org.opencontainers.image.title=x",
            "com.docker.official-images.x=y",
            "com.example.team=z",
            "never.heard.of=z",
        ],
    );
    let pod = Pod::start();
    let script = "while [ ! -e end ]; do sleep 0.05; done; pwd; ls /unhealthy 2>/dev/null; id -u";
    pod.put("ordinary", &json!({"image": image.name(), "argv": ["/bin/sh", "-c", script]}));
    pod.runs("ordinary.1", 0);
    let container = pod.container(&pod.payload_role(0));
    let path = podman(&["container", "inspect", "--format={{.OCIConfigPath}}", &container]);
    let path = String::from_utf8(path.stdout).unwrap();
    let given: Value = serde_json::from_slice(&fs::read(path.trim()).unwrap()).unwrap();
    let names: Vec<&String> = given["annotations"].as_object().unwrap().keys().collect();
    let own = |name: &&&String| {
        name.starts_with("io.podman.annotations.")
            || name.starts_with("io.kubernetes.cri-o.")
            || **name == "io.container.manager"
    };
    let others: Vec<&&String> = names.iter().filter(|name| !own(name)).collect();
    assert_eq!(others, [&"org.opencontainers.image.stopSignal"], "podman's own, and nothing else");
    fs::write(pod.work(0).join("end"), "").unwrap();
    let outcome = pod.result("ordinary");
    assert_eq!(outcome.is_good().text("stdout"), format!("/shared/slot/0/data/work\n{}\n", pod.uid(0)));
}

#[test]
fn a_device_in_an_image_is_opened_by_nobody() {
    // Podman reads the image's accounts, as root of the host and outside of the container: a line without an end.
    let lines =
        "RUN mknod -m 666 /zero c 1 5 && for f in passwd group; do rm /etc/$f; mknod -m 666 /etc/$f c 1 5; done";
    let image = MadeImage::new(lines, &[]);
    let pod = Pod::start();
    let outcome = pod.job("device", &json!({"image": image.name(), "argv": ["/bin/cat", "/zero"], "passwd": true}));
    outcome.is("final", "Error");
    assert!(outcome.text("stderr").contains("Permission denied"), "{}", outcome.text("stderr"));
}

#[test]
fn what_an_image_does_wrong_is_its_own_hold_and_the_slot_stays_everybodys() {
    let many = |n: usize| (0..n).map(|i| format!("LARGE_{i}={}", "x".repeat(60_000)));
    let labels: serde_json::Map<String, Value> = many(20).map(|label| (label, json!("x"))).collect();
    // What is known to be wrong at a look; then what only podman or its runtime finds out, or does not mind.
    let large: [Value; 3] = [
        json!({"Env": [format!("LARGE={}", "x".repeat(140_000))]}),
        json!({"Env": many(20).collect::<Vec<_>>()}),
        json!({"Labels": labels}),
    ];
    let odd = [
        json!({"StopSignal": "SIGNOTHING"}),
        json!({"Env": ["=nameless", "valueless", "A=b\nC=d"]}),
        json!({"Healthcheck": {"Test": ["CMD"], "Interval": -5}, "WorkingDir": "../..", "User": "nobody:nothing:else"}),
        json!({"Volumes": {"": {}, "relative": {}, "/proc": {}}, "ExposedPorts": {"none/none": {}}}),
    ];
    let pod = Pod::start();
    let holds = |name: &str, image: &str, reasons: &[&str]| {
        let outcome = pod.job(name, &of(image));
        let (class, reason) = outcome.class();
        assert!(class == "hold" && reasons.contains(&reason), "{image}: {:#?}", outcome.report);
        assert!(outcome.report.message.len() < 4000, "{}", outcome.report.message.len());
    };
    let mut made = Vec::new();
    for (n, config) in large.iter().enumerate() {
        made.push(MadeImage::of_config(config));
        holds(&format!("large-{n}"), made[n].name(), &["CreateContainerError"]);
    }
    for (n, config) in odd.iter().enumerate() {
        let image = MadeImage::of_config(config);
        // There is no program in it.
        holds(&format!("odd-{n}"), image.name(), &["CreateContainerError", "CommandNotFound"]);
    }
    for n in 0..3 {
        holds(&format!("files-{n}"), "localhost/latebind/proc-is-a-file:1", &["CreateContainerError"]);
    }
    pod.job("innocent", &probe(&["hello"])).is_good();
    assert!(!pod.said().contains("out of service"), "{}", pod.said());
    // Nor do they keep anybody from listing pods.
    let listed = latebind_tests::pod::host(&["ps"]).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&pod.name), "{listed:?}");
}

#[test]
fn the_runtime_is_given_nothing_that_was_not_asked_for() {
    let pod = Pod::start();
    pod.serves();
    let guard = fs::read_dir(state().join("oci")).unwrap().flatten().next().unwrap().path();
    let container = pod.container(&pod.payload_role(0));
    let runtime = podman(&["container", "inspect", "--format={{.OCIRuntime}}", &container]);
    assert_eq!(String::from_utf8_lossy(&runtime.stdout).trim(), guard.to_str().unwrap(), "payload containers have it");
    // The same guard, for containers that latebind-host does not make.
    let runtime = format!("--runtime={}", guard.display());
    let this_pods = format!("--annotation=latebind.container={}/slot-0-1", pod.name);
    for option in ["--annotation=other=x", "--annotation=latebind.container=slot-0-1", &this_pods] {
        let refused = podman(&["run", "--rm", &runtime, "--network=none", option, BUSYBOX, "/bin/true"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("refused by latebind-host"), "{said}");
    }
    // Whatever it stands in front of goes on as ever.
    let listed = podman(&["exec", &container, "/shared/bin/glue", "version"]);
    assert!(String::from_utf8_lossy(&listed.stdout).starts_with("glue "), "{listed:?}");
    eventually("what it wrote is read and removed", JOB_WITHIN, || {
        let left = fs::read_dir(pod.place().join("log")).unwrap().flatten();
        left.filter(|e| e.file_name().to_string_lossy().ends_with(".given")).count().eq(&0).then_some(())
    });
}
