//! What a test asks of its pilot: which manifest, and what to change in it.

use std::path::Path;

use latebind_tests::pod::eventually;
use serde_json::{Value, json};

use crate::access::cluster;
use crate::manifest;
use crate::namespace::Namespace;
use crate::node::directory::Directory;
use crate::pilot::{Pilot, START_WITHIN};

type Change = Box<dyn FnOnce(&mut Value)>;
type Keep = Box<dyn Fn(&Value) -> bool>;

/// What a test asks of its pilot.
pub struct Options {
    manifests: Vec<String>,
    keep: Keep,
    alone: bool,
    as_pod: Option<String>,
    slots: u32,
    command: Option<Vec<String>>,
    arguments: Option<Vec<String>>,
    spool: bool,
    changes: Vec<Change>,
    settings: Vec<(String, String)>,
    wait: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

impl Options {
    /// `deploy/` as it is: a StatefulSet of one pod with one slot, whose pilot is `watcher serve`.
    pub fn new() -> Self {
        Self {
            manifests: vec!["deploy".into()],
            keep: Box::new(|_| true),
            alone: false,
            as_pod: None,
            slots: 1,
            command: None,
            arguments: None,
            spool: false,
            changes: Vec::new(),
            settings: Vec::new(),
            wait: true,
        }
    }

    /// Another kustomization of the project.
    pub fn manifest(self, directory: &str) -> Self {
        self.manifests(&[directory])
    }

    /// Other kustomizations of the project: `&["deploy/base", "deploy/examples/fixed-sequence"]`. One of their objects
    /// makes the pilot.
    pub fn manifests(mut self, directories: &[&str]) -> Self {
        self.manifests = owned(directories);
        self
    }

    /// Only these of their objects.
    pub fn keep(mut self, keep: impl Fn(&Value) -> bool + 'static) -> Self {
        self.keep = Box::new(keep);
        self
    }

    /// The test has the cluster for itself, because it stops a part of it.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// The bare pod of the manifest's template, which nothing re-creates, with this restartPolicy.
    pub fn as_pod(mut self, restart_policy: &str) -> Self {
        self.as_pod = Some(restart_policy.into());
        self
    }

    /// So many slots.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Arguments of the watcher in place of the manifest's: `&["serve", "--idle", "keep"]`.
    pub fn pilot(mut self, arguments: &[&str]) -> Self {
        self.arguments = Some(owned(arguments));
        self
    }

    /// Another program than the watcher in the pilot container: `&["/bin/sh", "-c", "..."]`.
    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = Some(owned(command));
        self
    }

    /// A spool on the node at /spool in the pilot, which serves it: `watcher pilot --spool /spool` and these arguments.
    pub fn spool(self, arguments: &[&str]) -> Self {
        self.pilot(&[&["pilot", "--spool", "/spool"], arguments].concat()).spool_volume()
    }

    /// The same, but the pilot is what the manifest or [`command`](Self::command) says. Replaces a volume `spool` of
    /// the manifest.
    pub fn spool_volume(mut self) -> Self {
        self.spool = true;
        self
    }

    /// emptyDirs in place of the manifest's volume claims.
    pub fn without_claims(self) -> Self {
        self.keep(|object| object["kind"] != "PersistentVolumeClaim").change(|spec| {
            for volume in spec["volumes"].as_array_mut().into_iter().flatten() {
                if volume["persistentVolumeClaim"].is_object() {
                    *volume = json!({"name": volume["name"], "emptyDir": {}});
                }
            }
        })
    }

    /// A variable in the environment of the pilot container.
    pub fn env(self, name: &str, value: &str) -> Self {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.change(move |spec| manifest::set_env(manifest::container(spec, "pilot"), &name, &value))
    }

