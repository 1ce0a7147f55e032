//! Names that change while root opens them: nothing from outside is read, counted, changed, removed or waited for.
//!
//! The first tests call what the watcher calls, thousands of times, while a thread exchanges the names with files,
//! directories, links, FIFOs, sockets and devices. The others do it in a pod.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::chown;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use latebind_linux::volume::open_beneath;
use latebind_tests::exchange::Kinds::{All, Directories};
use latebind_tests::exchange::{LARGE, OWN, Swapper, USER, World, make_large, own_files, own_tree, stays_within};
use latebind_tests::pod::{BUSYBOX, Options, Outcome, Pod, Scratch, shell, with};
use latebind_tests::waiting::deadline;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use serde_json::{Value, json};
use watcher::bind::{Failure, Reason};
use watcher::job::Request;
use watcher::source::Queue;
use watcher::source::spool::Spool;
use watcher::tree::copy::{Budget, Copier, Problem, Rules};
use watcher::tree::walk::{Count, Walk};
use watcher::tree::{self, Deadline};

/// Only a hang takes so long.
fn hangs() -> Duration {
    deadline(Duration::from_secs(60)).saturating_duration_since(Instant::now())
}

/// Runs what may hang in a thread of its own.
fn bounded(test: fn()) {
    let (done, ended) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        done.send(())
    });
    match ended.recv_timeout(hangs()) {
        Err(RecvTimeoutError::Timeout) => panic!("something waits for a name that changes"),
        _ => thread.join().unwrap_or_else(|panicked| resume_unwind(panicked)).unwrap(),
    }
}

/// Runs `attempt` at least `tries` times, until it has met names that were exchanged as often, and has had both a good
/// and a bad outcome many times.
fn raced(what: &str, swapper: &Swapper, tries: u64, mut attempt: impl FnMut() -> bool) {
    let (first, deadline) = (swapper.swaps(), Deadline::within(hangs()));
    let (mut good, mut bad) = (0, 0);
    while good + bad < tries || swapper.swaps() - first < tries || good.min(bad) < 10 {
        *if attempt() { &mut good } else { &mut bad } += 1;
        assert!(
            deadline.over().is_none(),
            "{what}: {good} good and {bad} bad tries, {} swaps",
            swapper.swaps() - first
        );
    }
}

