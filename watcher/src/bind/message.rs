//! What an engine's message about an image says, apart from what others can make it say.
//!
//! The messages of kubelet, containerd, CRI-O, Docker and podman are chains: each layer puts its own words and a colon
//! before the cause, `failed to resolve reference "r/x:1": unexpected status: 503 Service Unavailable`. They hold the
//! image's name, which its user chose, and the names of files in the image. So a decision never searches them for
//! words. The image's name, all that is quoted, and every path and address are taken out; the rest is cut at the
//! colons; and only how a part *begins* counts. An image's name holds neither spaces nor a colon before a space, so
//! that it cannot begin a part but as a whole, and then it is taken out. Once the image's files are being unpacked, or
//! a registry's own text follows, only a known last part counts.
//!
//! Sources: containerd `core/remotes/docker`, containers/image `docker`, distribution `registry/api/errcode`, runc,
//! crun.

use super::Reason;
use crate::reference::Reference;

/// Longest part of a message that is looked at.
const TEXT_MAX: usize = 32 << 10;

/// In place of what is foreign: begins nothing.
const FOREIGN: &str = "\u{fffc}";

/// A message taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// The runtime's gRPC code, where the message has one.
    code: Option<String>,
    /// The parts of the chain, lower case, up to where others have their say.
    parts: Vec<String>,
    /// The last part of all.
    last: String,
}

/// Where an image's files begin to be named.
const UNPACKING: &[&str] = &[
    "failed to extract layer",
    "failed to apply layer",
    "failed to register layer",
    "failed to unpack",
    "failed to prepare extraction",
    "adding layer",
    "applying layer",
    "applylayer",
    "storing blob",
    "writing blob",
    "processing tar file",
    "unpacking failed",
];

/// Where a registry's own text begins.
const SERVER: &str = "server message";

impl Message {
    /// Takes `text` apart, in which `image` is the name of the image as the engine was given it.
    pub fn read(text: &str, image: &str) -> Self {
        let end = text.char_indices().nth(TEXT_MAX).map_or(text.len(), |(at, _)| at);
        // A quote in a name would hide the end, which is a cause only if it is one to the letter.
        let last = last_part(text);
        let text = without_quoted(text.get(..end).unwrap_or_default());
        let parsed = Reference::parse(image).ok();
        // A name that is not one may hold anything; one that is, is a word.
        let text = if parsed.is_some() || image.is_empty() { text } else { text.replace(image, FOREIGN) };
        let names = parsed.map(|r| [image.to_owned(), r.to_string(), r.repository(), r.name]).unwrap_or_default();
        let text = text.to_lowercase().replace("i/o timeout", "timeout").replace(['\n', '\r'], ": ");
        let words: Vec<String> = text.split_whitespace().map(without_foreign).collect();
        let text = words.join(" ");
        // kubelet and CRI clients: `rpc error: code = NotFound desc = ...`.
        let (code, text) = match text.split_once("rpc error: code = ").map(|(_, rest)| rest.split_once(" desc = ")) {
            Some(Some((code, rest))) => (Some(code.to_owned()), rest),
            _ => (None, text.as_str()),
        };
        let chain: Vec<&str> =
            text.split(": ").map(|part| without_name(part.trim_matches([' ', ':']), &names)).collect();
        let others = chain.iter().position(|part| begins(part, UNPACKING) || part.contains(SERVER));
        let parts = chain.iter().take(others.map_or(usize::MAX, |at| at + 1)).map(|part| (*part).to_owned()).collect();
        Self { code, parts, last }
    }

    fn begins(&self, phrases: &[&str]) -> bool {
        self.parts.iter().any(|part| begins(part, phrases))
    }

    fn is_last(&self, phrases: &[&str]) -> bool {
        phrases.contains(&self.last.as_str())
    }

