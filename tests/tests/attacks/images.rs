//! Hostile images: volumes over our mounts, stop signals, labels, annotations.

use std::fs;
use std::time::Duration;

use latebind_tests::engine::LinkedImage;
use latebind_tests::pod::{Options, Pod, probe};
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
