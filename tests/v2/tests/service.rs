//! A pod as a service of systemd, as `make install` installs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use latebind_tests::pod::{BUSYBOX, unique};
use latebind_tests::processes::all_pids;
use latebind_tests::waiting::within;
use latebind_v2_tests::{output, succeed};
use serde_json::json;

/// The machine is slow: a system call takes 14 us, a fork and exec 18 ms.
const LIMIT: Duration = Duration::from_secs(120);
const PREFIX: &str = "/usr/local";

/// A pod's unit, with its spool; stopped at the end.
struct Service {
    unit: String,
    pod: String,
    spool: PathBuf,
}

impl Service {
    fn start() -> Self {
        succeed("env", &[&format!("PREFIX={PREFIX}"), "../../.ci/install.sh"]);
        let pod = unique("service");
        let spool = PathBuf::from("/var/spool/latebind").join(&pod);
        fs::create_dir_all(spool.join("new")).unwrap();
        fs::create_dir_all("/etc/latebind").unwrap();
        let state = std::env::var("LATEBIND_STATE").unwrap();
        let conf = format!("OPTIONS=--spool {} --memory 256m\nLATEBIND_STATE={state}\n", spool.display());
        fs::write(format!("/etc/latebind/{pod}.conf"), conf).unwrap();
        let unit = format!("latebind-pod@{pod}.service");
        succeed("systemctl", &["daemon-reload"]);
        succeed("systemctl", &["start", &unit]);
        Self { unit, pod, spool }
    }

    fn submit(&self, name: &str, command: &str) {
        let prepared = self.spool.join(name);
        fs::create_dir(&prepared).unwrap();
        let job = json!({"image": BUSYBOX, "argv": ["sh", "-c", command]});
        fs::write(prepared.join("job.json"), job.to_string()).unwrap();
        fs::rename(prepared, self.spool.join("new").join(name)).unwrap();
    }

    /// Waits until there is one process with these arguments, other than `earlier`; its number.
    fn wait_for(&self, arguments: &[&str], earlier: Option<i32>) -> i32 {
        within(LIMIT, &format!("{arguments:?}\n{}", self.log()), || match running(arguments)[..] {
            [pid] if Some(pid) != earlier => Some(pid),
            _ => None,
        })
    }

    fn property(&self, name: &str) -> String {
        succeed("systemctl", &["show", "--value", "-p", name, &self.unit]).trim().to_owned()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&output("journalctl", &["-n", "60", "--no-pager", "-u", &self.unit]).stdout)
            .into_owned()
    }

    /// What is left of the pod's containers.
    fn containers(&self) -> String {
        let all = succeed("../../images/podman", &["ps", "--all", "--noheading", "--format", "{{.Names}} {{.Status}}"]);
        all.lines().filter(|line| line.contains(&self.pod)).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = output("systemctl", &["stop", &self.unit]);
    }
}

/// The processes of this machine that have these arguments.
fn running(arguments: &[&str]) -> Vec<i32> {
    let wanted: Vec<u8> = arguments.iter().flat_map(|word| word.bytes().chain([0])).collect();
    let has_them = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted);
    all_pids().into_iter().filter(has_them).collect()
}

#[test]
fn a_stop_is_a_drain_and_the_next_start_goes_on_with_the_job() {
    let service = Service::start();
    service.submit("long", "exec sleep 4217");
    service.wait_for(&["sleep", "4217"], None);

    succeed("systemctl", &["stop", &service.unit]);
    assert_eq!(service.property("Result"), "success", "{}", service.log());
    assert_eq!(service.property("ExecMainStatus"), "0", "{}", service.log());
    assert_eq!(running(&["sleep", "4217"]), Vec::<i32>::new());
    assert_eq!(service.containers(), "");
    assert!(!service.spool.join("done/long").exists() && !service.spool.join("held/long").exists());

    succeed("systemctl", &["start", &service.unit]);
    service.wait_for(&["sleep", "4217"], None);
}

#[test]
fn a_service_that_was_killed_is_started_again_and_goes_on_with_the_job() {
    let service = Service::start();
    service.submit("long", "exec sleep 4218");
    let first = service.wait_for(&["sleep", "4218"], None);
    let main = service.property("MainPID");
    succeed("kill", &["-KILL", &main]);
    within(LIMIT, "another main process", || {
        let now = service.property("MainPID");
        (now != main && now != "0").then_some(())
    });
    // The killed pod's goes on until the next one removes what is left.
    service.wait_for(&["sleep", "4218"], Some(first));
    succeed("systemctl", &["stop", &service.unit]);
    assert_eq!(service.property("Result"), "success", "{}", service.log());
    assert_eq!(service.containers(), "");
}

#[test]
fn what_is_installed_has_pages_and_completions() {
    let service = Service::start();
    let share = Path::new(PREFIX).join("share");
    for page in ["latebind-host.1", "latebind-host-run.1", "watcher.1", "watcher-pilot.1"] {
        assert!(share.join("man/man1").join(page).exists(), "{page} is missing");
    }
    succeed("bash", &["-n", &format!("{PREFIX}/share/bash-completion/completions/latebind-host")]);
    let verified = succeed("systemd-analyze", &["--man=no", "verify", &service.unit]);
    assert_eq!(verified, "");
}
