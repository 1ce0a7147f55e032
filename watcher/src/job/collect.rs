//! Fetching a job's results: through descriptors that no link can redirect, after all of its processes have ended.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use latebind_contract::layout;
use latebind_linux::volume::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, syncfs, unlinkat};

use super::bounds::CopyBounds;
use super::limits::{Crossed, Limits, Which};
use super::matches::{Matches, Pattern};
use super::{Report, Request, now, rfc3339};
use crate::bind::{Class, Reason};
use crate::layout::IO;
use crate::slot::Slot;
use crate::store::put_file_of_several;
use crate::text::shown;
use crate::tree::copy::{Budget, Copier, DEPTH_MAX, Known, Problem, Rules, plain};
use crate::tree::{self, Deadline, pack};

/// How what a payload has made is opened.
const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK);

/// Most characters that are shown of a path.
const SHOWN_MAX: usize = 1024;
/// How long removing what was fetched in part may take.
const REMOVE_WITHIN: Duration = Duration::from_secs(60);

/// Most bytes of a job that are kept and fetched, standard output and error included.
pub fn most(limits: &Limits, bounds: &CopyBounds) -> u64 {
    limits.output.map_or(bounds.output_bytes, |limit| limit.0.min(bounds.output_bytes))
}

/// Puts record, standard output and error, and the named outputs into the results directory. What cannot be fetched is
/// named in the report, and is no reason to lose the rest. `put_out`: the bytes of standard output and error, of which
/// not all may have been kept.
pub fn collect(
    slot: &Slot,
    request: &Request,
    record: Option<&str>,
    report: &mut Report,
    put_out: u64,
    bounds: &CopyBounds,
    deadline: &Deadline<'_>,
) -> io::Result<()> {
    let Some(results) = &request.results else { return Ok(()) };
    DirBuilder::new().recursive(true).mode(0o755).create(results)?;
    if request.outputs_archive.is_some() {
        pack::remove_archives(results)?;
    }
    if let Some(record) = record {
        put_file_of_several(&results.join(layout::RECORD), record.as_bytes(), 0o644)?; // report.json follows
    }
    let most = most(&report.limits, bounds);
    report.outputs.clear();
    report.missing_outputs.clear();
    report.missing_left_out = 0;
    let noted = RefCell::new(&mut *report);
    let mut failed = |path: &str, e: io::Error| {
        noted.borrow_mut().add_missing(path, &e);
        Ok(())
    };
    let rules = Rules { only_of: Some(slot.uid), reader: None, owner: None, links: true };
    // What of the streams is kept, and a line that says what is not, is fetched in any case.
    let budget = Budget::new(most.saturating_sub(put_out), bounds.output_entries);
    let mut copier = Copier { rules, budget, deadline, failed: &mut failed, at_target: false, known: None };
    let fetched = fetch_all(slot, request, &mut copier, &noted);
    let budget = copier.budget;
    if let (Some(limit), true) = (report.limits.output, budget.refused > 0 || put_out > most)
        && report.limit.is_none()
        && report.class == Class::Final
    {
        let fetched = most.saturating_sub(put_out).saturating_sub(budget.bytes);
        let value = put_out.saturating_add(fetched).saturating_add(budget.refused) as f64;
        let crossed = Crossed { which: Which::Output, limit: limit.0 as f64, value, at: rfc3339(now()) };
        (report.reason, report.message) = (Reason::LimitExceeded, format!("not all was kept: {crossed}"));
        report.limit = Some(crossed);
    }
    fetched?;
    if let Some(form) = request.outputs_archive
        && let Err(e) = pack::replace_outputs(results, form, deadline)
    {
        report.add_missing(form.file_name(), &format!("{e}: the directory outputs/ is there instead"));
    }
    // The report vouches for them, and is itself on disk before the job counts as done. One call for all: a job may
    // have thousands of small ones.
    if !request.outputs.is_empty() || put_out > 0 && !request.relay {
        let not_on_disk = |e| io::Error::other(format!("may be lost if the machine fails: {e}"));
        syncfs(tree::open_dir(results)?).map_err(not_on_disk)?;
    }
    Ok(())
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
            let from = slot.data.open_beneath(format!("{IO}/{name}"), READ, 0).map_err(Problem::Skip);
            note(name, from.and_then(|from| fetch_stream(from, results.as_fd(), file, copier)));
        }
    }
    // What an earlier, interrupted try has fetched is fetched again.
    let outputs = make_dir(results.as_fd(), c"outputs")?;
    tree::remove_content(outputs.as_fd(), copier.deadline)?;
    if request.outputs.is_empty() {
        return Ok(unlinkat(&results, c"outputs", UnlinkatFlags::RemoveDir)?);
    }
    let work = Dir::open(&layout::work(slot.number))?;
    let mut matches = Matches::default();
    let is_there = |name: &str| work.open_beneath(name, OFlag::O_PATH, 0).is_ok();
    for output in &request.outputs {
        // What has just this name is meant, whatever the name has in it.
        let Some(pattern) = Pattern::of(output).filter(|_| !is_there(output)) else {
            matches.paths.insert(output.as_bytes().to_vec());
            continue;
        };
        match matches.add(&work, &pattern, copier.deadline) {
            Ok(0) => report.borrow_mut().add_missing(output, &"nothing matches"),
            Ok(_) => {}
            Err(e) => report.borrow_mut().add_missing(output, &plain(e)),
        }
    }
    copier.known = Some(Known::new(outputs.try_clone()?));
    // Each once, and not again what comes with the directory that it is in, which is therefore first.
    let mut fetched: BTreeSet<&[u8]> = BTreeSet::new();
    for path in &matches.paths {
        let shown = shown(&String::from_utf8_lossy(path), SHOWN_MAX);
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut parents = ends.filter_map(|(end, _)| path.get(..end));
        if parents.any(|parent| fetched.contains(parent)) {
            if fstatat(&outputs, path.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
                report.borrow_mut().outputs.push(shown);
            }
        } else if note(&shown, fetch(&work, path, &shown, outputs.as_fd(), copier)) {
            fetched.insert(path);
            report.borrow_mut().outputs.push(shown);
        }
    }
    Ok(())
}

