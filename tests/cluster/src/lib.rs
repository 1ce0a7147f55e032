//! What tests on Kubernetes share: the cluster, a namespace and a pilot for each test, the node, a registry that
//! misbehaves.
//!
//! ```no_run
//! use latebind_cluster_tests::{cluster, pilot::Pilot};
//!
//! let pilot = Pilot::start();
//! let ran = pilot.run(&[&cluster().image("busybox"), "--", "sh", "-c", "exit 7"]);
//! assert_eq!(ran.code, Some(7), "{}", ran.err());
//! ```
//!
//! The cluster is the one of `KUBECONFIG` with the registry of `LATEBIND_REGISTRY` where both are set, else our own
//! (`make cluster`).
//! Only our own has a [`node`] to reach for and pulls from this machine: tests that need that are in files named
//! `node_*`.
//! `LATEBIND_KEEP=1` leaves a test's namespace in place, to look at it afterwards.
//!
//! Everything has a limit in time and ends a test by panicking. A test that fails prints its pods, events and logs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "this is test code: it ends a test by panicking, and reports by printing"
)]

pub mod access;
pub mod admission;
pub mod audit;
pub mod condor;
pub mod faulty;
pub mod history;
pub mod inside;
pub mod manifest;
pub mod namespace;
pub mod node;
mod options;
pub mod pilot;
pub mod relay;
mod turn;

pub use access::{Cluster, cluster};
pub use latebind_tests::pod::{Ran, Running, eventually, unique};
