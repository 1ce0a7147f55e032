//! Two formats in which people have an environment as a list: a file for docker's `--env-file`, and what `export -p`
//! of a shell has printed.

use super::problem::STEPS_MAX;
use super::{Environment, Problem, SyntaxError};

/// Variables that belong to the shell that has printed them, and say nothing of the job's environment.
const PRINTERS: [&[u8]; 4] = [b"OLDPWD", b"PWD", b"SHLVL", b"_"];

/// The line and column of a place in `text`.
fn error(text: &[u8], at: usize, problem: Problem) -> SyntaxError {
    let before = text.get(..at).unwrap_or_default();
    let line = before.iter().filter(|b| **b == b'\n').count();
    let column = before.iter().rev().take_while(|b| **b != b'\n').count();
    SyntaxError { line: line.saturating_add(1), column: column.saturating_add(1), problem, byte: 0 }
}

/// Applies a file as `docker run --env-file` reads it: `NAME=value` lines, in which nothing is special behind the
/// equals sign, not even quotes; blanks before a name, empty lines and lines that begin with `#` do not count, nor do a
/// byte order mark and carriage returns at line ends. A NAME alone, for which docker takes its caller's value, is
/// refused.
///
/// On an error the environment has what stood before it, and is of no use.
pub fn apply_docker(env: &mut Environment, text: &[u8]) -> Result<(), SyntaxError> {
    let all = text;
    let mut text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut steps = 0_usize;
    while !text.is_empty() {
        let at = all.len().saturating_sub(text.len());
        let end = text.iter().position(|b| *b == b'\n');
        let line = text.get(..end.unwrap_or(text.len())).unwrap_or_default();
        text = end.and_then(|end| text.get(end.saturating_add(1)..)).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let refuse = |problem| Err(error(all, at, problem));
        let Ok(line) = core::str::from_utf8(line) else { return refuse(Problem::NotUtf8) };
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        steps = steps.saturating_add(1);
        let (name, value) = line.split_once('=').map_or((line, None), |(name, value)| (name, Some(value)));
        match value {
            _ if steps > STEPS_MAX => return refuse(Problem::TooMany),
            _ if line.contains('\0') => return refuse(Problem::NulByte),
            _ if name.is_empty() => return refuse(Problem::EntryWithoutName),
            _ if name.contains([' ', '\t']) => return refuse(Problem::BlankInName),
            None => return refuse(Problem::NameAlone),
            Some(value) => env.set(name.as_bytes(), value.as_bytes()),
        }
    }
    Ok(())
}

/// Applies what `export -p` of dash, bash or busybox has printed: `export NAME='value'` and `declare -x NAME="value"`,
/// one after the other, and nothing else. A name without a value sets nothing. `PWD`, `OLDPWD`, `SHLVL` and `_` are
/// those of the shell that printed them, and are left out.
///
/// On an error the environment has what stood before it, and is of no use.
pub fn apply_export(env: &mut Environment, text: &[u8]) -> Result<(), SyntaxError> {
    if let Some(at) = text.iter().position(|byte| *byte == 0) {
        return Err(error(text, at, Problem::NulByte));
    }
    let mut reader = Printed { text, at: 0 };
    let mut steps = 0_usize;
    while reader.skip_lines() {
        steps = steps.saturating_add(1);
        let (start, said) = (reader.at, reader.declaration());
        if steps > STEPS_MAX {
            return Err(error(text, start, Problem::TooMany));
        }
        match said {
            Ok((name, Some(value))) if !PRINTERS.contains(&name) => env.set(name, &value),
            Ok(_) => {}
            Err((at, problem)) => return Err(error(text, at, problem)),
        }
    }
    Ok(())
}

struct Printed<'a> {
    text: &'a [u8],
    at: usize,
}

type Refused = (usize, Problem);

impl<'a> Printed<'a> {
    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn takes(&mut self, text: &[u8]) -> bool {
        let is = self.rest().starts_with(text);
        self.skip(if is { text.len() } else { 0 });
        is
    }

    /// Skips empty lines. Whether there is something left.
    fn skip_lines(&mut self) -> bool {
        while self.takes(b"\n") {}
        !self.rest().is_empty()
    }

    fn refuse<T>(&self, problem: Problem) -> Result<T, Refused> {
        Err((self.at, problem))
    }

