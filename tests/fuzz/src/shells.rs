//! Real shells, to hold the parser of environment files against: each accepted file means what each of them makes of
//! it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use latebind_contract::environment::Environment;

/// What a shell is called in messages, and how it is started. Each has to be there: a missing one is a failure.
const SHELLS: [(&str, &[&str]); 4] = [
    ("dash", &["dash"]),
    ("bash", &["bash"]),
    ("bash --posix", &["bash", "--posix"]),
    ("busybox sh", &["busybox", "sh"]),
];
/// Variables that shells set by themselves; the parser refuses to set or read them.
const SHELLS_OWN: [&[u8]; 4] = [b"_", b"SHLVL", b"PWD", b"OLDPWD"];
/// Behind what one file has printed: entries of `env -0` are never empty, so two NUL bytes cannot be in one.
const END: &[u8] = b"\0\0end ";
/// Reads the file `case` in a shell of its own, prints its environment, and says how that ended.
const SCRIPT: &str =
    "( set -a; . ./case && printf '\\0\\0' && exec /usr/bin/env -0 ) </dev/null 2>&1; printf '\\0\\0end %s\\0\\0' $?\n";
/// Files that a pattern could find.
const FILES: [&str; 12] = ["a", "b", "x", "afile", "bfile", "A=a", "A=b", "B=x", "U=usual", "a b", "back", "C=*"];

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;
/// Names and values of an environment to start from.
pub type Start = Vec<(&'static str, &'static [u8])>;

/// What files start from: values that hurt when they are split, globbed, expanded or read again.
pub fn starting_environments() -> Vec<Start> {
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

/// One shell of each kind, all with the same environment. They read one file after the other.
pub struct Shells {
    dir: PathBuf,
    shells: Vec<Shell>,
}

struct Shell {
    name: &'static str,
    child: Child,
}

impl Shells {
    /// Starts the shells in a directory of their own.
    pub fn start(env: &Start) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("latebind-shells-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        for name in FILES {
            fs::write(dir.join(name), "").unwrap();
        }
        let shells = SHELLS.iter().map(|(name, command)| Shell { name, child: spawn(command, env, &dir) }).collect();
        Self { dir, shells }
    }

    /// Holds what each shell makes of `text` against `env`. An error says which one differs, and in what.
    pub fn agree(&mut self, text: &[u8], env: &Environment) -> Result<(), String> {
        fs::write(self.dir.join("case"), text).unwrap();
        let mut expected: Entries = env.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        // Shells start with an IFS of their own and pass that on.
        expected.remove(&b"IFS"[..]);
        for shell in &mut self.shells {
            shell.child.stdin.as_mut().unwrap().write_all(SCRIPT.as_bytes()).unwrap();
        }
        // All of them: what is not read now would be taken for the next file's.
        let answers: Vec<_> = self.shells.iter_mut().map(|shell| (shell.name, shell.answer())).collect();
        for (shell, (printed, status)) in answers {
            let middle = printed.windows(2).position(|w| w == b"\0\0").unwrap_or(printed.len());
            let mut found = entries(&printed[middle..]);
            found.as_mut().map(|f| f.remove(&b"IFS"[..]));
            if status != "0" || !is_harmless(&printed[..middle]) || found.as_ref() != Some(&expected) {
                let wanted = expected.iter().filter(|(name, v)| found.as_ref().and_then(|f| f.get(*name)) != Some(v));
                let wanted: Vec<_> =
                    wanted.map(|(n, v)| format!("{}={}", n.escape_ascii(), v.escape_ascii())).collect();
                return Err(format!(
                    "{shell}, status {status}: {}\n  wanted {wanted:?}\n  printed {}",
                    text.escape_ascii(),
                    printed.escape_ascii()
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Shells {
    fn drop(&mut self) {
        for shell in &mut self.shells {
            drop(shell.child.stdin.take()); // the end of its script
            let _ = shell.child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn spawn(command: &[&str], env: &Start, dir: &Path) -> Child {
    let (program, arguments) = command.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
    for (name, value) in env {
        command.env(name, OsStr::from_bytes(value));
    }
    command.spawn().unwrap_or_else(|e| panic!("{program}: {e}; it is needed here, please install it"))
}

impl Shell {
    /// What it printed for one file, and the exit status.
    fn answer(&mut self) -> (Vec<u8>, String) {
        let stdout = self.child.stdout.as_mut().unwrap();
        let (mut printed, mut part) = (Vec::new(), [0; 16_384]);
        loop {
            // The status behind the mark has an end of its own.
            if printed.ends_with(b"\0\0")
                && let Some(at) = printed.windows(END.len()).rposition(|w| w == END)
                && let Some(status) = printed[at + END.len()..].strip_suffix(b"\0\0")
            {
                let status = String::from_utf8_lossy(status).into_owned();
                printed.truncate(at);
                return (printed, status);
            }
            let read = match stdout.read(&mut part) {
                // libFuzzer looks at its clock by a signal.
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                read => read.unwrap(),
            };
            assert_ne!(read, 0, "{} ended before its script did: {}", self.name, printed.escape_ascii());
            printed.extend_from_slice(&part[..read]);
        }
    }
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

/// Whether `said`, on standard error, is nothing, or nothing but bash's notice that a locale is not installed: it goes
/// on as if it had not said so.
fn is_harmless(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    let mut messages = said.lines().filter(|line| line.starts_with("./"));
    said.is_empty() || (said.starts_with("./") && messages.all(|m| m.contains(": warning: setlocale: ")))
}
