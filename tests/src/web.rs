//! A small HTTP server of a test's own, on loopback, with or without TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request, whole.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// GET, PUT, POST.
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// What came with it.
    pub body: Vec<u8>,
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Says {
    /// The status.
    pub status: u16,
    /// Further headers, each a whole line.
    pub headers: Vec<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Says {
    /// A status without a body.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// 200 with this.
    pub fn body(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into() }
    }

    /// The same with one more header.
    pub fn with(mut self, header: &str) -> Self {
        self.headers.push(header.to_owned());
        self
    }
}

/// A server until the test ends.
pub struct WebServer {
    address: SocketAddr,
    is_tls: bool,
}

/// Certificates that `openssl` has made in a directory: `ca.pem`, and `server.pem` for 127.0.0.1 and localhost
/// with `server.key`.
pub fn make_certificates(dir: &Path) {
    let script = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-ca \
            -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=127.0.0.1 -keyout server.key -out r.csr
        printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\\nbasicConstraints=CA:FALSE\\n' >ext
        openssl x509 -req -in r.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.pem";
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}

impl WebServer {
    /// Answers each request by `answer`; with TLS where there is a directory of certificates.
    pub fn start(certificates: Option<&Path>, answer: impl Fn(&Asked) -> Says + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let tls = certificates.map(|dir| {
            let chain = CertificateDer::pem_file_iter(dir.join("server.pem")).unwrap().map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_slice(&fs::read(dir.join("server.key")).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap())
        });
        let (answer, is_tls) = (Arc::new(answer), tls.is_some());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, tls) = (answer.clone(), tls.clone());
                thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
                    match tls {
                        Some(config) => {
                            serve(StreamOwned::new(ServerConnection::new(config).unwrap(), stream), answer.as_ref())
                        }
                        None => serve::<TcpStream>(stream, answer.as_ref()),
                    }
                });
            }
        });
        Self { address, is_tls }
    }

    /// The URL of this path.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.is_tls { "https" } else { "http" }, self.address)
    }

    /// The same by a name, which a client has to look up.
    pub fn url_by_name(&self, path: &str) -> String {
        self.url(path).replacen(&self.address.ip().to_string(), "localhost", 1)
    }
}

/// One request for each connection.
fn serve<S: Read + Write>(stream: S, answer: &(impl Fn(&Asked) -> Says + ?Sized)) {
    let mut stream = BufReader::new(stream);
    let Some(asked) = read(&mut stream) else { return };
    let says = answer(&asked);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", says.status);
    if says.status != 204 {
        head.push_str(&format!("Content-Length: {}\r\n", says.body.len()));
    }
    says.headers.iter().for_each(|header| head.push_str(&format!("{header}\r\n")));
    let stream = stream.get_mut();
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(&says.body);
    let _ = stream.flush();
}

fn read(stream: &mut impl BufRead) -> Option<Asked> {
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let mut asked = Asked { method: words.next()?.to_owned(), path: words.next()?.to_owned(), ..Asked::default() };
    loop {
        let line = line()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        asked.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = asked.headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    asked.body = vec![0; length];
    stream.read_exact(&mut asked.body).ok()?;
    Some(asked)
}
