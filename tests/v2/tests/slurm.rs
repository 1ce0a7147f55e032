//! A pilot as a job of Slurm's on one node, by a user who has no rights there: Debian's slurmctld and slurmd.

use std::fs;
use std::os::unix::fs::{chown, lchown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use latebind_tests::pod::{BUSYBOX, NOSHELL, Outcome, look_into, probe, shell, unique, with};
use latebind_tests::processes::{Process, all_pids, cgroup};
use latebind_tests::waiting::deadline;
use latebind_v2_tests::{output, shown, succeed};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(180);
/// Slurm's commands take time from what they wait for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LIAR: &str = "localhost/latebind/liar-shell:1";
const IMAGES: &str = "/var/tmp/images.tar";
const DELEGATE: &str = "/usr/local/sbin/latebind-delegate";
/// The address is needed since Slurm resolves names only where there is one besides loopback's.
const CONF: &str = "\
ClusterName=test
SlurmctldHost=v2(127.0.0.1)
AuthType=auth/munge
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmUser=slurm
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
KillWait=120
MpiDefault=none
Epilog=/usr/local/sbin/latebind-delegate
NodeName=v2 NodeAddr=127.0.0.1 CPUs=1 RealMemory=3000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
";
const CGROUP_CONF: &str = "CgroupPlugin=cgroup/v2\nConstrainCores=no\nConstrainRAMSpace=yes\nConstrainSwapSpace=no\n";

/// As docs/slurm.md has it for the node's root, once in the machine.
static NODE: LazyLock<()> = LazyLock::new(|| {
    succeed("ip", &["address", "add", "192.0.2.1/32", "dev", "lo"]);
    fs::write("/etc/slurm/slurm.conf", CONF).unwrap();
    fs::write("/etc/slurm/cgroup.conf", CGROUP_CONF).unwrap();
    for dir in ["/var/spool/slurmctld", "/var/spool/slurmd"] {
        fs::create_dir_all(dir).unwrap();
    }
    succeed("chown", &["slurm", "/var/spool/slurmctld"]);
    succeed("install", &["-m", "755", "../../deploy/slurm/latebind-delegate", DELEGATE]);
    succeed("install", &["-m", "755", "../../dist/latebind-host", "/usr/local/bin/latebind-host"]);
    fs::write("/etc/sudoers.d/latebind", format!("ALL ALL=(root) NOPASSWD: {DELEGATE} \"\"\n")).unwrap();
    let images = ["localhost/latebind/glue:1", "localhost/latebind/pilot:1", BUSYBOX, NOSHELL, LIAR];
    let save = [&["save", "--quiet", "--multi-image-archive", "--output", IMAGES], images.as_slice()].concat();
    succeed("../../images/podman", &save);
    succeed("systemctl", &["start", "munge", "slurmctld", "slurmd"]);
    eventually("an idle node", || succeed("sinfo", &["--noheader", "--format=%t"]).contains("idle").then_some(()));
});

#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = deadline(LIMIT);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// An ordinary user without a session, with a spool.
struct User {
    name: String,
    id: u32,
    home: PathBuf,
}

impl User {
    fn new() -> Self {
        LazyLock::force(&NODE);
        let name = unique("u");
        succeed("useradd", &["--create-home", "--shell", "/bin/bash", &name]);
        let id = succeed("id", &["-u", &name]).trim().parse().unwrap();
        let user = Self { home: Path::new("/home").join(&name), name, id };
        for dir in [user.spool(), user.spool().join("new")] {
            fs::create_dir(&dir).unwrap();
            chown(dir, Some(id), Some(id)).unwrap();
        }
        user
    }

    fn spool(&self) -> PathBuf {
        self.home.join("spool")
    }

    fn put(&self, name: &str, job: &Value) {
        let dir = self.spool().join(format!(".{name}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("job.json"), job.to_string()).unwrap();
        for path in [dir.join("job.json"), dir.clone()] {
            lchown(path, Some(self.id), Some(self.id)).unwrap();
        }
        fs::rename(dir, self.spool().join("new").join(name)).unwrap();
    }

    fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new("setpriv");
        let id = self.id.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "env", "-i"]);
        command.args(["PATH=/usr/local/bin:/usr/bin:/bin", "IDLE_EXIT=0.5"]);
        command.args([format!("HOME={}", self.home.display()), format!("IMAGES={IMAGES}")]);
        command.args(words).current_dir(&self.home).output().unwrap()
    }

    /// Submits a pilot for the spool.
    fn submit(&self, options: &[&str], pod: &[&str]) -> SlurmJob<'_> {
        let script = fs::canonicalize("../../deploy/slurm/pilot.sh").unwrap();
        let copy = self.home.join("pilot.sh");
        fs::copy(script, &copy).unwrap();
        let of_script = ["./pilot.sh", "spool"];
        let words = [&["sbatch", "--parsable", "--output=log"], options, &of_script, pod].concat();
        let submitted = self.command(&words);
        assert!(submitted.status.success(), "{}", shown(&submitted));
        SlurmJob { user: self, id: String::from_utf8(submitted.stdout).unwrap().trim().to_owned() }
    }

    fn outcome(&self, name: &str) -> Outcome {
        let what = || format!("the result of {name}\n{}", self.log());
        eventually(&what(), || look_into(&self.spool(), name))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// The report of an attempt, in a job that waits for the next one.
    fn retried(&self, name: &str) -> Value {
        let path = self.spool().join("retry").join(name).join("result.1/report.json");
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}\n{}", path.display(), self.log()));
        serde_json::from_slice(&bytes).unwrap()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = output("scancel", &["--user", &self.name]);
        let _ = output("userdel", &["--force", "--remove", &self.name]);
    }
}

