//! Image references, `registry/repository:tag@sha256:digest`, as the distribution project writes them and engines read
//! them (github.com/distribution/reference): the one reader of them for all programs.

use std::fmt;

use crate::text::{one_line, printable};

/// Longest text that is looked at.
const TEXT_MAX: usize = 1024;

/// Longest name without tag and digest, as registries have it.
const NAME_MAX: usize = 255;

/// A reference taken apart. It holds no space and no control character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Registry and repository, as they were written.
    pub name: String,
    /// The tag.
    pub tag: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

impl Reference {
    /// Takes a reference apart.
    ///
    /// # Errors
    ///
    /// Says what is malformed; what a terminal could obey of the text is shown as `?`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > TEXT_MAX {
            return Err(format!("an image name has at most {TEXT_MAX} bytes"));
        }
        let wrong = |why: &str| format!("\"{}\" is not an image name: {why}", one_line(text));
        if let Some((scheme, rest)) = text.split_once("://") {
            let (scheme, rest) = (printable(scheme), one_line(rest));
            return Err(wrong(&format!("leave out \"{scheme}://\" and write {rest}")));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it, a port.
        let path_at = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest.get(path_at..).and_then(|last| last.split_once(':')) {
            Some((last, tag)) => (rest.get(..path_at + last.len()).unwrap_or_default(), Some(tag)),
            None => (rest, None),
        };
        let (registry, path) = split(name);
        if registry.is_some_and(|registry| !is_registry(registry)) {
            let registry = printable(registry.unwrap_or_default());
            return Err(wrong(&format!("the registry \"{registry}\" is malformed")));
        }
        if !path.split('/').all(is_path_component) {
            return Err(wrong(
                "each part of its path must be lower-case letters and digits, joined by one '.', one or two '_', or '-'",
            ));
        }
        if name.len().max(in_full(name).len()) > NAME_MAX {
            return Err(wrong(&format!("without tag and digest it is, in full, longer than {NAME_MAX} bytes")));
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(wrong(&format!(
                "the tag \"{}\" must be at most 128 letters, digits, '_', '.' and '-', and not begin with '.' or '-'",
                printable(tag)
            )));
        }
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(wrong("the digest must be sha256: and 64 digits of lower-case hexadecimal"));
        }
        Ok(Self { name: name.to_owned(), tag: tag.map(str::to_owned), digest: digest.map(str::to_owned) })
    }

    /// Takes a reference apart that has to be written in full, as an allow list compares it: what `debian` means
    /// depends on a host's settings. No tag means `latest`; beside a digest the tag says nothing (engines drop it), so
    /// it is dropped.
    ///
    /// # Errors
    ///
    /// As [`Reference::parse`]; also where the registry is left out, with the name in full.
    pub fn parse_full(text: &str) -> Result<Self, String> {
        let parsed = Self::parse(text);
        if let Ok(short) = &parsed
            && short.registry().is_none()
        {
            return Err(format!(
                "\"{}\" is not an image name in full: it does not begin with a registry; write for example {}",
                one_line(text),
                in_full(text)
            ));
        }
        parsed.map(|reference| match reference {
            Self { name, digest: Some(digest), .. } => Self { name, tag: None, digest: Some(digest) },
            Self { name, tag, digest: None } => Self { name, tag: tag.or(Some("latest".into())), digest: None },
        })
    }

    /// The registry, where one is named.
    pub fn registry(&self) -> Option<&str> {
        split(&self.name).0
    }

    /// Whether it names what was built on this machine, and not a registry.
    pub fn is_local(&self) -> bool {
        self.registry() == Some("localhost")
    }

    /// The full name of the repository: Docker Hub's short forms spelled out.
    pub fn repository(&self) -> String {
        in_full(&self.name)
    }

    /// The same content under a tag that no bind has had: the kubelet's back-off goes by the text, and the runtime
    /// takes the digest alone where there is one.
    pub fn fresh(&self, digest: &str, mark: &str) -> String {
        format!("{}:latebind-{mark}@{digest}", self.name)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// The repository and digest of an image ID such as `docker-pullable://docker.io/library/busybox@sha256:...`; an image
/// that was not pulled has no repository there.
pub fn of_image_id(image_id: &str) -> Option<(&str, &str)> {
    let bare = image_id.split_once("://").map_or(image_id, |(_, bare)| bare);
    bare.split_once('@').filter(|(name, digest)| !name.is_empty() && is_digest(digest))
}

/// The digest in an image ID, also where it is all there is.
pub fn digest_of(image_id: &str) -> Option<&str> {
    let bare = image_id.split_once("://").map_or(image_id, |(_, bare)| bare);
    bare.rsplit('@').next().filter(|digest| is_digest(digest))
}

/// Registry and path of a name. What sets a registry apart from the first part of a path is a dot, a port, or
/// `localhost`.
fn split(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, path)) if first == "localhost" || first.contains(['.', ':']) => (Some(first), path),
        _ => (None, name),
    }
}

