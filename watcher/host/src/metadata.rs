//! What an image says beside its files, and what of it podman or a runtime acts upon: annotations, labels, environment.
//!
//! An image decides nothing about how it is run. One that tries to is refused, and the message names what it carries.
//! What ordinary images carry (`org.opencontainers.*`, `com.docker.*`, a maintainer's own) has no effect and is let
//! through. Unknown annotations do not reach the runtime either: see [`crate::podman`].

use serde::Deserialize;
use std::collections::BTreeMap;
use watcher::bind::{Configured, Failure, ImageCommand, Reason};
use watcher::text;

/// Annotations and labels that somebody acts upon, by the beginning of the key, or the whole key where it does not end
/// in a separator. From the sources and manuals of crun (`potentially_unsafe_annotations`, crun(1)), runc
/// (`PotentiallyUnsafeConfigAnnotations`, docs/systemd.md), podman (`libpod/define/annotations.go`, `pkg/annotations`,
/// podman-auto-update(1), `pkg/specgen/generate`), CRI-O, containerd, Kata Containers, gVisor, NVIDIA's runtime and
/// CDI.
const ACTED_UPON: [(&str, &str); 23] = [
    ("run.oci.", "crun"),
    ("krun.", "crun"),
    ("module.wasm.image/", "crun"),
    ("org.criu.", "crun and runc"),
    ("org.systemd.property.", "runc and crun"),
    ("org.opencontainers.runc.", "runc"),
    ("bundle", "runc"),
    ("io.containers.", "podman"),
    ("io.podman.", "podman"),
    ("io.podman/", "podman"),
    ("io.container.manager", "podman"),
    ("volume.podman.io/", "podman"),
    ("PODMAN_", "podman"),
    ("io.kubernetes.", "Kubernetes runtimes"),
    ("io.crio.", "CRI-O"),
    ("io.containerd.", "containerd"),
    ("seccomp.security.alpha.kubernetes.io/", "Kubernetes runtimes"),
    ("container.apparmor.security.beta.kubernetes.io/", "Kubernetes runtimes"),
    ("io.katacontainers.", "Kata Containers"),
    ("dev.gvisor.", "gVisor"),
    ("nvidia.", "NVIDIA's runtime"),
    ("cdi.k8s.io/", "device plugins"),
    ("org.freebsd.", "ocijail"),
];
/// Most bytes of an image's environment. The kernel takes 2 MiB for a program's arguments and environment, and the job
/// adds its own.
const ENVIRONMENT_MAX: usize = 1 << 20;
/// Most bytes of one variable (MAX_ARG_STRLEN of execve(2)), its end included.
const VARIABLE_MAX: usize = 128 << 10;
/// Most keys that a message names, and most characters of each.
const NAMED: (usize, usize) = (8, 128);

/// What podman says of an image; everything else of it is not looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Metadata {
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    config: Config,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    env: Option<Vec<String>>,
    /// Docker has them here, podman here and above.
    labels: Option<BTreeMap<String, String>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(flatten)]
    run: Configured,
}

impl Metadata {
    /// Refuses an image, `name`, that carries what somebody acts upon, or more than a program can be given.
    pub fn check(&self, name: &str) -> Result<(), Failure> {
        let mut named = Vec::new();
        let labels = self.labels.as_ref().or(self.config.labels.as_ref());
        for (kind, all) in [("annotation", self.annotations.as_ref()), ("label", labels)] {
            for key in all.into_iter().flat_map(BTreeMap::keys) {
                if let Some(who) = acts_upon(key) {
                    named.push(format!("the {kind} \"{}\" (read by {who})", shown(key)));
                }
            }
        }
        if !named.is_empty() {
            let more = named.len().saturating_sub(NAMED.0);
            named.truncate(NAMED.0);
            let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
            return Err(Failure::hold(
                Reason::ImageControlsEngine,
                format!(
                    "{name} carries {}{rest}; an image cannot decide how it is run: build it without",
                    named.join(", ")
                ),
            ));
        }
        self.check_environment(name)
    }

    /// What it runs by itself; `None` where that is larger than any that is used.
    pub fn command(&self) -> Option<ImageCommand> {
        self.config.run.clone().command()
    }

    /// The volumes that it declares, for a message.
    pub fn volumes(&self) -> Vec<String> {
        self.config.volumes.iter().flat_map(BTreeMap::keys).take(NAMED.0).map(|path| shown(path)).collect()
    }

