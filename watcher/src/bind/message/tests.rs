//! Messages as engines write them, and names of images that are made to be misread in them.

use super::*;

fn pull(image: &str, message: &str) -> Option<Reason> {
    Message::read(message, image).of_pull()
}

/// Messages of pulls that failed, with `{}` where the image's name stands as it was given, `{full}` in full, `{repo}`
/// its repository in full, `{tag}` its tag, `{host}` its registry and `{path}` the rest.
const PULLS: &[(&str, Option<Reason>)] = &[
    // containerd
    (
        "rpc error: code = NotFound desc = failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": {full}: not found",
        Some(Reason::ImageNotFound),
    ),
    (
        "failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": unexpected status code [manifests {tag}]: 401 Unauthorized",
        Some(Reason::ImageAccessDenied),
    ),
    (
        "failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": unexpected status from HEAD request to https://{host}/v2/{path}/manifests/{tag}: 403 Forbidden",
        Some(Reason::ImageAccessDenied),
    ),
    (
        "rpc error: code = Unknown desc = failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": unexpected status from HEAD request to https://{host}/v2/{path}/manifests/{tag}: 503 Service Unavailable",
        Some(Reason::RegistryUnavailable),
    ),
    (
        "Back-off pulling image \"{}\": ErrImagePull: rpc error: code = Unknown desc = failed to pull and unpack image \"{full}\": failed to copy: httpReadSeeker: failed open: unexpected status code https://{host}/v2/{path}/blobs/sha256:0: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit: not found",
        Some(Reason::RegistryBusy),
    ),
    (
        "failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
        Some(Reason::ImageAccessDenied),
    ),
    (
        "failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": failed to authorize: failed to fetch anonymous token: unexpected status from GET request to https://auth.example/token?scope=repository%3A{path}%3Apull&service={host}: 401 Unauthorized",
        Some(Reason::ImageAccessDenied),
    ),
    (
        "failed to resolve reference \"{full}\": failed to do request: Head \"https://{host}/v2/{path}/manifests/{tag}\": dial tcp: lookup {host} on 10.0.0.10:53: no such host",
        Some(Reason::RegistryUnavailable),
    ),
    (
        "failed to resolve reference \"{full}\": failed to do request: Head \"https://{host}/v2/{path}/manifests/{tag}\": dial tcp 10.0.0.1:443: i/o timeout",
        Some(Reason::RegistryUnavailable),
    ),
    (
        "rpc error: code = NotFound desc = failed to pull and unpack image \"{full}\": no match for platform in manifest: not found",
        Some(Reason::WrongArchitecture),
    ),
    (
        "rpc error: code = Unknown desc = failed to pull and unpack image \"{full}\": failed to extract layer sha256:1: write /var/lib/containerd/1/fs/a: no space left on device: unknown",
        Some(Reason::VolumeFull),
    ),
    // CRI-O and podman
    (
        "initializing source docker://{full}: reading manifest {tag} in {repo}: manifest unknown",
        Some(Reason::ImageNotFound),
    ),
    (
        "initializing source docker://{full}: reading manifest {tag} in {repo}: name unknown: repository {path} not found",
        Some(Reason::ImageNotFound),
    ),
    ("reading manifest {tag} in {repo}: requested access to the resource is denied", Some(Reason::ImageAccessDenied)),
    (
        "reading manifest {tag} in {repo}: unauthorized: access to the requested resource is not authorized",
        Some(Reason::ImageAccessDenied),
    ),
    (
        "reading manifest {tag} in {repo}: errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required",
        Some(Reason::ImageAccessDenied),
    ),
    (
        "initializing source docker://{full}: Requesting bearer token: invalid status code from registry 403 (Forbidden)",
        Some(Reason::ImageAccessDenied),
    ),
    (
        "initializing source docker://{full}: pinging container registry {host}: Get \"https://{host}/v2/\": dial tcp: lookup {host} on 1.1.1.1:53: no such host",
        Some(Reason::RegistryUnavailable),
    ),
    (
        "pinging container registry {host}: Get \"https://{host}/v2/\": dial tcp 10.0.0.1:443: connect: connection refused",
        Some(Reason::RegistryUnavailable),
    ),
    (
        "reading manifest {tag} in {repo}: toomanyrequests: You have reached your pull rate limit",
        Some(Reason::RegistryBusy),
    ),
    (
        "reading manifest {tag} in {repo}: received unexpected HTTP status: 503 Service Unavailable",
        Some(Reason::RegistryUnavailable),
    ),
    (
        "choosing an image from manifest list docker://{full}: no image found in manifest list for architecture amd64, variant \"\", OS linux",
        Some(Reason::WrongArchitecture),
    ),
    ("initializing source docker://{full}: something never heard of", None),
    ("copying system image from manifest list: writing blob: adding layer with blob \"sha256:1\": something", None),
    // Docker
    (
        "Error response from daemon: manifest for {} not found: manifest unknown: manifest unknown",
        Some(Reason::ImageNotFound),
    ),
    (
        "Error response from daemon: pull access denied for {}, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
        Some(Reason::ImageAccessDenied),
    ),
    (
        "Error response from daemon: Get \"https://{host}/v2/\": context deadline exceeded",
        Some(Reason::RegistryUnavailable),
    ),
    ("no matching manifest for linux/arm64/v8 in the manifest list entries", Some(Reason::WrongArchitecture)),
    ("invalid reference format", Some(Reason::InvalidImageName)),
    // The kubelet alone
    ("Back-off pulling image \"{}\"", None),
    ("", None),
];

