//! Inputs from the web: only from where the operator lets them come from, by HTTPS, and with a checksum.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use latebind_contract::encoding::hex;
use sha2::{Digest, Sha256};
use ureq::http::Uri;
use ureq::http::uri::Scheme;
use ureq::{Agent, Body};

use crate::tree::Deadline;
use crate::web::{self, Trust};

/// Most redirections of one input.
const REDIRECTS_MAX: u32 = 5;
/// How long a server may be silent; a cancelled job waits for no longer.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// Bytes that are read at once.
const BLOCK: usize = 128 << 10;

/// URLs that begin so may be inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlPrefix {
    /// Host and port; any, where it is `None`.
    authority: Option<String>,
    path: String,
}

/// What is to be downloaded.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Download {
    /// `https://...`.
    pub url: String,
    /// Checksum of its content, 64 hexadecimal digits.
    pub sha256: String,
}

impl Download {
    /// Checks what can be checked without a request.
    pub fn check(&self) -> Result<(), String> {
        let is_digest = self.sha256.len() == 64 && self.sha256.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_digest {
            return Err("sha256 has to be 64 hexadecimal digits".into());
        }
        parse(&self.url).map(drop)
    }
}

fn parse(url: &str) -> Result<Uri, String> {
    let uri: Uri = url.parse().map_err(|e| format!("{e}"))?;
    let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
    if uri.scheme() != Some(&Scheme::HTTPS) || uri.host().is_none_or(str::is_empty) || authority.contains('@') {
        return Err("has to be https://HOST/PATH, without a password".into());
    }
    Ok(uri)
}

impl FromStr for UrlPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "https://" {
            return Ok(Self { authority: None, path: "/".into() });
        }
        let uri = parse(text).map_err(|e| format!("{text:?} {e}"))?;
        if !text.ends_with('/') || uri.query().is_some() {
            return Err(format!("{text:?} has to end with a slash: else it is the beginning of other hosts and paths"));
        }
        let authority = uri.authority().map(|a| a.as_str().to_ascii_lowercase());
        Ok(Self { authority, path: uri.path().to_owned() })
    }
}

impl UrlPrefix {
    fn fits(&self, uri: &Uri) -> bool {
        let authority = uri.authority().map(|a| a.as_str().to_ascii_lowercase());
        // A server may take these for the directory above.
        let path = uri.path().to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace(['\\'], "/");
        let climbs = path.split('/').any(|part| part == "..");
        (self.authority.is_none() || self.authority == authority) && uri.path().starts_with(&self.path) && !climbs
    }
}

/// Why an input was not downloaded.
#[derive(Debug)]
pub enum Problem {
    /// It will not be otherwise elsewhere or later.
    Lasting(String),
    /// It may be.
    Passing(String),
    /// What was downloaded could not be written.
    Target(io::Error),
}

/// Downloads inputs.
#[derive(Clone, Debug)]
pub struct Web {
    agent: Agent,
    allowed: Vec<UrlPrefix>,
}

impl Web {
    /// From these URLs, whose servers are known by the system's certificates or by those of a file.
    pub fn new(allowed: Vec<UrlPrefix>, ca: Option<&Path>) -> io::Result<Self> {
        Ok(Self { agent: web::client(Trust::new(ca)?, true), allowed })
    }

    /// Writes what is there to `to`, at most `most` bytes, and checks it.
    pub fn fetch(&self, what: &Download, to: &mut File, most: u64, deadline: &Deadline<'_>) -> Result<(), Problem> {
        let mut url = what.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let uri = parse(&url).map_err(Problem::Lasting)?;
            if !self.allowed.iter().any(|prefix| prefix.fits(&uri)) {
                return Err(Problem::Lasting(format!("{url}: this pilot fetches nothing from there (--input-url)")));
            }
            let request = self.agent.get(&url).config().timeout_global(web::within(deadline.left()));
            let request = request.timeout_per_read(Some(SILENT_MAX)).timeout_recv_response(Some(SILENT_MAX));
            let answer = request.build().call().map_err(|e| Problem::Passing(format!("{url}: {e}")))?;
            match answer.status().as_u16() {
                200 => return content(answer.into_body(), what, to, most, deadline),
                301 | 302 | 303 | 307 | 308 => {
                    let next = answer.headers().get("location").and_then(|to| to.to_str().ok());
                    let next = next.ok_or_else(|| Problem::Lasting(format!("{url}: leads nowhere")))?;
                    url = if next.starts_with('/') && !next.starts_with("//") {
                        format!("https://{}{next}", uri.authority().map(|a| a.as_str()).unwrap_or_default())
                    } else {
                        next.to_owned()
                    };
                }
                status @ (408 | 425 | 429 | 500..) => return Err(Problem::Passing(format!("{url}: status {status}"))),
                status => return Err(Problem::Lasting(format!("{url}: status {status}"))),
            }
        }
        Err(Problem::Lasting(format!("more than {REDIRECTS_MAX} redirections")))
    }
}

fn content(body: Body, what: &Download, to: &mut File, most: u64, deadline: &Deadline<'_>) -> Result<(), Problem> {
    let (mut hash, mut left) = (Sha256::new(), most);
    let mut from = body.into_with_config().limit(u64::MAX).reader();
    let mut block = vec![0; BLOCK];
    loop {
        deadline.check().map_err(|e| Problem::Passing(e.to_string()))?;
        let n = from.read(&mut block).map_err(|e| Problem::Passing(format!("{}: {e}", what.url)))?;
        if n == 0 {
            break;
        }
        let too_large = || Problem::Lasting(format!("has more than the {most} bytes that inputs may have here"));
        left = left.checked_sub(n as u64).ok_or_else(too_large)?;
        let part = block.get(..n).unwrap_or_default();
        hash.update(part);
        to.write_all(part).map_err(Problem::Target)?;
    }
    let found = hex(hash.finalize().as_slice());
    if found.eq_ignore_ascii_case(&what.sha256) {
        return Ok(());
    }
    Err(Problem::Lasting(format!("its content has the SHA-256 {found}, not the one that the job says")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn a_prefix_is_of_one_host_and_of_whole_components() {
        let fits = |prefix: &str, url: &str| prefix.parse::<UrlPrefix>().unwrap().fits(&parse(url).unwrap());
        assert!(fits("https://", "https://any.example:444/x?y"));
        assert!(fits("https://h.example/", "https://H.example/x") && fits("https://h/data/", "https://h/data/a/b"));
        for (prefix, url) in [
            ("https://h.example/", "https://h.example.evil/"),
            ("https://h/", "https://h:8443/"),
            ("https://h/data/", "https://h/database"),
            ("https://h/data/", "https://h/data/../x"),
            ("https://h/data/", "https://h/data/%2E%2e/x"),
            ("https://h/data/", "https://h/data/..%2fx"),
        ] {
            assert!(!fits(prefix, url), "{prefix} {url}");
        }
        for bad in ["", "http://h/", "https://h", "https://h/data", "https://u:p@h/", "h/", "https:///"] {
            assert!(bad.parse::<UrlPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_download_is_of_https_and_has_a_checksum() {
        let check = |url: &str, digit: &str| Download { url: url.into(), sha256: digit.repeat(64) }.check();
        assert_eq!(check("https://h/x", "a"), Ok(()));
        assert!(check("https://h/x", "g").is_err() && check("https://h/x", "").is_err());
        for bad in ["http://h/x", "file:///etc/passwd", "https://user:secret@h/x", "x"] {
            assert!(check(bad, "0").is_err(), "{bad}");
        }
    }
}
