//! A pod of `latebind-host` for one test, with a spool of its own; nothing of it is left when the value goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

pub use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::{Value, json};
use watcher::bind::Reason;
use watcher::job::Report;

use crate::waiting::deadline;

/// A shell, the usual tools, and /probe.
pub const BUSYBOX: &str = "localhost/latebind/busybox:1";
/// /probe and nothing else.
pub const NOSHELL: &str = "localhost/latebind/noshell:1";
/// Debian's smallest set of packages.
pub const DEBIAN: &str = "localhost/latebind/debian:1";

/// How long a pod may take until its pilot serves.
pub const START_WITHIN: Duration = Duration::from_secs(60);
/// How long a short job may take from the spool to its result.
pub const JOB_WITHIN: Duration = Duration::from_secs(60);
/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Where containers, images and pods are kept.
pub fn state() -> PathBuf {
    std::env::var_os("LATEBIND_STATE").map_or_else(|| "/var/lib/latebind-host".into(), PathBuf::from)
}

/// A program of `dist/`.
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist").join(name);
    assert!(path.exists(), "{} is missing: make build", path.display());
    path
}

/// A name that no other test has, also where several test programs run, each in its own PID namespace.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let nanos = latebind_contract::time::wall().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    format!("{prefix}-{:x}-{}", nanos & 0xff_ffff_ffff, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Asks until there is an answer, and fails when that takes too long.
pub fn eventually<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let give_up = deadline(limit);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < give_up, "not within {limit:?}: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// A directory that goes with the value.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty one.
    pub fn new() -> Self {
        Self::beneath(&std::env::temp_dir())
    }

    /// The same in memory, for a test that makes thousands of files.
    pub fn in_memory() -> Self {
        Self::beneath(Path::new("/dev/shm"))
    }

    fn beneath(top: &Path) -> Self {
        let path = top.join(unique("latebind-test"));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Ran {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A program under way, whose streams are read in the background.
pub struct Running {
    /// The program.
    pub child: Child,
    stdout: thread::JoinHandle<Vec<u8>>,
    stderr: thread::JoinHandle<Vec<u8>>,
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

impl Running {
    /// Starts `command`; `input` is written to its standard input, which is then closed.
    pub fn start(command: &mut Command, input: Vec<u8>) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cannot start");
        let mut to = child.stdin.take().unwrap();
        thread::spawn(move || to.write_all(&input));
        let (stdout, stderr) = (read_all(child.stdout.take().unwrap()), read_all(child.stderr.take().unwrap()));
        Self { child, stdout, stderr }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.child.id() as i32, signal);
    }

    /// Waits for its end, at most `limit`.
    pub fn finish(mut self, limit: Duration) -> Ran {
        let status = wait_for(&mut self.child, limit);
        if status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let (stdout, stderr) = (self.stdout.join().unwrap(), self.stderr.join().unwrap());
        let ran = |status: ExitStatus| Ran { code: status.code(), signal: status.signal(), stdout, stderr };
        ran(status.unwrap_or_else(|| panic!("not at its end within {limit:?}")))
    }
}

fn wait_for(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let give_up = deadline(limit);
    while Instant::now() < give_up {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(LOOK_EVERY);
    }
    None
}

/// Sends a signal to a process, which may be gone.
pub fn kill(pid: i32, signal: Signal) {
    assert!(pid > 0, "{pid} is no process");
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
}

/// Whether a process has ended and been reaped.
pub fn is_gone(pid: i32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// `latebind-host` with these arguments.
pub fn host(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("latebind-host"));
    command.args(arguments);
    command
}

/// `latebind-host run` with a unique name and these arguments, to its end.
pub fn run(arguments: &[&str]) -> Ran {
    run_with_input(arguments, Vec::new())
}

/// The same with something on standard input.
pub fn run_with_input(arguments: &[&str], input: Vec<u8>) -> Ran {
    Running::start(host(&["run", "--name", &unique("run")]).args(arguments), input).finish(JOB_WITHIN)
}

/// podman on the project's storage.
pub fn podman(arguments: &[&str]) -> Output {
    host(&["podman", "--"]).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// All that there is of a pod on this machine: containers, mounts, directories.
pub fn traces(pod: &str) -> Vec<String> {
    let mut found = Vec::new();
    let listed = podman(&["ps", "--all", "--quiet", "--filter", &format!("label=latebind.pod={pod}")]);
    assert!(listed.status.success(), "podman ps: {}", String::from_utf8_lossy(&listed.stderr));
    found.extend(String::from_utf8_lossy(&listed.stdout).lines().map(|id| format!("container {id}")));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let inside = format!("/pods/{pod}/");
    found.extend(mounts.lines().filter(|l| l.contains(&inside)).map(|l| format!("mount {l}")));
    for entry in fs::read_dir(state().join("pods")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == pod || name == format!("{pod}.lock") {
            found.push(format!("file {}", entry.path().display()));
        }
    }
    found
}

/// What a test asks of its pod.
#[derive(Default)]
pub struct Options {
    slots: u32,
    host: Vec<String>,
    pilot: Vec<String>,
    spool: Option<PathBuf>,
    source: Option<Vec<String>>,
    env: Vec<(&'static str, String)>,
}

impl Options {
    /// One slot, no limits to speak of, and a pilot that serves until the test ends.
    pub fn new() -> Self {
        Self { slots: 1, ..Self::default() }
    }

    /// The same, and its slots are given by `--slot` ([`Options::host`]).
    pub fn without_slots() -> Self {
        Self::default()
    }

    /// So many slots.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Further options of `latebind-host pod`.
    pub fn host(mut self, arguments: &[&str]) -> Self {
        self.host.extend(arguments.iter().map(|a| (*a).to_owned()));
        self
    }

    /// Further options of `watcher pilot`.
    pub fn pilot(mut self, arguments: &[&str]) -> Self {
        self.pilot.extend(arguments.iter().map(|a| (*a).to_owned()));
        self
    }

    /// A variable of latebind-host's environment.
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    /// Where jobs come from, in place of the spool; `/spool` is then any directory that pilot and test share.
    pub fn source(mut self, arguments: &[&str]) -> Self {
        self.source = Some(arguments.iter().map(|a| (*a).to_owned()).collect());
        self
    }

    /// A spool that the test owns, instead of one for this pod alone.
    pub fn spool(mut self, spool: &Path) -> Self {
        self.spool = Some(spool.to_owned());
        self
    }

    /// Starts the pod. Jobs can be put at once.
    pub fn start(self) -> Pod {
        let scratch = Scratch::new();
        let spool = self.spool.unwrap_or_else(|| scratch.path().join("spool"));
        fs::create_dir_all(spool.join("new")).unwrap();
        let name = unique("t");
        let log = scratch.path().join("log");
        let mut command = host(&["pod", "--name", &name]);
        if self.slots > 0 {
            command.args(["--slots", &self.slots.to_string()]);
        }
        let source = self.source.unwrap_or_else(|| vec!["--spool".into(), "/spool".into()]);
        command.arg("--spool").arg(&spool).args(&self.host).args(["--", "pilot"]).args(source).args(&self.pilot);
        let to = File::create(&log).unwrap();
        let child = command
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(to.try_clone().unwrap())
            .stderr(to)
            .spawn()
            .expect("cannot start latebind-host");
        Pod { name, spool, log, host: child, _scratch: scratch }
    }
}

/// A pod under way.
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its spool.
    pub spool: PathBuf,
    log: PathBuf,
    host: Child,
    _scratch: Scratch,
}

/// What became of a job.
#[derive(Debug)]
pub struct Outcome {
    /// `done` or `held`.
    pub place: &'static str,
    /// The job's directory there.
    pub dir: PathBuf,
    /// Its report.
    pub report: Report,
}

impl Outcome {
    /// A file of the result, as text.
    pub fn text(&self, name: &str) -> String {
        let path = self.dir.join("result").join(name);
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}\n{:#?}", path.display(), self.report));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The lines of standard output as JSON, which is how probe answers.
    pub fn answers(&self) -> Vec<Value> {
        let lines = self.text("stdout");
        lines.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect()
    }

    /// The container that it ran in.
    pub fn container(&self) -> &str {
        &self.report.container.as_ref().unwrap_or_else(|| panic!("no container in {:#?}", self.report)).id
    }

    /// Class and reason.
    pub fn class(&self) -> (&str, &str) {
        (self.report.class.name(), self.report.reason.as_str())
    }

    /// Fails unless class and reason are these.
    #[track_caller]
    pub fn is(&self, class: &str, reason: &str) -> &Self {
        let known = Reason::parse(reason).unwrap_or_else(|| panic!("{reason} is not a reason"));
        assert!(known.classes().iter().any(|c| c.name() == class), "{reason} is never {class}");
        assert_eq!(self.class(), (class, reason), "{:#?}", self.report);
        self
    }

    /// Fails unless the job ended well, by a record that was verified.
    #[track_caller]
    pub fn is_good(&self) -> &Self {
        self.is("final", "Completed");
        assert!(self.report.verified && self.report.exit_code == Some(0), "{:#?}", self.report);
        self
    }
}

/// A job that runs this in busybox's shell.
pub fn shell(script: &str) -> Value {
    json!({"image": BUSYBOX, "argv": ["/bin/sh", "-c", script]})
}

/// A job that runs the probe, without a shell.
pub fn probe(words: &[&str]) -> Value {
    let argv: Vec<&str> = ["/probe"].iter().chain(words).copied().collect();
    json!({"image": NOSHELL, "argv": argv})
}

/// The same job with one more field, or another value in it.
pub fn with(mut job: Value, field: &str, value: Value) -> Value {
    job[field] = value;
    job
}

/// Puts a job and its files into a spool, in one step.
pub fn put_into(spool: &Path, name: &str, job_file: &[u8], files: &[(&str, &[u8])]) {
    let dir = spool.join(format!(".{name}.being-put"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("job.json"), job_file).unwrap();
    for (path, bytes) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    fs::rename(dir, spool.join("new").join(name)).unwrap();
}

/// The result of the job in a spool, if there is one by now.
pub fn look_into(spool: &Path, name: &str) -> Option<Outcome> {
    ["done", "held"].into_iter().find_map(|place| {
        let dir = spool.join(place).join(name);
        let bytes = fs::read(dir.join("result/report.json")).ok()?;
        Some(Outcome { place, report: serde_json::from_slice(&bytes).unwrap(), dir })
    })
}

impl Pod {
    /// A pod with one slot.
    pub fn start() -> Self {
        Options::new().start()
    }

    /// Puts a job into the spool.
    pub fn put(&self, name: &str, job: &Value) {
        self.put_with(name, job, &[]);
    }

    /// Puts a job with further files beside job.json.
    pub fn put_with(&self, name: &str, job: &Value, files: &[(&str, &[u8])]) {
        put_into(&self.spool, name, job.to_string().as_bytes(), files);
    }

    /// Waits for the job's result.
    #[track_caller]
    pub fn result(&self, name: &str) -> Outcome {
        self.result_within(name, JOB_WITHIN)
    }

    /// The same with another limit.
    #[track_caller]
    pub fn result_within(&self, name: &str, limit: Duration) -> Outcome {
        let give_up = deadline(limit);
        loop {
            if let Some(outcome) = look_into(&self.spool, name) {
                return outcome;
            }
            if Instant::now() >= give_up {
                panic!("no result of {name} within {limit:?}; latebind-host and watcher said:\n{}", self.said());
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Puts a job and waits for its result.
    #[track_caller]
    pub fn job(&self, name: &str, job: &Value) -> Outcome {
        self.put(name, job);
        self.result(name)
    }

    /// The report of an attempt that is to be followed by another one.
    #[track_caller]
    pub fn attempt(&self, name: &str, number: u32) -> Report {
        let found =
            |place: &str| fs::read(self.spool.join(place).join(name).join(format!("result.{number}/report.json"))).ok();
        let claimed = || {
            let pilots = fs::read_dir(self.spool.join("claimed")).into_iter().flatten().flatten();
            pilots.filter_map(|p| found(&format!("claimed/{}", p.file_name().to_string_lossy()))).next()
        };
        let bytes = eventually(&format!("attempt {number} of {name}:\n{}", self.said()), JOB_WITHIN, || {
            found("retry").or_else(|| found("held")).or_else(|| found("done")).or_else(claimed)
        });
        serde_json::from_slice(&bytes).unwrap()
    }

    /// What latebind-host and the pilot have said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until they have said this: it arrives through the engine, a little after the deed.
    #[track_caller]
    pub fn says(&self, text: &str) {
        eventually(&format!("{text:?} in the log\n{}", self.said()), JOB_WITHIN, || {
            self.said().contains(text).then_some(())
        });
    }

    /// What `watcher top` has to show now; nothing where it fails.
    pub fn top(&self) -> Option<Value> {
        let shown = podman(&["exec", &self.container("pilot"), "watcher", "top", "--json", "--times", "1"]);
        serde_json::from_slice(&shown.stdout).ok()
    }

    /// Lets a job end that waits for the file `go` in its `work/` ([`WAIT_FOR_GO`](crate::slot::WAIT_FOR_GO)).
    pub fn go(&self, slot: u32) {
        fs::write(self.work(slot).join("go"), "").unwrap();
    }

    /// Where the pod's volumes are on this machine.
    pub fn place(&self) -> PathBuf {
        state().join("pods").join(&self.name)
    }

    /// The private volume of the pilot.
    pub fn private(&self) -> PathBuf {
        self.place().join("private")
    }

    /// `ctl/` of a slot.
    pub fn ctl(&self, slot: u32) -> PathBuf {
        self.place().join(format!("slot-{slot}/ctl"))
    }

    /// `work/` of a slot.
    pub fn work(&self, slot: u32) -> PathBuf {
        self.place().join(format!("slot-{slot}/data/work"))
    }

    /// The state that the watcher keeps of an attempt, if it has one now.
    pub fn kept_state(&self, attempt: &str) -> Option<Value> {
        let bytes = fs::read(self.private().join(format!("jobs/{attempt}.json"))).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// The phase of an attempt (`NAME.1`) as the watcher has written it down.
    pub fn phase(&self, attempt: &str) -> Option<String> {
        self.kept_state(attempt)?["phase"].as_str().map(str::to_owned)
    }

    /// Waits until an attempt has come to this phase.
    #[track_caller]
    pub fn reaches(&self, attempt: &str, phase: &str) {
        let what = format!("{attempt} is {phase}");
        let give_up = deadline(JOB_WITHIN);
        while self.phase(attempt).as_deref() != Some(phase) {
            assert!(Instant::now() < give_up, "not within {JOB_WITHIN:?}: {what}\n{}", self.said());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the job's own program runs, and returns its process ID on this machine.
    #[track_caller]
    pub fn runs(&self, attempt: &str, slot: u32) -> i32 {
        self.reaches(attempt, "running");
        let main = eventually(&format!("{attempt} has a main process"), JOB_WITHIN, || {
            let status: Value = serde_json::from_slice(&fs::read(self.ctl(slot).join("status.json")).ok()?).ok()?;
            status["main_pid"].as_i64()
        });
        let glue = self.main_process(&self.payload_role(slot));
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(&glue.to_string());
        eventually(&format!("process {main} of the pod"), Duration::from_secs(5), || {
            let entries = fs::read_dir("/proc").unwrap().flatten();
            let mut pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
            pids.find(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let inner = status.lines().find_map(|l| l.strip_prefix("NSpid:")?.split_whitespace().last());
                inner == Some(main.to_string().as_str()) && namespace(&pid.to_string()) == ours
            })
        })
    }

    /// The role of the slot's newest payload container, as pidfiles and container names have it.
    pub fn payload_role(&self, slot: u32) -> String {
        let prefix = format!("slot-{slot}-");
        let entries = fs::read_dir(self.place().join("pid")).into_iter().flatten().flatten();
        let lives = entries.filter_map(|e| e.file_name().to_str()?.strip_prefix(&prefix)?.parse::<u64>().ok()).max();
        format!("{prefix}{}", lives.unwrap_or(0))
    }

    /// Process ID, on this machine, of a container's main process: `pilot`, `pause`, or a payload role.
    #[track_caller]
    pub fn main_process(&self, role: &str) -> i32 {
        let path = self.place().join("pid").join(role);
        eventually(&format!("{}\n{}", path.display(), self.said()), START_WITHIN, || {
            let pid = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
            (!is_gone(pid)).then_some(pid)
        })
    }

    /// The payload UID of a slot.
    #[track_caller]
    pub fn uid(&self, slot: u32) -> u32 {
        use std::os::unix::fs::MetadataExt;
        let of_work = || fs::metadata(self.work(slot)).ok().map(|m| m.uid()).filter(|uid| *uid != 0);
        eventually(&format!("slot {slot} is set up\n{}", self.said()), START_WITHIN, of_work)
    }

    /// Name of a container of the pod.
    pub fn container(&self, role: &str) -> String {
        format!("latebind-{}-{role}", self.name)
    }

    /// Waits until the pilot has opened the spool.
    #[track_caller]
    pub fn serves(&self) {
        eventually(&format!("the pilot serves\n{}", self.said()), START_WITHIN, || {
            self.said().contains("\"serving\"").then_some(())
        });
    }

    /// Process ID of latebind-host itself.
    pub fn host_process(&self) -> i32 {
        self.host.id() as i32
    }

    /// Sends a signal to latebind-host.
    pub fn signal(&self, signal: Signal) {
        kill(self.host_process(), signal);
    }

    /// Waits for the end of latebind-host by itself.
    #[track_caller]
    pub fn end(&mut self, limit: Duration) -> ExitStatus {
        match wait_for(&mut self.host, limit) {
            Some(status) => status,
            None => panic!("latebind-host has not ended within {limit:?}; it said:\n{}", self.said()),
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if matches!(self.host.try_wait(), Ok(None)) {
            // The second signal means at once; two of a kind could arrive as one.
            self.signal(Signal::SIGTERM);
            self.signal(Signal::SIGINT);
            if wait_for(&mut self.host, Duration::from_secs(30)).is_none() {
                let _ = self.host.kill();
                let _ = self.host.wait();
            }
        }
        if self.place().exists() {
            let _ = host(&["rm", &self.name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        if thread::panicking() {
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "-- the pod {} said:\n{}", self.name, self.said());
        }
    }
}
