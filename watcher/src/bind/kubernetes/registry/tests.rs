#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where it fails")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::bind::Class;

/// A registry that answers each request line and `Authorization` by a head and a body.
type Answers = Arc<dyn Fn(&str, Option<&str>) -> (String, Vec<u8>) + Send + Sync>;

/// Serves on loopback until the test ends; returns `127.0.0.1:PORT`.
fn serve(answers: Answers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answers) = (stream.unwrap(), answers.clone());
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let first = lines.next().unwrap_or_default();
                let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let authorization = headers.iter().find_map(|line| {
                    line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, v)| v)
                });
                let (head, body) = answers(first.split(' ').nth(1).unwrap_or_default(), authorization);
                let head = format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            });
        }
    });
    address
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256_hex(bytes))
}

/// An image with an index, by its digest, and the three documents.
fn image() -> (String, Vec<Vec<u8>>) {
    let run = json!({"Entrypoint": ["/e"], "Cmd": ["c"], "WorkingDir": "/w"});
    let config = json!({"config": run, "history": []}).to_string().into_bytes();
    let manifest = json!({"config": {"digest": digest(&config)}, "layers": []}).to_string().into_bytes();
    let other = json!({"digest": digest(b"other"), "platform": {"architecture": "s390x", "os": "linux"}});
    let ours = json!({"digest": digest(&manifest), "platform": {"architecture": architecture(), "os": "linux"}});
    let index = json!({"manifests": [other, ours]}).to_string().into_bytes();
    (digest(&index), vec![index, manifest, config])
}

/// The document that a path asks for.
fn of_path(documents: &[Vec<u8>], path: &str) -> (String, Vec<u8>) {
    let found = documents.iter().find(|document| path.ends_with(&digest(document)));
    found.map_or(("404 Not Found".into(), Vec::new()), |found| ("200 OK".into(), found.clone()))
}

fn ask(host: &str, wanted: &str, pull_secret: Option<PathBuf>) -> Result<ImageCommand, Failure> {
    let registries = Registries::new(Options { pull_secret, plain_http: vec![host.into()], ca: None });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(registries.command("x:1", &format!("{host}/a/b@{wanted}")))
}

#[test]
fn an_images_command_is_found_by_way_of_its_index() {
    let (wanted, documents) = image();
    let host = serve(Arc::new(move |path, _| of_path(&documents, path)));
    let command = ask(&host, &wanted, None).unwrap();
    assert_eq!(
        (command.entrypoint, command.cmd, command.workdir.as_str()),
        (vec!["/e".into()], vec!["c".into()], "/w")
    );
    let absent = ask(&host, &digest(b"absent"), None).unwrap_err();
    assert_eq!((absent.class, absent.reason), (Class::Hold, Reason::ImageNotFound), "{absent:?}");
}

