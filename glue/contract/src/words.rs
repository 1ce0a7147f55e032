//! The words for failures that a start's processes report in numbers. The watcher says them; glue, which runs as root,
//! has none of this.
//!
//! The numbers come from the payload's UID: nobody believes that they are true, and those that cannot be are refused.

use super::bytes::ByteString;
use super::command::FIELDS;
use super::environment::{Problem, SyntaxError};
use super::exec_reason::{DEFAULT_PATH, OWN_MACHINE, Reason, SHEBANG_MAX, STRING_MAX, candidates};
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
    /// The job's own variables that are longer than the kernel takes.
    pub long_variables: &'a [&'a str],
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
            long_variables: &long_variables(
                job.env.0.iter().map(|(name, value)| (name.as_str(), value.as_bytes().len())),
            ),
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

/// Of variables with the lengths of their values, those that are longer than the kernel takes.
pub fn long_variables<'a>(variables: impl Iterator<Item = (&'a str, usize)>) -> Vec<&'a str> {
    let size = |name: &str, value: usize| name.len().saturating_add(value).saturating_add("=\0".len());
    variables.filter(|(name, value)| size(name, *value) > STRING_MAX).map(|(name, _)| name).collect()
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
        What::Exec => exec(about, about.path(failure), numbers, errno)?,
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
                 binary (run `glue install`), and fs.suid_dumpable of the node may not be 1 (0 and 2 are right)"
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
        What::Terminal => "a terminal could not be made in the container, or not be handed to the client",
    }
}

/// The sentence on what was found. `None` where the numbers cannot be true.
fn exec(about: &About<'_>, path: Option<&str>, numbers: &[u32; NUMBERS], errno: i32) -> Option<String> {
    let [at, reason, a, b, c] = *numbers;
    let reason = Reason::of_number(reason)?;
    let program = about.program;
    if reason == Reason::TooLong {
        return Some(too_long(about, a, b as usize, c));
    }
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
        Reason::NoExecuteBit => {
            format!("has no execute bit (mode {mode:o}): chmod +x it {}", place(program, about.cwd))
        }
        Reason::Denied => format!("may not be executed by this UID (mode {mode:o}, owner {b}:{c})"),
        Reason::DeniedReadable => format!(
            "may not be executed by this UID (mode {mode:o}, owner {b}:{c}), or its interpreter may not, or its file \
             system is mounted noexec"
        ),
        Reason::DosInterpreter => {
            "its lines end in CR LF, and so does its interpreter's name: save it with LF alone".into()
        }
        Reason::NoInterpreter => "the interpreter that its first line names does not exist in the image".into(),
        Reason::BadInterpreter if errno == EPERM => {
            format!("the interpreter that its first line names {}", CAPABILITIES)
        }
        Reason::BadInterpreter => format!("the interpreter that its first line names cannot be executed: {error}"),
        Reason::OtherMachine => {
            format!("built for {}, this node is {}", machine_name(a), machine_name(u32::from(OWN_MACHINE)))
        }
        Reason::NoLoader => "its loader does not exist in the image: it was linked for another system".into(),
        Reason::BadElf if errno == EPERM => CAPABILITIES.into(),
        Reason::BadElf => format!("this ELF file cannot be executed: {error}"),
        Reason::Empty => "is empty".into(),
        Reason::NoShebang => {
            "has no shebang line: no shell is assumed here, so put one such as #!/bin/sh at its top".into()
        }
        Reason::NotAProgram => "is not a program that this node knows".into(),
        Reason::ByteOrderMark => {
            "begins with a byte order mark (EF BB BF), so the kernel does not see its first line: save it as UTF-8 \
             without one"
                .into()
        }
        Reason::LongShebang => format!(
            "its first line is longer than the {SHEBANG_MAX} bytes that the kernel reads of it: use a shorter path of \
             the interpreter, such as a link, or #!/usr/bin/env"
        ),
        Reason::TooLong => String::new(),
    };
    Some(format!("{file}: {why}"))
}

/// execve(2): EPERM, where no set-user-ID program is traced.
const EPERM: i32 = 1;
const CAPABILITIES: &str = "has file capabilities (setcap), which no job can get, so the kernel does not execute it: \
     take them from the file with setcap -r, or copy it, which does not copy them";

/// Where the file of a program is that has no execute bit.
fn place(program: &str, cwd: &str) -> &'static str {
    let in_data = |path: &str| path.starts_with("/shared/slot/");
    match program.contains('/') {
        true if in_data(program) => "in the job's directory, or before the job: inputs keep theirs",
        true if !program.starts_with('/') && (cwd == "work/" || in_data(cwd)) => {
            "among the job's inputs, which keep it"
        }
        _ => "in the image",
    }
}

/// What is longer than the kernel takes: the `argument`th argument, a variable whose name has so many bytes, or all.
fn too_long(about: &About<'_>, argument: u32, name: usize, bytes: u32) -> String {
    let most = format!("{bytes} bytes with its NUL, and the kernel takes {STRING_MAX} for one argument or variable");
    let advice = "put it into a file";
    if argument > 0 {
        return format!("argument {} of argv has {most}: {advice}", argument.saturating_sub(1));
    }
    if name == 0 {
        return format!(
            "arguments and variables have {bytes} bytes in all, more than the kernel takes (a quarter of the stack's \
             limit, execve(2)): {advice}"
        );
    }
    match about.long_variables.iter().find(|long| long.len() == name) {
        Some(own) => format!("the variable {own} has {most}: {advice}"),
        None => format!("a variable of the image or of an environment file, with a name of {name} bytes, has {most}"),
    }
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
