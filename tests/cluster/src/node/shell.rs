//! The one way to the node: a command that runs a script there as root.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use latebind_tests::pod::Ran;

use crate::access::CALL_WITHIN;

/// The variable that says how a command is run on the node: `ssh node`, `docker exec -i kind-control-plane`.
pub const VARIABLE: &str = "LATEBIND_NODE_EXEC";

/// A root shell on the node.
pub struct Shell {
    /// What stands before `sh -c ...`; nothing: the node is this machine.
    words: Vec<String>,
    /// Whether the command hands its arguments to another shell, as ssh does.
    quotes: OnceLock<bool>,
}

impl Shell {
    /// The one that `LATEBIND_NODE_EXEC` names, whose words are separated by blanks; `None` where it is not set.
    pub fn from_environment() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok().filter(|text| !text.trim().is_empty())?;
        Some(Self::of(&text))
    }

    /// This machine's own.
    pub fn here() -> Self {
        Self::of("")
    }

    fn of(text: &str) -> Self {
        Self { words: text.split_whitespace().map(str::to_owned).collect(), quotes: OnceLock::new() }
    }

    /// Whether scripts run on this machine, with nothing in between.
    pub fn is_here(&self) -> bool {
        self.words.is_empty()
    }

    /// Runs a script of sh(1) on the node, with `$1`, `$2`, ... and its standard input, to its end, whatever that is.
    pub fn call(&self, script: &str, arguments: &[&str], input: Vec<u8>) -> Ran {
        self.call_within(script, arguments, input, CALL_WITHIN)
    }

    /// The same with another limit.
    pub fn call_within(&self, script: &str, arguments: &[&str], input: Vec<u8>, limit: Duration) -> Ran {
        let quotes = *self.quotes.get_or_init(|| self.find_out());
        ran(self.run(quotes, script, arguments, input, limit))
    }

    /// Runs a script that has to end well; returns what it wrote.
    #[track_caller]
    pub fn ask(&self, script: &str, arguments: &[&str]) -> String {
        self.ask_with_input(script, arguments, Vec::new())
    }

    /// The same with something on standard input.
    #[track_caller]
    pub fn ask_with_input(&self, script: &str, arguments: &[&str], input: Vec<u8>) -> String {
        let ran = self.call(script, arguments, input);
        assert_eq!(ran.code, Some(0), "on the node: {script}: {}{}", ran.out(), ran.err());
        ran.out()
    }

    /// Whether arguments need quotes: ssh joins them with blanks, docker hands them on one by one.
    fn find_out(&self) -> bool {
        let answer = |quotes| {
            let run = self.run(quotes, "printf '%s\\n' \"$1\"; cat; id -u", &["a  b"], b"c\n".to_vec(), CALL_WITHIN);
            ran(run)
        };
        let plain = answer(false);
        let wanted = "a  b\nc\n0\n";
        if plain.out() == wanted {
            return false;
        }
        let quoted = answer(true);
        assert_eq!(
            quoted.out(),
            wanted,
            "{VARIABLE}=\"{}\" has to run commands as root and pass standard input on (docker exec -i): {}{}",
            self.words.join(" "),
            plain.err(),
            quoted.err()
        );
        true
    }

    fn run(&self, quotes: bool, script: &str, arguments: &[&str], input: Vec<u8>, limit: Duration) -> Output {
        // timeout(1), so that the end is seen at once, and not at the next look.
        let mut command = Command::new("timeout");
        command.arg("--kill-after=5").arg(limit.as_secs().to_string()).args(&self.words);
        let rest = ["sh", "-c", script, "sh"].into_iter().chain(arguments.iter().copied());
        command.args(rest.map(|word| if quotes { quoted(word) } else { word.to_owned() }));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("timeout of coreutils");
        let mut to = child.stdin.take().unwrap();
        let writer = thread::spawn(move || to.write_all(&input));
        let output = child.wait_with_output().unwrap();
        // A script need not read its input.
        let _ = writer.join();
        output
    }
}

fn ran(output: Output) -> Ran {
    Ran { code: output.status.code(), signal: None, stdout: output.stdout, stderr: output.stderr }
}

/// A word that a shell takes for what it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "printf '%s|' \"$@\"; cat";
    const ARGUMENTS: [&str; 3] = ["it's \"one\"", "", "a  $b"];

    /// As docker does it, as ssh does it, and without anything in between.
    #[test]
    fn a_script_gets_its_arguments_and_its_input_by_any_command() {
        // What ssh does with its arguments.
        let like_ssh = std::env::temp_dir().join(latebind_tests::pod::unique("like-ssh"));
        std::fs::write(&like_ssh, "#!/bin/sh\nexec sh -c \"$*\"\n").unwrap();
        let ssh = format!("sh {}", like_ssh.display());
        for command in ["", "env -i PATH=/usr/bin:/bin", ssh.as_str()] {
            let ran = Shell::of(command).call(SCRIPT, &ARGUMENTS, b"in".to_vec());
            assert_eq!((ran.code, ran.out().as_str()), (Some(0), "it's \"one\"||a  $b|in"), "{command}: {}", ran.err());
        }
        std::fs::remove_file(&like_ssh).unwrap();
    }

    #[test]
    #[should_panic(expected = "has to run commands as root and pass standard input on")]
    fn a_command_that_takes_the_input_away_is_refused() {
        Shell::of("false").ask("true", &[]);
    }
}
