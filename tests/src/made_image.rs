//! Images that are made for one test, of busybox, and go with the value.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]

use std::fs;
use std::process::Command;

use latebind_contract::encoding::sha256_hex;
use serde_json::{Value, json};

use crate::pod::{BUSYBOX, Scratch, podman, unique};

/// An image.
pub struct MadeImage(String);

impl MadeImage {
    /// Busybox with these further lines in its Containerfile and these annotations in its manifest (`KEY=VALUE`).
    #[track_caller]
    pub fn new(lines: &str, annotations: &[&str]) -> Self {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("Containerfile"), format!("FROM {BUSYBOX}\n{lines}\n")).unwrap();
        let name = format!("localhost/latebind-test/{}:1", unique("made"));
        let annotations: Vec<String> = annotations.iter().map(|a| format!("--annotation={a}")).collect();
        let options = ["build", "--quiet", "--format=oci", "--layers=false", "--network=none", "--pull=never"];
        let mut arguments = options.to_vec();
        // Some images have device nodes; podman 5 does not give the capability by itself.
        arguments.push("--cap-add=MKNOD");
        arguments.extend(annotations.iter().map(String::as_str));
        arguments.extend(["--tag", &name, scratch.path().to_str().unwrap()]);
        let built = podman(&arguments);
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self(name)
    }

    /// Nothing but a configuration, whatever it says: in no Containerfile could it be written.
    #[track_caller]
    pub fn of_config(config: &Value) -> Self {
        let scratch = Scratch::new();
        let name = format!("localhost/latebind-test/{}:1", unique("made"));
        // An archive without a file.
        let layer = [0u8; 1024];
        let whole = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256_hex(&layer))]}
        });
        let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
        let put = |file: &str, bytes: &[u8]| fs::write(scratch.path().join(file), bytes).unwrap();
        put("layer.tar", &layer);
        put("config.json", whole.to_string().as_bytes());
        put("manifest.json", manifest.to_string().as_bytes());
        let archive = scratch.path().join("image.tar");
        let packed = Command::new("tar")
            .args(["--create", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(scratch.path())
            .args(["manifest.json", "config.json", "layer.tar"])
            .status();
        assert!(packed.unwrap().success());
        let loaded = podman(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
        assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
        Self(name)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for MadeImage {
    fn drop(&mut self) {
        let _ = podman(&["rmi", "--force", &self.0]);
    }
}
