//! How long to wait before a source or a server is asked again: longer each time, within bounds, and never all pilots
//! at once.

use std::time::Duration;

/// Longest wait that whoever is asked can ask for.
const ASKED_MAX: Duration = Duration::from_secs(3600);

/// The first wait, and the longest one.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// After the first time in a row.
    pub first: Duration,
    /// However often.
    pub most: Duration,
}

impl Pace {
    /// How long to wait after `times` times in a row, the first of which is 1. Between half of a time that doubles and
    /// all of it, by chance, so that pilots that began together do not stay together. `asked`: what the source or
    /// server wants; no earlier than that.
    pub fn wait(&self, times: u32, asked: Option<Duration>) -> Duration {
        self.wait_by(times, asked, chance())
    }

    fn wait_by(&self, times: u32, asked: Option<Duration>, chance: f64) -> Duration {
        let full = self.first.saturating_mul(1 << times.saturating_sub(1).min(20)).min(self.most);
        let own = full.mul_f64(0.5 + chance / 2.0);
        // Those that it has sent away together come back within a tenth of the time.
        asked.map_or(own, |asked| own.max(asked.min(ASKED_MAX).mul_f64(1.0 + chance / 10.0)))
    }
}

/// A time between half of `full` and all of it, by chance.
pub fn up_to(full: Duration) -> Duration {
    full.mul_f64(0.5 + chance() / 2.0)
}

/// A time between `least` and twice that, by chance: those that a server has sent away together do not come back
/// together.
pub fn at_least(least: Duration) -> Duration {
    least.mul_f64(1.0 + chance())
}

/// A number from 0 up to 1. Without random bytes pilots only lose their distance.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    let _ = latebind_linux::sys::random(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { first: Duration::from_secs(2), most: Duration::from_secs(300) };

    fn seconds(times: u32, asked: Option<u64>, chance: f64) -> f64 {
        PACE.wait_by(times, asked.map(Duration::from_secs), chance).as_secs_f64()
    }

    #[test]
    fn waits_double_within_bounds_and_by_chance() {
        assert_eq!(
            [1, 2, 3, 8, 9, 100, u32::MAX].map(|n| seconds(n, None, 1.0)),
            [2.0, 4.0, 8.0, 256.0, 300.0, 300.0, 300.0]
        );
        assert_eq!((seconds(1, None, 0.0), seconds(100, None, 0.0)), (1.0, 150.0));
        assert!((0..1000).all(|_| (0.0..=1.0).contains(&chance())));
    }

    #[test]
    fn chance_keeps_to_its_bounds_and_makes_a_difference() {
        let second = Duration::from_secs(1);
        let (few, many): (Vec<_>, Vec<_>) = (0..100).map(|_| (up_to(second), at_least(second))).unzip();
        assert!(few.iter().all(|wait| (second / 2..=second).contains(wait)), "{few:?}");
        assert!(many.iter().all(|wait| (second..=second * 2).contains(wait)), "{many:?}");
        for waits in [few, many] {
            assert!(waits.iter().collect::<std::collections::BTreeSet<_>>().len() > 90, "{waits:?}");
        }
    }

    #[test]
    fn a_source_can_ask_for_more_and_not_for_less_or_for_ever() {
        assert_eq!(seconds(1, Some(100), 0.0), 100.0);
        assert_eq!(seconds(1, Some(0), 1.0), 2.0);
        assert!((seconds(1, Some(u64::MAX), 1.0) - 3960.0).abs() < 1e-6);
    }
}
