//! Connections, lines and descriptors that clients of the watcher's sockets send, and streams that nobody reads or
//! somebody keeps.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use latebind_tests::pod::{BUSYBOX, JOB_WITHIN, Options, Pod, eventually, host, podman, probe, program, shell};

/// Where clients connect to, in the pilot container.
const SOCKET: &str = "/run/latebind/clients.sock";
/// A UID that is no slot's.
const STRANGER: u32 = 4321;

/// A pod with the clients' socket, and a hostile program in its pilot container.
struct Clients {
    pod: Pod,
    pilot: String,
    watcher: i32,
}

/// A program in the pilot container; what it keeps open ends with the value.
struct Client(Child);

impl Client {
    /// Its next line, without the end.
    fn line(&mut self) -> String {
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            let n = self.0.stdout.as_mut().unwrap().read(&mut byte).unwrap();
            assert!(n > 0, "no further line but {:?}", String::from_utf8_lossy(&line));
            if byte[0] == b'\n' {
                return String::from_utf8(line).unwrap();
            }
            line.push(byte[0]);
        }
    }

    /// Waits for a line that says this.
    fn says(&mut self, what: &str) {
        let line = self.line();
        assert!(line.contains(what), "{line}");
    }

    /// Waits for its end; returns its code and what it said on both streams.
    fn ends(mut self, limit: Duration) -> (Option<i32>, String, String) {
        let (out, err) = (self.0.stdout.take().unwrap(), self.0.stderr.take().unwrap());
        let read = |mut from: Box<dyn Read + Send>| {
            thread::spawn(move || {
                let mut text = String::new();
                from.read_to_string(&mut text).unwrap();
                text
            })
        };
        let (out, err) = (read(Box::new(out)), read(Box::new(err)));
        let status = eventually("the end of a client", limit, || self.0.try_wait().unwrap());
        (status.code(), out.join().unwrap(), err.join().unwrap())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Clients {
    fn start() -> Self {
        let pod = Options::new().pilot(&["--clients", SOCKET]).start();
        pod.serves();
        let pilot = pod.container("pilot");
        let from = program("probe");
        let copied = podman(&["cp", from.to_str().unwrap(), &format!("{pilot}:/probe")]);
        assert!(copied.status.success(), "{copied:?}");
        let watcher = pod.main_process("pilot");
        // Whatever is made once is there after the first job.
        pod.job("first", &probe(&["hello"])).is_good();
        Self { pod, pilot, watcher }
    }

    /// The slot's own UID.
    fn uid(&self) -> u32 {
        fs::metadata(self.pod.work(0)).unwrap().uid()
    }

    fn exec(&self, uid: u32, words: &[&str]) -> Command {
        let mut command = host(&["podman", "--", "exec", "-i", "--user", &format!("{uid}:{uid}"), &self.pilot]);
        command.args(words);
        command
    }

    /// Starts a program in the pilot container.
    fn spawn(&self, uid: u32, words: &[&str]) -> Client {
        let mut command = self.exec(uid, words);
        Client(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// What root's own commands answer.
    fn root(&self, words: &[&str]) -> String {
        let ran = self.exec(0, words).stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "{words:?}: {ran:?}");
        String::from_utf8(ran.stdout).unwrap()
    }

    /// Runs a job as the slot's own UID does.
    fn run(&self, words: &[&str]) -> Client {
        let all: Vec<&str> = ["watcher", "run", "--socket", SOCKET].iter().chain(words).copied().collect();
        self.spawn(self.uid(), &all)
    }

    /// Threads and descriptors of the watcher.
    fn costs(&self) -> (usize, usize) {
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", self.watcher)).unwrap().count();
        (count("task"), count("fd"))
    }

    /// The same once nothing is under way any more.
    #[track_caller]
    fn costs_when_idle(&self) -> (usize, usize) {
        eventually("an idle watcher", JOB_WITHIN, || {
            let threads = fs::read_dir(format!("/proc/{}/task", self.watcher)).unwrap().flatten();
            let names: Vec<String> =
                threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok()).collect();
            let busy = ["client", "job", "monitor", "relay"];
            let idle = !names.iter().any(|name| busy.iter().any(|busy| name.starts_with(busy)));
            idle.then(|| self.costs())
        })
    }

    /// Waits until the watcher has no more threads and descriptors than before.
    #[track_caller]
    fn costs_again(&self, before: (usize, usize)) {
        let mut last = before;
        eventually(&format!("threads and descriptors are again {before:?}"), JOB_WITHIN, || {
            last = self.costs();
            (last.0 <= before.0 && last.1 <= before.1).then_some(())
        });
        assert_eq!(self.pod.main_process("pilot"), self.watcher, "it is still the same watcher");
    }
}

#[test]
fn a_flood_of_connections_keeps_nobody_else_away() {
    let clients = Clients::start();
    let before = clients.costs_when_idle();
    let (own, holds) = (clients.uid(), "{\"verb\":\"holds\"}\n");
    let mut floods = [
        clients.spawn(own, &["/probe", "flood", SOCKET, "300", holds]),
        clients.spawn(STRANGER, &["/probe", "flood", SOCKET, "300", &holds.repeat(100)]),
        clients.spawn(STRANGER + 1, &["/probe", "flood", SOCKET, "300", "{\"verb\":"]),
        clients.spawn(STRANGER + 2, &["/probe", "flood", SOCKET, "300", ""]),
        clients.spawn(STRANGER + 3, &["/probe", "flood", SOCKET, "300", "\n\n\n"]),
    ];
    for flood in &mut floods {
        flood.says("\"connected\":300");
    }
    // A slot's own clients and all others have a share, whatever they do; each costs a thread and three descriptors.
    // One that is refused is there for a moment.
    clients.costs_again((before.0 + 8 + 32, before.1 + 3 * (8 + 32)));
    // Root is served at its own socket, and at theirs.
    assert!(clients.root(&["watcher", "top", "--times", "1", "--json"]).contains("\"slots\":"));
    clients.pod.put("long", &shell("trap 'echo told; exit 5' USR1; touch ready; while :; do sleep 0.1; done"));
    eventually("the job is up", JOB_WITHIN, || clients.pod.work(0).join("ready").exists().then_some(()));
    assert!(clients.root(&["watcher", "jobs"]).contains("long.1\trunning"));
    clients.root(&["watcher", "signal", "--main", "long", "USR1"]);
    assert_eq!(clients.pod.result("long").text("stdout"), "told\n");
    assert_eq!(clients.root(&["watcher", "run", "--socket", SOCKET, BUSYBOX, "--", "echo", "served"]), "served\n");
    drop(floods);
    clients.costs_again(before);
    // And their own share is theirs again.
    let (code, out, err) = clients.run(&[BUSYBOX, "--", "echo", "next"]).ends(JOB_WITHIN);
    assert_eq!((code, out.as_str()), (Some(0), "next\n"), "{err}");
}

#[test]
fn descriptors_that_no_line_uses_are_closed() {
    let clients = Clients::start();
    let before = clients.costs_when_idle();
    let (own, signal, hold) =
        (clients.uid(), "{\"verb\":\"signal\",\"job\":\"\",\"signal\":0}", "{\"verb\":\"holds\"}");
    let submit = "{\"verb\":\"submit\",\"job\":{\"id\":\"x\",\"image\":\"i\",\"argv\":[\"x\"]}}";
    let mut senders = [
        // As many as fit, more than fit, as many as the kernel takes; with lines of every kind.
        clients.spawn(own, &["/probe", "descriptors", SOCKET, "500", "3", signal]),
        clients.spawn(own, &["/probe", "descriptors", SOCKET, "300", "5", signal]),
        clients.spawn(own, &["/probe", "descriptors", SOCKET, "300", "253", hold]),
        clients.spawn(STRANGER, &["/probe", "descriptors", SOCKET, "300", "3", submit]),
        clients.spawn(STRANGER, &["/probe", "descriptors", SOCKET, "300", "253", "not a line of ours"]),
    ];
    for sender in &mut senders {
        sender.says("\"sent\":");
    }
    // While they still have a connection each, the last one of many.
    clients.costs_again((before.0 + senders.len(), before.1 + 3 * senders.len()));
    drop(senders);
    clients.costs_again(before);
}

#[test]
fn a_client_that_does_not_read_or_does_not_end_its_line_is_dropped() {
    let clients = Clients::start();
    let before = clients.costs_when_idle();
    let silent = clients.spawn(STRANGER, &["/probe", "silent", SOCKET, "{\"verb\":\"top\"}"]);
    let half = clients.spawn(clients.uid(), &["/probe", "half", SOCKET, "{\"verb\":"]);
    let followers = clients.spawn(STRANGER, &["/probe", "flood", SOCKET, "3", "{\"verb\":\"holds\"}\n"]);
    // Meanwhile others are served.
    clients.pod.job("meanwhile", &probe(&["hello"])).is_good();
    let (code, out, err) = half.ends(JOB_WITHIN);
    assert!(code == Some(0) && out.contains("does not end its line"), "{out} {err}");
    let (code, out, err) = silent.ends(2 * JOB_WITHIN);
    assert!(code == Some(0) && out.contains("\"dropped\":true"), "{out} {err}");
    drop(followers);
    clients.costs_again(before);
}

#[test]
fn whoever_keeps_a_jobs_streams_keeps_no_thread_and_reaches_no_later_job() {
    let clients = Clients::start();
    let before = clients.costs_when_idle();
    // As a process of another slot has them that got them over an abstract socket: open from job to job.
    let mut kept: Vec<File> = Vec::new();
    for n in 0..3 {
        let script =
            format!("read -r x; echo $x {n}; touch up; while [ ! -e go ]; do sleep 0.05; done; echo whole {n}");
        let mut job = clients.run(&["-i", BUSYBOX, "--", "sh", "-c", &script]);
        // Its standard input stays open too.
        job.0.stdin.as_mut().unwrap().write_all(b"input\n").unwrap();
        let work = clients.pod.work(0);
        eventually("the job is up", JOB_WITHIN, || work.join("up").exists().then_some(()));
        for mut old in &kept {
            let _ = old.write_all(b"INJECTED\n");
        }
        let fifos = ["in", "out", "err"].map(|name| clients.pod.ctl(0).join(name));
        let open = |path| OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        kept.extend(fifos.iter().map(open));
        fs::write(work.join("go"), "").unwrap();
        let (code, out, err) = job.ends(JOB_WITHIN);
        assert_eq!((code, out), (Some(0), format!("input {n}\nwhole {n}\n")), "{err}");
        assert_eq!(err, "");
    }
    let inodes: BTreeSet<u64> = kept.iter().map(|file| file.metadata().unwrap().ino()).collect();
    assert_eq!(inodes.len(), kept.len(), "each job has its own");
    clients.costs_again(before);
    drop(kept);
}

#[test]
fn a_client_that_does_not_read_its_jobs_output_keeps_its_slot_for_a_bounded_time() {
    let clients = Clients::start();
    let before = clients.costs_when_idle();
    // Its output goes into a pipe that stays open and is never read.
    let job = format!("watcher run --socket {SOCKET} --timeout 2 {BUSYBOX} -- dd if=/dev/zero bs=65536 count=64");
    let script = format!("exec 3<&0 5>&1; {{ {job} 2>&5; echo \"code $?\" >&5; }} | cat 4<&0 <&3 >/dev/null");
    let mut client = clients.spawn(clients.uid(), &["sh", "-c", &script]);
    client.says("watcher: TimedOut (final): the job's wall limit passed");
    let said = client.line();
    assert!(said.contains("missing output: stdout: ") && said.contains("bytes were not read by the client"), "{said}");
    client.says("code 124");
    clients.pod.job("next", &probe(&["hello"])).is_good();
    drop(client);
    clients.costs_again(before);
}
