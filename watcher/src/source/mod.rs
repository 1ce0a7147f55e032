//! Where jobs come from, and where their results go.

pub mod spool;
