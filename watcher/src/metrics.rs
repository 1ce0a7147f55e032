//! What the core counts, as text in the form of OpenMetrics. It names no job, owner or image: a payload can ask too.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::job::Report;
use crate::serve::protocol::SlotLine;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ending {
    class: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InPhase {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InSlot {
    slot: u32,
}

type Measure = Family<InSlot, Gauge<f64, AtomicU64>>;

/// The counters.
pub struct Metrics {
    registry: Mutex<Registry>,
    binds: Counter,
    reused: Counter,
    endings: Family<Ending, Counter>,
    phases: Family<InPhase, Histogram>,
    start: Histogram,
    cpu: Counter<f64, AtomicU64>,
    busy: Gauge,
    queued: Gauge,
    slot_cpu: Measure,
    slot_memory: Measure,
    slot_processes: Measure,
    slot_disk: Measure,
    slot_failed_starts: Measure,
    out_of_service: Gauge,
}

fn histogram() -> Histogram {
    // 10 ms to 1.5 h.
    Histogram::new(exponential_buckets(0.01, 2.5, 15))
}

impl Default for Metrics {
    fn default() -> Self {
        let new = Self {
            registry: Mutex::new(Registry::with_prefix("latebind")),
            binds: Counter::default(),
            reused: Counter::default(),
            endings: Family::default(),
            phases: Family::new_with_constructor(histogram),
            start: Histogram::new(exponential_buckets(0.000_25, 2.0, 14)),
            cpu: Counter::default(),
            busy: Gauge::default(),
            queued: Gauge::default(),
            slot_cpu: Family::default(),
            slot_memory: Family::default(),
            slot_processes: Family::default(),
            slot_disk: Family::default(),
            slot_failed_starts: Family::default(),
            out_of_service: Gauge::default(),
        };
        {
            let mut to = new.registry.lock().unwrap_or_else(PoisonError::into_inner);
            to.register("binds", "Containers that were bound and proven", new.binds.clone());
            to.register("reused_containers", "Jobs that ran in the container of the one before", new.reused.clone());
            to.register("jobs", "Jobs that are over, by class and reason", new.endings.clone());
            to.register_with_unit("phase", "How long each phase of a job took", Unit::Seconds, new.phases.clone());
            to.register_with_unit("start", "From the notification to the job's exec", Unit::Seconds, new.start.clone());
            to.register_with_unit("cpu", "CPU time of jobs that are over", Unit::Seconds, new.cpu.clone());
            to.register("busy_slots", "Slots that have a job", new.busy.clone());
            to.register("slots_out_of_service", "Slots that take no job for a while", new.out_of_service.clone());
            to.register("slot_failed_starts", "Starts in a row that failed", new.slot_failed_starts.clone());
            to.register("queued_jobs", "Jobs that wait for a slot", new.queued.clone());
            to.register("slot_cpu_time", "Seconds of CPU time of the slot's job so far", new.slot_cpu.clone());
            to.register("slot_memory", "Bytes of memory of the slot's job", new.slot_memory.clone());
            to.register("slot_processes", "Processes of the slot's job", new.slot_processes.clone());
            to.register("slot_disk", "Bytes in the slot's data volume", new.slot_disk.clone());
        }
        new
    }
}

impl Metrics {
    /// A job is over.
    pub fn over(&self, report: &Report) {
        let class = report.class.name();
        self.endings.get_or_create(&Ending { class, reason: report.reason.as_str() }).inc();
        if report.reused_container {
            self.reused.inc();
        } else if report.durations.start > 0.0 {
            self.binds.inc();
        }
        for (phase, seconds) in report.durations.by_name() {
            if seconds > 0.0 {
                self.phases.get_or_create(&InPhase { phase }).observe(seconds);
            }
        }
        if let Some(ms) = report.start_latency_ms {
            self.start.observe(ms.max(0.0) / 1e3);
        }
        if let Some(usage) = &report.usage {
            self.cpu.inc_by(usage.peak.cpu_s);
        }
    }

    /// All of it as text, with the slots as they are now.
    pub fn text(&self, slots: &[SlotLine], queued: usize) -> Result<String, std::fmt::Error> {
        self.busy.set(slots.iter().filter(|line| line.job.is_some()).count() as i64);
        self.queued.set(queued as i64);
        self.out_of_service.set(slots.iter().filter(|line| line.out_s.is_some()).count() as i64);
        for line in slots {
            let label = InSlot { slot: line.slot };
            let usage = line.live.map(|live| live.usage).unwrap_or_default();
            self.slot_failed_starts.get_or_create(&label).set(f64::from(line.failed_starts));
            self.slot_cpu.get_or_create(&label).set(usage.cpu_s);
            self.slot_memory.get_or_create(&label).set(usage.memory() as f64);
            self.slot_processes.get_or_create(&label).set(usage.processes as f64);
            self.slot_disk.get_or_create(&label).set(usage.disk.unwrap_or(0) as f64);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind::{Class, Reason};

    #[test]
    fn endings_are_counted_by_class_and_reason_and_name_no_job() {
        let metrics = Metrics::default();
        let request =
            serde_json::from_value(serde_json::json!({"id": "secret-name", "image": "i", "argv": ["x"]})).unwrap();
        let mut report = Report::new(&request);
        (report.class, report.reason) = (Class::Final, Reason::Completed);
        (report.durations.start, report.durations.run, report.start_latency_ms) = (0.01, 3.0, Some(0.6));
        metrics.over(&report);
        metrics.over(&report);
        let text = metrics.text(&[], 4).unwrap();
        assert!(text.contains("latebind_jobs_total{class=\"final\",reason=\"Completed\"} 2"), "{text}");
        assert!(text.contains("latebind_phase_seconds_count{phase=\"run\"} 2"), "{text}");
        assert!(text.contains("latebind_binds_total 2") && text.contains("latebind_queued_jobs 4"), "{text}");
        assert!(text.contains("latebind_start_seconds_bucket{le=\"0.001\"} 2"), "{text}");
        assert!(text.ends_with("# EOF\n") && !text.contains("secret-name"));
        let out = SlotLine { slot: 1, failed_starts: 3, out_s: Some(9.0), ..SlotLine::default() };
        let text = metrics.text(&[out, SlotLine::default()], 0).unwrap();
        assert!(text.contains("latebind_slots_out_of_service 1") && !text.contains("secret"), "{text}");
        assert!(text.contains("latebind_slot_failed_starts{slot=\"1\"} 3"), "{text}");
    }
}
