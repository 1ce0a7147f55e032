//! An admission webhook on this machine, for the pods of one namespace. Our own cluster only: its API server reaches
//! it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use latebind_tests::pod::{Running, Scratch};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::access::cluster;
use crate::namespace::Namespace;

/// The label by which a namespace is told to the API server.
const LABEL: &str = "latebind.dev/webhook";

/// What becomes of a payload container's image.
#[derive(Clone, Debug)]
pub enum Ruling {
    /// It may stand.
    Allow,
    /// The request is refused with these words.
    Deny(String),
    /// This one takes its place.
    Replace(String),
}

type Judge = dyn Fn(&str) -> Ruling + Send + Sync;

struct Shared {
    config: Arc<ServerConfig>,
    judge: Box<Judge>,
    asked: Mutex<Vec<String>>,
    over: AtomicBool,
}

/// The webhook, until it is dropped.
pub struct Webhook {
    name: String,
    port: u16,
    shared: Arc<Shared>,
}

impl Webhook {
    /// Starts one that judges the image of the container `payload` in each update of a pod, and tells the API server of
    /// it.
    pub fn start(namespace: &Namespace, judge: impl Fn(&str) -> Ruling + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (certificate, key, authority) = certificate();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = versions.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        let shared = Arc::new(Shared {
            config: Arc::new(config),
            judge: Box::new(judge),
            asked: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if theirs.over.load(Ordering::SeqCst) {
                    return;
                }
                let theirs = theirs.clone();
                thread::spawn(move || {
                    // A request that is cut off fails at the API server, which says so.
                    let _ = theirs.answer(stream);
                });
            }
        });
        let name = format!("latebind-{}", namespace.name());
        let this = Self { name, port, shared };
        this.register(namespace, &authority);
        this
    }

    fn register(&self, namespace: &Namespace, authority: &str) {
        let label = format!("{LABEL}={}", namespace.name());
        cluster().ask(&["label", "namespace", namespace.name(), &label]);
        let webhook = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": self.name},
            "webhooks": [{
                "name": "images.latebind.dev",
                "clientConfig": {"url": format!("https://127.0.0.1:{}/", self.port), "caBundle": authority},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["UPDATE"]}],
                "namespaceSelector": {"matchLabels": {LABEL: namespace.name()}},
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }],
        });
        cluster().ask_with_input(&["create", "-f", "-"], webhook.to_string());
    }

    /// The images that it has been asked about, in order.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        // As in Namespace: a second panic would end the whole program.
        let _ = std::panic::catch_unwind(|| {
            cluster().call(&["delete", "mutatingwebhookconfiguration", &self.name]);
        });
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    /// One request and its answer.
    fn answer(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let connection = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let review: Value = serde_json::from_slice(&body)?;
        let answer = self.review(&review).to_string();
        let stream = stream.get_mut();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
            answer.len()
        )?;
        stream.conn.send_close_notify();
        stream.flush()
    }

    fn review(&self, review: &Value) -> Value {
        let containers = review["request"]["object"]["spec"]["containers"].as_array();
        let payload = containers.into_iter().flatten().enumerate().find(|(_, c)| c["name"] == "payload");
        let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
        if let Some((at, image)) = payload.and_then(|(at, c)| Some((at, c["image"].as_str()?))) {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(image.to_owned());
            match (self.judge)(image) {
                Ruling::Allow => {}
                Ruling::Deny(words) => {
                    response["allowed"] = json!(false);
                    response["status"] = json!({"message": words});
                }
                Ruling::Replace(with) => {
                    let path = format!("/spec/containers/{at}/image");
                    let patch = json!([{"op": "replace", "path": path, "value": with}]).to_string();
                    response["patchType"] = json!("JSONPatch");
                    response["patch"] = json!(base64(patch.as_bytes()));
                }
            }
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}

/// A certificate for this machine, its key, and what the API server needs to believe it.
fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>, String) {
    let scratch = Scratch::new();
    let (key, certificate) = (scratch.path().join("key"), scratch.path().join("certificate"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]);
    openssl.args(["-subj", "/CN=latebind-test", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    let ran = Running::start(&mut openssl, Vec::new()).finish(Duration::from_secs(30));
    assert_eq!(ran.code, Some(0), "openssl: {}", ran.err());
    let authority = base64(&std::fs::read(&certificate).unwrap());
    (CertificateDer::from_pem_file(&certificate).unwrap(), PrivateKeyDer::from_pem_file(&key).unwrap(), authority)
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let three = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for n in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * n)) as usize & 63];
            text.push(if n <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_has_padding() {
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|t| base64(t.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
    }
}
