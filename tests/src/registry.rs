//! A real registry for tests: Debian's docker-registry on loopback.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::pod::{Scratch, Signal, kill};
use crate::web::make_certificates;

/// `me` with the password `pass`, by bcrypt, the only scheme that the registry knows.
const ACCOUNTS: &str = "me:$2b$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K\n";

/// A registry; everything of it goes with the value.
pub struct Registry {
    server: Child,
    /// Its address and port.
    pub host: String,
    /// Its own files: with HTTPS `ca.crt`.
    pub scratch: Scratch,
}

impl Registry {
    /// One for everybody, by plain HTTP.
    pub fn open() -> Self {
        Self::start(Scratch::new(), &[])
    }

    /// One with HTTPS that knows the account `me` with the password `pass`.
    pub fn closed() -> Self {
        let scratch = Scratch::new();
        let path = |name: &str| scratch.path().join(name);
        // podman takes each *.key beside the certificate for a client's.
        fs::create_dir(path("tls")).unwrap();
        make_certificates(&path("tls"));
        fs::copy(path("tls/ca.pem"), path("ca.crt")).unwrap();
        fs::write(path("accounts"), ACCOUNTS).unwrap();
        let file = |name: &str| path(name).display().to_string();
        let settings = [
            ("HTTP_TLS_CERTIFICATE", file("tls/server.pem")),
            ("HTTP_TLS_KEY", file("tls/server.key")),
            ("AUTH", "htpasswd".into()),
            ("AUTH_HTPASSWD_REALM", "test".into()),
            ("AUTH_HTPASSWD_PATH", file("accounts")),
        ];
        Self::start(scratch, &settings)
    }

    fn start(scratch: Scratch, settings: &[(&str, String)]) -> Self {
        let path = |name: &str| scratch.path().join(name);
        fs::write(path("config"), "version: 0.1\nlog: {level: info}\nstorage: {inmemory: {}}\n").unwrap();
        let mut server = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config"))
            .env("REGISTRY_HTTP_ADDR", "127.0.0.1:0")
            .envs(settings.iter().map(|(name, value)| (format!("REGISTRY_{name}"), value)))
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
}

impl Drop for Registry {
    fn drop(&mut self) {
        kill(self.server.id() as i32, Signal::SIGKILL);
        let _ = self.server.wait();
    }
}
