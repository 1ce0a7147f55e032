//! Waiting for what comes without an event, always with a limit.

use std::time::{Duration, Instant};

/// How long anything may take unless a test says otherwise.
pub const LIMIT: Duration = Duration::from_secs(30);

/// When to give up what may take `limit`. On a machine that is slower than two processors of its own,
/// `LATEBIND_TEST_PATIENCE` is how many times longer: nothing is held against these limits but what hangs.
///
/// # Panics
/// If the variable is not a number from 1 to 100.
pub fn deadline(limit: Duration) -> Instant {
    let patience = std::env::var("LATEBIND_TEST_PATIENCE").unwrap_or_else(|_| "1".into());
    let times = patience.parse().ok().filter(|times| (1..=100).contains(times));
    Instant::now() + limit * times.unwrap_or_else(|| panic!("LATEBIND_TEST_PATIENCE is {patience:?}: 1 to 100"))
}

/// What `look` finds, looked for again and again until `limit` has passed.
///
/// # Panics
/// With `what` in its message, when the time is over.
pub fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = deadline(limit);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
