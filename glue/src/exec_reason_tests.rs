use super::*;
use latebind_contract::startup::{EnvFile, EnvFormat, Object};

pub(crate) fn job(program: &str, env: &[(&str, &str)]) -> Startup {
    let text = r#"{"version":1,"job":"j","nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","incarnation":"i","argv":[""],"uid":1,"gid":1}"#;
    let mut job: Startup = serde_json::from_str(text).unwrap();
    job.argv = vec![program.into()];
    job.env_mode = EnvMode::Clear;
    job.env = Object(env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect());
    job
}

fn described(job: &Startup, at: u32, reason: Reason) -> Option<String> {
    describe(job, &[at, reason as u32, 0o644, 1, 2], nix::libc::ENOENT)
}

#[test]
fn a_program_is_named_as_far_as_glue_knows_where_it_is() {
    let said = |at, reason, job: &Startup| described(job, at, reason).unwrap_or_default();
    let known = job("nope", &[("PATH", "/a::/b")]);
    assert_eq!(said(0, Reason::Missing, &known), "nope: not found in PATH (/a::/b)");
    assert_eq!(said(1, Reason::Directory, &known), "./nope: is a directory, not a program");
    assert_eq!(said(2, Reason::Directory, &known), "/b/nope: is a directory, not a program");
    assert_eq!(described(&known, 3, Reason::Directory), None, "PATH has three entries");
    let default = job("nope", &[]);
    assert_eq!(said(0, Reason::Missing, &default), format!("nope: not found in PATH ({DEFAULT_PATH})"));
    let mut unknown = job("nope", &[]);
    unknown.env_files = vec![EnvFile { name: "env.a".into(), format: EnvFormat::Sh }];
    assert!(said(0, Reason::Missing, &unknown).starts_with("nope: not found in PATH, which"));
    assert_eq!(said(4, Reason::Empty, &unknown), "nope (entry 5 of PATH): is empty");
    let whole = job("/x/y", &[]);
    assert_eq!(said(0, Reason::Missing, &whole), "/x/y: there is no such file in the image");
    assert_eq!(
        described(&whole, 0, Reason::NoExecuteBit).unwrap(),
        "/x/y: has no execute bit (mode 644): chmod +x it in the image"
    );
    assert_eq!(describe(&whole, &[0, Reason::ALL.len() as u32, 0, 0, 0], 0), None, "there is no such reason");
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
        let parts: Vec<_> = candidates(program, path.as_bytes()).map(|parts| parts.concat()).collect();
        parts.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
    };
    assert_eq!(of("a/b", "/x:/y"), ["a/b"]);
    assert_eq!(of("a", "/x::/y"), ["/x/a", "./a", "/y/a"]);
    assert_eq!(of("a", ""), ["./a"]);
}
