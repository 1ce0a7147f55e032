//! Why a program could not be executed, as the child finds it out: a number for each reason, and where programs are
//! looked for. [`super::words`] has the words.

use super::numbered;

/// Machine of this binary, so of this node (`e_machine` of elf(5)).
pub const OWN_MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

/// Most bytes of one argument, or of one variable with its name, with the NUL at its end: MAX_ARG_STRLEN, 32 pages of
/// 4 KiB (execve(2)).
pub const STRING_MAX: usize = 131_072;

/// Most bytes of a script's first line that the kernel reads: BINPRM_BUF_SIZE, without the NUL at its end (execve(2)).
pub const SHEBANG_MAX: usize = 255;

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
        /// A text whose first bytes are a byte order mark, so that the kernel does not see what follows.
        ByteOrderMark,
        /// The first line is longer than the kernel reads.
        LongShebang,
        /// One string is longer than [`STRING_MAX`], or all are more than the kernel takes: the argument's number from
        /// 1, or 0; the length of a variable's name, or 0; bytes with the NUL, of the one string or of all.
        TooLong,
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
