//! The other manifests of `deploy/`, as they are shipped.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use latebind_cluster_tests::namespace::Namespace;
use latebind_cluster_tests::pilot::{Options, debian, shell};
use latebind_cluster_tests::{cluster, eventually, manifest, needs};
use latebind_tests::pod::{Running, Scratch, look_into, with};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_job_before_1_32_completes_with_its_work() {
    needs("1.20 or later; node");
    // The watcher ends glue.
    completes_with_its_work("deploy/job-before-1.32", &["pilot", "payload"]);
}

#[test]
fn a_job_with_a_native_sidecar_completes_with_its_work() {
    needs("1.32 or later; node");
    completes_with_its_work("deploy/job", &["pilot"]);
}

/// The Job of a manifest runs all that is in its spool, and completes; these containers end with 0.
fn completes_with_its_work(manifest: &str, ended: &[&str]) {
    let pilot = Options::new().manifest(manifest).spool(&["--idle-exit", "3", "--name", "pilot"]).start();
    let missing = json!({"image": cluster().missing_image(), "argv": ["true"]});
    // The one without an image is not the last: what comes after it runs as well.
    for (name, job) in
        [("a", shell("echo a")), ("b", missing), ("c", debian("cat /etc/debian_version")), ("d", shell("exit 3"))]
    {
        pilot.put(name, &job);
    }
    // More binds than the failures that a Job is given by default: its controller takes each for one.
    let more = ["e", "f", "g", "h"];
    for (name, job) in more.iter().zip([debian("true"), shell("true")].iter().cycle()) {
        pilot.put(name, job);
    }
    pilot.result("a").is_good();
    pilot.result("b").is("hold", "ImageNotFound");
    pilot.result("c").is_good();
    pilot.result("d").is("final", "Error");
    for name in more {
        pilot.result(name).is_good();
    }
    assert_eq!(pilot.ended(LIMIT), "Succeeded");
    let job = eventually("the Job is complete", LIMIT, || {
        let job = pilot.namespace.ask_json(&["get", "job", "latebind"]);
        let mut conditions = job["status"]["conditions"].as_array()?.clone().into_iter();
        conditions.any(|c| c["type"] == "Complete" && c["status"] == "True").then_some(job)
    });
    assert_eq!((&job["status"]["succeeded"], &job["status"]["failed"]), (&json!(1), &Value::Null), "{job:#}");
    assert_eq!(pilot.status("pilot")["restartCount"], 0);
    for container in ended {
        let ended = pilot.status(container)["state"]["terminated"].clone();
        assert_eq!(ended["exitCode"], 0, "{container}: {ended}");
    }
    // What needed no pilot any more is not lost: the next Job of the name would take it.
    assert!(look_into(&pilot.spool(), "b").is_some_and(|o| o.place == "held"));
}

#[test]
fn a_fixed_sequence_of_images_runs_to_its_end() {
    needs("1.20 or later");
    // Ready: the sequence is over.
    let pilot = Options::new().manifests(&["deploy/base", "deploy/examples/fixed-sequence"]).start();
    let log = pilot.log("pilot");
    assert_eq!(pilot.shell("cat /results/over").trim(), "0", "{log}");
    assert!(log.contains("2 late") && log.contains("1 binding"), "{log}");
    for (step, image) in [("first", "busybox"), ("second", "debian")] {
        let report: Value = serde_json::from_str(&pilot.shell(&format!("cat /results/{step}/report.json"))).unwrap();
        assert_eq!((&report["reason"], &report["verified"]), (&json!("Completed"), &json!(true)), "{step}: {report:#}");
        let image_id = report["container"]["image_id"].as_str().unwrap();
        assert!(image_id.ends_with(&cluster().digest(image)), "{step}: {image_id}");
    }
}