/// What a try of copying found in the way.
fn copying(rules: Rules, act: impl FnOnce(&mut Copier<'_>) -> Result<(), Problem>) -> bool {
    let mut failures = 0;
    let mut failed = |_: &str, _| {
        failures += 1;
        Ok(())
    };
    let deadline = Deadline::within(hangs());
    let budget = Budget::new(1 << 20, 1000);
    let mut copier = Copier { rules, budget, deadline: &deadline, failed: &mut failed, at_target: false, known: None };
    let done = act(&mut copier).is_ok();
    done && failures == 0
}

/// As inputs are copied for a user, and outputs of a payload.
const INPUTS: Rules = Rules { only_of: None, reader: Some(USER), owner: Some((USER, USER)), links: false };
const OUTPUTS: Rules = Rules { only_of: Some(USER), reader: None, owner: None, links: true };

#[test]
fn what_is_copied_while_its_names_change_is_the_users_own() {
    bounded(copy);
}

fn copy() {
    let world = World::new();
    let (from, inner) = (world.dir("from"), world.dir("from/inner"));
    for path in [from.join("a"), from.join("b"), inner.join("c")] {
        fs::write(&path, OWN).unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
    }
    let swapper = world.swap("spares", &[(&from, "a", All), (&from, "b", All), (&inner, "c", All)]);
    let open = tree::open_dir(&from).unwrap();
    let mut files = 0;
    for rules in [INPUTS, OUTPUTS] {
        let to = Scratch::in_memory();
        let made = tree::open_dir(to.path()).unwrap();
        raced("all", &swapper, 2_000, || {
            let whole = copying(rules, |copier| copier.content(tree::open_dir(&from)?.as_fd(), made.as_fd(), ""));
            files += own_files(to.path());
            tree::remove_content(made.as_fd(), &Deadline::within(hangs())).unwrap();
            whole
        });
        // As outputs are opened by their names.
        for path in ["a", "b/file-1", "b/dir-1/file-2", "inner/c"] {
            raced(path, &swapper, 2_000, || {
                let copied = copying(rules, |copier| {
                    let from = open_beneath(open.as_fd(), path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
                    copier.entry(from, made.as_fd(), c"copy", path)
                });
                files += own_files(to.path());
                tree::remove_content(made.as_fd(), &Deadline::within(hangs())).unwrap();
                copied
            });
        }
    }
    drop(swapper);
    assert!(files > 0);
    world.nothing_outside_has_changed();
}

/// What a pilot reads of a job beside `job.json`, as it does: inputs, standard input and environment files.
fn read_as_the_pilot(request: &Request) {
    let to = Scratch::in_memory();
    let made = tree::open_dir(to.path()).unwrap();
    if let Some(inputs) = &request.inputs {
        copying(INPUTS, |copier| {
            let from = tree::open_dir(inputs)?;
            tree::check_reader(&fstat(&from)?, request.submitter)?;
            copier.content(from.as_fd(), made.as_fd(), "")
        });
    }
    if let Some(stdin) = &request.stdin {
        copying(INPUTS, |copier| {
            let from = tree::open_file(stdin)?;
            let stat = fstat(&from)?;
            tree::check_reader(&stat, request.submitter)?;
            copier.file(&from, &stat, made.as_fd(), c".stdin")
        });
    }
    own_files(to.path());
    for source in &request.env_files {
        let mut text = String::new();
        let read = tree::open_file(&source.path).and_then(|file| {
            tree::check_reader(&fstat(&file)?, request.submitter)?;
            file.take(1 << 20).read_to_string(&mut text)
        });
        assert!(read.is_err() || text == OWN, "{text}");
    }
}

#[test]
fn a_job_whose_names_change_while_it_is_claimed_and_read_leads_nowhere() {
    bounded(claim);
}

fn claim() {
    let world = World::new();
    let spool = Spool::open(&world.path("spool"), "pilot").unwrap();
    let mut queue = Queue::new(spool.clone());
    let (mut jobs, mut others) = (0, 0);
    for round in 0.. {
        let name = format!("job-{round}");
        let dir = world.dir("put");
        for file in ["job.json", "in", "env"] {
            fs::write(dir.join(file), OWN).unwrap();
            chown(dir.join(file), Some(USER), Some(USER)).unwrap();
        }
        own_tree(&dir.join("inputs"), 0);
        let new = spool.new_dir();
        let mut rows = vec![(&*dir, "in", All), (&*dir, "env", All), (&*dir, "inputs", Directories)];
        // One that changes all the time would never be a job that is read.
        match round % 3 {
            0 => rows.push((&dir, "job.json", All)),
            1 => rows.push((&new, &name, Directories)),
            _ => {}
        }
        let swapper = world.swap("spares", &rows);
        fs::rename(&dir, new.join(&name)).unwrap();
        let (put, deadline) = (swapper.swaps(), Deadline::within(hangs()));
        let mut claimed = loop {
            if swapper.swaps() < put + 20 {
                thread::yield_now();
            } else if let Some(claimed) = queue.claim().unwrap().or_else(|| queue.undelivered()) {
                break claimed;
            }
            deadline.check().unwrap();
        };
        claimed.prepare().unwrap();
        match claimed.request() {
            Ok(request) => {
                assert_eq!((request.image.as_str(), request.submitter), ("own", Some(USER)));
                raced_reads(&swapper, &request);
                jobs += 1;
            }
            Err(why) => {
                assert!(!why.contains("never"), "{why}");
                others += 1;
            }
        }
        let failure = Failure::hold(Reason::InvalidJob, "read");
        spool.deliver(&claimed, &claimed.refusal(&failure), 1).unwrap();
        drop(swapper);
        assert!(spool_has(&world, "held", &name), "{name} is lost");
        fs::remove_dir_all(world.path("spares")).unwrap();
        world.nothing_outside_has_changed();
        if round >= 100 && jobs > 10 && others > 3 {
            break;
        }
        assert!(round < 1000, "{jobs} jobs and {others} that were none");
    }
}

fn spool_has(world: &World, place: &str, name: &str) -> bool {
    world.path("spool").join(place).join(name).symlink_metadata().is_ok()
}

fn raced_reads(swapper: &Swapper, request: &Request) {
    let first = swapper.swaps();
    for tries in 0.. {
        read_as_the_pilot(request);
        if tries >= 20 && swapper.swaps() > first + 100 {
            break;
        }
    }
}

#[test]
fn what_is_removed_while_its_names_change_is_removed_and_nothing_else() {
    bounded(remove);
}

fn remove() {
    let world = World::new();
    let top = world.dir("top");
    let (mut met, mut rounds) = (0, 0);
    let began = Deadline::within(hangs());
    while rounds < 100 || met < 30 {
        let names: Vec<String> = (0..8).map(|n| format!("dir-{n}")).collect();
        for name in names.iter().map(String::as_str).chain(["one"]) {
            own_tree(&top.join(name), 1);
        }
        let one = top.join("one");
        let mut rows = vec![(&*top, "one", All), (&one, "dir-0", All), (&one, "dir-1", Directories)];
        rows.extend(names.iter().map(|name| (&*top, name.as_str(), Directories)));
        let swapper = world.swap("spares", &rows);
        let open = tree::open_dir(&top).unwrap();
        let first = swapper.swaps();
        // Where something is put back all the time it may fail, but never for long.
        let _ = tree::remove_content(open.as_fd(), &Deadline::within(hangs()));
        met += u64::from(swapper.swaps() > first + 5);
        drop(swapper);
        tree::remove_content(open.as_fd(), &Deadline::within(hangs())).unwrap();
        assert_eq!(fs::read_dir(&top).unwrap().count(), 0);
        world.nothing_outside_has_changed();
        let spares = tree::open_dir(&world.path("spares")).unwrap();
        tree::remove_content(spares.as_fd(), &Deadline::within(hangs())).unwrap();
        rounds += 1;
        assert!(began.over().is_none(), "{rounds} rounds, in {met} of them names were exchanged");
    }
}

/// Counts a tree as the limit of the disk does.
fn count(top: &Path) -> Count {
    let mut walk = Walk::new(tree::open_dir(top).unwrap().as_fd()).unwrap();
    assert!(walk.go_on(100_000), "it finds no end: {:?}", walk.so_far());
    walk.so_far()
}

#[test]
fn what_is_counted_while_its_names_change_is_all_and_nothing_else() {
    bounded(measure);
}

fn measure() {
    let world = World::new();
    let top = world.dir("top");
    make_large(&top.join("large"));
    fs::write(top.join("small"), OWN).unwrap();
    // So deep that the way back is by `..`, which leads elsewhere once it has been moved.
    let (mut deep, mut rows) = (top.clone(), vec![(top.clone(), "small", All)]);
    for level in 0..40 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
        own_tree(&deep.join("beside"), 0);
        if level == 30 || level == 36 {
            rows.push((deep.clone(), "d", Directories));
        }
    }
    for name in ["one", "other", "third"] {
        own_tree(&top.join(name), 0);
        rows.push((top.clone(), name, Directories));
    }
    let rows: Vec<_> = rows.iter().map(|(dir, name, kinds)| (&**dir, *name, *kinds)).collect();
    let swapper = world.swap("spares", &rows);
    // Where the way back of what was moved leads.
    for n in 0..rows.len() {
        make_large(&world.path("spares").join(format!("{n}/large")));
    }
    raced("count", &swapper, 1_000, || {
        let counted = count(&top);
        // The one large file, and no other.
        assert_eq!(counted.size / LARGE, 1, "{counted:?}");
        !counted.missed
    });
    drop(swapper);
    world.nothing_outside_has_changed();
}

#[test]
fn outputs_that_change_until_the_last_moment_are_the_payloads_own() {
    let pod = Pod::start();
    pod.serves();
    let links = "/etc/passwd /proc/self/environ /proc/1/environ ../../ctl/status.json /shared/slot/0/ctl/status.json \
                 /var/lib/latebind/name ../io/stdout /dev/zero /dev/stdin";
    // The main process ends while its children go on exchanging names, until they are killed.
    let script = format!(
        "echo said; mkdir d e; for d in . d e; do (cd $d && /probe swap . one,two,three {links} &) ; done; \
         for d in . d e; do while [ ! -e $d/swapping ]; do sleep 0.02; done; done"
    );
    let outputs = json!(["one", "two/x", "d", "e/three", "e", "three", "d/two"]);
    for n in 0..3 {
        let outcome = pod.job(&format!("out-{n}"), &with(shell(&script), "outputs", outputs.clone()));
        assert_eq!(outcome.is_good().text("stdout"), "said\n");
        let top = outcome.dir.join("result/outputs");
        only_its_own(&top, &top);
    }
    assert_eq!(pod.job("next", &shell("ls -A")).is_good().text("stdout"), "");
}

/// Nothing but what `probe swap` writes has been fetched.
fn only_its_own(dir: &Path, top: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            only_its_own(&entry.path(), top);
        } else if entry.file_type().unwrap().is_symlink() {
            stays_within(&entry.path(), top);
        } else {
            assert!(entry.file_type().unwrap().is_file(), "{:?}", entry.path());
            let expected = if entry.file_name() == "swapping" { "" } else { "own\n" };
            assert_eq!(fs::read_to_string(entry.path()).unwrap(), expected, "{}", entry.path().display());
        }
    }
}

