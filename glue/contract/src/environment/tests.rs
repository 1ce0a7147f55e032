//! What is accepted with which value, and what is refused where. That accepted files mean what shells make of them is
//! the matter of `tests/tests/environment_differential.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use super::{Environment, apply_docker, apply_export, apply_nul, apply_sh};

fn start() -> Environment {
    let mut env = Environment::new();
    for (name, value) in [("U", "usual"), ("E", ""), ("SP", " two  words "), ("GL", "a* [b] \\?"), ("HOME", "/home/me")]
    {
        env.set(name.as_bytes(), value.as_bytes());
    }
    env
}

/// The value of A after `text`, or the error as its message begins.
fn outcome(text: &[u8]) -> Result<String, String> {
    let mut env = start();
    apply_sh(&mut env, text).map_err(|e| e.to_string())?;
    Ok(env.get(b"A").map(|v| String::from_utf8_lossy(v).into_owned()).unwrap_or_else(|| "(not set)".into()))
}

#[test]
fn accepted() {
    for (text, expected) in [
        ("", "(not set)"),
        ("\n \t\n# a comment with ' and \" and $(\n", "(not set)"),
        ("A=", ""),
        ("A=1", "1"),
        (" \tA=1 \t\n", "1"),
        ("A=1 # comment", "1"),
        ("A=1#2", "1#2"),
        ("A=#1", "#1"),
        ("A= #1", ""),
        ("A=1; B=$U;A=$B # c", "usual"),
        ("A=1 B=2 A=3", "3"),
        ("export A=1", "1"),
        ("export\tA=1 B=2", "1"),
        ("export \\\n A=1", "1"),
        ("A=1\nexport A", "1"),
        ("export A", "(not set)"),
        ("export A U", "(not set)"),
        ("A=1\\\n2", "12"),
        ("A=1 \\\n# comment", "1"),
        ("\\\nA=1\\\n", "1"),
        ("A=a=b==c", "a=b==c"),
        ("A=a\"b c\"'d e'\\ f", "ab cd e f"),
        ("A=''\"\"", ""),
        ("A='a\nb\\\nc\"$U`'", "a\nb\\\nc\"$U`"),
        ("A='it'\\''s'", "it's"),
        ("A=\"a\\\"b\\\\c\\$d\\`e\\f\\\ng'h'\"", "a\"b\\c$d`e\\fg'h'"),
        ("A=\"a\nb\"", "a\nb"),
        ("A=\\a\\$\\\"\\'\\~\\ \\*", "a$\"'~ *"),
        ("A=$U", "usual"),
        ("A=${U}s", "usuals"),
        ("A=$Us", ""),
        ("A=$U-$U/$U", "usual-usual/usual"),
        ("A=$SP", " two  words "),
        ("A=$GL", "a* [b] \\?"),
        ("A=*?[a]{b,c}", "*?[a]{b,c}"),
        ("export A=\"$SP\"", " two  words "),
        ("export A=$HOME/bin:$U", "/home/me/bin:usual"),
        ("export A='*'\\*\"{a,b}\"", "**{a,b}"),
        ("A=$", "$"),
        ("A=$ B=1", "$"),
        ("A=\"a$\"", "a$"),
        ("A=$/$.$%", "$/$.$%"),
        ("A='$U'\\$U\"\\$U\"", "$U$U$U"),
        ("A=x~ B=1", "x~"),
        ("A=http://h/~me", "http://h/~me"),
        ("A='~'\"~\"\\~", "~~~"),
        ("A=${U:-x}", "usual"),
        ("A=${E:-x}", "x"),
        ("A=${Z:-}", ""),
        ("A=${Z:-a  b}", "a  b"),
        ("A=\"${Z:-a  b;c|d#e}\"", "a  b;c|d#e"),
        ("A=${Z:-a\"b }\"'c }'\\}}", "ab }c }}"),
        ("A=\"${Z:-\\}\\\"\\$\\a}\"", "}\"$\\a"),
        ("A=${Z:-$SP}", " two  words "),
        ("A=${U:+x}", "x"),
        ("A=${E:+x}", ""),
        ("A=${Z:+x}", ""),
        ("A=\"${U:+a  b}\"", "a  b"),
        ("A=${U:+${E:-$U}/${Z:+no}lib}", "usual/lib"),
        ("A=/a${U:+:$U}", "/a:usual"),
        ("A=${Z:-${E:-\"${Z:-deep}\"}}", "deep"),
        ("A=\u{e4}\\\u{e4}'\u{20ac}'", "\u{e4}\u{e4}\u{20ac}"),
        ("A=a\nA=$A$A\nA=$A$A", "aaaa"),
        ("U=$U:$U\nA=$U", "usual:usual"),
        ("if=1\nA=$if", "1"),
        ("TERM=x\nA=$TERM", "x"),
        ("BASH_ENV=x\nA=$BASH_ENV", "x"),
        ("PS1='$ '", "(not set)"),
    ] {
        assert_eq!(outcome(text.as_bytes()).as_deref(), Ok(expected), "{text:?}");
    }
}

