//! One slot of a pod without a pilot: volumes, `glue install`, the pause container and payload containers with glue.
//! The test itself is the watcher.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use latebind_contract::layout;
use latebind_contract::record::Record;
use latebind_contract::startup::Startup;
use latebind_contract::status::{Phase, Status};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::engine::{self, call, image, podman, run};
use crate::job::{self, Finished, Submitted};
use crate::processes::{self, Process};
use crate::scratch::{LABEL, Scratch};
use crate::waiting::{LIMIT, deadline, within};

/// Capabilities of the init container.
pub const INSTALL_CAPABILITIES: [&str; 3] = ["CHOWN", "FOWNER", "DAC_OVERRIDE"];
/// Capabilities of a payload container.
pub const PAYLOAD_CAPABILITIES: [&str; 4] = ["SETUID", "SETGID", "KILL", "SETPCAP"];
/// A script that ends when the test says so: [`Slot::go`].
pub const WAIT_FOR_GO: &str = "while [ ! -e go ]; do sleep 0.02; done";
/// How often a waiting test looks whether glue still lives.
const LOOK_EVERY_MS: u16 = 200;

/// How the volume with glue is mounted in a payload container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bin {
    /// As it has to be.
    ReadOnly,
    /// So that it can be changed.
    Writable,
    /// Not at all: what is there is the image's.
    Missing,
}

/// What a payload container is to be. The default is what the design's table says.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Name in `images/`.
    pub image: String,
    /// More options of `podman run`.
    pub options: Vec<String>,
    /// Capabilities.
    pub capabilities: Vec<String>,
    /// What the engine does with volumes that the image declares; `None` leaves that to the engine.
    pub image_volumes: Option<&'static str>,
    /// Limit of processes.
    pub pids: u32,
    /// How glue's volume is mounted.
    pub bin: Bin,
    /// Whether `ctl/` is mounted, as it has to be.
    pub ctl: bool,
    /// Arguments of glue after `run --slot 0`.
    pub arguments: Vec<String>,
}

impl Shape {
    /// A container of this image.
    pub fn of(image: &str) -> Self {
        Self {
            image: image.into(),
            options: Vec::new(),
            capabilities: PAYLOAD_CAPABILITIES.map(str::to_owned).to_vec(),
            image_volumes: Some("ignore"),
            pids: 256,
            bin: Bin::ReadOnly,
            ctl: true,
            arguments: Vec::new(),
        }
    }

    /// With one more option of `podman run`.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }

    /// With another limit of processes.
    pub fn pids(mut self, pids: u32) -> Self {
        self.pids = pids;
        self
    }
}

/// A payload container.
struct Payload {
    name: String,
    pid: i32,
    cgroup: String,
    notified: Option<File>,
}

/// The slot. Its containers and files are removed on drop.
pub struct Slot {
    /// The payload's UID, from the owner of `work/`.
    pub uid: u32,
    /// The payload's GID.
    pub gid: u32,
    scratch: Scratch,
    payload: Option<Payload>,
    containers: u32,
}

impl Slot {
    /// A slot whose glue is ready, in a container of this image.
    pub fn new(image: &str) -> Self {
        Self::with(&Shape::of(image))
    }

    /// A slot whose glue is ready, in a container of this shape.
    pub fn with(shape: &Shape) -> Self {
        let mut slot = Self::installed();
        slot.start(shape);
        slot.await_ready();
        slot
    }

    /// A slot that is set up, without a payload container.
    pub fn installed() -> Self {
        let slot = Self::empty();
        let output = slot.install(&["--slot", "0"]);
        assert!(output.status.success(), "glue install: {}", said(&output));
        slot
    }

