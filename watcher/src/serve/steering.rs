//! What the core does for people who look on: signals for all of a job, and how the slots are now.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::core::Core;
use super::protocol::SlotLine;
use crate::job::{Phase, now};
use crate::metrics::Metrics;

/// How long a job's thread may take to send a signal to all its processes.
const STEERED_WITHIN: Duration = Duration::from_secs(30);

impl Core {
    /// Sends a signal to all processes of a running job. Returns how many got it.
    pub fn steer(&self, id: &str, signal: i32) -> Result<u64, String> {
        let answer = {
            let shared = self.lock();
            let job = shared.jobs.get(id).ok_or_else(|| format!("there is no job {id:?}: see watcher jobs"))?;
            if job.state.phase != Phase::Running {
                return Err(format!("{id} is not running but {}", job.state.phase.name()));
            }
            job.control.steer(signal)
        };
        match answer.recv_timeout(STEERED_WITHIN) {
            Ok(sent) => sent,
            Err(_) => Err(format!("{id} has ended meanwhile, or has not started yet")),
        }
    }

    /// Has a running job's attendant serve a client, which waits at the other end of this socket.
    pub fn exec(&self, id: &str, client: OwnedFd) -> Result<(), String> {
        let shared = self.lock();
        let job = shared.jobs.get(id).ok_or_else(|| format!("there is no job {id:?}: see watcher jobs"))?;
        match job.state.phase {
            _ if !job.state.request.exec => Err(format!(
                "{id} takes no further commands: that has to be said when it is made, by \"exec\": true in job.json or \
                 run --exec"
            )),
            Phase::Running => job.control.connect(client),
            phase => Err(format!("{id} is not running but {}", phase.name())),
        }
    }

    /// What has been counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How the slots are now, and how many jobs wait for one.
    pub fn top(&self) -> (Vec<SlotLine>, usize) {
        let (shared, at) = (self.lock(), now());
        let under_way = |slot: u32| {
            shared
                .jobs
                .values()
                .find(|job| job.state.slot == Some(slot) && !matches!(job.state.phase, Phase::Done | Phase::Queued))
        };
        let line = |slot: u32| {
            let job = under_way(slot);
            let state = job.map(|job| &job.state);
            let running = state.filter(|s| s.phase == Phase::Running);
            let left = |s: &&crate::job::State| {
                Some(s.notified_at? + s.request.timeout_s - at).filter(|_| s.request.timeout_s > 0.0)
            };
            let service = shared.services.get(&slot).cloned().unwrap_or_default();
            SlotLine {
                slot,
                failed_starts: service.failed,
                out_s: service.out_s(),
                why: Some(service.why).filter(|why| !why.is_empty()),
                job: state.map(|s| s.request.id.clone()),
                image: state.map(|s| s.request.image.clone()),
                phase: state.map(|s| s.phase),
                phase_s: state.map_or(0.0, |s| (at - s.since).max(0.0)),
                left_s: running.as_ref().and_then(left).map(|s| s.max(0.0)),
                live: job.filter(|_| running.is_some()).and_then(|job| job.control.board.live()),
            }
        };
        (self.slots.iter().map(|slot| line(*slot)).collect(), shared.queue.len())
    }
}
