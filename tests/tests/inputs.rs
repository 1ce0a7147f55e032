//! Inputs that a job names: files that go to a place of their own, and archives that are unpacked as the payload.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use latebind_tests::pod::{Options, Outcome, Pod, Scratch, put_into, shell, with};
use latebind_tests::shortage::NoMoreProcesses;
use latebind_tests::web::{Says, WebServer, make_certificates};
use serde_json::{Value, json};
use watcher::bind::Class;

/// What a shell leaves as `archive` in an empty directory.
fn made(script: &str) -> Vec<u8> {
    let scratch = Scratch::new();
    let output = Command::new("sh").args(["-ec", script]).current_dir(scratch.path()).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    fs::read(scratch.path().join("archive")).unwrap()
}

fn with_inputs(script: &str, inputs: Value) -> Value {
    with(shell(script), "inputs", inputs)
}

/// The result of a job with one archive, which is unpacked into `work/`.
fn unpacked(pod: &Pod, name: &str, script: &str, archive: &[u8]) -> Outcome {
    let job = with_inputs(script, json!([{"file": "archive", "unpack": true}]));
    put_into(&pod.spool, name, job.to_string().as_bytes(), &[("archive", archive)]);
    pod.result(name)
}

#[test]
fn archives_and_files_are_put_where_the_job_wants_them_and_belong_to_it() {
    let pod = Pod::start();
    let tree = "mkdir -p t/deep; echo one >t/one; printf '#!/bin/sh\\necho tool ran\\n' >t/deep/tool; \
        chmod 4755 t/deep/tool; ln -s deep/tool t/link; ";
    for (form, script) in [
        ("tar", "tar -cf archive -C t ."),
        ("gz", "tar -czf archive -C t ."),
        ("xz", "tar -cJf archive -C t ."),
        ("zstd", "tar -cf plain -C t .; zstd -q plain -o archive"),
        ("zip", "cd t; zip -qry ../archive.zip .; mv ../archive.zip ../archive"),
    ] {
        let archive = made(&format!("{tree}{script}"));
        let inputs = json!([
            {"file": "archive", "unpack": true, "to": "some/where"},
            {"file": "archive", "to": "kept/as/it-is"},
            {"file": "plain"},
        ]);
        let job = with_inputs(
            "cat some/where/one plain beside; some/where/link; cmp archive.want kept/as/it-is && echo same; \
             stat -c '%u %a' some some/where/deep/tool kept/as/it-is; echo more >>some/where/one && rm -r some",
            inputs,
        );
        let files: [(&str, &[u8]); 4] = [
            ("archive", &archive),
            ("plain", b"plain\n"),
            ("inputs/beside", b"beside\n"),
            ("inputs/archive.want", &archive),
        ];
        put_into(&pod.spool, form, job.to_string().as_bytes(), &files);
        let outcome = pod.result(form);
        outcome.is_good();
        let uid = pod.uid(0);
        let wanted = format!("one\nplain\nbeside\ntool ran\nsame\n{uid} 755\n{uid} 755\n{uid} 644\n");
        assert_eq!(outcome.text("stdout"), wanted, "{form}: {}", outcome.text("stderr"));
    }
}

#[test]
fn an_archive_puts_nothing_outside_of_work() {
    let pod = Pod::start();
    let link_then_file = "mkdir a b; ln -s /var/lib/latebind a/out; mkdir b/out; echo x >b/out/file; \
        tar -cf archive -C a out; tar -rf archive -C b out/file";
    for (name, script) in [
        ("above", "echo x >x; tar -cPf archive --transform 's,^x,../../above,' x"),
        ("absolute", "echo x >x; tar -cPf archive --transform 's,^x,/var/lib/latebind/absolute,' x"),
        ("link", "ln -s /etc/shadow x; tar -cf archive x"),
        ("through", link_then_file),
        ("name", "echo x >x; ln x y; tar -cPf archive --transform 'flags=h;s,^x,/etc/shadow,' x y"),
        ("fifo", "mkfifo x; tar -cf archive x"),
    ] {
        let outcome = unpacked(&pod, name, "true", &made(script));
        outcome.is("hold", "InputUnusable");
        assert!(outcome.report.message.contains("/archive: "), "{name}: {}", outcome.report.message);
    }
    let private: Vec<_> = fs::read_dir(pod.private()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!private.iter().any(|name| name == "absolute" || name == "file"), "{private:?}");
    unpacked(&pod, "good", "cat x", &made("echo x >x; tar -cf archive x")).is_good();
}

