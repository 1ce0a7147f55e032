//! What the integration tests share: pods on real containers, and how to look at them from outside.

pub mod pod;
