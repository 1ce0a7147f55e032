//! A claimed job: a directory of root's own, and in it, as it was, the directory that its user put into the spool.
//!
//! ```text
//! submitted/     the user's: root reads in it, and never writes
//! claim.json     what is known of the claim
//! job.json       a copy, by which all attempts are made; root's alone, since the user's may be closed to others
//! result/        of the last attempt; result.<n>/ of earlier ones
//! ```

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use latebind_linux::volume::open_beneath;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use serde::{Deserialize, Serialize};

use super::job_file::JobFile;
use super::own_dir;
use crate::bind::Failure;
use crate::job::{Report, Request, Requests, now, rfc3339};
use crate::random::random_hex;
use crate::serve::protocol::LINE_MAX;
use crate::store::{put_file, put_files, read_bounded};
use crate::text::json_for_people;
use crate::tree;
use crate::volume_failure::may_pass;

/// Largest `job.json`.
pub(crate) const JOB_FILE_MAX: u64 = 1 << 20;
/// Largest `claim.json` that is read.
const CLAIM_MAX: u64 = 64 << 10;
/// Most attempts whose results are looked for where `claim.json` is unreadable.
const ATTEMPTS_LOOKED_FOR: u32 = 1000;

/// Name of the user's directory in a claim.
pub const SUBMITTED: &str = "submitted";
const CLAIM: &str = "claim.json";
const JOB: &str = "job.json";

/// `claim.json`: what root knows of a claim, kept where nobody else can write.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    version: u32,
    name: String,
    /// The attempt under way, or the next one; from 1.
    attempt: u32,
    /// Random: tells this attempt from one of another job that had the same name.
    token: String,
    /// UID that owns the user's directory: the job's owner.
    uid: Option<u32>,
    /// Whether others could write in the user's directory, so that its content may be theirs.
    #[serde(default)]
    shared: bool,
    /// Why this is not a job that can be run.
    #[serde(default)]
    invalid: Option<String>,
    /// How many of the earlier attempts do not count, since others have kept the job from being tried.
    #[serde(default)]
    excused: u32,
    /// Seconds since the epoch before which the next attempt is not made.
    #[serde(default)]
    not_before: f64,
}

/// A job that this pilot has claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Its name, without the attempt.
    pub name: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// What it needed when it was looked at. Its user can have changed that before the claim: only [`Claimed::request`]
    /// says what it needs.
    pub requests: Requests,
    /// What is known to have come of this attempt, so that it is not made again.
    pub verdict: Option<Failure>,
    dir: PathBuf,
    claim: Claim,
    is_written: bool,
}

fn token() -> io::Result<String> {
    random_hex::<16>()
}

/// Whether an error is the machine's, not what a user has made of a file.
fn is_ours(e: &io::Error) -> bool {
    may_pass(e) || e.raw_os_error() == Some(Errno::ESTALE as i32)
}

fn read_claim(dir: &Path) -> io::Result<Claim> {
    let bytes = read_bounded(tree::open_file(&dir.join(CLAIM))?, CLAIM_MAX)?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

/// Name, and the time before which it is not to be claimed, of a claim that waits for its next attempt.
pub fn waiting(dir: &Path) -> io::Result<(String, f64)> {
    read_claim(dir).map(|claim| (claim.name, claim.not_before))
}

/// What the job in this directory says that it needs, before it is claimed. Only an error of the machine's is one: of
/// what is wrong with the job its claim says more.
pub fn requests_in(dir: &Path) -> io::Result<Requests> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        requests: Requests,
    }
    let read = || {
        let dir = tree::open_dir(dir)?;
        let file = open_beneath(dir.as_fd(), JOB, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
        if !tree::is(&fstat(&file)?, SFlag::S_IFREG) {
            return Ok(Vec::new());
        }
        read_bounded(fs::File::from(file), JOB_FILE_MAX)
    };
    match read() {
        Err(e) if is_ours(&e) => Err(e),
        read => {
            Ok(serde_json::from_slice::<Part>(&read.unwrap_or_default()).map(|part| part.requests).unwrap_or_default())
        }
    }
}

