//! What can be wrong with an environment file: a number for each, and its text.
//!
//! Stage two, which has the payload's UID, says the number; glue, which has the key, says the text.

use super::{EXPANDED_MAX, NESTING_MAX, STEPS_MAX};

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $text:literal,)+) => {
        /// What is wrong with an environment file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Problem {
            $($(#[$doc])* $name,)+
        }

        impl Problem {
            const ALL: &[Self] = &[$(Self::$name),+];

            /// What is wrong, and what to write instead. Never the text of the file, which may be a secret.
            fn template(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

problems! {
    /// More entries or steps than there may be.
    TooMany: "more than {} assignments and expansions in one file",
    /// An entry without a name.
    EntryWithoutName: "the entry has no name before its '='",
    /// An entry without an equals sign.
    EntryWithoutEquals: "the entry has no '='; entries are NAME=value, and each ends with one NUL byte",
    /// A file with the line ends of DOS.
    CarriageReturn: "carriage return: the file has the line ends of DOS; convert it (dos2unix)",
    /// Probably the other format.
    NulByte: "NUL byte: is this a file of the format \"nul\"?",
    /// Any other control character.
    ControlCharacter: "control character {}; the format \"nul\" can carry it",
    /// Not UTF-8.
    NotUtf8: "byte that is not UTF-8; the format \"nul\" can carry it",
    /// `export` alone.
    ExportAlone: "export without NAME or NAME=value",
    /// A command, or nothing that is known.
    NotUnderstood: "only NAME=value, export NAME=value, comments and blank lines are understood",
    /// `NAME+=value`.
    Append: "NAME+=value is not in every sh; write NAME=\"${NAME}value\"",
    /// `NAME[index]=value`.
    Array: "arrays cannot be in an environment",
    /// `export` of something else.
    NoNameAfterExport: "no NAME or NAME=value after export",
    /// A command.
    NotAnAssignment: "not an assignment; commands are not run, and '=' stands right after the name",
    /// A variable that belongs to the shell.
    Owned: "a shell sets or obeys this variable itself; give it in \"env\" or the format \"nul\"",
    /// An open double quote.
    OpenDoubleQuote: "this double quote is never closed",
    /// An open brace.
    OpenBrace: "this ${ is never closed",
    /// A brace that is open at the end of its line.
    OpenBraceOnLine: "this ${ is not closed on its line",
    /// An open single quote.
    OpenSingleQuote: "this single quote is never closed",
    /// A backquote.
    Backquote: "command substitution; for a backquote itself write \\`",
    /// A character that shells read differently there.
    DiffersInDouble: "shells differ on this within \"${NAME:-word}\"; write ${NAME:-\"word\"}",
    /// A tilde.
    Tilde: "tilde that sh might expand; write $HOME, or quote it: '~'",
    /// A brace after `export`.
    BraceAfterExport: "brace that bash expands after export; quote it: '{'",
    /// A character that means something outside of quotes.
    Unquoted: "'{}' outside of quotes; to have it in the value, quote it",
    /// A backslash that quotes nothing.
    BackslashAtEnd: "backslash at the end of the file",
    /// A continued line within braces.
    ContinuedInBrace: "line continuation within ${NAME:-word}",
    /// `\}` within double quotes within braces.
    EscapedBrace: "shells differ on \\} in double quotes within ${NAME:-word}; write '}'",
    /// A continued line right after a name.
    ContinuedAfterName: "line continuation right after $NAME; write ${NAME}",
    /// `$(`.
    Substitution: "command substitution or arithmetic; for the text itself write \\$(",
    /// Another kind of expansion.
    OtherExpansion: "only $NAME, ${NAME} and ${NAME:-word} are expanded; for a dollar sign itself write \\$",
    /// Another kind of expansion in braces.
    OtherBraces: "of ${...} only ${NAME} and ${NAME:-word} are understood",
    /// Too many levels of braces.
    TooDeep: "more than {} levels of ${NAME:-word}",
    /// A variable that the same command has set.
    SetOnLine: "shells differ on a variable that is set on the same line; use two lines",
    /// A variable whose value is the shell's.
    OwnedValue: "the value of this variable is the shell's own",
    /// A variable that some shell sets by itself.
    FilledIn: "this variable is not set, and some shells would give it a value; set it first",
    /// Blanks or patterns after `export`.
    SplitAfterExport: "after export some shells split this at blanks or take it for a file pattern; quote it",
    /// Values that are too large.
    TooLarge: "the values of this file come to more than {} bytes",
}

impl Problem {
    /// The problem with this number.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|problem| *problem as u32 == number)
    }

    /// Writes what is wrong, and what to write instead. `byte` is the one that is in the way, where that is told.
    pub fn write(self, byte: u8, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Some((before, after)) = self.template().split_once("{}") else { return f.write_str(self.template()) };
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
    use super::Problem;

    #[test]
    fn each_number_is_one_problem_and_no_other_number_is_any() {
        for (n, problem) in (0..).zip(Problem::ALL) {
            assert_eq!(Problem::of_number(n), Some(*problem));
        }
        assert_eq!(Problem::of_number(Problem::ALL.len() as u32), None);
        assert_eq!(Problem::of_number(u32::MAX), None);
    }
}
