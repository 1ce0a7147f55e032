//! Target `spool`: whatever users put into a spool is claimed and delivered, or held; it is never lost, never changed,
//! and never leads root anywhere else.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::mkfifo;
use watcher::bind::{Class, Failure, Reason};
use watcher::job::{Report, Request};
use watcher::source::spool::Spool;
use watcher::source::{Claimed, Queue};

use crate::input::Input;

/// What is outside of the spool, where links lead.
const SECRET: &[u8] = b"never to be seen";
/// Names that mean something in a job or in a claim.
const NAMES: [&str; 20] = [
    "job.json",
    "inputs",
    "in",
    "env",
    "result",
    "result.1",
    "report.json",
    "claim.json",
    "submitted",
    "attempts",
    "not-before",
    "claim.json.tmp",
    "job.tmp",
    "report.tmp",
    "a",
    "b",
    ".hidden",
    "claim",
    ".room",
    "...",
];
/// Names that entries of `new/` get; what is longer is made of the input's bytes.
const JOBS: [&str; 10] = ["a", "b", "a.1", "job-1_x", ".hidden", "bad name", "..a", "claim.json", "x:y", "-"];

/// A directory of its own for each input.
struct World(PathBuf);

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is known of an entry that was put into `new/`.
#[derive(Debug)]
struct Entry {
    name: Vec<u8>,
    inode: u64,
    uid: u32,
    content: BTreeMap<PathBuf, Vec<u64>>,
}

/// The input builds what is in `new/`, then says what comes of each job that is claimed.
pub fn run(data: &[u8]) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let world = World(std::env::temp_dir().join(format!("latebind-spool-{}-{number}", std::process::id())));
    let _ = fs::remove_dir_all(&world.0);
    let (root, outside) = (world.0.join("spool"), world.0.join("outside"));
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), SECRET).unwrap();
    fs::create_dir(outside.join("directory")).unwrap();

    let spool = Spool::open(&root, "pilot").unwrap();
    let mut input = Input::new(data);
    let plan = input.bytes(4);
    for _ in 0..=input.below(3) {
        put(&world.0, &mut input);
    }
    let mut entries: Vec<Entry> =
        fs::read_dir(spool.new_dir()).unwrap().map(|entry| known(&entry.unwrap().path())).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let before = listing(&outside);

    for round in 0..8 {
        let choice = plan.get(round % 4).copied().unwrap_or(0);
        let mut queue = Queue::new(spool.clone());
        while let Some(mut claimed) = queue.claim().unwrap() {
            claimed.prepare().unwrap();
            // A pilot that was ended here takes it up again.
            if choice & 64 != 0 {
                let again = spool.unfinished().unwrap().into_iter().find(|again| again.name == claimed.name).unwrap();
                assert_eq!(again.request(), claimed.request());
                claimed = again;
                claimed.prepare().unwrap();
            }
            deliver(&spool, &claimed, choice, &entries);
        }
        while let Some(claimed) = queue.undelivered() {
            let failure = Failure::hold(Reason::InvalidJob, "not a job");
            spool.deliver(&claimed, &claimed.refusal(&failure), 1).unwrap();
        }
        nothing_is_lost(&spool, &root, &entries);
        assert_eq!(listing(&outside), before, "something outside of the spool has changed");
        all_due(&root);
    }
    for entry in &entries {
        let waits = spool.new_dir().join(OsStr::from_bytes(&entry.name)).symlink_metadata().is_ok();
        assert_eq!(waits, entry.name.starts_with(b"."), "{} is never served", entry.name.escape_ascii());
    }
}

/// Puts one entry into `new/`: usually a directory, and in it what the input says.
fn put(world: &Path, input: &mut Input<'_>) {
    let which = input.below(JOBS.len() + 2);
    let name = match JOBS.get(which) {
        Some(name) => name.as_bytes().to_vec(),
        None => name_of(input),
    };
    let path = world.join("spool/new").join(OsStr::from_bytes(&name));
    let kind = input.byte();
    if kind & 15 == 15 {
        make(world, &path, input);
        return;
    }
    if fs::create_dir(&path).is_err() {
        return;
    }
    let mut places = vec![path.clone()];
    if kind & 16 == 0 {
        let _ = fs::write(path.join("job.json"), job_file(input));
    }
    for _ in 0..input.below(12) {
        let place = places[input.below(places.len())].clone();
        let name = match NAMES.get(input.below(NAMES.len() + 4)) {
            Some(name) => name.as_bytes().to_vec(),
            None => name_of(input),
        };
        let path = place.join(OsStr::from_bytes(&name));
        make(world, &path, input);
        if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            places.push(path);
        }
    }
    // Whose it all is, and who may do what there.
    let uid = [4711, 0, 4712][usize::from(kind >> 5) % 3];
    for (n, place) in tree(&path).iter().enumerate() {
        let other = kind & 128 != 0 && n == usize::from(kind & 7);
        let _ = std::os::unix::fs::lchown(place, Some(uid + u32::from(other)), Some(uid));
    }
    let _ = chown(&path, Some(uid), Some(uid));
    let mode = [0o755, 0o777, 0o000, 0o700, 0o2775, 0o1777][input.below(6)];
    let _ = fs::set_permissions(&path, Permissions::from_mode(mode));
}

