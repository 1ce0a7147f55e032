//! The manifests of `deploy/` as they are shipped, and the few changes that a test has to make.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use latebind_tests::pod::Scratch;
use serde_json::{Value, json};

use crate::access::cluster;

/// What a kustomization of the project renders to: `objects("deploy")`; with components of `deploy/components`:
/// `objects("deploy/job + cvmfs + gpu")`.
///
/// # Panics
/// If kustomize does not like it.
pub fn objects(directory: &str) -> Vec<Value> {
    static RENDERED: Mutex<Option<HashMap<String, Vec<Value>>>> = Mutex::new(None);
    let mut rendered = RENDERED.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || {
        let mut parts = directory.split(" + ");
        let base = parts.next().unwrap_or_default();
        let components: Vec<String> = parts.map(|name| format!("deploy/components/{name}")).collect();
        let yaml = if components.is_empty() { cluster().render(base, false) } else { laid_over(base, &components, "") };
        as_objects(&yaml)
    };
    rendered.get_or_insert_default().entry(directory.to_owned()).or_insert_with(make).clone()
}

/// What a kustomization of an operator's renders to: one of the project's directories, components of it, and further
/// lines, as docs/kubernetes.md has them.
pub fn laid_over(base: &str, components: &[String], lines: &str) -> String {
    let scratch = Scratch::new();
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    // kustomize takes no absolute paths.
    let up: String = scratch.path().canonicalize().unwrap().components().skip(1).map(|_| "../").collect();
    let path = |part: &str| format!("{up}{}", project.join(part).strip_prefix("/").unwrap().display());
    let mut text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{}]\n{lines}",
        path(base)
    );
    if !components.is_empty() {
        let paths: Vec<String> = components.iter().map(|part| path(part)).collect();
        text += &format!("components: [{}]\n", paths.join(", "));
    }
    fs::write(scratch.path().join("kustomization.yaml"), text).unwrap();
    cluster().render(&scratch.path().display().to_string(), true)
}

/// The objects of a YAML text.
pub fn as_objects(yaml: &str) -> Vec<Value> {
    // A client-side dry run prints what it was given, in another form: one document for each object.
    let json = cluster()
        .ask_with_input(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"], yaml.to_owned());
    let documents = serde_json::Deserializer::from_str(&json).into_iter::<Value>();
    documents.map(|d| d.unwrap_or_else(|e| panic!("{e}: {json}"))).flat_map(items).collect()
}

fn items(mut document: Value) -> Vec<Value> {
    // Nothing is added that was not there: strict servers refuse a field that they do not know, even if it is null.
    match document.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => vec![document],
    }
}

/// The same, changed only so that it runs in this namespace of the cluster under test. Namespaces in it are left out.
pub fn for_namespace(directory: &str, namespace: &str) -> Vec<Value> {
    let mut objects = objects(directory);
    objects.retain(|o| o["kind"] != "Namespace");
    for object in &mut objects {
        move_to(object, namespace);
        use_registry(object);
        if let Some(spec) = pod_spec(object) {
            request_few_processors(spec);
            if cluster().is_own() {
                fit_own_cluster(spec);
            }
        }
    }
    objects
}

/// Moves an object, and the accounts that it names, into a namespace.
pub fn move_to(object: &mut Value, namespace: &str) {
    object["metadata"]["namespace"] = json!(namespace);
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        subject["namespace"] = json!(namespace);
    }
}

/// The pod spec in an object: of a pod, or of what makes pods. `None` for other objects.
pub fn pod_spec(object: &mut Value) -> Option<&mut Value> {
    let path = match object["kind"].as_str() {
        Some("Pod") => "/spec",
        Some("StatefulSet" | "Deployment" | "Job" | "ReplicaSet") => "/spec/template/spec",
        _ => return None,
    };
    object.pointer_mut(path)
}

