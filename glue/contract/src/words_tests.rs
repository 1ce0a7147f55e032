#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use super::*;
use crate::environment;
use crate::record::Stage;
use crate::report::Report;
use crate::startup::{Amount, EnvFile, EnvFormat, Object, Rlimit, Stream, tests::least};

fn job(program: &str, env: &[(&str, &str)]) -> Startup {
    Startup {
        argv: vec![program.into()],
        env_mode: EnvMode::Clear,
        env: Object(env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()),
        ..least()
    }
}

fn described(job: &Startup, at: u32, reason: u32) -> Option<String> {
    let failure = Failure { stage: Stage::Exec, errno: 2, message: String::new(), path: None, reported: None };
    About::of(job, |about| exec(about, about.path(&failure), &[at, reason, 0o644, 1, 2], 2))
}

#[test]
fn a_program_is_named_as_far_as_glue_knows_where_it_is() {
    let said = |at, reason: Reason, job: &Startup| described(job, at, reason as u32).unwrap_or_default();
    let known = job("nope", &[("PATH", "/a::/b")]);
    assert_eq!(said(0, Reason::Missing, &known), "nope: not found in PATH (/a::/b)");
    assert_eq!(said(1, Reason::Directory, &known), "./nope: is a directory, not a program");
    assert_eq!(said(2, Reason::Directory, &known), "/b/nope: is a directory, not a program");
    assert_eq!(described(&known, 3, Reason::Directory as u32), None, "PATH has three entries");
    let default = job("nope", &[]);
    assert_eq!(said(0, Reason::Missing, &default), format!("nope: not found in PATH ({DEFAULT_PATH})"));
    let mut unknown = job("nope", &[]);
    unknown.env_files = vec![EnvFile { name: "env.a".into(), format: EnvFormat::Sh }];
    assert!(said(0, Reason::Missing, &unknown).starts_with("nope: not found in PATH, which"));
    assert_eq!(said(4, Reason::Empty, &unknown), "nope (entry 5 of PATH): is empty");
    let whole = job("/x/y", &[]);
    assert_eq!(said(0, Reason::Missing, &whole), "/x/y: no such file in the image");
    assert_eq!(
        described(&whole, 0, Reason::NoExecuteBit as u32).unwrap(),
        "/x/y: has no execute bit (mode 644): chmod +x it in the image"
    );
    assert_eq!(described(&whole, 0, Reason::ALL.len() as u32), None, "there is no such reason");
    let input = described(&job("./run.sh", &[]), 0, Reason::NoExecuteBit as u32).unwrap();
    assert_eq!(input, "./run.sh: has no execute bit (mode 644): chmod +x it among the job's inputs, which keep it");
}

#[test]
fn what_is_too_long_is_named() {
    let value = "x".repeat(STRING_MAX);
    let said = |name: &str, numbers: [u32; 3]| {
        let [a, b, c] = numbers;
        let numbers = [0, Reason::TooLong as u32, a, b, c];
        About::of(&job("/x", &[(name, &value)]), |about| exec(about, None, &numbers, 7)).unwrap()
    };
    let most = "131073 bytes with its NUL, and the kernel takes 131072 for one argument or variable";
    assert_eq!(said("LONG", [3, 0, 131_073]), format!("argument 2 of argv has {most}: put it into a file"));
    assert_eq!(said("LONG", [0, 4, 131_073]), format!("the variable LONG has {most}: put it into a file"));
    assert!(said("OTHER", [0, 4, 131_073]).starts_with("a variable of the image or of an environment file, with a"));
    assert!(said("LONG", [0, 0, 9_000_000]).starts_with("arguments and variables have 9000000 bytes in all"));
}

#[test]
fn path_is_the_jobs_own_then_the_containers_then_the_default() {
    let failure = |path: Option<&str>| Failure {
        stage: Stage::Exec,
        errno: 2,
        message: String::new(),
        path: path.map(str::to_owned),
        reported: None,
    };
    let of = |job: &Startup, path| About::of(job, |about| about.path(&failure(path)).map(str::to_owned)).unwrap();
    let inherits = Startup { env_mode: EnvMode::Inherit, ..job("a", &[]) };
    assert_eq!(of(&inherits, Some("/image")), "/image");
    assert_eq!(of(&inherits, None), DEFAULT_PATH);
    assert_eq!(of(&Startup { env_mode: EnvMode::Inherit, ..job("a", &[("PATH", "/own")]) }, Some("/image")), "/own");
    assert_eq!(of(&job("a", &[]), Some("/image")), DEFAULT_PATH);
}

#[test]
fn the_table_is_in_the_order_of_the_numbers() {
    for (n, reason) in (0..).zip(Reason::ALL) {
        assert_eq!(*reason as u32, n);
    }
}

