//! Jobs as people bring them: each works, or its message says what to change and where.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use latebind_tests::pod::{BUSYBOX, Outcome, Pod, Signal, host, podman, program, run, shell, unique, with};
use serde_json::{Value, json};

/// A job whose program is the input `run.sh`.
fn script() -> Value {
    json!({"image": BUSYBOX, "argv": ["./run.sh"]})
}

/// Fails unless the job is held for this reason with this in its message.
#[track_caller]
fn is_held(outcome: &Outcome, reason: &str, message: &str) {
    outcome.is("hold", reason);
    assert!(outcome.report.message.contains(message), "{message:?} is not in {:?}", outcome.report.message);
}

#[test]
fn a_script_that_cannot_be_executed_says_what_to_change_and_where() {
    let pod = Pod::start();
    let (long, euros) = (format!("#!/opt/{}/bin/python\n", "x".repeat(300)), "# \u{20ac}".repeat(60));
    let scripts: [(&str, &[u8], bool, &str); 5] = [
        ("no-bit", b"#!/bin/sh\n", false, "chmod +x it among the job's inputs"),
        ("long-line", long.as_bytes(), true, "its first line is longer than the 255 bytes"),
        ("order-mark", b"\xef\xbb\xbf#!/bin/sh\n", true, "begins with a byte order mark"),
        ("umlauts", "echo Gr\u{fc}\u{df}e\n".as_bytes(), true, "has no shebang line"),
        ("two-bytes-of-three", euros.as_bytes(), true, "has no shebang line"),
    ];
    for (name, text, executable, _) in scripts {
        put_script(&pod, name, text, executable);
    }
    for (name, _, _, message) in scripts {
        is_held(&pod.result(name), "CommandNotExecutable", message);
    }
}

fn put_script(pod: &Pod, name: &str, text: &[u8], executable: bool) {
    use std::os::unix::fs::PermissionsExt;
    let dir = pod.spool.join(format!("being-put-{name}"));
    fs::create_dir_all(dir.join("inputs")).unwrap();
    fs::write(dir.join("inputs/run.sh"), text).unwrap();
    let mode = if executable { 0o755 } else { 0o644 };
    fs::set_permissions(dir.join("inputs/run.sh"), fs::Permissions::from_mode(mode)).unwrap();
    fs::write(dir.join("job.json"), script().to_string()).unwrap();
    fs::rename(dir, pod.spool.join("new").join(name)).unwrap();
}

#[test]
fn what_is_longer_than_the_kernel_takes_is_named() {
    let pod = Pod::start();
    let long = "z".repeat(131_072);
    let argument = json!({"image": BUSYBOX, "argv": ["/bin/sh", "-c", format!("# {long}")]});
    is_held(&pod.job("argument", &argument), "ArgumentTooLong", "argument 2 of argv has 131075 bytes with its NUL");
    let variable = with(shell("true"), "env", json!({"SHORT": "x", "LONG": long}));
    is_held(&pod.job("variable", &variable), "ArgumentTooLong", "the variable LONG has 131078 bytes with its NUL");
    let fits = with(shell("echo ${#LONG}"), "env", json!({"LONG": "z".repeat(131_072 - 6)}));
    assert_eq!(pod.job("fits", &fits).is_good().text("stdout"), "131066\n");
    pod.put_with(
        "file",
        &with(shell("true"), "env_files", json!([{"name": "my.env", "format": "nul"}])),
        &[("my.env", format!("LONGER={long}").as_bytes())],
    );
    is_held(&pod.result("file"), "ArgumentTooLong", "a variable of the image or of an environment file, with a name");
}

#[test]
fn an_environment_file_is_named_as_its_user_names_it() {
    let pod = Pod::start();
    let job = with(shell("env"), "env_files", json!([{"name": "my.env", "format": "sh"}]));
    pod.put_with("order-mark", &job, &[("my.env", b"\xef\xbb\xbfA=1\n")]);
    pod.put_with("line-ends", &job, &[("my.env", b"A=1\r\nB=2\r\n")]);
    is_held(&pod.result("order-mark"), "EnvironmentError", "my.env: line 1, column 1: byte order mark");
    is_held(&pod.result("line-ends"), "EnvironmentError", "my.env: line 1, column 4: carriage return");
}

