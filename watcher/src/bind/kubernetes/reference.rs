//! Image references: `registry/repository:tag@sha256:digest`, as the kubelet and its runtime read them
//! (github.com/distribution/reference).

/// A reference taken apart. What the kubelet would not understand is never one: it goes to the kubelet as it is, whose words
/// are then the error.
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
    /// Takes a reference apart; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it, a port.
        let path_at = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest.get(path_at..)?.split_once(':') {
            Some((last, tag)) => (rest.get(..path_at + last.len())?, Some(tag.to_owned())),
            None => (rest, None),
        };
        let good = is_name(name) && tag.as_deref().is_none_or(is_tag) && digest.as_deref().is_none_or(is_digest);
        good.then(|| Self { name: name.to_owned(), tag, digest })
    }

    /// The full name of the repository: Docker Hub's short forms spelled out.
    pub fn repository(&self) -> String {
        match self.name.split_once('/') {
            Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => {
                self.name.replacen("index.docker.io/", "docker.io/", 1)
            }
            Some(_) => format!("docker.io/{}", self.name),
            None => format!("docker.io/library/{}", self.name),
        }
    }

    /// The same content under a tag that no bind has had: the kubelet's back-off goes by the text, and the runtime takes the
    /// digest alone where there is one.
    pub fn fresh(&self, digest: &str, mark: &str) -> String {
        format!("{}:latebind-{mark}@{digest}", self.name)
    }
}

/// The repository and digest of an image ID such as `docker-pullable://docker.io/library/busybox@sha256:...`; an image that was
/// not pulled has no repository there.
pub fn of_image_id(image_id: &str) -> Option<(&str, &str)> {
    let bare = image_id.split_once("://").map_or(image_id, |(_, bare)| bare);
    bare.split_once('@').filter(|(name, digest)| !name.is_empty() && is_digest(digest))
}

/// The digest in an image ID, also where it is all there is.
pub fn digest_of(image_id: &str) -> Option<&str> {
    let bare = image_id.split_once("://").map_or(image_id, |(_, bare)| bare);
    bare.rsplit('@').next().filter(|digest| is_digest(digest))
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_name(text: &str) -> bool {
    let (first, rest) = text.split_once('/').map_or((None, text), |(first, rest)| (Some(first), rest));
    let is_part = |part: &str| {
        let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends = |b: Option<&u8>| b.is_some_and(alphanumeric);
        ends(part.as_bytes().first())
            && ends(part.as_bytes().last())
            && part.bytes().all(|b| alphanumeric(&b) || b"._-".contains(&b))
    };
    let is_registry = |host: &str| {
        let (host, port) = host.rsplit_once(':').map_or((host, "1"), |(host, port)| (host, port));
        let bracketed = host.starts_with('[') && host.ends_with(']');
        !host.is_empty()
            && !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
            && (bracketed || host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b)))
    };
    text.len() <= 255
        && !rest.is_empty()
        && first.is_none_or(|first| is_registry(first) || is_part(first))
        && rest.split('/').all(is_part)
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
            (r.name, r.tag.unwrap_or_default(), r.digest.is_some())
        };
        let of = |name: &str, tag: &str, digest| (name.to_owned(), tag.to_owned(), digest);
        assert_eq!(parts("busybox"), of("busybox", "", false));
        assert_eq!(parts("localhost:5000/a/b_c:1.2"), of("localhost:5000/a/b_c", "1.2", false));
        assert_eq!(parts(&format!("quay.io/x@{DIGEST}")), of("quay.io/x", "", true));
        assert_eq!(parts(&format!("[::1]:5000/x:t@{DIGEST}")), of("[::1]:5000/x", "t", true));
    }

    #[test]
    fn what_is_none_stays_whole() {
        let long_tag = format!("a:{}", "t".repeat(129));
        for bad in ["", "A", "a b", "a:", "a:/b", "a/", "/a", "a@sha256:12", "a//b", "a:-t", "-a", "a@", "ü", "a:t:u"]
        {
            assert_eq!(Reference::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Reference::parse(&long_tag), None);
        assert_eq!(Reference::parse(&format!("a@{}", DIGEST.to_uppercase())), None);
    }

    #[test]
    fn repositories_are_spelled_out() {
        let of = |text: &str| Reference::parse(text).unwrap().repository();
        assert_eq!(of("busybox:1"), "docker.io/library/busybox");
        assert_eq!(of("me/busybox"), "docker.io/me/busybox");
        assert_eq!(of("index.docker.io/me/b"), "docker.io/me/b");
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