#[test]
fn a_token_is_asked_for_with_the_account_and_without_one_the_image_is_denied() {
    let (wanted, documents) = image();
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let own = address.clone();
    let host = serve(Arc::new(move |path, authorization| match (path, authorization) {
        (path, Some("Bearer good")) => of_path(&documents, path),
        ("/token?service=s&scope=repository%3Aa%2Fb%3Apull", Some("Basic bWU6cGFzcw==")) => {
            ("200 OK".into(), br#"{"token":"good"}"#.to_vec())
        }
        ("/token?service=s&scope=repository%3Aa%2Fb%3Apull", _) => ("401 Unauthorized".into(), Vec::new()),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", own.get().unwrap());
            (format!("401 Unauthorized\r\nwww-authenticate: {realm}"), Vec::new())
        }
    }));
    address.set(host.clone()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join(".dockerconfigjson");
    std::fs::write(&secret, json!({"auths": {&host: {"username": "me", "password": "pass"}}}).to_string()).unwrap();
    assert_eq!(ask(&host, &wanted, Some(secret.clone())).unwrap().cmd, ["c"]);
    for none in [None, Some(dir.path().join("missing"))] {
        let denied = ask(&host, &wanted, none.clone()).unwrap_err();
        let reason = if none.is_none() { Reason::ImageAccessDenied } else { Reason::RegistryUnavailable };
        assert_eq!(denied.reason, reason, "{denied:?}");
    }
    std::fs::write(&secret, "{\"password\": \"pass\"").unwrap();
    let broken = ask(&host, &wanted, Some(secret)).unwrap_err();
    assert!(!broken.message.contains("pass\""), "{broken:?}");
}

#[test]
fn what_a_registry_sends_is_what_its_digest_says_or_is_refused() {
    let (wanted, documents) = image();
    let lying = serve(Arc::new(move |path, _| {
        let (head, mut body) = of_path(&documents, path);
        body.push(b' ');
        (head, body)
    }));
    let refused = ask(&lying, &wanted, None).unwrap_err();
    assert!(refused.class == Class::Retry && refused.message.contains("something else"), "{refused:?}");
    let large = serve(Arc::new(|_, _| ("200 OK".into(), vec![b' '; DOCUMENT_MAX + 1])));
    let refused = ask(&large, &wanted, None).unwrap_err();
    assert!(refused.class == Class::Retry && refused.message.contains("cannot be read"), "{refused:?}");
    for body in [&b"{}"[..], b"[]", b"{\"manifests\":[]}", b"{\"config\":{\"digest\":\"../../x\"}}", b"\xff"] {
        let host = serve(Arc::new(move |_, _| ("200 OK".into(), body.to_vec())));
        let refused = ask(&host, &digest(body), None).unwrap_err();
        assert_eq!((refused.class, refused.reason), (Class::Hold, Reason::InvalidJob), "{refused:?}");
    }
}

#[test]
fn a_registry_leads_nowhere_that_the_operator_has_not_named() {
    let (wanted, documents) = image();
    let elsewhere = serve(Arc::new(move |path, authorization| {
        assert_eq!(authorization, None);
        of_path(&documents, path)
    }));
    let target = elsewhere.clone();
    let redirects =
        serve(Arc::new(move |path, _| (format!("307 Moved\r\nlocation: http://{target}{path}"), Vec::new())));
    let refused = ask(&redirects, &wanted, None).unwrap_err();
    assert!(refused.message.contains("redirects to no HTTPS address"), "{refused:?}");
    let named = Options { plain_http: vec![redirects.clone(), elsewhere], ..Options::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let registries = Registries::new(named);
    assert!(runtime.block_on(registries.command("x", &format!("{redirects}/a@{wanted}"))).is_ok());
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let own = address.clone();
    let circle =
        serve(Arc::new(move |_, _| (format!("302 Found\r\nlocation: http://{}/", own.get().unwrap()), Vec::new())));
    address.set(circle.clone()).unwrap();
    assert!(ask(&circle, &wanted, None).unwrap_err().message.contains("redirects more than"));
    let realm = serve(Arc::new(|_, _| {
        ("401 Unauthorized\r\nwww-authenticate: Bearer realm=\"http://169.254.169.254/t\"".into(), Vec::new())
    }));
    let denied = ask(&realm, &wanted, None).unwrap_err();
    assert!(denied.reason == Reason::ImageAccessDenied && denied.message.contains("not HTTPS"), "{denied:?}");
}

#[test]
fn a_registry_that_is_busy_or_away_is_tried_again_later() {
    for (head, reason) in [("429 Too Many", Reason::RegistryBusy), ("503 Away", Reason::RegistryUnavailable)] {
        let host = serve(Arc::new(move |_, _| (head.into(), Vec::new())));
        let refused = ask(&host, &digest(b""), None).unwrap_err();
        assert_eq!((refused.class, refused.reason), (Class::Retry, reason));
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert_eq!(ask(&nobody, &digest(b""), None).unwrap_err().reason, Reason::RegistryUnavailable);
}

#[test]
fn an_image_that_was_imported_has_no_registry() {
    let registries = Registries::new(Options::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let refused = runtime.block_on(registries.command("x", &digest(b""))).unwrap_err();
    assert!(refused.class == Class::Hold && refused.message.contains("imported"), "{refused:?}");
}
