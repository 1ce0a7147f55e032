//! What the tests on a real HTCondor pool have in common: pools, made and ended by the scripts beside this crate, and
//! their jobs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use latebind_tests::pod::{eventually, unique};
use serde_json::Value;

/// How long a short job may take, from its submission to its end: a machine of two cores may have other things to do.
pub const JOB_WITHIN: Duration = Duration::from_secs(150);
/// How often a job is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// The user's UID and GID in the schedd's container.
const ALICE: u32 = 5000;

/// A job's states, as HTCondor numbers them.
pub mod status {
    /// Waits for a slot.
    pub const IDLE: i64 = 1;
    /// Has one.
    pub const RUNNING: i64 = 2;
    /// Was removed.
    pub const REMOVED: i64 = 3;
    /// Has ended.
    pub const COMPLETED: i64 = 4;
    /// Is held.
    pub const HELD: i64 = 5;
    /// Is stopped in its slot.
    pub const SUSPENDED: i64 = 7;
}

/// A pool.
pub struct Pool {
    name: String,
    own: bool,
}

impl Pool {
    /// The one that test-condor.sh has started for all tests that do no harm to it; it has one slot.
    pub fn shared() -> Self {
        let name = std::env::var("LATEBIND_POOL").expect("LATEBIND_POOL is not set: run make test-condor");
        Self { name, own: false }
    }

    /// One for this test alone, with so many slots and these further settings of the pilot.
    pub fn own(slots: u32, settings: &[&str]) -> Self {
        Self::of_host("--restarts 0", slots, settings)
    }

    /// The same, and with these words for latebind-host.
    pub fn of_host(words: &str, slots: u32, settings: &[&str]) -> Self {
        Self::start(words, slots, 0, &[], settings)
    }

    /// One for this test alone, with one slot, and one for pilot-jobs that serves it.
    pub fn with_pilot_jobs() -> Self {
        Self::start("--restarts 0", 1, 1, &[], &[])
    }

    /// One for this test alone, with slots of these sizes, as `latebind-host pod --slot` has them.
    pub fn of_sizes(sizes: &[&str]) -> Self {
        Self::start("--restarts 0", 0, 0, sizes, &[])
    }

    fn start(words: &str, slots: u32, pilot_jobs: u32, sizes: &[&str], settings: &[&str]) -> Self {
        let name = unique("p");
        let said = script("up.sh")
            .args([&name, &slots.to_string()])
            .env("LATEBIND_PILOT_ENV", settings.join("\n"))
            .env("LATEBIND_HOST_WORDS", words)
            .env("LATEBIND_POOL_PILOT_JOBS", pilot_jobs.to_string())
            .env("LATEBIND_POOL_SIZES", sizes.join(" "))
            .output()
            .unwrap();
        assert!(said.status.success(), "up.sh: {}", String::from_utf8_lossy(&said.stderr));
        Self { name, own: true }
    }

    /// The pool's files on this machine.
    pub fn dir(&self) -> PathBuf {
        latebind_tests::pod::state().join("pools").join(&self.name)
    }

    /// The pod's own files on this machine.
    pub fn pod(&self) -> PathBuf {
        latebind_tests::pod::state().join("pods").join(&self.name)
    }

    /// What latebind-host and the pilot have said.
    pub fn said(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// Name of the pod's container with this role: `pilot`, `pause`, `slot-0-1`.
    pub fn container(&self, role: &str) -> String {
        format!("latebind-{}-{role}", self.name)
    }

    /// Runs a command in a container: `pool`, or one of the pod's.
    pub fn exec(&self, role: &str, user: &str, words: &[&str]) -> Output {
        let container = if role == "pool" { format!("pool-{}", self.name) } else { self.container(role) };
        let mut command = podman(&["exec", "--user", user, &container]);
        command.args(words).stdin(Stdio::null()).output().unwrap()
    }

    /// The same; what it printed, where it ended well.
    #[track_caller]
    pub fn ask(&self, role: &str, user: &str, words: &[&str]) -> String {
        let output = self.exec(role, user, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?} in {role}: {}: {said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned() // of a job, whose words are bytes
    }

    /// A shell script in the pilot container, as root.
    #[track_caller]
    pub fn in_pilot(&self, script: &str) -> String {
        self.ask("pilot", "root", &["/bin/sh", "-c", script])
    }

    /// Hands in a job: `lines` are of the submit file, on top of what every job has here; `files` lie beside it.
    #[track_caller]
    pub fn submit(&self, lines: &str, files: &[(&str, &str)]) -> Job<'_> {
        self.submit_bytes(lines.as_bytes(), files)
    }

    /// The same, for what is not UTF-8.
    pub fn submit_bytes(&self, lines: &[u8], files: &[(&str, &str)]) -> Job<'_> {
        let name = unique("job");
        let dir = self.dir().join("home").join(&name);
        fs::create_dir(&dir).unwrap();
        for (path, text) in files {
            fs::write(dir.join(path), text).unwrap();
        }
        let common = "should_transfer_files = YES\nwhen_to_transfer_output = ON_EXIT\noutput = out\nerror = err\nlog = log\n\
                      request_cpus = 1\nrequest_memory = 100MB\nrequest_disk = 10MB\nleave_in_queue = True\n";
        fs::write(dir.join("job.sub"), [common.as_bytes(), lines, b"\nqueue\n"].concat()).unwrap();
        let owned = Command::new("chown").args(["-R", &format!("{ALICE}:{ALICE}")]).arg(&dir).status().unwrap();
        assert!(owned.success());
        let script = format!("cd /home/alice/{name} && condor_submit -terse job.sub");
        let said = self.ask("pool", "alice", &["/bin/sh", "-c", &script]);
        // 7.0 - 7.0
        let id = said.split_whitespace().next().unwrap_or_else(|| panic!("condor_submit said {said:?}")).to_owned();
        Job { pool: self, id, dir }
    }