#[test]
fn a_bomb_holds_its_job_and_leaves_the_slot_to_the_next_one() {
    let pod = Options::new().host(&["--data-size", "100m"]).start();
    let zeros = "head -c 300000000 /dev/zero >x";
    for (name, script) in [
        ("gz", format!("{zeros}; tar -czf archive x")),
        ("zip", format!("{zeros}; zip -q archive.zip x; mv archive.zip archive")),
        ("sparse", "truncate -s 1T x; tar -cSf archive x".to_owned()),
        // Its dictionary alone would take more memory than the helper gets.
        ("memory", "head -c 1000000 /dev/urandom >x; tar -cf - x | xz --lzma2=dict=1GiB >archive".to_owned()),
        ("deep", "mkdir -p $(yes d | head -n 100 | tr '\\n' /); tar -cf archive d".to_owned()),
    ] {
        let outcome = unpacked(&pod, name, "true", &made(&script));
        outcome.is("hold", "InputUnusable");
    }
    unpacked(&pod, "good", "cat x", &made("echo x >x; tar -czf archive x")).is_good();
}

#[test]
fn inputs_that_fit_one_by_one_and_not_together_are_the_jobs_own_fault() {
    let pod = Options::new().host(&["--data-size", "100m"]).start();
    let half = vec![1; 60 << 20];
    let job = with_inputs("true", json!([{"file": "a"}, {"file": "b"}]));
    put_into(&pod.spool, "both", job.to_string().as_bytes(), &[("a", &half), ("b", &half)]);
    let outcome = pod.result("both");
    outcome.is("hold", "InputUnusable");
    assert!(outcome.report.message.contains("when it is empty"), "{}", outcome.report.message);
}

#[test]
fn what_is_not_there_or_not_an_archive_is_said() {
    let pod = Pod::start();
    let outcome = unpacked(&pod, "text", "true", &b"not an archive\n".repeat(100));
    outcome.is("hold", "InputUnusable");
    for (name, inputs) in
        [("missing", json!([{"file": "none", "unpack": true}])), ("linked", json!([{"file": "link", "unpack": true}]))]
    {
        let dir = pod.spool.join(format!(".{name}"));
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
        fs::write(dir.join("job.json"), with_inputs("true", inputs).to_string()).unwrap();
        fs::rename(dir, pod.spool.join("new").join(name)).unwrap();
        pod.result(name).is("hold", "InputUnusable");
    }
    for (name, inputs) in [
        ("out", json!([{"file": "x", "to": "../x"}])),
        ("path", json!([{"file": "/etc/passwd"}])),
        ("field", json!([{"file": "x", "mode": 1}])),
        ("many", json!(vec![json!({"file": "x"}); 101])),
    ] {
        put_into(&pod.spool, name, with_inputs("true", inputs).to_string().as_bytes(), &[("x", b"x")]);
        pod.result(name).is("hold", "InvalidJob");
    }
    assert!(!Path::new("/x").exists());
}

/// SHA-256 of these bytes.
fn digest(bytes: &[u8]) -> String {
    latebind_contract::encoding::sha256_hex(bytes)
}

#[test]
fn inputs_come_from_the_web_where_the_operator_lets_them_and_only_with_their_checksum() {
    let scratch = Scratch::new();
    make_certificates(scratch.path());
    let archive = made("echo packed >file; tar -czf archive file");
    let half = made("head -c 60000000 /dev/urandom >x; tar -cf archive x");
    let (served, large) = (archive.clone(), half.clone());
    let server = WebServer::start(Some(scratch.path()), move |asked| match asked.path.as_str() {
        "/data/a.tar.gz?x=y" => Says::body(served.clone()),
        "/data/plain" => Says::body("plain\n"),
        "/data/half" => Says::body(large.clone()),
        "/data/moved" => Says::status(302).with("Location: /data/plain"),
        "/data/away" => Says::status(302).with("Location: /secret"),
        "/data/around" => Says::status(302).with("Location: /data/around"),
        "/data/large" => Says::body(vec![0; 200 << 20]),
        "/data/busy" => Says::status(503),
        "/secret" => Says::body("secret\n"),
        _ => Says::status(404),
    });
    let (mount, allowed) = (format!("{}:/etc/web:ro", scratch.path().display()), server.url("/data/"));
    let pod = Options::new()
        .host(&["--network", "host", "--data-size", "100m", "--mount", &mount])
        .pilot(&["--input-url", &allowed, "--input-ca", "/etc/web/ca.pem", "--max-attempts", "1"])
        .start();
    let job = |name: &str, script: &str, inputs: Value| pod.job(name, &with_inputs(script, inputs));
    let plain = digest(b"plain\n");
    let good = json!([
        {"url": server.url("/data/a.tar.gz?x=y"), "sha256": digest(&archive), "unpack": true},
        {"url": server.url("/data/plain"), "sha256": plain.to_uppercase()},
        {"url": server.url("/data/moved"), "sha256": plain, "to": "some/where"},
    ]);
    let outcome = job("good", "cat file plain some/where; stat -c %u plain", good);
    outcome.is_good();
    assert_eq!(outcome.text("stdout"), format!("packed\nplain\nplain\n{}\n", pod.uid(0)));
    let one = |name: &str, url: String, class: &str, reason: &str| {
        let outcome = job(name, "true", json!([{"url": url, "sha256": plain, "to": "x"}]));
        outcome.is(class, reason);
        outcome.report.message
    };
    let changed = json!([{"url": server.url("/data/plain"), "sha256": digest(b"other"), "to": "x"}]);
    let outcome = job("changed", "true", changed);
    outcome.is("hold", "InputUnusable");
    assert!(outcome.report.message.contains("SHA-256"), "{}", outcome.report.message);
    for (name, path) in [("secret", "/secret"), ("away", "/data/away"), ("above", "/data/%2e%2e/secret")] {
        let message = one(name, server.url(path), "hold", "InputUnusable");
        assert!(message.contains("fetches nothing from there"), "{name}: {message}");
    }
    let half = json!([{"url": server.url("/data/half"), "sha256": digest(&half), "unpack": true}]);
    let outcome = job("half", "true", half);
    outcome.is("retry", "InputUnusable");
    let message = outcome.report.message;
    assert!(message.contains("by themselves"), "there is no room for it and for what is in it: {message}");
    assert!(one("around", server.url("/data/around"), "hold", "InputUnusable").contains("redirections"));
    assert!(one("large", server.url("/data/large"), "hold", "InputUnusable").contains("more than"));
    assert!(one("none", server.url("/data/none"), "hold", "InputUnusable").contains("404"));
    assert!(one("busy", server.url("/data/busy"), "retry", "InputUnusable").contains("503"));
    one("http", server.url("/data/plain").replace("https:", "http:"), "hold", "InvalidJob");
}

