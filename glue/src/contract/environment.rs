//! (placeholder while the parser is being written)
pub const OF_ROOT: [&str; 5] = ["HOME", "USER", "LOGNAME", "PWD", "OLDPWD"];