/// Removes a claim into which nothing was moved. Whether it is gone.
pub fn remove_unused(dir: &Path) -> bool {
    if dir.join(SUBMITTED).symlink_metadata().is_ok() {
        return false;
    }
    let only_claim =
        fs::read_dir(dir).is_ok_and(|mut entries| entries.all(|e| e.is_ok_and(|e| e.file_name() == CLAIM)));
    if only_claim {
        let _ = fs::remove_file(dir.join(CLAIM));
    }
    fs::remove_dir(dir).is_ok()
}

impl Claimed {
    fn of(dir: PathBuf, claim: Claim, is_written: bool) -> Self {
        Self {
            name: claim.name.clone(),
            attempt: claim.attempt,
            requests: Requests::default(),
            verdict: None,
            dir,
            claim,
            is_written,
        }
    }

    /// A job that has just been claimed for its first attempt.
    pub fn new(dir: PathBuf, name: &str) -> io::Result<Self> {
        let claim = Claim {
            version: 1,
            name: name.to_owned(),
            attempt: 1,
            token: token()?,
            uid: None,
            shared: false,
            invalid: None,
            excused: 0,
            not_before: 0.0,
        };
        Ok(Self::of(dir, claim, false))
    }

    /// The claim of something that is not a job; written down before the thing is moved into it.
    pub fn invalid(dir: PathBuf, name: &str, why: String) -> io::Result<Self> {
        let mut claimed = Self::new(dir, name)?;
        claimed.claim.invalid = Some(why);
        claimed.write()?;
        Ok(claimed)
    }

    /// A claim that an earlier life of a pilot has begun.
    pub fn resume(dir: PathBuf, name: &str) -> io::Result<Self> {
        match read_claim(&dir) {
            Ok(claim) => {
                // After a power loss the copy can be missing or empty beside the claim: it is taken again.
                let has_job = fs::metadata(dir.join(JOB)).is_ok_and(|found| found.len() > 0);
                let is_written = has_job || claim.invalid.is_some();
                return Ok(Self::of(dir, claim, is_written));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                tracing::error!(job = name, "{}: {e}; what it said is determined again", dir.join(CLAIM).display())
            }
        }
        let mut claimed = Self::new(dir, name)?;
        while claimed.attempt < ATTEMPTS_LOOKED_FOR && claimed.result_of(claimed.attempt).exists() {
            claimed.attempt += 1;
        }
        claimed.claim.attempt = claimed.attempt;
        Ok(claimed)
    }

    /// The same, with what it needed when it was looked at.
    pub(super) fn needing(self, requests: Requests) -> Self {
        Self { requests, ..self }
    }

