//! Filling a slot: `work/`, and the files of the standard streams.
//!
//! It is filled while its image is being bound, so root in the new container may be the image's for a moment:
//! everything goes by descriptors that lead nowhere out of the volume, and what was filled is used only after the mount
//! proof, with which no foreign program can have been there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use latebind_contract::layout::{self, Ids};
use latebind_linux::volume::open_beneath;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::bounds::CopyBounds;
use super::download::{Download, Problem as Undelivered, Web};
use super::{Input, Request};
use crate::bind::{Failure, Reason};
use crate::helper::{self, Placing};
use crate::layout::IO;
use crate::slot::Slot;
use crate::text::printable;
use crate::tree::copy::{Budget, Copier, Problem, Rules, plain};
use crate::tree::unpack::{Limits, Problem as Unplaced};
use crate::tree::walk::{Count, Walk, blocks};
use crate::tree::{self, Deadline, Over};
use crate::volume_failure::{failed_at, is_full, may_pass};

/// What an input's own user can bring about, and what may pass: a lease on the file (fcntl(2)), or its removal from
/// another machine. It must not count against the slot, or that user could take the slot from everybody.
const OF_ITS_USER: [Errno; 2] = [Errno::EAGAIN, Errno::ESTALE];

fn own(fd: &impl AsFd, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(fchmod(fd, Mode::from_bits_truncate(mode))?)
}

fn open_dir(slot: &Slot, name: &str) -> io::Result<OwnedFd> {
    slot.data.open_beneath(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)
}

/// A sandbox of the client's has to be a directory of the payload's within the slot; what is in it is the client's
/// business.
pub fn demand_sandbox(slot: &Slot, path: &str) -> Result<(), Failure> {
    let invalid = |why: String| Failure::hold(Reason::InvalidJob, format!("sandbox {path:?} beneath data/: {why}"));
    let open = open_dir(slot, path).map_err(|e| invalid(e.to_string()))?;
    let stat = fstat(&open).map_err(|e| invalid(e.to_string()))?;
    if stat.st_uid != slot.uid {
        return Err(invalid(format!("is of UID {}, not of the payload's {}", stat.st_uid, slot.uid)));
    }
    Ok(())
}

/// Puts the job's inputs into `work/` and makes the files of its standard streams.
pub fn fill(
    slot: &Slot,
    ids: Ids,
    web: &Web,
    request: &Request,
    bounds: &CopyBounds,
    deadline: &Deadline<'_>,
) -> Result<(), Failure> {
    let mut budget = Budget::new(bounds.input_bytes, bounds.input_entries);
    if let Some(inputs) = &request.inputs {
        let to = open_dir(slot, layout::WORK).map_err(failed_at(layout::WORK))?;
        copy(slot, request, deadline, &mut budget, inputs, |copier| {
            let from = tree::open_dir(inputs)?;
            tree::check_reader(&fstat(&from)?, request.submitter)?;
            copier.content(from.as_fd(), to.as_fd(), "")
        })?;
    }
    for input in &request.input_files {
        place(slot, ids, web, request, deadline, &mut budget, input)?;
    }
    mkdirat(slot.data.as_fd(), IO, Mode::from_bits_truncate(0o755)).map_err(|e| failed_at(IO)(e.into()))?;
    let io = open_dir(slot, IO).map_err(failed_at(IO))?;
    fchmod(&io, Mode::from_bits_truncate(0o755)).map_err(|e| failed_at(IO)(e.into()))?;
    if let Some(stdin) = &request.stdin {
        copy(slot, request, deadline, &mut budget, stdin, |copier| {
            let from = tree::open_file(stdin)?;
            let stat = fstat(&from)?;
            tree::check_reader(&stat, request.submitter)?;
            copier.file(&from, &stat, io.as_fd(), c"stdin")
        })?;
        let copied = open_beneath(io.as_fd(), "stdin", OFlag::O_RDONLY, 0);
        let given = copied.and_then(|copied| own(&copied, slot.uid, slot.gid, 0o400));
        given.map_err(failed_at("stdin"))?;
    }
    if !request.relay {
        for name in ["stdout", "stderr"] {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let made = open_beneath(io.as_fd(), name, flags, 0o600).map(File::from);
            // Root's own: the job's output reaches it through a FIFO alone.
            made.map(drop).map_err(failed_at(name))?;
        }
    }
    Ok(())
}

/// Opens a file that the job names.
fn open_input(path: &Path, submitter: Option<u32>) -> Result<File, Failure> {
    let opened = tree::open_file(path).and_then(|file| {
        tree::check_reader(&fstat(&file)?, submitter)?;
        Ok(file)
    });
    opened.map_err(|e| unreadable(&path.display().to_string(), &plain(e)))
}

