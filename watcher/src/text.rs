//! The only way to standard output and standard error: nothing that an image, a registry, a job, an engine or a spool's
//! user wrote reaches a terminal but as text. Clippy refuses other ways (`watcher/clippy.toml`).
//!
//! Text goes through [`latebind_contract::text`]; JSON stays the same JSON, in ASCII alone. A job's own output is not ours
//! to change:
//! it goes from the job to the caller's descriptors (`job::relay`).

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

pub use latebind_contract::text::{LINE_MAX, is_harmless, one_line, printable, shown};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that are shown of one text for standard error.
const LINES_MAX: usize = 1000;

/// Longest line of a JSON log, in bytes.
const LOG_MAX: usize = 64 << 10;

/// Home, and clear what is below: a table that is drawn over the last one does not flicker.
const REDRAW: &str = "\x1b[H\x1b[J";

/// The text with its lines and tabs, of any length, and `?` for all else that is not harmless.
pub fn lines(text: &str) -> String {
    text.chars().map(|c| if "\n\t".contains(c) || is_harmless(c) { c } else { '?' }).collect()
}

/// Cuts a text to `most` bytes, and shows that.
pub fn cut(text: &mut String, most: usize) {
    const MARK: &str = " ...";
    if text.len() > most {
        let end = (0..=most.saturating_sub(MARK.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
        text.truncate(end);
        text.push_str(MARK);
    }
}

/// A value as JSON in ASCII: what is not is escaped (RFC 8259, 7), and so is DEL.
///
/// # Errors
///
/// Where the value cannot be JSON.
pub fn json(value: &impl Serialize) -> io::Result<String> {
    Ok(ascii(&serde_json::to_string(value).map_err(io::Error::other)?))
}

/// As [`json`], over several lines.
///
/// # Errors
///
/// Where the value cannot be JSON.
pub fn json_for_people(value: &impl Serialize) -> io::Result<String> {
    Ok(ascii(&serde_json::to_string_pretty(value).map_err(io::Error::other)?))
}

/// JSON has other characters than these in its texts only, where they can be escaped.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            ' '..='~' | '\n' => text.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    text
}

/// Prints to standard output.
///
/// # Errors
///
/// Where it cannot be written.
pub fn say(text: &str) -> io::Result<()> {
    print(&lines(text))
}

/// Draws over what was drawn before, on a terminal.
///
/// # Errors
///
/// Where it cannot be written.
pub fn redraw(text: &str) -> io::Result<()> {
    print(&format!("{REDRAW}{}", lines(text)))
}

#[expect(clippy::disallowed_methods, reason = "the one place")]
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Prints to standard error, with a line end; what cannot be written there is lost.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn complain(text: &str) {
    let _ = io::stderr().write_all(complaint(text).as_bytes());
}

fn complaint(text: &str) -> String {
    let lines = text.trim_end_matches('\n').split('\n').take(LINES_MAX);
    lines.map(|line| format!("{}\n", one_line(line))).collect()
}

/// Reads this program's command line. What is wrong with it, or the help that was asked for, is printed; the error is
/// the exit code then, `wrong` where it was wrong.
///
/// # Errors
///
/// Where the program is not to go on.
pub fn arguments<T: clap::Parser>(wrong: u8) -> Result<T, ExitCode> {
    let mut given = std::env::args_os().skip(1);
    if given.next().is_some_and(|first| first == crate::pages::OPTION) {
        let share = given.next().unwrap_or_else(|| ".".into());
        return Err(match crate::pages::write(&T::command(), share.as_ref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                complain(&format!("cannot write manual pages below {}: {e}", one_line(&share.to_string_lossy())));
                ExitCode::from(wrong)
            }
        });
    }
    T::try_parse().map_err(|e| {
        // Clap's message has several lines, and the arguments in it: so it is made of arguments that have one.
        let shown = std::env::args_os().map(|argument| one_line(&argument.to_string_lossy()));
        let e = T::try_parse_from(shown).err().unwrap_or(e);
        let mut message = e.render().to_string();
        // As docker's users call it: what is done in place of an option there is.
        if let Some(clap::error::ContextValue::String(option)) = e.get(clap::error::ContextKind::InvalidArg)
            && e.kind() == clap::error::ErrorKind::UnknownArgument
            && let Some(advice) = crate::docker_options::advice(option)
        {
            message = format!("error: docker's option {option}: {advice}");
        }
        if e.use_stderr() {
            complain(&message);
            return ExitCode::from(wrong);
        }
        let _ = say(&message);
        ExitCode::SUCCESS
    })
}

/// Whether somebody looks at standard output.
#[expect(clippy::disallowed_methods, reason = "nothing is printed")]
pub fn is_output_seen() -> bool {
    io::stdout().is_terminal()
}

/// Whether somebody looks at standard error.
#[expect(clippy::disallowed_methods, reason = "nothing is printed")]
pub fn is_error_seen() -> bool {
    io::stderr().is_terminal()
}

/// Whether nobody reads standard output any more.
#[expect(clippy::disallowed_methods, reason = "nothing is printed")]
pub fn is_output_closed() -> bool {
    has_hung_up(io::stdout().as_fd())
}