    /// The name of this attempt in the core.
    pub fn core_name(&self) -> String {
        format!("{}.{}", self.name, self.attempt)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the job is still this pilot's to deliver.
    pub fn is_here(&self) -> bool {
        self.dir.is_dir()
    }

    /// Where the results of the attempt under way are put.
    pub fn result(&self) -> PathBuf {
        self.dir.join("result")
    }

    /// Where the results of an earlier attempt are kept.
    pub fn result_of(&self, attempt: u32) -> PathBuf {
        self.dir.join(format!("result.{attempt}"))
    }

    fn write(&mut self) -> io::Result<()> {
        put_file(&self.dir.join(CLAIM), json_for_people(&self.claim)?.as_bytes(), 0o644)?;
        self.is_written = true;
        Ok(())
    }

    /// How many attempts count by now, if this one counts.
    pub fn attempts(&self) -> u32 {
        self.attempt.saturating_sub(self.claim.excused)
    }

    /// How many do not.
    pub fn excused(&self) -> u32 {
        self.claim.excused
    }

    /// Writes down that the next attempt may be made after `not_before`, and whether this one counts.
    pub fn write_next_attempt(&self, not_before: f64, counts: bool) -> io::Result<()> {
        let attempt = self.attempt.saturating_add(1);
        let excused = self.claim.excused.saturating_add(u32::from(!counts));
        let mut next = self.clone();
        next.claim = Claim { attempt, excused, token: token()?, not_before, ..self.claim.clone() };
        next.write()
    }

    /// Takes what root needs out of the user's directory, once. An error is the machine's; what is wrong with the job
    /// itself is said by [`Claimed::request`].
    pub fn prepare(&mut self) -> io::Result<()> {
        if self.is_written {
            return Ok(());
        }
        match self.take_job() {
            Err(e) if is_ours(&e) => return Err(e),
            Err(e) => self.claim.invalid = Some(e.to_string()),
            Ok(text) => {
                // Both are only needed once this has returned: together they wait for the disk once.
                let claim = json_for_people(&self.claim)?;
                put_files(&self.dir, &[(JOB, &text, 0o600), (CLAIM, claim.as_bytes(), 0o644)])?;
                self.is_written = true;
                return Ok(());
            }
        }
        self.write()
    }

    /// Says whose the job is, and reads its `job.json`. The user can still change everything in the directory, but
    /// cannot give it to somebody else.
    fn take_job(&mut self) -> io::Result<Vec<u8>> {
        let at = |name: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{name}: {e}"));
        let submitted = tree::open_dir(&self.dir.join(SUBMITTED)).map_err(|e| match e.raw_os_error() {
            Some(errno) if [Errno::ENOTDIR, Errno::ELOOP].contains(&Errno::from_raw(errno)) => {
                io::Error::other("the entry is not a directory: a job is a directory with a job.json in it")
            }
            _ => e,
        })?;
        let stat = fstat(&submitted)?;
        self.claim.uid = Some(stat.st_uid);
        self.claim.shared = stat.st_mode & 0o022 != 0;
        if submitted_claim(submitted.as_fd()) {
            return Err(io::Error::other(
                "the entry is what a pilot had claimed: move that into retry/, not into new/",
            ));
        }
        let file = open_beneath(submitted.as_fd(), JOB, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0).map_err(at(JOB))?;
        let found = fstat(&file)?;
        if !tree::is(&found, SFlag::S_IFREG) {
            return Err(at(JOB)(io::Error::other("is not a regular file")));
        }
        if found.st_uid != stat.st_uid {
            let whose = format!("belongs to UID {}, its directory to UID {}", found.st_uid, stat.st_uid);
            return Err(at(JOB)(io::Error::other(whose)));
        }
        read_bounded(fs::File::from(file), JOB_FILE_MAX).map_err(at(JOB))
    }

    /// The job as the core takes it, or why it cannot be one.
    pub fn request(&self) -> Result<Request, String> {
        if let Some(why) = &self.claim.invalid {
            return Err(why.clone());
        }
        let at = |e: io::Error| format!("job.json: {e}");
        let text =
            tree::open_file(&self.dir.join(JOB)).and_then(|file| read_bounded(file, JOB_FILE_MAX)).map_err(at)?;
        let job: JobFile = serde_json::from_slice(&text).map_err(|e| at(e.into()))?;
        if let Some(other) = job.name().filter(|name| *name != self.name) {
            return Err(format!("job.json: the name {other:?} is not that of the job, {:?}", self.name));
        }
        let mut request = job.request(self.base(), &self.dir.join(SUBMITTED))?;
        // A directory in which others could write is nobody's alone. Root puts jobs for many: it has to say whose one
        // is.
        request.alone = self.claim.shared || (self.claim.uid == Some(0) && request.owner.is_empty());
        let size = serde_json::to_vec(&request).map_err(|e| e.to_string())?.len();
        if size > LINE_MAX {
            return Err(format!("the request has {size} bytes, more than {LINE_MAX}"));
        }
        Ok(request)
    }

    /// A request that says nothing but what the claim is.
    fn base(&self) -> Request {
        Request {
            attempt: self.attempt,
            submitter: self.claim.uid,
            token: self.claim.token.clone(),
            results: Some(self.result()),
            ..Request::new(self.core_name())
        }
    }

    /// The report of an attempt that the core was not asked to make.
    pub fn refusal(&self, failure: &Failure) -> Report {
        let mut report = Report::new(&self.request().unwrap_or_else(|_| self.base()));
        (report.class, report.reason, report.message) = (failure.class, failure.reason, failure.message.clone());
        report.finished_at = rfc3339(now());
        report
    }

    /// Creates the directory for the results, if the core has not.
    pub fn create_result(&self) -> io::Result<()> {
        own_dir::create_if_missing(&self.result())
    }
}

fn submitted_claim(dir: std::os::fd::BorrowedFd<'_>) -> bool {
    let there = |name: &str| nix::sys::stat::fstatat(dir, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW).is_ok();
    there(CLAIM) && there(SUBMITTED)
}