/// As where another job has used up the process numbers of the pod.
#[test]
fn an_input_is_fetched_later_where_no_thread_can_be_made() {
    let scratch = Scratch::new();
    make_certificates(scratch.path());
    // Of the pilot; its processes are limited when it is sent elsewhere, by a name.
    let pilot: Arc<Mutex<Option<i32>>> = Arc::default();
    let lack: Arc<Mutex<Option<NoMoreProcesses>>> = Arc::default();
    let target = Arc::new(OnceLock::<String>::new());
    let server = WebServer::start(Some(scratch.path()), {
        let (pilot, lack, target) = (pilot.clone(), lack.clone(), target.clone());
        move |asked| match asked.path.as_str() {
            "/moved" => {
                *lack.lock().unwrap() = pilot.lock().unwrap().take().map(NoMoreProcesses::beside);
                Says::status(302).with(&format!("Location: {}", target.get().unwrap()))
            }
            "/file" => Says::body("content\n"),
            _ => Says::status(404),
        }
    });
    target.set(server.url_by_name("/file")).unwrap();
    let mount = format!("{}:/etc/web:ro", scratch.path().display());
    let pod = Options::new()
        .host(&["--network", "host", "--mount", &mount])
        .pilot(&["--input-url", "https://", "--input-ca", "/etc/web/ca.pem", "--max-attempts", "100"])
        .start();
    let watcher = pod.main_process("pilot");
    *pilot.lock().unwrap() = Some(watcher);
    let input = json!([{"url": server.url("/moved"), "sha256": digest(b"content\n"), "to": "file"}]);
    pod.put("a", &with_inputs("cat file", input));
    let first = pod.attempt("a", 1);
    lack.lock().unwrap().take();
    assert_eq!((first.class, first.reason.as_str()), (Class::Retry, "InputUnusable"), "{first:#?}");
    assert!(first.message.contains("no thread to look up localhost"), "{}", first.message);
    assert_eq!(pod.result("a").is_good().text("stdout"), "content\n");
    assert_eq!(pod.main_process("pilot"), watcher, "{}", pod.said());
}

#[test]
fn a_pilot_fetches_no_input_from_anywhere_unless_it_is_told_to() {
    let pod = Pod::start();
    let inputs = json!([{"url": "https://127.0.0.1/x", "sha256": "0".repeat(64)}]);
    let outcome = pod.job("a", &with_inputs("true", inputs));
    outcome.is("hold", "InputUnusable");
    assert!(outcome.report.message.contains("--input-url"), "{}", outcome.report.message);
    for (name, input) in [
        ("no-digest", json!({"url": "https://127.0.0.1/x"})),
        ("bad-digest", json!({"url": "https://127.0.0.1/x", "sha256": "0"})),
        ("both", json!({"file": "x", "url": "https://127.0.0.1/x", "sha256": "0".repeat(64)})),
        ("neither", json!({"to": "x"})),
        ("password", json!({"url": "https://a:b@127.0.0.1/x", "sha256": "0".repeat(64)})),
    ] {
        pod.job(name, &with_inputs("true", json!([input]))).is("hold", "InvalidJob");
    }
}
