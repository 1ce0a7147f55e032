//! latebind-host on docker: a daemon of the test's own, with its own data and socket and no network.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use latebind_tests::made_image::MadeImage;
use latebind_tests::pod::{
    BUSYBOX, DEBIAN, NOSHELL, Options, Ran, Running, Scratch, eventually, host, kill, podman, probe, shell, unique,
    with,
};
use latebind_tests::terminal::Terminal;
use nix::sys::signal::Signal;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(120);
/// Declares a volume that a link of the image makes lie where glue should be.
const LINKED_VOLUME: &str = "localhost/latebind/volume-bin-link:1";
/// Where Debian's docker is: another one may come first in PATH.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything of docker goes with the value.
struct Daemon {
    daemon: Child,
    scratch: Scratch,
}

impl Daemon {
    /// Starts one that has these images.
    fn with(images: &[&str]) -> Self {
        let scratch = Scratch::new();
        let path = |name: &str| scratch.path().join(name);
        let log = File::create(path("log")).unwrap();
        let daemon = Command::new("dockerd")
            .env("PATH", PATH)
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .arg(format!("--host=unix://{}", path("sock").display()))
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            // What it would set by itself is above what a machine without CAP_SYS_RESOURCE lets it set.
            .arg("--default-ulimit=nofile=1024:20000")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("dockerd is missing: .ci/setup.sh test");
        let this = Self { daemon, scratch };
        eventually("docker answers", LIMIT, || this.docker(&["version"]).status.success().then_some(()));
        let archive = this.scratch.path().join("images.tar");
        let archive = archive.to_str().unwrap();
        let saved = podman(&[&["save", "--quiet", "--multi-image-archive", "--output", archive], images].concat());
        assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
        let loaded = this.docker(&["load", "--input", archive]);
        assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
        std::fs::remove_file(archive).unwrap();
        this
    }

    fn host_variable(&self) -> String {
        format!("unix://{}", self.scratch.path().join("sock").display())
    }

    fn docker(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("docker");
        command.env("PATH", PATH).env("DOCKER_HOST", self.host_variable()).args(arguments).output().unwrap()
    }

    fn lines(&self, arguments: &[&str]) -> Vec<String> {
        String::from_utf8_lossy(&self.docker(arguments).stdout).lines().map(str::to_owned).collect()
    }

    /// `latebind-host run` with these arguments.
    fn run(&self, arguments: &[&str]) -> Command {
        let mut command = host(&["--engine", "docker", "run", "--name", &unique("docker")]);
        command.env("PATH", PATH).env("DOCKER_HOST", self.host_variable()).args(arguments);
        command
    }

    fn ran(&self, arguments: &[&str]) -> Ran {
        Running::start(&mut self.run(arguments), Vec::new()).finish(LIMIT)
    }

