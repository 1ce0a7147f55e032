//! latebind-host as an ordinary user has it, who is nobody's root.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use latebind_tests::pod::{BUSYBOX, DEBIAN, NOSHELL, unique};
use latebind_v2_tests::{output, shown, succeed};

const TRAPPING: &str = "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done";

/// An account with a session of its own, as systemd-logind makes one; removed at the end.
struct Account {
    name: String,
    program: String,
}

impl Account {
    fn new() -> Self {
        let name = unique("u");
        succeed("useradd", &["--create-home", "--shell", "/bin/bash", &name]);
        succeed("loginctl", &["enable-linger", &name]);
        let dist = fs::canonicalize("../../dist/latebind-host").unwrap();
        // Where every user can reach it.
        succeed("install", &["-m", "755", dist.to_str().unwrap(), "/usr/local/bin/latebind-host"]);
        Self { name, program: "/usr/local/bin/latebind-host".into() }
    }

    /// A command in the user's session.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("systemd-run");
        command.args(["--quiet", "--user", &format!("--machine={}@.host", self.name), "--pipe", "--wait", "--collect"]);
        command.args(["--working-directory", &format!("/home/{}", self.name)]).args(words);
        command
    }

    fn host(&self, words: &[&str]) -> Output {
        self.command(&[&[self.program.as_str()], words].concat()).output().unwrap()
    }

    /// Images of the machine's root, as the user's.
    fn load_images(&self) {
        let archive = format!("/home/{}/images.tar", self.name);
        let images = ["localhost/latebind/glue:1", "localhost/latebind/pilot:1", BUSYBOX, DEBIAN, NOSHELL];
        let save = [&["save", "--multi-image-archive", "--output", archive.as_str()], images.as_slice()].concat();
        succeed("../../images/podman", &save);
        succeed("chown", &[&self.name, &archive]);
        let loaded = self.host(&["podman", "load", "--input", &archive]);
        assert!(loaded.status.success(), "{}", shown(&loaded));
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let _ = output("loginctl", &["terminate-user", &self.name]);
        let _ = output("userdel", &["--force", "--remove", &self.name]);
    }
}

#[test]
fn an_ordinary_user_runs_commands_in_several_images() {
    let user = Account::new();
    user.load_images();
    let hello = user.host(&["run", NOSHELL, "--", "/probe", "hello"]);
    assert!(hello.status.success(), "{}", shown(&hello));
    let code = user.host(&["run", BUSYBOX, "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((code.status.code(), code.stdout.as_slice()), (Some(7), b"out\n".as_slice()), "{}", shown(&code));
    let look = "id -u; cat /sys/fs/cgroup/memory.max; grep ' / / ' /proc/self/mountinfo";
    let ids = user.host(&["run", DEBIAN, "--", "sh", "-c", look]);
    let text = String::from_utf8_lossy(&ids.stdout).into_owned();
    let lines: Vec<_> = text.lines().collect();
    // The payload UID of the pod, and the limit that --memory sets by default.
    assert!(lines.first().is_some_and(|uid| uid.parse::<u32>().is_ok_and(|uid| uid >= 20_000)), "{}", shown(&ids));
    assert_eq!(lines.get(1), Some(&"2147483648"), "{}", shown(&ids));
    assert!(lines.get(2).is_some_and(|root| root.contains("nodev")), "{}", shown(&ids));
    // TERM reaches the command, by way of the program outside of the namespace, whose code is the command's.
    let unit = unique("signalled");
    let mut command = user.command(&["--unit", &unit, &user.program, "run", BUSYBOX, "--", "sh", "-c", TRAPPING]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let machine = format!("--machine={}@.host", user.name);
    succeed("systemctl", &["--user", &machine, "kill", "--kill-whom=main", "--signal=TERM", &unit]);
    assert_eq!(child.wait().unwrap().code(), Some(9));
    let left = user.host(&["podman", "ps", "--all", "--quiet"]);
    assert_eq!(left.stdout, b"", "{}", shown(&left));
}

#[test]
fn a_user_without_subordinate_ids_is_told_what_to_do() {
    let user = Account::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap();
        let kept: Vec<_> = text.lines().filter(|line| !line.starts_with(&format!("{}:", user.name))).collect();
        fs::write(file, kept.join("\n") + "\n").unwrap();
    }
    let refused = user.host(&["run", BUSYBOX, "--", "true"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125), "{}", shown(&refused));
    assert!(text.contains("/etc/subuid") && text.contains("usermod --add-subuids"), "{text}");
}