/// A name, or a whole reference, with what Docker Hub's short forms leave out.
fn in_full(name: &str) -> String {
    match split(name) {
        (None | Some("docker.io" | "index.docker.io"), path) => {
            let library = if path.contains('/') { "" } else { "library/" };
            format!("docker.io/{library}{path}")
        }
        (Some(_), _) => name.to_owned(),
    }
}

fn is_registry(text: &str) -> bool {
    // The colons of an address are within its brackets.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let label = |l: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !l.is_empty() && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-')
    };
    let host_is_good = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(label),
    };
    host_is_good && port.is_none_or(|p| (1..=5).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()))
}

/// `alpha-numeric [separator alpha-numeric]*`, where a separator is `.`, `_`, `__` or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separates = |s: &[u8]| matches!(s, b"." | b"_" | b"__") || s.iter().all(|b| *b == b'-');
    let bytes = part.as_bytes();
    let ends_well = |b: Option<&u8>| b.is_some_and(|b| word(*b));
    ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes.split(|b| word(*b)).all(|between| between.is_empty() || separates(between))
}

fn is_tag(tag: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=128).contains(&tag.len()) && tag.bytes().all(inner) && !tag.starts_with(['.', '-'])
}

/// Whether this is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(digest: &str) -> bool {
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    digest.strip_prefix("sha256:").is_some_and(|d| d.len() == 64 && d.bytes().all(hex))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_come_apart() {
        let parts = |text: &str| {
            let r = Reference::parse(text).unwrap();
            assert_eq!(r.to_string(), text, "and together again");
            (r.name, r.tag.unwrap_or_default(), r.digest.is_some())
        };
        let of = |name: &str, tag: &str, digest| (name.to_owned(), tag.to_owned(), digest);
        assert_eq!(parts("busybox"), of("busybox", "", false));
        assert_eq!(parts("library/debian"), of("library/debian", "", false));
        assert_eq!(parts("debian:12"), of("debian", "12", false));
        assert_eq!(parts("localhost:5000/a/b_c:1.2"), of("localhost:5000/a/b_c", "1.2", false));
        assert_eq!(parts(&format!("quay.io/x@{DIGEST}")), of("quay.io/x", "", true));
        assert_eq!(parts(&format!("[::1]:5000/x:t@{DIGEST}")), of("[::1]:5000/x", "t", true));
        assert_eq!(parts("[::1]/x:_t"), of("[::1]/x", "_t", false));
    }

    #[test]
    fn full_references_are_written_in_one_way() {
        for (text, full) in [
            ("localhost/latebind/debian:1", "localhost/latebind/debian:1"),
            ("docker.io/library/debian", "docker.io/library/debian:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("Registry.Example/a__b/c.d/e--f:V1.0-x_", "Registry.Example/a__b/c.d/e--f:V1.0-x_"),
        ] {
            assert_eq!(Reference::parse_full(text).unwrap().to_string(), full);
        }
        let both = Reference::parse_full(&format!("quay.io/a/b:tag@{DIGEST}")).unwrap();
        assert_eq!(both.to_string(), format!("quay.io/a/b@{DIGEST}"));
        assert!(Reference::parse_full("localhost/a").unwrap().is_local());
        assert!(!Reference::parse_full("localhost:5000/a").unwrap().is_local());
        assert!(!Reference::parse_full("localhost.example/a").unwrap().is_local());
        for short in ["debian", "library/debian", "debian:12", "a/b/c"] {
            let why = Reference::parse_full(short).unwrap_err();
            assert!(why.contains("docker.io/") && why.contains(short), "{why}");
        }
        assert!(Reference::parse_full("debian:12").unwrap_err().contains("docker.io/library/debian:12"));
    }

    #[test]
    fn what_is_not_a_reference_is_refused_in_both_forms() {
        let long = format!("quay.io/{}", "a".repeat(300));
        let tag = format!("quay.io/a:{}", "t".repeat(129));
        let upper = format!("a@{}", DIGEST.to_uppercase());
        let two = format!("quay.io/a@{DIGEST}@{DIGEST}");
        let longest = "a".repeat(TEXT_MAX + 1);
        for text in [
            "",
            "A",
            "DEBIAN",
            "a b",
            "a:",
            "a:/b",
            "a/",
            "/a",
            "a@sha256:12",
            "a//b",
            "a:-t",
            "-a",
            "a@",
            "ü",
            "a:t:u",
            "-x",
            "--help",
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
            "quay.io/\u{1b}[2J",
            "quay.io/ä",
            "quay.io:/a",
            "quay.io:x/a",
            "quay.io:123456/a",
            "[::1/a",
            "[x]:1/a",
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
            &long,
            &tag,
            &upper,
            &two,
            &longest,
            &"a".repeat(NAME_MAX + 1 - "docker.io/library/".len()),
            &format!("docker.io/{}", "a".repeat(NAME_MAX + 1 - "docker.io/library/".len())),
        ] {
            for parsed in [Reference::parse(text), Reference::parse_full(text)] {
                let why = parsed.unwrap_err();
                assert!(!why.chars().any(char::is_control), "{why:?}");
            }
        }
    }

    #[test]
    fn repositories_are_spelled_out() {
        let of = |text: &str| Reference::parse(text).unwrap().repository();
        assert_eq!(of("busybox:1"), "docker.io/library/busybox");
        assert_eq!(of("me/busybox"), "docker.io/me/busybox");
        assert_eq!(of("index.docker.io/me/b"), "docker.io/me/b");
        assert_eq!(of("docker.io/busybox"), "docker.io/library/busybox");
        assert_eq!(of("index.docker.io/busybox"), "docker.io/library/busybox");
        assert_eq!(of("127.0.0.1:7500/x/y:1"), "127.0.0.1:7500/x/y");
        assert_eq!(of("localhost/x"), "localhost/x");
    }

    #[test]
    fn fresh_ones_differ_in_the_tag_alone() {
        let reference = Reference::parse("quay.io/x:old").unwrap();
        let fresh = reference.fresh(DIGEST, "0a1b");
        assert_eq!(fresh, format!("quay.io/x:latebind-0a1b@{DIGEST}"));
        assert_eq!(Reference::parse(&fresh).unwrap().digest.unwrap(), DIGEST);
    }

    #[test]
    fn image_ids() {
        let pulled = format!("docker-pullable://quay.io/x@{DIGEST}");
        assert_eq!(of_image_id(&pulled), Some(("quay.io/x", DIGEST)));
        assert_eq!(of_image_id(DIGEST), None);
        assert_eq!((digest_of(&pulled), digest_of(DIGEST), digest_of("x")), (Some(DIGEST), Some(DIGEST), None));
    }
}