fn filled(message: &str, image: &str) -> String {
    let Ok(r) = Reference::parse(image) else { return message.replace("{}", image) };
    let repo = r.repository();
    let (host, path) = repo.split_once('/').unwrap_or_default();
    let tag = r.tag.clone().unwrap_or("latest".into());
    let end = r.digest.as_ref().map_or_else(|| format!(":{tag}"), |digest| format!("@{digest}"));
    message
        .replace("{full}", &format!("{repo}{end}"))
        .replace("{repo}", &repo)
        .replace("{tag}", &tag)
        .replace("{host}", host)
        .replace("{path}", path)
        .replace("{}", image)
}

#[test]
fn what_a_failed_pull_means() {
    for (message, reason) in PULLS {
        let message = filled(message, "r.example:5000/team/tool:1");
        assert_eq!(pull("r.example:5000/team/tool:1", &message), *reason, "{message}");
    }
}

/// Words that decide, as far as a reference can hold them.
const WORDS: &[&str] = &[
    "denied",
    "unauthorized",
    "forbidden",
    "toomanyrequests",
    "timeout",
    "eof",
    "notfound",
    "not",
    "found",
    "unknown",
    "401",
    "403",
    "404",
    "429",
    "503",
    "x509",
    "tls",
    "lookup",
    "denied-app",
    "no_space_left_on_device",
    "manifest_unknown",
    "name_unknown",
    "insufficient_scope",
];

#[test]
fn an_images_name_decides_nothing_in_any_of_its_places() {
    let digest = format!("sha256:{}", "404".repeat(21) + "4");
    for word in WORDS {
        let images = [
            format!("r/{word}"),
            format!("{word}/x"),
            (*word).to_owned(),
            format!("{word}:1"),
            format!("x:{word}"),
            format!("{word}:5000/x:1"),
            format!("{}.example/x:1", word.replace('_', "-")),
            format!("r.example/{word}"),
            format!("r.example/{word}/{word}:{word}"),
            format!("localhost/{word}:{word}@{digest}"),
            format!("r.example/x@{digest}"),
        ];
        for image in images.iter().filter(|image| Reference::parse(image).is_ok()) {
            for (message, reason) in PULLS {
                let message = filled(message, image);
                let found = pull(image, &message);
                // A name without a registry is any word, and where a part of the message begins with it, nothing is
                // known of that.
                let unknown = !image.contains('/') && found.is_none();
                assert!(found == *reason || unknown, "{found:?}, not {reason:?}: {image}: {message}");
            }
        }
    }
}

#[test]
fn a_name_that_is_not_one_decides_nothing() {
    for image in ["x: 401 Unauthorized", "a\n404 Not Found", "A: denied: x", "\"denied: ", "x\": toomanyrequests: \""] {
        for quoted in [format!("{image:?}"), image.to_owned()] {
            let message = format!("failed to resolve reference {quoted}: something never heard of");
            assert!(!matches!(pull(image, &message), Some(Reason::RegistryBusy | Reason::VolumeFull)), "{message}");
        }
        let message = format!("failed to resolve reference {image}: something never heard of");
        assert_eq!(pull(image, &message), None, "{message}");
    }
}

