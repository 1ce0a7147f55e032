//! What an image runs by itself, asked of its registry (the distribution project's API, version 2): manifest, for an
//! index that of this platform, and configuration, each checked against its digest. Nobody else in a pod can say it.
//!
//! A registry is named by the user of a job, and is not trusted: sizes, redirects and the time for all of it have a
//! bound, plain HTTP is spoken only with those that the operator names, and credentials go to their own registry alone.

mod account;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::{Client, Config};
use latebind_contract::encoding::sha256_hex;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::account::{Accounts, Challenge};
use crate::bind::{Configured, Failure, ImageCommand, Reason, architecture};
use crate::reference::{Reference, is_digest, of_image_id};
use crate::text::one_line;

/// Longest time for all requests about one image.
const ALL_WITHIN: Duration = Duration::from_secs(30);
/// Longest time for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Largest manifest or configuration, as registries have it.
const DOCUMENT_MAX: usize = 4 << 20;
/// Most redirects of one request: a registry may keep its blobs elsewhere.
const REDIRECTS_MAX: u32 = 3;
/// Most images that are remembered.
const KNOWN_MAX: usize = 256;
/// What manifests there are.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Where Docker Hub's registry is.
const HUB: &str = "registry-1.docker.io";

/// How registries are asked.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Credentials, as a pull secret has them (`.dockerconfigjson`).
    pub pull_secret: Option<PathBuf>,
    /// Registries, as images name them, that are asked by plain HTTP.
    pub plain_http: Vec<String>,
    /// Certificates to trust in place of the container's own.
    pub ca: Option<PathBuf>,
}

/// Asks registries.
#[derive(Debug)]
pub struct Registries {
    options: Options,
    /// By digest, which always means the same.
    known: Mutex<HashMap<String, ImageCommand>>,
}

/// One repository.
struct Repository<'a> {
    options: &'a Options,
    /// The registry as images name it.
    registry: &'a str,
    path: &'a str,
    /// What was sent last to be let in.
    authorization: Option<String>,
    /// For each host that was asked: it reads certificates, and keeps its connection for the next document.
    clients: HashMap<String, Client>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    platform: Platform,
}

#[derive(Default, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// A manifest, or an index of manifests.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// An image's configuration.
#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    config: Option<Configured>,
}

impl Registries {
    /// Asks nothing yet.
    pub fn new(options: Options) -> Self {
        Self { options, known: Mutex::default() }
    }

    /// What the image with this ID runs by itself; `image`: its name in messages.
    pub async fn command(&self, image: &str, image_id: &str) -> Result<ImageCommand, Failure> {
        let Some((name, digest)) = of_image_id(image_id) else {
            let why = format!(
                "{} was imported on its node, not pulled: no registry can say what it runs by itself, so name the \
                 program in argv",
                one_line(image)
            );
            return Err(Failure::hold(Reason::InvalidJob, why));
        };
        if let Some(known) = self.remembered(digest) {
            return Ok(known);
        }
        let asked = tokio::time::timeout(ALL_WITHIN, self.ask(name, digest)).await;
        let command = asked.unwrap_or_else(|_| {
            let why = format!("its registry took more than {ALL_WITHIN:?}");
            Err(Failure::retry(Reason::RegistryUnavailable, why))
        });
        let what = |e: Failure| Failure {
            message: format!("what {} runs by itself cannot be asked for: {}", one_line(image), e.message),
            ..e
        };
        let command = command.map_err(what)?.command().ok_or_else(|| ImageCommand::too_large(image))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(digest.to_owned(), command.clone());
        Ok(command)
    }

    fn remembered(&self, digest: &str) -> Option<ImageCommand> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    async fn ask(&self, name: &str, digest: &str) -> Result<Configured, Failure> {
        let full = Reference::parse(name).map_err(malformed)?.repository();
        let (registry, path) = full.split_once('/').ok_or_else(|| malformed("its name has no registry"))?;
        let (authorization, clients) = (None, HashMap::new());
        let mut repository = Repository { options: &self.options, registry, path, authorization, clients };
        let mut manifest: Manifest = repository.document("manifests", digest).await?;
        if manifest.config.is_none() {
            let ours = |it: &&Descriptor| it.platform.os == "linux" && it.platform.architecture == architecture();
            let Some(of_platform) = manifest.manifests.iter().find(ours) else {
                return Err(malformed(format!("its index has no manifest for linux/{}", architecture())));
            };
            manifest = repository.document("manifests", &of_platform.digest).await?;
        }
        let config = manifest.config.ok_or_else(|| malformed("its manifest has no configuration"))?;
        let image: Image = repository.document("blobs", &config.digest).await?;
        Ok(image.config.unwrap_or_default())
    }
}

fn malformed(why: impl Into<String>) -> Failure {
    Failure::hold(Reason::InvalidJob, why)
}

fn away(why: impl Into<String>) -> Failure {
    Failure::retry(Reason::RegistryUnavailable, why)
}

/// A request that could not be made.
fn failed(registry: &str, e: &dyn std::fmt::Display) -> Failure {
    away(format!("{registry}: {}", one_line(&e.to_string())))
}

/// What a registry means that answers so.
fn refusal(status: StatusCode, host: &str) -> Failure {
    let why = format!("{host} answers {status}");
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::hold(
            Reason::ImageAccessDenied,
            format!("{why}: whoever runs the pilot can give it the pull secret (--pull-secret)"),
        ),
        StatusCode::NOT_FOUND => Failure::hold(Reason::ImageNotFound, why),
        StatusCode::TOO_MANY_REQUESTS => Failure::retry(Reason::RegistryBusy, why),
        _ => away(why),
    }
}

