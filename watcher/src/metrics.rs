//! What the core counts, in the form of OpenMetrics, for whoever asks over HTTP.
//!
//! Off unless an address is given. Containers of a pod share their network, so the payload can ask too: nothing is told
//! here that names a job, an owner, or an image.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::job::Report;
use crate::serve::Core;
use crate::serve::protocol::SlotLine;

/// How long a connection may take, from its first byte to the last one of the answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How many connections are served at once: from the pod's own addresses, where payloads are, and from elsewhere. Each
/// has its own share, so that payloads keep nobody else away.
const LOCAL_MAX: usize = 4;
const REMOTE_MAX: usize = 8;

/// Longest request.
const REQUEST_MAX: usize = 8 << 10;

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
            to.register_with_unit("start", "From the bell to the job's exec", Unit::Seconds, new.start.clone());
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

/// Listens until the process ends; returns the address, which has a port where 0 was asked for.
pub fn listen(core: Core, address: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)
        .map_err(|e| io::Error::new(e.kind(), format!("--metrics {address}: {e}: choose another address or port")))?;
    let local = listener.local_addr()?;
    let open: [Arc<AtomicUsize>; 2] = Default::default();
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        for stream in listener.incoming() {
            let accepted = stream.and_then(|stream| Ok((stream.peer_addr()?.ip(), stream)));
            let (peer, stream) = match accepted {
                Ok(accepted) => accepted,
                // Gone again, or no descriptors are left: not a loop that takes a whole processor.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
            };
            let [remote, local] = &open;
            let (share, most) = if is_local(peer) { (local, LOCAL_MAX) } else { (remote, REMOTE_MAX) };
            if share.fetch_add(1, Ordering::Relaxed) >= most {
                share.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (core, done) = (core.clone(), share.clone());
            let served = std::thread::Builder::new().name("metrics-ask".into()).spawn(move || {
                let text = || {
                    let (slots, queued) = core.top();
                    core.metrics().text(&slots, queued).map_err(io::Error::other)
                };
                if let Err(e) = answer(stream, ANSWER_WITHIN, text) {
                    tracing::debug!("metrics: {e}");
                }
                done.fetch_sub(1, Ordering::Relaxed);
            });
            if served.is_err() {
                share.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(local)
}

/// Whether this address is one of the pod's own. Where that is not known, it counts as one.
fn is_local(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if address.is_loopback() {
        return true;
    }
    let own = |interface: InterfaceAddress| {
        let at = interface.address?;
        let v4 = at.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
        v4.or_else(|| at.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip())))
    };
    getifaddrs().map_or(true, |mut all| all.any(|interface| own(interface) == Some(address)))
}

/// One request, one answer (RFC 9112), and the connection is closed.
fn answer(mut stream: TcpStream, within: Duration, text: impl FnOnce() -> io::Result<String>) -> io::Result<()> {
    let give_up = Instant::now() + within;
    let (mut request, mut part) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() || request.len() > REQUEST_MAX {
            return Err(io::Error::other("no whole request in time"));
        }
        stream.set_read_timeout(Some(left))?;
        let n = stream.read(&mut part)?;
        if n == 0 {
            return Ok(());
        }
        request.extend(part.get(..n).unwrap_or_default());
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let (status, kind, body) = match line {
        line if line.starts_with(b"GET /metrics ") => {
            ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text()?)
        }
        line if line.starts_with(b"GET ") => ("404 Not Found", "text/plain", "there is only /metrics\n".into()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = [head.as_bytes(), body.as_bytes()].concat();
    let mut unsent = answer.as_slice();
    while !unsent.is_empty() {
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other("the answer was not read in time"));
        }
        stream.set_write_timeout(Some(left))?;
        let n = stream.write(unsent)?;
        unsent = unsent.get(n..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind::{Class, Reason};

    #[test]
    fn a_client_that_is_slow_to_ask_or_to_read_is_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(600));
        let big = || Ok("x".repeat(64 << 20));
        let (mut client, ours) = connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
        assert!(answer(ours, short, big).is_err(), "half a request");
        let (mut client, ours) = connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        assert!(answer(ours, short, big).is_err(), "an answer that is not read");
        let (mut client, ours) = connect();
        let asked = std::thread::spawn(move || {
            client.write_all(&[b"GET /metrics HTTP/1.1\r\n".as_slice(), &[b'x'; 2 * REQUEST_MAX]].concat()).is_ok()
        });
        assert!(answer(ours, long, big).is_err(), "a request without end");
        asked.join().unwrap();
        let (mut client, ours) = connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        answer(ours, long, || Ok("the text".into())).unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nthe text"), "{said}");
    }

    #[test]
    fn a_payload_and_a_collector_are_told_apart() {
        for own in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_local(own.parse().unwrap()), "{own}");
        }
        // TEST-NET-3 of RFC 5737, and the documentation prefix of RFC 3849.
        for other in ["203.0.113.7", "2001:db8::7"] {
            assert!(!is_local(other.parse().unwrap()), "{other}");
        }
    }

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
