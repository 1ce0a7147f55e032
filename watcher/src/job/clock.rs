//! The two clocks: one that is shown to people, and one that never jumps.

use std::ops::RangeInclusive;

/// Seconds since the machine was started, by a clock that nobody sets: the same for each life of a watcher on it.
pub fn uptime() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    time.map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9)
}

/// Seconds since the epoch, to be shown: this clock may jump.
pub fn now() -> f64 {
    latebind_contract::time::wall().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A time as RFC 3339 in UTC.
pub fn rfc3339(seconds: f64) -> String {
    latebind_contract::time::rfc3339(seconds.floor() as i64, (seconds.fract().max(0.0) * 1e9) as u32)
}

/// Seconds since the epoch of an RFC 3339 text in UTC, as glue writes it: years 0000 to 9999, at most nine decimals.
pub fn seconds_of(text: &str) -> Option<f64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-', [0..=9_999, 1..=12, 1..=31])?;
    let [hour, minute, second] = numbers(time, ':', [0..=23, 0..=59, 0..=60])?; // 60: a leap second
    let fraction = Some(fraction).filter(|f| (1..=9).contains(&f.len()) && is_number(f))?;
    let fraction: f64 = format!("0.{fraction}").parse().ok()?;
    // Days since the epoch, counting years from March so that the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
            - 1
            - 719_468;
    Some((days * 86_400 + hour * 3_600 + minute * 60 + second) as f64 + fraction)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Three numbers with a separator between them, each within its bounds.
fn numbers(text: &str, separator: char, bounds: [RangeInclusive<i64>; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut found = [0; 3];
    for (number, bounds) in found.iter_mut().zip(bounds) {
        let part = parts.next().filter(|part| is_number(part))?;
        *number = part.parse().ok().filter(|n| bounds.contains(n))?;
    }
    parts.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::seconds_of;

    #[test]
    fn times_are_read_back() {
        for seconds in [0i64, 951_782_400, 1_709_251_199, 4_102_444_800, 1_795_000_000] {
            let text = latebind_contract::time::rfc3339(seconds, 250_000_000);
            assert_eq!(seconds_of(&text), Some(seconds as f64 + 0.25), "{text}");
        }
        for none in [
            "yesterday",
            "2026-01-02T03:04:1e308Z",
            "2026-01-02T03:04:infZ",
            "9223372036854775807-01-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T00:00:00:00Z",
            "2026-01-01T00:00:00.Z",
            "+2026-01-01T00:00:00Z",
        ] {
            assert_eq!(seconds_of(none), None, "{none}");
        }
    }
}
