//! Fetching a job's results: through descriptors that no link can redirect, after all of its processes have ended.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use glue::contract::layout;
use glue::volume::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use super::limits::{Crossed, Which};
use super::{Report, Request, now, rfc3339, stage};
use crate::bind::{Class, Reason};
use crate::slot::Slot;
use crate::store::put_file;

/// Most bytes that are fetched of one job, standard output and error included.
const BYTES_MAX: u64 = 16 << 30;
/// Most files.
const FILES_MAX: u32 = 100_000;
/// Deepest tree.
const DEPTH_MAX: usize = 64;

/// Most entries that are named as missing of one output.
const MISSING_MAX: usize = 100;

fn is_too_much(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::FileTooLarge
}

/// What may still be fetched.
struct Budget {
    bytes: u64,
    files: u32,
    /// How much there was of a file for which the bytes did not do.
    above: Option<u64>,
}

/// Puts record, standard output and error, and the named outputs into the results directory. What can not be fetched is
/// named in the report, and is no reason to lose the rest.
pub fn collect(slot: &Slot, request: &Request, record: Option<&str>, report: &mut Report) -> io::Result<()> {
    let Some(results) = &request.results else { return Ok(()) };
    DirBuilder::new().recursive(true).mode(0o755).create(results)?;
    if let Some(record) = record {
        put_file(&results.join(layout::RECORD), record.as_bytes(), 0o644)?;
    }
    let most = report.limits.output.map_or(BYTES_MAX, |limit| limit.0.min(BYTES_MAX));
    let mut budget = Budget { bytes: most, files: FILES_MAX, above: None };
    report.outputs.clear();
    report.missing_outputs.clear();
    if !request.relay {
        for name in ["stdout", "stderr"] {
            let from = slot.data.open_beneath(&format!("{}/{name}", stage::IO), OFlag::O_RDONLY, 0);
            if let Err(e) = from.and_then(|from| copy(from, &results.join(name), &mut budget)) {
                report.missing_outputs.push(format!("{name}: {e}"));
            }
        }
    }
    let work = Dir::open(&layout::work(slot.number))?;
    let outputs = results.join("outputs");
    // What an earlier, interrupted try has fetched is fetched again.
    match fs::remove_dir_all(&outputs) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    for output in &request.outputs {
        let to = outputs.join(output);
        let parents = to.parent().map_or(Ok(()), |p| DirBuilder::new().recursive(true).mode(0o755).create(p));
        let mut missing = Vec::new();
        match parents.and_then(|()| fetch(&work, output, &to, slot.uid, &mut budget, &mut missing)) {
            Ok(()) => report.outputs.push(output.clone()),
            Err(e) => report.missing_outputs.push(format!("{output}: {e}")),
        }
        report.missing_outputs.extend(missing);
    }
    if let (Some(limit), Some(above)) = (report.limits.output, budget.above)
        && report.limit.is_none()
        && report.class == Class::Final
    {
        let value = (most - budget.bytes).saturating_add(above) as f64;
        let crossed = Crossed { which: Which::Output, limit: limit.0 as f64, value, at: rfc3339(now()) };
        (report.reason, report.message) = (Reason::LimitExceeded, format!("not all was fetched: {crossed}"));
        report.limit = Some(crossed);
    }
    Ok(())
}

/// Fetches a file or a directory at `path` beneath `work`. What of a directory can not be fetched is added to `missing`, and
/// keeps nothing else from being fetched.
fn fetch(
    work: &Dir,
    path: &str,
    to: &Path,
    uid: u32,
    budget: &mut Budget,
    missing: &mut Vec<String>,
) -> io::Result<()> {
    if path.split('/').count() > DEPTH_MAX {
        return Err(io::Error::other(format!("nested deeper than {DEPTH_MAX}")));
    }
    // Non-blocking, so that a FIFO is an error and not a wait.
    let from = work.open_beneath(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
    let stat = fstat(&from)?;
    if stat.st_uid != uid {
        return Err(io::Error::other(format!("belongs to UID {}, not to the payload", stat.st_uid)));
    }
    match stat.st_mode & SFlag::S_IFMT.bits() {
        kind if kind == SFlag::S_IFREG.bits() => copy(from, to, budget),
        kind if kind == SFlag::S_IFDIR.bits() => {
            DirBuilder::new().recursive(true).mode(0o755).create(to)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let mut dir = nix::dir::Dir::openat(from.as_fd(), ".", flags, nix::sys::stat::Mode::empty())?;
            for entry in dir.iter() {
                let entry = entry?;
                let shown = format!("{path}/{}", entry.file_name().to_string_lossy().escape_debug());
                let fetched = match entry.file_name().to_str() {
                    Ok("." | "..") => continue,
                    Ok(name) => fetch(work, &format!("{path}/{name}"), &to.join(name), uid, budget, missing),
                    Err(_) => Err(io::Error::other("its name is not UTF-8")),
                };
                match fetched {
                    Ok(()) => {}
                    Err(e) if missing.len() >= MISSING_MAX || is_too_much(&e) => return Err(e),
                    Err(e) => missing.push(format!("{shown}: {e}")),
                }
            }
            Ok(())
        }
        _ => Err(io::Error::other("is neither a file nor a directory")),
    }
}

fn copy(from: OwnedFd, to: &Path, budget: &mut Budget) -> io::Result<()> {
    let too_much = || io::Error::new(io::ErrorKind::FileTooLarge, "more output than is fetched of one job");
    budget.files = budget.files.checked_sub(1).ok_or_else(too_much)?;
    let _ = fs::remove_file(to);
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(to)?;
    let from = File::from(from);
    let size = from.metadata()?.len();
    let copied = io::copy(&mut from.take(budget.bytes + 1), &mut file)?;
    match budget.bytes.checked_sub(copied) {
        Some(left) => {
            budget.bytes = left;
            Ok(())
        }
        None => {
            // What does not fit is not kept in part: nobody could tell.
            let _ = fs::remove_file(to);
            budget.above = Some(size.max(copied));
            Err(too_much())
        }
    }
}
