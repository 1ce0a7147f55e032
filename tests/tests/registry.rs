//! What an image runs by itself, asked of a real registry: Debian's docker-registry on loopback, with HTTPS and an
//! account, to which podman pushes an image.

use std::fs;

use latebind_contract::encoding::sha256_hex;
use latebind_tests::made_image::MadeImage;
use latebind_tests::pod::podman;
use latebind_tests::registry::Registry;
use serde_json::json;
use watcher::bind::kubernetes::registry::{Options, Registries};
use watcher::bind::{Failure, ImageCommand, Reason};

/// Pushes an image in one format; returns its ID as a kubelet says it.
fn push(registry: &Registry, image: &MadeImage, format: &str) -> String {
    let target = format!("{}/test/image:{format}", registry.host);
    let digest = registry.scratch.path().join("digest");
    let certificates = format!("--cert-dir={}", registry.scratch.path().display());
    let to_file = format!("--digestfile={}", digest.display());
    let format = format!("--format={format}");
    let pushed =
        podman(&["push", "--quiet", "--creds=me:pass", &certificates, &to_file, &format, image.name(), &target]);
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    format!("{}/test/image@{}", registry.host, fs::read_to_string(digest).unwrap().trim())
}

fn ask(registry: &Registry, image_id: &str, password: Option<&str>, ca: bool) -> Result<ImageCommand, Failure> {
    let secret = registry.scratch.path().join(".dockerconfigjson");
    let account = json!({"auths": {&registry.host: {"username": "me", "password": password}}});
    fs::write(&secret, account.to_string()).unwrap();
    let registries = Registries::new(Options {
        pull_secret: password.map(|_| secret),
        plain_http: Vec::new(),
        ca: ca.then(|| registry.scratch.path().join("ca.crt")),
    });
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(registries.command("test", image_id))
}

#[test]
fn a_registry_says_what_an_image_runs_to_who_has_its_pull_secret() {
    let image = MadeImage::new("WORKDIR /dir\nENTRYPOINT [\"/say\", \"e\"]\nCMD [\"c\", \"d\"]", &[]);
    let registry = Registry::closed();
    for format in ["oci", "v2s2"] {
        let image_id = push(&registry, &image, format);
        let command = ask(&registry, &image_id, Some("pass"), true).unwrap();
        let wanted = (vec!["/say".to_owned(), "e".into()], vec!["c".to_owned(), "d".into()], "/dir".to_owned());
        assert_eq!((command.entrypoint, command.cmd, command.workdir), wanted, "{format}");
        for password in [None, Some("wrong")] {
            let denied = ask(&registry, &image_id, password, true).unwrap_err();
            assert_eq!(denied.reason, Reason::ImageAccessDenied, "{denied:?}");
            assert!(denied.message.contains("--pull-secret"), "{denied:?}");
        }
        let stranger = ask(&registry, &image_id, Some("pass"), false).unwrap_err();
        assert_eq!(stranger.reason, Reason::RegistryUnavailable, "its certificate is nobody's: {stranger:?}");
    }
    let absent = format!("{}/test/image@sha256:{}", registry.host, sha256_hex(b"absent"));
    assert_eq!(ask(&registry, &absent, Some("pass"), true).unwrap_err().reason, Reason::ImageNotFound);
}
