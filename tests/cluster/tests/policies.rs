//! What the cluster itself says of pilots: the admission policy of `deploy/`, and the Pod Security Standards.

use std::time::Duration;

use latebind_cluster_tests::namespace::Namespace;
use latebind_cluster_tests::pilot::{JOB_WITHIN, Options};
use latebind_cluster_tests::{Ran, Running, cluster, eventually, manifest, needs, unique};
use latebind_tests::pod::Scratch;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Objects of no namespace, deleted with the value.
struct ClusterWide(Vec<(String, String)>);

impl Drop for ClusterWide {
    fn drop(&mut self) {
        for (kind, name) in &self.0 {
            let _ = std::panic::catch_unwind(|| cluster().call(&["delete", kind, name, "--wait=false"]));
        }
    }
}

/// `deploy/admission-policy` as it is shipped, but for one namespace: pilots of other tests have the same account.
#[track_caller]
fn apply_policy(namespace: &Namespace) -> ClusterWide {
    let name = unique("latebind-pilot");
    let mut made = ClusterWide(Vec::new());
    for mut object in manifest::objects("deploy/admission-policy") {
        object["metadata"]["name"] = json!(name);
        if object["kind"] == "ValidatingAdmissionPolicyBinding" {
            object["spec"]["policyName"] = json!(name);
            let only = json!({"kubernetes.io/metadata.name": namespace.name()});
            object["spec"]["matchResources"] = json!({"namespaceSelector": {"matchLabels": only}});
        }
        made.0.push((object["kind"].as_str().unwrap().to_owned(), name.clone()));
        cluster().ask_with_input(&["create", "-f", "-"], object.to_string());
    }
    assert_eq!(made.0.len(), 2, "a policy and its binding: {:?}", made.0);
    made
}

/// A client that has a token and nothing else.
struct Bearer(Scratch);

impl Bearer {
    #[track_caller]
    fn of(token: &str) -> Self {
        let scratch = Scratch::new();
        let mut config = cluster().ask_json(&["config", "view", "--raw", "--minify"]);
        for user in config["users"].as_array_mut().unwrap() {
            user["user"] = json!({"token": token});
        }
        std::fs::write(scratch.path().join("kubeconfig"), config.to_string()).unwrap();
        Self(scratch)
    }

    fn patch(&self, namespace: &Namespace, pod: &str, patch: &Value) -> Ran {
        let mut kubectl = cluster().kubectl();
        kubectl.env("KUBECONFIG", self.0.path().join("kubeconfig")).args(["--namespace", namespace.name()]);
        kubectl.args(["patch", "pod", pod, "--type=json", "-p", &json!([patch]).to_string()]);
        Running::start(&mut kubectl, Vec::new()).finish(JOB_WITHIN)
    }
}

fn replace(path: &str, value: &Value) -> Value {
    json!({"op": "replace", "path": path, "value": value})
}

fn add(path: &str, value: &Value) -> Value {
    json!({"op": "add", "path": path, "value": value})
}