/// What it means that something the job brought along cannot be read.
fn unreadable(place: &str, e: &io::Error) -> Failure {
    let is_its_users = e.raw_os_error().is_some_and(|errno| OF_ITS_USER.contains(&Errno::from_raw(errno)));
    let why = format!("{place}: {e}");
    match () {
        () if may_pass(e) => Failure::retry(Reason::StagingError, why),
        () if is_its_users => Failure::retry(Reason::InputUnusable, why),
        () => Failure::hold(Reason::InputUnusable, why),
    }
}

/// Why the work on an input had to end before it was done, if it had to.
fn ended(deadline: &Deadline<'_>, place: &str) -> Option<Failure> {
    Some(match deadline.over()? {
        Over::Stopped(why) => Failure::not_started(&why),
        over => Failure::retry(Reason::StagingError, format!("{place}: the job's inputs are {over}")),
    })
}

/// Name of what is downloaded, for a moment.
const SCRATCH: &str = ".input";

/// A file in the slot's volume that has no name, so that nobody else can reach it.
fn scratch(slot: &Slot) -> io::Result<File> {
    let _ = unlinkat(slot.data.as_fd(), SCRATCH, UnlinkatFlags::NoRemoveDir);
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
    let file = slot.data.open_beneath(SCRATCH, flags, 0o600)?;
    unlinkat(slot.data.as_fd(), SCRATCH, UnlinkatFlags::NoRemoveDir)?;
    Ok(File::from(file))
}

/// Downloads an input of at most `most` bytes into the slot's volume.
fn download(
    slot: &Slot,
    web: &Web,
    request: &Request,
    deadline: &Deadline<'_>,
    what: &Download,
    most: u64,
) -> Result<File, Failure> {
    let mut file = scratch(slot).map_err(failed_at(SCRATCH))?;
    let Err(problem) = web.fetch(what, &mut file, most, deadline) else { return Ok(file) };
    let shown = printable(&what.url);
    if let Some(ended) = ended(deadline, &shown) {
        return Err(ended);
    }
    Err(match problem {
        Undelivered::Lasting(why) => Failure::hold(Reason::InputUnusable, format!("{shown}: {why}")),
        // Whoever chose the server: it must not count against the slot.
        Undelivered::Passing(why) => Failure::retry(Reason::InputUnusable, format!("{shown}: {why}")),
        Undelivered::Target(e) if is_full(&e) => {
            no_room(slot, request, deadline, Some(&file), &format!("{shown}: {e}"))
        }
        Undelivered::Target(e) => Failure::retry(Reason::StagingError, format!("{shown}: {e}")),
    })
}

/// Puts one input into `work/`, by the helper with the payload's rights: what is in an archive decides nothing that root
/// does.
fn place(
    slot: &Slot,
    ids: Ids,
    web: &Web,
    request: &Request,
    deadline: &Deadline<'_>,
    budget: &mut Budget,
    input: &Input,
) -> Result<(), Failure> {
    let work = open_dir(slot, layout::WORK).map_err(failed_at(layout::WORK))?;
    // What no slot of this size could hold is the input's fault, and not that of what else is in the volume.
    let volume = fstatvfs(slot.data.as_fd()).map_err(|e| failed_at(layout::WORK)(e.into()))?;
    let size = volume.blocks().saturating_mul(volume.fragment_size());
    let limits = Limits { bytes: budget.bytes.min(size), entries: budget.entries };
    let file = match (&input.path, &input.download) {
        (Some(path), _) => open_input(path, request.submitter)?,
        (None, Some(what)) => download(slot, web, request, deadline, what, limits.bytes)?,
        (None, None) => return Ok(()), // refused before
    };
    let shown = input.shown();
    let retry = |why: &dyn std::fmt::Display| Failure::retry(Reason::StagingError, format!("{shown}: {why}"));
    let placing = Placing { unpack: input.unpack, to: input.to.clone(), limits };
    let placed = helper::place(ids, &file, work.as_fd(), &placing, deadline)
        .map_err(|e| ended(deadline, &shown).unwrap_or_else(|| retry(&e)))?;
    budget.bytes = budget.bytes.saturating_sub(placed.bytes);
    budget.entries = budget.entries.saturating_sub(placed.entries);
    match placed.problem {
        None => Ok(()),
        Some(Unplaced { why, at_target: None }) => Err(Failure::hold(Reason::InputUnusable, format!("{shown}: {why}"))),
        Some(Unplaced { why, at_target: Some(errno) }) if is_full(&io::Error::from_raw_os_error(errno)) => {
            let downloaded = input.download.is_some().then_some(&file);
            Err(no_room(slot, request, deadline, downloaded, &format!("{shown}: {why}")))
        }
        Some(Unplaced { why, .. }) => Err(retry(&why)),
    }
}

