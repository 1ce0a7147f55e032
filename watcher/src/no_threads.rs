//! For tests: a process that can make no thread, as where all process numbers are used up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::process::Command;
use std::sync::mpsc::{self, Sender};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Set in the process that a test has for itself.
const INSIDE: &str = "LATEBIND_TEST_OF_ITS_OWN";
/// What the process may still take: less than a thread's stack.
const SPARE: u64 = 1 << 20;
/// Stacks of threads that have ended, which the C library gives to new ones.
const STACKS_MAX: usize = 64;

/// Runs `body` in a process that has no other test; `test` is the full name of the caller.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    let again = again.args(["--exact", test, "--test-threads=1", "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let said = [again.stdout, again.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(again.status.success() && said.contains("1 passed"), "{}: {said}", again.status);
}

/// As long as it is there, no thread can be made: there is no room for its stack.
pub struct Lack {
    before: (u64, u64),
    _held: Vec<Sender<()>>,
}

impl Lack {
    /// From now on.
    pub fn new() -> Self {
        let before = getrlimit(Resource::RLIMIT_AS).unwrap();
        let sizes = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = sizes.split(' ').next().unwrap().parse().unwrap();
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64;
        setrlimit(Resource::RLIMIT_AS, pages * page + SPARE, before.1).unwrap();
        let mut held = Vec::with_capacity(STACKS_MAX);
        loop {
            let (to, end) = mpsc::channel();
            if thread::Builder::new().spawn(move || end.recv()).is_err() {
                return Self { before, _held: held };
            }
            held.push(to);
            assert!(held.len() < STACKS_MAX, "threads can be made without room for their stacks");
        }
    }
}

impl Drop for Lack {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_AS, self.before.0, self.before.1).unwrap();
    }
}
