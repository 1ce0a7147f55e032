//! What a runtime may be given for a payload container: everything that [`crate::container`] asks podman for, and
//! nothing else.
//!
//! An image's text reaches `config.json` in its environment, which is the job's business, and with some versions of
//! podman in its annotations, on which runtimes act as root of the host. Annotations that are not in [`ASKED`] are
//! taken out. Any other difference is refused: it comes from an image in a way that nobody knew, or from the machine's
//! configuration.

use crate::container::Role;
use crate::pattern::matches;
use crate::place::{Place, PodPlace, is_pod_name};
use crate::rootless;
use latebind_contract::layout;
use serde_json::Value;
use watcher::serve::pilot_jobs;

/// Annotation that names the container, `<pod>/slot-<n>-<life>`: by it the guard knows what was asked for.
pub const CONTAINER_ANNOTATION: &str = "latebind.container";
/// All that `config.json` may say, a line for each member; `!` marks what it has to say, `~` what it has to say unless
/// podman is an ordinary user's: then the kernel lets no container reach a device by a node of its own. `*` is any text,
/// `|` is between alternatives. A list is `<a><b>`, sorted. Annotations are those that podman makes itself and that no
/// runtime acts upon.
const ASKED: &str = "\
  ociVersion=*
  hostname=*
  domainname=*
! root.path={engine}/*
  root.readonly=false
! process.user.uid=0
! process.user.gid=0
  process.user.umask=*
  process.user.additionalGids=<0>
! process.args.0={glue}
! process.args.1=run
! process.args.2=--slot
! process.args.3={slot}
! process.args.4=--kill-uid
! process.args.5=*
  process.args.6=--no-seccomp
! process.cwd=/
  process.terminal=false
! process.noNewPrivileges=true
! process.capabilities.bounding=<CAP_KILL><CAP_SETGID><CAP_SETPCAP><CAP_SETUID>
! process.capabilities.effective=<CAP_KILL><CAP_SETGID><CAP_SETPCAP><CAP_SETUID>
! process.capabilities.permitted=<CAP_KILL><CAP_SETGID><CAP_SETPCAP><CAP_SETUID>
  process.rlimits.type=RLIMIT_*
  process.rlimits.hard=*
  process.rlimits.soft=*
  process.oomScoreAdj=*
  process.apparmorProfile=*
  process.selinuxLabel=*
! mounts./proc=proc proc *
! mounts./dev=tmpfs tmpfs *
! mounts./dev/pts=devpts devpts *
! mounts./dev/mqueue=mqueue mqueue *
! mounts./sys=sysfs sysfs *<ro>*
! mounts./sys/fs/cgroup=cgroup cgroup *
! mounts./dev/shm=bind {engine}/*/shm <*
  mounts./run/.containerenv=bind {run}/*/.containerenv <*
  mounts./etc/hostname=bind {run}/*/hostname <*
! mounts./etc/hosts=bind {pod}/hosts *<nodev>*<nosuid>*<ro>*
  mounts./etc/resolv.conf=bind {run}/*/resolv.conf <*
! mounts.{bin}=bind {pod}/bin *<nodev>*<nosuid>*<ro>*
! mounts.{ctl}=bind {pod}/slot-{slot}/ctl *<nodev>*<nosuid>*
! mounts.{data}=bind {pod}/slot-{slot}/data *<nodev>*<nosuid>*
  mounts.{clients}=bind {pod}/slot-{slot}/clients *<nodev>*<nosuid>*<ro>*
! linux.namespaces.pid=/proc/*/ns/pid
! linux.namespaces.uts=/proc/*/ns/uts
! linux.namespaces.network=own|/proc/*/ns/net
! linux.namespaces.ipc=own
! linux.namespaces.mount=own
  linux.namespaces.cgroup=own
~ linux.resources.devices.allow=false
  linux.resources.devices.access=rwm
  linux.resources.memory.*=*
  linux.resources.cpu.*=*
  linux.resources.pids.limit=*
  linux.resources.unified.*=*
  linux.cgroupsPath=*
  linux.mountLabel=*
  linux.rootfsPropagation=*