    /// The bytes up to the first that is not one of these.
    fn run(&mut self, is_one: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let end = rest.iter().position(|b| !is_one(*b)).unwrap_or(rest.len());
        self.skip(end);
        rest.get(..end).unwrap_or_default()
    }

    /// One variable, up to the end of its line.
    fn declaration(&mut self) -> Result<(&'a [u8], Option<Vec<u8>>), Refused> {
        let start = self.at;
        if self.takes(b"declare -") {
            // These attributes change nothing of a value that was printed.
            let flags = self.run(|b| b"xrtilu".contains(&b));
            if !flags.contains(&b'x') {
                return Err((start, Problem::NotExported));
            }
        } else if !self.takes(b"export") {
            return Err((start, Problem::NotExported));
        }
        if !self.takes(b" ") {
            return Err((start, Problem::NotExported));
        }
        let name = self.run(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.first().is_none_or(u8::is_ascii_digit) {
            return self.refuse(Problem::NoNameAfterExport);
        }
        let value = if self.takes(b"=") { Some(self.value()?) } else { None };
        match self.rest().first() {
            None | Some(b'\n') => Ok((name, value)),
            Some(_) => self.refuse(Problem::NotExported),
        }
    }

    /// A value as these shells print it: quoted parts, one behind the other, and bare letters between them.
    fn value(&mut self) -> Result<Vec<u8>, Refused> {
        let mut value = Vec::new();
        loop {
            let start = self.at;
            if self.takes(b"$'") {
                self.dollar_quotes(start, &mut value)?;
            } else if self.takes(b"'") {
                value.extend_from_slice(self.run(|b| b != b'\''));
                if !self.takes(b"'") {
                    return Err((start, Problem::OpenSingleQuote));
                }
            } else if self.takes(b"\"") {
                self.double_quotes(start, &mut value)?;
            } else if self.takes(b"\\") {
                // busybox prints a quote between two quoted parts so.
                match self.rest().first() {
                    None | Some(b'\n') => return Err((start, Problem::BackslashAtEnd)),
                    Some(byte) => value.push(*byte),
                }
                self.skip(1);
            } else {
                let bare = self.run(|b| b.is_ascii_alphanumeric() || b"_-./:=,+@%^".contains(&b) || b >= 0x80);
                if bare.is_empty() {
                    return Ok(value);
                }
                value.extend_from_slice(bare);
            }
        }
    }

    fn double_quotes(&mut self, start: usize, value: &mut Vec<u8>) -> Result<(), Refused> {
        loop {
            value.extend_from_slice(self.run(|b| !matches!(b, b'"' | b'\\' | b'$' | b'`')));
            match (self.rest().first(), self.rest().get(1)) {
                (Some(b'"'), _) => {
                    self.skip(1);
                    return Ok(());
                }
                (Some(b'\\'), Some(byte @ (b'"' | b'\\' | b'$' | b'`'))) => {
                    value.push(*byte);
                    self.skip(2);
                }
                (Some(b'\\'), Some(b'\n')) => self.skip(2),
                (Some(byte @ b'\\'), _) => {
                    value.push(*byte);
                    self.skip(1);
                }
                (Some(b'`'), _) => return self.refuse(Problem::Backquote),
                (Some(_), _) => return self.refuse(Problem::OtherExpansion),
                (None, _) => return Err((start, Problem::OpenDoubleQuote)),
            }
        }
    }

    /// `$'...'`, in which bash prints what has control characters.
    fn dollar_quotes(&mut self, start: usize, value: &mut Vec<u8>) -> Result<(), Refused> {
        loop {
            value.extend_from_slice(self.run(|b| !matches!(b, b'\'' | b'\\')));
            if self.takes(b"'") {
                return Ok(());
            }
            let Some(byte) = self.rest().get(1).copied() else { return Err((start, Problem::OpenSingleQuote)) };
            let plain = match byte {
                b'a' => 7,
                b'b' => 8,
                b'e' | b'E' => 27,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 11,
                b'\\' | b'\'' | b'"' | b'?' => byte,
                b'0'..=b'3' => {
                    let digits = self.rest().get(1..4).unwrap_or_default();
                    let octal = core::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 8).ok());
                    let Some(byte) = octal.filter(|byte| digits.len() == 3 && *byte != 0) else {
                        return self.refuse(Problem::NotExported);
                    };
                    self.skip(2);
                    byte
                }
                _ => return self.refuse(Problem::NotExported),
            };
            value.push(plain);
            self.skip(2);
        }
    }
}