struct SlurmJob<'a> {
    user: &'a User,
    id: String,
}

impl SlurmJob<'_> {
    /// Waits for a process with these arguments; its control groups.
    fn group_of(&self, arguments: &[&str]) -> String {
        eventually(&format!("{arguments:?}\n{}", self.user.log()), || group_of(arguments))
    }

    fn property(&self, name: &str) -> String {
        let shown = succeed("scontrol", &["--oneliner", "show", "job", &self.id]);
        let mut properties = shown.split_whitespace().filter_map(|word| word.split_once('='));
        properties.find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no {name}: {shown}")).1.to_owned()
    }

    fn state(&self) -> String {
        self.property("JobState")
    }

    /// How long it runs by now.
    fn run_seconds(&self) -> u32 {
        self.property("RunTime").split(':').fold(0, |seconds, part| seconds * 60 + part.parse::<u32>().unwrap())
    }

    /// Waits for its end, and for the node's epilog; its state.
    fn ended(&self) -> String {
        eventually(&format!("the end of job {}\n{}", self.id, self.user.log()), || {
            (!["PENDING", "RUNNING", "COMPLETING"].contains(&self.state().as_str())).then_some(())
        });
        eventually("an idle node", || succeed("sinfo", &["--noheader", "--format=%t"]).contains("idle").then_some(()));
        self.state()
    }

    fn assert_nothing_is_left(&self) {
        let own = fs::read_to_string("/etc/subuid").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix(&format!("{}:", self.user.name))).unwrap();
        let (first, count) = own.split_once(':').unwrap();
        let first: u32 = first.parse().unwrap();
        let range = first..first + count.parse::<u32>().unwrap();
        let is_users = |uid: &u32| *uid == self.user.id || range.contains(uid);
        let processes = all_pids().into_iter().filter_map(Process::look);
        let left: Vec<Process> = processes.filter(|process| process.uids.iter().any(is_users)).collect();
        assert_eq!(left, [], "{}", self.user.log());
        let groups = succeed("find", &["/sys/fs/cgroup", "-name", &format!("job_{}", self.id)]);
        assert_eq!(groups, "", "{}", self.user.log());
        let files = ["find", "/tmp", "/var/tmp", "-maxdepth", "1", "-user", &self.user.name];
        assert_eq!(succeed(files[0], &files[1..]), "", "{}", self.user.log());
    }
}

