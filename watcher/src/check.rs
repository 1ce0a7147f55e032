//! `watcher check`: whether this pod is one in which jobs can be run, one finding for each thing, with the fix.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use latebind_contract::layout;

use crate::bind::{Binder, proof};
use crate::finding::Finding;
use crate::slot::Slot;

/// What the pilot container needs (capabilities(7)), as bits: more than glue has, so that glue's root cannot read the
/// pilot.
const CAPABILITIES: [(u32, &str); 7] =
    [(0, "CHOWN"), (1, "DAC_OVERRIDE"), (3, "FOWNER"), (5, "KILL"), (6, "SETGID"), (7, "SETUID"), (8, "SETPCAP")];

/// Looks at everything: this container, each slot, the engine.
pub fn all(binder: &dyn Binder, slots: &[u32], private: &Path) -> Vec<Finding> {
    let mut lines = vec![capabilities(), users(), processes(), private_volume(private), program()];
    lines.extend(slots.iter().flat_map(|slot| of_slot(*slot)));
    lines.extend(binder.check(slots));
    lines
}

fn capabilities() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap_or_default();
    let bits = u64::from_str_radix(bits.trim(), 16).unwrap_or(0);
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| bits >> bit & 1 == 0).map(|(_, name)| *name).collect();
    let what = "capabilities";
    if missing.is_empty() {
        return Finding::good(what, "all that the pilot needs, more than glue has");
    }
    let fix = "add them to the pilot container's securityContext.capabilities, and run it as user 0";
    Finding::fail(what, &format!("missing: {}", missing.join(" ")), fix)
}

/// Whose users these are: root here need not be root of the node.
fn users() -> Finding {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    Finding::good("users", &namespace_of(&map))
}

/// What user_namespaces(7) says of a `uid_map`.
fn namespace_of(map: &str) -> String {
    let mut lines = map.lines().map(|line| line.split_whitespace().filter_map(|n| n.parse::<u32>().ok()));
    let first: Vec<u32> = lines.next().into_iter().flatten().collect();
    match *first {
        [0, 0, u32::MAX] | [] => "those of the machine: root here is root there".to_owned(),
        [_, outside, _] => {
            format!("of a user namespace (hostUsers: false): root here is user {outside} of the machine")
        }
        _ => "of a user namespace".to_owned(),
    }
}

/// Process 1 of a shared namespace is the pod's, of no container's own.
fn processes() -> Finding {
    let cgroup = |who: &str| fs::read_to_string(format!("/proc/{who}/cgroup")).unwrap_or_default();
    let fix = "set shareProcessNamespace: true";
    match cgroup("1") == cgroup("self") {
        true => Finding::fail(
            "PID namespace",
            "process 1 is this container's own: the payload's processes cannot be seen",
            fix,
        ),
        false => Finding::good("PID namespace", "shared"),
    }
}

fn private_volume(private: &Path) -> Finding {
    let found = fs::create_dir_all(private).and_then(|()| fs::metadata(private)).and_then(|metadata| {
        if metadata.uid() != 0 {
            return Err(std::io::Error::other(format!("belongs to user {}", metadata.uid())));
        }
        let probe = private.join(format!(".check-{}", std::process::id()));
        fs::write(&probe, b"x").and_then(|()| fs::remove_file(&probe))?;
        Ok(private.display().to_string())
    });
    let found = found.map_err(|e| format!("{}: {e}", private.display()));
    Finding::of("private volume", found, "mount a volume of root's there, into the pilot container alone")
}

fn program() -> Finding {
    let found = fs::metadata(layout::GLUE).map_err(|e| format!("{}: {e}", layout::GLUE)).and_then(|metadata| {
        match metadata.mode() & 0o7777 {
            layout::GLUE_MODE if metadata.uid() == 0 => Ok(layout::GLUE.to_owned()),
            mode => Err(format!("{} has mode {mode:o} and owner {}", layout::GLUE, metadata.uid())),
        }
    });
    Finding::of(
        "glue",
        found,
        "run `glue install` in an init container, with the volume bin mounted at /shared/bin in all containers",
    )
}

fn of_slot(number: u32) -> Vec<Finding> {
    let fix = "mount ctl-N at /shared/slot/N/ctl (medium: Memory) and data-N at /shared/slot/N/data, and give `glue install` --slot N";
    let what = |thing: &str| format!("slot {number}: {thing}");
    let slot = match Slot::open(number) {
        Ok(slot) => slot,
        Err(e) => return vec![Finding::fail(&what("volumes"), &e.to_string(), fix)],
    };
    let mut lines = vec![Finding::good(&what("volumes"), &format!("payload UID {}, GID {}", slot.uid, slot.gid))];
    let in_memory = nix::sys::statfs::fstatfs(slot.ctl.as_fd())
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
    if !in_memory {
        lines.push(Finding::warning(
            &what("ctl"),
            "is not a memory file system: keys of jobs may reach a disk",
            "give the volume medium: Memory",
        ));
    }
    let status = slot.status().ok().flatten();
    let glue = status.filter(|s| Path::new(&format!("/proc/{}", s.pid)).exists());
    lines.push(
        match glue.map(|s| (s.pid, proof::prove_mounts(s.pid, number).and_then(|()| proof::prove_program(s.pid)))) {
            Some((pid, Ok(()))) => {
                Finding::good(&what("mounts"), &format!("those of glue (process {pid}) are the pod's volumes"))
            }
            Some((_, Err(why))) => Finding::fail(&what("mounts"), &why, fix),
            None => Finding::warning(
                &what("mounts"),
                "no glue runs here now",
                "the line about its container says how it ended; the next bind starts it again",
            ),
        },
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::namespace_of;

    #[test]
    fn a_user_namespace_is_told_from_the_machines_users() {
        assert!(namespace_of("         0          0 4294967295\n").contains("root here is root there"));
        assert!(namespace_of("0 165536 65536\n").contains("user 165536 of the machine"));
        assert!(namespace_of("0 1000 1\n1 100000 65536\n").contains("user 1000 of the machine"));
    }
}
