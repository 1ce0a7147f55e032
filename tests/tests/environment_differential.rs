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

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use glue::contract::environment::{Environment, apply_sh};

/// What a shell is called in messages, and how it is started. Each has to be there: a missing one fails the test.
const SHELLS: [(&str, &[&str]); 4] = [
    ("dash", &["dash"]),
    ("bash", &["bash"]),
    ("bash --posix", &["bash", "--posix"]),
    ("busybox sh", &["busybox", "sh"]),
];
const ENV: &str = "/usr/bin/env";
/// Variables that shells set by themselves; the parser refuses to set or read them.
const SHELLS_OWN: [&[u8]; 4] = [b"_", b"SHLVL", b"PWD", b"OLDPWD"];
/// Between the outputs of two files: entries of `env -0` are never empty, so two NUL bytes cannot stand in one.
const END: &[u8] = b"\0\0end ";

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the files start from: values that hurt when they are split, globbed, expanded or re-read.
fn starting_environments() -> Vec<Vec<(&'static str, &'static [u8])>> {
    let common: [(&str, &[u8]); 12] = [
        ("PATH", b"/usr/bin:/bin"),
        ("HOME", b"/home/of me"),
        ("U", b"usual"),
        ("E", b""),
        ("SP", b"  two  words  "),
        ("GL", b"a* [ab]* ?"),
        ("BS", b"back\\slash\\"),
        ("QU", b"it's \"so\" `no` $U ${U}"),
        ("NL", b"\nline\n\nline\n"),
        ("TI", b"~:~/x"),
        ("UT", "\u{e4}\u{20ac}\u{1f600}\u{c1}\u{a0}".as_bytes()),
        ("a", b"lower"),
    ];
    let with = |more: &[(&'static str, &'static [u8])]| [&common[..], more].concat();
    vec![
        with(&[("LC_ALL", b"C")]),
        with(&[("LC_ALL", b"C.UTF-8"), ("HOSTNAME", b"h"), ("TERM", b""), ("SHELL", b"/bin/x"), ("IFS", b"u:/")]),
        with(&[
            ("LANG", b"C"),
            ("HI", b"\x81\x82\x83\x84\x88\xff\xfe\xc3"),
            ("CT", b"\x01\x01\x7f\x02\x1b\x0d"),
            ("GLOBIGNORE", b"*"),
        ]),
        with(&[
            ("LANG", b"C.UTF-8"),
            ("HI", b"\x81\x82\x83\x84\x88\xff\xfe\xc3"),
            ("CT", b"\x7f\x01\x01\\\x01"),
            ("MAIL", b"/m"),
        ]),
    ]
}

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
            write!(out, "${{{name}:-").unwrap();
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
    expected: Entries,
}

