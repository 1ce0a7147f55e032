//! Images of both architectures, pushed under one name.

use std::path::Path;
use std::process::Command;

use latebind_tests::pod::{podman, state};
use latebind_tests::registry::Registry;
use serde_json::Value;

#[test]
fn images_of_both_architectures_are_pushed_as_one_manifest_list() {
    let registry = Registry::open();
    let publish = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/publish.sh");
    let pushed = Command::new(publish)
        .args(["push", "glue", "pilot"])
        .env("REGISTRY", format!("{}/me", registry.host))
        .env("TAG", "both")
        .env("LATEBIND_STATE", state())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&pushed.stdout);
    assert!(pushed.status.success(), "{said}{}", String::from_utf8_lossy(&pushed.stderr));
    for name in ["glue", "pilot"] {
        let list = format!("{}/me/{name}:both", registry.host);
        let address = format!("http://{}/v2/me/{name}/manifests/both", registry.host);
        let kinds = "Accept: application/vnd.oci.image.index.v1+json, \
                     application/vnd.docker.distribution.manifest.list.v2+json";
        let text = Command::new("curl").args(["--silent", "--max-time", "30", "--header", kinds, &address]).output();
        let text = text.expect("curl is missing: .ci/setup.sh test");
        let manifest: Value = serde_json::from_slice(&text.stdout).unwrap_or_else(|e| panic!("{list}: {e}: {text:?}"));
        let platforms: Vec<_> = manifest["manifests"].as_array().unwrap().iter().map(|m| &m["platform"]).collect();
        let has = |architecture: &str| {
            platforms.iter().filter(|p| p["architecture"] == architecture && p["os"] == "linux").count() == 1
        };
        assert!(platforms.len() == 2 && has("amd64") && has("arm64"), "{manifest:#}");
        // By the digest that a manifest is told to name, each machine gets its own.
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("pushed {list}@"))).unwrap_or_else(|| {
            panic!("no digest of {list} in {said}");
        });
        let by_digest = format!("{}/me/{name}@{line}", registry.host);
        for architecture in ["amd64", "arm64"] {
            let arch = format!("--arch={architecture}");
            let pulled = podman(&["pull", "--quiet", "--tls-verify=false", &arch, &by_digest]);
            assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
            let id = String::from_utf8(pulled.stdout).unwrap().trim().to_owned();
            let is = podman(&["image", "inspect", "--format={{.Architecture}}", &id]);
            assert_eq!(String::from_utf8_lossy(&is.stdout).trim(), architecture);
        }
        let _ = podman(&["rmi", "--force", &by_digest]);
    }
}
