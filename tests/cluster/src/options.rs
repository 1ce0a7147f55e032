//! What a test asks of its pilot: which manifest, and what to change in it.

use std::path::Path;

use latebind_tests::pod::Scratch;
use serde_json::{Value, json};

use crate::access::cluster;
use crate::manifest;
use crate::namespace::Namespace;
use crate::pilot::Pilot;

type Change = Box<dyn FnOnce(&mut Value)>;

/// What a test asks of its pilot.
pub struct Options {
    manifest: String,
    alone: bool,
    as_pod: Option<String>,
    slots: u32,
    command: Option<Vec<String>>,
    arguments: Option<Vec<String>>,
    spool: bool,
    changes: Vec<Change>,
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
            manifest: "deploy".into(),
            alone: false,
            as_pod: None,
            slots: 1,
            command: None,
            arguments: None,
            spool: false,
            changes: Vec::new(),
            wait: true,
        }
    }

    /// Another kustomization of the project.
    pub fn manifest(mut self, directory: &str) -> Self {
        self.manifest = directory.into();
        self
    }

    /// The test has the cluster for itself, because it stops a part of it.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// The bare pod of the manifest's template, which nothing makes anew, with this restartPolicy.
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

    /// A spool on this machine at /spool in the pilot, which serves it: `watcher pilot --spool /spool` and these arguments. Of our own
    /// cluster only. With [`command`](Self::command) it is only mounted.
    pub fn spool(mut self, arguments: &[&str]) -> Self {
        let _ = cluster().node();
        self.spool = true;
        self.arguments = Some(owned(&[&["pilot", "--spool", "/spool"], arguments].concat()));
        self
    }

    /// A variable in the environment of the pilot container.
    pub fn env(self, name: &str, value: &str) -> Self {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.change(move |spec| manifest::set_env(manifest::container(spec, "pilot"), &name, &value))
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

    /// Makes the objects and waits until the pod is ready.
    #[track_caller]
    pub fn start(self) -> Pilot {
        let namespace = if self.alone { Namespace::alone() } else { Namespace::new() };
        let scratch = self.spool.then(Scratch::new);
        let wait = self.wait;
        let (objects, pod) = self.objects(namespace.name(), scratch.as_ref().map(Scratch::path));
        namespace.create(&objects);
        let pilot = Pilot { namespace, pod, scratch };
        if wait {
            pilot.ready();
        }
        pilot
    }

    /// The objects, and the name that the pod will have.
    fn objects(self, namespace: &str, scratch: Option<&Path>) -> (Vec<Value>, String) {
        let mut objects = manifest::objects(&self.manifest);
        objects.retain(|o| o["kind"] != "Namespace");
        let mut changes = Some((self.changes, self.command, self.arguments));
        let mut pod = None;
        for object in &mut objects {
            manifest::move_to(object, namespace);
            let Some(spec) = manifest::pod_spec(object) else { continue };
            let (changes, command, arguments) = changes.take().expect("one object that makes pods");
            manifest::use_registry(spec);
            if cluster().is_own() {
                manifest::fit_own_cluster(spec);
            }
            if self.slots != 1 {
                manifest::set_slots(spec, self.slots);
            }
            if let Some(scratch) = scratch {
                std::fs::create_dir_all(scratch.join("spool/new")).unwrap();
                manifest::push(
                    &mut spec["volumes"],
                    json!({"name": "spool", "hostPath": {"path": scratch.join("spool"), "type": "Directory"}}),
                );
                let pilot = manifest::container(spec, "pilot");
                manifest::push(&mut pilot["volumeMounts"], json!({"name": "spool", "mountPath": "/spool"}));
            }
            let pilot = manifest::container(spec, "pilot");
            if let Some(arguments) = arguments {
                pilot["args"] = json!(arguments);
            }
            if let Some(command) = command {
                pilot["command"] = json!(command);
                // There is no watcher to answer the probe.
                let pilot = pilot.as_object_mut().unwrap();
                for field in ["args", "startupProbe", "readinessProbe", "livenessProbe"] {
                    pilot.remove(field);
                }
            }
            for change in changes {
                change(spec);
            }
            if let Some(restart_policy) = &self.as_pod {
                spec["restartPolicy"] = json!(restart_policy);
                *object = bare_pod(object);
            }
            pod = Some(pod_name(object));
        }
        (objects, pod.expect("the manifest has an object that makes pods"))
    }
}

/// The pod that an object would make.
fn bare_pod(object: &Value) -> Value {
    let template = &object["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    metadata["name"] = json!(pod_name(object));
    metadata["namespace"] = object["metadata"]["namespace"].clone();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// The name of an object's first pod. A Job's pods have names that are made up; theirs is a label's selector.
fn pod_name(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().expect("an object has a name");
    match object["kind"].as_str() {
        Some("StatefulSet") => format!("{name}-0"),
        Some("Pod") => name.to_owned(),
        kind => panic!("pods of a {kind:?} have no name that is known before: use as_pod"),
    }
}
