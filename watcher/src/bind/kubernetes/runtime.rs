//! The runtime that requests to the API server and to registries run on.
//!
//! tokio ends the process where it wants a thread and none can be made, say since another job has used up all process
//! numbers. It wants one for a host's name, which the client has looked up by `spawn_blocking`: for the API server's, a
//! proxy's or a registry's, at any time. It does without where it has such a thread, be it busy (`spawn_task` in
//! tokio's `runtime/blocking/pool.rs`: what cannot be started waits), so one is made at the start and never ends.

use std::io;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Most names that are looked up at once; another one waits.
const LOOKUPS_MAX: usize = 4;
/// What the runtime starts with: what runs its tasks, and the first that looks up names.
const THREADS: usize = 2;
/// Longer than any process lives.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Starts it.
pub fn start() -> io::Result<Runtime> {
    try_threads()?;
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).max_blocking_threads(LOOKUPS_MAX).thread_keep_alive(FOR_EVER);
    let runtime = builder.thread_name("api").enable_all().build()?;
    #[expect(clippy::disallowed_methods, reason = "the one place: the thread that stays")]
    drop(runtime.spawn_blocking(|| ()));
    Ok(runtime)
}

/// Makes as many threads as the runtime is about to make, so that their lack is an ordinary error.
fn try_threads() -> io::Result<()> {
    let all_are_there = Mutex::new(());
    thread::scope(|scope| {
        let _not_yet = all_are_there.lock();
        (0..THREADS)
            .try_for_each(|_| thread::Builder::new().spawn_scoped(scope, || drop(all_are_there.lock())).map(drop))
    })
    .map_err(|e| io::Error::new(e.kind(), format!("no thread for requests to the API server: {e}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use std::io::{Read, Write};
    use std::net::TcpListener;

    use futures_util::future::join;

    use super::super::registry::{self, Registries};
    use super::*;
    use crate::bind::Reason;
    use crate::no_threads;

    /// A server that has nothing, by its name and port.
    fn server() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 404 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            }
        };
        thread::Builder::new().spawn(serve).unwrap();
        format!("localhost:{port}")
    }

    #[test]
    fn names_are_looked_up_where_no_thread_can_be_made() {
        no_threads::in_own_process(
            "bind::kubernetes::runtime::tests::names_are_looked_up_where_no_thread_can_be_made",
            || {
                let (host, runtime) = (server(), start().unwrap());
                let options = registry::Options { plain_http: vec![host.clone()], ..registry::Options::default() };
                let registries = Registries::new(options);
                let image = format!("{host}/a@sha256:{}", "0".repeat(64));
                let _lack = no_threads::Lack::new();
                // The second while the first is under way: it waits for the thread that there is.
                let asked = join(registries.command("x", &image), registries.command("x", &image));
                for answer in <[_; 2]>::from(runtime.block_on(asked)) {
                    assert_eq!(answer.unwrap_err().reason, Reason::ImageNotFound);
                }
                assert!(start().is_err_and(|e| e.to_string().contains("no thread")));
            },
        );
    }
}