! linux.seccomp.defaultAction=SCMP_ACT_ERRNO|SCMP_ACT_KILL|SCMP_ACT_KILL_PROCESS
  linux.seccomp.*=*
! linux.maskedPaths=*</proc/kcore>*</proc/keys>*</sys/firmware>*
! linux.readonlyPaths=*</proc/sys></proc/sysrq-trigger>*
  annotations.io.container.manager=libpod
  annotations.io.kubernetes.cri-o.Created=*
  annotations.io.kubernetes.cri-o.TTY=false
  annotations.io.podman.annotations.apparmor=*
  annotations.io.podman.annotations.autoremove=FALSE
  annotations.io.podman.annotations.autoremove-image=FALSE
  annotations.io.podman.annotations.init=FALSE
  annotations.io.podman.annotations.label=*
  annotations.io.podman.annotations.privileged=FALSE
  annotations.io.podman.annotations.publish-all=FALSE
  annotations.io.podman.annotations.seccomp=*
  annotations.org.opencontainers.image.stopSignal=*";
/// Most annotations, and most characters of one, that are shown of what an image carries.
const SHOWN: (usize, usize) = (32, 128);

/// Compares all of `config` with [`ASKED`], and takes out the annotations that are not in it. Returns the pod and the
/// container that it is for, and the lines that are left with the names of what was taken out; or why no container may
/// be made of it.
pub fn examine(config: &mut Value, place: &Place) -> Result<(PodPlace, Role, Vec<String>), String> {
    let annotations = config.get_mut("annotations").and_then(Value::as_object_mut).ok_or("it has no annotations")?;
    let asked = annotations.remove(CONTAINER_ANNOTATION).unwrap_or_default();
    let named = asked.as_str().and_then(|name| name.split_once('/')).filter(|(pod, _)| is_pod_name(pod));
    let (pod, role) = named
        .and_then(|(pod, role)| Some((place.pod(pod), Role::of_payload(role)?)))
        .ok_or("it is not a container that latebind-host asked for")?;
    let rules = Rules::new(place, &pod, role)?;
    let mut lines = Vec::new();
    annotations.retain(|key, value| {
        let known = rules.allow(&format!("annotations.{key}={}", text(value)));
        if !known && lines.len() < SHOWN.0 {
            lines.push(format!("taken out: {}", key.chars().take(SHOWN.1).collect::<String>()));
        }
        known
    });
    flatten("", config, &mut lines);
    let refused = |what: &str, line: &str| format!("{what}: {}", line.chars().take(4 * SHOWN.1).collect::<String>());
    let given = |line: &&String| !line.starts_with("taken out: ");
    if let Some(line) = lines.iter().filter(given).find(|line| !rules.allow(line) || line.contains("/..")) {
        return Err(refused("the runtime is given what was not asked for", line));
    }
    match rules.0.iter().find(|rule| rule.required && !lines.iter().any(|line| rule.allows(line))) {
        Some(rule) => Err(refused("the runtime is not given what was asked for", &rule.text)),
        None => Ok((pod, role, lines)),
    }
}

/// One line of [`ASKED`].
struct Rule {
    required: bool,
    text: String,
    /// For each alternative the texts between its `*`.
    alternatives: Vec<Vec<String>>,
}

struct Rules(Vec<Rule>);