/// The pod that an object of a pod template would make.
pub fn bare_pod(object: &Value) -> Value {
    let template = &object["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    // As the first pod of a StatefulSet is called: that is the name which the Role has.
    metadata["name"] = json!(format!("{}-0", object["metadata"]["name"].as_str().unwrap_or_default()));
    metadata["namespace"] = object["metadata"]["namespace"].clone();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// All containers of a pod spec, init containers first.
pub fn containers(spec: &mut Value) -> Vec<&mut Value> {
    let fields = spec.as_object_mut().into_iter().flatten();
    let mut lists: Vec<_> =
        fields.filter(|(name, _)| matches!(name.as_str(), "initContainers" | "containers")).collect();
    lists.sort_by_key(|(name, _)| *name != "initContainers");
    lists.into_iter().flat_map(|(_, list)| list.as_array_mut().into_iter().flatten()).collect()
}

/// Whether a pod spec has a container of this name.
pub fn has(spec: &mut Value, name: &str) -> bool {
    containers(spec).iter().any(|c| c["name"] == name)
}

/// A container of a pod spec by its name, wherever it is.
///
/// # Panics
/// If there is none.
#[track_caller]
pub fn container<'s>(spec: &'s mut Value, name: &str) -> &'s mut Value {
    let found = containers(spec).into_iter().find(|c| c["name"] == name);
    found.unwrap_or_else(|| panic!("the pod spec has no container {name}"))
}

/// Adds an element to a list that need not be there yet.
pub fn push(list: &mut Value, element: Value) {
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().expect("a list").push(element);
}

/// Sets a variable in a container's environment.
pub fn set_env(container: &mut Value, name: &str, value: &str) {
    if let Some(list) = container.get_mut("env").and_then(Value::as_array_mut) {
        list.retain(|e| e["name"] != name);
    }
    push(&mut container["env"], json!({"name": name, "value": value}));
}

/// What has to be changed for any cluster: our images are in its registry, whoever names them.
pub fn use_registry(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.replace("localhost/latebind/", &cluster().image_prefix()),
        Value::Array(list) => list.iter_mut().for_each(use_registry),
        Value::Object(fields) => fields.values_mut().for_each(use_registry),
        _ => {}
    }
}

/// What has to be changed for a small node: the pods of several tests at once request more processors than it may have.
fn request_few_processors(spec: &mut Value) {
    for container in containers(spec) {
        if let Some(cpu) = container.pointer_mut("/resources/requests/cpu") {
            *cpu = json!("10m");
        }
    }
}

/// What has to be changed for our own cluster: its API server listens on the node's loopback interface alone, which a
/// pilot has only in the node's network.
pub fn fit_own_cluster(spec: &mut Value) {
    if has(spec, "pilot") {
        spec["hostNetwork"] = json!(true);
        let pilot = container(spec, "pilot");
        set_env(pilot, "KUBERNETES_SERVICE_HOST", "127.0.0.1");
        set_env(pilot, "KUBERNETES_SERVICE_PORT", &cluster().api_port().to_string());
    }
}

/// Gives a spec of one slot more of them: each further one a payload container, volumes and an argument of `install` of
/// its own.
pub fn set_slots(spec: &mut Value, slots: u32) {
    let names = |list: &Value, ending: &str| -> Vec<Value> {
        let all = list.as_array().into_iter().flatten();
        all.filter(|v| v["name"].as_str().is_some_and(|n| n.ends_with(ending))).cloned().collect()
    };
    for slot in 1..slots {
        let of_slot = |mut value: Value, field: &str| {
            let text = value[field].as_str().unwrap_or_default();
            value[field] =
                json!(text.replace("-0", &format!("-{slot}")).replace("/slot/0/", &format!("/slot/{slot}/")));
            value
        };
        for volume in names(&spec["volumes"], "-0") {
            push(&mut spec["volumes"], of_slot(volume, "name"));
        }
        for name in ["install", "pilot"] {
            let container = container(spec, name);
            for mount in names(&container["volumeMounts"], "-0") {
                push(&mut container["volumeMounts"], of_slot(of_slot(mount, "name"), "mountPath"));
            }
        }
        push(&mut container(spec, "install")["args"], json!("--slot"));
        push(&mut container(spec, "install")["args"], json!(slot.to_string()));
        let list = if spec["containers"].as_array().unwrap().iter().any(|c| c["name"] == "payload") {
            "containers"
        } else {
            "initContainers"
        };
        let mut payload = container(spec, "payload").clone();
        payload["name"] = json!(format!("payload-{slot}"));
        payload["command"] = json!(["/shared/bin/glue", "run", "--slot", slot.to_string()]);
        let mounts = payload["volumeMounts"].take();
        let mounts = mounts.as_array().cloned().unwrap_or_default().into_iter();
        payload["volumeMounts"] = mounts.map(|m| of_slot(of_slot(m, "name"), "mountPath")).collect();
        push(&mut spec[list], payload);
    }
    set_env(container(spec, "pilot"), "LATEBIND_SLOTS", &slots.to_string());
}
