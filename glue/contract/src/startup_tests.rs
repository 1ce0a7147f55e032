#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use super::*;
use crate::encoding::base64url;
use crate::order::{self, TIMEOUT_MAX};
use crate::{command, layout};

/// A job with nothing but what it must have: `/program`, for UID and GID 20000 of the glue `i`.
pub(crate) fn least() -> Startup {
    Startup {
        version: crate::VERSION,
        job: "j".into(),
        nonce: Bytes32::new([1; 32]),
        key: Key::new(Box::new([2; 32])),
        incarnation: "i".into(),
        argv: vec!["/program".into()],
        cwd: None,
        env_mode: EnvMode::Inherit,
        env_files: Vec::new(),
        env: Object::default(),
        uid: 20_000,
        gid: 20_000,
        groups: Vec::new(),
        umask: "022".into(),
        stdin: None,
        stdout: None,
        stderr: None,
        rlimits: Object::default(),
        terminal: None,
        exec: false,
        links: Object::default(),
        passwd: false,
        account: "payload".into(),
        home: None,
        stop: Stop::Main,
        timeout_s: 0.0,
        grace_s: 0.0,
        kill_s: 10.0,
    }
}

fn full() -> Startup {
    let file = |name: &str, append| Some(Stream { file: Some(name.into()), append, fifo: None, keep_open: false });
    Startup {
        cwd: Some("/".into()),
        env_mode: EnvMode::Clear,
        env_files: vec![EnvFile { name: "env.a".into(), format: EnvFormat::Nul }],
        env: Object(vec![("b".into(), "c".into())]),
        groups: vec![3],
        umask: "077".into(),
        stdin: file("f", false),
        stdout: file("g", true),
        stderr: Some(Stream { file: None, append: false, fifo: Some("err".into()), keep_open: false }),
        rlimits: Object(vec![("core".into(), Rlimit { soft: Amount::Of(0), hard: Amount::Unlimited })]),
        terminal: None,
        exec: false,
        links: Object(vec![("/d".into(), "e".into())]),
        passwd: true,
        timeout_s: 1.0,
        grace_s: 2.5,
        kill_s: 3.0,
        ..least()
    }
}

const IDS: Ids = Ids { uid: 20_000, gid: 20_000, kill_uid: 30_000 };

/// The field that each side refuses, if one is.
fn refused(startup: &Startup) -> Option<&'static str> {
    startup.check(IDS, "i").err().map(|invalid| invalid.field)
}

#[test]
fn what_is_written_is_read_by_both_sides() {
    for startup in [least(), full()] {
        let file = startup.file().unwrap();
        let (order, rest) = order::parse(&file).unwrap();
        assert_eq!((order, command::parse(rest).unwrap()), startup.parts());
        assert_eq!(startup.check(IDS, "i"), Ok(()));
    }
    assert_eq!(full().parts().0.fifos, [false, false, true]);
}

#[test]
fn the_key_is_in_the_first_line_alone_and_the_commands_words_in_the_second() {
    let startup = full();
    let file = String::from_utf8(startup.file().unwrap()).unwrap();
    let (first, second) = file.split_once('\n').unwrap();
    assert!(first.contains(&base64url(startup.key.bytes())) && !second.contains(&base64url(startup.key.bytes())));
    assert!(second.contains("/program") && !first.contains("/program"));
    assert!(!second.contains('\n'));
}

#[test]
fn optional_fields_have_defaults() {
    let nonce = "A".repeat(43);
    let text = format!(
        r#"{{"version":2,"job":"j","nonce":"{nonce}","key":"{nonce}","incarnation":"i","uid":1,"gid":2}}
{{"argv":["a"],"stdout":{{"file":"f"}}}}"#
    );
    let (order, rest) = order::parse(text.as_bytes()).unwrap();
    assert_eq!((order.kill_s, order.passwd, order.groups.len(), order.fifos), (10.0, false, 0, [false; 3]));
    let command = command::parse(rest).unwrap();
    assert_eq!((command.umask.as_str(), command.cwd, command.env_mode), ("022", None, EnvMode::Inherit));
    assert_eq!(command.stdout, Some(Stream { file: Some("f".into()), append: false, fifo: None, keep_open: false }));
}