#[test]
fn jobs_of_a_server_are_fetched_run_and_sent_back() {
    needs("1.20 or later");
    let (namespace, directory) = (Namespace::new(), "deploy/examples/dynamic");
    let is_pilot = |o: &Value| o["metadata"]["name"] == "latebind-dynamic" && o["kind"] == "Pod";
    let mut objects = manifest::for_namespace(directory, namespace.name());
    objects.retain(|o| !is_pilot(o));
    namespace.ask(&["create", "secret", "generic", "latebind-jobs", "--from-literal=password=0123456789abcdef"]);
    // The server first: there is no name service in our cluster, so the pilot is told its address.
    namespace.create(&objects);
    let address = eventually("the job server serves", LIMIT, || {
        let pod = namespace.pod("latebind-jobs")?;
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        pod["status"]["podIP"].as_str().filter(|_| ready).map(|address| format!("{address}:8080"))
    });
    let pilot = Options::new()
        .manifests(&["deploy/base", directory])
        .keep(move |o| is_pilot(o) || ["ServiceAccount", "Role", "RoleBinding"].iter().any(|kind| o["kind"] == *kind))
        .env("JOB_SERVER", &address)
        .start_in(namespace);
    let on_server = |script: &str| {
        let ran = pilot.namespace.call(&["exec", "latebind-jobs", "--", "/bin/sh", "-c", script]);
        assert_eq!(ran.code, Some(0), "{script}: {}", ran.err());
        ran.out()
    };
    eventually("all results are with the server", LIMIT, || {
        (on_server("ls /state/results") == "1-hello.tar\n2-words.tar\n3-fails.tar\n").then_some(())
    });
    let of = |job: &str, file: &str| on_server(&format!("tar -xOf /state/results/{job}.tar ./{file}"));
    assert_eq!(of("1-hello", "stdout"), "hello from busybox\n");
    assert_eq!(of("2-words", "outputs/words"), "      1 binding\n      2 late\n");
    let failed: Value = serde_json::from_str(&of("3-fails", "report.json")).unwrap();
    assert_eq!((&failed["class"], &failed["exit_code"]), (&json!("final"), &json!(3)), "{failed:#}");
    assert_eq!((of("3-fails", "stderr").as_str(), &failed["verified"]), ("this job fails\n", &json!(true)));
}

/// A kustomization outside of the project that lays patches over one of its directories, as docs/kubernetes.md says.
/// kustomize takes no absolute paths; the one of our own cluster's kubectl 1.20 wants other fields than its successors.
fn laid_over(scratch: &Path, directory: &str, patches: &[(&str, &str)], lines: &str) -> String {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let up: String = scratch.canonicalize().unwrap().components().skip(1).map(|_| "../").collect();
    let base = format!("{up}{}", project.join(directory).strip_prefix("/").unwrap().display());
    let mut text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nbases:\n- {base}\n{lines}\
         patchesStrategicMerge:\n"
    );
    for (name, patch) in patches {
        std::fs::write(scratch.join(name), patch).unwrap();
        text += &format!("- {name}\n");
    }
    std::fs::write(scratch.join("kustomization.yaml"), text).unwrap();
    scratch.display().to_string()
}

#[test]
fn the_component_for_a_second_slot_makes_one_of_another_size() {
    needs("1.20 or later; node");
    let pilot = Options::new().manifest("deploy + second-slot").spool(&[]).start();
    // Each waits for the other's processes: alone neither would end.
    let script = |own: u32, other: u32| {
        format!(
            "sleep 2000{own} & while ! grep -qaz '^2000{other}$' /proc/[0-9]*/cmdline 2>/dev/null; do sleep 0.1; done; sleep 1"
        )
    };
    pilot.put("in-busybox", &shell(&script(1, 2)));
    pilot.put("in-debian", &debian(&script(2, 1)));
    let (one, other) = (pilot.result("in-busybox"), pilot.result("in-debian"));
    assert_ne!(one.is_good().report.slot, other.is_good().report.slot);
    // What only one of them is large enough for runs there; what neither is stays for another pilot.
    let needs = |memory: &str| with(shell("true"), "requests", json!({"memory": memory}));
    pilot.put("a-too-large", &needs("3G"));
    for name in ["large", "large-too"] {
        pilot.put(name, &needs("1.5G"));
        assert_eq!(pilot.result(name).is_good().report.slot, Some(1));
    }
    assert!(look_into(&pilot.spool(), "a-too-large").is_none());
    let check = pilot.exec("pilot", &["watcher", "check"]);
    assert_eq!(check.code, Some(0), "{}", check.out());
}

