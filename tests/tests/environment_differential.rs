//! Holds the parser of shell environment files against real shells.
//!
//! Promise: an environment file that glue accepts means exactly what dash, bash and busybox make of it. A seeded
//! generator writes files that are biased towards what shells disagree on; each file that the parser accepts is sourced
//! by each shell under `set -a`, and the environments must be equal byte for byte, without a word on standard error.
//! `LATEBIND_SEED` chooses the seed, `LATEBIND_FILES` the number of files.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends by panicking and reports by printing"
)]

use std::fmt::Write as _;

use latebind_contract::environment::{Environment, apply_export, apply_sh};
use latebind_fuzz::shells::{Shells, Start, starting_environments};

/// Files that each hold one known trap, one on each line, in the notation of [`plain`]; every one is tried in every
/// starting environment.
const CORPUS: &str = include_str!("../data/environment-corpus");

/// Undoes a notation that shows what could not be seen: control pictures stand for control characters (U+240A for a
/// newline) and U+2420 for a blank, U+237D for a no-break space, U+25C7 for a byte order mark, U+2205 for nothing.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|c| *c != '\u{2205}')
        .map(|c| match u32::from(c) {
            0x2421 => '\x7f',
            0x237D => '\u{a0}',
            0x25C7 => '\u{feff}',
            picture @ 0x2400..=0x2420 => char::from_u32(picture - 0x2400).unwrap(),
            _ => c,
        })
        .collect()
}

/// xorshift64*, so that a seed alone tells which files were made.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of the words of a list.
    fn pick(&mut self, list: &str) -> String {
        let words: Vec<&str> = list.split_ascii_whitespace().collect();
        plain(words[self.below(words.len())])
    }
}

const NAMES: &str = "A B C U E Z SP GL BS QU NL TI UT HI CT a _x A1 PATH HOME x_Y";
const ODD_NAMES: &str = "HOSTNAME TERM SHELL OSTYPE PS1 IFS RANDOM UID PWD _ LINENO BASH_ENV OPTIND LANG LC_ALL TZ MAIL export if SHLVL OLDPWD LC_CTYPE GLOBIGNORE OPTARG PS4 COLUMNS HISTSIZE FUNCNAME";
const TEXT: &str = "a b x file /usr lib : / . , - _ = % + 0 7 ^ ! @ ] ä € Á a=b --opt http://h/ }";
const RISKY: &str = r#"* ? [ [ab] { {a,b} ~ :~ /~ # ␠# ! $ $/ \ ' " & | ; ( ) < > ` $( $' $" $1 ${ ␍ ␁ ␡ ⍽"#;

/// A file, line by line; about half of the files are meant to be plain enough to be accepted.
fn generate(dice: &mut Dice) -> Vec<u8> {
    let mut file = String::new();
    let risk = [4, 25, 60, 400][dice.below(4)];
    for _ in 0..=dice.below(5) {
        line(dice, &mut file, risk);
    }
    if dice.once_in(6) {
        file.pop();
    }
    file.into_bytes()
}