    /// Volumes as an engine makes them, open to everybody, and the pause container; nothing is installed.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn empty() -> Self {
        let scratch = Scratch::new();
        let slot = Self { uid: 20_000, gid: 20_000, scratch, payload: None, containers: 0 };
        for directory in [slot.bin(), slot.ctl(), slot.data()] {
            DirBuilder::new().mode(0o777).create(&directory).unwrap();
            fs::set_permissions(&directory, Permissions::from_mode(0o777)).unwrap();
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("latebind-test"), &slot.ctl(), Some("tmpfs"), flags, Some("size=16m,mode=0777")).unwrap();
        let mut arguments = slot.common(&slot.container("pause"), &[]);
        arguments.extend(["--detach", "--read-only", "--ipc=shareable", "--network=none"].map(str::to_owned));
        arguments.extend([image("glue"), "pause".into()]);
        started(&run(&slot.container("pause"), &arguments));
        slot
    }

    /// What the names of all this slot's containers begin with; `-pause` and so on follow.
    pub fn container_prefix(&self) -> String {
        format!("latebind-test-{}", self.scratch.name())
    }

    fn container(&self, part: &str) -> String {
        format!("{}-{part}", self.container_prefix())
    }

    fn common(&self, name: &str, capabilities: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "run",
            "--pull=never",
            "--user=0:0",
            "--workdir=/",
            "--umask=0022",
            "--no-healthcheck",
            "--no-hosts",
            "--http-proxy=false",
            "--systemd=false",
            "--security-opt=no-new-privileges",
            "--cap-drop=all",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(capabilities.iter().map(|c| format!("--cap-add={c}")));
        arguments.push(format!("--name={name}"));
        arguments.push(format!("--label={LABEL}={}", self.scratch.name()));
        arguments
    }

    fn namespaces(&self) -> [String; 3] {
        ["pid", "ipc", "network"].map(|kind| format!("--{kind}=container:{}", self.container("pause")))
    }

    fn volume(source: &Path, target: &str, read_only: bool) -> String {
        let mode = if read_only { ",readonly" } else { "" };
        let source = source.display();
        format!("--mount=type=bind,source={source},target={target},bind-propagation=rprivate,nosuid,nodev{mode}")
    }

    /// Runs `glue install` with these arguments in an init container.
    pub fn install(&self, arguments: &[&str]) -> Output {
        let mut all = self.common(&self.container("install"), &INSTALL_CAPABILITIES);
        all.extend(["--rm", "--read-only", "--network=none", "--image-volume=ignore"].map(str::to_owned));
        all.push(Self::volume(&self.bin(), layout::BIN, false));
        all.push(Self::volume(&self.ctl(), &layout::ctl(0), false));
        all.push(Self::volume(&self.data(), &layout::data(0), false));
        all.extend([image("glue"), "install".into()]);
        all.extend(arguments.iter().map(|word| (*word).to_owned()));
        run(&self.container("install"), &all)
    }

    /// Starts a payload container in place of the one before, and waits for nothing.
    pub fn start(&mut self, shape: &Shape) {
        self.remove_payload();
        self.containers += 1;
        let name = self.container(&format!("payload-{}", self.containers));
        let capabilities: Vec<&str> = shape.capabilities.iter().map(String::as_str).collect();
        let mut all = self.common(&name, &capabilities);
        let pidfile = self.scratch.path().join("pid");
        let _ = fs::remove_file(&pidfile);
        all.extend(["--detach", "--passwd=false", "--memory=512m"].map(str::to_owned));
        all.extend(self.namespaces());
        all.push(format!("--pids-limit={}", shape.pids));
        all.push(format!("--pidfile={}", pidfile.display()));
        if let Some(volumes) = shape.image_volumes {
            all.push(format!("--image-volume={volumes}"));
        }
        all.extend(shape.options.iter().cloned());
        if shape.bin != Bin::Missing {
            all.push(Self::volume(&self.bin(), layout::BIN, shape.bin == Bin::ReadOnly));
        }
        if shape.ctl {
            all.push(Self::volume(&self.ctl(), &layout::ctl(0), false));
        }
        all.push(Self::volume(&self.data(), &layout::data(0), false));
        let mut glue = vec![layout::GLUE.to_owned(), "run".into(), "--slot".into(), "0".into()];
        glue.extend(shape.arguments.iter().cloned());
        all.push(format!("--entrypoint={}", serde_json::to_string(&glue).unwrap()));
        all.push(image(&shape.image));
        started(&run(&name, &all));
        let pid = fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
        let cgroup = processes::cgroup(pid).unwrap_or_default();
        self.payload = Some(Payload { name, pid, cgroup, notified: None });
    }

    /// Removes the payload container, its processes with it.
    pub fn remove_payload(&mut self) {
        if let Some(payload) = self.payload.take() {
            podman(&["rm", "--force", "--volumes", "--time=0", &payload.name]);
        }
    }

    /// Waits until glue has said that it waits for a job.
    ///
    /// # Panics
    /// With what glue said, if it ended instead.
    pub fn await_ready(&mut self) -> Status {
        let pid = self.glue();
        let in_pod = Process::look(pid).map(|process| process.pid_in_pod);
        let status = within(LIMIT, "glue's ready", || {
            let status = self.try_status().filter(|s| s.phase == Phase::Ready && Some(s.pid) == in_pod);
            if status.is_none() && Process::look(pid).is_none_or(|p| !p.lives()) {
                panic!("glue ended before it was ready: {}", self.log());
            }
            status
        });
        (self.uid, self.gid) = (status.uid, status.gid);
        let notified = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.ctl().join(layout::WATCHER_NOTIFY));
        self.payload_mut().notified = Some(notified.expect("glue has made watcher.notify"));
        status
    }

    fn payload(&self) -> &Payload {
        self.payload.as_ref().expect("a payload container was started")
    }

    fn payload_mut(&mut self) -> &mut Payload {
        self.payload.as_mut().expect("a payload container was started")
    }

    /// Where `bin` is for the test.
    pub fn bin(&self) -> PathBuf {
        self.scratch.path().join("bin")
    }

    /// Where `ctl/` is for the test.
    pub fn ctl(&self) -> PathBuf {
        self.scratch.path().join("ctl")
    }

    /// Where `data/` is for the test.
    pub fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// Where `work/` is for the test.
    pub fn work(&self) -> PathBuf {
        self.data().join("work")
    }

    /// Process ID of glue, where the test runs.
    pub fn glue(&self) -> i32 {
        self.payload().pid
    }

    /// Name of the payload container.
    pub fn name(&self) -> &str {
        &self.payload().name
    }

    /// What glue has said so far in this container.
    pub fn log(&self) -> String {
        said(&call(&["logs", self.name()]))
    }

    /// The living processes of the payload container, glue among them.
    pub fn processes(&self) -> Vec<Process> {
        processes::in_cgroup(&self.payload().cgroup)
    }

    /// The living processes of the payload container but glue and its supervisor of a job.
    pub fn processes_of_the_payload(&self) -> Vec<Process> {
        let glue = self.glue();
        let is_supervisor = |process: &Process| process.uids.first() == Some(&self.kill_uid());
        self.processes().into_iter().filter(|process| process.pid != glue && !is_supervisor(process)).collect()
    }

    /// The slot's kill UID.
    pub fn kill_uid(&self) -> u32 {
        layout::DEFAULT_KILL_UID
    }

    /// The supervisor of the job that runs: glue's child with the kill UID.
    pub fn supervisor(&self) -> Option<Process> {
        self.processes().into_iter().find(|process| process.uids.first() == Some(&self.kill_uid()))
    }

    /// The job's main process, as glue names it, where the test runs.
    pub fn main_process(&self) -> Option<Process> {
        let main = self.status().main_pid?;
        self.processes().into_iter().find(|process| process.pid_in_pod == main)
    }

    /// Sends glue a signal.
    ///
    /// # Panics
    /// If glue is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.glue()), signal).expect("glue can be signalled");
    }

    /// Waits for the end of the container and returns its exit code.
    ///
    /// # Panics
    /// If it does not end.
    pub fn exit_code(&self) -> i32 {
        engine::exit_code(self.name())
    }

    /// Lets a job end that waits for the file `go` in `work/` ([`WAIT_FOR_GO`]).
    ///
    /// # Panics
    /// If the file cannot be made.
    pub fn go(&self) {
        fs::write(self.work().join("go"), "").unwrap();
    }

    fn try_status(&self) -> Option<Status> {
        serde_json::from_slice(&fs::read(self.ctl().join(layout::STATUS)).ok()?).ok()
    }

    /// What glue says of itself.
    ///
    /// # Panics
    /// If it says nothing.
    pub fn status(&self) -> Status {
        self.try_status().expect("status.json is there and can be read")
    }

    /// A job with defaults for everything but its arguments, meant for this glue.
    pub fn job(&self, argv: &[&str]) -> Startup {
        job::new(argv, self.uid, self.gid, &self.status().incarnation)
    }

    /// Puts a file into `ctl/` as a watcher does: under another name first.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let temporary = self.ctl().join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).unwrap();
        file.write_all(bytes).unwrap();
        fs::rename(temporary, self.ctl().join(name)).unwrap();
    }

    /// Notifies glue.
    ///
    /// # Panics
    /// If nobody listens.
    pub fn notify(&self) {
        let fifo =
            OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(self.ctl().join(layout::GLUE_NOTIFY));
        fifo.and_then(|mut fifo| fifo.write_all(b"\n")).expect("glue has glue.notify open");
    }

    /// Puts a startup file and notifies glue.
    pub fn submit(&self, startup: &Startup) -> Submitted {
        let bytes = startup.file().unwrap();
        self.put(layout::STARTUP, &bytes);
        self.notify();
        Submitted::new(startup, &bytes)
    }

    /// Waits, by notifications alone, until the status is as it is wanted.
    ///
    /// # Panics
    /// With the status and glue's log, if the time is over or glue is gone.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        self.wait_at_most(LIMIT, what, wanted)
    }

    /// The same with a limit of its own.
    pub fn wait_at_most(&self, limit: Duration, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let deadline = deadline(limit);
        let mut notified = self.payload().notified.as_ref().expect("await_ready has been called");
        loop {
            // Emptied first: a notification from now on is not lost.
            while notified.read(&mut [0; 64]).is_ok_and(|n| n == 64) {}
            let gone = Process::look(self.glue()).is_none_or(|glue| !glue.lives());
            if let Some(status) = self.try_status().filter(&wanted) {
                return status;
            }
            let notified = loop {
                let mut wait = [PollFd::new(notified.as_fd(), PollFlags::POLLIN)];
                if poll(&mut wait, LOOK_EVERY_MS).is_ok_and(|n| n > 0) {
                    break true;
                }
                let ended = Process::look(self.glue()).is_none_or(|glue| !glue.lives());
                if gone || ended || Instant::now() >= deadline {
                    break false;
                }
            };
            // Glue may have put its last word and ended meanwhile.
            if !notified
                && !self.try_status().filter(|_| Instant::now() < deadline && !gone).is_some_and(|s| wanted(&s))
            {
                panic!(
                    "{what}: not within {limit:?}, or glue is gone; status {:?}, processes {:?}, log:\n{}",
                    self.try_status(),
                    self.processes(),
                    self.log()
                );
            }
        }
    }

    /// Waits until the job's program runs, and returns its process.
    pub fn await_start(&self, submitted: &Submitted) -> Process {
        let nonce = submitted.startup.nonce.clone();
        self.wait_for("the job's start", |s| s.nonce.as_ref() == Some(&nonce) && s.main_pid.is_some());
        self.main_process().expect("the main process lives")
    }

    /// Waits until the job's program runs and is prepared for TERM: the kernel has it down as blocked, ignored or
    /// caught, or it says so on standard output, as the probe does. (A signal that is waited for is not shown as
    /// blocked.)
    pub fn await_term_handling(&self, submitted: &Submitted) -> Process {
        let main = self.await_start(submitted);
        let says_so = || fs::read_to_string(self.work().join("stdout")).is_ok_and(|text| text.contains("SIGTERM"));
        within(LIMIT, "the job's handling of TERM", || (main.handles(Signal::SIGTERM) || says_so()).then_some(()));
        main
    }

    /// Waits for the job's end, and checks its record.
    ///
    /// # Panics
    /// If there is none that holds.
    pub fn finish(&self, submitted: &Submitted) -> Finished {
        self.finish_at_most(LIMIT, submitted)
    }

    /// The same with a limit of its own.
    ///
    /// # Panics
    /// If there is no record that holds.
    pub fn finish_at_most(&self, limit: Duration, submitted: &Submitted) -> Finished {
        let nonce = submitted.startup.nonce.clone();
        let refused = |s: &Status| s.refused.as_ref().is_some_and(|r| r.startup_sha256 == submitted.sha256);
        let over = |s: &Status| refused(s) || (s.phase == Phase::Done && s.nonce.as_ref() == Some(&nonce));
        let status = self.wait_at_most(limit, "the job's end", over);
        assert!(!refused(&status), "the startup file was refused: {:?}", status.refused);
        let jws = fs::read(self.ctl().join(layout::RECORD)).expect("record.jws is there");
        let record = submitted.check(Some(&jws)).expect("the record holds");
        let read = |name: &str| {
            let bytes = fs::read(self.work().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Finished { record, jws, out: read("stdout"), err: read("stderr") }
    }

    /// Runs one job from its startup file to its record.
    pub fn run(&self, startup: &Startup) -> Finished {
        self.finish(&self.submit(startup))
    }

    /// Runs a job with defaults for everything but its arguments.
    pub fn run_args(&self, argv: &[&str]) -> Finished {
        self.run(&self.job(argv))
    }

    /// Runs a shell script in an image that has `/bin/sh`.
    pub fn run_script(&self, script: &str) -> Finished {
        self.run_args(&["/bin/sh", "-c", script])
    }

    /// Runs a job that ends well and says one word: glue serves.
    ///
    /// # Panics
    /// If glue does not serve.
    pub fn prove_that_it_serves(&self) -> Record {
        let mut startup = self.job(&["/probe", "exit", "5"]);
        startup.job = "the next one".into();
        let finished = self.run(&startup);
        assert_eq!(finished.record.exit_code, Some(5), "{:?}", finished.record);
        finished.record
    }

    /// Another container of the pod, which is neither glue's nor a pilot's: `argv` under `user`, with these
    /// capabilities.
    /// Returns its name and the ID of its main process.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn neighbour(&mut self, image_name: &str, user: &str, capabilities: &[&str], argv: &[&str]) -> (String, i32) {
        self.containers += 1;
        let name = self.container(&format!("neighbour-{}", self.containers));
        let pidfile = self.scratch.path().join(format!("pid-{}", self.containers));
        let mut all = self.common(&name, capabilities);
        all.retain(|argument| !argument.starts_with("--user"));
        all.extend(["--detach".into(), format!("--user={user}"), format!("--pidfile={}", pidfile.display())]);
        all.extend(["--pids-limit=64".into(), "--entrypoint=".into(), "--passwd=false".into()]);
        all.extend(self.namespaces());
        all.push(image(image_name));
        all.extend(argv.iter().map(|word| (*word).to_owned()));
        started(&run(&name, &all));
        let pid = fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
        (name, pid)
    }
}

fn started(output: &Output) {
    assert!(output.status.success(), "a container could not be started: {}", said(output));
}

/// Standard output and standard error of a command, one after the other.
pub fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).into_owned()
}
