//! `deploy/components` and the changes that docs/kubernetes.md shows: each is rendered over each manifest, and runs where
//! this server can show it.

use std::path::Path;
use std::time::Duration;

use latebind_cluster_tests::manifest::{self, as_objects, container, containers, laid_over, pod_spec};
use latebind_cluster_tests::namespace::Namespace;
use latebind_cluster_tests::patcher::Patcher;
use latebind_cluster_tests::pilot::{Options, Pilot, status_of};
use latebind_cluster_tests::{cluster, eventually, needs, unique};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const MANIFESTS: [&str; 5] =
    ["deploy/statefulset", "deploy/job", "deploy/job-before-1.32", "deploy/htcondor", "deploy/htcondor-before-1.32"];

/// The names of `deploy/components`.
fn components() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/components");
    let mut names: Vec<String> =
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The pod spec of what makes the pods.
fn spec_of(mut objects: Vec<Value>) -> Value {
    let spec = objects.iter_mut().find_map(|object| pod_spec(object)).expect("one object makes pods");
    spec.clone()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
}

/// A list's elements that have this name.
fn named<'l>(list: &'l Value, name: &str) -> &'l Value {
    let found = list.as_array().into_iter().flatten().find(|e| e["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list:#}"))
}

/// The order in which a pod starts is right, and each container is there once.
#[track_caller]
fn starts_in_order(spec: &Value, manifest: &str) {
    let (init, regular) = (names(&spec["initContainers"]), names(&spec["containers"]));
    let (wanted_init, wanted): (&[&str], &[&str]) = if ["deploy/job", "deploy/htcondor"].contains(&manifest) {
        (&["install", "payload"], &["pilot"])
    } else {
        (&["install"], &["payload", "pilot"])
    };
    assert!(init.starts_with(wanted_init) && regular.starts_with(wanted), "{manifest}: {init:?}, {regular:?}");
    let extra = init.len() + regular.len() - wanted_init.len() - wanted.len();
    let further = ["extra", "payload-1"].iter().filter(|name| init.contains(name) || regular.contains(name));
    assert_eq!(extra, further.count(), "{init:?}, {regular:?}");
}

