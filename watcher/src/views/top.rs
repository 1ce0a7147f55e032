//! `watcher top`: how the slots are now, as a table that fits on 80 columns, or as one JSON object a line.
//!
//! Names and images come from users: what could do something to a terminal is shown as `?`.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::job::usage::bytes;
use crate::job::{Phase, now, rfc3339};
use crate::serve::client::Client;
use crate::serve::protocol::SlotLine;
use crate::stop::Stop;
use crate::text;

/// What is wanted.
pub struct Options {
    /// One JSON object a line.
    pub json: bool,
    /// How often.
    pub every: Duration,
    /// How many times; without end where it is `None`.
    pub times: Option<u64>,
}

/// Shows the slots until a stop is requested, or it has been done often enough, or whoever reads has gone.
pub fn run(socket: &Path, options: &Options, stop: &Stop) -> io::Result<()> {
    // A connection for each look: one that asks for nothing for long is closed.
    let connect = || {
        Client::connect(socket)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}: is a watcher serving here?", socket.display())))
    };
    let (mut rates, mut done) = (Rates::default(), 0);
    let drawn = !options.json && options.times.is_none() && text::is_output_seen();
    while !stop.is_requested() {
        let (slots, queued) = connect()?.top()?;
        let cpus = rates.cpus(&slots, Instant::now());
        let text = if options.json {
            let at = rfc3339(now());
            format!("{}\n", text::json(&json!({"at": at, "queued": queued, "slots": slots, "cpus": cpus}))?)
        } else {
            table(&slots, &cpus, queued)
        };
        match if drawn { text::redraw(&text) } else { text::say(&text) } {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        done += 1;
        if options.times.is_some_and(|times| done >= times) {
            break;
        }
        stop.wait_within(options.every);
    }
    Ok(())
}

/// Processors in use, from the CPU time of two samples.
#[derive(Default)]
struct Rates(Vec<(String, f64, Instant, Option<f64>)>);

impl Rates {
    fn cpus(&mut self, slots: &[SlotLine], at: Instant) -> Vec<Option<f64>> {
        let mut next = Vec::new();
        let rates = slots.iter().map(|line| {
            let (job, live) = (line.job.as_ref()?, line.live.as_ref()?);
            let cpu_s = live.usage.cpu_s;
            let before = self.0.iter().find(|(name, ..)| name == job);
            // The monitor looks every 2 s: between two of its samples the rate stays as it was.
            let (rate, since) = match before {
                Some((_, then, since, rate))
                    if *then == cpu_s && at.duration_since(*since) < Duration::from_secs(5) =>
                {
                    (*rate, *since)
                }
                Some((_, then, since, _)) => {
                    let seconds = at.duration_since(*since).as_secs_f64();
                    ((seconds > 0.0).then(|| (cpu_s - then).max(0.0) / seconds), at)
                }
                None => (None, at),
            };
            next.push((job.clone(), cpu_s, since, rate));
            rate
        });
        let rates = rates.collect();
        self.0 = next;
        rates
    }
}

/// The table: 80 columns at most.
pub fn table(slots: &[SlotLine], cpus: &[Option<f64>], queued: usize) -> String {
    let busy = slots.iter().filter(|line| line.job.is_some()).count();
    let mut text =
        format!("latebind {}  slots {}, busy {busy}, jobs that wait {queued}\n", rfc3339_short(), slots.len());
    text.push_str("SLOT JOB           IMAGE           PHASE     PROC   CPU   CPU s   MEM  DISK LEFT\n");
    for (line, cpu) in slots.iter().zip(cpus) {
        let stopped = line.live.is_some_and(|live| live.stopped);
        let idle = if line.out_s.is_some() { "backs off" } else { "idle" };
        let phase = line.phase.map_or(idle, Phase::name);
        let usage = line.live.map(|live| live.usage);
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let row = format!(
            "{:>4} {:<13} {:<15} {:<9} {:>4} {:>5} {:>7} {:>5} {:>5} {:>4}",
            line.slot,
            start_of(line.job.as_deref().unwrap_or("-"), 13),
            end_of(line.image.as_deref().unwrap_or("-"), 15),
            if stopped { "stopped" } else { phase.get(..9).unwrap_or(phase) },
            or_dash(usage.map(|u| short(u.processes))),
            or_dash(cpu.map(|c| if c < 99.9 { format!("{c:.2}") } else { format!("{c:.0}") })),
            or_dash(usage.map(|u| cpu_time(u.cpu_s))),
            or_dash(usage.map(|u| bytes(u.memory()))),
            or_dash(usage.and_then(|u| u.disk).map(bytes)),
            or_dash(line.left_s.or(line.out_s).map(time)),
        );
        text.push_str(row.trim_end());
        text.push('\n');
    }
    for line in slots.iter().filter(|line| line.out_s.is_some()) {
        let why = start_of(line.why.as_deref().unwrap_or_default(), 40);
        text.push_str(&format!(
            "slot {}: {} starts in a row failed: {why}\n",
            line.slot,
            short(line.failed_starts.into())
        ));
    }
    text
}