#[test]
fn a_variable_that_is_given_twice_holds_the_job() {
    let pod = Pod::start();
    let job = format!(r#"{{"image":"{BUSYBOX}","argv":["/bin/true"],"env":{{"A":"1","A":"2"}}}}"#);
    latebind_tests::pod::put_into(&pod.spool, "twice", job.as_bytes(), &[]);
    is_held(&pod.result("twice"), "InvalidJob", "\"A\" appears twice");
}

#[test]
fn a_program_with_file_capabilities_is_refused_in_these_words() {
    let scratch = latebind_tests::pod::Scratch::new();
    let bin = scratch.path().join("image/bin");
    fs::create_dir_all(&bin).unwrap();
    let name = format!("localhost/latebind/{}:1", unique("setcap"));
    let script = "cp /bin/busybox \"$1/image/bin/busybox\" && setcap cap_net_raw+ep \"$1/image/bin/busybox\" && \
                  tar --xattrs --xattrs-include='*' -C \"$1/image\" -cf \"$1/image.tar\" .";
    let made = Command::new("sh").args(["-c", script, "sh"]).arg(scratch.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let archive = scratch.path().join("image.tar");
    let imported = podman(&["import", "--quiet", archive.to_str().unwrap(), &name]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let ran = run(&[&name, "--", "/bin/busybox", "id"]);
    podman(&["rmi", &name]);
    assert_eq!(ran.code, Some(126), "{}", ran.err());
    assert!(ran.err().contains("has file capabilities (setcap)"), "{}", ran.err());
}

#[test]
fn an_error_is_said_once_and_without_colours() {
    let ran = run(&["-w", "relative", BUSYBOX, "--", "true"]);
    assert_eq!(ran.code, Some(125), "{}", ran.err());
    assert_eq!(ran.err().matches("must be an absolute path").count(), 1, "{}", ran.err());
    assert!(!ran.stderr.contains(&0x1b), "{:?}", ran.err());
    let missing = run(&[BUSYBOX, "--", "no-such-program"]);
    assert_eq!(missing.err().lines().count(), 1, "{}", missing.err());
    let unknown = latebind_tests::pod::Running::start(&mut host(&["run", "--no-such", BUSYBOX]), Vec::new());
    assert!(!unknown.finish(latebind_tests::pod::JOB_WITHIN).stderr.contains(&0x1b));
}

#[test]
fn a_report_is_found_in_a_jobs_directory() {
    let pod = Pod::start();
    let outcome = pod.job("fine", &shell("true"));
    outcome.is_good();
    let report = |path: &std::path::Path| {
        let said = Command::new(program("watcher")).arg("report").arg(path).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let of_job = report(&outcome.dir);
    assert!(of_job.contains("fine.1, attempt 1") && of_job.contains("Completed (final)"), "{of_job}");
    assert_eq!(of_job, report(&outcome.dir.join("result")));
    assert_eq!(of_job, report(&outcome.dir.join("result/report.json")));
}

#[test]
fn outputs_are_named_as_people_write_paths() {
    let pod = Pod::start();
    let job = with(shell("mkdir r; echo x >r/a; echo y >b"), "outputs", json!(["r/", "./b", "r//a"]));
    let outcome = pod.job("slashes", &job);
    outcome.is_good();
    assert_eq!((outcome.text("outputs/r/a"), outcome.text("outputs/b")), ("x\n".to_owned(), "y\n".to_owned()));
    assert_eq!(outcome.report.outputs, ["b", "r", "r/a"]);
}

/// What `docker logs` or `kubectl logs` would show of it.
#[test]
fn a_program_that_opens_its_streams_again_loses_and_overwrites_nothing() {
    let pod = Pod::start();
    let script = "echo one; echo E1 >&2; echo two >/dev/stderr; echo three >&2; echo four >/dev/stdout; echo five; \
                  echo six | tee /dev/stderr; echo seven >&2; echo eight >>/dev/stdout; \
                  (exec >/dev/stdout; echo nine); echo ten >/proc/self/fd/1; cat /dev/null >/dev/stdout; echo eleven";
    let outcome = pod.job("opened", &shell(script));
    outcome.is_good();
    assert_eq!(outcome.text("stdout"), "one\nfour\nfive\nsix\neight\nnine\nten\neleven\n");
    assert_eq!(outcome.text("stderr"), "E1\ntwo\nthree\nsix\nseven\n");
}

#[test]
fn output_beyond_its_limit_keeps_its_beginning_and_its_end() {
    let pod = Pod::start();
    let script = "echo 'error: the reason'; yes | head -c 30000000; echo 'the end'; echo 'on stderr' >&2";
    let outcome = pod.job("flood", &with(shell(script), "limits", json!({"output": "1M"})));
    outcome.is("final", "LimitExceeded");
    let stdout = outcome.text("stdout");
    assert!(stdout.starts_with("error: the reason\ny\n"), "{:.100}", stdout);
    let (first, rest) = stdout.split_once("\n[latebind: ").unwrap();
    assert!(rest.contains(" bytes of stdout are missing here: 1048576 may be kept of all output]\n"), "{rest:.200}");
    // Whoever was ended for it may have said no more.
    assert!(rest.ends_with("y\n") || rest.ends_with("the end\n"), "{:?}", rest.get(rest.len() - 20..));
    assert!(first.len() > 800_000 && stdout.len() < (1 << 20) + (64 << 10) + 200, "{} {}", first.len(), stdout.len());
    let whole = pod.job("whole", &with(shell("yes | head -c 1000000"), "limits", json!({"output": "1M"})));
    assert_eq!(whole.is_good().text("stdout").len(), 1_000_000);
}

#[test]
fn a_job_goes_on_and_loses_no_line_while_its_pilot_is_started_again() {
    let pod = latebind_tests::pod::Options::new().host(&["--restarts", "3"]).start();
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; echo $i >>count; i=$((i+1)); done; \
                  while ! [ -e go ]; do sleep 0.05; done; echo over >/dev/stdout; echo said >&2";
    pod.put("goes-on", &shell(script));
    pod.runs("goes-on.1", 0);
    let pilot = pod.main_process("pilot");
    latebind_tests::pod::kill(pilot, Signal::SIGKILL);
    latebind_tests::pod::eventually("another pilot", latebind_tests::pod::START_WITHIN, || {
        let file = pod.place().join("pid/pilot");
        fs::read_to_string(file).ok()?.trim().parse::<i32>().ok().filter(|pid| *pid != pilot)
    });
    latebind_tests::pod::eventually("all lines", latebind_tests::pod::JOB_WITHIN, || {
        fs::read_to_string(pod.work(0).join("count")).ok().filter(|text| text.ends_with("\n2999\n"))
    });
    pod.go(0);
    let outcome = pod.result("goes-on");
    outcome.is_good();
    let wanted: String = (0..3000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(outcome.text("stdout"), wanted + "over\n");
    assert_eq!(outcome.text("stderr"), "said\n");
}

#[test]
fn a_reader_that_goes_away_ends_the_job_as_a_pipe_does() {
    let line = "\"$0\" run --name \"$1\" \"$2\" -- yes | head -n 1; echo \"${PIPESTATUS[0]}\"";
    let mut command = Command::new("bash");
    command.args(["-c", line]).arg(program("latebind-host")).args([&unique("run"), BUSYBOX]);
    let ran = latebind_tests::pod::Running::start(&mut command, Vec::new()).finish(latebind_tests::pod::JOB_WITHIN);
    assert_eq!(ran.out(), "y\n141\n", "{}", ran.err());
}

/// The files below `outputs/` with their modes, without what makes them files.
fn modes(outcome: &Outcome) -> Vec<(String, u32)> {
    let script = "cd \"$1\" && find . -type f -printf '%P %m\\n' | sort";
    let found = Command::new("sh").args(["-c", script, "sh"]).arg(outcome.dir.join("result/outputs")).output().unwrap();
    let line = |line: &str| {
        let (name, mode) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), u32::from_str_radix(mode, 8).unwrap())
    };
    String::from_utf8_lossy(&found.stdout).lines().map(line).collect()
}

#[test]
fn outputs_come_as_an_archive_where_that_is_wanted() {
    let pod = Pod::start();
    let script = "mkdir -p d/e; echo text >d/e/file; chmod 755 d/e/file; ln -s e/file d/link; echo x >b";
    for form in ["tar", "tar.gz"] {
        let job = with(with(shell(script), "outputs", json!(["d", "b", "none"])), "outputs_archive", json!(form));
        let outcome = pod.job(&form.replace('.', "-"), &job);
        outcome.is_good();
        let result = outcome.dir.join("result");
        assert!(!result.join("outputs").exists());
        let file = result.join(format!("outputs.{form}"));
        let listed = Command::new("tar").args(["--list", "--verbose", "--file"]).arg(&file).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        for (mode, name) in [("-rwxr-xr-x", " d/e/file"), ("lrwxrwxrwx", " d/link -> e/file"), ("-rw-r--r--", " b")] {
            assert!(listed.lines().any(|line| line.starts_with(mode) && line.ends_with(name)), "{name}: {listed}");
        }
        assert_eq!(outcome.report.outputs, ["b", "d"]);
        assert!(outcome.report.missing_outputs[0].starts_with("none"), "{:?}", outcome.report.missing_outputs);
    }
    let job = with(shell("true"), "outputs_archive", json!("tar"));
    pod.job("names-none", &job).is("hold", "InvalidJob");
}

#[test]
fn outputs_keep_their_execute_bits_and_times_and_never_a_set_user_id_bit() {
    let pod = Pod::start();
    let script = "printf '#!/bin/sh\\necho built\\n' >prog; chmod 755 prog; mkdir bin; cp prog bin/; echo x >bin/data; \
                  chmod 640 bin/data; cp prog bin/suid; chmod 6711 bin/suid; touch -d '2001-01-01 00:00:00' prog bin";
    let outcome = pod.job("bits", &with(shell(script), "outputs", json!(["prog", "bin"])));
    outcome.is_good();
    let wanted = [("bin/data", 0o644), ("bin/prog", 0o755), ("bin/suid", 0o755), ("prog", 0o755)];
    assert_eq!(modes(&outcome), wanted.map(|(name, mode)| (name.to_owned(), mode)));
    for name in ["prog", "bin"] {
        let modified = fs::metadata(outcome.dir.join("result/outputs").join(name)).unwrap().modified().unwrap();
        let at = modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!((978_220_800..978_393_600).contains(&at), "{name}: {at}");
    }
}

#[test]
fn links_within_an_output_are_kept_and_those_that_lead_out_are_refused_in_words() {
    let pod = Pod::start();
    let script = "echo x >real; ln -s real latest; mkdir -p d/sub; echo k >d/k; ln -s k d/l; ln -s ../k d/sub/l; \
                  ln -s ../real d/out; ln -s /etc/passwd d/passwd; ln d/k d/hard; mkfifo pipe";
    let job = with(shell(script), "outputs", json!(["latest", "d", "pipe", "latest/x"]));
    let outcome = pod.job("links", &job);
    outcome.is_good();
    let outputs = outcome.dir.join("result/outputs");
    assert_eq!(fs::read_link(outputs.join("d/l")).unwrap().to_str(), Some("k"));
    assert_eq!(fs::read_link(outputs.join("d/sub/l")).unwrap().to_str(), Some("../k"));
    assert_eq!(outcome.text("outputs/d/sub/l"), "k\n");
    let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(outputs.join(name)).unwrap());
    assert_eq!(inode("d/k"), inode("d/hard"));
    let mut missing = outcome.report.missing_outputs.clone();
    missing.sort();
    assert_eq!(
        missing,
        [
            "d/out: is a symbolic link that leads out of the output (../real), and is not followed",
            "d/passwd: is a symbolic link that leads out of the output (/etc/passwd), and is not followed",
            "latest/x: is a symbolic link, which is not followed",
            "latest: is a symbolic link, which is not followed",
            "pipe: is neither a file nor a directory",
        ]
    );
    assert!(!outputs.join("latest").exists(), "a directory for what was not fetched");
}

#[test]
fn patterns_fetch_what_they_match() {
    let pod = Pod::start();
    let script = "echo 1 >out1.csv; echo 2 >out2.csv; echo x >out.txt; mkdir -p a/b; echo la >a/log; echo lb >a/b/log; \
                  echo no >a/b/x; echo lit >'lit[1]'; printf e >\"$(printf 'caf\\351.csv')\"";
    let outputs = json!(["*.csv", "**/log", "lit[1]", "no-such*", "a/b"]);
    let outcome = pod.job("patterns", &with(shell(script), "outputs", outputs));
    outcome.is_good();
    let names: Vec<String> = modes(&outcome).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[..2], ["a/b/log", "a/b/x"], "{names:?}");
    for (name, text) in
        [("out1.csv", "1\n"), ("out2.csv", "2\n"), ("a/log", "la\n"), ("a/b/log", "lb\n"), ("lit[1]", "lit\n")]
    {
        assert_eq!(outcome.text(&format!("outputs/{name}")), text, "{name}");
    }
    let latin = std::ffi::OsStr::from_bytes(b"caf\xe9.csv");
    assert_eq!(fs::read(outcome.dir.join("result/outputs").join(latin)).unwrap(), b"e");
    assert!(!outcome.dir.join("result/outputs/out.txt").exists());
    assert_eq!(outcome.report.missing_outputs, ["no-such*: nothing matches"]);
    let name = pod.job("name", &with(shell("echo x >'a[z'"), "outputs", json!(["a[z"])));
    assert_eq!(name.is_good().text("outputs/a[z"), "x\n", "what cannot be a pattern is a name");
}

#[test]
fn nothing_partial_is_left_of_an_output_that_is_missing() {
    let pod = Pod::start();
    let script = "mkdir -p p/many p/few; cd p/many; i=0; while [ $i -lt 101 ]; do mkdir $i; cd $i; \
                  n=0; while [ $n -lt 1000 ]; do : >$n; n=$((n+1)); done; cd ..; i=$((i+1)); done; echo x >../few/x";
    let outcome = pod.job("partial", &with(shell(script), "outputs", json!(["p/few", "p/many"])));
    outcome.is_good();
    assert_eq!(outcome.report.outputs, ["p/few"]);
    assert!(outcome.report.missing_outputs[0].starts_with("p/many: more files and directories"));
    let left: Vec<_> = fs::read_dir(outcome.dir.join("result/outputs/p")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn environment_files_are_taken_as_people_have_them() {
    let pod = Pod::start();
    let script = "printf '%s|' \"$A\" \"$B\" \"$C\"";
    let files = json!([{"name": "d.env", "format": "docker"}, {"name": "e.env", "format": "export"}]);
    let job = with(shell(script), "env_files", files);
    let files: [(&str, &[u8]); 2] = [
        ("d.env", b"\xef\xbb\xbf# for docker\r\nA=\"quoted\" $HOME\r\n"),
        ("e.env", b"export B='it'\"'\"'s'\ndeclare -x C=\"\\$x\"\n"),
    ];
    pod.put_with("both", &job, &files);
    assert_eq!(pod.result("both").is_good().text("stdout"), "\"quoted\" $HOME|it's|$x|");
    pod.put_with("alone", &job, &[("d.env", b"HOME\n"), ("e.env", b"")]);
    is_held(&pod.result("alone"), "EnvironmentError", "d.env: line 1, column 1: a NAME alone");
    let scratch = latebind_tests::pod::Scratch::new();
    let file = scratch.path().join("my.env");
    fs::write(&file, "A=\"as it is\"\n").unwrap();
    let given = format!("docker:{}", file.display());
    let ran = run(&["--env-file", &given, BUSYBOX, "--", "sh", "-c", "echo \"$A\""]);
    assert_eq!(ran.out(), "\"as it is\"\n", "{}", ran.err());
    fs::write(&file, "A=1\r\n").unwrap();
    let ran = run(&["--env-file", file.to_str().unwrap(), BUSYBOX, "--", "true"]);
    assert!(ran.err().contains("my.env: line 1, column 4: carriage return"), "{}", ran.err());
}

#[test]
fn the_operator_sets_how_much_is_copied_in_and_out() {
    let limits = ["--max-input", "1K", "--max-input-files", "3", "--max-output-files", "2", "--max-output", "1M"];
    let pod = latebind_tests::pod::Options::new().pilot(&limits).start();
    let job = |script: &str| with(shell(script), "outputs", json!(["d", "e"]));
    pod.put_with("large", &job("true"), &[("inputs/f", &[b'x'; 1025])]);
    pod.result("large").is("hold", "InputUnusable");
    let files: Vec<(String, &[u8])> = (0..4).map(|n| (format!("inputs/{n}"), &b"x"[..])).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    pod.put_with("many", &job("true"), &files);
    pod.result("many").is("hold", "InputUnusable");
    pod.put_with("fits", &job("mkdir d; echo 1 >d/1; echo 2 >e"), &files[..2]);
    let outcome = pod.result("fits");
    assert_eq!(outcome.report.outputs, ["d"], "{:#?}", outcome.report);
    assert!(outcome.report.missing_outputs[0].starts_with("e: "), "{:?}", outcome.report.missing_outputs);
}
