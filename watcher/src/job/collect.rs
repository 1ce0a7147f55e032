//! Fetching a job's results: through descriptors that no link can redirect, after all of its processes have ended.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;

use latebind_contract::layout;
use latebind_linux::volume::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::limits::{Crossed, Which};
use super::{Report, Request, now, rfc3339};
use crate::bind::{Class, Reason};
use crate::layout::IO;
use crate::slot::Slot;
use crate::store::put_file_of_several;
use crate::tree::copy::{Budget, Copier, DEPTH_MAX, Problem, Rules};
use crate::tree::{self, Deadline};

/// How what a payload has made is opened.
const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK);

/// Most bytes that are fetched of one job, standard output and error included, and holes.
const BYTES_MAX: u64 = 16 << 30;
/// Most files and directories.
const ENTRIES_MAX: u64 = 100_000;

/// Puts record, standard output and error, and the named outputs into the results directory. What cannot be fetched is
/// named in the report, and is no reason to lose the rest.
pub fn collect(
    slot: &Slot,
    request: &Request,
    record: Option<&str>,
    report: &mut Report,
    deadline: &Deadline<'_>,
) -> io::Result<()> {
    let Some(results) = &request.results else { return Ok(()) };
    DirBuilder::new().recursive(true).mode(0o755).create(results)?;
    if let Some(record) = record {
        put_file_of_several(&results.join(layout::RECORD), record.as_bytes(), 0o644)?; // report.json follows
    }
    let most = report.limits.output.map_or(BYTES_MAX, |limit| limit.0.min(BYTES_MAX));
    report.outputs.clear();
    report.missing_outputs.clear();
    report.missing_left_out = 0;
    let noted = RefCell::new(&mut *report);
    let mut failed = |path: &str, e: io::Error| {
        noted.borrow_mut().add_missing(path, &e);
        Ok(())
    };
    let rules = Rules { only_of: Some(slot.uid), reader: None, owner: None, programs: false };
    let budget = Budget::new(most, ENTRIES_MAX);
    let mut copier = Copier { rules, budget, deadline, failed: &mut failed, at_target: false };
    let fetched = fetch_all(slot, request, &mut copier, &noted);
    let budget = copier.budget;
    if let (Some(limit), true) = (report.limits.output, budget.refused > 0)
        && report.limit.is_none()
        && report.class == Class::Final
    {
        let value = (most - budget.bytes).saturating_add(budget.refused) as f64;
        let crossed = Crossed { which: Which::Output, limit: limit.0 as f64, value, at: rfc3339(now()) };
        (report.reason, report.message) = (Reason::LimitExceeded, format!("not all was fetched: {crossed}"));
        report.limit = Some(crossed);
    }
    fetched
}

fn fetch_all(slot: &Slot, request: &Request, copier: &mut Copier<'_>, report: &RefCell<&mut Report>) -> io::Result<()> {
    let Some(results) = &request.results else { return Ok(()) };
    let results = tree::open_dir(results)?;
    let note = |name: &str, result: Result<(), Problem>| match result {
        Ok(()) => true,
        Err(problem) => {
            report.borrow_mut().add_missing(name, &problem.error());
            false
        }
    };
    if !request.relay {
        for (name, file) in [("stdout", c"stdout"), ("stderr", c"stderr")] {
            remove_file(results.as_fd(), file)?;
            let from = slot.data.open_beneath(&format!("{IO}/{name}"), READ, 0).map_err(Problem::Skip);
            note(name, from.and_then(|from| copier.entry(from, results.as_fd(), file, name)));
        }
    }
    // What an earlier, interrupted try has fetched is fetched again.
    let outputs = make_dir(results.as_fd(), c"outputs")?;
    tree::remove_content(outputs.as_fd(), copier.deadline)?;
    if request.outputs.is_empty() {
        return Ok(unlinkat(&results, c"outputs", UnlinkatFlags::RemoveDir)?);
    }
    let work = Dir::open(&layout::work(slot.number))?;
    // Each once, and not again what comes with the directory that it is in, which is therefore first.
    let named: BTreeSet<&str> = request.outputs.iter().map(String::as_str).collect();
    let mut fetched = BTreeSet::new();
    for output in named {
        let parents = output.match_indices('/').filter_map(|(end, _)| output.get(..end));
        if parents.into_iter().any(|parent| fetched.contains(parent)) {
            if fstatat(&outputs, output, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
                report.borrow_mut().outputs.push(output.to_owned());
            }
        } else if note(output, fetch(&work, output, outputs.as_fd(), copier)) {
            fetched.insert(output);
            report.borrow_mut().outputs.push(output.to_owned());
        }
    }
    Ok(())
}

/// Fetches a file or a directory at `path` beneath `work`.
fn fetch(work: &Dir, path: &str, outputs: BorrowedFd<'_>, copier: &mut Copier<'_>) -> Result<(), Problem> {
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    if parents.split('/').count() > DEPTH_MAX {
        return Err(io::Error::other(format!("nested deeper than {DEPTH_MAX}")).into());
    }
    // Non-blocking, so that a FIFO is an error and not a wait.
    let from = work.open_beneath(path, READ, 0)?;
    let mut to = outputs.try_clone_to_owned()?;
    for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
        to = make_dir(to.as_fd(), &c_string(parent)?)?;
    }
    copier.entry(from, to.as_fd(), &c_string(name)?, path)
}

fn c_string(name: &str) -> io::Result<CString> {
    Ok(CString::new(name)?)
}

fn make_dir(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    fchmod(&dir, Mode::from_bits_truncate(0o755))?;
    Ok(dir)
}

fn remove_file(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