impl Rules {
    fn new(place: &Place, pod: &PodPlace, role: Role) -> Result<Self, String> {
        let Role::Payload(slot, _) = role else { return Err("it is not a payload container".into()) };
        let path =
            |path: std::path::PathBuf| path.into_os_string().into_string().map_err(|p| format!("{p:?} is not UTF-8"));
        let values = [
            ("{engine}", path(place.root())?),
            ("{run}", path(place.runroot())?),
            ("{pod}", path(pod.top().to_owned())?),
            ("{glue}", layout::GLUE.to_owned()),
            ("{bin}", layout::BIN.to_owned()),
            ("{ctl}", layout::ctl(slot)),
            ("{data}", layout::data(slot)),
            // There is such a directory in slots for pilot-jobs alone.
            ("{clients}", pilot_jobs::SOCKET_DIR.to_owned()),
            ("{slot}", slot.to_string()),
        ];
        let filled =
            |piece: &str| values.iter().fold(piece.to_owned(), |piece, (name, value)| piece.replace(name, value));
        let rule = |line: &str| {
            let text = line.trim_start_matches(['!', '~', ' ']);
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            let pieces = |value: &str| format!("{key}={value}").split('*').map(filled).collect();
            let alternatives = value.split('|').map(pieces).collect();
            let required = line.starts_with('!') || line.starts_with('~') && !rootless::is_inside();
            Rule { required, text: filled(text), alternatives }
        };
        Ok(Self(ASKED.lines().map(rule).collect()))
    }

    fn allow(&self, line: &str) -> bool {
        self.0.iter().any(|rule| rule.allows(line))
    }
}

impl Rule {
    fn allows(&self, line: &str) -> bool {
        self.alternatives.iter().any(|pieces| matches(pieces, line))
    }
}