    fn pod(&self, options: &[&str]) -> Options {
        let pod = Options::new().host(&["--engine", "docker"]).host(options);
        pod.env("DOCKER_HOST", &self.host_variable()).env("PATH", PATH)
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        assert_eq!(self.lines(&["ps", "--all", "--format={{.Names}}"]), Vec::<String>::new());
        assert_eq!(self.lines(&["volume", "ls", "--quiet"]), Vec::<String>::new());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        kill(self.daemon.id() as i32, Signal::SIGTERM);
        let _ = self.daemon.wait();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(self.scratch.path()) {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

const OURS: [&str; 2] = ["localhost/latebind/glue:1", "localhost/latebind/pilot:1"];

#[test]
fn one_command_runs_as_with_podman_and_leaves_nothing() {
    let docker = Daemon::with(&[&OURS[..], &[BUSYBOX]].concat());
    let ran = docker.ran(&[BUSYBOX, "--", "sh", "-c", "id -u; hostname; echo error >&2; exit 7"]);
    assert_eq!((ran.code, ran.err().as_str()), (Some(7), "error\n"), "{}", ran.out());
    let lines: Vec<String> = ran.out().lines().map(str::to_owned).collect();
    assert!(lines[0].parse::<u32>().unwrap() >= 20_000 && lines[1].starts_with("docker-"), "{lines:?}");
    let input = Running::start(&mut docker.run(&["-i", BUSYBOX, "--", "cat"]), b"through\n".to_vec()).finish(LIMIT);
    assert_eq!((input.code, input.out().as_str()), (Some(0), "through\n"), "{}", input.err());
    // A signal reaches the command.
    let mut child =
        docker.run(&[BUSYBOX, "--", "sh", "-c", "trap 'exit 9' USR1; echo up; while :; do sleep 0.1; done"]);
    let mut child = child.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut up).unwrap();
    kill(child.id() as i32, Signal::SIGUSR1);
    assert_eq!(eventually("its end", LIMIT, || child.try_wait().unwrap()).code(), Some(9));
    let absent = docker.ran(&["localhost/latebind/absent:1", "--", "true"]);
    assert_eq!(absent.code, Some(125));
    assert!(absent.err().contains("is not on this machine"), "{}", absent.err());
    docker.assert_nothing_is_left();
}

#[test]
fn shared_memory_is_as_large_as_was_asked_for() {
    let docker = Daemon::with(&[&OURS[..], &[BUSYBOX]].concat());
    let ran = docker.ran(&["--shm-size", "96m", BUSYBOX, "sh", "-c", "df -k /dev/shm | tail -n 1 | awk '{print $2}'"]);
    assert_eq!((ran.code, ran.out().as_str()), (Some(0), "98304\n"), "{}", ran.err());
    docker.assert_nothing_is_left();
}

#[test]
fn a_command_has_a_terminal_and_another_one_beside_it() {
    let docker = Daemon::with(&[&OURS[..], &[BUSYBOX]].concat());
    let name = unique("docker");
    let mut run = host(&["--engine", "docker", "run", "--name", &name, "--exec", "-it"]);
    let script = "tty; stty size; echo ready; read line; echo \"line: $line\"; exit 6";
    run.env("PATH", PATH).env("DOCKER_HOST", docker.host_variable()).args([BUSYBOX, "sh", "-c", script]);
    let mut terminal = Terminal::start(&run, [33, 77]);
    let first = terminal.until("33 77");
    assert!(first.contains("/dev/pts/"), "{first}");
    terminal.until("ready");
    assert!(terminal.is_raw());
    let mut exec = host(&["--engine", "docker", "exec", "-i", &name, "sh", "-c", "cat; exit 3"]);
    exec.env("PATH", PATH).env("DOCKER_HOST", docker.host_variable());
    let beside = Running::start(&mut exec, b"beside\n".to_vec()).finish(LIMIT);
    assert_eq!((beside.code, beside.out().as_str()), (Some(3), "beside\n"), "{}", beside.err());
    terminal.types("typed\r");
    terminal.until("line: typed");
    assert_eq!(terminal.end(), Some(6));
    docker.assert_nothing_is_left();
}

#[test]
fn each_option_of_docker_run_works_or_says_what_to_do_instead() {
    let help = Command::new("docker").env("PATH", PATH).args(["run", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut options = 0;
    for line in help.lines().map(str::trim_start).filter(|line| line.starts_with('-')) {
        // A line may also begin with a number of the sentence above: "-1 to enable unlimited swap".
        let is_option = |word: &&str| word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_alphabetic());
        let words = line.split("  ").next().unwrap().split([',', ' ']).filter(|word| word.starts_with('-'));
        for option in words.filter(is_option) {
            options += 1;
            for (program, verb) in [("latebind-host", "run"), ("watcher", "run")] {
                // The second one is never reached: it has no image, or is refused before.
                let ran =
                    Running::start(Command::new(latebind_tests::pod::program(program)).args([verb, option]), vec![])
                        .finish(LIMIT);
                let said = ran.err();
                // Neither program knows less of it than that it needs a value, or an image.
                let known = ["a value is required", "required arguments were not provided", "docker's option"];
                let is_help = option == "--help" && ran.code == Some(0);
                // Docker's `-h` is the host name.
                let is_ours = option == "-h" && ran.code == Some(0);
                assert!(
                    is_help || is_ours || known.iter().any(|known| said.contains(known)),
                    "{verb} {option}: {said}"
                );
            }
        }
    }
    assert!(options > 90, "{options} options in: {help}");
}

#[test]
fn one_pod_runs_jobs_in_three_images_within_its_limits() {
    let docker = Daemon::with(&[&OURS[..], &[BUSYBOX, NOSHELL, DEBIAN]].concat());
    let mut pod = docker.pod(&["--memory", "96m"]).start();
    assert_eq!(pod.job("one", &shell("echo one")).is_good().text("stdout"), "one\n");
    pod.job("two", &probe(&["hello"])).is_good();
    let debian = json!({"image": DEBIAN, "argv": ["/bin/cat", "/etc/debian_version"]});
    assert!(!pod.job("three", &debian).is_good().text("stdout").is_empty());
    pod.job("large", &probe(&["memory", "120", "0"])).is("hold", "OutOfMemory");
    pod.job("absent", &json!({"image": "localhost/latebind/absent:1", "argv": ["x"]})).is("hold", "ImageNotFound");
    // A job that is told to stop is given back, and the pod ends with its pilot.
    pod.put("given-back", &with(probe(&["sleep", "60"]), "grace_s", json!(1)));
    pod.runs("given-back.1", 0);
    pod.signal(Signal::SIGTERM);
    assert_eq!(pod.end(LIMIT).code(), Some(0), "{}", pod.said());
    assert_eq!(pod.attempt("given-back", 1).reason.as_str(), "Cancelled");
    docker.assert_nothing_is_left();
}

#[test]
fn an_image_that_declares_a_volume_is_refused_and_docker_makes_none() {
    let docker = Daemon::with(&[&OURS[..], &[LINKED_VOLUME]].concat());
    let pod = docker.pod(&[]).start();
    let outcome = pod.job("linked", &json!({"image": LINKED_VOLUME, "argv": ["/probe", "hello"]}));
    outcome.is("hold", "ImageControlsEngine");
    assert!(outcome.report.message.contains("/x/y/z/bin") && outcome.report.message.contains("VOLUME"));
    drop(pod);
    docker.assert_nothing_is_left();
}

#[test]
fn a_job_without_a_program_runs_the_images_own_command() {
    let image = MadeImage::new("WORKDIR /tmp\nENTRYPOINT [\"/bin/echo\", \"e\"]\nCMD [\"c\"]", &[]);
    let docker = Daemon::with(&[&OURS[..], &[image.name()]].concat());
    let says = |arguments: &[&str], wanted: &str| {
        let ran = docker.ran(arguments);
        assert_eq!((ran.code, ran.out().as_str()), (Some(0), wanted), "{}", ran.err());
    };
    says(&[image.name()], "e c\n");
    says(&["--args", image.name(), "--", "x"], "e x\n");
    says(&["--entrypoint", "/bin/pwd", "--workdir", "/tmp", image.name()], "/tmp\n");
    docker.assert_nothing_is_left();
}
