//! (placeholder while the parser is being written)
/// Variables of the container that describe root and are never inherited by a job.
pub const OF_ROOT: [&str; 5] = ["HOME", "USER", "LOGNAME", "PWD", "OLDPWD"];