#[test]
fn every_component_fits_every_manifest() {
    needs("1.20 or later");
    for base in MANIFESTS {
        let all = components();
        let paths =
            |names: &[String]| -> Vec<String> { names.iter().map(|n| format!("deploy/components/{n}")).collect() };
        for component in &all {
            let mut spec = spec_of(as_objects(&laid_over(base, &paths(std::slice::from_ref(component)), "")));
            starts_in_order(&spec, base);
            let payload = container(&mut spec, "payload").clone();
            let pilot = container(&mut spec, "pilot").clone();
            let case = format!("{component} over {base}");
            match component.as_str() {
                "user-namespace" => assert_eq!(spec["hostUsers"], false, "{case}"),
                "cvmfs" => {
                    for c in [&payload, &pilot] {
                        assert_eq!(named(&c["volumeMounts"], "cvmfs")["readOnly"], true, "{case}");
                    }
                    assert_eq!(named(&pilot["env"], "LATEBIND_PAYLOAD_HAS")["value"], "/cvmfs", "{case}");
                    assert_eq!(named(&spec["volumes"], "cvmfs")["persistentVolumeClaim"]["claimName"], "cvmfs");
                }
                "ca-bundle" => {
                    for c in [&payload, &pilot] {
                        let file = &named(&c["env"], "SSL_CERT_FILE")["value"];
                        let mount = &named(&c["volumeMounts"], "ca-bundle")["mountPath"];
                        assert_eq!(*file, format!("{}/ca-bundle.crt", mount.as_str().unwrap()), "{case}");
                    }
                }
                "gpu" => {
                    assert_eq!(payload["resources"]["limits"]["nvidia.com/gpu"], 1, "{case}");
                    assert!(payload["resources"]["limits"]["memory"].is_string(), "{case}");
                    assert!(pilot["resources"]["limits"]["nvidia.com/gpu"].is_null(), "{case}");
                    assert_eq!(named(&pilot["env"], "LATEBIND_GPUS_0")["value"], "1", "{case}");
                }
                "image-volume" => {
                    let bin = named(&spec["volumes"], "bin");
                    assert!(bin["image"]["reference"].is_string() && bin["emptyDir"].is_null(), "{case}: {bin}");
                    for c in containers(&mut spec).into_iter().filter(|c| c["name"] != "extra") {
                        assert_eq!(named(&c["volumeMounts"], "bin")["readOnly"], true, "{case}");
                    }
                }
                "extra-container" => {
                    let is_sidecar = names(&spec["initContainers"]).contains(&"payload");
                    let extra = container(&mut spec, "extra");
                    assert_eq!(extra["restartPolicy"] == "Always", is_sidecar, "{case}: or the pod would never end");
                }
                "second-slot" => {
                    assert_eq!(
                        container(&mut spec, "install")["args"],
                        json!(["install", "--slot", "0", "--slot", "1"])
                    );
                    let is_sidecar = names(&spec["initContainers"]).contains(&"payload");
                    let second = container(&mut spec, "payload-1").clone();
                    assert_eq!(second["restartPolicy"] == "Always", is_sidecar, "{case}: or the pod would never end");
                    for field in ["securityContext", "workingDir", "terminationMessagePolicy", "imagePullPolicy"] {
                        assert_eq!(second[field], payload[field], "{case}: {field}");
                    }
                    assert_eq!(named(&pilot["env"], "LATEBIND_SLOTS")["value"], "2", "{case}");
                    for (variable, resource) in [("CPUS", "cpu"), ("MEMORY", "memory")] {
                        for (ending, name) in [("", "payload"), ("_1", "payload-1")] {
                            let said = &named(&pilot["env"], &format!("LATEBIND_{variable}{ending}"))["valueFrom"];
                            let (of, which) = (&said["resourceFieldRef"], format!("limits.{resource}"));
                            assert_eq!(
                                (&of["containerName"], &of["resource"]),
                                (&json!(name), &json!(which)),
                                "{case}"
                            );
                        }
                    }
                    // Each mount of slot 1 is one of slot 0, and each of its volumes is there.
                    for (c, other) in [(&second, &payload), (&pilot, &pilot)] {
                        let of = |c: &Value, ending: &str| -> Vec<(String, String)> {
                            let mounts = c["volumeMounts"].as_array().unwrap().iter();
                            let text = |m: &Value, field: &str| m[field].as_str().unwrap().to_owned();
                            let mut all: Vec<_> = mounts
                                .filter(|m| text(m, "name").ends_with(ending))
                                .map(|m| {
                                    (text(m, "name").replace("-1", "-0"), text(m, "mountPath").replace("/1/", "/0/"))
                                })
                                .collect();
                            all.sort();
                            all
                        };
                        assert_eq!((of(c, "-1"), of(c, "-1").len()), (of(other, "-0"), 4), "{case}");
                    }
                    for volume in ["ctl-1", "data-1", "tmp-1", "shm-1"] {
                        let size = &named(&spec["volumes"], volume)["emptyDir"]["sizeLimit"];
                        assert!(size.is_string(), "{case}: {volume}");
                    }
                }
                // Of the account alone: see below.
                "events" => assert_eq!(spec, spec_of(as_objects(&laid_over(base, &[], ""))), "{case}"),
                other => panic!("say here what {other} does"),
            }
        }
        // And all of them together.
        let spec = spec_of(as_objects(&laid_over(base, &paths(&all), "")));
        starts_in_order(&spec, base);
    }
}