#[test]
fn names_of_files_in_an_image_decide_nothing() {
    for name in ["a: 401 Unauthorized", "a: no space left on device", "a: manifest unknown", "a\nError: denied: x"] {
        for message in [
            format!(
                "failed to pull and unpack image \"r/x:1\": failed to extract layer sha256:1: mkdir /x/{name}: file exists: unknown"
            ),
            format!(
                "copying system image: writing blob: adding layer with blob \"sha256:1\": unpacking failed (error: exit status 1; output: lchown /{name}: invalid argument)"
            ),
            format!("failed to register layer: symlink {name:?}: file exists"),
        ] {
            assert_eq!(pull("r/x:1", &message), None, "{message}");
        }
    }
}

#[test]
fn a_registrys_own_text_decides_nothing() {
    let message = "failed to resolve reference \"r/x:1\": unexpected status from HEAD request to https://r/v2/x/manifests/1: 503 Service Unavailable - Server message: denied: 401 Unauthorized: not found";
    assert_eq!(pull("r/x:1", message), Some(Reason::RegistryUnavailable));
    let message = "pull access denied: server message: toomanyrequests: 429 x";
    assert_eq!(pull("r/x:1", message), Some(Reason::ImageAccessDenied));
}

#[test]
fn whose_fault_a_failed_start_is() {
    for message in [
        "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
        "context deadline exceeded",
        "rpc error: code = Unknown desc = failed to reserve container name \"x\": name \"x\" is reserved for \"1\"",
        "failed to create containerd container: mkdir /run/x: no space left on device",
        "fork/exec /usr/bin/runc: cannot allocate memory: unknown",
        "rpc error: code = Unavailable desc = connection error: desc = \"transport: dial unix\"",
    ] {
        let message = Message::read(message, "r/x:1");
        assert!(message.is_passing(), "{message:?}");
    }
    let quote = "open o_path procfd: open /merged/a\"b: no space left on device\"/x: not a directory";
    let read = Message::read(quote, "");
    assert!(!read.is_passing(), "a quote in a name hides nothing: {read:?}");
    for message in [
        "OCI runtime create failed: runc create failed: unable to start container process: error during container init: error mounting \"/v\" to rootfs at \"/shared/bin\": create mountpoint: make mountpoint \"/shared/bin\": not a directory: unknown",
        "crun: open `/a`: not a directory: OCI runtime error",
        "error mounting \"/v: no space left on device\" to rootfs at \"/a: context deadline exceeded\": mkdir \"x\": file exists",
        "unable to find user no space left on device: no matching entries in passwd file",
    ] {
        let read = Message::read(message, "r/x:1");
        assert!(!read.is_passing(), "{read:?}");
    }
}

#[test]
fn a_message_names_an_image_only_as_a_whole() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let fresh = format!("r/x:latebind-1@{digest}");
    for (message, image) in [
        ("failed to pull \"r/x:1\": not found", "r/x:1"),
        ("failed to pull \"docker.io/library/x:latest\"", "x"),
        ("docker.io/r/x:1: not found", "r/x:1"),
        ("reading manifest 1 in docker.io/r/x: manifest unknown", "r/x:1"),
        (&format!("docker.io/r/x@{digest}: not found"), fresh.as_str()),
        (&format!("no manifest {digest}."), fresh.as_str()),
        ("Back-off pulling image \"r/x:1\"", "r/x:1"),
        ("couldn't parse image name \"A b\"", "A b"),
    ] {
        assert!(names(message, image), "{image}: {message}");
    }
    for (message, image) in [
        ("failed to pull \"r/x-evil:1\": not found", "r/x"),
        ("failed to pull \"r/x/evil:1\": not found", "r/x"),
        ("failed to pull \"r/x.evil:1\": not found", "r/x"),
        ("failed to pull \"evil/r/x:1\": not found", "r/x:1"),
        ("failed to pull \"r/x:12\": not found", "r/x:1"),
        ("failed to pull \"docker.io/r/x:2\": not found", "r/x:1"),
        ("failed to pull \"evil.r/x:1\": not found", "r/x:1"),
    ] {
        assert!(!names(message, image), "{image}: {message}");
    }
}