fn name_of(input: &mut Input<'_>) -> Vec<u8> {
    let mut name: Vec<u8> = input.string().iter().map(|b| if matches!(b, b'/' | 0) { b'_' } else { *b }).collect();
    if matches!(name.as_slice(), b"" | b"." | b"..") {
        name.push(b'x');
    }
    name
}

/// A `job.json`: the input's own bytes, or one that names what is beside it.
fn job_file(input: &mut Input<'_>) -> Vec<u8> {
    const REST: [&str; 6] = [
        "",
        r#","stdin":"in""#,
        r#","env_files":[{"name":"env","format":"sh"}],"outputs":["a","b/c"]"#,
        r#","stdin":"../a","owner":"o""#,
        r#","stdin":"inputs","outputs":["../x"]"#,
        r#","env_files":[{"name":"job.json","format":"nul"}],"owner":"o""#,
    ];
    match REST.get(input.below(REST.len() + 2)) {
        Some(rest) => format!(r#"{{"image":"i","argv":["x"]{rest}}}"#).into_bytes(),
        None => input.string().to_vec(),
    }
}

/// Makes a file, a directory, a link, a FIFO, a socket, a device or a hard link at `path`, unless something is there.
fn make(world: &Path, path: &Path, input: &mut Input<'_>) {
    if path.symlink_metadata().is_ok() {
        return; // writing to a FIFO would wait
    }
    let _ = match input.below(12) {
        0..=2 => fs::write(path, input.string()),
        3 | 4 => fs::create_dir(path),
        5 => symlink(world.join("outside/secret"), path),
        6 => symlink(["../../../outside/directory", "../../../../outside", ".", "..", "nowhere"][input.below(5)], path),
        7 => mkfifo(path, Mode::S_IRWXU).map_err(Into::into),
        // A path that does not fit into a socket's address is left out.
        8 => UnixListener::bind(path).map(drop),
        9 => mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, 0).map_err(Into::into),
        10 => fs::hard_link(path.with_file_name("job.json"), path),
        _ => fs::File::create_new(path).and_then(|file| file.set_len(1 << 40)),
    };
    if input.below(4) == 0 && path.symlink_metadata().is_ok_and(|m| m.is_dir() || m.is_file()) {
        let _ = fs::set_permissions(path, Permissions::from_mode([0o000, 0o4755, 0o777, 0o444][input.below(4)]));
    }
}

/// All that is below a path, itself first; no link is followed.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut all = vec![top.to_owned()];
    let mut next = 0;
    while let Some(path) = all.get(next).cloned() {
        next += 1;
        if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            let mut inner: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inner.sort();
            all.extend(inner);
        }
    }
    all
}

/// What must not change of all that is below a path.
fn listing(top: &Path) -> BTreeMap<PathBuf, Vec<u64>> {
    let of = |path: PathBuf| {
        let m = path.symlink_metadata().unwrap();
        let numbers = [u64::from(m.mode()), u64::from(m.uid()), u64::from(m.gid()), m.len(), m.ino()];
        // Its own time changes where something is moved, since `..` may; what is below keeps its own.
        let time = if path == top { 0 } else { m.mtime_nsec().unsigned_abs() };
        (path.strip_prefix(top).unwrap().to_owned(), numbers.into_iter().chain([time]).collect())
    };
    tree(top).into_iter().map(of).collect()
}

fn known(path: &Path) -> Entry {
    let metadata = path.symlink_metadata().unwrap();
    Entry {
        name: path.file_name().unwrap().as_bytes().to_vec(),
        inode: metadata.ino(),
        uid: metadata.uid(),
        content: listing(path),
    }
}

