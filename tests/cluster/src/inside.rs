//! The pod as its node sees it: volumes and processes, also while API server or kubelet are away. Our own cluster only.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use latebind_tests::pod::eventually;
use serde_json::Value;

use crate::access::cluster;
use crate::pilot::{JOB_WITHIN, Pilot};

/// How often a phase is looked for; some last for a few milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The inside of one pod: of this one, and not of a successor that has its name.
pub struct Inside {
    uid: String,
    volumes: PathBuf,
}

impl Pilot {
    /// The inside of the pod that is there now.
    #[track_caller]
    pub fn inside(&self) -> Inside {
        let uid = self.object()["metadata"]["uid"].as_str().expect("a pod has a UID").to_owned();
        Inside { volumes: cluster().node().pods().join(&uid).join("volumes/kubernetes.io~empty-dir"), uid }
    }
}

impl Inside {
    /// Where an emptyDir of the pod is.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.volumes.join(name)
    }

    /// `work/` of a slot.
    pub fn work(&self, slot: u32) -> PathBuf {
        self.volume(&format!("data-{slot}")).join("work")
    }

    /// What glue says of itself in a slot; null where there is nothing.
    pub fn glue(&self, slot: u32) -> Value {
        let bytes = fs::read(self.volume(&format!("ctl-{slot}")).join("status.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// The phase of an attempt (`NAME.1`), as the watcher has written it down.
    pub fn phase(&self, attempt: &str) -> Option<String> {
        let bytes = fs::read(self.volume("private").join(format!("jobs/{attempt}.json"))).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok()?["phase"].as_str().map(str::to_owned)
    }

    /// Waits until an attempt has come to this phase.
    #[track_caller]
    pub fn reaches(&self, attempt: &str, phase: &str) {
        let give_up = Instant::now() + JOB_WITHIN;
        loop {
            let now = self.phase(attempt);
            if now.as_deref() == Some(phase) {
                return;
            }
            assert!(Instant::now() < give_up, "not within {JOB_WITHIN:?}: {attempt} is {phase}; it is {now:?}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the program of an attempt runs; returns its process ID on this machine.
    #[track_caller]
    pub fn runs(&self, attempt: &str, slot: u32) -> i32 {
        eventually(&format!("{attempt} runs"), JOB_WITHIN, || {
            let glue = self.glue(slot);
            let main = glue["main_pid"].as_i64().filter(|_| glue["job"] == attempt && glue["phase"] == "running")?;
            self.process(main)
        })
    }

    /// The process that has this ID in the pod's PID namespace.
    fn process(&self, inner: i64) -> Option<i32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        pids.find(|pid| {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let status = read("status");
            let id = status.lines().find_map(|l| l.strip_prefix("NSpid:")?.split_whitespace().last());
            id == Some(inner.to_string().as_str()) && read("cgroup").contains(&self.uid)
        })
    }
}
