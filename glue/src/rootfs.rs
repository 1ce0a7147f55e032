//! The two things that glue may write into an image's root file system, when the startup file asks: links and account
//! lines.
//!
//! The image is hostile: every path is opened from `/` without following a link or entering another mount.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::log;
use latebind_contract::layout;
use latebind_contract::order::Order;
use latebind_linux::error::{errno_of, error, refused};
use latebind_linux::sys;
use latebind_linux::volume::{is, is_roots, open_at, open_beneath, read_whole};

/// Longest account file that is read.
const ACCOUNTS_MAX: i64 = 1 << 20;

fn root() -> io::Result<OwnedFd> {
    open_at(nix::fcntl::AT_FDCWD, "/", OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// The directory that holds `path`, and the last component.
fn parent_of(path: &str) -> io::Result<(OwnedFd, &str)> {
    let path = path.trim_start_matches('/');
    let root = root()?;
    match path.rsplit_once('/') {
        None => Ok((root, path)),
        Some((parent, name)) => Ok((open_beneath(root.as_fd(), parent, OFlag::O_PATH | OFlag::O_DIRECTORY, 0)?, name)),
    }
}

/// Does `act` in `parent`, and again with the owner's write bit where that is what it takes: engines give the top of a
/// container mode 0555, and root without DAC_OVERRIDE may not write there, but it is root's to change. Once `act` has
/// succeeded `done` is called, whatever fails after it.
fn writing(parent: &OwnedFd, act: impl Fn() -> nix::Result<()>, done: impl FnOnce()) -> io::Result<()> {
    let first = act();
    if first != Err(Errno::EACCES) {
        return Ok(first.map(|()| done())?);
    }
    let open = open_at(parent.as_fd(), ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let stat = fstat(&open)?;
    if !is_roots(&stat, 0o200) {
        return Ok(first?);
    }
    let chmod = |bits| fchmod(&open, Mode::from_bits_truncate(bits));
    chmod(stat.st_mode | 0o200)?;
    let second = act().map(|()| done());
    chmod(stat.st_mode)?;
    Ok(second?)
}

/// What was changed in an image's root for one job's links, in its order; undone backwards when the job is over.
#[derive(Default)]
pub struct Links(Vec<(String, Change)>);

/// What was done at a path.
enum Change {
    /// A directory was made.
    Directory,
    /// What was there has this name beside it.
    Aside(CString),
    /// An empty directory of root's with this mode was removed.
    Removed(u32),
    /// A link with this target was made.
    Link(String),
}

impl Links {
    /// Makes each link, with its missing parents, in place of what is there. The first that fails ends it; what was
    /// done before is there until it is removed.
    pub fn make(&mut self, wanted: &[(String, String)]) -> io::Result<()> {
        for (n, (path, target)) in wanted.iter().enumerate() {
            self.link(path, target, n).map_err(|e| {
                let why = match Errno::from_raw(errno_of(&e)) {
                    Errno::EBUSY | Errno::EXDEV => " (a mount point, or beneath one: name another path)",
                    Errno::ENOTEMPTY => " (a directory with files of the image: name another path)",
                    Errno::ELOOP | Errno::ENOTDIR => " (beneath a link or a file of the image: name another path)",
                    _ => "",
                };
                error(format_args!("the link {path} cannot be made{why}"), &e)
            })?;
        }
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str, n: usize) -> io::Result<()> {
        for (at, _) in path.match_indices('/').skip(1) {
            let directory = path.get(..at).unwrap_or_default();
            let (parent, name) = parent_of(directory)?;
            match make_directory(&parent, name, 0o755, || self.0.push((directory.to_owned(), Change::Directory))) {
                Err(e) if e.raw_os_error() == Some(Errno::EEXIST as i32) => {}
                made => made?,
            }
        }
        let (parent, name) = parent_of(path)?;
        let (from, aside) = (CString::new(name)?, CString::new(format!(".latebind.{n}"))?);
        match rename(&parent, &from, &aside, || self.0.push((path.to_owned(), Change::Aside(aside.clone())))) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            // Layers of a file system: a directory of a lower one cannot be renamed, but made again where it is empty.
            Err(e) if e.raw_os_error() == Some(Errno::EXDEV as i32) => {
                let stat = fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                if (stat.st_uid, stat.st_gid) != (0, 0) {
                    return Err(Errno::ENOTEMPTY.into()); // it could not be given back to its owner
                }
                let done = || self.0.push((path.to_owned(), Change::Removed(stat.st_mode)));
                writing(&parent, || unlinkat(&parent, name, UnlinkatFlags::RemoveDir), done)?;
            }
            Err(e) => return Err(e),
        }
        let done = || self.0.push((path.to_owned(), Change::Link(target.to_owned())));
        writing(&parent, || symlinkat(target, &parent, name), done)
    }

    /// Undoes all of it. Whether everything is as it was.
    pub fn remove(&mut self) -> bool {
        let mut undone = true;
        while let Some((path, change)) = self.0.pop() {
            if let Err(e) = undo(&path, &change) {
                log::error(format_args!("{path} is not as the image has it: {e}"));
                undone = false;
            }
        }
        undone
    }
}

fn undo(path: &str, change: &Change) -> io::Result<()> {
    let (parent, name) = parent_of(path)?;
    match change {
        Change::Directory => writing(&parent, || unlinkat(&parent, name, UnlinkatFlags::RemoveDir), || ()),
        Change::Link(target) if readlinkat(&parent, name)? != target.as_str() => Err(Errno::EEXIST.into()),
        Change::Link(_) => writing(&parent, || unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir), || ()),
        Change::Aside(aside) => rename(&parent, aside, &CString::new(name)?, || ()),
        Change::Removed(mode) => make_directory(&parent, name, *mode, || ()),
    }
}

/// Makes a directory of root's with this mode, whatever the umask.
fn make_directory(parent: &OwnedFd, name: &str, mode: u32, done: impl FnOnce()) -> io::Result<()> {
    writing(parent, || mkdirat(parent, name, Mode::S_IRUSR), done)?;
    let made = open_beneath(parent.as_fd(), name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?;
    Ok(fchmod(&made, Mode::from_bits_truncate(mode))?)
}

/// Gives an entry another name, which nothing may have.
fn rename(parent: &OwnedFd, from: &CStr, to: &CStr, done: impl FnOnce()) -> io::Result<()> {
    writing(parent, || sys::rename(parent.as_fd(), from, to, nix::libc::RENAME_NOREPLACE), done)
}

const ACCOUNTS: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// Opens an account file of the image for reading and appending. Besides: how long it is.
fn open_accounts(path: &str, more: OFlag) -> io::Result<(File, i64)> {
    let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_NONBLOCK | more;
    let fd = open_beneath(root()?.as_fd(), path.trim_start_matches('/'), flags, 0o644)?;
    let stat = fstat(&fd)?;
    if !is(&stat, SFlag::S_IFREG) || !is_roots(&stat, 0) || stat.st_nlink != 1 {
        return Err(refused(format_args!("is not a regular file of root with one name")));
    }
    Ok((File::from(fd), stat.st_size))
}

/// Has the file system make this container's copies of the account files, which takes milliseconds where layers are
/// copied on write: now, and not when a job waits. Errors are the job's to hear, when it wants a line there.
pub fn prepare_accounts() {
    for path in ACCOUNTS {
        let _ = open_accounts(path, OFlag::empty());
    }
}

/// The lines that glue has added to the account files.
///
/// They stay after their job, since the next one mostly wants the same. Nor may they go at once: what a job has sent of
/// a file's last page (sendfile(2)) and nobody has read yet would lose its end with it.
#[derive(Default)]
pub struct Accounts {
    /// What was added to each, and is all there; empty for none.
    lines: [String; 2],
    /// How long each file was before it was added to.
    before: [Option<i64>; 2],
}

impl Accounts {
    /// Gives passwd and group a line for the payload's numbers if the job wants one and there is none, and takes away
    /// what an earlier job wanted, whose failure is an error. A file that an image lacks stays, empty. Returns what
    /// could not be added.
    pub fn settle(&mut self, order: &Order, slot: u32) -> io::Result<Vec<String>> {
        let Order { account, uid, gid, passwd, .. } = order;
        let work = layout::work(slot);
        let home = order.home.as_ref().unwrap_or(&work);
        let lines = [format!("{account}:x:{uid}:{gid}:{account}:{home}:/bin/sh\n"), format!("{account}:x:{gid}:\n")];
        let mut failed = Vec::new();
        if *passwd && self.lines == lines {
            return Ok(failed);
        }
        self.lines = Default::default();
        for (path, before) in ACCOUNTS.iter().zip(&mut self.before) {
            if let Some(length) = before.take() {
                remove_line(path, length).map_err(|e| error(format_args!("{path}: an earlier job's line"), &e))?;
            }
        }
        if !passwd {
            return Ok(failed);
        }
        for (((path, id), line), before) in ACCOUNTS.iter().zip([*uid, *gid]).zip(&lines).zip(&mut self.before) {
            if let Err(e) = add_line(path, account, id, line, before) {
                failed.push(error(format_args!("{path}: no line for the payload was added"), &e).to_string());
            }
        }
        if failed.is_empty() {
            self.lines = lines;
        }
        Ok(failed)
    }
}

fn remove_line(path: &str, length: i64) -> io::Result<()> {
    let (file, has) = open_accounts(path, OFlag::empty())?;
    if has < length { Err(Errno::EEXIST.into()) } else { Ok(nix::unistd::ftruncate(file, length)?) }
}

fn add_line(path: &str, account: &str, id: u32, line: &str, before: &mut Option<i64>) -> io::Result<()> {
    let (mut file, length) = match open_accounts(path, OFlag::empty()) {
        Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => {
            let made = open_accounts(path, OFlag::O_CREAT | OFlag::O_EXCL)?;
            fchmod(&made.0, Mode::from_bits_truncate(0o644))?; // whatever the umask
            made
        }
        result => result?,
    };
    if length > ACCOUNTS_MAX {
        return Err(refused(format_args!("has {length} bytes, more than {ACCOUNTS_MAX}")));
    }
    let text = read_whole(&file)?;
    let known = text.split(|b| *b == b'\n').any(|l| {
        let mut fields = l.split(|b| *b == b':');
        let has_name = fields.next() == Some(account.as_bytes());
        has_name || fields.nth(1) == Some(id.to_string().as_bytes())
    });
    if known {
        return Ok(());
    }
    *before = Some(length);
    let newline = if text.last().is_none_or(|b| *b == b'\n') { "" } else { "\n" };
    file.write_all(format!("{newline}{line}").as_bytes())
}
