//! Times: looking at the clock, and what many tries say together.

use std::path::{Path, PathBuf};

use nix::time::{ClockId, clock_gettime};

use crate::Failed;

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec()).unwrap_or(0))
}

/// Nanoseconds of the wall clock, as strace and perf print it.
pub fn wall() -> u64 {
    let since = latebind_contract::time::wall().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(0))
}

/// What was measured, in nanoseconds, one number for each try.
#[derive(Clone, Debug, Default)]
pub struct Sample(pub Vec<u64>);

impl Sample {
    /// The value that `percent` of the tries do not exceed.
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted.get((last * percent + 50) / 100).map(|ns| *ns as f64 / 1e3)
    }

    /// Microseconds: half of the tries took less.
    pub fn median(&self) -> Option<f64> {
        self.percentile(50)
    }
}

/// The three times of one try of a tool.
#[derive(Clone, Debug, Default)]
pub struct Tries {
    /// From the request to the job's first act.
    pub to_exec: Sample,
    /// From the job's last act until the other side knows.
    pub to_known: Sample,
    /// Both and the job between.
    pub whole: Sample,
}

impl Tries {
    /// Adds one try: when it was asked for, what the job saw, when the end was known.
    pub fn add(&mut self, asked: u64, job: (u64, u64), known: u64) {
        self.to_exec.0.push(job.0.saturating_sub(asked));
        self.to_known.0.push(known.saturating_sub(job.1));
        self.whole.0.push(known.saturating_sub(asked));
    }
}

/// A file that the job of one try writes its times into.
pub struct StampFile(pub PathBuf);

impl StampFile {
    /// Makes it, open to every UID.
    pub fn make(path: &Path) -> Result<Self, Failed> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(path, [0; 16]).map_err(|e| format!("{}: {e}", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(|e| e.to_string())?;
        Ok(Self(path.to_owned()))
    }

    /// The job's first and last look at the clock; 0 where there was none yet.
    pub fn times(&self) -> Result<(u64, u64), Failed> {
        let bytes = std::fs::read(&self.0).map_err(|e| format!("{}: {e}", self.0.display()))?;
        let number = |n: usize| bytes.get(n..n + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        Ok((number(0), number(8)))
    }

    /// Both times of a job that has ended.
    pub fn of_ended(&self) -> Result<(u64, u64), Failed> {
        match self.times()? {
            (0, _) | (_, 0) => Err(format!("the job wrote no times into {}", self.0.display())),
            both => Ok(both),
        }
    }

    /// Waits until the job has written that it runs.
    pub fn wait_for_start(&self) -> Result<(), Failed> {
        for _ in 0..5_000 {
            if self.times()?.0 != 0 {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Err(format!("no job wrote into {} within 5 s", self.0.display()))
    }
}