fn rfc3339_short() -> String {
    rfc3339(now()).get(..19).unwrap_or_default().to_owned()
}

fn short(n: u64) -> String {
    match n {
        n if n < 10_000 => n.to_string(),
        n if n < 1_000_000 => format!("{}k", n / 1_000),
        n => format!("{}M", n / 1_000_000),
    }
}

/// Seconds of CPU time in 7 characters.
fn cpu_time(seconds: f64) -> String {
    if seconds < 99_999.0 { format!("{seconds:.1}") } else { format!("{:.0}k", seconds / 1e3) }
}

/// A length of time in 4 characters.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1000.0 => format!("{s:.0}s"),
        s if s < 60_000.0 => format!("{:.0}m", s / 60.0),
        s if s < 3_600_000.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", (s / 86_400.0).min(999.0)),
    }
}

/// Only what a terminal shows in one cell.
fn harmless(text: &str) -> String {
    text::shown(text, text::LINE_MAX).chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

fn start_of(text: &str, width: usize) -> String {
    let text = harmless(text);
    if text.len() <= width { text } else { format!("{}~", text.get(..width - 1).unwrap_or_default()) }
}

/// The end of an image's name says more than its registry.
fn end_of(text: &str, width: usize) -> String {
    let text = harmless(text);
    if text.len() <= width { text } else { format!("~{}", text.get(text.len() - width + 1..).unwrap_or_default()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Phase;
    use crate::job::board::Live;
    use crate::job::limits::Limits;
    use crate::job::usage::Usage;

    fn line(job: &str, image: &str, usage: Usage) -> SlotLine {
        SlotLine {
            slot: 3,
            job: Some(job.into()),
            image: Some(image.into()),
            phase: Some(Phase::Collecting),
            phase_s: 1.0,
            left_s: Some(1e9),
            live: Some(Live { usage, limits: Limits::default(), stopped: false }),
            failed_starts: 0,
            out_s: None,
            why: None,
        }
    }

    #[test]
    fn it_fits_on_80_columns_whatever_comes() {
        let most =
            Usage { cpu_s: 1e7, rss: u64::MAX / 2, processes: 4_000_000, disk: Some(u64::MAX / 2), ..Usage::default() };
        let slots =
            [line(&"j".repeat(128), &"registry.example.org/".repeat(20), most), line("a", "b", Usage::default())];
        let text = table(&slots, &[Some(512.0), None], 100_000);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn a_slot_that_is_out_of_service_says_why() {
        let why = Some(format!("VolumeFull: \x1b[2J{}", "x".repeat(200)));
        let out =
            SlotLine { slot: 60, failed_starts: u32::MAX, out_s: Some(300.0), why, ..line("-", "-", Usage::default()) };
        let text = table(&[SlotLine { job: None, phase: None, live: None, left_s: None, ..out }], &[None], 0);
        assert!(text.contains("backs off") && text.contains("300s") && text.contains("failed: VolumeFull"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 80) && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        let slots = [line("a\x1b[2J\x07\u{9b}31m", "i\r\n\u{202e}x\0", Usage::default())];
        let text = table(&slots, &[None], 0);
        assert!(text.chars().all(|c| c == '\n' || c.is_ascii_graphic() || c == ' '), "{text:?}");
        let json = text::json(&slots[0]).unwrap();
        assert!(json.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{json}");
        assert_eq!(serde_json::from_str::<SlotLine>(&json).unwrap(), slots[0]);
    }

    #[test]
    fn rates_come_from_two_samples() {
        let mut rates = Rates::default();
        let at = Instant::now();
        let with = |cpu_s| [line("a", "i", Usage { cpu_s, ..Usage::default() })];
        assert_eq!(rates.cpus(&with(1.0), at), [None]);
        assert_eq!(rates.cpus(&with(3.0), at + Duration::from_secs(2)), [Some(1.0)]);
        assert_eq!(rates.cpus(&with(3.0), at + Duration::from_secs(3)), [Some(1.0)], "no new sample yet");
        assert_eq!(rates.cpus(&with(4.0), at + Duration::from_secs(4)), [Some(0.5)]);
    }

    #[test]
    fn times_are_short() {
        for (seconds, text) in [(0.4, "0s"), (999.0, "999s"), (3600.0, "60m"), (90_000.0, "25h"), (1e9, "999d")] {
            assert_eq!(time(seconds), text);
        }
    }
}
