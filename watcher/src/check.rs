//! `watcher check`: whether this pod is one in which jobs can be run, one line for each thing, with the mend.

use std::fmt::{self, Display};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use latebind_contract::layout;

use crate::bind::{Binder, proof};
use crate::job::now;
use crate::slot::Slot;
use crate::text::one_line;

/// Clocks that differ by more than this many seconds make tokens and records look old or not yet made.
const CLOCK_MAY_DIFFER: f64 = 5.0;

/// What the pilot container needs (capabilities(7)), as bits: more than glue has, so that glue's root cannot read the
/// pilot.
const CAPABILITIES: [(u32, &str); 7] =
    [(0, "CHOWN"), (1, "DAC_OVERRIDE"), (3, "FOWNER"), (5, "KILL"), (6, "SETGID"), (7, "SETUID"), (8, "SETPCAP")];

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it has to be.
    Good,
    /// Jobs can be run, but not all as well.
    Warning,
    /// No job is to be claimed.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How it is.
    pub grade: Grade,
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub finding: String,
    /// What to do about it.
    pub mend: String,
}

impl Line {
    /// Good with this finding, or bad with this error and mend.
    pub fn of<E: Display>(what: &str, finding: Result<String, E>, mend: &str) -> Self {
        match finding {
            Ok(finding) => Self::good(what, &finding),
            Err(e) => Self::bad(what, &e.to_string(), mend),
        }
    }

    /// As it has to be.
    pub fn good(what: &str, finding: &str) -> Self {
        Self { grade: Grade::Good, what: what.into(), finding: finding.into(), mend: String::new() }
    }

    /// Not as good as it could be.
    pub fn warning(what: &str, finding: &str, mend: &str) -> Self {
        Self { grade: Grade::Warning, what: what.into(), finding: finding.into(), mend: mend.into() }
    }

    /// Not usable.
    pub fn bad(what: &str, finding: &str, mend: &str) -> Self {
        Self { grade: Grade::Bad, what: what.into(), finding: finding.into(), mend: mend.into() }
    }
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Good => "ok",
            Grade::Warning => "warn",
            Grade::Bad => "BAD",
        };
        write!(f, "{grade:<4}  {}: {}", one_line(&self.what), one_line(&self.finding))?;
        if self.mend.is_empty() { Ok(()) } else { write!(f, "; to mend it, {}", one_line(&self.mend)) }
    }
}

/// Looks at everything: this container, each slot, the engine.
pub fn all(binder: &dyn Binder, slots: &[u32], private: &Path) -> Vec<Line> {
    let mut lines = vec![capabilities(), processes(), private_volume(private), program()];
    lines.extend(slots.iter().flat_map(|slot| of_slot(*slot)));
    lines.extend(binder.check(slots));
    lines
}

fn capabilities() -> Line {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap_or_default();
    let bits = u64::from_str_radix(bits.trim(), 16).unwrap_or(0);
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| bits >> bit & 1 == 0).map(|(_, name)| *name).collect();
    let what = "capabilities";
    if missing.is_empty() {
        return Line::good(what, "all that the pilot needs, more than glue has");
    }
    let mend = "add them to the pilot container's securityContext.capabilities, and run it as user 0";
    Line::bad(what, &format!("missing: {}", missing.join(" ")), mend)
}

/// Process 1 of a shared namespace is the pod's, of no container's own.
fn processes() -> Line {
    let cgroup = |who: &str| fs::read_to_string(format!("/proc/{who}/cgroup")).unwrap_or_default();
    let mend = "set shareProcessNamespace: true";
    match cgroup("1") == cgroup("self") {
        true => Line::bad(
            "PID namespace",
            "process 1 is this container's own: the payload's processes cannot be seen",
            mend,
        ),
        false => Line::good("PID namespace", "shared"),
    }
}