/// A line for each member of `value`, but for the environment.
fn flatten(name: &str, value: &Value, lines: &mut Vec<String>) {
    let child = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match (name, value) {
        ("process.env", _) | (_, Value::Null) => {}
        ("process.args", Value::Array(list)) => {
            lines.extend(list.iter().enumerate().map(|(n, argument)| format!("{name}.{n}={}", text(argument))));
        }
        ("mounts", Value::Array(list)) => lines.extend(list.iter().map(|mount| {
            let of = |member: &str| text(&mount[member]);
            format!("{}={} {} {}", child(&of("destination")), of("type"), of("source"), texts(&mount["options"]))
        })),
        ("linux.namespaces", Value::Array(list)) => lines.extend(list.iter().map(|namespace| {
            let path = namespace["path"].as_str().filter(|path| !path.is_empty()).unwrap_or("own");
            format!("{}={path}", child(&text(&namespace["type"])))
        })),
        (_, Value::Array(list)) if list.iter().any(|entry| entry.is_object() || entry.is_array()) => {
            list.iter().for_each(|entry| flatten(name, entry, lines));
        }
        (_, Value::Array(list)) if list.is_empty() => {}
        (_, Value::Array(_)) => lines.push(format!("{name}={}", texts(value))),
        (_, Value::Object(members)) => members.iter().for_each(|(key, value)| flatten(&child(key), value, lines)),
        (_, value) => lines.push(format!("{name}={}", text(value))),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn texts(list: &Value) -> String {
    let mut all: Vec<String> =
        list.as_array().into_iter().flatten().map(|value| format!("<{}>", text(value))).collect();
    all.sort();
    all.concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use serde_json::{Map, json};
    use std::path::Path;

    const POD: &str = "/state/pods/p";

    fn place() -> Place {
        Place::of_state(Path::new("/state"))
    }

    /// As podman 4.3 writes it for the second container of slot 0 of a pod.
    fn config() -> Value {
        let capabilities = ["CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"];
        let bind = |target: &str, source: String, options: &[&str]| json!({"destination": target, "type": "bind", "source": source, "options": options});
        let systems = [("/proc", "proc"), ("/dev", "tmpfs"), ("/dev/pts", "devpts"), ("/dev/mqueue", "mqueue")];
        let mut mounts: Vec<Value> = systems
            .into_iter()
            .chain([("/sys", "sysfs"), ("/sys/fs/cgroup", "cgroup")])
            .map(|(at, of)| json!({"destination": at, "type": of, "source": of, "options": ["nosuid", "ro"]}))
            .collect();
        let volume = ["rprivate", "nosuid", "nodev", "rw", "rbind"];
        mounts.extend([
            bind("/dev/shm", "/state/containers/overlay-containers/a/userdata/shm".into(), &["bind"]),
            bind("/etc/hostname", "/state/run/containers/overlay-containers/a/userdata/hostname".into(), &["bind"]),
            bind("/etc/hosts", format!("{POD}/hosts"), &["rprivate", "nosuid", "nodev", "ro", "rbind"]),
            bind("/shared/bin", format!("{POD}/bin"), &["rprivate", "nosuid", "nodev", "ro", "rbind"]),
            bind("/shared/slot/0/ctl", format!("{POD}/slot-0/ctl"), &volume),
            bind("/shared/slot/0/data", format!("{POD}/slot-0/data"), &volume),
        ]);
        json!({
            "ociVersion": "1.0.2-dev",
            "process": {
                "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [0]},
                "args": ["/shared/bin/glue", "run", "--slot", "0", "--kill-uid", "20001", "--no-seccomp"],
                "env": ["PATH=/bin", "A=b"],
                "cwd": "/",
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
                "rlimits": [],
                "noNewPrivileges": true
            },
            "root": {"path": "/state/containers/overlay/x/merged"},
            "mounts": mounts,
            "hooks": {},
            "annotations": {
                "io.container.manager": "libpod",
                "io.podman.annotations.privileged": "FALSE",
                "org.opencontainers.image.stopSignal": "15",
                "latebind.container": "p/slot-0-2"
            },
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}], "pids": {"limit": 64}},
                "cgroupsPath": "/x",
                "namespaces": [
                    {"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "network", "path": "/proc/1/ns/net"},
                    {"type": "uts", "path": "/proc/1/ns/uts"}, {"type": "ipc"}, {"type": "mount"}
                ],
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"]
            }
        })
    }

    fn examined(config: &mut Value) -> Result<Vec<String>, String> {
        examine(config, &place()).map(|(pod, role, lines)| {
            assert_eq!((pod.top(), role), (Path::new(POD), Role::Payload(0, 2)));
            lines
        })
    }

    #[test]
    fn what_was_asked_for_passes_and_is_said() {
        let mut config = config();
        let lines = examined(&mut config).unwrap();
        for line in ["linux.namespaces.ipc=own", "process.cwd=/", "linux.seccomp.defaultAction=SCMP_ACT_ERRNO"] {
            assert!(lines.iter().any(|l| l == line), "{line}: {lines:#?}");
        }
        assert!(!lines.iter().any(|l| l.contains("A=b")), "the environment is the job's business: {lines:#?}");
        assert!(config["annotations"].get(CONTAINER_ANNOTATION).is_none(), "ours is for the guard alone");
    }

    #[test]
    fn no_annotation_but_podmans_own_reaches_the_runtime() {
        let mut config = config();
        let own = config["annotations"].as_object().unwrap().len() - 1;
        let keys = ["run.oci.seccomp_bpf_data", "org.systemd.property.Description", "never.heard.of", "maintainer"];
        for key in keys {
            config["annotations"][key] = json!("x");
        }
        let lines = examined(&mut config).unwrap();
        assert!(keys.iter().all(|key| lines.contains(&format!("taken out: {key}"))), "{lines:#?}");
        assert_eq!(config["annotations"].as_object().unwrap().len(), own, "{config:#}");
        let many: Map<String, Value> = (0..1000).map(|n| (format!("a{n}{}", "x".repeat(1000)), json!("x"))).collect();
        config["annotations"] = json!({"latebind.container": "p/slot-0-2"});
        config["annotations"].as_object_mut().unwrap().extend(many);
        let lines = examined(&mut config).unwrap();
        let taken: Vec<&String> = lines.iter().filter(|line| line.starts_with("taken out: ")).collect();
        assert!(taken.len() == SHOWN.0 && taken.iter().all(|line| line.len() <= SHOWN.1 + 16), "{taken:#?}");
    }

    /// Changes that must not pass: where, and to what.
    #[test]
    fn what_nobody_asked_for_is_refused() {
        let changes: Vec<(&str, Value, &str)> = vec![
            ("/hooks", json!({"prestart": [{"path": "/usr/bin/x"}]}), "hooks"),
            ("/vm", json!({"kernel": {"path": "/x"}}), "vm.kernel"),
            ("/process/user/uid", json!(1), "user.uid"),
            ("/process/user/additionalGids", json!([0, 27]), "additionalGids"),
            ("/process/args/0", json!("/bin/sh"), "process.args.0"),
            ("/process/cwd", json!("/tmp"), "cwd"),
            ("/process/noNewPrivileges", json!(false), "noNewPrivileges"),
            ("/process/capabilities/bounding", json!(["CAP_KILL", "CAP_SYS_ADMIN"]), "bounding"),
            ("/process/capabilities/effective", json!(["CAP_KILL"]), "effective"),
            ("/process/capabilities/ambient", json!(["CAP_KILL"]), "ambient"),
            ("/annotations/latebind.container", json!("p/slot-0-2/../../x"), "asked for"),
            ("/annotations/latebind.container", json!("p/pilot"), "asked for"),
            ("/annotations/latebind.container", json!("../slot-0-2"), "asked for"),
            ("/annotations/latebind.container", json!("q/slot-0-2"), "/etc/hosts"),
            ("/annotations/latebind.container", json!("p/slot-1-2"), "/shared/slot/0/ctl"),
            ("/process/args/1", json!("install"), "process.args.1"),
            ("/process/args", json!(["/shared/bin/glue", "run"]), "process.args.2"),
            ("/process/args/6", json!("--image-cmd"), "process.args.6"),
            ("/root/path", json!("/"), "root.path"),
            ("/linux/devices", json!([{"path": "/dev/kmsg"}]), "devices"),
            ("/linux/sysctl", json!({"kernel.msgmax": "1"}), "sysctl"),
            ("/linux/personality", json!({"domain": "LINUX32"}), "personality"),
            ("/linux/seccomp/defaultAction", json!("SCMP_ACT_ALLOW"), "seccomp"),
            ("/linux/seccomp", json!({}), "seccomp"),
            ("/linux/resources/devices/0/allow", json!(true), "devices"),
            ("/linux/namespaces/3/path", json!("/proc/1/ns/ipc"), "ipc"),
            ("/linux/namespaces/0/type", json!("user"), "user"),
            ("/linux/maskedPaths", json!([]), "/proc/kcore"),
            ("/linux/readonlyPaths/0", json!("/x"), "/proc/sys"),
            ("/mounts/6/source", json!("/dev/shm"), "/dev/shm"),
            ("/mounts/6/source", json!("/state/containers/../../dev/shm"), "/dev/shm"),
            ("/mounts/7/destination", json!("/etc/shadow"), "/etc/shadow"),
            ("/mounts/8/source", json!("/etc/shadow"), "/etc/hosts"),
            ("/mounts/9/options", json!(["nosuid", "nodev", "rw"]), "/shared/bin"),
            ("/mounts/9/source", json!("/state/pods/p/slot-0/data"), "/shared/bin"),
            ("/mounts/10/source", json!("/state/pods/p/slot-1/ctl"), "/shared/slot/0/ctl"),
            ("/mounts/10/source", json!("/state/pods/other/slot-0/ctl"), "/shared/slot/0/ctl"),
            ("/mounts/10/source", json!("/state/pods/p/slot-0/../slot-0/ctl"), "/shared/slot/0/ctl"),
            ("/mounts/11/destination", json!("/shared/slot/0/data/work"), "/shared/slot/0/data/work"),
            ("/mounts/11/destination", json!("/shared/slot/0/ctl"), "/shared/slot/0/ctl"),
            ("/mounts/11/options", json!(["rw"]), "/shared/slot/0/data"),
            ("/mounts/0/type", json!("bind"), "/proc"),
            ("/mounts", json!([]), "/proc"),
        ];
        for (pointer, value, said) in changes {
            let mut config = config();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let parent = config.pointer_mut(parent).unwrap();
            match name.parse::<usize>() {
                Ok(n) if parent.is_array() => parent[n] = value.clone(),
                _ => parent[name] = value.clone(),
            }
            let why = examine(&mut config, &place()).map(|(_, _, lines)| lines).unwrap_err();
            assert!(why.contains(said), "{pointer} {value}: {why}");
        }
    }
}