    /// The payload UID of a slot.
    #[track_caller]
    pub fn uid(&self, slot: u32) -> u32 {
        let work = self.pod().join(format!("slot-{slot}/data/work"));
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(work).unwrap())
    }

    /// Processes of the slot's account, in whatever container.
    #[track_caller]
    pub fn processes(&self, slot: u32) -> Vec<String> {
        let said = self.in_pilot(&format!("ps -u {} -o pid=,args= || :", self.uid(slot)));
        said.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }

    /// Waits until the negotiator has looked at all that is in the queue now: a cycle that has just begun may have seen
    /// less.
    #[track_caller]
    pub fn has_negotiated(&self) {
        let script = "grep -c 'Finished Negotiation Cycle' /pool/log/NegotiatorLog || :";
        let cycles = || self.ask("pool", "root", &["/bin/sh", "-c", script]).trim().parse::<u64>().unwrap_or(0);
        let before = cycles();
        eventually("two negotiation cycles end", JOB_WITHIN, || (cycles() >= before + 2).then_some(()));
    }

    /// Waits until the slot's account has no process.
    #[track_caller]
    pub fn nothing_is_left(&self, slot: u32) {
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            let left = self.processes(slot);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < give_up, "left over: {left:#?}\n{}", self.logs());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// A job that runs this shell script in busybox, with further lines.
    #[track_caller]
    pub fn shell(&self, script: &str, lines: &str) -> Job<'_> {
        let all = format!(
            "universe = container\ncontainer_image = docker://localhost/latebind/busybox:1\nexecutable = job.sh\n{lines}"
        );
        self.submit(&all, &[("job.sh", &format!("#!/bin/sh\n{script}\n"))])
    }

    /// A job under way whose first start goes on until it is lost, however long that takes.
    #[track_caller]
    pub fn begun(&self) -> Job<'_> {
        let script = "echo > begun; grep -q '^NumJobStarts = [1-9]' \"$_CONDOR_JOB_AD\" || sleep 1000; echo whole";
        let job = self.shell(script, "");
        job.sandbox_has(0, "begun");
        job
    }

    /// Waits for the end of latebind-host, whose exit code is the pilot's.
    #[track_caller]
    pub fn exit_code(&self, within: Duration) -> String {
        let path = self.dir().join("code");
        let read = || fs::read_to_string(&path).ok().filter(|code| code.ends_with('\n'));
        eventually(&format!("the pilot's end; it said:\n{}", self.said()), within, read).trim().to_owned()
    }

    /// Name of the newest payload container of a slot.
    #[track_caller]
    pub fn payload(&self, slot: u32) -> String {
        let prefix = format!("slot-{slot}-");
        let dir = self.pod().join("pid");
        let lives = fs::read_dir(dir).unwrap().flatten();
        let lives = lives.filter_map(|e| e.file_name().to_str()?.strip_prefix(&prefix)?.parse::<u64>().ok());
        self.container(&format!("{prefix}{}", lives.max().unwrap()))
    }

    /// What the pilot's condor_master has said of daemons that ended by a signal.
    #[track_caller]
    pub fn dead_daemons(&self) -> String {
        self.in_pilot("grep 'died due to' /pilot/log/MasterLog || :")
    }

    /// What HTCondor's daemons in the pilot have written.
    pub fn logs(&self) -> String {
        let tail = "tail -n 30 /pilot/log/StarterLog* /pilot/log/StartLog /pilot/log/MasterLog";
        let output = self.exec("pilot", "root", &["/bin/sh", "-c", tail]);
        format!(
            "{}\n{}",
            self.said().lines().rev().take(30).collect::<Vec<_>>().join("\n"),
            String::from_utf8_lossy(&output.stdout)
        )
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "-- the pool {}:\n{}", self.name, self.logs());
        }
        if self.own {
            let _ = script("down.sh").arg(&self.name).status();
        }
    }
}