fn private_volume(private: &Path) -> Line {
    let found = fs::create_dir_all(private).and_then(|()| fs::metadata(private)).and_then(|metadata| {
        if metadata.uid() != 0 {
            return Err(std::io::Error::other(format!("belongs to user {}", metadata.uid())));
        }
        let probe = private.join(format!(".check-{}", std::process::id()));
        fs::write(&probe, b"x").and_then(|()| fs::remove_file(&probe))?;
        Ok(private.display().to_string())
    });
    let found = found.map_err(|e| format!("{}: {e}", private.display()));
    Line::of("private volume", found, "mount a volume of root's there, into the pilot container alone")
}

fn program() -> Line {
    let found = fs::metadata(layout::GLUE).map_err(|e| format!("{}: {e}", layout::GLUE)).and_then(|metadata| {
        match metadata.mode() & 0o7777 {
            layout::GLUE_MODE if metadata.uid() == 0 => Ok(layout::GLUE.to_owned()),
            mode => Err(format!("{} has mode {mode:o} and owner {}", layout::GLUE, metadata.uid())),
        }
    });
    Line::of(
        "glue",
        found,
        "run `glue install` in an init container, with the volume bin mounted at /shared/bin in all containers",
    )
}

fn of_slot(number: u32) -> Vec<Line> {
    let mend = "mount ctl-N at /shared/slot/N/ctl (medium: Memory) and data-N at /shared/slot/N/data, and give `glue install` --slot N";
    let what = |thing: &str| format!("slot {number}: {thing}");
    let slot = match Slot::open(number) {
        Ok(slot) => slot,
        Err(e) => return vec![Line::bad(&what("volumes"), &e.to_string(), mend)],
    };
    let mut lines = vec![Line::good(&what("volumes"), &format!("payload UID {}, GID {}", slot.uid, slot.gid))];
    let in_memory = nix::sys::statfs::fstatfs(slot.ctl.as_fd())
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
    if !in_memory {
        lines.push(Line::warning(
            &what("ctl"),
            "is no memory file system: keys of jobs may reach a disk",
            "give the volume medium: Memory",
        ));
    }
    let status = slot.status().ok().flatten();
    let glue = status.filter(|s| Path::new(&format!("/proc/{}", s.pid)).exists());
    lines.push(
        match glue.map(|s| (s.pid, proof::prove_mounts(s.pid, number).and_then(|()| proof::prove_program(s.pid)))) {
            Some((pid, Ok(()))) => {
                Line::good(&what("mounts"), &format!("those of glue (process {pid}) are the pod's volumes"))
            }
            Some((_, Err(why))) => Line::bad(&what("mounts"), &why, mend),
            None => Line::warning(
                &what("mounts"),
                "no glue runs here now",
                "see the payload container's log; the next bind starts it again",
            ),
        },
    );
    lines
}

/// Our clock against a date as HTTP has it.
pub fn clock(date: &str) -> Line {
    let mend = "have the node's clock set (NTP)";
    let Some(theirs) = http_date(date) else {
        return Line::warning("clock", "the API server says no time", mend);
    };
    let differ = now() - theirs;
    if differ.abs() > CLOCK_MAY_DIFFER {
        let finding =
            format!("{:.0} s {} the API server's", differ.abs(), if differ > 0.0 { "ahead of" } else { "behind" });
        return Line::warning("clock", &finding, mend);
    }
    Line::good("clock", "as the API server's")
}

/// Seconds since the epoch of `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<f64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    (words.next()? == "GMT").then_some(())?;
    crate::job::seconds_of(&format!("{year}-{month:02}-{day}T{time}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777.0));
        for bad in ["", "Sun, 06 Now 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 CET", "x, y"] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
        assert_eq!(clock("Sun, 06 Nov 1994 08:49:37 GMT").grade, Grade::Warning);
    }

    #[test]
    fn lines_stay_lines() {
        let line = Line::of::<&str>("API", Err("no\nway\x1b[2J"), "do it");
        assert_eq!(line.to_string(), "BAD   API: no way?[2J; to mend it, do it");
        assert_eq!(Line::good("a", "b").to_string(), "ok    a: b");
    }
}