#[test]
fn the_component_for_events_adds_one_rule_to_the_role_and_nothing_else() {
    needs("1.20 or later");
    for base in ["deploy", "deploy/job", "deploy/job-before-1.32", "deploy/htcondor", "deploy/htcondor-before-1.32"] {
        let objects = |components: &[String]| as_objects(&laid_over(base, components, ""));
        let (before, mut after) = (objects(&[]), objects(&["deploy/components/events".into()]));
        let role = after.iter_mut().find(|o| o["kind"] == "Role").expect(base);
        let added = role["rules"].as_array_mut().unwrap().pop().unwrap();
        let wanted = json!({"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]});
        assert_eq!(added, wanted, "{base}");
        assert_eq!(after, before, "{base}");
    }
}

#[test]
fn pods_that_were_drained_are_no_failure_of_a_job() {
    needs("1.20 or later");
    for (manifest, never) in [
        ("deploy/job", true),
        ("deploy/htcondor", true),
        ("deploy/job-before-1.32", false),
        ("deploy/htcondor-before-1.32", false),
    ] {
        let objects = manifest::objects(manifest);
        let job = objects.iter().find(|o| o["kind"] == "Job").unwrap();
        assert_eq!(job["spec"]["template"]["spec"]["restartPolicy"] == "Never", never, "{manifest}");
        let ignored = &job["spec"]["podFailurePolicy"]["rules"][0];
        // The API server takes no such policy for pods whose containers are started again.
        assert_eq!(ignored["action"] == "Ignore", never, "{manifest}: {ignored}");
        assert_eq!(ignored["onPodConditions"][0]["type"] == "DisruptionTarget", never, "{manifest}: {ignored}");
    }
}

/// The kustomization that docs/kubernetes.md shows, but for its first lines.
fn documented() -> String {
    let text = include_str!("../../../docs/kubernetes.md");
    let (_, text) = text.split_once("## Your own settings").unwrap();
    let (_, text) = text.split_once("```yaml\n").unwrap();
    let (text, _) = text.split_once("```\n").unwrap();
    let (head, rest) = text.split_once("images:").unwrap();
    assert!(head.contains("resources: [../latebind/deploy]"), "{head}");
    format!("images:{rest}")
}

#[test]
fn the_documented_changes_break_no_manifest() {
    needs("1.20 or later");
    for base in MANIFESTS {
        let mut spec = spec_of(as_objects(&laid_over(base, &[], &documented())));
        starts_in_order(&spec, base);
        assert_eq!(
            (&spec["nodeSelector"]["pool"], &spec["nodeSelector"]["kubernetes.io/os"]),
            (&json!("science"), &json!("linux"))
        );
        assert_eq!(spec["tolerations"][0]["key"], "science", "{base}");
        assert_eq!(named(&spec["volumes"], "data-0")["emptyDir"]["sizeLimit"], "10Gi", "{base}");
        assert_eq!(named(&spec["volumes"], "ctl-0")["emptyDir"]["medium"], "Memory", "{base}");
        for c in containers(&mut spec) {
            let image = c["image"].as_str().unwrap();
            assert!(
                image.starts_with("registry.example.org/me/") || image.contains("htcondor-pilot"),
                "{base}: {image}"
            );
        }
        let payload = container(&mut spec, "payload").clone();
        assert_eq!(payload["resources"]["limits"]["memory"], "2Gi", "{base}");
        assert_eq!(names(&payload["volumeMounts"]).len(), 6, "{base}: {:#}", payload["volumeMounts"]);
        assert!(payload["command"][0] == "/shared/bin/glue" && payload["securityContext"].is_object(), "{base}");
        let pilot = container(&mut spec, "pilot");
        assert_eq!(named(&pilot["env"], "LATEBIND_DATA_SIZE")["value"], "10Gi", "{base}");
        assert_eq!(named(&pilot["volumeMounts"], "cache")["mountPath"], "/scratch/slot/0/cache", "{base}");
    }
}

/// A pilot of the StatefulSet with these changes to its rendered pod spec, which come from a component or the docs.
fn pilot_with(manifest: &str) -> Options {
    Options::new().manifests(&["deploy/base", manifest])
}

#[test]
fn a_pod_with_the_documented_changes_runs_jobs() {
    needs("1.20 or later");
    let nodes = cluster().ask_json(&["get", "nodes"]);
    let node = nodes["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster().ask(&["label", "node", &node, "--overwrite", "pool=science"]);
    let documented = spec_of(as_objects(&laid_over("deploy/statefulset", &[], &documented())));
    let images = |spec: &mut Value| -> Vec<Value> { containers(spec).iter().map(|c| c["image"].clone()).collect() };
    let pilot = Options::new()
        .change(move |spec| {
            // All of it, but for what a test changes itself: images that this cluster can pull, its network.
            let (pulled, own) = (images(spec), spec.clone());
            *spec = documented;
            for (c, image) in containers(spec).into_iter().zip(pulled) {
                c["image"] = image;
            }
            spec["hostNetwork"] = own["hostNetwork"].clone();
            let network = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];
            for (name, value) in network.map(|name| (name, named_if_any(&own["containers"], "pilot", name))) {
                if let Some(value) = value {
                    manifest::set_env(container(spec, "pilot"), name, &value);
                }
            }
            for c in containers(spec) {
                c["resources"]["requests"]["cpu"] = json!("10m");
            }
        })
        .start();
    let image = cluster().image("busybox");
    let script = "[ -z \"$(ls -A /cache)\" ] && echo empty; echo of-one >/cache/file";
    for _ in 0..2 {
        let ran = pilot.run(&[&image, "--", "/bin/sh", "-c", script]);
        assert_eq!((ran.code, ran.out().as_str()), (Some(0), "empty\n"), "{}", ran.err());
    }
    let check = pilot.exec("pilot", &["watcher", "check"]);
    assert_eq!(check.code, Some(0), "{}", check.out());
    cluster().ask(&["label", "node", &node, "pool-"]);
}

/// A variable of a container, if it has it.
fn named_if_any(list: &Value, name: &str, variable: &str) -> Option<String> {
    let env = &named(list, name)["env"];
    let found = env.as_array()?.iter().find(|e| e["name"] == variable)?;
    Some(found["value"].as_str()?.to_owned())
}

/// A volume of the cluster's, deleted with the value.
struct Volume(String);

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = std::panic::catch_unwind(|| cluster().call(&["delete", "persistentvolume", &self.0, "--wait=false"]));
    }
}