#[test]
fn candidates_are_those_of_execvp() {
    let of = |program: &str, path: &str| -> Vec<String> {
        let parts: Vec<_> = candidates(program.as_bytes(), path.as_bytes()).map(|parts| parts.concat()).collect();
        parts.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
    };
    assert_eq!(of("a/b", "/x:/y"), ["a/b"]);
    assert_eq!(of("a", "/x::/y"), ["/x/a", "./a", "/y/a"]);
    assert_eq!(of("a", ""), ["./a"]);
}

fn some_job() -> Startup {
    Startup {
        env_files: vec![EnvFile { name: "env.a".into(), format: EnvFormat::Sh }],
        stdout: Some(Stream { file: Some("work/out".into()), append: false, fifo: None, keep_open: false }),
        rlimits: Object(vec![("core".into(), Rlimit { soft: Amount::Of(0), hard: Amount::Of(0) })]),
        ..least()
    }
}

fn said(report: &Report) -> Option<String> {
    report.failure().map(|failure| About::of(&some_job(), |about| message(&failure, about)))
}

const NONSENSE: &str = "the start failed, and what it reports of that makes no sense";

/// Whatever the payload's side writes, the words are these, and numbers out of range have none.
#[test]
fn each_failure_is_in_our_own_words() {
    let eio = std::io::Error::from_raw_os_error(5);
    for what in What::ALL.iter().copied() {
        for index in [0, 1, 2, 3, 17, u32::MAX] {
            let report = Report { what, errno: 5, numbers: [index, 1, 0, 0, 0] };
            let Some(said) = said(&report) else { continue };
            assert!(!said.is_empty() && said.is_ascii(), "{said}");
        }
    }
    let said = |report: Report| said(&report).unwrap();
    let stream = said(Report::at(What::StreamFile, 1, &eio));
    assert!(stream.starts_with("stdout: work/out beneath data/ cannot be opened: "), "{stream}");
    assert_eq!(said(Report::at(What::StreamFile, 3, &eio)), NONSENSE, "there are three streams");
    assert_eq!(said(Report::at(What::StreamFile, 0, &eio)), NONSENSE, "this job's stdin is not a file");
    assert_eq!(said(Report::at(What::EnvFile, 1, &eio)), NONSENSE, "it has one environment file");
    assert_eq!(said(Report::at(What::Limit, 1, &eio)), NONSENSE, "and one limit");
    let limit = said(Report::at(What::Limit, 0, &eio));
    assert!(limit.starts_with("the limit core cannot be set for the payload's UID: "), "{limit}");
    let field = said(Report { what: What::Command, errno: 0, numbers: [1, 0, 0, 0, 0] });
    assert_eq!(field, "argv of the job's part of the startup file is refused by stage two");
}

#[test]
fn an_environment_files_error_names_its_place_and_never_its_text() {
    let mut env = environment::Environment::new();
    let error = environment::apply_sh(&mut env, b"A=1\nB=a&b\n").unwrap_err();
    let place = |n: usize| u32::try_from(n).unwrap();
    let numbers = [0, place(error.line), place(error.column), error.problem as u32, u32::from(error.byte)];
    let report = Report { what: What::EnvSyntax, errno: 0, numbers };
    let text = said(&report).unwrap();
    assert_eq!(text, format!("env.a: {error}"));
    assert!(text.starts_with("env.a: line 2, column 4: '&' outside of quotes"), "{text}");
    for (at, number) in [(0, 1), (3, 1000), (4, 256)] {
        let mut report = report;
        report.numbers[at] = number;
        assert_eq!(said(&report).unwrap(), NONSENSE, "number {at} is {number}");
    }
    let mut control = report;
    control.numbers[4] = 0x1b;
    assert!(!said(&control).unwrap().contains('\u{1b}'));
}

#[test]
fn a_message_of_glues_own_is_kept_and_a_long_one_is_cut() {
    let failure = |message: String| Failure { stage: Stage::Exec, errno: 4000, message, path: None, reported: None };
    let message = |text: String| About::of(&some_job(), |about| message(&failure(text), about));
    assert_eq!(message("told to stop".into()), "told to stop");
    let long = message("ä".repeat(2 * MESSAGE_MAX));
    assert!(long.chars().count() <= MESSAGE_MAX + 3, "{}", long.chars().count());
}

#[test]
fn no_bytes_make_it_panic() {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut roll = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let mut understood = 0;
    for _ in 0..100_000 {
        let mut bytes = [0; crate::report::SIZE];
        bytes.iter_mut().for_each(|byte| *byte = if roll() < 100 { roll() } else { 0 });
        bytes[0] %= What::ALL.len() as u8 + 3;
        if let Some(text) = Report::parse(&bytes).and_then(|report| said(&report)) {
            understood += 1;
            assert!(text.is_ascii() && text.len() <= MESSAGE_MAX + 3, "{text}");
        }
    }
    assert!(understood > 1000, "only {understood} were understood");
}
