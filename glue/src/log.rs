//! Glue's log: lines on standard error that can neither block nor end it.
//!
//! A reader that stopped reading, or a pipe that somebody made non-blocking, must not stop the supervision of a job.
//! What cannot be written at once is dropped. What root has dropped is counted in `status.json`; a supervisor's lines
//! are not in that count.
//!
//! On a terminal a line is text; else it is JSON in the form of the watcher's lines, so that one reader understands
//! both.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use nix::fcntl::OFlag;

use latebind_contract::encoding::ascii;
use latebind_contract::time;
use latebind_linux::sys;
use latebind_linux::volume::open_at;

/// Longest text of a line, in characters: in JSON, with each quote escaped, a line then has at most PIPE_BUF bytes,
/// which a pipe takes whole or not at all (pipe(7)).
const LINE_MAX: usize = 1900;

static FD: AtomicI32 = AtomicI32::new(2);
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// Whether the last line was cut off, so that the next one has to begin with its end.
static CUT: AtomicBool = AtomicBool::new(false);
/// The slot that lines are about; `u32::MAX`: none.
static SLOT: AtomicU32 = AtomicU32::new(u32::MAX);

/// Opens standard error a second time, non-blocking: the flag belongs to the open file, so the one that others share
/// stays as it is. Where that cannot be done (a socket), lines go to the shared one.
pub fn open_non_blocking() {
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_APPEND;
    // Above the numbers that stage two gets its descriptors on.
    if let Ok(fd) = open_at(nix::fcntl::AT_FDCWD, "/proc/self/fd/2", flags)
        && let Ok(high) = sys::duplicate_above(fd.as_fd(), 100)
    {
        FD.store(high.into_raw_fd(), Ordering::Relaxed);
    }
}

/// From here on lines name this slot.
pub fn name_slot(number: u32) {
    SLOT.store(number, Ordering::Relaxed);
}

/// One line on what goes on.
pub fn line(text: core::fmt::Arguments<'_>) {
    say("INFO", text);
}

/// One line on what is not as it should be, and goes on all the same.
pub fn warn(text: core::fmt::Arguments<'_>) {
    say("WARN", text);
}

/// One line on what ends this program.
pub fn error(text: core::fmt::Arguments<'_>) {
    say("ERROR", text);
}

fn say(level: &str, text: core::fmt::Arguments<'_>) {
    // A line stays one line, and an escape sequence in a file name stays text.
    let text = ascii(&text.to_string(), LINE_MAX);
    let line = if std::io::stderr().is_terminal() { format!("glue: {text}\n") } else { json(level, &text) };
    put(sys::inherited(FD.load(Ordering::Relaxed)), &line);
}

/// Writes a line, as far as there is room for it.
fn put(to: BorrowedFd<'_>, line: &str) {
    let end = if CUT.load(Ordering::Relaxed) { "\n" } else { "" };
    let written = nix::unistd::write(to, [end, line].concat().as_bytes()).unwrap_or(0);
    let whole = end.len() + line.len();
    if written > 0 {
        CUT.store((end.len() + 1..whole).contains(&written), Ordering::Relaxed);
    }
    if written < whole {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

fn json(level: &str, text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    let slot = match SLOT.load(Ordering::Relaxed) {
        u32::MAX => String::new(),
        number => format!(",\"slot\":{number}"),
    };
    let at = time::text_of(time::wall());
    format!("{{\"timestamp\":\"{at}\",\"level\":\"{level}\",\"fields\":{{\"message\":\"{text}\"{slot}}}}}\n")
}

/// For people: text as it is, without the panic that `println!` has for a closed pipe. Returns 0, an exit code.
pub fn print(fd: i32, text: &str) -> i32 {
    let _ = nix::unistd::write(sys::inherited(fd), text.as_bytes());
    0
}

/// Lines that could not be written so far.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_cut_off_takes_no_other_with_it() {
        let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK).unwrap();
        // A page takes as much as a page has, and no more: the rest of a long line is cut off.
        nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let drain = || {
            let mut bytes = [0; 10_000];
            let n = nix::unistd::read(&read, &mut bytes).unwrap();
            String::from_utf8_lossy(bytes.get(..n).unwrap_or_default()).into_owned()
        };
        let before = dropped();
        put(write.as_fd(), &format!("{}\n", "x".repeat(6000)));
        put(write.as_fd(), "nothing fits\n");
        assert_eq!((drain(), dropped() - before), ("x".repeat(4096), 2));
        put(write.as_fd(), "second\n");
        put(write.as_fd(), "third\n");
        assert_eq!((drain(), dropped() - before), ("\nsecond\nthird\n".into(), 2));
    }

    #[test]
    fn a_line_is_json_whatever_it_says() {
        for text in ["plain", "a \"quoted\" \\ path", "ä ?"] {
            let line = json("WARN", text);
            let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            assert_eq!(value["fields"]["message"], text, "{line}");
            assert!(
                value["level"] == "WARN" && value["timestamp"].as_str().is_some_and(|t| t.ends_with('Z')),
                "{line}"
            );
            assert!(line.ends_with("}\n") && line.lines().count() == 1);
        }
    }

    #[test]
    fn a_line_is_never_written_in_part() {
        name_slot(63);
        let line = json("ERROR", &ascii(&"\"".repeat(10_000), LINE_MAX));
        assert!(line.len() <= nix::libc::PIPE_BUF, "{}", line.len());
    }
}