/// Fetches what was kept of a standard stream, in a file of root's.
fn fetch_stream(from: OwnedFd, results: BorrowedFd<'_>, name: &CStr, copier: &mut Copier<'_>) -> Result<(), Problem> {
    let stat = fstat(&from)?;
    if !tree::is(&stat, SFlag::S_IFREG) || stat.st_uid != 0 {
        return Err(io::Error::other("is not a regular file of root").into());
    }
    let budget = std::mem::replace(&mut copier.budget, Budget::new(u64::MAX, 1));
    let copied = copier.file(&std::fs::File::from(from), &stat, results, name);
    copier.budget = budget;
    copied
}

/// Fetches a file or a directory at `path` beneath `work`. Where it cannot be fetched, nothing of it is left.
fn fetch(
    work: &Dir,
    path: &[u8],
    shown: &str,
    outputs: BorrowedFd<'_>,
    copier: &mut Copier<'_>,
) -> Result<(), Problem> {
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let name = c_string(parts.pop().unwrap_or_default())?;
    if parts.len() > DEPTH_MAX {
        return Err(io::Error::other(format!("nested deeper than {DEPTH_MAX}")).into());
    }
    // Non-blocking, so that a FIFO is an error and not a wait.
    let from = work.open_beneath(path, READ, 0).map_err(plain)?;
    let mut dirs = vec![outputs.try_clone_to_owned()?];
    for parent in &parts {
        let at = dirs.last().map_or(outputs, AsFd::as_fd);
        dirs.push(make_dir(at, &c_string(parent)?)?);
    }
    let to = dirs.last().map_or(outputs, AsFd::as_fd);
    if let Some(known) = &mut copier.known {
        known.at = parts.iter().flat_map(|part| [part, b"/".as_slice()]).flatten().copied().collect();
    }
    let copied = copier.entry(from, to, &name, shown);
    if copied.is_err() {
        remove(to, &name);
        for (dir, part) in dirs.iter().zip(&parts).rev() {
            // Only what is empty.
            let _ = unlinkat(dir, *part, UnlinkatFlags::RemoveDir);
        }
    }
    copied
}

/// Removes what was copied in part.
fn remove(dir: BorrowedFd<'_>, name: &CStr) {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if let Ok(made) = openat(dir, name, flags, Mode::empty()) {
        let _ = tree::remove_content(made.as_fd(), &Deadline::within(REMOVE_WITHIN));
        let _ = unlinkat(dir, name, UnlinkatFlags::RemoveDir);
    }
}

fn c_string(name: &[u8]) -> io::Result<CString> {
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