/// Delivers a claimed job as `choice` says, and checks what root has made of it.
fn deliver(spool: &Spool, claimed: &Claimed, choice: u8, entries: &[Entry]) {
    let submitted = claimed.dir().join("submitted");
    let inode = submitted.symlink_metadata().unwrap().ino();
    let entry = entries.iter().find(|entry| entry.inode == inode).expect("a claim of nothing that was put");
    let (report, most) = match claimed.request() {
        Err(why) => {
            is_message(&why);
            (claimed.refusal(&Failure::hold(Reason::InvalidJob, why)), 3)
        }
        Ok(request) => {
            is_the_users(&request, claimed, &submitted, entry);
            let mut report = Report::new(&request);
            report.class = [Class::Final, Class::Hold, Class::Retry, Class::Retry][usize::from(choice & 3)];
            (report, u32::from(choice >> 2 & 3))
        }
    };
    let place = spool.deliver(claimed, &report, most).unwrap();
    let again = report.class == Class::Retry && claimed.attempt < most;
    let wanted = if again {
        "retry"
    } else if report.class == Class::Final {
        "done"
    } else {
        "held"
    };
    assert_eq!(place, wanted);
    // Under whatever name it is now.
    let delivered = fs::read_dir(spool.new_dir().join("..").join(place)).unwrap().map(|entry| entry.unwrap().path());
    let has = |dir: &PathBuf| dir.join("submitted").symlink_metadata().is_ok_and(|m| m.ino() == inode);
    let dir = delivered.into_iter().find(has).expect("delivered to nowhere");
    let result = dir.join(if again { format!("result.{}", claimed.attempt) } else { "result".into() });
    let written: Report = serde_json::from_slice(&fs::read(result.join("report.json")).unwrap()).unwrap();
    assert!(!written.pilot.is_empty());
    assert_eq!(written, Report { pilot: written.pilot.clone(), ..report });
    for path in [&dir, &result, &result.join("report.json")] {
        let metadata = path.symlink_metadata().unwrap();
        assert!(metadata.uid() == 0 && metadata.mode() & 0o022 == 0, "{}: others could write there", path.display());
    }
}

/// What root is asked to read is the user's own, by name, and what it is asked to write is not.
fn is_the_users(request: &Request, claimed: &Claimed, submitted: &Path, entry: &Entry) {
    assert_eq!(request.id, format!("{}.{}", claimed.name, claimed.attempt));
    assert_eq!((request.submitter, request.results.as_ref()), (Some(entry.uid), Some(&claimed.result())));
    assert!(request.inputs.as_ref().is_none_or(|inputs| *inputs == submitted.join("inputs")));
    for path in request.stdin.iter().chain(request.env_files.iter().map(|file| &file.path)) {
        assert_eq!(path.parent(), Some(submitted), "{path:?} is not beside job.json");
        assert!(path.file_name().is_some() && !path.ends_with(".."), "{path:?}");
    }
    assert!(!request.relay && request.sandbox.is_none() && request.slot.is_none() && !request.tied);
    match request.check() {
        Err(why) => is_message(&why),
        Ok(()) => {
            let beneath = |path: &String| path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            assert!(request.outputs.iter().all(beneath), "{:?}", request.outputs);
            // Without a program the image's own command runs.
            assert!(!request.image.is_empty());
            assert!(request.argv.first().is_none_or(|program| !program.as_bytes().is_empty()));
            assert!([request.timeout_s, request.grace_s, request.kill_s].iter().all(|s| s.is_finite() && *s >= 0.0));
        }
    }
}

fn is_message(why: &str) {
    assert!(!why.is_empty() && why.len() < 4096, "a message of {} bytes", why.len());
}

/// Each entry is in exactly one place, as it was.
fn nothing_is_lost(spool: &Spool, root: &Path, entries: &[Entry]) {
    let mut found: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut add = |path: PathBuf| {
        if let Ok(metadata) = path.symlink_metadata() {
            found.entry(metadata.ino()).or_default().push(path);
        }
    };
    fs::read_dir(spool.new_dir()).unwrap().for_each(|entry| add(entry.unwrap().path()));
    for place in ["claimed/pilot", "retry", "done", "held"] {
        for entry in fs::read_dir(root.join(place)).unwrap() {
            let dir = entry.unwrap().path();
            assert!(!dir.symlink_metadata().unwrap().file_type().is_symlink());
            add(dir.join("submitted"));
            add(dir.join("claim/submitted"));
        }
    }
    for entry in entries {
        let places = found.get(&entry.inode).map(Vec::as_slice).unwrap_or_default();
        let [place] = places else { panic!("{} is in {places:?}", entry.name.escape_ascii()) };
        assert_eq!(listing(place), entry.content, "{} has changed", place.display());
    }
}

/// Lets what waits for its next attempt have it.
fn all_due(root: &Path) {
    for entry in fs::read_dir(root.join("retry")).unwrap() {
        let path = entry.unwrap().path().join("claim.json");
        let mut claim: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        claim["not_before"] = 0.into();
        fs::write(path, claim.to_string()).unwrap();
    }
}