/// Jobs in three images, each with a record, one after the other.
#[track_caller]
fn jobs_run(pilot: &Pilot) {
    for (image, argv) in [
        ("busybox", ["/bin/busybox", "true"]),
        ("debian", ["/bin/cat", "/etc/debian_version"]),
        ("noshell", ["/probe", "hello"]),
    ] {
        let ran = pilot.run(&[&[cluster().image(image).as_str(), "--"], argv.as_slice()].concat());
        assert_eq!(ran.code, Some(0), "{image}: {}{}", ran.out(), ran.err());
    }
}

#[test]
fn a_site_file_system_is_in_pilot_and_payload() {
    needs("1.20 or later; node");
    let namespace = Namespace::new();
    let site = cluster().node().directory();
    site.put("site", 0, &[("repository/file", b"of the site\n")]);
    let volume = Volume(unique("cvmfs"));
    let objects = [
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume.0}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": site.path().join("site")},
            "claimRef": {"namespace": namespace.name(), "name": "cvmfs"}}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "cvmfs", "namespace": namespace.name()}, "spec": {
            "accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": volume.0,
            "resources": {"requests": {"storage": "1Gi"}}}}),
    ];
    for object in &objects {
        cluster().ask_with_input(&["create", "-f", "-"], object.to_string());
    }
    // The engine takes it only where the node's own mount is shared, as systemd makes it; this machine need not have that.
    let without_propagation = |spec: &mut Value| {
        for c in containers(spec) {
            for mount in c["volumeMounts"].as_array_mut().unwrap().iter_mut().filter(|m| m["name"] == "cvmfs") {
                assert_eq!(mount["mountPropagation"].take(), "HostToContainer");
                mount.as_object_mut().unwrap().remove("mountPropagation");
            }
        }
    };
    let pilot = pilot_with("deploy/statefulset + cvmfs").spool(&[]).change(without_propagation).start_in(namespace);
    assert_eq!(pilot.shell("cat /cvmfs/repository/file"), "of the site\n");
    let script = "cat /cvmfs/repository/file; touch /cvmfs/x 2>/dev/null && echo written; true";
    for (name, image) in [("first", "busybox"), ("second", "debian")] {
        let job = json!({"image": cluster().image(image), "argv": ["/bin/sh", "-c", script]});
        assert_eq!(pilot.job(name, &job).is_good().text("stdout"), "of the site\n", "{name}");
    }
    // What clients ask for is satisfied by this (watcher/src/job/binds.rs).
    assert_eq!(pilot.shell("echo \"$LATEBIND_PAYLOAD_HAS\""), "/cvmfs\n");
}

