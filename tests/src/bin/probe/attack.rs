//! What a hostile payload tries, and what a hostile image would put in glue's place.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::time::{Duration, UNIX_EPOCH};

use latebind_contract::encoding::{Bytes32, Key, sha256_hex};
use latebind_contract::order::{self, Order};
use latebind_contract::record::{GlueIdentity, Outcome, Processes, Record, Usage, Used, sign};
use latebind_contract::status::{Phase, Status};
use latebind_contract::{layout, time};
use serde_json::json;

use crate::{say, swarm, sys};

/// What a debugger would do to a process.
pub fn trace(pid: u64) -> Result<i32, String> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).ok_or("a process other than the first")?;
    let told = |result: io::Result<()>| result.map_or_else(|e| e.to_string(), |()| "worked".into());
    // Attaching last: what is attached to is stopped.
    let (memory, descriptor) = (told(sys::read_memory(pid)), told(sys::take_descriptor(pid, 0).map(drop)));
    say(&json!({"pid": pid, "memory": memory, "descriptor": descriptor, "attach": told(sys::ptrace_attach(pid))}));
    Ok(0)
}

/// Tries everything, says what worked, ends well: the promise is that none of it makes a record.
pub fn forge() -> Result<i32, String> {
    swarm::refuse_outside_a_pod()?;
    let supervisor = sys::parent();
    let stat = fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap_or_default();
    let parent = |stat: &str| stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?.parse().ok();
    let glue: i32 = parent(&stat).unwrap_or(0);
    for pid in [supervisor, glue] {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // kill(0, ...) would be the probe's own process group.
        if pid <= 1 || name.trim() != "glue" {
            return Err(format!("refusing: the parent, or its parent, process {pid}, is '{}', not glue", name.trim()));
        }
    }
    let mut worked = 0u64;
    let mut attempt = |what: &str, result: io::Result<()>| {
        worked += u64::from(result.is_ok());
        say(&json!({"attempt": what, "ok": result.is_ok(), "error": result.err().map(|e| e.to_string())}));
    };
    let record = forged_record(&Key::default(), None).unwrap_or_default();

    for slot in 0..=layout::SLOT_MAX {
        let top = layout::slot(slot);
        if fs::symlink_metadata(&top).is_err() {
            continue;
        }
        let ctl = layout::ctl(slot);
        attempt(&format!("list {ctl}"), fs::read_dir(&ctl).map(drop));
        for name in [layout::RECORD, layout::STARTUP, layout::STATUS] {
            attempt(&format!("read {ctl}/{name}"), fs::read(format!("{ctl}/{name}")).map(drop));
            attempt(&format!("write {ctl}/{name}"), fs::write(format!("{ctl}/{name}"), &record));
            attempt(&format!("unlink {ctl}/{name}"), fs::remove_file(format!("{ctl}/{name}")));
            attempt(&format!("link {ctl}/{name}"), symlink("/proc/self/environ", format!("{ctl}/{name}")));
        }
        for fifo in [layout::GLUE_NOTIFY, layout::WATCHER_NOTIFY] {
            let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(format!("{ctl}/{fifo}"));
            attempt(&format!("notify {ctl}/{fifo}"), opened.and_then(|mut fifo| fifo.write_all(b"\n")));
        }
        attempt(&format!("chmod {ctl}"), fs::set_permissions(&ctl, fs::Permissions::from_mode(0o777)));
        attempt(&format!("rename {ctl}"), fs::rename(&ctl, format!("{top}/away")));
        attempt(&format!("make {top}/forged"), fs::create_dir(format!("{top}/forged")));
        let data = layout::data(slot);
        attempt(&format!("write {data}/record.jws"), fs::write(format!("{data}/{}", layout::RECORD), &record));
        attempt(&format!("rename {data}/work"), fs::rename(layout::work(slot), format!("{data}/away")));
    }
    let here = format!("record in {}", std::env::current_dir().unwrap_or_default().display());
    attempt(&here, fs::write(layout::RECORD, &record));

    attempt("write over glue", OpenOptions::new().write(true).open(layout::GLUE).map(drop));
    attempt("unlink glue", fs::remove_file(layout::GLUE));
    attempt("put a file beside glue", fs::write(format!("{}/forged", layout::BIN), ""));
    attempt("rename the volumes", fs::rename(layout::SHARED, "/forged"));

    for (whose, pid) in [("glue's", glue), ("the supervisor's", supervisor)] {
        for file in ["environ", "maps", "auxv", "io"] {
            attempt(&format!("read {whose} {file}"), fs::read(format!("/proc/{pid}/{file}")).map(drop));
        }
        for file in ["mem", "coredump_filter", "oom_score_adj", "timerslack_ns", "clear_refs"] {
            attempt(&format!("write {whose} {file}"), fs::write(format!("/proc/{pid}/{file}"), "1"));
        }
        attempt(&format!("open {whose} memory"), fs::File::open(format!("/proc/{pid}/mem")).map(drop));
        // Whoever may read learns that nothing is at that address.
        let copied =
            sys::read_memory(pid).or_else(|e| if e.raw_os_error() == Some(libc::EFAULT) { Ok(()) } else { Err(e) });
        attempt(&format!("copy {whose} memory"), copied);
        attempt(&format!("take {whose} descriptor"), sys::take_descriptor(pid, 0).map(drop));
        attempt(&format!("list {whose} descriptors"), fs::read_dir(format!("/proc/{pid}/fd")).map(drop));
        attempt(&format!("enter {whose} root"), fs::read_dir(format!("/proc/{pid}/root/")).map(drop));
        attempt(&format!("take {whose} time"), sys::limit_cpu_time(pid));
        attempt(&format!("trace {whose} process"), sys::ptrace_attach(pid));
        for signal in [0, libc::SIGSTOP, libc::SIGCONT, libc::SIGTERM, libc::SIGCHLD, libc::SIGKILL] {
            attempt(&format!("send {whose} process signal {signal}"), sys::kill(pid, signal));
        }
    }

    // Whoever else shares the PID namespace: the pilot's processes hold its token and its files.
    let own = sys::real_uid();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        let other = entry.metadata().is_ok_and(|file| file.uid() != own);
        if !other || pid == glue || pid == supervisor {
            continue;
        }
        let name = name.trim();
        attempt(&format!("read the environment of {name}"), fs::read(entry.path().join("environ")).map(drop));
        attempt(&format!("enter the root of {name}"), fs::read_dir(entry.path().join("root/")).map(drop));
        attempt(&format!("stop {name}"), sys::kill(pid, libc::SIGSTOP));
    }
    attempt("become root", sys::set_real_effective_saved_uid(0));
    attempt("become the killer", sys::set_real_effective_saved_uid(layout::DEFAULT_KILL_UID));
    say(&json!({"worked": worked}));
    Ok(0)
}

