//! Image references as the distribution project writes them: `domain[:port]/path[:tag][@digest]`.
//!
//! Only the full form is taken. What `debian` means depends on a host's settings, and an allow list that is matched
//! against one meaning while the engine takes another is none.

use std::fmt;

/// Longest name without tag and digest, as registries have it.
const NAME_MAX: usize = 255;

/// A reference, fully written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    domain: String,
    path: String,
    end: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Tag(String),
    Digest(String),
}

impl Reference {
    /// Reads `text`. No tag means `latest`. Beside a digest the tag says nothing (engines drop it), so it is dropped
    /// here, before anything is compared with an allow list.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("\"{}\" is no image name: {why}", text.escape_debug());
        if text.len() > 1024 {
            return Err("an image name has at most 1024 bytes".into());
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(wrong(&format!(
                "leave out \"{}://\" and write {}",
                scheme.escape_debug(),
                rest.escape_debug()
            )));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let Some((domain, rest)) = rest.split_once('/').filter(|(d, _)| is_domain_by_look(d)) else {
            return Err(wrong(&format!(
                "it does not begin with a registry; write it in full, for example {}",
                in_full(text).escape_debug()
            )));
        };
        // The domain is off already, so a colon here can only be the tag's.
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if !is_domain(domain) {
            return Err(wrong(&format!("the registry \"{}\" is malformed", domain.escape_debug())));
        }
        if path.is_empty() || !path.split('/').all(is_path_component) {
            return Err(wrong(
                "each part of its path must be lower-case letters and digits, joined by one '.', one or two '_', or '-'",
            ));
        }
        if domain.len() + 1 + path.len() > NAME_MAX {
            return Err(wrong("without tag and digest it is longer than 255 bytes"));
        }
        if let Some(tag) = tag.filter(|t| !is_tag(t)) {
            return Err(wrong(&format!(
                "the tag \"{}\" must be at most 128 letters, digits, '_', '.' and '-', and not begin with '.' or '-'",
                tag.escape_debug()
            )));
        }
        let end = match digest {
            Some(digest) if is_digest(digest) => End::Digest(digest.to_owned()),
            Some(_) => return Err(wrong("the digest must be sha256: and 64 digits of lower-case hexadecimal")),
            None => End::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { domain: domain.to_owned(), path: path.to_owned(), end })
    }

    /// Whether it names what was built on this machine, and no registry.
    pub fn is_local(&self) -> bool {
        self.domain == "localhost"
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            End::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            End::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

/// The likely meaning of a short name, for a message.
fn in_full(text: &str) -> String {
    let library = if text.contains('/') { "" } else { "library/" };
    format!("docker.io/{library}{text}")
}

/// What sets a registry apart from the first part of a path: a dot, a port, or `localhost`.
fn is_domain_by_look(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (domain, None),
    };
    let label = |l: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !l.is_empty() && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-')
    };
    let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_is_good = match v6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(label),
    };
    host_is_good && port.is_none_or(|p| !p.is_empty() && p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit()))
}

/// `alpha-numeric [separator alpha-numeric]*`, where a separator is `.`, `_`, `__` or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = String::new();
    for c in part.chars() {
        if c.is_ascii() && word(c as u8) {
            if !(separator.is_empty()
                || matches!(separator.as_str(), "." | "_" | "__")
                || separator.bytes().all(|b| b == b'-'))
            {
                return false;
            }
            separator.clear();
        } else {
            separator.push(c);
        }
    }
    let begins_well = part.bytes().next().is_some_and(word);
    begins_well && separator.is_empty()
}

fn is_tag(tag: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=128).contains(&tag.len()) && tag.bytes().all(inner) && !tag.starts_with(['.', '-'])
}

fn is_digest(digest: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    digest.strip_prefix("sha256:").is_some_and(|d| d.len() == 64 && d.bytes().all(hex))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn full_references() {
        for (text, full) in [
            ("localhost/latebind/debian:1", "localhost/latebind/debian:1"),
            ("docker.io/library/debian", "docker.io/library/debian:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("Registry.Example/a__b/c.d/e--f:V1.0-x_", "Registry.Example/a__b/c.d/e--f:V1.0-x_"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), full);
        }
        let both = Reference::parse(&format!("quay.io/a/b:tag@{DIGEST}")).unwrap();
        assert_eq!(both.to_string(), format!("quay.io/a/b@{DIGEST}"));
        assert!(Reference::parse("localhost/a").unwrap().is_local());
        assert!(!Reference::parse("localhost:5000/a").unwrap().is_local());
        assert!(!Reference::parse("localhost.example/a").unwrap().is_local());
    }

    #[test]
    fn what_is_none() {
        let long = format!("quay.io/{}", "a".repeat(300));
        let tag = format!("quay.io/a:{}", "t".repeat(129));
        for text in [
            "",
            "debian",
            "library/debian",
            "DEBIAN",
            "-x",
            "--help",
            "/a",
            "quay.io/",
            "quay.io//a",
            "quay.io/a/",
            "quay.io/A",
            "quay.io/a..b",
            "quay.io/a___b",
            "quay.io/a_.b",
            "quay.io/-a",
            "quay.io/a-",
            "quay.io/a:",
            "quay.io/a:-x",
            "quay.io/a:.x",
            "quay.io/a:b:c",
            "quay.io/a b",
            "quay.io/a\n",
            "quay.io/a\0",
            "quay.io/ä",
            "quay.io:/a",
            "quay.io:x/a",
            "-quay.io/a",
            "quay..io/a",
            "quay.io/../a",
            "quay.io/a@sha256:12",
            "quay.io/a@",
            "quay.io/a@md5:12",
            "docker://quay.io/a",
            "dir:/etc",
            "oci-archive:/x.tar",
            "quay.io/*",
            long.as_str(),
            tag.as_str(),
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        assert!(Reference::parse(&format!("quay.io/a@{DIGEST}@{DIGEST}")).is_err());
        let short = Reference::parse("debian:12").unwrap_err();
        assert!(short.contains("docker.io/library/debian:12"), "{short}");
    }
}