#[test]
fn links_are_made_neither_through_nor_over_what_an_earlier_job_has_put_there() {
    // What glue opens in the image's own root, as root, where an earlier job of the same owner's has been.
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    let job = |script: &str, links: Value| json!({"image": BUSYBOX, "owner": "o", "links": links, "argv": ["/bin/sh", "-c", script]});
    let script = "cd /tmp && ln -s /etc etc && ln -s /shared/slot/0/ctl ctl && mkfifo fifo && ln -s /nowhere link";
    let first = pod.job("first", &job(script, json!({})));
    let container = |outcome: &Outcome| outcome.report.container.as_ref().map(|container| container.id.clone());
    assert!(container(first.is_good()).is_some());
    for (n, link) in ["/tmp/etc/x", "/tmp/ctl/x", "/tmp/fifo/x", "/tmp/link/x"].iter().enumerate() {
        let outcome = pod.job(&format!("link-{n}"), &job("true", json!({*link: "/etc/passwd"})));
        outcome.is("hold", "StartupError");
        assert!(outcome.report.message.contains(link), "{}", outcome.report.message);
        assert_eq!(container(&outcome), container(&first), "another container has nothing in the way");
    }
    assert!(pod.ctl(0).join("x").symlink_metadata().is_err());
    // What lies at the name itself is put aside as it is, and put back.
    let over = json!({"/tmp/fifo": "/etc/passwd", "/tmp/link": "/etc/passwd", "/made": "/etc"});
    let next =
        pod.job("next", &job("ls /etc/x 2>/dev/null; for f in /tmp/fifo /tmp/link /made; do readlink $f; done", over));
    assert_eq!(next.is_good().text("stdout"), "/etc/passwd\n/etc/passwd\n/etc\n");
    let last =
        pod.job("last", &job("[ -p /tmp/fifo ]; echo $?; readlink /tmp/link; ls -d /made; ls -A /tmp", json!({})));
    assert_eq!(last.is_good().text("stdout"), "0\n/nowhere\nctl\netc\nfifo\nlink\n");
    assert_eq!(container(&last), container(&first));
}

