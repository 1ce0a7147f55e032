//! Directories and files that a job wants to see at a path, as with apptainer's `--bind`: in a container that has been
//! made already nothing can be mounted, so each is there, or becomes a symbolic link, or is refused.

use std::path::Path;

use latebind_contract::layout;
use latebind_contract::startup::Object;
use serde::{Deserialize, Serialize};

use crate::text::printable;

/// What every payload container has of its own, or does without: files, and directories with all that is in them.
const OWN: [&str; 7] =
    ["/etc/hosts", "/etc/localtime", "/etc/resolv.conf", "/etc/hostname", "/tmp", "/var/tmp", "/dev/shm"];
/// The same, and whatever is beneath.
const OWN_TREES: [&str; 3] = ["/dev", "/proc", "/sys"];

/// A wish for a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// What is wanted: a path of the pilot container.
    pub source: String,
    /// Where the job looks for it.
    pub target: String,
    /// Whether it must not be writable there.
    #[serde(default)]
    pub read_only: bool,
}

/// A path at which payload containers have a mount of the operator's: `--payload-has PATH[:rw]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadHas {
    path: String,
    writable: bool,
}

impl std::str::FromStr for PayloadHas {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, writable) = match text.strip_suffix(":rw") {
            Some(path) => (path, true),
            None => (text.strip_suffix(":ro").unwrap_or(text), false),
        };
        if !is_plain(path) || path.contains([':', ',']) || layout::is_shared(path) {
            return Err(format!("{text:?} is not an absolute path, alone or with :rw, outside of /shared"));
        }
        Ok(Self { path: path.to_owned(), writable })
    }
}

/// Whether `path` is absolute, below `/`, and without `.` and `..`.
fn is_plain(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(latebind_contract::layout::is_beneath)
}

/// Turns the binds of a job into links, or says why one cannot be had. `data` is the slot's own directory, in which the
/// job's files are.
pub fn resolve(binds: Vec<Bind>, links: &mut Object<String>, data: &Path, has: &[PayloadHas]) -> Result<(), String> {
    for bind in binds {
        if !needs_link(&bind, data, has)? {
            continue;
        }
        match links.0.iter().find(|(path, _)| *path == bind.target) {
            Some((_, source)) if *source == bind.source => {}
            Some(_) => return Err(format!("two things cannot be bound to {}", printable(&bind.target))),
            None => links.0.push((bind.target, bind.source)),
        }
    }
    Ok(())
}

/// Whether a link is needed for what the job wants.
fn needs_link(bind: &Bind, data: &Path, has: &[PayloadHas]) -> Result<bool, String> {
    let (source, target) = (bind.source.as_str(), bind.target.as_str());
    let refused = |why: &str| Err(format!("{} cannot be bound into the container: {why}", printable(source)));
    let elsewhere = source != target;
    // What is `top`, or beneath it.
    let is_in = |top: &Path| Path::new(source).starts_with(top);
    if !is_plain(source) || !is_plain(target) {
        return refused("source and target have to be absolute paths without . and ..");
    }
    if is_in(data) {
        return match bind.read_only {
            true => refused("the job's own files cannot be made read-only there; leave out ro"),
            false => Ok(elsewhere),
        };
    }
    if !elsewhere && (OWN.contains(&source) || OWN_TREES.iter().any(|top| is_in(top.as_ref()))) {
        return Ok(false);
    }
    match has.iter().filter(|has| is_in(has.path.as_ref())).max_by_key(|has| has.path.len()) {
        Some(has) if bind.read_only && has.writable => refused("it can be written there, and ro was asked for"),
        Some(_) => Ok(elsewhere),
        None => refused(
            "only what is in the job's sandbox can be, and what the payload container has. Where the pod's operator \
             mounts it there, the watcher is given --payload-has with its path",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    const DATA: &str = "/shared/slot/0/data";

    fn links(binds: &[(&str, &str, bool)], has: &[&str]) -> Result<Vec<(String, String)>, String> {
        let bind = |(source, target, read_only): &(&str, &str, bool)| Bind {
            source: (*source).to_owned(),
            target: (*target).to_owned(),
            read_only: *read_only,
        };
        let has: Vec<PayloadHas> = has.iter().map(|text| text.parse().unwrap()).collect();
        let mut links = Object::default();
        resolve(binds.iter().map(bind).collect(), &mut links, Path::new(DATA), &has)?;
        Ok(links.0)
    }

    fn link(target: &str, source: &str) -> (String, String) {
        (target.to_owned(), source.to_owned())
    }

    #[test]
    fn what_every_container_has_needs_nothing() {
        for path in ["/etc/hosts", "/etc/localtime", "/etc/resolv.conf", "/tmp", "/dev", "/dev/fuse", "/sys/fs/cgroup"]
        {
            assert_eq!(links(&[(path, path, true), (path, path, false)], &[]), Ok(vec![]), "{path}");
        }
        for path in ["/etc/passwd", "/tmp/x", "/etc/hosts/x", "/devices", "/home/me"] {
            assert!(links(&[(path, path, false)], &[]).is_err_and(|e| e.contains("--payload-has")), "{path}");
        }
        assert!(links(&[("/etc/hosts", "/elsewhere", false)], &[]).is_err());
    }

    #[test]
    fn what_is_in_the_slot_is_linked() {
        let sandbox = format!("{DATA}/execute/dir_1");
        let here = sandbox.as_str();
        let twice = [(here, "/srv", false), (here, here, false), (here, "/srv", false)];
        assert_eq!(links(&twice, &[]), Ok(vec![link("/srv", here)]));
        assert!(links(&[(here, "/srv", true)], &[]).is_err_and(|e| e.contains("read-only")));
        assert!(links(&[(here, "/srv", false), (DATA, "/srv", false)], &[]).is_err_and(|e| e.contains("two things")));
        let outside = format!("{DATA}/../ctl");
        for path in [outside.as_str(), "/shared/slot/0/data2", "/shared/slot/1/data", "/shared/slot/0/ctl"] {
            assert!(links(&[(path, "/x", false)], &[]).is_err(), "{path}");
        }
    }

    #[test]
    fn what_the_operator_says_is_there_is_there() {
        let has = ["/cvmfs", "/ceph:rw", "/mnt/site"];
        let both = [("/cvmfs", "/cvmfs", true), ("/cvmfs/a/b", "/cvmfs/a/b", false), ("/ceph", "/ceph", false)];
        assert_eq!(links(&both, &has), Ok(vec![]));
        let moved = [("/mnt/site/cvmfs", "/site", true)];
        assert_eq!(links(&moved, &has), Ok(vec![link("/site", "/mnt/site/cvmfs")]));
        assert!(links(&[("/ceph", "/ceph", true)], &has).is_err_and(|e| e.contains("ro was asked for")));
        assert!(links(&[("/cvmfs2", "/cvmfs2", false)], &has).is_err());
        for bad in ["", "/", "cvmfs", "/a/../b", "/shared", "/shared/bin:rw", "/a:b", "/a,b", "/a/"] {
            assert!(bad.parse::<PayloadHas>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_that_are_not_plain_are_refused() {
        for (source, target) in [("/cvmfs/../etc", "/x"), ("/cvmfs", "x"), ("/cvmfs", "/"), ("cvmfs", "/x")] {
            assert!(links(&[(source, target, false)], &["/cvmfs"]).is_err(), "{source} {target}");
        }
    }
}
