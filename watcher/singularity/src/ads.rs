//! `startd-cron`: tells the startd, as a STARTD_CRON job that never ends, which slots' jobs are to be held and why. The
//! startd then holds them by its own policy (WANT_HOLD), which is the only way for a job that has begun.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use watcher::serve::client::Client;
use watcher::serve::protocol::{CLIENTS, Hold};
use watcher::text::{one_line, say};

/// Prints an ad for each slot and each change, until the watcher has gone.
pub fn print() -> io::Result<()> {
    let at = |e: io::Error| io::Error::new(e.kind(), format!("{CLIENTS}: {e}"));
    let say = |slot, hold: Option<&Hold>| say(&ad(slot, hold));
    let mut slots = BTreeSet::new();
    let followed = Client::connect(Path::new(CLIENTS)).map_err(at)?.follow_holds(|slot, hold| {
        slots.insert(slot);
        say(slot, hold.as_ref())
    });
    // The startd keeps what was said last, and would hold the next job for it.
    for slot in slots {
        say(slot, None)?;
    }
    followed
}

/// HTCondor counts slots from 1.
fn ad(slot: u32, hold: Option<&Hold>) -> String {
    let number = slot + 1;
    let (reason, message) = match hold {
        Some(hold) => (quoted(hold.reason.as_str()), quoted(&hold.message)),
        None => ("undefined".into(), "undefined".into()),
    };
    format!("SlotId = {number}\nLatebindHold = {reason}\nLatebindHoldMessage = {message}\n- slot{number} update:true\n")
}

/// A ClassAd string on one line.
fn quoted(text: &str) -> String {
    format!("\"{}\"", one_line(text).replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use watcher::bind::Reason;

    use super::*;

    #[test]
    fn ads_are_one_line_for_each_attribute() {
        let hold = Hold { reason: Reason::ImageNotFound, message: "no \"a\\b\"\nthere".into() };
        let text = ad(0, Some(&hold));
        assert!(text.contains("\nLatebindHoldMessage = \"no \\\"a\\\\b\\\" there\"\n"), "{text}");
        assert!(text.starts_with("SlotId = 1\n") && text.ends_with("- slot1 update:true\n"));
        assert!(ad(1, None).contains("LatebindHold = undefined\n"));
        let hostile = "x\x1b[2J\u{9b}\u{202e}\nLatebindHold = \"Forged\"\r";
        let text = ad(0, Some(&Hold { reason: Reason::ImageNotFound, message: hostile.into() }));
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.chars().all(|c| c == '\n' || watcher::text::is_harmless(c)), "{text:?}");
    }
}
