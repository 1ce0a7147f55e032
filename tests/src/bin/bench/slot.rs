//! One slot from the watcher's side, with the same calls as the watcher: put, notify, wait for a notification, verify.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use latebind_contract::encoding::{Bytes32, Key, sha256_hex};
use latebind_contract::layout;
use latebind_contract::record::Record;
use latebind_contract::startup::{EnvMode, Object, Startup, Stream};
use latebind_contract::status::{Phase, Status};
use latebind_contract::verify::{Expected, verify};
use latebind_linux::volume::Dir;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Failed;
use crate::sample::now;

/// Longest wait for anything that glue should say.
const PATIENCE_MS: u16 = 10_000;

/// The slot of the benchmark's pod.
pub struct Slot {
    ctl: Dir,
    notified: OwnedFd,
    count: u32,
}

/// A job that was handed over.
pub struct Started {
    startup: Startup,
    digest: String,
    /// When glue was about to be notified.
    pub notified: u64,
}

fn said(what: &str) -> impl Fn(std::io::Error) -> Failed + '_ {
    move |e| format!("{what}: {e}")
}

fn fresh() -> Result<[u8; 32], Failed> {
    let mut bytes = [0; 32];
    latebind_linux::sys::random(&mut bytes).map_err(said("random numbers"))?;
    Ok(bytes)
}

impl Slot {
    /// Opens slot 0 below `top`, which is `/shared` where this runs in a container.
    pub fn open(top: &Path) -> Result<Self, Failed> {
        let path = top.join("slot/0/ctl");
        let ctl = Dir::open(&path.to_string_lossy()).map_err(said("ctl/"))?;
        let notified = ctl.open_fifo(layout::WATCHER_NOTIFY).map_err(said("watcher.notify"))?;
        Ok(Self { ctl, notified, count: 0 })
    }

    /// What glue says, if it says anything.
    pub fn status(&self) -> Option<Status> {
        serde_json::from_slice(&self.ctl.read_file(layout::STATUS, 64 << 10).ok()?).ok()
    }

    /// Waits for a status that `wanted` likes.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Result<Status, Failed> {
        let deadline = now() + u64::from(PATIENCE_MS) * 1_000_000;
        while now() < deadline {
            if let Some(status) = self.status().filter(&wanted) {
                return Ok(status);
            }
            // A notification comes at once; the bound is for one that somebody else took.
            self.hear(100);
        }
        Err(format!("glue is not {what} after {PATIENCE_MS} ms"))
    }

    /// Waits until glue is ready for a job, under another incarnation than `before`.
    pub fn wait_ready(&self, before: &str) -> Result<String, Failed> {
        let status = self.wait_for("ready", |s| s.phase != Phase::Running && s.incarnation != before)?;
        Ok(status.incarnation)
    }

    /// Waits for a notification and empties the FIFO.
    fn hear(&self, milliseconds: u16) {
        let _ = poll(&mut [PollFd::new(self.notified.as_fd(), PollFlags::POLLIN)], PollTimeout::from(milliseconds));
        self.silence();
    }

    fn silence(&self) {
        let mut bytes = [0; 256];
        while nix::unistd::read(&self.notified, &mut bytes).is_ok_and(|n| n == bytes.len()) {}
    }

    /// Hands a job over, as the watcher does it for a job with files for its output.
    pub fn start(&mut self, incarnation: &str, argv: &[&str]) -> Result<Started, Failed> {
        self.count += 1;
        let output =
            |name: &str| Some(Stream { file: Some(format!("io/{name}")), append: false, fifo: None, keep_open: false });
        let startup = Startup {
            version: latebind_contract::VERSION,
            job: format!("bench-{}", self.count),
            nonce: Bytes32::new(fresh()?),
            key: Key::new(Box::new(fresh()?)),
            incarnation: incarnation.to_owned(),
            argv: argv.iter().map(|a| (*a).into()).collect(),
            cwd: None,
            env_mode: EnvMode::Inherit,
            env_files: Vec::new(),
            env: Object(vec![("LATEBIND_BENCH".into(), "1".into())]),
            uid: layout::DEFAULT_PAYLOAD_ID,
            gid: layout::DEFAULT_PAYLOAD_ID,
            groups: Vec::new(),
            umask: "022".into(),
            stdin: None,
            stdout: output("stdout"),
            stderr: output("stderr"),
            rlimits: Object::default(),
            terminal: None,
            exec: false,
            links: Object::default(),
            passwd: false,
            account: latebind_contract::layout::ACCOUNT.into(),
            home: None,
            stop: latebind_contract::startup::Stop::default(),
            timeout_s: 0.0,
            grace_s: 5.0,
            kill_s: 10.0,
        };
        let file = startup.file().ok_or("the startup file cannot be written")?;
        let digest = sha256_hex(&file);
        self.ctl.remove(layout::RECORD).map_err(said("the last record"))?;
        self.silence();
        self.ctl.replace(layout::STARTUP, &file, 0o600).map_err(said("the startup file"))?;
        let notified = now();
        self.notify()?;
        Ok(Started { startup, digest, notified })
    }

    fn notify(&self) -> Result<(), Failed> {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK;
        let fifo = self.ctl.open_beneath(layout::GLUE_NOTIFY, flags, 0).map_err(said("glue.notify"))?;
        nix::unistd::write(&fifo, b"\n").map(drop).map_err(|e| format!("glue.notify: {e}"))
    }

    /// Waits for the job's record and verifies it. Returns it with the time at which that was done.
    pub fn await_record(&self, started: &Started) -> Result<(Record, u64), Failed> {
        let deadline = now() + u64::from(PATIENCE_MS) * 1_000_000;
        loop {
            self.silence();
            match self.record(started)? {
                Some(record) => return Ok((record, now())),
                None if now() > deadline => {
                    let said = self.status().map(|s| format!("{s:?}"));
                    return Err(format!("no record after {PATIENCE_MS} ms; glue says {said:?}"));
                }
                None => {
                    let notified = PollFd::new(self.notified.as_fd(), PollFlags::POLLIN);
                    let _ = poll(&mut [notified], PollTimeout::from(PATIENCE_MS));
                }
            }
        }
    }

    /// The job's record, verified, if there is one.
    pub fn record(&self, started: &Started) -> Result<Option<Record>, Failed> {
        let jws = match self.ctl.read_file(layout::RECORD, layout::RECORD_MAX) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(said("the record"))?,
        };
        let expected = Expected {
            key: &started.startup.key,
            job: &started.startup.job,
            nonce: &started.startup.nonce,
            incarnation: &started.startup.incarnation,
            startup_sha256: &started.digest,
        };
        verify(Some(&jws), &expected).map(Some).map_err(|refusal| format!("the record is refused: {refusal}"))
    }
}
