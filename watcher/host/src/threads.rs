//! Threads that may be impossible to make: another job can have used up the process numbers of the machine or of this
//! control group. That is an error of what needed them; the other slots' jobs go on.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// A thread that nobody waits for.
pub fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    Builder::new().name(name.into()).spawn(work).map(drop).map_err(lack)
}

/// The same for work on something that is not there yet: sent to the thread, once it is. Where the sender goes without
/// that, nothing is done. It is for what cannot be taken back once it has been started.
pub fn start_before<T: Send + 'static>(name: &str, work: impl FnOnce(T) + Send + 'static) -> io::Result<Sender<T>> {
    let (to, from) = mpsc::channel();
    start(name, move || {
        if let Ok(it) = from.recv() {
            work(it);
        }
    })?;
    Ok(to)
}

/// A thread that ends within `scope`.
pub fn start_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.into()).spawn_scoped(scope, work).map_err(lack)
}

fn lack(e: io::Error) -> io::Error {
    let why = "no thread can be made; process numbers may be used up (pids.max of the control group, ulimit -u)";
    io::Error::new(e.kind(), format!("{why}: {e}"))
}