#[test]
fn one_script_leads_to_the_first_record() {
    needs("1.20 or later");
    let (namespace, scratch) = (Namespace::new(), Scratch::new());
    let mut patch = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "latebind"},
        "spec": {"template": {"spec": {"containers": [{"name": "pilot", "env": []}]}}}});
    if cluster().is_own() {
        manifest::fit_own_cluster(manifest::pod_spec(&mut patch).unwrap());
    }
    let image = |name: &str| {
        format!("- {{name: localhost/latebind/{name}, newName: {}{name}, newTag: \"1\"}}\n", cluster().image_prefix())
    };
    let lines = format!("namespace: {}\nimages:\n{}{}", namespace.name(), image("glue"), image("pilot"));
    let kustomization = laid_over(scratch.path(), "deploy", &[("own.yaml", &patch.to_string())], &lines);
    let kubectl = cluster().kubectl();
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/first-record.sh"));
    script.arg("current").envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let programs = Path::new(kubectl.get_program()).parent().unwrap().display().to_string();
    let path = [programs, std::env::var("PATH").unwrap()].join(":");
    script.env("PATH", path.trim_start_matches(':')).env("KUSTOMIZATION", kustomization);
    script.env("NAMESPACE", namespace.name()).env("IMAGE", cluster().image("busybox")).env_remove("REGISTRY");
    let mut script = Running::start(&mut script, Vec::new());
    eventually("the script ends", 2 * LIMIT, || {
        namespace.remind("latebind-0");
        script.child.try_wait().unwrap()
    });
    let ran = script.finish(LIMIT);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out(), ran.err());
    let said = ran.out();
    assert!(said.lines().any(|line| line == "hello") && said.contains("exited 0"), "{said}");
}

#[test]
fn the_patch_for_pilot_jobs_makes_a_container_from_which_jobs_run_in_slot_0() {
    needs("1.20 or later");
    let scratch = Scratch::new();
    let patch = ("pilot-job.yaml", include_str!("../../../deploy/examples/pilot-job.yaml"));
    let directory = laid_over(scratch.path(), "deploy", &[patch], "");
    let mut rendered = manifest::objects(&directory);
    let set = rendered.iter_mut().find(|o| o["kind"] == "StatefulSet").unwrap();
    let spec = manifest::pod_spec(set).unwrap();
    let mounts = |container: &Value, volume: &str| -> Vec<String> {
        let all = container["volumeMounts"].as_array().into_iter().flatten();
        all.filter(|m| m["name"] == volume).map(|m| format!("{} {}", m["mountPath"], m["readOnly"])).collect()
    };
    for container in manifest::containers(spec) {
        let (socket, token) = match container["name"].as_str().unwrap() {
            "pilot" => (vec!["\"/clients/slot/1\" null"], 1),
            "payload-1" => (vec!["\"/run/latebind\" true"], 0),
            _ => (vec![], 0),
        };
        assert_eq!(mounts(container, "clients-1"), socket, "{container:#}");
        assert_eq!(mounts(container, "token").len(), token, "{container:#}");
    }
    let pilot = Options::new().manifest(&directory).start();
    let client = "watcher run --socket /run/latebind/clients.sock";
    let [busybox, debian] = ["busybox", "debian"].map(|name| cluster().image(name));
    let script = format!(
        "id -u; {client} --report a {busybox} -- id -u; {client} --report b {debian} -- cat /etc/debian_version; \
         grep -h '\"verified\"' a b; ls /shared/slot /var/run/secrets /clients; \
         for p in /proc/[0-9]*; do [ $(stat -c %u $p) = $(id -u) ] || ls $p/root/ $p/cwd/; done"
    );
    let pilot_job = ["watcher", "run", "--pilot-job", &cluster().image("pilot"), "--", "sh", "-c", &script];
    let ran = pilot.exec("pilot", &pilot_job);
    let out = ran.out();
    let lines: Vec<&str> = out.lines().map(|line| line.trim().trim_end_matches(',')).collect();
    assert_eq!(lines.first().zip(lines.get(1)), Some((&"20001", &"20000")), "{out} {}", ran.err());
    assert!(lines.get(2).is_some_and(|version| version.starts_with("12.")), "{out}");
    assert_eq!(lines.get(3..), Some(&["\"verified\": true", "\"verified\": true", "/shared/slot:", "1"][..]), "{out}");
    assert_eq!(pilot.run(&[&busybox, "--", "echo", "next"]).out(), "next\n");
}