/// The Job's Role is for every pod of its namespace: only the policy confines it.
#[test]
fn the_admission_policy_leaves_a_pilot_the_images_of_its_own_payloads() {
    needs("1.32 or later");
    let pilot = Options::new().manifest("deploy/job").without_claims().pilot(&["serve"]).start();
    let namespace = &pilot.namespace;
    let other = "another";
    let image = cluster().image("busybox");
    namespace.create(&[json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": other}, "spec": {
        "nodeSelector": {"latebind.dev/test": "none"}, "containers": [{"name": "payload", "image": &image}]}})]);
    let _policy = apply_policy(namespace);
    let bearer = Bearer::of(&pilot.shell(&format!("cat {TOKEN}")));
    let other_image = replace("/spec/containers/0/image", &json!(cluster().image("debian")));
    let not_its_own = "the pod that its own token belongs to";
    eventually("the policy is in force", LIMIT, || {
        bearer.patch(namespace, other, &other_image).err().contains(not_its_own).then_some(())
    });

    let before = pilot.object()["spec"].clone();
    let toleration = json!({"key": "test", "operator": "Exists"});
    for (patch, words) in [
        (replace("/spec/containers/0/image", &json!(image)), "the image of the containers payload"),
        (replace("/spec/initContainers/0/image", &json!(image)), "the image of the init containers payload"),
        (add("/spec/activeDeadlineSeconds", &json!(3600)), "images in its pod's spec"),
        (add("/spec/tolerations/-", &toleration), "images in its pod's spec"),
        (add("/metadata/finalizers/-", &json!("latebind.dev/test")), "finalizers, owners or any other metadata"),
        (add("/metadata/labels/test", &json!("yes")), "the label latebind.dev/state, and no other"),
        (add("/metadata/annotations/test", &json!("yes")), "pod-deletion-cost, and no other"),
    ] {
        let ran = bearer.patch(namespace, &pilot.pod, &patch);
        assert!(ran.code != Some(0) && ran.err().contains(words), "{patch}: {}{}", ran.out(), ran.err());
    }
    assert_eq!(pilot.object()["spec"], before);
    // The account's token, but of no pod.
    let unbound = namespace.ask(&["create", "token", "latebind-pilot"]);
    let ran = Bearer::of(unbound.trim()).patch(namespace, &pilot.pod, &add("/metadata/labels/test", &json!("yes")));
    assert!(ran.code != Some(0) && ran.err().contains(not_its_own), "{}{}", ran.out(), ran.err());

    // All that a pilot does is left to it: binds, and the marks of its own pod.
    for name in ["busybox", "debian"] {
        let ran = pilot.run(&[&cluster().image(name), "--", "/bin/sh", "-c", "echo runs"]);
        assert_eq!((ran.code, ran.out().as_str()), (Some(0), "runs\n"), "{name}: {}", ran.err());
    }
    let check = pilot.exec("pilot", &["watcher", "check"]);
    assert_eq!(check.code, Some(0), "{}", check.out());
    pilot.until("the pod is marked as idle", LIMIT, |pod| {
        (pod["metadata"]["labels"]["latebind.dev/state"] == "idle").then_some(())
    });
}

/// Whether the server would make this pod there, and why not.
fn would_make(namespace: &Namespace, pod: &Value) -> Result<(), String> {
    let mut kubectl = cluster().kubectl();
    kubectl.args(["--namespace", namespace.name(), "create", "--dry-run=server", "-f", "-"]);
    let ran = Running::start(&mut kubectl, pod.to_string().into_bytes()).finish(JOB_WITHIN);
    if ran.code == Some(0) { Ok(()) } else { Err(ran.err()) }
}

/// A namespace that enforces a Pod Security Standard, as `deploy/namespace.yaml` does.
#[track_caller]
fn enforcing(level: &str) -> Namespace {
    let namespace = Namespace::new();
    let label = format!("pod-security.kubernetes.io/enforce={level}");
    cluster().ask(&["label", "namespace", namespace.name(), &label]);
    namespace.create(&[json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "latebind-pilot"}})]);
    let host_network = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host"}, "spec": {
        "hostNetwork": true, "containers": [{"name": "c", "image": "none"}]}});
    eventually(&format!("{level} is enforced"), LIMIT, || would_make(&namespace, &host_network).err());
    namespace
}

#[test]
fn baseline_admits_every_shipped_pod_and_restricted_none() {
    needs("1.33 or later");
    let (baseline, restricted) = (enforcing("baseline"), enforcing("restricted"));
    let bases = [
        "deploy/statefulset",
        "deploy/job",
        "deploy/job-before-1.32",
        "deploy/htcondor",
        "deploy/htcondor-before-1.32",
        "deploy/examples/fixed-sequence",
        "deploy/examples/dynamic",
    ];
    let components = ["user-namespace", "cvmfs", "ca-bundle", "gpu", "image-volume", "extra-container", "second-slot"];
    let with_components =
        ["deploy/statefulset", "deploy/job"].into_iter().flat_map(|base| components.map(|c| format!("{base} + {c}")));
    for what in bases.into_iter().map(str::to_owned).chain(with_components) {
        let mut pods = 0;
        for mut object in manifest::objects(&what) {
            let Some(spec) = manifest::pod_spec(&mut object) else { continue };
            if !manifest::has(spec, "pilot") {
                continue;
            }
            let mut pod = if object["kind"] == "Pod" { object } else { manifest::bare_pod(&object) };
            pod["metadata"]["name"] = json!("pilot");
            pods += 1;
            manifest::move_to(&mut pod, baseline.name());
            assert_eq!(would_make(&baseline, &pod), Ok(()), "{what}");
            manifest::move_to(&mut pod, restricted.name());
            let why = would_make(&restricted, &pod).expect_err(&what);
            for words in ["violates PodSecurity \"restricted", "unrestricted capabilities"] {
                assert!(why.contains(words), "{what}: {words:?} is not in {why}");
            }
        }
        assert!(pods > 0, "{what} makes no pod with a pilot");
    }
}
