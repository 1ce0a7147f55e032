//! Calls of podman, through the project's own wrapper: its storage, its settings.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use crate::pod::{Scratch, unique};

use crate::waiting::{LIMIT, within};

/// Whether slots are of images for arm64, which an emulator runs (`.ci/test-aarch64.sh`).
pub fn is_emulated() -> bool {
    std::env::var_os("LATEBIND_TEST_ARCHITECTURE").is_some_and(|name| name == "arm64")
}

/// `localhost/latebind/NAME:1`, an image of `images/`.
pub fn image(name: &str) -> String {
    format!("localhost/latebind/{name}:1{}", if is_emulated() { "-arm64" } else { "" })
}

/// Calls podman and returns whatever came of it.
///
/// # Panics
/// If podman cannot be called. One that does not end within a minute is killed, and answers 124 or 137.
pub fn call<S: AsRef<str>>(arguments: &[S]) -> Output {
    let wrapper = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/podman");
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", wrapper]).args(arguments.iter().map(AsRef::as_ref));
    // conmon of Debian 12 leaves a file `oom` where podman was called, when a container met its memory limit.
    command.current_dir(std::env::temp_dir());
    command.output().expect("timeout(1) of coreutils and images/podman can be run")
}

/// What podman 4.3 says when it has lost sight of a container on a busy machine: the fault is its own, and passes.
const PASSING_FAULTS: [&str; 2] = ["Starting some container dependencies", "no such exit code"];

/// `podman run`, again where podman itself stumbled. `name` is the container's.
pub fn run<S: AsRef<str>>(name: &str, arguments: &[S]) -> Output {
    for _ in 0..4 {
        let output = call(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() || !PASSING_FAULTS.iter().any(|fault| said.contains(fault)) {
            return output;
        }
        eprintln!("podman stumbled over {name}, trying again: {said}");
        let _ = call(&["rm", "--force", "--time=0", name]);
    }
    call(arguments)
}

/// Waits for the end of a container and returns its exit code.
///
/// # Panics
/// If it does not end.
pub fn exit_code(name: &str) -> i32 {
    within(LIMIT, "the container's end", || {
        let state = podman(&["inspect", "--format={{.State.Status}} {{.State.ExitCode}}", name]);
        state.strip_prefix("exited ").map(|code| code.parse().expect("an exit code is a number"))
    })
}

/// Calls podman and returns its standard output without the line end.
///
/// # Panics
/// With what podman said, if it failed.
pub fn podman<S: AsRef<str>>(arguments: &[S]) -> String {
    let output = call(arguments);
    let words: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "podman {}: {}\n{said}", words.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
}

/// An image that has nothing but a file of a name, and in place of `/shared`, where our volumes go, a link through the
/// same name. It goes with the value.
pub struct LinkedImage(String);

impl LinkedImage {
    /// Makes the image; a slash is left out of `name`.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(name: &str) -> Self {
        let name = name.replace('/', "");
        let scratch = Scratch::new();
        let root = scratch.path().join("root");
        fs::create_dir(&root).expect("a directory for the image");
        fs::write(root.join(&name), "").expect("a file of that name");
        symlink(format!("/{name}/x"), root.join("shared")).expect("a link through that name");
        let (root, tar) = (root.display().to_string(), scratch.path().join("image.tar").display().to_string());
        let packed = Command::new("tar").args(["-C", &root, "-cf", &tar, "."]).status().expect("tar can be run");
        assert!(packed.success(), "tar: {packed}");
        let image = image(&unique("linked"));
        podman(&["import", "--quiet", &tar, &image]);
        Self(image)
    }

    /// The image's name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for LinkedImage {
    fn drop(&mut self) {
        let _ = call(&["rmi", "--force", &self.0]);
    }
}
