//! The words for failures that a start's processes report in numbers. The watcher says them; glue, which runs as root,
//! has none of this.
//!
//! The numbers come from the payload's UID: nobody believes that they are true, and those that cannot be are refused.

use super::bytes::ByteString;
use super::command::FIELDS;
use super::environment::{Problem, SyntaxError};
use super::exec_reason::{DEFAULT_PATH, OWN_MACHINE, Reason, candidates};
use super::record::Failure;
use super::record::NUMBERS;
use super::report::What;
use super::startup::{EnvMode, Startup};
use super::text::shown;

/// Longest message of a failure, in characters: far below what a report may have.
const MESSAGE_MAX: usize = 2000;

/// What of a job is named in messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// The program.
    pub program: &'a str,
    /// PATH of the job itself, where it has one.
    pub path: Option<&'a str>,
    /// Whether it inherits the container's environment.
    pub inherits: bool,
    /// The working directory.
    pub cwd: &'a str,
    /// Names of the environment files.
    pub env_files: &'a [&'a str],
    /// Names of the resource limits.
    pub limits: &'a [&'a str],
    /// The files of the standard streams beneath `data/`, where these are files.
    pub streams: [Option<&'a str>; 3],
}

impl About<'_> {
    /// Calls `with` with what is to be said of this job.
    pub fn of<T>(job: &Startup, with: impl FnOnce(&About<'_>) -> T) -> T {
        let env_files: Vec<&str> = job.env_files.iter().map(|file| file.name.as_str()).collect();
        let limits: Vec<&str> = job.rlimits.0.iter().map(|(name, _)| name.as_str()).collect();
        let path = job.env.0.iter().rfind(|(name, _)| name == "PATH").map(|(_, path)| path.lossy());
        with(&About {
            program: &job.argv.first().map(ByteString::lossy).unwrap_or_default(),
            path: path.as_deref(),
            inherits: job.env_mode == EnvMode::Inherit,
            cwd: &job.cwd.as_ref().map_or("work/".into(), ByteString::lossy),
            env_files: &env_files,
            limits: &limits,
            streams: [&job.stdin, &job.stdout, &job.stderr].map(|stream| stream.as_ref()?.file.as_deref()),
        })
    }

    /// Where the program was looked for. `None` where an environment file may have said.
    fn path<'b>(&'b self, failure: &'b Failure) -> Option<&'b str> {
        let container = || if self.inherits { failure.path.as_deref() } else { None };
        let path = match self.path {
            Some(own) => own,
            None if self.env_files.is_empty() => container().unwrap_or_default(),
            None => return None,
        };
        Some(if path.is_empty() { DEFAULT_PATH } else { path })
    }
}

/// What a failure says: glue's own message, or the words for what was reported.
pub fn message(failure: &Failure, about: &About<'_>) -> String {
    let Some((what, numbers)) = &failure.reported else { return shown(&failure.message, MESSAGE_MAX) };
    let said = What::of_number(u32::from(*what)).and_then(|what| reported(what, failure, numbers, about));
    shown(
        &said.unwrap_or_else(|| String::from("the start failed, and what it reports of that makes no sense")),
        MESSAGE_MAX,
    )
}

fn reported(what: What, failure: &Failure, numbers: &[u32; NUMBERS], about: &About<'_>) -> Option<String> {
    let errno = failure.errno;
    let [index, line, column, problem, byte] = *numbers;
    let words = words(what);
    let subject = subject(what, index as usize, about)?;
    let more = match what {
        What::Child => return None,
        What::Exec => exec(about.program, about.path(failure), numbers, errno)?,
        What::EnvSyntax => SyntaxError {
            line: line as usize,
            column: column as usize,
            problem: Problem::of_number(problem)?,
            byte: u8::try_from(byte).ok()?,
        }
        .to_string(),
        _ if errno == 0 => String::new(),
        _ => format!(": {}", std::io::Error::from_raw_os_error(errno)),
    };
    Some(format!("{subject}{words}{more}"))
}

/// What a failure is about. `None` where the job has no such thing.
fn subject(what: What, index: usize, about: &About<'_>) -> Option<String> {
    let stream = || ["stdin", "stdout", "stderr"].get(index);
    Some(match what {
        What::EnvFile | What::EnvSyntax => (*about.env_files.get(index)?).to_owned(),
        What::StreamFile | What::StreamKind => {
            format!("{}: {} beneath data/", stream()?, about.streams.get(index).copied().flatten()?)
        }
        What::Null | What::NullKind => format!("{}: /dev/null", stream()?),
        What::Directory => format!("the working directory {}", about.cwd),
        What::Limit => format!("the limit {}", about.limits.get(index)?),
        What::Command => format!("{} of the job's part of the startup file", FIELDS.get(index)?),
        _ => String::new(),
    })
}

