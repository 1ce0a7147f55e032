//! What people and monitoring see: each view reads reports or asks the core, and nothing depends on a view.

pub mod metrics;
pub mod page;
pub mod report;
pub mod results;
pub mod svg;
pub mod timeline;
pub mod top;
