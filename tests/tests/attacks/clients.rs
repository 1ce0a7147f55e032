//! Connections, lines and descriptors that clients of the watcher's sockets send.
