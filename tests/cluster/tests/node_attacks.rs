//! A payload that has found the API server: it is nobody there. The server is in every pod's network; the client is this
//! machine's, since no image has one that speaks TLS.

use std::process::Command;

use latebind_cluster_tests::pilot::{Options, debian};
use latebind_cluster_tests::{cluster, needs};
use latebind_tests::pod::Running;

/// openssl and its libraries, to be taken along as inputs.
fn openssl() -> Vec<(String, Vec<u8>)> {
    let listed =
        Running::start(Command::new("sh").args(["-c", "p=$(command -v openssl) && echo $p && ldd $p"]), Vec::new());
    let listed = listed.finish(std::time::Duration::from_secs(10));
    assert_eq!(listed.code, Some(0), "openssl is missing: tests/cluster/install.sh; {}", listed.err());
    let text = listed.out();
    // The C library is the image's own.
    let paths = text.split_whitespace().filter(|w| w.starts_with('/') && (w.contains("ssl") || w.contains("crypto")));
    let file = |path: &str| (format!("inputs/{}", path.rsplit('/').next().unwrap()), std::fs::read(path).unwrap());
    paths.map(file).collect()
}

#[test]
fn the_api_server_does_not_know_a_payload() {
    needs("1.20 or later; node, host network");
    let pilot = Options::new().spool(&[]).start();
    let server = format!("127.0.0.1:{}", cluster().api_port());
    let pod = format!("/api/v1/namespaces/{}/pods/{}", pilot.namespace.name(), pilot.pod);
    let requests = [
        ("GET", pod.as_str()),
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/nodes"),
        ("PATCH", pod.as_str()),
        ("DELETE", pod.as_str()),
    ];
    let ask = |(method, path): &(&str, &str)| {
        let request = format!(
            "{method} {path} HTTP/1.1\\r\\nHost: {server}\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n"
        );
        let client = "LD_LIBRARY_PATH=. /lib64/ld-linux-x86-64.so.2 ./openssl s_client -quiet -connect";
        format!("printf '{request}' | {client} {server} 2>err | head -n 1 || cat err")
    };
    let script: Vec<String> = requests.iter().map(ask).collect();
    let files = openssl();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    pilot.put_with("asks", &debian(&script.join("\n")), &files);
    let outcome = pilot.result("asks");
    let answers = outcome.is_good().text("stdout");
    assert_eq!(answers.lines().count(), requests.len(), "{answers}{}", outcome.text("stderr"));
    for (answer, (method, path)) in answers.lines().zip(requests) {
        let refused = answer.contains(" 401 ") || answer.contains(" 403 ");
        assert!(refused, "{method} {path}: {answer}");
    }
}
