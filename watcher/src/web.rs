//! Requests over HTTP, each with a deadline for all of it, to servers that the system's certificates vouch for, or an
//! operator's.

mod names;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::http::HeaderMap;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::unversioned::transport::DefaultConnector;

use self::names::Names;
use crate::store::read_bounded;

/// Largest file of certificates.
const CA_MAX: u64 = 4 << 20;
/// Longest wait for a host's addresses, and then for a connection; what else there is to wait for is a request's own.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// Longest time for one request.
const REQUEST_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most bytes of a response's headers.
const HEADERS_MAX: usize = 64 << 10;

/// Certificates that are believed.
#[derive(Clone, Debug)]
pub struct Trust(RootCerts);

impl Trust {
    /// Those of this PEM file alone; without one the system's, as OpenSSL finds them (`/etc/ssl/certs`, SSL_CERT_FILE,
    /// SSL_CERT_DIR).
    pub fn new(file: Option<&Path>) -> io::Result<Self> {
        let Some(path) = file else { return Ok(Self(RootCerts::PlatformVerifier)) };
        let at = |why: String| io::Error::other(format!("{}: {why}", path.display()));
        let pem = File::open(path).and_then(|file| read_bounded(file, CA_MAX)).map_err(|e| at(e.to_string()))?;
        let mut found = Vec::new();
        for item in parse_pem(&pem) {
            match item.map_err(|e| at(e.to_string()))? {
                PemItem::Certificate(certificate) => found.push(certificate),
                _ => return Err(at("has something else than certificates".into())),
            }
        }
        if found.is_empty() {
            return Err(at("has no certificate (PEM)".into()));
        }
        Ok(Self(RootCerts::Specific(Arc::new(found))))
    }
}

/// A client; with `https_only` plain HTTP is refused. No redirection is followed, and no status is an error of its own:
/// the caller looks at it.
pub fn client(trust: Trust, https_only: bool) -> Agent {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(trust.0)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .https_only(https_only)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_resolve(Some(CONNECT_WITHIN))
        .timeout_connect(Some(CONNECT_WITHIN))
        .max_response_header_size(HEADERS_MAX)
        .max_idle_connections(2)
        .user_agent(concat!("latebind/", env!("CARGO_PKG_VERSION")))
        .build();
    Agent::with_parts(config, DefaultConnector::default(), Names::default())
}

/// A time for one request, as the client takes it: one without an end would be added to a clock and overflow it.
pub fn within(time: Duration) -> Option<Duration> {
    Some(time.min(REQUEST_MAX))
}

/// How long the server wants to be left alone, where it says so in seconds.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn only_a_file_of_certificates_can_be_trusted() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("ca.pem");
        for bad in ["", "nothing", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(Trust::new(Some(&path)).is_err(), "{bad}");
        }
        assert!(Trust::new(Some(&scratch.path().join("none"))).is_err_and(|e| e.to_string().contains("none")));
    }

    #[test]
    fn a_wait_is_a_number_of_seconds() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("Retry-After", text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        for other in ["-1", "x", "Fri, 31 Dec 1999 23:59:59 GMT", "99999999999999999999999"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