impl Repository<'_> {
    /// The document with this digest, of one kind.
    async fn document<T: DeserializeOwned>(&mut self, kind: &str, digest: &str) -> Result<T, Failure> {
        if !is_digest(digest) {
            return Err(malformed(format!("a digest is not SHA-256: {}", one_line(digest))));
        }
        let url = self.url(&format!("/v2/{}/{kind}/{digest}", self.path))?;
        let mut answer = self.get(url.clone(), self.authorization.clone()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.authorization = Some(self.let_in(answer.headers()).await?);
            answer = self.get(url, self.authorization.clone()).await?;
        }
        if !answer.status().is_success() {
            return Err(refusal(answer.status(), self.registry));
        }
        let bytes = read(answer).await?;
        if format!("sha256:{}", sha256_hex(&bytes)) != digest {
            return Err(away(format!("{} sent something else than {digest}", self.registry)));
        }
        serde_json::from_slice(&bytes).map_err(|e| malformed(format!("{digest}: {e}")))
    }

    fn url(&self, path: &str) -> Result<Uri, Failure> {
        let plain = self.options.plain_http.iter().any(|host| host == self.registry);
        let host = if self.registry == "docker.io" { HUB } else { self.registry };
        let scheme = if plain { "http" } else { "https" };
        format!("{scheme}://{host}{path}").parse().map_err(|e| malformed(format!("{host}: {e}")))
    }

    /// What lets this client in, as the registry has asked for it.
    async fn let_in(&mut self, headers: &HeaderMap) -> Result<String, Failure> {
        let registry = self.registry;
        let denied = |why: &str| refusal(StatusCode::UNAUTHORIZED, &format!("{registry} ({why})"));
        let account = Accounts::read(self.options.pull_secret.as_deref()).map_err(away)?.of(registry, self.path);
        let asked = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        match asked.filter_map(Challenge::read).next() {
            Some(Challenge::Basic) => account.ok_or_else(|| denied("it wants an account, and the pilot has none")),
            Some(Challenge::Bearer { realm, service }) => {
                let scope = format!("repository:{}:pull", self.path);
                let token = account::token_url(&realm, &service, &scope).ok_or_else(|| denied("its realm"))?;
                if !self.may_be_asked(&token) {
                    return Err(denied("its realm is not HTTPS"));
                }
                let answer = self.get(token, account).await?;
                if !answer.status().is_success() {
                    return Err(refusal(answer.status(), self.registry));
                }
                account::bearer(&read(answer).await?).ok_or_else(|| denied("its token is malformed"))
            }
            None => Err(denied("it does not say how")),
        }
    }

    fn may_be_asked(&self, url: &Uri) -> bool {
        let host = url.authority().map_or("", |authority| authority.as_str());
        url.scheme_str() == Some("https") || self.options.plain_http.iter().any(|plain| plain == host)
    }

    /// Gets a document, from where the registry sends us. Where that is another host, nothing lets us in there but what
    /// the address has.
    async fn get(&mut self, mut url: Uri, mut authorization: Option<String>) -> Result<Response<Body>, Failure> {
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.get_once(&url, authorization.as_deref()).await?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let target = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok()?.parse::<Uri>().ok());
            let target = target.filter(|to| to.authority().is_some() && self.may_be_asked(to));
            let target = target.ok_or_else(|| away(format!("{} redirects to no HTTPS address", self.registry)))?;
            if target.authority() != url.authority() {
                authorization = None;
            }
            url = target;
        }
        Err(away(format!("{} redirects more than {REDIRECTS_MAX} times", self.registry)))
    }

    async fn get_once(&mut self, url: &Uri, authorization: Option<&str>) -> Result<Response<Body>, Failure> {
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::get(path).header(ACCEPT, MANIFESTS);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Body::empty()).map_err(|e| failed(self.registry, &e))?;
        let sent = self.client(url)?.send(request).await;
        sent.map_err(|e| failed(self.registry, &super::api::text(&e)))
    }

    /// A client for the host of this address.
    fn client(&mut self, url: &Uri) -> Result<Client, Failure> {
        let origin = [url.scheme_str(), Some("://"), url.authority().map(|a| a.as_str())];
        let origin: String = origin.into_iter().flatten().collect();
        if let Some(known) = self.clients.get(&origin) {
            return Ok(known.clone());
        }
        let mut config = Config::new(origin.parse().map_err(|e: http::uri::InvalidUri| failed(self.registry, &e))?);
        config.connect_timeout = Some(CONNECT_WITHIN);
        config.default_retry = false;
        if url.scheme_str() == Some("http") {
            // The client loads certificates all the same, and the pilot's image need not have any.
            config.root_cert = Some(Vec::new());
        } else {
            config.root_cert_file.clone_from(&self.options.ca);
        }
        let client = Client::try_from(config).map_err(|e| failed(self.registry, &e))?;
        self.clients.insert(origin, client.clone());
        Ok(client)
    }
}

/// A whole body, of bounded size.
async fn read(answer: Response<Body>) -> Result<Vec<u8>, Failure> {
    let body = Limited::new(answer.into_body(), DOCUMENT_MAX).collect().await;
    let body = body.map_err(|e| away(format!("its answer cannot be read: {}", one_line(&e.to_string()))))?;
    Ok(body.to_bytes().to_vec())
}

#[cfg(test)]
mod tests;
