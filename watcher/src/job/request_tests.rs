#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use super::{ImageCommand, Request, is_id, plain_path};

fn request(field: &str, value: serde_json::Value) -> Request {
    let mut job = serde_json::json!({"id": "a", "image": "i", "argv": ["x"], "relay": true});
    job[field] = value;
    serde_json::from_value(job).unwrap()
}

#[test]
fn who_is_not_root_gets_no_file_read_or_written_by_root() {
    assert_eq!(request("sandbox", "execute/dir_1".into()).check_unprivileged(), Ok(()));
    for (field, value) in [
        ("inputs", "/etc".into()),
        ("input_files", serde_json::json!([{"path": "/etc/shadow", "to": "x"}])),
        ("stdin", "/etc/shadow".into()),
        ("results", "/root".into()),
        ("env_files", serde_json::json!([{"path": "/etc/shadow", "format": "sh"}])),
        ("outputs", serde_json::json!(["x"])),
        ("owner", "another".into()),
        ("submitter", 1000.into()),
        ("relay", false.into()),
    ] {
        assert!(request(field, value).check_unprivileged().is_err(), "{field}");
    }
}

#[test]
fn an_owner_is_a_uid_and_a_name() {
    let of = |submitter: Option<u32>, owner: &str| Request { submitter, ..request("owner", owner.into()) }.identity();
    let known = [(Some(1000), ""), (Some(1000), "a"), (Some(1001), ""), (Some(1001), "a"), (None, "a"), (Some(0), "a")];
    for (n, (submitter, owner)) in known.into_iter().enumerate() {
        assert!(of(submitter, owner).is_some());
        let same = known.into_iter().filter(|other| of(other.0, other.1) == of(submitter, owner)).count();
        assert_eq!(same, 1, "{n}");
    }
    assert_eq!(of(None, ""), None);
    assert_eq!(Request { alone: true, ..request("owner", "a".into()) }.identity(), None);
}

#[test]
fn a_sandbox_is_the_clients_own_place_beneath_data() {
    assert_eq!(request("sandbox", "execute/dir_1".into()).check(), Ok(()));
    for bad in ["", "/etc", "..", "a/../b", "work", "work/x", "io", "a//b", ".trash/x", ".work"] {
        assert!(request("sandbox", bad.into()).check().is_err(), "{bad:?}");
    }
}

/// Command and directory of a job with these `args` in an image with this ENTRYPOINT, CMD and WORKDIR.
fn taken(args: &[&str], entrypoint: &[&str], cmd: &[&str], workdir: &str) -> Result<(String, String), String> {
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let mut job = request("args", serde_json::json!(args));
    job.argv.clear();
    job.check()?;
    job.take_command(ImageCommand::new(own(entrypoint), own(cmd), workdir.into()).unwrap())?;
    let argv: Vec<_> = job.argv.iter().map(|word| word.lossy().into_owned()).collect();
    Ok((argv.join(" "), job.cwd.map(|cwd| cwd.lossy().into_owned()).unwrap_or_default()))
}

#[test]
fn without_a_program_the_images_own_command_is_run_as_docker_does() {
    let of = |args: &[&str], entrypoint: &[&str], cmd: &[&str]| taken(args, entrypoint, cmd, "/w");
    let is = |argv: &str, cwd: &str| Ok((argv.to_owned(), cwd.to_owned()));
    assert_eq!(of(&[], &["/e", "1"], &["c"]), is("/e 1 c", "/w"));
    assert_eq!(of(&["a", "b"], &["/e", "1"], &["c"]), is("/e 1 a b", "/w"));
    assert_eq!(of(&[], &[], &["c", "d"]), is("c d", "/w"));
    assert_eq!(of(&["a"], &[], &["c", "d"]), is("a", ""), "the program is the job's, so is the directory");
    assert_eq!(of(&["a"], &[""], &["c"]), is("a", ""));
    for none in ["", "/"] {
        assert_eq!(taken(&[], &["/e"], &[], none), is("/e", ""));
    }
    for (entrypoint, cmd) in [(&[][..], &[][..]), (&[], &[""]), (&[""], &[])] {
        assert!(of(&[], entrypoint, cmd).is_err_and(|e| e.contains("neither ENTRYPOINT nor CMD")));
    }
}

#[test]
fn a_jobs_own_directory_goes_before_the_images() {
    let command = || ImageCommand::new(vec!["/e".into()], Vec::new(), "/w".into()).unwrap();
    for (field, value) in [("cwd", "."), ("sandbox", "execute/dir_1")] {
        let mut job = request(field, value.into());
        job.argv.clear();
        let before = job.cwd.clone();
        job.take_command(command()).unwrap();
        assert_eq!(job.cwd, before, "{field}");
    }
}

#[test]
fn a_whole_command_has_no_further_arguments() {
    assert!(request("args", serde_json::json!(["x"])).check().is_err_and(|e| e.contains("give one of them")));
    assert!(request("argv", serde_json::json!([""])).check().is_err_and(|e| e.contains("is empty")));
}

#[test]
fn outputs_are_bounded() {
    let many = |n: usize, name: &str| request("outputs", serde_json::json!(vec![name; n])).check();
    assert!(many(1_000, "a").is_ok() && many(1_001, "a").is_err());
    let long = ["a"; 1_000].join("/");
    assert!(many(32, &long).is_ok() && many(33, &long).is_err());
}

#[test]
fn paths_are_understood_as_people_write_them() {
    for (given, plain) in [
        ("r/", "r"),
        ("./a", "a"),
        (".//a", "a"),
        ("a//b/./c/", "a/b/c"),
        ("a", "a"),
        ("/etc", "/etc"),
        (".", "."),
        ("./", ""),
        ("a/../b", "a/../b"),
        (".a/b.", ".a/b."),
    ] {
        assert_eq!(plain_path(given), plain, "{given}");
    }
}

#[test]
fn a_variable_that_is_given_twice_is_refused() {
    let twice = r#"{"id": "a", "image": "i", "argv": ["x"], "env": {"A": "1", "B": "", "A": "1"}}"#;
    let error = serde_json::from_str::<Request>(twice).unwrap_err().to_string();
    assert!(error.contains("\"A\" appears twice"), "{error}");
    let once: Request = serde_json::from_str(&twice.replacen("\"A\"", "\"C\"", 1)).unwrap();
    assert_eq!(once.env.len(), 3);
}

#[test]
fn times_that_are_none_are_refused() {
    for field in ["timeout_s", "grace_s", "kill_s"] {
        assert_eq!(request(field, 0.5.into()).check(), Ok(()), "{field}");
        for bad in [-1.0, 1e30] {
            assert!(request(field, bad.into()).check().is_err_and(|e| e.starts_with(field)), "{field} {bad}");
        }
    }
}

#[test]
fn names() {
    assert!(is_id("a") && is_id("job-1.2_x") && is_id(&"a".repeat(128)));
    assert!(!is_id("") && !is_id(".a") && !is_id("a/b") && !is_id("a b") && !is_id("ä") && !is_id(&"a".repeat(129)));
}

#[test]
fn image_names_that_would_do_harm_are_refused() {
    let with = |image: &str| {
        let job = serde_json::json!({"id": "a", "image": image, "argv": ["x"]});
        serde_json::from_value::<Request>(job).unwrap().check()
    };
    assert!(with("busybox:1").is_ok() && with("NOT a name").is_ok(), "the engine says what is wrong with it");
    assert!(with("a\u{1b}[2J").is_err() && with(&"a".repeat(1025)).is_err() && with("").is_err());
}
