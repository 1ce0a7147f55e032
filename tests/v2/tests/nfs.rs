//! A spool on NFS, which several pilots mount: a server of the machine's own kernel, and clients that it takes for
//! several machines.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use latebind_tests::pod::{Options, Outcome, Pod, eventually, look_into, probe, put_into, shell, unique, with};
use latebind_v2_tests::{output, succeed};
use nix::mount::{MntFlags, umount2};

const LIMIT: Duration = Duration::from_secs(120);
/// A user of the spool.
const USER: u32 = 4321;

/// The server, started once in the machine. For a few seconds after each start it serves no new client, so that those
/// of its former life come first.
static SERVER: LazyLock<()> = LazyLock::new(|| {
    fs::create_dir_all("/etc/nfs.conf.d").unwrap();
    fs::write("/etc/nfs.conf.d/test.conf", "[nfsd]\ngrace-time=10\nlease-time=10\nvers3=n\n").unwrap();
    succeed("systemctl", &["start", "nfs-server"]);
});

/// A spool on the server, for clients of this machine.
struct Export(PathBuf);

impl Export {
    /// `squash`: `no_root_squash` or `root_squash`.
    fn new(squash: &str) -> Self {
        LazyLock::force(&SERVER);
        let dir = Path::new("/srv").join(unique("spool"));
        fs::create_dir(&dir).unwrap();
        // As the spool of many users is: anybody's jobs, and root's directories.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).unwrap();
        fs::create_dir(dir.join("new")).unwrap();
        fs::set_permissions(dir.join("new"), fs::Permissions::from_mode(0o1777)).unwrap();
        let export = Self(dir);
        // In a file, since a start of the server forgets what exportfs alone was given.
        let line = format!("{} 127.0.0.0/8(rw,no_subtree_check,{squash})\n", export.0.display());
        fs::create_dir_all("/etc/exports.d").unwrap();
        fs::write(export.file(), line).unwrap();
        succeed("exportfs", &["-r"]);
        export
    }

    fn file(&self) -> PathBuf {
        Path::new("/etc/exports.d").join(self.0.file_name().unwrap()).with_extension("exports")
    }

    /// Mounted by a client of its own, as docs/sources.md has it. The kernel has one client for all mounts from one
    /// address; and a server gives what it lets a client keep in its cache to whoever gives the same host name.
    fn mount(&self) -> Mount {
        static CLIENTS: AtomicU8 = AtomicU8::new(2);
        let place = Path::new("/mnt").join(unique("nfs"));
        fs::create_dir(&place).unwrap();
        let number = CLIENTS.fetch_add(1, Ordering::Relaxed);
        let (export, place_words) = (self.0.display(), place.to_str().unwrap());
        let mount = "hostname client-$1 && mount -t nfs4 -o nosharecache,actimeo=1 127.0.0.$1:$2 $3";
        let words = ["--uts", "sh", "-c", mount, "sh", &number.to_string(), &export.to_string(), place_words];
        succeed("unshare", &words);
        Mount(place)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.file());
        let _ = output("exportfs", &["-r"]);
    }
}

/// A client's view of it.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A user's job: what is put there is the user's own.
fn submit(spool: &Path, name: &str, job: &serde_json::Value) {
    let staging = spool.join(format!(".{name}.user"));
    fs::create_dir(&staging).unwrap();
    fs::create_dir(staging.join("new")).unwrap();
    put_into(&staging, name, job.to_string().as_bytes(), &[("inputs/in", b"brought along\n")]);
    let dir = staging.join("new").join(name);
    for path in [dir.join("inputs/in"), dir.join("inputs"), dir.join("job.json"), dir.clone()] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    fs::rename(dir, spool.join("new").join(name)).unwrap();
    fs::remove_dir_all(staging).unwrap();
}

fn result(spool: &Path, name: &str, pods: &[Pod]) -> Outcome {
    let said = || pods.iter().map(Pod::said).collect::<String>();
    eventually(&format!("{name} is over\n{}", said()), LIMIT, || look_into(spool, name))
}

#[test]
fn pilots_on_two_clients_run_each_job_once() {
    let export = Export::new("no_root_squash");
    let (first, second, user) = (export.mount(), export.mount(), export.mount());
    let pods = [&first, &second].map(|mount| Options::new().spool(&mount.0).start());
    pods.iter().for_each(Pod::serves);
    let names: Vec<String> = (0..8).map(|n| format!("job-{n}")).collect();
    let job = with(shell("cat in; sleep 0.5; echo made >out"), "outputs", serde_json::json!(["out"]));
    for name in &names {
        submit(&user.0, name, &job);
    }
    let mut by: BTreeMap<String, usize> = BTreeMap::new();
    for name in &names {
        let outcome = result(&user.0, name, &pods);
        outcome.is_good();
        assert_eq!(
            (outcome.text("stdout").as_str(), outcome.text("outputs/out").as_str()),
            ("brought along\n", "made\n")
        );
        *by.entry(outcome.report.pilot.clone()).or_default() += 1;
    }
    assert_eq!(by.len(), 2, "one pilot had all the jobs: {by:?}");
    // On the server itself: nothing is left over, nothing is there twice.
    let count = |place: &str| fs::read_dir(export.0.join(place)).unwrap().count();
    assert_eq!((count("new"), count("done"), count("held")), (0, names.len(), 0));
}

#[test]
fn a_server_that_is_away_while_a_job_runs_costs_it_nothing() {
    let export = Export::new("no_root_squash");
    let (mount, user) = (export.mount(), export.mount());
    let pods = [Options::new().spool(&mount.0).start()];
    submit(&user.0, "long", &shell("echo begun >begun; until [ -e go ]; do sleep 0.1; done; echo well"));
    eventually("it has begun", LIMIT, || pods[0].work(0).join("begun").exists().then_some(()));
    succeed("systemctl", &["stop", "nfs-server"]);
    fs::write(pods[0].work(0).join("go"), "").unwrap();
    // The watcher may wait for the server, and glue has written the record.
    let record = pods[0].ctl(0).join("record.jws");
    let is_over = || record.exists() || pods[0].phase("long.1").as_deref() != Some("running");
    eventually("the job has ended", LIMIT, || is_over().then_some(()));
    succeed("systemctl", &["start", "nfs-server"]);
    let outcome = result(&user.0, "long", &pods);
    outcome.is_good();
    assert_eq!((outcome.text("stdout").as_str(), outcome.report.attempt), ("well\n", 1));
    submit(&user.0, "after", &probe(&["hello"]));
    result(&user.0, "after", &pods).is_good();
}

#[test]
fn a_spool_where_root_is_nobody_is_refused_and_it_is_said_why() {
    let export = Export::new("root_squash");
    let mount = export.mount();
    let mut pod = Options::new().host(&["--restarts", "0"]).spool(&mount.0).start();
    let status = pod.end(LIMIT);
    assert!(!status.success() && pod.said().contains("no_root_squash"), "{status}\n{}", pod.said());
}