/// `<any directory>/glue run --slot N` of an image that shadows ours: says it is ready, takes the key from the startup
/// file, and signs a record that is true in every field. Only the mount proof, before there is a startup file, stands
/// against it.
pub fn false_glue(words: &[String]) -> Result<i32, String> {
    sys::ignore(libc::SIGPIPE);
    say(&json!({"pwned": true, "uid": sys::real_uid(), "args": words}));
    if words.first().is_none_or(|verb| verb != "run") {
        return Ok(0);
    }
    let slot: u32 = words.iter().skip_while(|word| *word != "--slot").nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    let ctl = layout::ctl(slot);
    // The marker that a test looks for: root ran what the image brought.
    for place in [ctl.clone(), layout::data(slot), layout::SHARED.into(), "/".into()] {
        let _ = fs::write(format!("{place}/pwned"), "pwned\n");
    }
    for fifo in [layout::GLUE_NOTIFY, layout::WATCHER_NOTIFY] {
        let _ = sys::make_fifo(&format!("{ctl}/{fifo}"));
    }
    let owner = fs::metadata(layout::work(slot)).map(|work| (work.uid(), work.gid())).unwrap_or((20_000, 20_000));
    let incarnation =
        sha256_hex(format!("{:?}{}", latebind_contract::time::wall(), std::process::id()).as_bytes())[..32].to_string();
    let mut status = Status {
        contract: vec![1],
        phase: Phase::Ready,
        incarnation: incarnation.clone(),
        pid: i32::try_from(std::process::id()).unwrap_or(0),
        glue: env!("CARGO_PKG_VERSION").into(),
        uid: owner.0,
        gid: owner.1,
        kill_uid: layout::DEFAULT_KILL_UID + slot,
        job: None,
        nonce: None,
        main_pid: None,
        refused: None,
        log_lines_dropped: 0,
    };
    tell(&ctl, layout::STATUS, &serde_json::to_string(&status).unwrap_or_default());
    loop {
        std::thread::sleep(Duration::from_millis(5));
        let Ok(bytes) = fs::read(format!("{ctl}/{}", layout::STARTUP)) else { continue };
        let Ok(taken) = order::parse(&bytes).map(|(order, _)| order) else { continue };
        say(&json!({"stolen_key_of": taken.job}));
        let _ = fs::remove_file(format!("{ctl}/{}", layout::STARTUP));
        let record = forged_record(&taken.key, Some((&taken, &bytes))).unwrap_or_default();
        tell(&ctl, layout::RECORD, &record);
        status =
            Status { phase: Phase::Done, nonce: Some(taken.nonce.clone()), job: Some(taken.job.clone()), ..status };
        tell(&ctl, layout::STATUS, &serde_json::to_string(&status).unwrap_or_default());
    }
}