#[test]
fn a_site_s_certificate_authorities_are_where_programs_look() {
    needs("1.20 or later");
    let namespace = Namespace::new();
    let bundle = "-----BEGIN CERTIFICATE-----\nof the site\n-----END CERTIFICATE-----\n";
    namespace.create(&[json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "latebind-ca", "namespace": namespace.name()}, "data": {"ca-bundle.crt": bundle}})]);
    let pilot = pilot_with("deploy/statefulset + ca-bundle").start_in(namespace);
    assert_eq!(pilot.shell("cat \"$SSL_CERT_FILE\""), bundle);
    for variable in ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"] {
        let script = format!("cat \"${variable}\"");
        let ran = pilot.run(&[&cluster().image("busybox"), "--", "/bin/sh", "-c", &script]);
        assert_eq!((ran.code, ran.out().as_str()), (Some(0), bundle), "{variable}: {}", ran.err());
    }
}

/// A GPU that the node only says it has, until the value goes.
struct Gpu {
    patcher: Patcher,
    path: String,
}

impl Gpu {
    fn new() -> Self {
        let nodes = cluster().ask_json(&["get", "nodes"]);
        let node = nodes["items"][0]["metadata"]["name"].as_str().unwrap();
        let this = Self { patcher: Patcher::start(), path: format!("/api/v1/nodes/{node}/status") };
        this.set(&json!("1"));
        this
    }

    fn set(&self, number: &Value) {
        let both = json!({"nvidia.com/gpu": number});
        self.patcher.patch(&self.path, &json!({"status": {"capacity": both, "allocatable": both}}));
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.set(&Value::Null)));
    }
}

#[test]
fn a_gpu_stays_with_the_payload_container_over_its_images() {
    needs("1.20 or later; parts");
    let _gpu = Gpu::new();
    let pilot = pilot_with("deploy/statefulset + gpu").start();
    jobs_run(&pilot);
    let limits =
        |name: &str| container(&mut pilot.object()["spec"], name)["resources"]["limits"]["nvidia.com/gpu"].clone();
    assert_eq!((limits("payload"), limits("pilot")), (json!("1"), Value::Null));
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
}

/// Makes and ends processes all the time, and has one that stays.
const BUSY: &str = "sleep 30000 & while :; do /bin/true & sleep 0.05; done";
/// Finds the one that stays, by its whole argument. It may fail for the others, which come and go.
const FIND: &str = "grep -lazs '^30000$' /proc/[0-9]*/cmdline";

