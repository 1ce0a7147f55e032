//! The assignments-only subset of the POSIX shell.
//!
//! The measure is a file sourced under `set -a` by dash, by bash (with and without `--posix`) and by busybox ash, in
//! the C locale or one of UTF-8. What they read alike is accepted, what they do not is refused, and so is what would
//! run a command. `tests/tests/environment_differential.rs` holds the three against this file.

use super::problem::{EXPANDED_MAX, NESTING_MAX, STEPS_MAX};
use super::{Environment, Problem, SyntaxError};

/// Variables that some shell computes, keeps read-only, changes by itself, or obeys while it reads. Besides these, all
/// that begin with BASH, but for BASH_ENV.
const OWNED: &str = "_ COMP_WORDBREAKS DIRSTACK EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME FUNCNEST GROUPS HISTCMD \
    HISTFILESIZE IFS IGNOREEOF LINENO OLDPWD OPTERR OPTIND PIPESTATUS POSIXLY_CORRECT PPID PWD RANDOM SECONDS \
    SHELLOPTS SHLVL SRANDOM UID histchars ignoreeof";
/// Variables to which some shell gives a value where nothing else does: they can be read once they are set.
const FILLED_IN: &str = "COLUMNS HOSTNAME HOSTTYPE LINES MACHTYPE MAILCHECK OSTYPE PATH SHELL TERM";
/// Variables that can be set, but not read: each shell starts with prompts of its own, or with none.
const PROMPTS: &str = "PS1 PS2 PS4";

fn among(names: &str, name: &[u8]) -> bool {
    names.split(' ').any(|n| n.as_bytes() == name)
}

fn owned(name: &[u8]) -> bool {
    among(OWNED, name) || (name.starts_with(b"BASH") && name != b"BASH_ENV")
}

/// Applies a file of shell assignments.
///
/// On an error the environment has what stood before it, and is of no use: nothing may be started with it.
pub fn apply_sh(env: &mut Environment, text: &[u8]) -> Result<(), SyntaxError> {
    let mut reader = Reader {
        text,
        at: 0,
        env,
        value: Vec::new(),
        expanded: 0,
        steps: 0,
        nesting: 0,
        set_here: Vec::new(),
        export: false,
    };
    reader.file().map_err(|Refusal { at, problem, byte }| {
        let before = text.get(..at).unwrap_or_default();
        let line = before.iter().filter(|b| **b == b'\n').count();
        let column = before.iter().rev().take_while(|b| **b != b'\n').count();
        SyntaxError { line: line.saturating_add(1), column: column.saturating_add(1), problem, byte }
    })
}

struct Refusal {
    at: usize,
    problem: Problem,
    byte: u8,
}

fn refuse<T>(at: usize, problem: Problem) -> Result<T, Refusal> {
    Err(Refusal { at, problem, byte: 0 })
}

fn refuse_byte<T>(at: usize, problem: Problem, byte: u8) -> Result<T, Refusal> {
    Err(Refusal { at, problem, byte })
}

/// What surrounds the bytes that are being read, and so decides which of them are special.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// A value, outside of quotes.
    Plain,
    /// Double quotes.
    Double,
    /// The word of `${NAME:-word}`, outside of quotes.
    Brace,
    /// The word of `"${NAME:-word}"`.
    BraceInDouble,
}
use Within::{Brace, BraceInDouble, Double, Plain};

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    env: &'a mut Environment,
    /// The value that is being put together.
    value: Vec<u8>,
    /// Bytes of all values so far.
    expanded: usize,
    /// Assignments and expansions so far.
    steps: usize,
    nesting: usize,
    /// Names that the command at hand has set so far.
    set_here: Vec<&'a [u8]>,
    /// Whether the command at hand is `export`.
    export: bool,
}

impl<'a> Reader<'a> {
    fn file(&mut self) -> Result<(), Refusal> {
        self.check_bytes()?;
        loop {
            self.skip_blanks();
            match self.peek() {
                None => return Ok(()),
                Some(b'\n') => self.skip(1),
                Some(b'#') => self.skip_comment(),
                Some(_) => self.command()?,
            }
        }
    }

    /// Refuses, in comments too, the bytes that are a sign of another kind of file, or that not every locale and not
    /// every shell takes as it is.
    fn check_bytes(&self) -> Result<(), Refusal> {
        if self.text.starts_with(b"\xef\xbb\xbf") {
            return refuse(0, Problem::ByteOrderMark);
        }
        if let Some(at) = self.text.iter().position(|b| b.is_ascii_control() && !matches!(b, b'\t' | b'\n')) {
            return match self.text.get(at) {
                Some(b'\r') => refuse(at, Problem::CarriageReturn),
                Some(0) => refuse(at, Problem::NulByte),
                other => refuse_byte(at, Problem::ControlCharacter, other.copied().unwrap_or_default()),
            };
        }
        if let Err(error) = core::str::from_utf8(self.text) {
            return refuse(error.valid_up_to(), Problem::NotUtf8);
        }
        Ok(())
    }

