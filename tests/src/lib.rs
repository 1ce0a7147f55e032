//! What the integration tests share: slots and pods on real containers, and how to look at them from outside.

pub mod engine;
pub mod job;
pub mod pod;
pub mod processes;
pub mod scratch;
pub mod slot;
pub mod waiting;
