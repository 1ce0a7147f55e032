//! How much a job may use: its own limits, and the pilot's maxima for all jobs.

use serde::{Deserialize, Serialize};

use super::usage::{Usage, bytes};
use super::{now, rfc3339};
pub use crate::size::Bytes;

/// Which share of the container's memory a job may use where nothing else is said: it ends before the kernel ends it.
const MEMORY_SHARE: f64 = 0.95;

/// Which share of the data volume.
const DISK_SHARE: f64 = 0.90;

/// Limits of one job, or the pilot's for each; what is left out is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Wall time, seconds; for a job the same as its `timeout_s`: the smaller one holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_s: Option<f64>,
    /// CPU time, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_s: Option<f64>,
    /// Memory of all processes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Processes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Data volume: `work/` and the files of the standard streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Standard output and error, and what is fetched at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Bytes>,
}

/// What a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// Wall time.
    Wall,
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// Processes.
    Processes,
    /// Disk.
    Disk,
    /// Output.
    Output,
}

/// A limit that a job has crossed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Crossed {
    /// Which one.
    pub which: Which,
    /// The limit: seconds, bytes, or a number.
    pub limit: f64,
    /// What was found.
    pub value: f64,
    /// When, RFC 3339 UTC.
    pub at: String,
}

impl std::fmt::Display for Crossed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = |n: f64| bytes(n as u64);
        match self.which {
            Which::Wall => write!(f, "its wall limit of {} s passed", self.limit),
            Which::Cpu => write!(f, "it used {:.1} s of CPU time, its limit is {} s", self.value, self.limit),
            Which::Memory => write!(f, "it used {} of memory, its limit is {}", whole(self.value), whole(self.limit)),
            Which::Processes => write!(f, "it had {} processes, its limit is {}", self.value, self.limit),
            Which::Disk => write!(f, "it had {} on disk, its limit is {}", whole(self.value), whole(self.limit)),
            Which::Output => write!(f, "it put out {}, its limit is {}", whole(self.value), whole(self.limit)),
        }
    }
}

/// The smaller of two limits, each of which may be missing.
fn least<T: PartialOrd>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b < a { b } else { a }),
        (a, b) => a.or(b),
    }
}

impl Limits {
    /// The smaller of each.
    pub fn within(&self, most: &Self) -> Self {
        Self {
            wall_s: least(self.wall_s, most.wall_s),
            cpu_s: least(self.cpu_s, most.cpu_s),
            memory: least(self.memory, most.memory),
            processes: least(self.processes, most.processes),
            disk: least(self.disk, most.disk),
            output: least(self.output, most.output),
        }
    }

    /// Fills in what follows from the container: a share of its memory, and of its data volume.
    pub fn for_container(mut self, memory: Option<u64>, disk: Option<u64>) -> Self {
        let share = |n: u64, of: f64| Bytes((n as f64 * of) as u64);
        self.memory = least(self.memory, memory.map(|n| share(n, MEMORY_SHARE)));
        self.disk = least(self.disk, disk.map(|n| share(n, DISK_SHARE)));
        self
    }

    /// The wall limit of a job that asks for `timeout_s`, where 0 is none. What is no length of time stays what it is:
    /// glue refuses it.
    pub fn wall(&self, timeout_s: f64) -> f64 {
        let own = Some(timeout_s).filter(|t| *t != 0.0);
        least(own, self.wall_s.filter(|t| *t > 0.0)).unwrap_or(0.0)
    }

    /// Whether they make sense.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [("wall_s", self.wall_s), ("cpu_s", self.cpu_s)] {
            if value.is_some_and(|s| !s.is_finite() || s < 0.0) {
                return Err(format!("limits: {name} must be seconds, 0 or more"));
            }
        }
        Ok(())
    }

    /// The first limit that this usage is above, as of now.
    pub fn crossed(&self, usage: &Usage) -> Option<Crossed> {
        let bytes = |limit: Option<Bytes>| limit.map(|b| b.0 as f64);
        let looked = [
            (Which::Cpu, self.cpu_s, usage.cpu_s),
            (Which::Memory, bytes(self.memory), usage.memory() as f64),
            (Which::Processes, self.processes.map(|n| n as f64), usage.processes as f64),
            (Which::Disk, bytes(self.disk), usage.disk.unwrap_or(0) as f64),
            (Which::Output, bytes(self.output), usage.output as f64),
        ];
        looked.into_iter().find_map(|(which, limit, value)| {
            let limit = limit.filter(|limit| value > *limit)?;
            Some(Crossed { which, limit, value, at: rfc3339(now()) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_limit_counts() {
        let job = Limits { cpu_s: Some(5.0), memory: Some(Bytes(100)), ..Limits::default() };
        let most = Limits { cpu_s: Some(9.0), memory: Some(Bytes(50)), processes: Some(3), ..Limits::default() };
        let both = job.within(&most);
        assert_eq!((both.cpu_s, both.memory, both.processes), (Some(5.0), Some(Bytes(50)), Some(3)));
        assert_eq!(both.for_container(Some(40), Some(1000)).memory, Some(Bytes(38)));
        assert_eq!(both.for_container(Some(1 << 30), Some(1000)).disk, Some(Bytes(900)));
        let wall = Limits { wall_s: Some(60.0), ..Limits::default() };
        assert_eq!(wall.wall(-1.0), -1.0, "left for glue to refuse");
        assert_eq!(
            [wall.wall(0.0), wall.wall(10.0), wall.wall(100.0), Limits::default().wall(7.0)],
            [60.0, 10.0, 60.0, 7.0]
        );
    }

    #[test]
    fn each_limit_is_found() {
        let usage = Usage { cpu_s: 11.0, rss: 11, processes: 11, disk: Some(11), output: 11, ..Usage::default() };
        let one = |which: &str, limit: serde_json::Value| -> Limits {
            serde_json::from_value(serde_json::json!({ which: limit })).unwrap()
        };
        for (name, which) in [
            ("cpu_s", Which::Cpu),
            ("memory", Which::Memory),
            ("processes", Which::Processes),
            ("disk", Which::Disk),
            ("output", Which::Output),
        ] {
            let crossed = one(name, 10.into()).crossed(&usage);
            assert_eq!(crossed.as_ref().map(|c| (c.which, c.limit, c.value)), Some((which, 10.0, 11.0)));
            assert_eq!(one(name, 11.into()).crossed(&usage), None, "what is used up is not crossed: {name}");
        }
        assert!(serde_json::from_str::<Limits>(r#"{"memroy": 1}"#).is_err());
    }

    #[test]
    fn shared_pages_count_once_where_that_is_known() {
        let limits = Limits { memory: Some(Bytes(100)), ..Limits::default() };
        assert!(limits.crossed(&Usage { rss: 500, ..Usage::default() }).is_some());
        assert!(limits.crossed(&Usage { rss: 500, pss: Some(80), ..Usage::default() }).is_none());
    }
}
