//! Target `time`: times in records and reports, and the date of an API server's answer.

use latebind_contract::time::rfc3339;
use watcher::bind::kubernetes::clock::clock;
use watcher::job::seconds_of;

use crate::input::Input;

/// The first byte says what the rest is: a time as a text, or a number of seconds.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.below(2) == 0 {
        let text = String::from_utf8_lossy(input.rest());
        assert!(seconds_of(&text).is_none_or(f64::is_finite), "{text:?}");
        let line = clock(&text).to_string();
        assert!(line.len() < 300 && !line.contains(char::is_control), "{line:?}");
    } else {
        // The year 9999 is the last that the form can have.
        let seconds = input.bytes(8).iter().fold(0, |n, b| n << 8 | u64::from(*b)) % 253_402_300_800;
        let text = rfc3339(seconds as i64, 250_000_000);
        assert_eq!(seconds_of(&text), Some(seconds as f64 + 0.25), "{text}");
        assert_eq!(text.len(), "1970-01-01T00:00:00.000000000Z".len());
    }
}