/// Copies something that the job brought along, from `path`. Whose fault it is when that fails, is said by where it
/// failed.
fn copy(
    slot: &Slot,
    request: &Request,
    deadline: &Deadline<'_>,
    budget: &mut Budget,
    path: &Path,
    what: impl FnOnce(&mut Copier<'_>) -> Result<(), Problem>,
) -> Result<(), Failure> {
    let mut inner = None;
    let mut failed = |shown: &str, e: io::Error| {
        inner = Some(shown.to_owned());
        Err(e)
    };
    let (reader, owner) = (request.submitter, Some((slot.uid, slot.gid)));
    let rules = Rules { only_of: None, reader, owner, links: false };
    let mut copier = Copier { rules, budget: *budget, deadline, failed: &mut failed, at_target: false, known: None };
    let copied = what(&mut copier);
    let at_target = copier.at_target;
    *budget = copier.budget;
    let Err(problem) = copied else { return Ok(()) };
    let e = plain(problem.error());
    let place = inner.map_or_else(|| path.display().to_string(), |inner| format!("{}/{inner}", path.display()));
    Err(match ended(deadline, &place) {
        Some(ended) => ended,
        None if at_target && is_full(&e) => no_room(slot, request, deadline, None, &format!("{place}: {e}")),
        None if at_target => Failure::retry(Reason::StagingError, format!("{place}: {e}")),
        None => unreadable(&place, &e),
    })
}

/// What it means that a slot's volume had no room for a job's inputs: that the job cannot run in such a slot, or that
/// others have taken the room, which must never be the job's loss. `downloaded`: an input that is in the volume without a
/// name.
fn no_room(slot: &Slot, request: &Request, deadline: &Deadline<'_>, downloaded: Option<&File>, what: &str) -> Failure {
    let (Ok(volume), Some(mut need)) = (fstatvfs(slot.data.as_fd()), measure(request, deadline)) else {
        return Failure::retry(Reason::VolumeFull, what);
    };
    let bytes = |blocks: u64| blocks.saturating_mul(volume.fragment_size());
    let (size, files) = (bytes(volume.blocks()), volume.files());
    let counted = |need: &Count| format!("the inputs take {} bytes and {} names", need.bytes, need.entries);
    if need.bytes > size || files > 0 && need.entries > files {
        let counted = counted(&need);
        let message = format!("{what}: {counted}, and the slot's volume has {size} and {files} when it is empty");
        return Failure::hold(Reason::InputUnusable, message);
    }
    // What was counted is what the inputs are now, and their user may change them at each moment. What has been copied
    // nobody else can change, and what is in an archive is only known by it: where hardly anything else is there, the
    // fault lies with the inputs alone.
    let copied = [layout::WORK, IO].iter().filter_map(|name| count(open_dir(slot, name).ok()?.as_fd(), deadline));
    let unnamed = downloaded.and_then(|file| fstat(file).ok()).map_or(0, |stat| blocks(&stat));
    let (copied, names) = copied.fold((unnamed, 0), |(bytes, names), c| (bytes + c.bytes, names + c.entries));
    (need.bytes, need.entries) = (need.bytes.max(copied), need.entries.max(names));
    let counted = counted(&need);
    let others = bytes(volume.blocks().saturating_sub(volume.blocks_free())).saturating_sub(copied);
    let other_files = files.saturating_sub(volume.files_free()).saturating_sub(names);
    if others <= size / 10 && other_files <= files / 10 {
        let message =
            format!("{what}: {counted}, and fill the volume of {size} by themselves, or were changed meanwhile");
        return Failure::retry(Reason::InputUnusable, message);
    }
    // Not to the last byte: a file takes a little more than what is in it.
    let fits = |need: u64, all: u64| need <= all / 10 * 9;
    if fits(need.size.max(need.bytes), size) && (files == 0 || fits(need.entries, files)) {
        let message = format!("{what}: {counted}, for which the volume of {size} has room, but others have taken it");
        return Failure::retry(Reason::VolumeHeld, message);
    }
    Failure::retry(Reason::VolumeFull, format!("{what}: {counted}, the volume has {size} in all"))
}

fn count(top: BorrowedFd<'_>, deadline: &Deadline<'_>) -> Option<Count> {
    let mut walk = Walk::new(top).ok()?;
    while !walk.go_on(1_000) {
        deadline.check().ok()?;
    }
    Some(walk.so_far())
}

/// What a job's inputs and standard input take: but for what is downloaded or unpacked, whose size nobody knows before.
fn measure(request: &Request, deadline: &Deadline<'_>) -> Option<Count> {
    let mut all = Count::default();
    if let Some(inputs) = &request.inputs {
        all = count(tree::open_dir(inputs).ok()?.as_fd(), deadline)?;
    }
    let plain = request.input_files.iter().filter(|input| !input.unpack).filter_map(|input| input.path.as_ref());
    for path in request.stdin.iter().chain(plain) {
        let stat = fstat(&tree::open_file(path).ok()?).ok()?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        (all.bytes, all.size) = (all.bytes.saturating_add(blocks(&stat)), all.size.saturating_add(size));
        all.entries += 1;
    }
    Some(all)
}