#[test]
fn each_field_that_is_unknown_repeated_or_missing_is_refused_by_its_name() {
    let file = full().file().unwrap();
    let text = String::from_utf8(file).unwrap();
    let (first, second) = text.split_once('\n').unwrap();
    let of_order = |line: &str| order::parse(format!("{line}\n{second}").as_bytes()).map(drop);
    let of_command = |line: &str| command::parse(line.as_bytes()).map(drop);
    let with = |line: &str, more: &str| format!("{},{more}}}", line.strip_suffix('}').unwrap());
    for (result, why) in [
        (of_order(&with(first, r#""more":1"#)), "unknown field `more`"),
        (of_order(&with(first, r#""argv":["a"]"#)), "unknown field `argv`"),
        (of_order(&with(first, r#""uid":1"#)), "duplicate field `uid`"),
        (of_order(&with(first, r#""passwd":true"#)), "duplicate field `passwd`"),
        (of_order("[2]"), "its first line is not a JSON object"),
        (of_order(&first.replace(r#""version":2"#, r#""version":1"#)), "is 1; this glue understands 2"),
        (of_command(&with(second, r#""key":"x""#)), "unknown field `key`"),
        (of_command(&with(second, r#""argv":["a"]"#)), "duplicate field `argv`"),
        (of_command(&second.replace(r#"{"b":"c"}"#, r#"{"b":"c","b":"d"}"#)), "\"b\" appears twice"),
        (of_command(&second.replace("clear", "other")), "unknown variant `other`"),
        (of_command(&second.replace(r#","hard":"unlimited""#, "")), "missing field `hard`"),
        (of_command(&second.replace("unlimited", "endless")), "not \"unlimited\""),
    ] {
        let message = result.unwrap_err().message;
        assert!(message.contains(why), "{message} instead of {why}");
    }
    for name in ["version", "job", "nonce", "key", "incarnation", "uid", "gid"] {
        let mut fields: serde_json::Map<_, _> = serde_json::from_str(first).unwrap();
        fields.remove(name).unwrap();
        let message = of_order(&serde_json::to_string(&fields).unwrap()).unwrap_err().message;
        assert!(message.contains(&format!("missing field `{name}`")), "{message}");
    }
    assert!(of_command("{}").unwrap_err().message.contains("missing field `argv`"));
    assert!(order::parse(first.as_bytes()).unwrap_err().message.contains("second line"));
}

#[test]
fn what_a_refusal_says_never_has_the_key() {
    let startup = least();
    let key = base64url(startup.key.bytes());
    let file = String::from_utf8(startup.file().unwrap()).unwrap();
    for changed in
        [file.replace("\"key\"", "\"kee\""), file.replace(&key, &format!("{key}x")), file.replace(&key, "\\u0041")]
    {
        let message = order::parse(changed.as_bytes()).unwrap_err().to_string();
        assert!(!message.contains(&key) && message.contains(layout::STARTUP), "{message}");
    }
}

#[test]
fn each_side_refuses_what_it_must_not_do() {
    type Change = fn(&mut Startup);
    let cases: [(&str, Change); 33] = [
        ("job", |s| s.job.clear()),
        ("job", |s| s.job = "a\nb".into()),
        ("incarnation", |s| s.incarnation = "other".into()),
        ("uid", |s| s.uid = 0),
        ("uid", |s| s.uid = u32::MAX),
        ("uid", |s| s.uid = IDS.kill_uid),
        ("gid", |s| s.gid = 20_001),
        ("groups", |s| s.groups = vec![0]),
        ("env_files", |s| s.env_files = vec![EnvFile { name: "../env.a".into(), format: EnvFormat::Sh }]),
        ("links", |s| s.links = Object(vec![("/shared/bin/glue".into(), "/x".into())])),
        ("links", |s| s.links = Object(vec![("/a".into(), String::new())])),
        ("links", |s| s.links = Object(["/a", "/b", "/a"].map(|path| (path.into(), "/x".into())).to_vec())),
        ("timeout_s", |s| s.timeout_s = TIMEOUT_MAX * 2.0),
        ("grace_s", |s| s.grace_s = f64::NAN),
        ("kill_s", |s| s.kill_s = -1.0),
        ("account", |s| s.account = "a:b".into()),
        ("account", |s| s.account = "a\nroot::0:0".into()),
        ("account", |s| s.account = "-a".into()),
        ("account", |s| s.account = "a".repeat(33)),
        ("account", |s| s.account.clear()),
        ("home", |s| s.home = Some("relative".into())),
        ("home", |s| s.home = Some("/a:/b".into())),
        ("home", |s| s.home = Some("/a\n".into())),
        ("argv", |s| s.argv.clear()),
        ("argv", |s| s.argv.push("a\0b".into())),
        ("cwd", |s| s.cwd = Some("relative".into())),
        ("env", |s| s.env = Object(vec![("A=B".into(), "c".into())])),
        ("stdin", |s| {
            s.stdin = Some(Stream { file: Some("/etc/passwd".into()), append: false, fifo: None, keep_open: false })
        }),
        ("stdout", |s| {
            s.stdout = Some(Stream { file: None, append: false, fifo: Some("err".into()), keep_open: false })
        }),
        ("stderr", |s| s.stderr = Some(Stream { file: None, append: false, fifo: None, keep_open: false })),
        ("umask", |s| s.umask = "1777".into()),
        ("rlimits", |s| {
            s.rlimits = Object(vec![("speed".into(), Rlimit { soft: Amount::Of(0), hard: Amount::Of(0) })])
        }),
        ("rlimits", |s| {
            s.rlimits = Object(vec![("core".into(), Rlimit { soft: Amount::Unlimited, hard: Amount::Of(0) })])
        }),
    ];
    for (n, (field, change)) in cases.into_iter().enumerate() {
        let mut startup = full();
        change(&mut startup);
        assert_eq!(refused(&startup), Some(field), "case {n}");
    }
}

#[test]
fn the_two_parts_have_to_agree_about_fifos_and_environment_files() {
    let (order, command) = full().parts();
    assert_eq!(command.check(order.fifos, 1), Ok(()));
    assert_eq!(command.check([true, false, true], 1).unwrap_err().field, "stdin");
    assert_eq!(command.check([false; 3], 1).unwrap_err().field, "stderr");
    for files in [0, 2] {
        assert_eq!(command.check(order.fifos, files).unwrap_err().field, "env_formats", "{files} files");
    }
}