fn line(dice: &mut Dice, out: &mut String, risk: usize) {
    match dice.below(24) {
        0 => out.push_str("# it's a \"comment\" $(x) \\"),
        1 => out.push_str(&dice.pick(r"∅ ␠␠ ␉ \ export␠U export␠Z␠B export␠A␠B=$U")),
        _ => {
            if dice.once_in(6) {
                out.push_str(&dice.pick(r"␠ ␉ ␠␠ \␊ ␠\␊"));
            }
            let export = dice.once_in(3);
            if export {
                out.push_str(&dice.pick(r"export␠ export␠ export␉ export␠␠ export␠\␊"));
            }
            let several = dice.once_in(5);
            for n in 0..if several { 1 + dice.below(3) } else { 1 } {
                if n > 0 {
                    out.push_str(&dice.pick(r"␠ ␠ ␉ ␠\␊ ; ;␠"));
                }
                out.push_str(&if dice.once_in(16) { dice.pick(ODD_NAMES) } else { dice.pick(NAMES) });
                out.push('=');
                for _ in 0..dice.below(5) {
                    piece(dice, out, risk, export);
                }
            }
            if dice.once_in(8) {
                out.push_str(&dice.pick(r"␠ ␉ ␠#␠c ; ␠; ;␠#␠' ␠␠#\"));
            }
        }
    }
    out.push('\n');
}

/// A part of a value outside of quotes.
fn piece(dice: &mut Dice, out: &mut String, risk: usize, export: bool) {
    if dice.once_in(risk) {
        return out.push_str(&dice.pick(RISKY));
    }
    match dice.below(if export { 10 } else { 12 }) {
        0..=3 => out.push_str(&dice.pick(TEXT)),
        4 | 5 => {
            out.push('"');
            for _ in 0..dice.below(5) {
                quoted(dice, out, risk);
            }
            out.push('"');
        }
        6 => {
            out.push('\'');
            for _ in 0..dice.below(3) {
                let part = match dice.below(3) {
                    0 => dice.pick(TEXT),
                    1 => dice.pick(r#"␊ \␊ \ \\ " ␠ ␉ $U ${U ` $( # { \'\'' ~"#),
                    _ => dice.pick(RISKY),
                };
                out.push_str(&part.replace('\'', if part.starts_with('\\') { "'" } else { "" }));
            }
            out.push('\'');
        }
        7 => {
            out.push('\\');
            out.push_str(&dice.pick(r#"␊ ␠ ␉ \ ' " $ ` * ~ # a n { & ; ä = ! ? [ | < ("#));
        }
        8 | 9 => expansion(dice, out, risk, false, 0),
        10 => out.push_str(&dice.pick("* ? [ab]* {a,b} {1..3} a~ /~u # *file { x#y")),
        _ => out.push_str(&dice.pick("$/ $. $: $= $, $% $+ $^")),
    }
}

/// A part of what stands in double quotes.
fn quoted(dice: &mut Dice, out: &mut String, risk: usize) {
    if dice.once_in(risk) {
        return out.push_str(&dice.pick(RISKY));
    }
    match dice.below(8) {
        0..=2 => out.push_str(&dice.pick(TEXT)),
        3 => out.push_str(&dice.pick("␠ ␠␠ ␉ ␊ ' # * ? [a] ~ & | ; ( ) < > { } ! :~ $␠")),
        4 => {
            out.push('\\');
            out.push_str(&dice.pick(r#"$ ` " \ ␊ a n ' } { ! * ␠ ä ~ ("#));
        }
        _ => expansion(dice, out, risk, true, 0),
    }
}

fn expansion(dice: &mut Dice, out: &mut String, risk: usize, within_quotes: bool, depth: usize) {
    let name = if dice.once_in(40) { dice.pick(ODD_NAMES) } else { dice.pick(NAMES) };
    match dice.below(if depth > 3 { 2 } else { 4 }) {
        0 => write!(out, "${name}").unwrap(),
        1 => write!(out, "${{{name}}}").unwrap(),
        _ => {
            let name = if dice.once_in(2) { dice.pick("E Z") } else { name };
            write!(out, "${{{name}:{}", if dice.once_in(3) { '+' } else { '-' }).unwrap();
            for _ in 0..dice.below(4) {
                default_part(dice, out, risk, within_quotes, depth);
            }
            out.push('}');
        }
    }
}

/// A part of the word of `${NAME:-word}`.
fn default_part(dice: &mut Dice, out: &mut String, risk: usize, within_quotes: bool, depth: usize) {
    if dice.once_in(risk) {
        return out.push_str(&dice.pick(RISKY));
    }
    match (dice.below(7), within_quotes) {
        (0..=2, _) => {
            let text = dice.pick(TEXT);
            out.push_str(&text.replace('}', "y"));
        }
        (3, _) => expansion(dice, out, risk, within_quotes, depth + 1),
        (4, _) => {
            out.push('\\');
            out.push_str(&dice.pick(r#"} \ $ ` " a n ' ␠ * ~ { ä"#));
        }
        (5, _) => out.push_str(&dice.pick("␠ ␠␠ ␉ * ? [a] ! $/ a␠b")),
        (_, true) => out.push_str(&dice.pick("# & ; | ( ) < > ␠# = *")),
        (_, false) => {
            let quote = dice.pick(r#"' ""#);
            out.push_str(&quote);
            out.push_str(&dice.pick("x ␠ } a␠b ␊ * ~ # { &; ä ∅ ␠␠"));
            if quote == "\"" {
                for _ in 0..dice.below(3) {
                    quoted(dice, out, risk);
                }
            }
            out.push_str(&quote);
        }
    }
}

/// A changed copy of `file`: bytes that are lost, doubled, swapped, or replaced by one that means something.
fn mutate(dice: &mut Dice, file: &[u8]) -> Vec<u8> {
    const BYTES: &[u8] = b"$$\"\"''\\\\\\\n\n  ~:{}=#;*`(AUE&|<>!\t-/\r\x01\x80\xff\0x";
    let mut file = file.to_vec();
    for _ in 0..=dice.below(2) {
        let at = dice.below(file.len() + 1);
        let byte = BYTES[dice.below(BYTES.len())];
        match dice.below(4) {
            0 if at < file.len() => drop(file.remove(at)),
            1 if at < file.len() => file[at] = byte,
            2 if at + 1 < file.len() => file.swap(at, at + 1),
            _ => file.insert(at, byte),
        }
    }
    file
}

struct Case {
    text: Vec<u8>,
    expected: Environment,
}

fn parse(start: &Start, text: &[u8]) -> Option<Environment> {
    let mut env = Environment::new();
    for (name, value) in start {
        env.set(name.as_bytes(), value);
    }
    apply_sh(&mut env, text).ok()?;
    Some(env)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

#[test]
fn accepted_files_mean_what_shells_make_of_them() {
    let seed = number("LATEBIND_SEED").unwrap_or(20_240_229);
    let files = number("LATEBIND_FILES").unwrap_or(8_000) as usize;
    println!("LATEBIND_SEED={seed} LATEBIND_FILES={files}");
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let starts = starting_environments();
    let mut batches: Vec<Vec<Case>> = starts.iter().map(|_| Vec::new()).collect();

    let mut corpus_accepted = 0;
    for (start, batch) in starts.iter().zip(&mut batches) {
        for text in CORPUS.lines().map(plain) {
            if let Some(expected) = parse(start, text.as_bytes()) {
                batch.push(Case { text: text.into_bytes(), expected });
                corpus_accepted += 1;
            }
        }
    }
    let mut accepted = 0;
    for n in 0..files {
        let which = n % starts.len();
        let text = match batches[which].len() {
            len if len > 0 && dice.once_in(3) => {
                let original = dice.below(len);
                mutate(&mut dice, &batches[which][original].text)
            }
            _ => generate(&mut dice),
        };
        if let Some(expected) = parse(&starts[which], &text) {
            batches[which].push(Case { text, expected });
            accepted += 1;
        }
    }
    let tried = CORPUS.lines().count() * starts.len();
    println!(
        "generated: {accepted} accepted, {} refused; corpus: {corpus_accepted} of {tried} accepted",
        files - accepted
    );

    let different = std::thread::scope(|scope| {
        let workers: Vec<_> =
            starts.iter().zip(&batches).map(|(start, batch)| scope.spawn(|| compare(start, batch))).collect();
        workers.into_iter().map(|w| w.join().unwrap()).collect::<String>()
    });
    assert!(different.is_empty(), "LATEBIND_SEED={seed}\n{different}");
    assert!(accepted * 4 >= files, "only {accepted} of {files} files were accepted: the test has no teeth");
}

/// Runs a batch through every shell and describes the first few differences.
fn compare(start: &Start, batch: &[Case]) -> String {
    let mut shells = Shells::start(start);
    let mut different = String::new();
    for case in batch {
        if let Err(difference) = shells.agree(&case.text, &case.expected)
            && different.len() < 8_000
        {
            writeln!(different, "{difference}").unwrap();
        }
    }
    different
}

/// The format `export`: what a shell prints of an environment is read back as that environment.
#[test]
fn what_export_p_prints_is_read_back_as_it_was() {
    use std::os::unix::ffi::OsStrExt;
    const BYTES: &[u8] = b"ab A1/.-_=:,+@%^ \t\n'\"\\$`!#*?[]{}()<>|&;~\x01\x1b\x7f\xc3\xa4\xe2\x82\xac\xff\x80";
    let seed = number("LATEBIND_SEED").unwrap_or(20_240_229);
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    for (shell, locale) in
        [(&["dash"][..], "C"), (&["busybox", "sh"], "C.UTF-8"), (&["bash"], "C.UTF-8"), (&["bash", "--posix"], "C")]
    {
        for n in 0..60 {
            let mut given = Environment::new();
            for name in ["A", "B_1", "C", "D", "LONG_NAME"] {
                let value: Vec<u8> = (0..dice.below(12)).map(|_| BYTES[dice.below(BYTES.len())]).collect();
                given.set(name.as_bytes(), &value);
            }
            let mut command = std::process::Command::new(shell[0]);
            command.args(&shell[1..]).args(["-c", "export -p"]).env_clear().env("LC_ALL", locale);
            for (name, value) in given.iter() {
                command.env(std::ffi::OsStr::from_bytes(name), std::ffi::OsStr::from_bytes(value));
            }
            let printed = command.output().unwrap().stdout;
            let mut read = Environment::new();
            if let Err(e) = apply_export(&mut read, &printed) {
                panic!("{shell:?} {n}: {e}\n{}", String::from_utf8_lossy(&printed));
            }
            for (name, value) in given.iter() {
                assert_eq!(read.get(name), Some(value), "{shell:?} {n}: {}", printed.escape_ascii());
            }
            assert!(read.get(b"PWD").is_none() && read.get(b"SHLVL").is_none());
        }
    }
}
