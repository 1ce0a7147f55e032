//! A source that is an HTTP server: GET gives a job, PUT and POST take what came of it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use super::{Answer, JobSource, Over, SourceError, TimeLimit};
use crate::source::JOB_FILE_MAX;
use crate::store::read_bounded;
use crate::tree::pack::{Checked, gzip, pack};
use crate::web::{self, Trust};

/// Largest file with a token.
const TOKEN_MAX: u64 = 16 << 10;
/// So much of what a server says to a request that it refuses is logged.
const REFUSAL_MAX: u64 = 500;

/// What the server is, and how long each question may take.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where a job is asked for; results go to paths beneath.
    pub url: String,
    /// A file with a token, read again for each request.
    pub token: Option<PathBuf>,
    /// A file with the certificates that are believed; the system's where it is `None`.
    pub ca: Option<PathBuf>,
    /// For a job.
    pub fetch_within: Duration,
    /// For a result.
    pub report_within: Duration,
    /// Where the archive of a result is made.
    pub archive: PathBuf,
}

/// The source.
pub struct Server {
    agent: Agent,
    options: Options,
}

impl Server {
    /// Checks what can be checked without a request.
    pub fn new(options: Options) -> io::Result<Self> {
        let invalid = |why: String| io::Error::other(format!("--source {:?}: {why}", options.url));
        let uri: Uri = options.url.parse().map_err(|e| invalid(format!("{e}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(invalid("write https://HOST/PATH".into()));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(invalid("a password in it would be seen by every process: use --source-token".into()));
        }
        if uri.scheme_str() == Some("http") && options.token.is_some() {
            tracing::warn!("the token is sent without encryption: use https");
        }
        // Redirections are errors: it would be somebody else who gives out jobs and takes results.
        let agent = web::client(Trust::new(options.ca.as_deref())?, false);
        let server = Self { agent, options };
        server.authorization().map_err(|e| io::Error::other(e.why))?;
        Ok(server)
    }

    /// The value of the header, where there is a token.
    fn authorization(&self) -> Result<Option<String>, SourceError> {
        let Some(path) = &self.options.token else { return Ok(None) };
        let at = |why: String| SourceError::new(format!("--source-token {}: {why}", path.display()));
        let bytes = File::open(path).and_then(|file| read_bounded(file, TOKEN_MAX)).map_err(|e| at(e.to_string()))?;
        let token = String::from_utf8(bytes).unwrap_or_default();
        let token = token.trim();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(at("has to be one word of ASCII".into()));
        }
        Ok(Some(format!("Bearer {token}")))
    }

    fn put(&self, name: &str, file: &str, body: &File, kind: &str, left: Duration) -> Result<(), SourceError> {
        let url = beneath(&self.options.url, &format!("{name}{file}"));
        let method = if file.is_empty() { "POST" } else { "PUT" };
        let mut request = if file.is_empty() { self.agent.post(&url) } else { self.agent.put(&url) };
        request = request.header("Content-Type", kind);
        if let Some(value) = self.authorization()? {
            request = request.header("Authorization", value);
        }
        let sent = request.config().timeout_global(web::within(left)).build().send(body);
        let mut response = sent.map_err(|e| SourceError::new(format!("{method} {url}: {e}")))?;
        match response.status().as_u16() {
            // 409: the server has a result of this name already. It keeps the first one.
            200..=299 | 409 => Ok(()),
            _ => Err(refused(&format!("{method} {url}"), &mut response)),
        }
    }

    /// All that there is of a result, as a compressed archive.
    fn archive(&self, over: &Over<'_>, left: impl Fn() -> Duration) -> io::Result<File> {
        let path = &self.options.archive;
        let _ = fs::remove_file(path);
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        // Nobody else needs its name.
        fs::remove_file(path)?;
        let check = || match left().is_zero() {
            true => Err(io::Error::new(io::ErrorKind::TimedOut, "not done in the time for a report")),
            false => Ok(()),
        };
        let mut file = pack(over.result, "report.json", gzip(Checked { to: file, check }))?.finish()?.to;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }
}

impl JobSource for Server {
    fn fetch(&self, _: &Path, limit: &TimeLimit) -> Result<Answer, SourceError> {
        let (url, left) = (&self.options.url, limit.left(Instant::now(), self.options.fetch_within));
        let mut request = self.agent.get(url).header("Accept", "application/json");
        if let Some(value) = self.authorization()? {
            request = request.header("Authorization", value);
        }
        let error = |e: ureq::Error| SourceError::new(format!("GET {url}: {e}"));
        let mut response = request.config().timeout_global(web::within(left)).build().call().map_err(error)?;
        match response.status().as_u16() {
            200 => {
                let body = response.body_mut().with_config().limit(JOB_FILE_MAX).read_to_vec();
                Ok(Answer::Job(body.map_err(error)?))
            }
            204 => Ok(Answer::Nothing(web::retry_after(response.headers()))),
            _ => Err(refused(&format!("GET {url}"), &mut response)),
        }
    }

    fn report(&self, over: &Over<'_>, limit: &TimeLimit) -> Result<(), SourceError> {
        let began = Instant::now();
        let left = || limit.left(began, self.options.report_within);
        let archive = self.archive(over, left).map_err(|e| SourceError::new(format!("archive of the result: {e}")))?;
        self.put(over.name, "/result.tar.gz", &archive, "application/gzip", left())?;
        // The report comes last: with it the server has everything.
        let report = File::open(over.result.join("report.json"))?;
        self.put(over.name, "", &report, "application/json", left())
    }
}

/// The URL with another part at the end of its path.
fn beneath(url: &str, part: &str) -> String {
    let (path, query) = url.split_at(url.find('?').unwrap_or(url.len()));
    format!("{}/{part}{query}", path.trim_end_matches('/'))
}

/// What a server says that does not do what it was asked to.
fn refused(what: &str, response: &mut Response<Body>) -> SourceError {
    let said = io::Read::take(response.body_mut().as_reader(), REFUSAL_MAX);
    let said = read_bounded(said, REFUSAL_MAX).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    let why = format!("{what}: {} {}", response.status(), said.trim());
    SourceError { why, retry_after: web::retry_after(response.headers()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;

    fn server(url: &str, token: Option<&[u8]>) -> io::Result<Server> {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("token");
        token.iter().for_each(|token| fs::write(&file, token).unwrap());
        let time = Duration::from_secs(1);
        Server::new(Options {
            url: url.into(),
            token: token.map(|_| file),
            ca: None,
            fetch_within: time,
            report_within: time,
            archive: scratch.path().join("archive"),
        })
    }

    #[test]
    fn what_cannot_be_a_source_is_refused_at_once() {
        assert!(server("https://h/jobs?queue=a", Some(b"secret\n")).is_ok());
        for bad in ["", "h", "/jobs", "ftp://h/", "https:///x", "https://user:password@h/"] {
            assert!(server(bad, None).is_err(), "{bad}");
        }
        for bad in [&b""[..], b"\n", b"two words", b"\xff", b"a\r\nX: y"] {
            assert!(server("https://h/", Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn results_go_to_paths_beneath_the_url() {
        assert_eq!(beneath("https://h/jobs?queue=a", "n/result.tar.gz"), "https://h/jobs/n/result.tar.gz?queue=a");
        assert_eq!(beneath("https://h/", "n"), "https://h/n");
        assert_eq!(beneath("https://h", "n"), "https://h/n");
    }
}
