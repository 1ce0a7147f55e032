//! Whether this machine's clock agrees with the API server's.

use crate::finding::Finding;
use crate::job::{now, seconds_of};

/// Clocks that differ by more than this many seconds make tokens and records look old or not yet made.
const CLOCK_MAY_DIFFER: f64 = 5.0;

/// Our clock against a date as HTTP has it.
pub fn clock(date: &str) -> Finding {
    let fix = "have the node's clock set (NTP)";
    let Some(theirs) = http_date(date) else {
        return Finding::warning("clock", "the API server says no time", fix);
    };
    let differ = now() - theirs;
    if differ.abs() > CLOCK_MAY_DIFFER {
        let finding =
            format!("{:.0} s {} the API server's", differ.abs(), if differ > 0.0 { "ahead of" } else { "behind" });
        return Finding::warning("clock", &finding, fix);
    }
    Finding::good("clock", "as the API server's")
}

/// Seconds since the epoch of `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<f64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    (words.next()? == "GMT").then_some(())?;
    seconds_of(&format!("{year}-{month:02}-{day}T{time}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Grade;

    #[test]
    fn dates_of_http() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777.0));
        for bad in ["", "Sun, 06 Now 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 CET", "x, y"] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
        assert_eq!(clock("Sun, 06 Nov 1994 08:49:37 GMT").grade, Grade::Warning);
    }
}