    fn check_environment(&self, name: &str) -> Result<(), Failure> {
        let variables = self.config.env.as_deref().unwrap_or_default();
        let too_large = |what: String| {
            Err(Failure::hold(
                Reason::CreateContainerError,
                format!("{name}: {what}, and no program could be started with that: build it with less ENV"),
            ))
        };
        if let Some(variable) = variables.iter().find(|v| v.len() >= VARIABLE_MAX) {
            let key = variable.split('=').next().unwrap_or_default();
            return too_large(format!(
                "the variable \"{}\" of its environment takes {} bytes",
                shown(key),
                variable.len()
            ));
        }
        // Each has its end and a pointer.
        let all: usize = variables.iter().map(|v| v.len() + 9).sum();
        if all > ENVIRONMENT_MAX { too_large(format!("its environment takes {all} bytes")) } else { Ok(()) }
    }
}

/// Who acts upon a label or annotation with this key.
fn acts_upon(key: &str) -> Option<&'static str> {
    let is = |known: &str| {
        if known.ends_with(['.', '/', '_']) { key.starts_with(known) } else { key == known }
    };
    ACTED_UPON.into_iter().find(|(known, _)| is(known)).map(|(_, who)| who)
}

/// A key for a message: an image's text, so bounded, and without what a terminal would obey.
fn shown(key: &str) -> String {
    text::shown(key, NAMED.1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use serde_json::json;

    fn image(value: serde_json::Value) -> Metadata {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_ordinary_images_carry_is_let_through() {
        let labels = json!({
            "maintainer": "somebody", "org.opencontainers.image.title": "x", "com.docker.compose.project": "x",
            "io.buildah.version": "1.28", "io.k8s.display-name": "x", "io.openshift.tags": "x",
            "com.nvidia.volumes.needed": "x",
            "build-date": "x", "bundles": "x", "org.label-schema.name": "x", "io.containersomething": "x",
            "run.something": "x",
            "desktop.docker.io/wasm": "x", "runc": "x", "nvidia": "x", "": ""
        });
        let metadata = image(json!({"Labels": labels, "Annotations": labels, "Config": {"Env": ["PATH=/bin", "A=b"]}}));
        assert_eq!(metadata.check("x"), Ok(()));
        for empty in [json!({}), json!({"Labels": null, "Annotations": null, "Config": {"Env": null}})] {
            assert_eq!(image(empty).check("x"), Ok(()));
        }
    }

    #[test]
    fn what_somebody_acts_upon_is_a_hold_that_names_it() {
        for key in [
            "run.oci.seccomp_bpf_data",
            "run.oci.pidfd_receiver",
            "run.oci.handler",
            "krun.ram_mib",
            "module.wasm.image/variant",
            "org.criu.config",
            "org.systemd.property.Description",
            "bundle",
            "io.containers.autoupdate",
            "io.containers.capabilities",
            "io.podman.annotations.userns",
            "io.kubernetes.cri-o.userns-mode",
            "PODMAN_SYSTEMD_UNIT",
            "volume.podman.io/driver",
        ] {
            for kind in ["Labels", "Annotations"] {
                let refusal = image(json!({kind: {key: "x", "maintainer": "y"}})).check("localhost/a:1").unwrap_err();
                assert_eq!(
                    (refusal.class, refusal.reason),
                    (Reason::ImageControlsEngine.class(), Reason::ImageControlsEngine)
                );
                assert!(refusal.message.contains(&format!("\"{key}\"")), "{}", refusal.message);
                assert!(!refusal.message.contains("maintainer"), "{}", refusal.message);
            }
        }
    }

    #[test]
    fn a_message_is_bounded_and_harmless_on_a_terminal() {
        let keys: BTreeMap<String, &str> =
            (0..1000).map(|n| (format!("run.oci.\x1b[2J{n}{}", "x".repeat(1000)), "")).collect();
        let message = image(json!({"Labels": keys})).check("x").unwrap_err().message;
        assert!(message.len() < 3000 && message.contains("and 992 more"), "{message}");
        assert!(!message.contains('\x1b') && message.contains('?'), "{message}");
    }

    #[test]
    fn an_environment_that_no_program_can_have_is_a_hold() {
        let refused = |env: Vec<String>| image(json!({"Config": {"Env": env}})).check("x").map_err(|r| r.reason);
        assert_eq!(refused(vec![format!("A={}", "x".repeat(VARIABLE_MAX - 3))]), Ok(()));
        assert_eq!(refused(vec![format!("A={}", "x".repeat(VARIABLE_MAX - 2))]), Err(Reason::CreateContainerError));
        let many = |n: usize| (0..n).map(|i| format!("A{i:05}={}", "x".repeat(1000))).collect();
        assert_eq!(refused(many(1000)), Ok(()));
        assert_eq!(refused(many(1100)), Err(Reason::CreateContainerError));
    }
}