/// Where a scratch directory has files that a pattern could find.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let now = glue::contract::time::wall().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let path = std::env::temp_dir().join(format!("latebind-environment-{}-{now}", std::process::id()));
        fs::create_dir(&path).unwrap();
        for name in ["a", "b", "x", "afile", "bfile", "A=a", "A=b", "B=x", "U=usual", "a b", "back", "C=*"] {
            fs::write(path.join(name), "").unwrap();
        }
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Has `shell` source every case in a subshell of its own, and gives back what it printed for each, with its status.
fn source(
    shell: &[&str],
    start: &[(&str, &[u8])],
    scratch: &Path,
    batch: usize,
    count: usize,
) -> Vec<(Vec<u8>, String)> {
    let mut script = String::new();
    for n in 0..count {
        writeln!(
            script,
            "( set -a; . ./{batch}.{n} && printf '\\0\\0' && exec {ENV} -0 ) 2>&1; printf '\\0\\0end %s\\0\\0' $?"
        )
        .unwrap();
    }
    let name = format!("script.{batch}.{}", shell.concat());
    fs::write(scratch.join(&name), script).unwrap();
    let (program, arguments) = shell.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).arg(&name).current_dir(scratch).stdin(Stdio::null()).env_clear();
    for (name, value) in start {
        command.env(name, OsStr::from_bytes(value));
    }
    let output = command.output().unwrap_or_else(|e| panic!("{program}: {e}; this test needs it, please install it"));
    assert!(output.stderr.is_empty(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    let mut rest = output.stdout.as_slice();
    let mut results = Vec::new();
    while let Some(end) = rest.windows(END.len()).position(|w| w == END) {
        let (printed, after) = (&rest[..end], &rest[end + END.len()..]);
        let status = after.iter().position(|b| *b == 0).unwrap();
        results.push((printed.to_vec(), String::from_utf8_lossy(&after[..status]).into_owned()));
        rest = &after[status + 2..];
    }
    assert_eq!(results.len(), count, "{program} ended before its script did");
    results
}

fn entries(printed: &[u8]) -> Option<Entries> {
    let mut found = Entries::new();
    for entry in printed.split(|b| *b == 0).filter(|e| !e.is_empty()) {
        let equals = entry.iter().position(|b| *b == b'=')?;
        if !SHELLS_OWN.contains(&&entry[..equals]) {
            found.insert(entry[..equals].to_vec(), entry[equals + 1..].to_vec());
        }
    }
    Some(found)
}

/// Whether `said`, on standard error, is nothing, or nothing but bash's notice that a locale is not installed: it goes on
/// as if it had not said so.
fn is_harmless(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    let mut messages = said.lines().filter(|line| line.starts_with("./"));
    said.is_empty() || (said.starts_with("./") && messages.all(|m| m.contains(": warning: setlocale: ")))
}

fn parse(start: &[(&str, &[u8])], text: &[u8]) -> Option<Entries> {
    let mut env = Environment::new();
    for (name, value) in start {
        env.set(name.as_bytes(), value);
    }
    apply_sh(&mut env, text).ok()?;
    Some(env.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect())
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
    assert!(Path::new(ENV).exists(), "{ENV}: missing; this test needs it, please install coreutils");
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

    let scratch = Scratch::new();
    for (n, batch) in batches.iter().enumerate() {
        for (m, case) in batch.iter().enumerate() {
            fs::write(scratch.0.join(format!("{n}.{m}")), &case.text).unwrap();
        }
    }
    let different = std::thread::scope(|scope| {
        let (starts, batches, scratch) = (&starts, &batches, &scratch);
        let workers: Vec<_> = [0, 1]
            .into_iter()
            .map(|half| {
                scope
                    .spawn(move || compare(&starts[half * 2..], &batches[half * 2..half * 2 + 2], half * 2, &scratch.0))
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).collect::<String>()
    });
    assert!(different.is_empty(), "LATEBIND_SEED={seed}\n{different}");
    assert!(accepted * 4 >= files, "only {accepted} of {files} files were accepted: the test has no teeth");
}

/// Runs the batches through every shell and describes the first few differences.
fn compare(starts: &[Vec<(&str, &[u8])>], batches: &[Vec<Case>], first: usize, scratch: &Path) -> String {
    let mut different = String::new();
    for (n, (start, batch)) in starts.iter().zip(batches).enumerate() {
        for (shell, command) in SHELLS {
            let results = source(command, start, scratch, first + n, batch.len());
            for (case, (printed, status)) in batch.iter().zip(results) {
                let middle = printed.windows(2).position(|w| w == b"\0\0").unwrap_or(printed.len());
                let mut found = entries(&printed[middle..]);
                let mut expected = case.expected.clone();
                // Shells start with an IFS of their own and pass that on.
                if expected.remove(&b"IFS"[..]).is_some() {
                    found.as_mut().map(|f| f.remove(&b"IFS"[..]));
                }
                if status == "0" && is_harmless(&printed[..middle]) && found.as_ref() == Some(&expected) {
                    continue;
                }
                if different.len() < 8_000 {
                    let wanted = expected
                        .iter()
                        .filter(|(name, value)| found.as_ref().and_then(|f| f.get(*name)) != Some(value));
                    let wanted: Vec<_> =
                        wanted.map(|(n, v)| format!("{}={}", n.escape_ascii(), v.escape_ascii())).collect();
                    writeln!(
                        different,
                        "{shell}, status {status}, start {}: {}\n  wanted {wanted:?}\n  printed {}",
                        first + n,
                        case.text.escape_ascii(),
                        printed.escape_ascii()
                    )
                    .unwrap();
                }
            }
        }
    }
    different
}