fn group_of(arguments: &[&str]) -> Option<String> {
    let wanted = arguments.join(" ");
    let found = all_pids().into_iter().filter_map(Process::look).find(|process| process.command == wanted)?;
    cgroup(found.pid)
}

#[test]
fn a_slurm_job_runs_three_jobs_in_three_images_within_its_memory() {
    let user = User::new();
    user.put("1-shell", &shell("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max"));
    user.put("2-no-shell", &probe(&["hello"]));
    user.put("3-liar", &json!({"image": LIAR, "argv": ["/probe", "hello"]}));
    // More than the Slurm job has, and less than its container would have.
    user.put("4-large", &with(probe(&["memory", "700", "0"]), "timeout_s", json!(120)));
    user.put("5-after", &probe(&["hello"]));
    let job = user.submit(&["--mem=500M", "--time=30"], &["--memory", "1g", "--pids", "77"]);
    let limits = user.outcome("1-shell").is_good().text("stdout");
    assert_eq!(limits, "1073741824\n77\n");
    for name in ["2-no-shell", "3-liar", "5-after"] {
        user.outcome(name).is_good();
    }
    user.outcome("4-large").is("hold", "OutOfMemory");
    // Slurm counts the kill as its own.
    assert!(["COMPLETED", "OUT_OF_MEMORY"].contains(&job.ended().as_str()), "{}\n{}", job.state(), user.log());
    job.assert_nothing_is_left();
}

#[test]
fn scancel_is_a_drain() {
    let user = User::new();
    user.put("long", &shell("exec sleep 4219"));
    let job = user.submit(&["--mem=500M", "--time=30"], &["--memory", "128m"]);
    let groups = job.group_of(&["sleep", "4219"]);
    assert!(groups.contains(&format!("/job_{}/", job.id)), "{groups}");
    succeed("scancel", &[&job.id]);
    assert_eq!(job.ended(), "CANCELLED", "{}", user.log());
    assert_eq!(user.retried("long")["reason"], "Cancelled");
    job.assert_nothing_is_left();
}

#[test]
fn the_end_of_a_jobs_time_is_a_drain_and_the_next_job_goes_on() {
    let user = User::new();
    user.put("long", &shell("exec sleep 4220"));
    let job = user.submit(&["--mem=500M", "--time=30", "--signal=B:TERM@90"], &["--memory", "128m"]);
    job.group_of(&["sleep", "4220"]);
    // The signal is due within a minute, and the end is 90 s later at least.
    let limit = (job.run_seconds() + 30) / 60 + 2;
    succeed("scontrol", &["update", &format!("JobId={}", job.id), &format!("TimeLimit={limit}")]);
    assert_eq!(job.ended(), "COMPLETED", "{}", user.log());
    assert_eq!(user.retried("long")["reason"], "Cancelled");
    job.assert_nothing_is_left();

    let next = user.submit(&["--mem=500M", "--time=30"], &["--memory", "128m"]);
    next.group_of(&["sleep", "4220"]);
    // As when KillWait is over; scancel cannot be had to do that at once. Nothing of the pilot is asked: what it leaves
    // is the epilog's, and its job the next pilot's.
    let task = succeed("find", &["/sys/fs/cgroup", "-path", &format!("*/job_{}/*/task_0/cgroup.kill", next.id)]);
    fs::write(task.trim(), "1").unwrap();
    next.ended();
    let claimed = user.spool().join("claimed");
    eventually("a claimed job", || fs::read_dir(&claimed).ok()?.flatten().find(|p| p.path().join("long").exists()));
    let groups = succeed("find", &["/sys/fs/cgroup", "-name", &format!("job_{}", next.id)]);
    assert_eq!((group_of(&["sleep", "4220"]), groups.as_str()), (None, ""));
}
