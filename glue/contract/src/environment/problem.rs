//! What can be wrong with an environment file: a number for each, and its text.
//!
//! Stage two, which has the payload's UID, reports the number; the watcher has the text.

use crate::numbered;

/// Most assignments and expansions of one file. It keeps the time for one file far below a second.
pub(super) const STEPS_MAX: usize = 16_384;
/// Most levels of `${A:-${B:-...}}`.
pub(super) const NESTING_MAX: usize = 16;
/// Most bytes that the values of one file may come to: `A=$A$A` doubles with each line.
pub(super) const EXPANDED_MAX: usize = 1 << 20;

numbered! {
    /// What is wrong with an environment file.
    Problem {
        /// More entries or steps than there may be.
        TooMany,
        /// An entry without a name.
        EntryWithoutName,
        /// An entry without an equals sign.
        EntryWithoutEquals,
        /// A file with the line ends of DOS.
        CarriageReturn,
        /// Probably the other format.
        NulByte,
        /// Any other control character.
        ControlCharacter,
        /// Not UTF-8.
        NotUtf8,
        /// `export` alone.
        ExportAlone,
        /// A command, or nothing that is known.
        NotUnderstood,
        /// `NAME+=value`.
        Append,
        /// `NAME[index]=value`.
        Array,
        /// `export` of something else.
        NoNameAfterExport,
        /// A command.
        NotAnAssignment,
        /// A variable that belongs to the shell.
        Owned,
        /// An open double quote.
        OpenDoubleQuote,
        /// An open brace.
        OpenBrace,
        /// A brace that is open at the end of its line.
        OpenBraceOnLine,
        /// An open single quote.
        OpenSingleQuote,
        /// A backquote.
        Backquote,
        /// A character that shells read differently there.
        DiffersInDouble,
        /// A tilde.
        Tilde,
        /// A brace after `export`.
        BraceAfterExport,
        /// A character that means something outside of quotes.
        Unquoted,
        /// A backslash that quotes nothing.
        BackslashAtEnd,
        /// A continued line within braces.
        ContinuedInBrace,
        /// `\}` within double quotes within braces.
        EscapedBrace,
        /// A continued line right after a name.
        ContinuedAfterName,
        /// `$(`.
        Substitution,
        /// Another kind of expansion.
        OtherExpansion,
        /// Another kind of expansion in braces.
        OtherBraces,
        /// Too many levels of braces.
        TooDeep,
        /// A variable that the same command has set.
        SetOnLine,
        /// A variable whose value is the shell's.
        OwnedValue,
        /// A variable that some shell sets by itself.
        FilledIn,
        /// Blanks or patterns after `export`.
        SplitAfterExport,
        /// Values that are too large.
        TooLarge,
        /// A byte order mark at the beginning.
        ByteOrderMark,
        /// A blank in a name.
        BlankInName,
        /// A name alone, for which docker takes the caller's value.
        NameAlone,
        /// What `export -p` does not print.
        NotExported,
    }
}

/// What is wrong, and what to write instead, in the order of the numbers. Never the text of the file, which may be a
/// secret.
const TEXTS: &[&str] = &[
    "more than {} assignments and expansions in one file",
    "the entry has no name before its '='",
    "the entry has no '='; entries are NAME=value, and each ends with one NUL byte",
    "carriage return: the file has the line ends of DOS, CR LF; convert it (sed -i 's/\\r$//')",
    "NUL byte: is this a file of the format \"nul\"?",
    "control character {}; the format \"nul\" can carry it",
    "byte that is not UTF-8; the format \"nul\" can carry it",
    "export without NAME or NAME=value",
    "only NAME=value, export NAME=value, comments and blank lines are understood",
    "NAME+=value is not in every sh; write NAME=\"${NAME}value\"",
    "arrays cannot be in an environment",
    "no NAME or NAME=value after export",
    "not an assignment; commands are not run, and '=' stands right after the name",
    "a shell sets or obeys this variable itself; give it in \"env\" or the format \"nul\"",
    "this double quote is never closed",
    "this ${ is never closed",
    "this ${ is not closed on its line",
    "this single quote is never closed",
    "command substitution; for a backquote itself write \\`",
    "shells differ on this within \"${NAME:-word}\"; write ${NAME:-\"word\"}",
    "tilde that sh might expand; write $HOME, or quote it: '~'",
    "brace that bash expands after export; quote it: '{'",
    "'{}' outside of quotes; to have it in the value, quote it",
    "backslash at the end of the file",
    "line continuation within ${NAME:-word}",
    "shells differ on \\} in double quotes within ${NAME:-word}; write '}'",
    "line continuation right after $NAME; write ${NAME}",
    "command substitution or arithmetic; for the text itself write \\$(",
    "only $NAME, ${NAME}, ${NAME:-word} and ${NAME:+word} are expanded; for a dollar sign itself write \\$",
    "of ${...} only ${NAME}, ${NAME:-word} and ${NAME:+word} are understood",
    "more than {} levels of ${NAME:-word}",
    "shells differ on a variable that is set on the same line; use two lines",
    "the value of this variable is the shell's own",
    "this variable is not set, and some shells would give it a value; set it first",
    "after export some shells split this at blanks or take it for a file pattern; quote it",
    "the values of this file come to more than {} bytes",
    "byte order mark (EF BB BF): save the file as UTF-8 without one (sed -i '1s/^\\xEF\\xBB\\xBF//')",
    "blank in the name of a variable; lines are NAME=value",
    "a NAME alone: whose value would that be here? Write NAME=value",
    "not a line of export -p: export NAME='value' or declare -x NAME=\"value\"",
];

impl Problem {
    /// Writes what is wrong, and what to write instead. `byte` is the one that is in the way, where that is told.
    pub fn write(self, byte: u8, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let text = TEXTS.get(self as usize).copied().unwrap_or_default();
        let Some((before, after)) = text.split_once("{}") else { return f.write_str(text) };
        f.write_str(before)?;
        match self {
            Self::TooMany => write!(f, "{STEPS_MAX}")?,
            Self::TooDeep => write!(f, "{NESTING_MAX}")?,
            Self::TooLarge => write!(f, "{EXPANDED_MAX}")?,
            _ if byte.is_ascii_graphic() => write!(f, "{}", char::from(byte))?,
            _ => write!(f, "{byte:#04x}")?,
        }
        f.write_str(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_one_problem_with_one_text_and_no_other_number_is_any() {
        assert_eq!(Problem::ALL.len(), TEXTS.len());
        for (n, problem) in (0..).zip(Problem::ALL) {
            assert_eq!((Problem::of_number(n), *problem as u32), (Some(*problem), n));
        }
        assert_eq!(Problem::of_number(Problem::ALL.len() as u32), None);
        assert_eq!(Problem::of_number(u32::MAX), None);
        // The tests of `shell` meet most texts; these two are the ends of the table.
        assert!(TEXTS[Problem::TooMany as usize].contains("assignments"));
        assert!(TEXTS[Problem::TooLarge as usize].contains("bytes"));
    }
}
