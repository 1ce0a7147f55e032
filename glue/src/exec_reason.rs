//! The words for why a program could not be executed. Glue does not believe that the numbers from
//! [`crate::exec_failure`] are true, only that they do no harm.
#![forbid(unsafe_code)]

use std::io;

use latebind_contract::numbered;
use latebind_contract::startup::{EnvMode, Startup};
use latebind_linux::sys;

/// How many numbers [`crate::report`] carries; what they mean depends on what is reported.
pub const NUMBERS: usize = 5;

/// Machine of this binary, so of this node (`e_machine` of elf(5)).
pub const OWN_MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

/// Where programs are looked for when the job's environment has no PATH; what container engines use.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

numbered! {
    /// What is wrong with the program.
    Reason {
        /// Nothing has the name of any candidate.
        Missing,
        /// It is there, and says nothing of why.
        Unknown,
        /// A directory.
        Directory,
        /// A device, socket or FIFO.
        NotRegular,
        /// Nobody may execute it; its mode.
        NoExecuteBit,
        /// This UID may neither execute nor read it; mode, owner, group.
        Denied,
        /// This UID may read it; mode, owner, group.
        DeniedReadable,
        /// The interpreter's name ends in CR.
        DosInterpreter,
        /// The interpreter is not there.
        NoInterpreter,
        /// The interpreter cannot be executed.
        BadInterpreter,
        /// Built for another machine; its number in elf(5).
        OtherMachine,
        /// Its loader is not there.
        NoLoader,
        /// Another error of an ELF file.
        BadElf,
        /// An empty file.
        Empty,
        /// A text without an interpreter.
        NoShebang,
        /// Other bytes.
        NotAProgram,
    }
}

/// The paths to try for `program`: itself where it has a slash, else one in each entry of `path`, as execvp(3) does.
pub fn candidates<'a>(program: &'a str, path: &'a [u8]) -> impl Iterator<Item = [&'a [u8]; 3]> {
    let bare = !program.contains('/');
    let itself = (!bare).then_some([&b""[..], b"", program.as_bytes()]);
    // An empty entry is the working directory.
    let entries = bare.then(|| path.split(|b| *b == b':')).into_iter().flatten();
    let inside = entries.map(|dir| [if dir.is_empty() { b"." } else { dir }, b"/", program.as_bytes()]);
    itself.into_iter().chain(inside)
}

/// The sentence on what was found. `None` where the numbers cannot be true.
pub fn describe(job: &Startup, numbers: &[u32; NUMBERS], errno: i32) -> Option<String> {
    let program = job.argv.first().map(String::as_str).unwrap_or_default();
    let [at, reason, a, b, c] = *numbers;
    let reason = Reason::of_number(reason)?;
    let path = path_of(job);
    if reason == Reason::Missing {
        return Some(match path {
            _ if program.contains('/') => format!("{program}: there is no such file in the image"),
            Some(path) => format!("{program}: not found in PATH ({})", String::from_utf8_lossy(&path)),
            None => format!("{program}: not found in PATH, which an environment file may have set"),
        });
    }
    let file = match &path {
        _ if program.contains('/') => program.to_owned(),
        Some(path) => String::from_utf8_lossy(&candidates(program, path).nth(at as usize)?.concat()).into_owned(),
        None => format!("{program} (entry {} of PATH)", at.saturating_add(1)),
    };
    let error = io::Error::from_raw_os_error(errno);
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

/// The job's PATH, as far as glue knows it: an environment file, which glue does not read, may set another.
fn path_of(job: &Startup) -> Option<Vec<u8>> {
    let own = job.env.0.iter().rfind(|(name, _)| name == "PATH").map(|(_, path)| path.as_bytes().to_vec());
    let inherited = || {
        let all = if job.env_mode == EnvMode::Inherit { sys::environment() } else { Vec::new() };
        all.iter().rev().find_map(|variable| variable.strip_prefix(b"PATH=")).unwrap_or_default().to_vec()
    };
    let path = own.or_else(|| job.env_files.is_empty().then(inherited))?;
    Some(if path.is_empty() { DEFAULT_PATH.into() } else { path })
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
#[path = "exec_reason_tests.rs"]
pub(crate) mod tests;