    /// One simple command, up to its newline, semicolon or comment.
    fn command(&mut self) -> Result<(), Refusal> {
        let start = self.at;
        self.set_here.clear();
        self.export = self.rest().starts_with(b"export ") || self.rest().starts_with(b"export\t");
        if self.export {
            self.skip(6);
            self.skip_blanks();
            if matches!(self.peek(), None | Some(b'\n' | b';' | b'#')) {
                return refuse(start, Problem::ExportAlone);
            }
        }
        loop {
            self.assignment()?;
            self.skip_blanks();
            match self.peek() {
                Some(b'\n' | b';') => {
                    self.skip(1);
                    return Ok(());
                }
                None | Some(b'#') => return Ok(()),
                Some(_) => {}
            }
        }
    }

    fn assignment(&mut self) -> Result<(), Refusal> {
        let start = self.at;
        let name = self.name();
        if name.is_empty() {
            return refuse(start, Problem::NotUnderstood);
        }
        match self.peek() {
            Some(b'=') => {}
            // Under `set -a` it changes nothing, as long as the shell has no value of its own for the name.
            None | Some(b' ' | b'\t' | b'\n' | b';') if self.export => return self.readable(name, start),
            Some(b'+') => return refuse(self.at, Problem::Append),
            Some(b'[') => return refuse(self.at, Problem::Array),
            _ if self.export => return refuse(self.at, Problem::NoNameAfterExport),
            _ => return refuse(start, Problem::NotAnAssignment),
        }
        if owned(name) {
            return refuse(start, Problem::Owned);
        }
        self.skip(1);
        self.step(start)?;
        self.value.clear();
        self.word(Plain, true, start)?;
        self.env.set(name, &self.value);
        self.set_here.push(name);
        Ok(())
    }

    /// Reads up to and including what closes `within`; a plain word ends before its delimiter. Where it is not `live`
    /// the text is checked but has no effect: the word of `${NAME:-word}` where NAME has a value.
    fn word(&mut self, within: Within, live: bool, opened: usize) -> Result<(), Refusal> {
        loop {
            let at = self.at;
            let Some(byte) = self.peek() else {
                return match within {
                    Plain => Ok(()),
                    Double => refuse(opened, Problem::OpenDoubleQuote),
                    Brace | BraceInDouble => refuse(opened, Problem::OpenBrace),
                };
            };
            match (byte, within) {
                (b' ' | b'\t' | b'\n' | b';', Plain) => return Ok(()),
                (b'"', Double) | (b'}', Brace | BraceInDouble) => {
                    self.skip(1);
                    return Ok(());
                }
                (b'\\', _) => self.backslash(within, live)?,
                (b'$', _) => self.dollar(within, live)?,
                (b'`', _) => return refuse(at, Problem::Backquote),
                (b'\'', Plain | Brace) => self.single_quotes(live)?,
                (b'"', Plain | Brace) => {
                    self.skip(1);
                    self.word(Double, live, at)?;
                }
                (b'"' | b'\'' | b'{' | b'~' | b'<' | b'>' | b'(' | b')', BraceInDouble) => {
                    return refuse(at, Problem::DiffersInDouble);
                }
                (b'\n', Brace | BraceInDouble) => return refuse(opened, Problem::OpenBraceOnLine),
                (b'~', Plain | Brace) if within == Brace || !self.is_plain_tilde() => {
                    return refuse(at, Problem::Tilde);
                }
                (b'{', Plain) if self.export => {
                    return refuse(at, Problem::BraceAfterExport);
                }
                (b'&' | b'|' | b'<' | b'>' | b'(' | b')', Plain | Brace) | (b';' | b'#' | b'{', Brace) => {
                    return refuse_byte(at, Problem::Unquoted, byte);
                }
                _ => {
                    self.skip(1);
                    self.push(&[byte], within, live, at)?;
                }
            }
        }
    }

