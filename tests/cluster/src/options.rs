//! What a test asks of its pilot: which manifest, and what to change in it.

use std::path::Path;

use latebind_tests::pod::{Scratch, eventually};
use serde_json::{Value, json};

use crate::access::{CALL_WITHIN, cluster};
use crate::manifest;
use crate::namespace::Namespace;
use crate::pilot::Pilot;

type Change = Box<dyn FnOnce(&Namespace, &mut Value)>;

/// What a test asks of its pilot.
pub struct Options {
    manifests: Vec<String>,
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
            manifests: vec!["deploy".into()],
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
        self.manifests = vec![directory.into()];
        self
    }

    /// A further kustomization, whose objects the first one counts on.
    pub fn also(mut self, directory: &str) -> Self {
        self.manifests.push(directory.into());
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

    /// A spool on this machine at /spool in the pilot, in place of a claim of the manifest's, which serves it: `watcher pilot
    /// --spool /spool` and these arguments. Of our own cluster only. With [`command`](Self::command) it is only mounted.
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
    pub fn change(self, change: impl FnOnce(&mut Value) + 'static) -> Self {
        self.change_last(|_, spec| change(spec))
    }

    /// The same, when all objects but the pilot's are there: of what has become of them, its address for instance.
    pub fn change_last(mut self, change: impl FnOnce(&Namespace, &mut Value) + 'static) -> Self {
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
        let pod = self.create(&namespace, scratch.as_ref().map(Scratch::path));
        let pilot = Pilot { namespace, pod, scratch };
        if wait {
            pilot.ready();
        }
        pilot
    }

    /// Makes the objects, the pilot's last; returns the name of its pod.
    fn create(self, namespace: &Namespace, scratch: Option<&Path>) -> String {
        let mut objects: Vec<Value> = self.manifests.iter().flat_map(|m| manifest::objects(m)).collect();
        objects.retain(|o| o["kind"] != "Namespace" && !(scratch.is_some() && o["kind"] == "PersistentVolumeClaim"));
        for object in &mut objects {
            manifest::move_to(object, namespace.name());
            manifest::use_registry(object);
            if let Some(spec) = manifest::pod_spec(object).filter(|_| cluster().is_own()) {
                manifest::fit_own_cluster(spec);
            }
        }
        let is_pilots = |o: &mut Value| manifest::pod_spec(o).is_some_and(manifest::is_pilots);
        let (mut pilots, others): (Vec<Value>, Vec<Value>) =
            objects.into_iter().partition(|o| is_pilots(&mut o.clone()));
        assert_eq!(pilots.len(), 1, "objects of {:?} that make pilots", self.manifests);
        namespace.create(&others);
        let mut object = pilots.remove(0);
        let as_pod = self.as_pod.clone();
        let spec = manifest::pod_spec(&mut object).expect("it makes pods");
        self.apply(namespace, scratch, spec);
        if let Some(restart_policy) = as_pod {
            spec["restartPolicy"] = json!(restart_policy);
            object = bare_pod(&object);
        }
        namespace.create(std::slice::from_ref(&object));
        pod_name(namespace, &object)
    }

    /// What is changed in the pilot's pod.
    fn apply(self, namespace: &Namespace, scratch: Option<&Path>, spec: &mut Value) {
        if self.slots != 1 {
            manifest::set_slots(spec, self.slots);
        }
        if let Some(scratch) = scratch {
            std::fs::create_dir_all(scratch.join("spool/new")).unwrap();
            manifest::mount_spool(spec, &scratch.join("spool"));
        }
        let pilot = manifest::container(spec, "pilot");
        if let Some(arguments) = self.arguments {
            pilot["args"] = json!(arguments);
        }
        if let Some(command) = self.command {
            pilot["command"] = json!(command);
            // There is no watcher to answer the probe.
            let pilot = pilot.as_object_mut().unwrap();
            for field in ["args", "startupProbe", "readinessProbe", "livenessProbe"] {
                pilot.remove(field);
            }
        }
        for change in self.changes {
            change(namespace, spec);
        }
    }
}

/// The pod that an object would make.
fn bare_pod(object: &Value) -> Value {
    let template = &object["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    let name = object["metadata"]["name"].as_str().expect("an object has a name");
    metadata["name"] = json!(if object["kind"] == "StatefulSet" { format!("{name}-0") } else { name.to_owned() });
    metadata["namespace"] = object["metadata"]["namespace"].clone();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// The name of an object's first pod.
fn pod_name(namespace: &Namespace, object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().expect("an object has a name");
    match object["kind"].as_str() {
        Some("StatefulSet") => format!("{name}-0"),
        Some("Pod") => name.to_owned(),
        // Made up by the controller.
        Some("Job") => eventually(&format!("a pod of the Job {name}"), CALL_WITHIN, || {
            let pods = namespace.ask_json(&["get", "pods", "-l", &format!("job-name={name}")]);
            pods["items"][0]["metadata"]["name"].as_str().map(str::to_owned)
        }),
        kind => panic!("how pods of a {kind:?} are named is not known here"),
    }
}
