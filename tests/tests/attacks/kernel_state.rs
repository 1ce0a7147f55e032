//! Kernel state that is kept by UID: keyrings, inotify instances, queues, and what the seccomp filter denies.
