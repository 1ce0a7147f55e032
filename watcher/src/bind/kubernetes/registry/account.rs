//! How a registry lets a client in: credentials of a pull secret, and what the registry asks for (RFC 9110 section 11;
//! the distribution project's token authentication).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use base64ct::{Base64, Encoding};
use http::Uri;
use serde::Deserialize;

use crate::store::read_bounded;

/// Largest pull secret, as Kubernetes has it.
const SECRET_MAX: u64 = 1 << 20;
/// Longest token, and longest text of a challenge.
const TOKEN_MAX: usize = 16 << 10;

/// A pull secret. `Debug` is not derived: it holds passwords.
#[derive(Default, Deserialize)]
pub struct Accounts {
    #[serde(default)]
    auths: BTreeMap<String, Account>,
}

#[derive(Deserialize)]
struct Account {
    /// Name and password in base64, joined by a colon.
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token, from whoever is at `realm`.
    Bearer {
        /// Where tokens are given.
        realm: String,
        /// For whom.
        service: String,
    },
}

/// Registry and repositories of an entry, which may be an address: `https://index.docker.io/v1/`, `r.example/group`.
fn scope(entry: &str) -> (&str, &str) {
    let bare = entry.split_once("://").map_or(entry, |(_, bare)| bare);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = path.trim_end_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    match host {
        "index.docker.io" | "registry-1.docker.io" => ("docker.io", path),
        host => (host, path),
    }
}

impl Accounts {
    /// Reads the secret each time: the kubelet exchanges it when it changes.
    pub fn read(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self::default()) };
        let at = |e: &dyn std::fmt::Display| format!("the pull secret {}: {e}", path.display());
        let text = File::open(path).and_then(|file| read_bounded(file, SECRET_MAX)).map_err(|e| at(&e))?;
        // What serde says of a place in it could quote a password.
        serde_json::from_slice(&text).map_err(|_| at(&"is not a .dockerconfigjson"))
    }

    /// What lets the account for this repository in, where there is one: of several the one that names it best, as the
    /// kubelet takes it.
    pub fn of(&self, registry: &str, repository: &str) -> Option<String> {
        let is_beneath = |path: &str| {
            let rest = repository.strip_prefix(path);
            path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let scopes = self.auths.iter().map(|(entry, account)| (scope(entry), account));
        let fitting = scopes.filter(|((host, path), _)| *host == registry && is_beneath(path));
        let account = fitting.max_by_key(|((_, path), _)| path.len())?.1;
        let pair = format!("{}:{}", account.username, account.password);
        let encoded =
            if account.auth.is_empty() { Base64::encode_string(pair.as_bytes()) } else { account.auth.clone() };
        Some(format!("Basic {encoded}"))
    }
}

impl Challenge {
    /// Reads a `WWW-Authenticate`; `None`: nothing that is understood here.
    pub fn read(header: &str) -> Option<Self> {
        let header = Some(header).filter(|header| header.len() <= TOKEN_MAX)?;
        let all = http_auth::parse_challenges(header).ok()?;
        let find = |scheme: &str| all.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
        let Some(bearer) = find("Bearer") else { return find("Basic").map(|_| Self::Basic) };
        let value = |name: &str| {
            let found = bearer.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped()).unwrap_or_default()
        };
        Some(Self::Bearer { realm: value("realm"), service: value("service") })
    }
}

/// Where a token for `scope` is asked for.
pub fn token_url(realm: &str, service: &str, scope: &str) -> Option<Uri> {
    let joint = if realm.contains('?') { '&' } else { '?' };
    format!("{realm}{joint}service={}&scope={}", encoded(service), encoded(scope)).parse().ok()
}

/// Percent-encoded for a query (RFC 3986 section 2.1).
fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(one).collect()
}

/// What the token of an answer says to be let in.
pub fn bearer(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
    }
    let Answer { token, access_token } = serde_json::from_slice(answer).ok()?;
    let token = if token.is_empty() { access_token } else { token };
    let is_good = (1..=TOKEN_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    is_good.then(|| format!("Bearer {token}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn an_account_is_for_its_own_registry() {
        let text = br#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"}, "r.example:5000": {"username": "a",
                       "password": "b"}}}"#;
        let accounts: Accounts = serde_json::from_slice(text).unwrap();
        assert_eq!(accounts.of("docker.io", "x").unwrap(), "Basic YTpi");
        assert_eq!(accounts.of("r.example:5000", "x").unwrap(), "Basic YTpi");
        for other in ["r.example", "r.example:5001", "x.r.example:5000", ""] {
            assert_eq!(accounts.of(other, "x"), None, "{other}");
        }
    }

    #[test]
    fn of_accounts_of_one_registry_the_one_for_the_repository_is_taken() {
        let text = br#"{"auths": {"https://r.example/v2/": {"auth": "all"}, "r.example/a": {"auth": "a"},
                       "r.example/a/b": {"auth": "ab"}, "other.example/a/": {"auth": "other"}}}"#;
        let accounts: Accounts = serde_json::from_slice(text).unwrap();
        for (path, auth) in [("a/b/c", "ab"), ("a/b", "ab"), ("a/bc", "a"), ("a", "a"), ("ab", "all"), ("x/a/b", "all")]
        {
            assert_eq!(accounts.of("r.example", path), Some(format!("Basic {auth}")), "{path}");
        }
        assert_eq!(accounts.of("other.example", "a/x").unwrap(), "Basic other");
        assert_eq!(accounts.of("other.example", "b/x"), None);
    }

    #[test]
    fn challenges_are_read_and_what_is_none_is_not() {
        let of = |text: &str| Challenge::read(text);
        let bearer = |realm: &str, service: &str| Challenge::Bearer { realm: realm.into(), service: service.into() };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="x:pull""#;
        assert_eq!(of(hub), Some(bearer("https://auth.docker.io/token", "registry.docker.io")));
        assert_eq!(of(r#"Basic realm="x", Bearer realm="https://y""#), Some(bearer("https://y", "")));
        assert_eq!(of(r#"basic realm="x""#), Some(Challenge::Basic));
        for none in ["", "Digest realm=\"x\"", "Bearer realm=\"", "\"", &"x".repeat(1 << 20)] {
            assert_eq!(of(none), None);
        }
    }

    #[test]
    fn a_token_is_asked_for_and_taken_as_what_it_is() {
        let url = token_url("https://a/t", "s&x=y", "repository:a/b:pull").unwrap().to_string();
        assert_eq!(url, "https://a/t?service=s%26x%3Dy&scope=repository%3Aa%2Fb%3Apull");
        assert_eq!(token_url("no\nurl", "", ""), None);
        assert_eq!(bearer(br#"{"token":"x"}"#).unwrap(), "Bearer x");
        assert_eq!(bearer(br#"{"access_token":"y"}"#).unwrap(), "Bearer y");
        for none in [&br#"{"token":"a\r\nHost: b"}"#[..], b"{}", b"[]", b"x"] {
            assert_eq!(bearer(none), None);
        }
    }
}
