//! Target `reference`: names of images.

use watcher::reference::{Reference, digest_of, of_image_id};

/// The input is a reference.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let parsed = Reference::parse(text);
    assert_eq!(parsed.is_ok(), is_reference(text), "{text:?}: {parsed:?}");
    let full = Reference::parse_full(text);
    match &parsed {
        Ok(reference) => is_reference_of(text, reference),
        Err(why) => is_message(why),
    }
    match full {
        Ok(full) => {
            assert!(parsed.is_ok());
            assert!(full.registry().is_some());
            assert_ne!(full.tag.is_some(), full.digest.is_some(), "{full:?} has one meaning");
            // An allow list compares this text, the engine takes it.
            assert_eq!(Reference::parse_full(&full.to_string()).as_ref(), Ok(&full));
        }
        Err(why) => is_message(&why),
    }
    if let Some((name, digest)) = of_image_id(text) {
        assert!(!name.is_empty() && is_digest(digest) && text.ends_with(&format!("{name}@{digest}")));
        assert_eq!(digest_of(text), Some(digest));
    }
    assert!(digest_of(text).is_none_or(|digest| is_digest(digest) && text.ends_with(digest)));
}

fn is_reference_of(text: &str, reference: &Reference) {
    assert_eq!(reference.to_string(), text, "what is written is not what was read");
    let repository = reference.repository();
    let whole = Reference::parse(&repository).unwrap_or_else(|why| panic!("{repository:?}: {why}"));
    assert!(whole.registry().is_some() && whole.tag.is_none() && whole.digest.is_none());
    assert_eq!(whole.repository(), repository, "spelled out twice");
    assert_eq!(reference.is_local(), repository.starts_with("localhost/"));
    if let Some(digest) = &reference.digest {
        // The input may have one of these marks itself; the binder's are random.
        let fresh = ["0a1b", "1b0a"].map(|mark| Reference::parse(&reference.fresh(digest, mark)).unwrap());
        for fresh in &fresh {
            assert_eq!((&fresh.name, &fresh.digest), (&reference.name, &reference.digest));
        }
        assert!(fresh.iter().any(|fresh| fresh.tag != reference.tag));
    }
}

fn is_message(why: &str) {
    assert!(!why.contains(char::is_control), "{why:?}");
    assert!(why.len() < 32_768, "a message of {} bytes", why.len());
}

/// The grammar of github.com/distribution/reference, as its documentation writes it, tried from each place where a part
/// can end. Ours is narrower in three things: it refuses an algorithm other than sha256, more than 1024 bytes, and a
/// port of more than 5 digits.
fn is_reference(text: &str) -> bool {
    if text.len() > 1024 || !text.is_ascii() {
        return false;
    }
    let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return false;
    }
    // Each colon may begin the tag.
    let ends = rest.match_indices(':').map(|(at, _)| (&rest[..at], Some(&rest[at + 1..])));
    ends.chain([(rest, None)]).any(|(name, tag)| is_name(name) && tag.is_none_or(is_tag))
}

fn is_name(name: &str) -> bool {
    let path = |path: &str| path.split('/').all(is_component);
    // Where the first part looks like a registry, it is one.
    let looks = |first: &str| first == "localhost" || first.contains(['.', ':']);
    // Where Docker Hub is meant, engines add what is left out, and then look at the length.
    let (domain, rest) = match name.split_once('/') {
        Some((first, rest)) if looks(first) => (first, rest),
        _ => ("docker.io", name),
    };
    let full = match domain {
        "docker.io" | "index.docker.io" if rest.contains('/') => format!("docker.io/{rest}"),
        "docker.io" | "index.docker.io" => format!("docker.io/library/{rest}"),
        _ => name.to_owned(),
    };
    name.len() <= 255 && full.len() <= 255 && is_domain(domain) && path(rest)
}

fn is_domain(domain: &str) -> bool {
    let host = |host: &str| match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let letters = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric());
            letters(&label.replace('-', "a")) && !label.starts_with('-') && !label.ends_with('-')
        }),
    };
    let with_port = |(at, _): (usize, &str)| {
        let port = &domain[at + 1..];
        host(&domain[..at]) && (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
    };
    host(domain) || domain.match_indices(':').any(with_port)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = text.as_bytes();
    loop {
        let letters = rest.iter().take_while(|b| word(**b)).count();
        rest = &rest[letters..];
        if letters == 0 || rest.is_empty() {
            return letters > 0;
        }
        let dashes = rest.iter().take_while(|b| **b == b'-').count();
        let separator = match rest {
            [b'.', ..] => 1,
            [b'_', b'_', ..] => 2,
            [b'_', ..] => 1,
            _ => dashes,
        };
        if separator == 0 {
            return false;
        }
        rest = &rest[separator..];
    }
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    (1..=128).contains(&bytes.len()) && first(bytes[0]) && bytes.iter().all(|b| first(*b) || matches!(b, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    let Some(hex) = digest.strip_prefix("sha256:") else { return false };
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