fn tell(ctl: &str, name: &str, text: &str) {
    let temporary = format!("{ctl}/{name}{}", layout::TEMPORARY_SUFFIX);
    let _ = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, format!("{ctl}/{name}")));
    // Without blocking, where nobody has the other end open.
    let fifo = format!("{ctl}/{}", layout::WATCHER_NOTIFY);
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(fifo);
    let _ = opened.and_then(|mut notified| notified.write_all(b"\n"));
}

/// A record of success: of the job in `taken`, or of one made up.
fn forged_record(key: &Key, taken: Option<(&Order, &[u8])>) -> Option<String> {
    let now = latebind_contract::time::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let moment = time::rfc3339(i64::try_from(now.as_secs()).unwrap_or(0), now.subsec_nanos());
    let nothing = Used { user_s: 0.1, system_s: 0.1, ..Used::default() };
    let record = Record {
        version: latebind_contract::VERSION,
        job: taken.map_or("forged".into(), |(startup, _)| startup.job.clone()),
        nonce: taken.map_or(Bytes32::new([0; 32]), |(startup, _)| startup.nonce.clone()),
        incarnation: taken.map_or("0".repeat(32), |(startup, _)| startup.incarnation.clone()),
        startup_sha256: taken.map_or("0".repeat(64), |(_, bytes)| sha256_hex(bytes)),
        outcome: Outcome::Exited,
        exit_code: Some(0),
        signal: None,
        core_dumped: false,
        error: None,
        started_at: Some(moment.clone()),
        ended_at: moment,
        wall_s: 0.2,
        usage: Usage { main: nothing, tree: nothing },
        processes: Processes { reaped: 1, left_over_killed: 0, unkilled: 0 },
        seccomp: Some(true),
        warnings: Vec::new(),
        glue: GlueIdentity { version: env!("CARGO_PKG_VERSION").into(), sha256: "0".repeat(64) },
    };
    sign(&record, key)
}

/// Lets a user write in everything that is made in a directory from now on, whoever makes it: the default ACL of
/// acl(5), in the form that the kernel has it in (linux/posix_acl_xattr.h).
pub fn default_acl(path: &str, uid: u64) -> Result<i32, String> {
    const ALL: u16 = 7;
    const NOBODY: u32 = u32::MAX;
    let uid = u32::try_from(uid).map_err(|e| e.to_string())?;
    // The owner, the user, the owning group, the mask, and everybody else.
    let entries = [(0x01, NOBODY), (0x02, uid), (0x04, NOBODY), (0x10, NOBODY), (0x20, NOBODY)];
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, id) in entries {
        value.extend(u16::to_le_bytes(tag));
        value.extend(ALL.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    sys::set_xattr(path, c"system.posix_acl_default", &value).map_err(|e| format!("{path}: {e}"))?;
    Ok(0)
}
