//! Waiting for what comes without an event, always with a limit.

use std::time::{Duration, Instant};

/// How long anything may take unless a test says otherwise.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What `look` finds, looked for again and again until `limit` has passed.
///
/// # Panics
/// With `what` in its message, when the time is over.
pub fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
