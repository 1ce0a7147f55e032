//! What tests on Kubernetes share: the cluster, a namespace and a pilot for each test, the node, a registry that
//! misbehaves.
//!
//! ```no_run
//! use latebind_cluster_tests::{cluster, needs, pilot::Pilot};
//!
//! needs("1.20 or later");
//! let pilot = Pilot::start();
//! let ran = pilot.run(&[&cluster().image("busybox"), "--", "sh", "-c", "exit 7"]);
//! assert_eq!(ran.code, Some(7), "{}", ran.err());
//! ```
//!
//! The cluster is the one of `KUBECONFIG` with the registry of `LATEBIND_REGISTRY` where both are set, else our own
//! (`make cluster`). What tests need of the [`node`] itself goes through one command, `LATEBIND_NODE_EXEC`. Each test
//! says first which servers it is for and what it needs ([`needs()`]); the example `left-out` lists those that this
//! cluster is not for.
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
pub mod needs;
pub mod node;
mod options;
pub mod patcher;
pub mod pilot;
pub mod relay;
mod turn;

pub use access::{Cluster, cluster};
pub use latebind_tests::pod::{Ran, Running, eventually, unique};
pub use needs::needs;
