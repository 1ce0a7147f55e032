//! latebind-host on docker as its users have it on control groups v2: systemd makes the containers' groups, which knows
//! processes by their numbers in the machine's own PID namespace.

#[path = "../../tests/docker.rs"]
mod docker;
