//! What an image runs by itself, asked of a real registry: Debian's docker-registry on loopback, with HTTPS and an
//! account, to which podman pushes an image.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use latebind_contract::encoding::sha256_hex;
use latebind_tests::made_image::MadeImage;
use latebind_tests::pod::{Scratch, kill, podman};
use latebind_tests::web::make_certificates;
use serde_json::json;
use watcher::bind::kubernetes::registry::{Options, Registries};
use watcher::bind::{Failure, ImageCommand, Reason};

/// `me` with the password `pass`, by bcrypt, the only scheme that the registry knows.
const ACCOUNTS: &str = "me:$2b$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K\n";

/// Everything of the registry goes with the value.
struct Registry {
    server: Child,
    host: String,
    scratch: Scratch,
}

impl Registry {
    fn new() -> Self {
        let scratch = Scratch::new();
        let path = |name: &str| scratch.path().join(name);
        // podman takes each *.key beside the certificate for a client's.
        fs::create_dir(path("tls")).unwrap();
        make_certificates(&path("tls"));
        fs::copy(path("tls/ca.pem"), path("ca.crt")).unwrap();
        fs::write(path("accounts"), ACCOUNTS).unwrap();
        fs::write(path("config"), "version: 0.1\nlog: {level: info}\nstorage: {inmemory: {}}\n").unwrap();
        let mut server = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config"))
            .env("REGISTRY_HTTP_ADDR", "127.0.0.1:0")
            .env("REGISTRY_HTTP_TLS_CERTIFICATE", path("tls/server.pem"))
            .env("REGISTRY_HTTP_TLS_KEY", path("tls/server.key"))
            .env("REGISTRY_AUTH", "htpasswd")
            .env("REGISTRY_AUTH_HTPASSWD_REALM", "test")
            .env("REGISTRY_AUTH_HTPASSWD_PATH", path("accounts"))
            .stdin(Stdio::null())
            .stdout(File::create(path("out")).unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is missing: .ci/setup.sh test");
        let mut said = String::new();
        let mut log = BufReader::new(server.stderr.take().unwrap());
        let host = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended: {said}");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split([',', '"']).next().unwrap().to_owned();
            }
            said += &line;
        };
        // Read on, so that its log is never full.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { server, host, scratch }
    }

    /// Pushes an image in one format; returns its ID as a kubelet says it.
    fn push(&self, image: &MadeImage, format: &str) -> String {
        let target = format!("{}/test/image:{format}", self.host);
        let digest = self.scratch.path().join("digest");
        let certificates = format!("--cert-dir={}", self.scratch.path().display());
        let to_file = format!("--digestfile={}", digest.display());
        let format = format!("--format={format}");
        let pushed =
            podman(&["push", "--quiet", "--creds=me:pass", &certificates, &to_file, &format, image.name(), &target]);
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        format!("{}/test/image@{}", self.host, fs::read_to_string(digest).unwrap().trim())
    }

    fn ask(&self, image_id: &str, password: Option<&str>, ca: bool) -> Result<ImageCommand, Failure> {
        let secret = self.scratch.path().join(".dockerconfigjson");
        let account = json!({"auths": {&self.host: {"username": "me", "password": password}}});
        fs::write(&secret, account.to_string()).unwrap();
        let registries = Registries::new(Options {
            pull_secret: password.map(|_| secret),
            plain_http: Vec::new(),
            ca: ca.then(|| self.scratch.path().join("ca.crt")),
        });
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(registries.command("test", image_id))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        kill(self.server.id() as i32, 9);
        let _ = self.server.wait();
    }
}

#[test]
fn a_registry_says_what_an_image_runs_to_who_has_its_pull_secret() {
    let image = MadeImage::new("WORKDIR /dir\nENTRYPOINT [\"/say\", \"e\"]\nCMD [\"c\", \"d\"]", &[]);
    let registry = Registry::new();
    for format in ["oci", "v2s2"] {
        let image_id = registry.push(&image, format);
        let command = registry.ask(&image_id, Some("pass"), true).unwrap();
        let wanted = (vec!["/say".to_owned(), "e".into()], vec!["c".to_owned(), "d".into()], "/dir".to_owned());
        assert_eq!((command.entrypoint, command.cmd, command.workdir), wanted, "{format}");
        for password in [None, Some("wrong")] {
            let denied = registry.ask(&image_id, password, true).unwrap_err();
            assert_eq!(denied.reason, Reason::ImageAccessDenied, "{denied:?}");
            assert!(denied.message.contains("--pull-secret"), "{denied:?}");
        }
        let stranger = registry.ask(&image_id, Some("pass"), false).unwrap_err();
        assert_eq!(stranger.reason, Reason::RegistryUnavailable, "its certificate is nobody's: {stranger:?}");
    }
    let absent = format!("{}/test/image@sha256:{}", registry.host, sha256_hex(b"absent"));
    assert_eq!(registry.ask(&absent, Some("pass"), true).unwrap_err().reason, Reason::ImageNotFound);
}
