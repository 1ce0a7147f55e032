use super::*;
use latebind_contract::startup::{Amount, EnvFile, EnvFormat, Object, Rlimit, Stream};

fn job() -> Startup {
    let text = r#"{"version":1,"job":"j","nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","incarnation":"i","argv":["/program"],"uid":20000,"gid":20000}"#;
    let mut job: Startup = serde_json::from_str(text).unwrap();
    job.env_files = vec![EnvFile { name: "env.a".into(), format: EnvFormat::Sh }];
    job.stdout = Some(Stream { file: Some("work/out".into()), append: false, fifo: None });
    job.rlimits = Object(vec![("core".into(), Rlimit { soft: Amount::Of(0), hard: Amount::Of(0) })]);
    job
}

/// What comes out of a pipe when this is sent.
fn through_a_pipe(report: &Report) -> Vec<u8> {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    let (read, write) = nix::unistd::pipe().unwrap();
    report.send(write.as_raw_fd());
    drop(write);
    let mut bytes = Vec::new();
    std::fs::File::from(read).read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_sent_is_understood() {
    for (n, what) in (0..).zip(What::ALL.iter().copied()) {
        assert_eq!(what as u8, n, "the table is in the order of the numbers");
        let report = Report { what, errno: 2, numbers: [1, 2, 3, 4, u32::MAX] };
        let bytes = through_a_pipe(&report);
        assert_eq!((bytes.len(), Report::parse(&bytes)), (SIZE, Some(report)));
    }
}

#[test]
fn nothing_but_one_whole_report_is_understood() {
    let bytes = through_a_pipe(&Report::child(7));
    for length in 0..SIZE {
        assert_eq!(Report::parse(&bytes[..length]), None, "{length} bytes");
    }
    assert_eq!(Report::parse(&[bytes.as_slice(), b"\0"].concat()), None);
    assert_eq!(Report::parse(&bytes.repeat(2)), None);
    for (at, byte) in [(0, What::ALL.len() as u8), (0, 0xff), (4, 0xff), (2, 0x10)] {
        let mut changed = bytes.clone();
        changed[at] = byte;
        assert_eq!(Report::parse(&changed), None, "byte {at} is {byte:#x}");
    }
}

/// Whatever the payload's side writes, the words are glue's and the startup file's, and numbers out of range are
/// refused.
#[test]
fn each_failure_is_in_glues_own_words() {
    let job = job();
    let eio = io::Error::from_raw_os_error(nix::libc::EIO);
    for what in What::ALL.iter().copied() {
        for index in [0, 1, 2, 3, 17, u32::MAX] {
            let report = Report { what, errno: nix::libc::EIO, numbers: [index, 1, 0, 0, 0] };
            let Some(failure) = report.failure(&job) else { continue };
            assert!(!failure.message.is_empty() && failure.message.is_ascii(), "{failure:?}");
            assert_eq!(failure.errno, "EIO");
        }
    }
    let message = |report: Report| report.failure(&job).map(|f| f.message);
    assert_eq!(message(Report::child(7)), None);
    let said = message(Report::at(What::StreamFile, 1, &eio)).unwrap();
    assert!(said.starts_with("stdout: work/out beneath data/ cannot be opened: "), "{said}");
    assert_eq!(message(Report::at(What::StreamFile, 0, &eio)), None, "this job's stdin is not a file");
    assert_eq!(message(Report::at(What::EnvFile, 1, &eio)), None, "it has one environment file");
    assert_eq!(message(Report::at(What::Limit, 1, &eio)), None, "and one limit");
    let said = message(Report::at(What::Limit, 0, &eio)).unwrap();
    assert!(said.starts_with("the limit core cannot be set for the payload's UID: "), "{said}");
}

#[test]
fn an_environment_files_error_names_its_place_and_never_its_text() {
    let job = job();
    let mut env = latebind_contract::environment::Environment::new();
    let error = latebind_contract::environment::apply_sh(&mut env, b"A=1\nB=a&b\n").unwrap_err();
    let report = Report::parse(&through_a_pipe(&Report::syntax(0, &error))).unwrap();
    let failure = report.failure(&job).unwrap();
    assert_eq!(failure.message, format!("env.a: {error}"));
    assert!(failure.message.starts_with("env.a: line 2, column 4: '&' outside of quotes"), "{}", failure.message);
    assert_eq!((failure.stage, failure.errno.as_str()), (Stage::Environment, ""));
    for (at, number) in [(0, 1), (3, 1000), (4, 256)] {
        let mut report = report;
        report.numbers[at] = number;
        assert_eq!(report.failure(&job), None, "number {at} is {number}");
    }
    let mut control = report;
    control.numbers[4] = 0x1b;
    assert!(!control.failure(&job).unwrap().message.contains('\u{1b}'));
}

#[test]
fn a_message_is_cut_between_characters() {
    let long = "ä".repeat(MESSAGE_MAX);
    let failure = failure(Stage::Exec, 2, format_args!("x{long}"));
    assert_eq!((failure.errno.as_str(), failure.message.len()), ("ENOENT", MESSAGE_MAX - 1));
    assert_eq!(super::failure(Stage::Exec, 4000, format_args!("x")).errno, "4000");
}

#[test]
fn no_bytes_make_it_panic() {
    let job = job();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut roll = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let mut understood = 0;
    for _ in 0..100_000 {
        let mut bytes = [0; SIZE];
        bytes.iter_mut().for_each(|byte| *byte = if roll() < 100 { roll() } else { 0 });
        bytes[0] %= What::ALL.len() as u8 + 3;
        if let Some(failure) = Report::parse(&bytes).and_then(|report| report.failure(&job)) {
            understood += 1;
            assert!(failure.message.is_ascii() && failure.message.len() <= MESSAGE_MAX, "{failure:?}");
        }
    }
    assert!(understood > 1000, "only {understood} were understood");
}
