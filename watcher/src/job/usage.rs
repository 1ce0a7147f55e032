//! What a payload uses: at one moment, at most so far, and over time.

use latebind_contract::record::Record;
use serde::{Deserialize, Serialize};

use super::cgroup::Counted;

/// Most rows that a series keeps; when there are more, two become one.
const ROWS_MAX: usize = 120;

/// What a payload uses at one moment; counters (`cpu_s`, bytes read and written) since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, seconds: of processes that live, of those that were waited for, and of what glue has reaped.
    pub cpu_s: f64,
    /// Sum of the resident sets, bytes; a page that several processes share counts for each.
    pub rss: u64,
    /// Sum of the proportional sets, bytes; looked at less often, and only where the kernel shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pss: Option<u64>,
    /// What the container's cgroup counts without the files it could drop, bytes; where it can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_memory: Option<u64>,
    /// Processes that live.
    pub processes: u64,
    /// Their threads.
    pub threads: u64,
    /// Their open files; as seldom as `pss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Bytes on disk in the data volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Bytes of standard output and error, where they go to files.
    #[serde(default)]
    pub output: u64,
    /// Bytes that processes which live, or were waited for, have read from storage; as seldom as `pss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes that they have written to storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
}

impl Usage {
    /// The larger of each value.
    pub fn max(&self, other: &Self) -> Self {
        Self {
            cpu_s: self.cpu_s.max(other.cpu_s),
            rss: self.rss.max(other.rss),
            pss: self.pss.max(other.pss),
            container_memory: self.container_memory.max(other.container_memory),
            processes: self.processes.max(other.processes),
            threads: self.threads.max(other.threads),
            files: self.files.max(other.files),
            disk: self.disk.max(other.disk),
            output: self.output.max(other.output),
            read_bytes: self.read_bytes.max(other.read_bytes),
            written_bytes: self.written_bytes.max(other.written_bytes),
        }
    }

    /// The memory that a limit is held against: what the container's cgroup counts, which is exact and has files in
    /// memory too; where it cannot be read, what is shared counts once; where that is not known either, for each
    /// process.
    pub fn memory(&self) -> u64 {
        self.container_memory.or(self.pss).unwrap_or(self.rss)
    }
}

/// Usage over time, in at most 120 rows: a longer job has fewer of them for each minute, and none of its peaks is lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Names of a row's numbers.
    columns: [String; 6],
    rows: Vec<[f64; 6]>,
    /// How many samples make a row.
    each: u32,
    /// Samples in the last row.
    #[serde(skip)]
    filled: u32,
}

impl Series {
    /// An empty one.
    pub fn new() -> Self {
        let columns = ["seconds", "cpu_s", "memory", "processes", "threads", "disk"].map(str::to_owned);
        Self { columns, rows: Vec::new(), each: 1, filled: 0 }
    }

    /// Its rows: seconds since the start, then what the columns say.
    pub fn rows(&self) -> &[[f64; 6]] {
        &self.rows
    }

    /// Adds a sample that was taken `at` seconds after the start.
    pub fn add(&mut self, at: f64, usage: &Usage) {
        let round = |n: f64| (n * 1e3).round() / 1e3;
        let disk = usage.disk.unwrap_or(0) as f64;
        let counts = [usage.memory(), usage.processes, usage.threads].map(|n| n as f64);
        let [memory, processes, threads] = counts;
        let row = [round(at), round(usage.cpu_s), memory, processes, threads, disk];
        match self.rows.last_mut() {
            Some(last) if self.filled < self.each => {
                *last = merged(last, &row);
                self.filled += 1;
            }
            _ => {
                self.rows.push(row);
                self.filled = 1;
            }
        }
        if self.rows.len() > ROWS_MAX {
            self.rows =
                self.rows.chunks(2).filter_map(|two| two.iter().copied().reduce(|a, b| merged(&a, &b))).collect();
            self.each = self.each.saturating_mul(2);
        }
    }
}

fn merged(a: &[f64; 6], b: &[f64; 6]) -> [f64; 6] {
    let mut both = *a;
    both.iter_mut().zip(b).for_each(|(a, b)| *a = a.max(*b));
    both
}

/// What a report says of a job's usage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The largest of each value.
    pub peak: Usage,
    /// The last sample.
    pub last: Usage,
    /// How often was looked.
    pub samples: u64,
    /// CPU time that looking took, seconds.
    pub monitor_cpu_s: f64,
    /// Usage over time.
    pub series: Series,
}

impl Summary {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self { series: Series::new(), ..Self::default() }
    }

    /// Takes over a sample.
    pub fn add(&mut self, at: f64, usage: &Usage) {
        self.peak = self.peak.max(usage);
        self.last = *usage;
        self.samples += 1;
        self.series.add(at, usage);
    }

    /// Takes over what glue and the container's cgroup have counted: they know processes that were too short-lived to
    /// be seen here.
    pub fn add_counted(&mut self, record: &Record, cgroup: Option<Counted>) {
        let tree = record.usage.tree;
        let counted = cgroup.and_then(|c| c.cpu_s).unwrap_or(0.0);
        self.peak.cpu_s = self.peak.cpu_s.max(tree.user_s + tree.system_s).max(counted);
        self.peak.rss = self.peak.rss.max(tree.max_rss_kib << 10);
        let bytes = |blocks: u64| (blocks > 0).then_some(blocks << 9);
        self.peak.read_bytes = self.peak.read_bytes.max(bytes(tree.read_blocks));
        self.peak.written_bytes = self.peak.written_bytes.max(bytes(tree.written_blocks));
    }
}

/// Bytes for people: 5 characters at most.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "K", "M", "G", "T"] {
        if value < 999.5 {
            return if unit == "B" || value >= 9.95 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_series_stays_short_and_keeps_its_peaks() {
        let mut series = Series::new();
        for n in 0..10_000u32 {
            let rss = if n == 4_321 { 1 << 30 } else { 1 << 20 };
            series.add(f64::from(n) * 2.0, &Usage { rss, cpu_s: f64::from(n), ..Usage::default() });
        }
        assert!(series.rows().len() <= ROWS_MAX, "{}", series.rows().len());
        assert!(series.rows().len() > ROWS_MAX / 2 - 1);
        assert!(series.rows().iter().any(|row| row[2] == f64::from(1 << 30)));
        assert!(series.rows().windows(2).all(|two| two[0][0] < two[1][0]), "times ascend");
        assert_eq!(series.rows().last().map(|row| row[1]), Some(9_999.0));
    }

    #[test]
    fn peaks_are_the_largest_of_each_value() {
        let mut summary = Summary::new();
        summary.add(0.0, &Usage { rss: 5, processes: 1, ..Usage::default() });
        summary.add(2.0, &Usage { rss: 3, processes: 9, pss: Some(2), ..Usage::default() });
        assert_eq!((summary.peak.rss, summary.peak.processes, summary.peak.pss), (5, 9, Some(2)));
        assert_eq!((summary.last.rss, summary.samples), (3, 2));
    }

    #[test]
    fn bytes_are_short() {
        for (n, text) in
            [(0, "0B"), (999, "999B"), (1023, "1.0K"), (10_240, "10K"), (1 << 20, "1.0M"), (u64::MAX, "16384P")]
        {
            assert_eq!(bytes(n), text);
        }
    }
}
