//! Fuzz targets: for each kind of bytes that others can hand to Latebind, what has to hold whatever those bytes are.
//!
//! A target is an ordinary function. It panics where one of its properties does not hold, so libFuzzer (`engine/`)
//! finds inputs that break one, and `tests/replay.rs` runs the inputs that are kept in `corpus/` and `regressions/`
//! without it.
#![forbid(unsafe_code)]

pub mod arguments;
pub mod environment;
pub mod input;
pub mod mountinfo;
pub mod proc;
pub mod record;
pub mod reference;
pub mod report;
pub mod shells;
pub mod size;
pub mod socket;
pub mod spool;
pub mod startup;
pub mod status;
pub mod text;
pub mod time;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is also that of its directories.
    pub name: &'static str,
    /// Tries one input; panics where a property does not hold.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "startup", run: startup::run },
    Target { name: "record", run: record::run },
    Target { name: "environment-sh", run: environment::sh },
    Target { name: "environment-nul", run: environment::nul },
    Target { name: "environment-docker", run: environment::docker },
    Target { name: "environment-export", run: environment::export },
    Target { name: "mountinfo", run: mountinfo::run },
    Target { name: "status", run: status::run },
    Target { name: "report", run: report::run },
    Target { name: "proc", run: proc::run },
    Target { name: "argv", run: arguments::run },
    Target { name: "time", run: time::run },
    Target { name: "reference", run: reference::run },
    Target { name: "size", run: size::run },
    Target { name: "text", run: text::run },
    Target { name: "spool", run: spool::run },
    Target { name: "socket", run: socket::run },
];

/// The target with this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