#[test]
fn what_a_job_makes_of_the_places_of_its_links_leads_nowhere_and_reaches_no_other_job() {
    // In a directory of its own an earlier job has everything in its hands: the link, and what was put aside for it.
    let pod = Options::new().pilot(&["--reuse", "same-owner"]).start();
    let job = |script: &str, links: Value| json!({"image": BUSYBOX, "owner": "o", "links": links, "argv": ["/bin/sh", "-c", script]});
    let container = |outcome: &Outcome| outcome.report.container.as_ref().map(|container| container.id.clone());
    let make = "mkdir -m 777 /tmp/mine /tmp/mine/x && echo own >/tmp/mine/x/file && cat /etc/group /etc/passwd";
    let accounts = pod.job("first", &job(make, json!({}))).is_good().text("stdout").to_owned();
    let links = json!({"/tmp/mine/x": "/shared/slot/0/data/work"});
    for (n, script) in [
        // Another link at the link's place, and at that of what was put aside.
        "cd /tmp/mine && rm x && ln -s /etc x && mv .latebind.* ../kept && ln -s /etc/passwd .latebind.0",
        // The directory itself is another one, or a link to the image's.
        "mv /tmp/mine /tmp/other && ln -s /etc /tmp/mine",
        "mv /tmp/mine /tmp/another && mkdir -m 777 /tmp/mine && ln -s /etc/passwd /tmp/mine/.latebind.0",
        // Something that cannot be renamed over, and a directory that is not empty in a link's place.
        "cd /tmp/mine && rm x && mkdir -p x/deep && rm -rf .latebind.*",
    ]
    .iter()
    .enumerate()
    {
        // It may have been given a new container, in which these are to be made again.
        pod.job(
            &format!("before-{n}"),
            &job("mkdir -pm 777 /tmp/mine; [ -e /tmp/mine/x ] || mkdir /tmp/mine/x", json!({})),
        )
        .is_good();
        pod.job(&format!("hostile-{n}"), &job(script, links.clone())).is_good();
    }
    let after =
        pod.job("after", &job("cat /etc/group /etc/passwd; ls /etc/x /etc/.latebind* 2>/dev/null; true", json!({})));
    assert_eq!(after.is_good().text("stdout"), accounts, "what is the image's is as it was");
    // Whose root file system could not be put back, that container is nobody's any more.
    let seen = pod.job("seen", &job("ls -A /tmp", json!({})));
    assert!(
        container(&seen).is_some() && !seen.is_good().text("stdout").contains("latebind"),
        "{}",
        seen.text("stdout")
    );
}
