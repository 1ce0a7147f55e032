//! A pod of real containers as `latebind-host` makes it: pause container, install step, then whatever has the shape of
//! a payload container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use latebind_contract::layout;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Failed;

/// The image of everything that runs here.
const IMAGE: &str = "localhost/latebind/busybox:1";
/// What `install` is run in, and the pause container.
const GLUE_IMAGE: &str = "localhost/latebind/glue:1";
/// Debian's own builds are measured, and these need its C library; the image has none.
const LIBRARIES: [&str; 2] = ["/lib64", "/lib/x86_64-linux-gnu"];

/// The pod; removed with its containers when dropped.
pub struct Pod {
    name: String,
    /// The volumes' place on the host, `/shared` in the containers.
    pub top: PathBuf,
}

/// Runs a program to its end; its output, or what it said.
pub fn output(command: &mut Command) -> Result<String, Failed> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name} cannot be run: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name} ended with {}: {}", output.status, said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Calls podman on the project's own storage.
pub fn podman(arguments: &[String]) -> Result<String, Failed> {
    output(Command::new("images/podman").args(arguments))
}

fn make(dir: &Path) -> Result<(), Failed> {
    fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

impl Pod {
    /// Makes volumes, pause container and pilot's stand-in, and lets `glue install` do its work.
    pub fn new() -> Result<Self, Failed> {
        let state = std::env::var("LATEBIND_STATE").unwrap_or_else(|_| "/var/lib/latebind-host".into());
        let name = format!("latebind-bench-{}", std::process::id());
        let pod = Self { top: Path::new(&state).join(&name), name };
        for dir in ["bin", "slot/0/ctl", "slot/0/data"] {
            make(&pod.top.join(dir))?;
        }
        let ctl = pod.top.join("slot/0/ctl");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bench"), &ctl, Some("tmpfs"), flags, Some("size=16m,mode=0755"))
            .map_err(|e| format!("no file system in memory at {}: {e}", ctl.display()))?;

        let mut install = owned(&["run", "--rm", "--network=none"]);
        install.extend(common(&["CHOWN", "FOWNER", "DAC_OVERRIDE"]));
        install.extend(pod.mounts(false));
        install.extend(owned(&[GLUE_IMAGE, "install", "--slot", "0"]));
        podman(&install)?;
        if let Ok(other) = std::env::var("BENCH_GLUE") {
            pod.add_tool_as(Path::new(&other), layout::GLUE_NAME)?;
            // As `glue install` leaves it; glue refuses to run as anything else.
            let glue = pod.top.join("bin").join(layout::GLUE_NAME);
            fs::set_permissions(&glue, fs::Permissions::from_mode(layout::GLUE_MODE))
                .map_err(|e| format!("{}: {e}", glue.display()))?;
        }
        for name in ["bench", "stamp"] {
            pod.add_tool(Path::new("dist").join(name).as_path())?;
        }
        for dir in ["stamps", "io"] {
            make(&pod.top.join("slot/0/data").join(dir))?;
        }
        let io = pod.top.join("slot/0/data/io");
        for name in ["stdout", "stderr"] {
            crate::sample::StampFile::make(&io.join(name))?; // there before the start, as the watcher has them
        }

        let mut pause = owned(&["run", "-d", "--read-only", "--ipc=shareable", "--network=none"]);
        pause.push(format!("--name={}-pause", pod.name));
        pause.extend(common(&[]));
        pause.extend(owned(&[GLUE_IMAGE, "pause"]));
        podman(&pause)?;
        // A pilot would be one more process of the pod; this one only is there.
        pod.run_in_background("pilot", &["/bin/sleep", "100000"])?;
        Ok(pod)
    }

    /// Puts a program beside glue.
    pub fn add_tool(&self, program: &Path) -> Result<(), Failed> {
        self.add_tool_as(program, &program.file_name().unwrap_or_default().to_string_lossy())
    }

    /// The same under another name.
    fn add_tool_as(&self, program: &Path, name: &str) -> Result<(), Failed> {
        let to = self.top.join("bin").join(name);
        let _ = fs::remove_file(&to);
        fs::copy(program, &to).map(drop).map_err(|e| format!("{} to {}: {e}", program.display(), to.display()))
    }

    /// Where jobs write their times.
    pub fn stamps(&self) -> PathBuf {
        self.top.join("slot/0/data/stamps")
    }

    fn mounts(&self, bin_read_only: bool) -> Vec<String> {
        let bind = |source: PathBuf, target: &str, read_only: bool| {
            let read_only = if read_only { ",readonly" } else { "" };
            format!(
                "--mount=type=bind,source={},target={target},bind-propagation=rprivate,nosuid,nodev{read_only}",
                source.display()
            )
        };
        vec![
            bind(self.top.join("bin"), layout::BIN, bin_read_only),
            bind(self.top.join("slot/0/ctl"), &layout::ctl(0), false),
            bind(self.top.join("slot/0/data"), &layout::data(0), false),
        ]
    }

    /// The options of a container with the shape of a payload container.
    fn payload(&self, words: &[&str]) -> Result<Vec<String>, Failed> {
        let mut arguments = common(&["SETUID", "SETGID", "KILL", "SETPCAP"]);
        for kind in ["pid", "network", "ipc", "uts"] {
            arguments.push(format!("--{kind}=container:{}-pause", self.name));
        }
        arguments.push("--passwd=false".into());
        arguments.extend(self.mounts(true));
        for library in LIBRARIES.iter().filter(|l| Path::new(l).is_dir()) {
            arguments.push(format!("--mount=type=bind,source={library},target={library},readonly"));
        }
        let entry = serde_json::to_string(words).map_err(|e| e.to_string())?;
        arguments.push(format!("--entrypoint={entry}"));
        arguments.push(IMAGE.into());
        Ok(arguments)
    }

    /// Runs a program in a container of its own until it ends; what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String, Failed> {
        let mut arguments = owned(&["run", "--rm"]);
        arguments.extend(self.payload(words)?);
        podman(&arguments)
    }

    /// Starts a program as the main process of a container; its process ID on the host.
    pub fn run_in_background(&self, name: &str, words: &[&str]) -> Result<i32, Failed> {
        let name = format!("{}-{name}", self.name);
        let mut arguments = owned(&["run", "-d"]);
        arguments.push(format!("--name={name}"));
        arguments.extend(self.payload(words)?);
        podman(&arguments)?;
        let pid = podman(&owned(&["inspect", "--format={{.State.Pid}}", &name]))?;
        match pid.parse() {
            Ok(pid) if pid > 0 => Ok(pid),
            _ => Err(format!("{name} does not run: it ended at once, or somebody removed podman's running state")),
        }
    }

    /// Ends and removes one container.
    pub fn remove(&self, name: &str) -> Result<(), Failed> {
        podman(&owned(&["rm", "--force", "--time=1", &format!("{}-{name}", self.name)])).map(drop)
    }
}

/// What `latebind-host` gives every container.
fn common(capabilities: &[&str]) -> Vec<String> {
    let mut arguments = owned(&[
        "--pull=never",
        "--user=0:0",
        "--workdir=/",
        "--umask=0022",
        "--image-volume=ignore",
        "--no-healthcheck",
        "--no-hosts",
        "--http-proxy=false",
        "--systemd=false",
        "--security-opt=no-new-privileges",
        "--cap-drop=all",
        "--pids-limit=-1",
    ]);
    arguments.extend(capabilities.iter().map(|c| format!("--cap-add={c}")));
    arguments
}

impl Drop for Pod {
    fn drop(&mut self) {
        let filter = format!("--filter=name=^{}-", self.name);
        let names = podman(&owned(&["ps", "--all", "--format={{.Names}}", &filter])).unwrap_or_default();
        // The one that holds the namespaces goes last: it was made first, and is printed last.
        let mut names: Vec<&str> = names.lines().collect();
        names.sort_by_key(|name| name.ends_with("-pause"));
        for name in names {
            let _ = podman(&owned(&["rm", "--force", "--time=1", name]));
        }
        let _ = umount2(&self.top.join("slot/0/ctl"), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.top);
    }
}