fn script(name: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(name));
    // The pod stays when the script has ended: it must not have our output open.
    command.env("LATEBIND_STATE", latebind_tests::pod::state()).stdin(Stdio::null());
    command
}

/// podman on the tests' storage; ended where it does not end by itself.
pub fn podman(words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", "60"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/podman"))
        .args(words);
    command
}

/// A job in a pool's queue; removed with the value.
pub struct Job<'a> {
    pool: &'a Pool,
    /// Cluster and number.
    pub id: String,
    dir: PathBuf,
}

impl Job<'_> {
    /// All that the schedd knows of it.
    #[track_caller]
    pub fn ad(&self) -> Value {
        let text = self.pool.ask("pool", "alice", &["condor_q", "-json", &self.id]);
        let ads: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("condor_q said {text:?}: {e}"));
        ads[0].clone()
    }

    /// Waits until its ad is as wanted.
    #[track_caller]
    pub fn until(&self, what: &str, within: Duration, good: impl Fn(&Value) -> bool) -> Value {
        let give_up = Instant::now() + within;
        loop {
            let ad = self.ad();
            if good(&ad) {
                return ad;
            }
            assert!(
                Instant::now() < give_up,
                "job {} not {what} within {within:?}: status {}, held {}: {}, its log:\n{}\n{}",
                self.id,
                ad["JobStatus"],
                ad["HoldReasonCode"],
                ad["HoldReason"],
                self.text("log"),
                self.pool.logs(),
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for a state.
    #[track_caller]
    pub fn comes_to(&self, status: i64) -> Value {
        self.until(&format!("in state {status}"), JOB_WITHIN, |ad| ad["JobStatus"] == status)
    }

    /// Waits for its end; held is none.
    #[track_caller]
    pub fn ends(&self) -> Value {
        let over = |ad: &Value| [status::COMPLETED, status::HELD].iter().any(|s| ad["JobStatus"] == *s);
        let ad = self.until("over", JOB_WITHIN, over);
        assert_eq!(ad["JobStatus"], status::COMPLETED, "held: {}\n{}", ad["HoldReason"], self.pool.logs());
        ad
    }

    /// Waits for its end, which has to be with this code.
    #[track_caller]
    pub fn ends_with(&self, code: i64) -> Value {
        let ad = self.ends();
        let said = || format!("{}\n{}\n{}", self.text("err"), self.text("log"), self.pool.logs());
        assert_eq!((&ad["ExitBySignal"], &ad["ExitCode"]), (&Value::Bool(false), &Value::from(code)), "{}", said());
        ad
    }

    /// Waits until it is held, which has to be for a reason that has these words.
    #[track_caller]
    pub fn is_held(&self, words: &str) -> Value {
        let ad = self.comes_to(status::HELD);
        let reason = ad["HoldReason"].as_str().unwrap_or_default();
        assert!(reason.contains(words), "held for {reason:?}, not for {words:?}");
        ad
    }

    /// One of [`Pool::begun`] is given back with these words in its log, runs again, and ends well.
    #[track_caller]
    pub fn runs_again(&self, words: &str) {
        self.until("started again", JOB_WITHIN, |ad| ad["NumJobStarts"].as_i64() >= Some(2));
        let log = self.text("log");
        assert!(log.contains(words), "no {words:?} in {log}");
        self.ends_with(0);
        assert_eq!(self.text("out"), "whole\n");
    }

    /// A file of the user's directory, which may not be there.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join(name)).unwrap_or_default()).into_owned()
    }

    /// Has a tool of HTCondor do something to it: `condor_rm`, `condor_hold`, ...
    #[track_caller]
    pub fn tool(&self, words: &[&str]) {
        let mut all = words.to_vec();
        all.push(&self.id);
        self.pool.ask("pool", "alice", &all);
    }

    /// Waits until it runs and has made a file in its sandbox.
    #[track_caller]
    pub fn sandbox_has(&self, slot: u32, file: &str) {
        // Till then it is another job's sandbox.
        self.until("running", JOB_WITHIN, |ad| ad["JobStatus"] == status::RUNNING);
        let give_up = Instant::now() + JOB_WITHIN;
        let look = format!(
            "cat /shared/slot/{slot}/data/execute/dir_*/{file} /shared/slot/{slot}/data/execute/dir_*/scratch/{file}"
        );
        loop {
            let output = self.pool.exec("pilot", "root", &["/bin/sh", "-c", &format!("{look} 2>/dev/null; :")]);
            if !output.stdout.is_empty() {
                return;
            }
            assert!(
                Instant::now() < give_up,
                "job {} made no {file}\n{}\n{}",
                self.id,
                self.text("log"),
                self.pool.logs()
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        // Out of the queue, and out of the slot that the next test needs.
        let script = format!("condor_qedit {0} LeaveJobInQueue False; condor_rm {0}", self.id);
        let _ = self.pool.exec("pool", "alice", &["/bin/sh", "-c", &script]);
    }
}
