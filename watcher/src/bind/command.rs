//! What an image runs by itself: its ENTRYPOINT and CMD, for jobs that leave the program to it.

use serde::{Deserialize, Serialize};

use super::{Failure, Reason};
use crate::text::printable;

/// Most arguments of ENTRYPOINT and CMD together.
const WORDS_MAX: usize = 1024;
/// Most bytes of all of them, and of WORKDIR.
const BYTES_MAX: usize = 64 << 10;

/// The part of an image's configuration that says what is run in it, and where. An image's text: it decides nothing but
/// what the payload executes, as the payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageCommand {
    /// ENTRYPOINT: program and first arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// CMD: further arguments, or program and arguments where there is no ENTRYPOINT.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// WORKDIR; empty where there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workdir: String,
}

/// What engines and registries say of it: part of an image's configuration ("config" of the OCI Image Format
/// Specification).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Configured {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

impl Configured {
    /// What the image runs by itself; `None` where that is larger than any that is used.
    pub fn command(self) -> Option<ImageCommand> {
        let Self { entrypoint, cmd, working_dir } = self;
        ImageCommand::new(entrypoint.unwrap_or_default(), cmd.unwrap_or_default(), working_dir.unwrap_or_default())
    }
}

impl ImageCommand {
    /// The command of a configuration, as engines and registries have it. `None`: it is larger than any that is used.
    pub fn new(entrypoint: Vec<String>, cmd: Vec<String>, workdir: String) -> Option<Self> {
        let words = entrypoint.len() + cmd.len();
        let bytes: usize = entrypoint.iter().chain(&cmd).map(String::len).sum::<usize>() + workdir.len();
        // docker takes one empty word for none.
        let is_none = entrypoint.iter().all(String::is_empty);
        let entrypoint = if is_none { Vec::new() } else { entrypoint };
        (words <= WORDS_MAX && bytes <= BYTES_MAX).then_some(Self { entrypoint, cmd, workdir })
    }

    /// Why a job cannot run the command of an image for which [`ImageCommand::new`] says `None`.
    pub fn too_large(image: &str) -> Failure {
        Failure::hold(
            Reason::InvalidJob,
            format!(
                "the ENTRYPOINT and CMD of {} have more than {WORDS_MAX} words or {BYTES_MAX} bytes: name the program \
                 in argv",
                printable(image)
            ),
        )
    }

    /// Why a job without a program cannot run where nobody says what the image runs.
    pub fn unknown(image: &str) -> Failure {
        Failure::hold(
            Reason::InvalidJob,
            format!(
                "no program is given, and this pilot cannot tell what {} runs by itself: name the program in argv; or \
                 whoever runs the pilot can have it ask the registry (--ask-registry)",
                printable(image)
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(n: usize, word: &str) -> Vec<String> {
        vec![word.to_owned(); n]
    }

    #[test]
    fn a_command_has_a_bound() {
        let of = |entrypoint, cmd, workdir: &str| ImageCommand::new(entrypoint, cmd, workdir.to_owned()).is_some();
        assert!(of(words(1000, "a"), words(24, "a"), "/"));
        assert!(!of(words(1000, "a"), words(25, "a"), "/"));
        let half = "x".repeat(BYTES_MAX / 2);
        assert!(of(words(1, &half), words(1, &half), ""));
        assert!(!of(words(1, &half), words(1, &half), "/"));
    }

    #[test]
    fn an_empty_entrypoint_is_none() {
        let command = ImageCommand::new(words(1, ""), words(2, "a"), String::new());
        assert_eq!(command.map(|c| (c.entrypoint.len(), c.cmd.len())), Some((0, 2)));
    }
}
