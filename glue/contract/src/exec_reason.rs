//! Why a program could not be executed, as the child finds it out: a number for each reason, and where programs are
//! looked for. [`super::words`] has the words.

use super::numbered;

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
pub fn candidates<'a>(program: &'a [u8], path: &'a [u8]) -> impl Iterator<Item = [&'a [u8]; 3]> {
    let bare = !program.contains(&b'/');
    let itself = (!bare).then_some([&b""[..], b"", program]);
    // An empty entry is the working directory.
    let entries = bare.then(|| path.split(|b| *b == b':')).into_iter().flatten();
    let inside = entries.map(|dir| [if dir.is_empty() { b"." } else { dir }, b"/", program]);
    itself.into_iter().chain(inside)
}