/// What to say of a failure, behind what it is about.
fn words(what: What) -> &'static str {
    match what {
        What::Child => "",
        What::Signals => "signals could not be reset",
        What::Descriptors => "descriptors could not be handed on or closed",
        What::Groups => "supplementary groups could not be set",
        What::Gid => "the payload GID could not be set",
        What::Bounding => "the bounding set could not be emptied",
        What::Uid => "the payload UID could not be set: the container needs SETUID and the UID must be mapped",
        What::Capabilities => "the capabilities could not be dropped",
        What::NoNewPrivs => "no_new_privs could not be set",
        What::Filter => "the filter of system calls could not be installed; `glue run --no-seccomp` does without it",
        What::ReadBack => "what was read back after the drop is not what was set: nothing was run",
        What::StageTwo => "stage two could not be started",
        What::Dumpable => {
            "stage two could be traced by others of its UID, so it ran nothing: only root may be able to read glue's \
                 binary; run `glue install`"
        }
        What::Job => "the job's part of the startup file could not be read",
        What::Command => " is refused by stage two",
        What::EnvFile => " could not be read",
        What::EnvSyntax => ": ",
        What::StreamFile | What::Null => " cannot be opened",
        What::StreamKind => " is not a regular file",
        What::NullKind => " is not the null device",
        What::Directory => " cannot be entered by the payload's UID",
        What::Arguments => "arguments and environment could not be prepared",
        What::Fork => "no process could be made for the job (pids limit?)",
        What::Session => "a session of the job's own could not be made",
        What::Limit => " cannot be set for the payload's UID",
        What::Exec => "",
    }
}

/// The sentence on what was found. `None` where the numbers cannot be true.
fn exec(program: &str, path: Option<&str>, numbers: &[u32; NUMBERS], errno: i32) -> Option<String> {
    let [at, reason, a, b, c] = *numbers;
    let reason = Reason::of_number(reason)?;
    if reason == Reason::Missing {
        return Some(match path {
            _ if program.contains('/') => format!("{program}: no such file in the image"),
            Some(path) => format!("{program}: not found in PATH ({path})"),
            None => format!("{program}: not found in PATH, which the image or an environment file may have set"),
        });
    }
    let file = match path {
        _ if program.contains('/') => program.to_owned(),
        Some(path) => {
            String::from_utf8_lossy(&candidates(program.as_bytes(), path.as_bytes()).nth(at as usize)?.concat())
                .into_owned()
        }
        None => format!("{program} (entry {} of PATH)", at.saturating_add(1)),
    };
    let error = std::io::Error::from_raw_os_error(errno);
    let mode = a & 0o7777;
    let why = match reason {
        Reason::Missing | Reason::Unknown => format!("cannot be executed: {error}"),
        Reason::Directory => "is a directory, not a program".into(),
        Reason::NotRegular => "is not a regular file".into(),
        Reason::NoExecuteBit => format!("has no execute bit (mode {mode:o}): chmod +x it in the image"),
        Reason::Denied => format!("may not be executed by this UID (mode {mode:o}, owner {b}:{c})"),
        Reason::DeniedReadable => format!(
            "may not be executed by this UID (mode {mode:o}, owner {b}:{c}), or its interpreter may not, or its file \
             system is mounted noexec"
        ),
        Reason::DosInterpreter => {
            "its lines end in CR LF, and so does its interpreter's name: save it with LF alone".into()
        }
        Reason::NoInterpreter => "the interpreter that its first line names does not exist in the image".into(),
        Reason::BadInterpreter => format!("the interpreter that its first line names cannot be executed: {error}"),
        Reason::OtherMachine => {
            format!("built for {}, this node is {}", machine_name(a), machine_name(u32::from(OWN_MACHINE)))
        }
        Reason::NoLoader => "its loader does not exist in the image: it was linked for another system".into(),
        Reason::BadElf => format!("this ELF file cannot be executed: {error}"),
        Reason::Empty => "is empty".into(),
        Reason::NoShebang => {
            "has no shebang line: no shell is assumed here, so put one such as #!/bin/sh at its top".into()
        }
        Reason::NotAProgram => "is not a program that this node knows".into(),
    };
    Some(format!("{file}: {why}"))
}

fn machine_name(machine: u32) -> String {
    let name = match machine {
        3 => "i386",
        8 => "mips",
        20 => "ppc",
        21 => "ppc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        258 => "loongarch64",
        n => return format!("machine {n}"),
    };
    name.to_owned()
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