    /// A tilde is expanded at the start of a value and after a colon. What stands for a start is not the same in all
    /// shells after quotes and expansions, so only a tilde that follows a letter, digit or `/ . _ -` is let through.
    fn is_plain_tilde(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|at| self.text.get(at));
        before.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-'))
    }

    fn single_quotes(&mut self, live: bool) -> Result<(), Refusal> {
        let at = self.at;
        self.skip(1);
        let Some(length) = self.rest().iter().position(|b| *b == b'\'') else {
            return refuse(at, Problem::OpenSingleQuote);
        };
        let quoted = self.rest().get(..length).unwrap_or_default();
        self.skip(length.saturating_add(1));
        self.push(quoted, Double, live, at)
    }

    fn backslash(&mut self, within: Within, live: bool) -> Result<(), Refusal> {
        let at = self.at;
        self.skip(1);
        match (self.peek(), within) {
            (None, _) => refuse(at, Problem::BackslashAtEnd),
            (Some(b'\n'), Brace | BraceInDouble) => refuse(at, Problem::ContinuedInBrace),
            (Some(b'\n'), _) => {
                self.skip(1);
                Ok(())
            }
            (Some(b'}'), Double) if self.nesting > 0 => refuse(at, Problem::EscapedBrace),
            (Some(byte), Plain | Brace)
            | (Some(byte @ (b'$' | b'`' | b'"' | b'\\')), Double | BraceInDouble)
            | (Some(byte @ b'}'), BraceInDouble) => {
                self.skip(1);
                self.push(&[byte], Double, live, at)
            }
            _ => self.push(b"\\", Double, live, at),
        }
    }

    fn dollar(&mut self, within: Within, live: bool) -> Result<(), Refusal> {
        let at = self.at;
        self.skip(1);
        match (self.peek(), within) {
            (Some(b'{'), _) => {
                self.skip(1);
                self.braces(within, live, at)
            }
            (Some(byte), _) if byte.is_ascii_alphabetic() || byte == b'_' => {
                let name = self.name();
                if self.rest().starts_with(b"\\\n") {
                    return refuse(self.at, Problem::ContinuedAfterName);
                }
                self.expand(name, within, live, at).map(drop)
            }
            (Some(b'('), _) => refuse(at, Problem::Substitution),
            // A dollar sign that cannot start an expansion in any shell is itself.
            (None | Some(b' ' | b'\t' | b'\n' | b';'), Plain)
            | (Some(b'"' | b' ' | b'\t' | b'\n'), Double)
            | (Some(b'%' | b'+' | b',' | b'.' | b'/' | b':' | b'=' | b'^'), _) => self.push(b"$", Double, live, at),
            _ => refuse(at, Problem::OtherExpansion),
        }
    }

    /// `${NAME}`, `${NAME:-word}` or `${NAME:+word}`, from behind the brace.
    fn braces(&mut self, within: Within, live: bool, at: usize) -> Result<(), Refusal> {
        let name = self.name();
        if !name.is_empty() && self.peek() == Some(b'}') {
            self.skip(1);
            return self.expand(name, within, live, at).map(drop);
        }
        let instead = self.rest().starts_with(b":+");
        if name.is_empty() || !(instead || self.rest().starts_with(b":-")) {
            return refuse(at, Problem::OtherBraces);
        }
        self.skip(2);
        if self.nesting >= NESTING_MAX {
            return refuse(at, Problem::TooDeep);
        }
        // With `:+` the word stands for a value that is there, which itself is not wanted.
        let empty = self.expand(name, within, live && !instead, at)?;
        self.nesting = self.nesting.saturating_add(1);
        let inner = if matches!(within, Plain | Brace) { Brace } else { BraceInDouble };
        self.word(inner, live && empty != instead, at)?;
        self.nesting = self.nesting.saturating_sub(1);
        Ok(())
    }

    /// Appends the value of `name`, and says whether it is empty or not set.
    fn expand(&mut self, name: &[u8], within: Within, live: bool, at: usize) -> Result<bool, Refusal> {
        self.readable(name, at)?;
        self.step(at)?;
        let value = self.env.get(name).unwrap_or_default().to_vec();
        self.push(&value, within, live, at)?;
        Ok(value.is_empty())
    }

    /// Refuses to read a variable that has not the same value in every shell.
    fn readable(&self, name: &[u8], at: usize) -> Result<(), Refusal> {
        if self.set_here.contains(&name) {
            return refuse(at, Problem::SetOnLine);
        }
        if owned(name) || among(PROMPTS, name) {
            return refuse(at, Problem::OwnedValue);
        }
        if among(FILLED_IN, name) && self.env.get(name).is_none() {
            return refuse(at, Problem::FilledIn);
        }
        Ok(())
    }

    fn push(&mut self, bytes: &[u8], within: Within, live: bool, at: usize) -> Result<(), Refusal> {
        if !live {
            return Ok(());
        }
        let bare = self.export && matches!(within, Plain | Brace);
        if bare && bytes.iter().any(|b| matches!(b, b' ' | b'\t' | b'\n' | b'*' | b'?' | b'[' | b'\\')) {
            return refuse(at, Problem::SplitAfterExport);
        }
        self.expanded = self.expanded.saturating_add(bytes.len());
        if self.expanded > EXPANDED_MAX {
            return refuse(at, Problem::TooLarge);
        }
        self.value.extend_from_slice(bytes);
        Ok(())
    }

    fn step(&mut self, at: usize) -> Result<(), Refusal> {
        self.steps = self.steps.saturating_add(1);
        if self.steps > STEPS_MAX {
            return refuse(at, Problem::TooMany);
        }
        Ok(())
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn name(&mut self) -> &'a [u8] {
        let rest = self.rest();
        let digit_first = rest.first().is_some_and(u8::is_ascii_digit);
        let end = rest.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_').unwrap_or(rest.len());
        let end = if digit_first { 0 } else { end };
        self.skip(end);
        rest.get(..end).unwrap_or_default()
    }

    /// Blanks and line continuations.
    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            match rest.first() {
                Some(b' ' | b'\t') => self.skip(1),
                Some(b'\\') if rest.starts_with(b"\\\n") => self.skip(2),
                _ => return,
            }
        }
    }

    fn skip_comment(&mut self) {
        let rest = self.rest();
        self.skip(rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()));
    }
}