    fn is_code(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// Whether a part is a status of HTTP in this range.
    fn has_status(&self, range: std::ops::RangeInclusive<u16>) -> bool {
        self.parts.iter().filter_map(|part| status(part)).any(|code| range.contains(&code))
    }

    /// Why an image could not be fetched; none where the message does not say.
    pub fn of_pull(&self) -> Option<Reason> {
        // First what passes by itself: a registry in trouble may say anything besides.
        if self.has_status(429..=429) || self.begins(&["too many requests", "toomanyrequests", "rate limit"]) {
            Some(Reason::RegistryBusy)
        } else if self.is_last(FULL) {
            Some(Reason::VolumeFull)
        } else if self.has_status(500..=599) || self.begins(AWAY) || self.is_code(&["unavailable", "deadlineexceeded"])
        {
            Some(Reason::RegistryUnavailable)
        } else if self.begins(&["no match for platform", "no matching manifest", "no image found in"]) {
            Some(Reason::WrongArchitecture)
        } else if self.has_status(401..=401) || self.has_status(403..=403) || self.begins(DENIED) {
            Some(Reason::ImageAccessDenied)
        } else if self.has_status(404..=404) || self.begins(MISSING) || self.is_code(&["notfound"]) {
            Some(Reason::ImageNotFound)
        } else if self.begins(&["invalid reference", "couldn't parse image", "invalid checksum digest"]) {
            Some(Reason::InvalidImageName)
        } else {
            None
        }
    }

    /// Whether the machine, and not the image, kept a container from being made or started, and that may pass.
    pub fn is_passing(&self) -> bool {
        const CODES: &[&str] = &["deadlineexceeded", "unavailable", "resourceexhausted", "aborted", "canceled"];
        const BEGINNINGS: &[&str] =
            &["context deadline exceeded", "failed to reserve container name", "error reserving ctr name"];
        const ENDS: &[&str] = &[
            "context deadline exceeded",
            "cannot allocate memory",
            "resource temporarily unavailable",
            "device or resource busy",
            "connection refused",
            "too many open files",
        ];
        self.is_code(CODES)
            || self.parts.first().is_some_and(|first| begins(first, BEGINNINGS))
            || self.is_last(ENDS)
            || self.is_last(FULL)
    }
}

const FULL: &[&str] = &["no space left on device", "disk quota exceeded"];

const AWAY: &[&str] = &[
    "timeout",
    "timed out",
    "context deadline exceeded",
    "dial tcp",
    "lookup",
    "connection refused",
    "connection reset",
    "no such host",
    "server misbehaving",
    "network is unreachable",
    "no route to host",
    "broken pipe",
    "unexpected eof",
    "eof",
    "tls",
    "x509",
    "request canceled",
];

const DENIED: &[&str] = &[
    "unauthorized",
    "denied",
    "forbidden",
    "pull access denied",
    "access denied",
    "requested access to the resource is denied",
    "no basic auth credentials",
    "authorization failed",
    "authentication required",
    "insufficient_scope",
];

const MISSING: &[&str] = &[
    "not found",
    "notfound",
    "manifest unknown",
    "manifest_unknown",
    "name unknown",
    "name_unknown",
    "does not exist",
    "no such image",
];

/// The last part of a chain, in lower case; without `unknown`, as gRPC shows the code of an error that has none.
fn last_part(text: &str) -> String {
    let text = text.trim_end();
    let text = text.strip_suffix(": unknown").unwrap_or(text);
    text.rsplit(": ").next().unwrap_or_default().to_lowercase()
}

/// Whether the part begins with one of the phrases, and the phrase ends where a word does.
fn begins(part: &str, phrases: &[&str]) -> bool {
    let ends = |rest: &str| rest.chars().next().is_none_or(|c| c.is_whitespace() || ",;".contains(c));
    phrases.iter().any(|phrase| part.strip_prefix(phrase).is_some_and(ends))
}

/// The status of HTTP with which a part begins: `503 Service Unavailable`, or one of the forms that registries' clients
/// have.
fn status(part: &str) -> Option<u16> {
    const FORMS: [&str; 3] =
        ["invalid status code from registry ", "unexpected http status code ", "error parsing http "];
    let bare = FORMS.iter().find_map(|form| part.strip_prefix(form)).unwrap_or(part);
    let (digits, rest) = bare.split_at_checked(3)?;
    let ends = rest.is_empty() || rest.starts_with([' ', ',']);
    digits.parse().ok().filter(|code| ends && (100..=599).contains(code))
}

/// The text without what is in double quotes, as Go quotes what is foreign. A quote that is not closed takes all that
/// follows.
fn without_quoted(text: &str) -> String {
    let mut rest = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '"' {
            rest.push(c);
            continue;
        }
        rest.push_str(FOREIGN);
        while let Some(inner) = chars.next() {
            match inner {
                '\\' => drop(chars.next()),
                '"' => break,
                _ => {}
            }
        }
    }
    rest
}

/// A word, or what stands for it where it is a path, an address or an image's name with a registry.
fn without_foreign(word: &str) -> String {
    match word.contains(['/', '@']) {
        true if word.ends_with(':') => format!("{FOREIGN}:"),
        true => FOREIGN.to_owned(),
        false => word.to_owned(),
    }
}

/// A part without one of these names, where it begins with that: a name without a registry may be any word.
fn without_name<'a>(part: &'a str, names: &[String]) -> &'a str {
    let first = part.split(' ').next().unwrap_or_default();
    let bare = first.trim_matches(|c: char| "'`()[]{},;:.".contains(c));
    if names.iter().any(|name| name.eq_ignore_ascii_case(bare)) { FOREIGN } else { part }
}

/// Whether an engine's message names this image. Runtimes write a name in full, and leave out the tag where there is a
/// digest.
pub fn names(message: &str, image: &str) -> bool {
    let Ok(reference) = Reference::parse(image) else { return message.contains(image) };
    let repository = reference.repository();
    let end = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => format!("@{digest}"),
        (None, Some(tag)) => format!(":{tag}"),
        (None, None) => ":latest".into(),
    };
    let mut forms = vec![image.to_owned(), format!("{repository}{end}"), repository];
    forms.extend(reference.digest);
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "_-/@".contains(c);
    forms.iter().any(|form| {
        message.match_indices(form.as_str()).any(|(at, _)| {
            let before = message.get(..at).and_then(|before| before.chars().next_back());
            let mut after = message.get(at + form.len()..).unwrap_or_default().chars();
            // A digest follows a name and an at sign; a tag or a port goes on after a colon, a name after a dot.
            let begins = before.is_none_or(|c| !is_inner(c) && !".:".contains(c) || form.starts_with("sha256:"));
            let ends = match after.next() {
                None => true,
                Some('.' | ':') => after.next().is_none_or(|c| !is_inner(c)),
                Some(c) => !is_inner(c),
            };
            begins && ends
        })
    })
}

#[cfg(test)]
mod tests;