#[test]
fn a_further_container_s_processes_are_nobody_s_business() {
    needs("1.20 or later");
    let pilot = pilot_with("deploy/statefulset + extra-container")
        .change(|spec| container(spec, "extra")["command"] = json!(["/bin/sh", "-c", BUSY]))
        .start();
    let stays = || pilot.exec("extra", &["/bin/sh", "-c", FIND]);
    let before = stays().out();
    assert!(!before.trim().is_empty());
    jobs_run(&pilot);
    // A job sees it, and reaches nothing of it.
    let script = format!(
        "p=$({FIND}); p=${{p%/cmdline}}; [ -n \"$p\" ] && echo seen; exec 2>/dev/null; cat $p/environ; ls $p/root/; \
         ls $p/fd/; kill -9 ${{p#/proc/}} && echo killed; true"
    );
    let ran = pilot.run(&[&cluster().image("busybox"), "--", "/bin/sh", "-c", &script]);
    assert_eq!((ran.code, ran.out().as_str()), (Some(0), "seen\n"), "{}", ran.err());
    let ran = pilot.run(&[&cluster().image("busybox"), "--", "/probe", "kill-loop", "2", "--i-am-in-a-container"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err());
    assert_eq!((stays().out(), &pilot.status("extra")["restartCount"]), (before, &json!(0)));
    let check = pilot.exec("pilot", &["watcher", "check"]);
    assert!(check.code == Some(0) && check.out().contains("container extra: runs as user 30000"), "{}", check.out());
}

#[test]
fn a_further_container_with_the_payload_s_user_is_named_and_harms_no_job() {
    needs("1.20 or later");
    let pilot = pilot_with("deploy/statefulset + extra-container")
        .change(|spec| {
            let extra = container(spec, "extra");
            extra["command"] = json!(["/bin/sh", "-c", BUSY]);
            extra["securityContext"]["runAsUser"] = json!(20_000);
        })
        .start();
    let check = pilot.exec("pilot", &["watcher", "check"]);
    let said = check.out();
    assert!(check.code == Some(1) && said.contains("container extra: runs as user 20000"), "{said}");
    jobs_run(&pilot);
    // glue ends whatever has that user.
    eventually("the further container was started again", LIMIT, || {
        let extra = status_of(&pilot.object(), "extra")?;
        (extra["restartCount"].as_u64()? > 0).then_some(())
    });
}

#[test]
fn root_of_a_user_namespace_is_root_enough() {
    needs("1.33 or later");
    for base in ["deploy/statefulset", "deploy/job"] {
        let options = if base == "deploy/job" {
            Options::new().manifest(&format!("{base} + user-namespace"))
        } else {
            pilot_with(&format!("{base} + user-namespace"))
        };
        let pilot = options.without_claims().pilot(&["serve"]).start();
        jobs_run(&pilot);
        let check = pilot.exec("pilot", &["watcher", "check"]);
        assert!(check.code == Some(0) && check.out().contains("users: of a user namespace"), "{base}: {}", check.out());
    }
}

/// What install and glue make of a volume that has glue already and cannot be written: as an image volume, which this
/// server need not know.
#[test]
fn glue_may_lie_in_a_volume_that_nobody_can_write() {
    needs("1.20 or later; node");
    let home = cluster().node().directory();
    let glue = std::fs::read(latebind_tests::pod::program("glue")).unwrap();
    home.put("bin", 0, &[("glue", &glue)]);
    let bin = home.path().join("bin");
    let pilot = |mode: &str, options: Options| {
        cluster().node().shell().ask("chmod \"$1\" \"$2/glue\" && chmod 755 \"$2\"", &[mode, &bin.to_string_lossy()]);
        let path = bin.clone();
        let options = options.change(move |spec| {
            for volume in spec["volumes"].as_array_mut().unwrap().iter_mut().filter(|v| v["name"] == "bin") {
                *volume = json!({"name": "bin", "hostPath": {"path": path}});
            }
            for c in containers(spec) {
                for mount in c["volumeMounts"].as_array_mut().unwrap().iter_mut().filter(|m| m["name"] == "bin") {
                    mount["readOnly"] = json!(true);
                }
            }
        });
        options.start()
    };
    let good = pilot("511", Options::new());
    jobs_run(&good);
    let check = good.exec("pilot", &["watcher", "check"]);
    assert_eq!(check.code, Some(0), "{}", check.out());
    // Readable by others: glue refuses it, and says what to do.
    let bad = pilot("555", Options::new().without_waiting());
    let said = eventually("glue has refused its binary", LIMIT, || {
        let ran = bad.namespace.call(&["logs", &bad.pod, "-c", "payload"]);
        Some(ran.out()).filter(|log| log.contains("only root may be able to read it"))
    });
    assert!(said.contains("555"), "{said}");
}

#[test]
fn glue_comes_from_its_image_as_a_volume() {
    needs("1.33 or later");
    let pilot = pilot_with("deploy/statefulset + image-volume").start();
    jobs_run(&pilot);
    let check = pilot.exec("pilot", &["watcher", "check"]);
    assert_eq!(check.code, Some(0), "{}", check.out());
}
