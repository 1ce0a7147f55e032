//! The two clocks: one that is shown to people, and one that never jumps.

/// Seconds since the machine was started, by a clock that nobody sets: the same for each life of a watcher on it.
pub fn uptime() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    time.map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9)
}

/// Seconds since the epoch, to be shown: this clock may jump.
pub fn now() -> f64 {
    glue::contract::time::wall().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A time as RFC 3339 in UTC.
pub fn rfc3339(seconds: f64) -> String {
    glue::contract::time::rfc3339(seconds.floor() as i64, (seconds.fract().max(0.0) * 1e9) as u32)
}

/// Seconds since the epoch of an RFC 3339 text as glue writes it.
pub fn seconds_of(text: &str) -> Option<f64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|n| n.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':').map(|n| n.parse::<f64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    // Days since the epoch, counting years from March so that the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
            - 1
            - 719_468;
    Some(days as f64 * 86_400.0 + hour * 3_600.0 + minute * 60.0 + second)
}

#[cfg(test)]
mod tests {
    use super::seconds_of;

    #[test]
    fn times_are_read_back() {
        for seconds in [0i64, 951_782_400, 1_709_251_199, 4_102_444_800, 1_795_000_000] {
            let text = glue::contract::time::rfc3339(seconds, 250_000_000);
            assert_eq!(seconds_of(&text), Some(seconds as f64 + 0.25), "{text}");
        }
        assert_eq!(seconds_of("yesterday"), None);
    }
}