#[test]
fn the_example_of_the_manual() {
    let manual = include_str!("../../../../docs/environment-files.md");
    let example = manual.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut env = start();
    env.set(b"PATH", b"/usr/bin:/bin");
    apply_sh(&mut env, example.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{example}"));
    for (name, value) in
        [("DIR", "/tmp/job"), ("EMPTY", ""), ("TEXT", "quotes \"escaped\", 1 and $literal"), ("LONG", "onetwo")]
    {
        assert_eq!(env.get(name.as_bytes()), Some(value.as_bytes()), "{name}");
    }
}

#[test]
fn refused() {
    for (text, position, message) in [
        // Not an assignment.
        ("A", "1, column 1", "not an assignment"),
        ("A =1", "1, column 1", "not an assignment"),
        ("A= 1", "1, column 4", "only NAME=value"),
        ("\n A=1 ls -l", "2, column 6", "not an assignment"),
        ("1A=1", "1, column 1", "only NAME=value"),
        ("A-B=1", "1, column 1", "not an assignment"),
        ("A=1\n. ./file", "2, column 1", "only NAME=value"),
        ("A=1;;", "1, column 5", "only NAME=value"),
        ("A=1 export B=2", "1, column 5", "not an assignment"),
        ("A\\\nB=1", "1, column 1", "not an assignment"),
        ("A+=1", "1, column 2", "NAME+=value"),
        ("A[0]=1", "1, column 2", "arrays"),
        ("A=(1 2)", "1, column 3", "'(' outside"),
        ("unset A", "1, column 1", "not an assignment"),
        ("\u{feff}A=1", "1, column 1", "byte order mark"),
        ("export", "1, column 1", "not an assignment"),
        ("A=1\n  export # x", "2, column 3", "export without"),
        ("export -p", "1, column 8", "only NAME=value"),
        ("export 'A'=1", "1, column 8", "only NAME=value"),
        ("export A'B'=1", "1, column 9", "no NAME or NAME=value"),
        ("export A\\\nB=1", "1, column 9", "no NAME or NAME=value"),
        // What runs something, or goes somewhere.
        ("A=$(id)", "1, column 3", "command substitution"),
        ("A=\"$((1+1))\"", "1, column 4", "command substitution"),
        ("A=`id`", "1, column 3", "command substitution"),
        ("A=${U:-`id`}", "1, column 8", "command substitution"),
        ("A=a&b", "1, column 4", "'&' outside"),
        ("A=a|b", "1, column 4", "'|' outside"),
        ("A=a>b", "1, column 4", "'>' outside"),
        ("A=1 <b", "1, column 5", "only NAME=value"),
        // Expansions that are not understood.
        ("A=$1", "1, column 3", "only $NAME"),
        ("A=$?", "1, column 3", "only $NAME"),
        ("A=$$", "1, column 3", "only $NAME"),
        ("A=$'x'", "1, column 3", "only $NAME"),
        ("A=$\"x\"", "1, column 3", "only $NAME"),
        ("A=$[1]", "1, column 3", "only $NAME"),
        ("A=${#U}", "1, column 3", "of ${...} only"),
        ("A=${U-x}", "1, column 3", "of ${...} only"),
        ("A=${U:=x}", "1, column 3", "of ${...} only"),
        ("A=${U+x}", "1, column 3", "of ${...} only"),
        ("A=${U:+~}", "1, column 8", "tilde"),
        ("A=${U%x}", "1, column 3", "of ${...} only"),
        ("A=${1}", "1, column 3", "of ${...} only"),
        ("A=${!U}", "1, column 3", "of ${...} only"),
        ("A=${U[0]}", "1, column 3", "of ${...} only"),
        ("A=$U\\\nx", "1, column 5", "line continuation right after"),
        // What shells read differently.
        ("A=1 B=$A", "1, column 7", "shells differ on a variable"),
        ("export A=1 B=${A}", "1, column 14", "shells differ on a variable"),
        ("A=~", "1, column 3", "tilde"),
        ("A=x:~", "1, column 5", "tilde"),
        ("A=''~", "1, column 5", "tilde"),
        ("A=${Z:-~}", "1, column 8", "tilde"),
        ("A=\"${Z:-it's}\"", "1, column 11", "shells differ on this"),
        ("A=\"${Z:-\"x\"}\"", "1, column 9", "shells differ on this"),
        ("A=\"${Z:-<(x)}\"", "1, column 9", "shells differ on this"),
        ("A=${Z:-\"\\}\"}", "1, column 9", "shells differ on \\}"),
        ("A=${Z:-{}", "1, column 8", "'{' outside"),
        ("A=${Z:-a#b}", "1, column 9", "'#' outside"),
        ("export A=$SP", "1, column 10", "after export"),
        ("export A=$GL", "1, column 10", "after export"),
        ("export A=${Z:-a b}", "1, column 16", "after export"),
        ("export A=*", "1, column 10", "after export"),
        ("export A={a,b}", "1, column 10", "brace that bash expands"),
        ("A=x\\", "1, column 4", "backslash at the end"),
        // Never closed.
        ("A=1\nB='x\n\n", "2, column 3", "this single quote"),
        ("A=\"x\n$U", "1, column 3", "this double quote"),
        ("A=x${U:-y", "1, column 4", "this ${ is never"),
        ("A=${U:-y\n}", "1, column 3", "this ${ is not closed on its line"),
        ("A=${U", "1, column 3", "of ${...} only"),
        // Variables of the shell's own.
        ("IFS=:", "1, column 1", "a shell sets or obeys"),
        ("A=1\nexport PWD=/", "2, column 8", "a shell sets or obeys"),
        ("BASH_VERSION=1", "1, column 1", "a shell sets or obeys"),
        ("A=$RANDOM", "1, column 3", "the value of this variable"),
        ("A=${PS1:-x}", "1, column 3", "the value of this variable"),
        ("export UID", "1, column 8", "the value of this variable"),
        ("A=$HOSTNAME", "1, column 3", "this variable is not set"),
        // Bytes.
        ("A=1\r\nB=2\r\n", "1, column 4", "carriage return"),
        ("A=1\0B=2\0", "1, column 4", "NUL byte"),
        ("A='\u{1b}'", "1, column 4", "control character 0x1b"),
    ] {
        let error = outcome(text.as_bytes()).unwrap_err();
        let expected = format!("line {position}: {message}");
        assert!(error.starts_with(&expected), "{text:?}: {error:?}, expected {expected:?}");
    }
    let error = outcome(b"A=\xc3\xa4\n# latin \xe4\n").unwrap_err();
    assert!(error.starts_with("line 2, column 9: byte that is not UTF-8"), "{error}");
}

#[test]
fn work_is_bounded() {
    let doubling = ["A=0123456789abcdef\n", &"A=$A$A\n".repeat(17)].concat();
    assert!(
        outcome(doubling.as_bytes()).unwrap_err().contains("line 17, column 3: the values of this file come to more")
    );
    let nested = |levels: usize| format!("A={}x{}", "${Z:-".repeat(levels), "}".repeat(levels));
    assert_eq!(outcome(nested(16).as_bytes()).as_deref(), Ok("x"));
    assert!(outcome(nested(17).as_bytes()).unwrap_err().contains("more than 16 levels"));
    assert!(outcome(nested(100_000).as_bytes()).unwrap_err().contains("more than 16 levels"));
    assert!(outcome("A=$U\n".repeat(10_000).as_bytes()).unwrap_err().contains("line 8193, column 1: more than 16384"));
    let mut env = Environment::new();
    assert!(apply_nul(&mut env, &b"A=1\0".repeat(20_000)).unwrap_err().to_string().contains("more than 16384"));
}

#[test]
fn entries_between_nul_bytes() {
    let mut env = start();
    apply_nul(&mut env, b"").unwrap();
    apply_nul(&mut env, b"A=1\0B=$A\n=\0A=2\0x.y z=\xff\0PWD=").unwrap();
    for (name, value) in [("A", &b"2"[..]), ("B", b"$A\n="), ("x.y z", b"\xff"), ("PWD", b""), ("U", b"usual")] {
        assert_eq!(env.get(name.as_bytes()), Some(value), "{name}");
    }
    apply_nul(&mut env, b"A=3\0").unwrap();
    assert_eq!(env.get(b"A"), Some(&b"3"[..]));
    // One NUL byte alone ends a file without entries.
    assert_eq!(apply_nul(&mut Environment::new(), b"\0"), Ok(()));
    for (text, entry) in [(&b"A"[..], 1), (b"A=1\0=2", 2), (b"A=1\0\0B=2", 2), (b"A=1\0\0", 2), (b"\0A=1", 1)] {
        let error = apply_nul(&mut Environment::new(), text).unwrap_err();
        assert_eq!((error.line, error.column), (entry, 1), "{}", text.escape_ascii());
    }
}

#[test]
fn a_file_for_docker_means_what_docker_makes_of_it() {
    let text = "\u{feff}A=1\r\n#A=2\n  # no\n\n \tQ=\"quoted\" 'x' # $HOME \nE=\nx.y-z==\nU=\u{fc}\\\nLAST=end";
    let mut env = Environment::new();
    apply_docker(&mut env, text.as_bytes()).unwrap();
    let got: Vec<(&[u8], &[u8])> = env.iter().collect();
    let wanted: [(&str, &str); 6] =
        [("A", "1"), ("Q", "\"quoted\" 'x' # $HOME "), ("E", ""), ("x.y-z", "="), ("U", "\u{fc}\\"), ("LAST", "end")];
    assert_eq!(got, wanted.map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    for (text, line, message) in [
        (&b"A=1\nHOME\n"[..], 2, "a NAME alone"),
        (b"=1", 1, "no name"),
        (b"A=1\nB=\xff\n", 2, "not UTF-8"),
        (b"A=1\0B=2\0", 1, "NUL byte"),
        (b"\n\nexport A=1", 3, "blank in the name"),
        (b"B = 2", 1, "blank in the name"),
    ] {
        let error = apply_docker(&mut Environment::new(), text).unwrap_err();
        assert!(error.line == line && error.to_string().contains(message), "{error}");
    }
    let many = "A=1\n".repeat(20_000);
    assert!(
        apply_docker(&mut Environment::new(), many.as_bytes()).unwrap_err().to_string().contains("more than 16384")
    );
}

#[test]
fn what_shells_print_of_their_environment_is_read_back() {
    let lines = [
        r#"export A='it'"'"'s'"#,
        "export B='two\nlines'",
        "export C",
        r#"declare -x D="q\"\$\\""#,
        r"declare -rx E=$'a\nb\'c\001'",
        "declare -x F",
        "export PWD='/x'",
        r#"declare -x SHLVL="1""#,
        r"export G=''\'''",
        "declare -x OLDPWD",
        "export H=bare/1",
    ];
    let mut env = Environment::new();
    apply_export(&mut env, lines.join("\n").as_bytes()).unwrap();
    let got: Vec<(&[u8], &[u8])> = env.iter().collect();
    let wanted =
        [("A", "it's"), ("B", "two\nlines"), ("D", "q\"$\\"), ("E", "a\nb'c\u{1}"), ("G", "'"), ("H", "bare/1")];
    assert_eq!(got, wanted.map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    for (text, position, message) in [
        ("A=1", "1, column 1", "not a line of export -p"),
        ("export A=1; id", "1, column 11", "not a line of export -p"),
        ("export A=$(id)", "1, column 10", "not a line of export -p"),
        ("declare -x A=\"$HOME\"", "1, column 15", "only $NAME"),
        ("declare -x A=\"`id`\"", "1, column 15", "command substitution"),
        ("declare -ax A=(1)", "1, column 1", "not a line of export -p"),
        ("declare -xq A=1", "1, column 1", "not a line of export -p"),
        ("export A='x'\nexport B='\0'", "2, column 11", "NUL byte"),
        ("export A='x\n", "1, column 10", "this single quote"),
        ("export A=\"x\n", "1, column 10", "this double quote"),
        ("export -f a", "1, column 8", "no NAME or NAME=value"),
        ("export A='1'\n\nexportB=1", "3, column 1", "not a line of export -p"),
    ] {
        let error = apply_export(&mut Environment::new(), text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("line {position}: {message}")), "{text:?}: {error}");
    }
}

#[test]
fn variables_that_no_shell_could_have_made_are_kept() {
    let odd: [(&[u8], &[u8]); 5] =
        [(b"a.b", b"1"), (b"BASH_FUNC_f%%", b"() { :; }"), (b"", b"empty"), (b"\xff", b"\xfe\x01"), (b"IFS", b":")];
    let mut env = Environment::new();
    for (name, value) in odd {
        env.set(name, value);
    }
    apply_sh(&mut env, b"A=1\nexport B=2\n").unwrap();
    let expected: Vec<(&[u8], &[u8])> = odd.into_iter().chain([(&b"A"[..], &b"1"[..]), (b"B", b"2")]).collect();
    assert_eq!(env.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_variable_keeps_its_place() {
    let mut env = start();
    apply_sh(&mut env, b"U=1 Z=2 U=3").unwrap();
    assert_eq!((env.len(), env.is_empty()), (6, false));
    assert_eq!(env.iter().next(), Some((&b"U"[..], &b"3"[..])));
}

#[test]
fn no_bytes_make_a_parser_panic() {
    const LIKELY: &[u8] = b"AB=$${}\"\"'\\\n\n :-~;#export U\t\r\0\xff\xc3\xa4`(<&[+*";
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut roll = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % n
    };
    let mut accepted = 0;
    for _ in 0..200_000 {
        let any = roll(8) == 0;
        let mut text = if roll(2) == 0 { b"A=".to_vec() } else { Vec::new() };
        text.extend((0..roll(24)).map(|_| if any { roll(256) as u8 } else { LIKELY[roll(LIKELY.len())] }));
        let mut env = start();
        accepted += usize::from(apply_sh(&mut env, &text).is_ok());
        accepted += usize::from(apply_nul(&mut env, &text).is_ok());
        accepted += usize::from(apply_docker(&mut env, &text).is_ok());
        let printed = [b"export ", text.as_slice()].concat();
        accepted += usize::from(apply_export(&mut env, &printed).is_ok());
    }
    assert!(accepted > 2_000, "only {accepted} were accepted");
}