/// Whether nobody reads any more what is written to `fd`, as a pipe, a socket or a terminal knows.
pub fn has_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut look = [PollFd::new(fd, PollFlags::empty())];
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    poll(&mut look, PollTimeout::ZERO).is_ok_and(|n| n > 0)
        && look.iter().any(|fd| fd.revents().is_some_and(|found| found.intersects(gone)))
}

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

/// Starts this program's log, on standard error.
pub fn log(filter: EnvFilter, form: Form) {
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_target(false);
    match form {
        Form::Text => log.with_writer(Log(form)).init(),
        Form::Json => log.json().with_span_list(false).with_writer(Log(form)).init(),
    }
}

/// Where the log's lines go: each comes in one piece.
#[derive(Clone, Copy, Debug)]
struct Log(Form);

impl Log {
    fn line(self, event: &[u8]) -> String {
        let event = String::from_utf8_lossy(event);
        match self.0 {
            Form::Text => format!("{}\n", one_line(event.trim_end_matches('\n'))),
            Form::Json if event.len() <= LOG_MAX => ascii(&event),
            Form::Json => {
                let message = format!("a line of {} bytes is left out", event.len());
                let time = latebind_contract::time::text_of(latebind_contract::time::wall());
                format!(r#"{{"timestamp":"{time}","level":"WARN","fields":{{"message":"{message}"}}}}{}"#, '\n')
            }
        }
    }
}

impl Write for Log {
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(self.line(event).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    /// What images, jobs and registries may be called, or say.
    pub const HOSTILE: &str =
        "x\x1b[2J\x1b]0;t\x07\u{9b}31m\x7f\u{202e}y\u{2066}\u{2028}z\r\u{0}\u{feff}\n2026 ERROR fake";

    #[test]
    fn a_short_text_stays_as_it_is_and_a_long_one_shows_that_it_was_cut() {
        let mut text = "1234".to_owned();
        cut(&mut text, 4);
        assert_eq!(text, "1234");
        text.push_str("567890");
        cut(&mut text, 8);
        assert_eq!(text, "1234 ...");
        let mut text = "\u{1F980}".repeat(3);
        cut(&mut text, 10);
        assert_eq!(text, "\u{1F980} ...");
    }

    /// Fails where a terminal would be given more than text.
    #[track_caller]
    pub fn assert_harmless(text: &str) {
        let harmful: Vec<char> = text.chars().filter(|c| !"\n\t".contains(*c) && !is_harmless(*c)).collect();
        assert!(harmful.is_empty(), "{harmful:?} in {text:?}");
    }

    #[test]
    fn what_is_printed_is_text() {
        assert_harmless(&lines(HOSTILE));
        assert_harmless(&complaint(HOSTILE));
        assert_eq!(lines("a\nb\n"), "a\nb\n");
        assert_eq!(complaint("a\n\nb\n\n"), "a\n\nb\n");
        assert_eq!(complaint(&"x\n".repeat(LINES_MAX * 2)).lines().count(), LINES_MAX);
        assert!(complaint(&"x".repeat(LINE_MAX * 2)).len() < LINE_MAX + 9);
    }

    #[test]
    fn json_stays_the_same_json() {
        for form in [json(&[HOSTILE]), json_for_people(&[HOSTILE])] {
            let form = form.unwrap();
            assert_harmless(&form);
            assert!(form.is_ascii());
            assert_eq!(serde_json::from_str::<Vec<String>>(&form).unwrap(), [HOSTILE]);
        }
    }

    /// What `log` writes for one event.
    fn logged(form: Form) -> String {
        use std::sync::{Arc, Mutex, PoisonError};
        #[derive(Clone)]
        struct Kept(Form, Arc<Mutex<String>>);
        impl Write for Kept {
            fn write(&mut self, event: &[u8]) -> io::Result<usize> {
                let mut kept = self.1.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_str(&Log(self.0).line(event));
                Ok(event.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept(form, Arc::default());
        let writer = kept.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_target(false).with_writer(move || writer.clone());
        let event = || {
            let span = tracing::info_span!("job", job = HOSTILE);
            let _inside = span.enter();
            tracing::error!(image = HOSTILE, "{HOSTILE}");
        };
        match form {
            Form::Text => tracing::subscriber::with_default(log.finish(), event),
            Form::Json => tracing::subscriber::with_default(log.json().finish(), event),
        }
        let text = kept.1.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }

    #[test]
    fn an_event_is_one_line_of_text_in_the_log() {
        let text = logged(Form::Text);
        assert_harmless(&text);
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn a_json_log_stays_json() {
        let text = logged(Form::Json);
        assert_harmless(&text);
        assert_eq!(text.lines().count(), 1, "{text}");
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(text.is_ascii() && event["fields"]["image"].as_str() == Some(HOSTILE), "{text}");
        let long = Log(Form::Json).line(format!("\"{}\"\n", "x".repeat(LOG_MAX)).as_bytes());
        assert!(long.len() < 200 && serde_json::from_str::<serde_json::Value>(&long).is_ok(), "{long}");
    }
}
