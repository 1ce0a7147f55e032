//! What crun does, the runtime on control groups v2, and runc does not: where a container's first process ends between
//! crun's look whether it is there and its opening of the FIFO that lets it go on, the start never ends.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{LockResult, Mutex, MutexGuard};
use std::time::Duration;

use latebind_tests::pod::{Options, Pod, Scratch, Signal, eventually, is_gone, kill, podman, probe};
use latebind_tests::processes::{Process, all_pids};
use nix::libc::O_NONBLOCK;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const LIMIT: Duration = Duration::from_secs(60);
const CRUN: &str = "/usr/bin/crun";

/// In the place of the machine's crun, which it becomes. A start for which [`HeldCrun::hold`] was called finds a FIFO
/// in place of the container's configuration, which crun reads between the two.
struct HeldCrun {
    dir: Scratch,
    _only: LockResult<MutexGuard<'static, ()>>,
}

impl HeldCrun {
    fn new() -> Self {
        static ONLY: Mutex<()> = Mutex::new(());
        let held = Self { _only: ONLY.lock(), dir: Scratch::new() };
        let (dir, script) = (held.dir.path(), held.dir.path().join("script"));
        let text = format!(
            "#!/bin/sh
            dir={}
            for id; do :; done
            config=${{XDG_RUNTIME_DIR:-/run}}/crun/$id/config.json
            case \" $* \" in *\" start \"*)
                if mv $dir/hold-$id $dir/held || mv $dir/hold-any $dir/held; then
                    mv $config $dir/config.json
                    mkfifo $config
                    ln -s $config $dir/fifo
                fi 2>/dev/null
            esac
            exec $dir/crun \"$@\"\n",
            dir.display()
        );
        fs::copy(CRUN, dir.join("crun")).unwrap();
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        mount(Some(&script), CRUN, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        held
    }

    /// Holds the next start of the container with this ID, or of `any`.
    fn hold(&self, id: &str) {
        fs::write(self.dir.path().join(format!("hold-{id}")), "").unwrap();
    }

    /// Waits until crun is held, kills the first process of the container, which has this role in the pod, and lets
    /// crun go on. Returns crun's process ID.
    fn kill_in_between(&self, pod: &Pod, role: impl Fn() -> String) -> i32 {
        let link = self.dir.path().join("fifo");
        let is_fifo = || fs::metadata(&link).is_ok_and(|held| held.file_type().is_fifo());
        // This succeeds once it has a reader.
        let open = || File::options().write(true).custom_flags(O_NONBLOCK).open(&link).ok();
        let _open = eventually("crun is held", LIMIT, || is_fifo().then(open)?);
        let mut to_crun = File::options().write(true).open(&link).unwrap();
        // Whoever comes later reads it as it was.
        let fifo = fs::read_link(&link).unwrap();
        let config = fs::read(self.dir.path().join("config.json")).unwrap();
        fs::write(fifo.with_extension("new"), &config).unwrap();
        fs::rename(fifo.with_extension("new"), &fifo).unwrap();
        let id = fifo.parent().and_then(Path::file_name).and_then(OsStr::to_str).unwrap();
        let is_start = |process: &Process| process.command.ends_with(&format!(" start {id}"));
        let crun = all_pids().into_iter().filter_map(Process::look).find(is_start).unwrap().pid;
        let main = pod.main_process(&role());
        kill(main, Signal::SIGKILL);
        eventually("its end", LIMIT, || Process::look(main).is_none_or(|main| !main.lives()).then_some(()));
        to_crun.write_all(&config).unwrap();
        crun
    }
}

impl Drop for HeldCrun {
    fn drop(&mut self) {
        let _ = umount2(CRUN, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_start_of_the_pilot_that_hangs_is_ended_and_another_pilot_made() {
    let crun = HeldCrun::new();
    let pod = Options::new().start();
    pod.serves();
    let id = podman(&["container", "inspect", "--format={{.Id}}", &pod.container("pilot")]);
    crun.hold(String::from_utf8(id.stdout).unwrap().trim());
    kill(pod.main_process("pilot"), Signal::SIGKILL);
    let start = crun.kill_in_between(&pod, || "pilot".into());
    pod.says("another one is made");
    assert!(is_gone(start), "crun {start} is left");
    pod.job("after", &probe(&["hello"])).is_good();
}

#[test]
fn a_start_of_a_payload_container_that_hangs_is_ended_with_the_engines_call() {
    let crun = HeldCrun::new();
    let pod = Options::new().start();
    pod.serves();
    crun.hold("any");
    pod.put("job", &probe(&["hello"]));
    let start = crun.kill_in_between(&pod, || pod.payload_role(0));
    pod.result("job").is_good();
    eventually(&format!("the end of crun {start}"), LIMIT, || is_gone(start).then_some(()));
}