    /// A setting in the ConfigMap that the manifests make, as an operator changes it.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Any other change to the pod's spec: see [`manifest`].
    pub fn change(mut self, change: impl FnOnce(&mut Value) + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// [`start`](Self::start) does not wait until the pod is ready.
    pub fn without_waiting(mut self) -> Self {
        self.wait = false;
        self
    }

    /// Makes the objects, in a namespace of their own, and waits until the pod is ready.
    #[track_caller]
    pub fn start(self) -> Pilot {
        let namespace = if self.alone { Namespace::alone() } else { Namespace::new() };
        self.start_in(namespace)
    }

    /// The same in a namespace that has something in it already.
    #[track_caller]
    pub fn start_in(mut self, namespace: Namespace) -> Pilot {
        let home = self.spool.then(|| cluster().node().directory());
        let wait = self.wait;
        let mut objects: Vec<Value> =
            self.manifests.iter().flat_map(|d| manifest::for_namespace(d, namespace.name())).collect();
        objects.retain(&self.keep);
        for config in objects.iter_mut().filter(|o| o["kind"] == "ConfigMap") {
            for (name, value) in &self.settings {
                assert!(config["data"][name].is_string(), "the ConfigMap has no setting {name}");
                config["data"][name] = json!(value);
            }
        }
        let is_pilot = |o: &mut Value| manifest::pod_spec(o).is_some_and(|spec| manifest::has(spec, "pilot"));
        let maker = objects.iter_mut().position(is_pilot).expect("one of the objects makes a pod with a pilot");
        let maker = &mut objects[maker];
        self.change_all(manifest::pod_spec(maker).expect("it makes pods"), home.as_ref());
        if self.as_pod.is_some() {
            *maker = manifest::bare_pod(maker);
        }
        let maker = maker.clone();
        if home.is_some() {
            objects.retain(|o| o["kind"] != "PersistentVolumeClaim");
        }
        namespace.create(&objects);
        let pod = pod_name(&namespace, &maker);
        let pilot = Pilot { namespace, pod, home };
        if wait {
            pilot.ready();
        }
        pilot
    }

    fn change_all(&mut self, spec: &mut Value, home: Option<&Directory>) {
        if self.slots != 1 {
            manifest::set_slots(spec, self.slots);
        }
        if let Some(home) = home {
            home.make("spool/new");
            mount_spool(spec, &home.path().join("spool"));
        }
        let pilot = manifest::container(spec, "pilot");
        if let Some(arguments) = self.arguments.take() {
            pilot["args"] = json!(arguments);
        }
        if let Some(command) = self.command.take() {
            pilot["command"] = json!(command);
            // There is no watcher to answer the probe.
            let pilot = pilot.as_object_mut().unwrap();
            for field in ["args", "startupProbe", "readinessProbe", "livenessProbe"] {
                pilot.remove(field);
            }
        }
        if let Some(restart_policy) = &self.as_pod {
            spec["restartPolicy"] = json!(restart_policy);
        }
        for change in std::mem::take(&mut self.changes) {
            change(spec);
        }
    }
}

fn mount_spool(spec: &mut Value, directory: &Path) {
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|v| v["name"] != "spool");
    }
    manifest::push(
        &mut spec["volumes"],
        json!({"name": "spool", "hostPath": {"path": directory, "type": "Directory"}}),
    );
    let pilot = manifest::container(spec, "pilot");
    if let Some(mounts) = pilot["volumeMounts"].as_array_mut() {
        mounts.retain(|m| m["name"] != "spool");
    }
    manifest::push(&mut pilot["volumeMounts"], json!({"name": "spool", "mountPath": "/spool"}));
}

/// The name of an object's first pod.
fn pod_name(namespace: &Namespace, object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().expect("an object has a name");
    match object["kind"].as_str() {
        Some("StatefulSet") => format!("{name}-0"),
        Some("Pod") => name.to_owned(),
        Some("Job") => eventually(&format!("a pod of the Job {name}"), START_WITHIN, || {
            let pods = namespace.ask_json(&["get", "pods", "-l", &format!("job-name={name}")]);
            Some(pods["items"][0]["metadata"]["name"].as_str()?.to_owned())
        }),
        kind => panic!("which pods a {kind:?} makes is not known here: use as_pod"),
    }
}
