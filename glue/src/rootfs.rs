//! The two things that glue may write into an image's root file system, when the startup file asks: links and account
//! lines.
//!
//! The image is hostile: every path is opened from `/` without following a link or entering another mount.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::stage_two::ACCOUNT;
use latebind_linux::error::{error, refused};
use latebind_linux::sys;
use latebind_linux::volume::{open_beneath, read_whole};

/// Longest account file that is read.
const ACCOUNTS_MAX: usize = 1 << 20;

fn root() -> io::Result<OwnedFd> {
    sys::openat(nix::fcntl::AT_FDCWD, c"/", (OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits(), 0)
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
/// container mode 0555, and root without DAC_OVERRIDE may not write there, but it is root's to change.
fn writing(parent: &OwnedFd, act: impl Fn() -> nix::Result<()>) -> io::Result<()> {
    let first = act();
    if first != Err(Errno::EACCES) {
        return Ok(first?);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open = sys::openat(parent.as_fd(), c".", flags.bits(), 0)?;
    let stat = fstat(&open)?;
    if stat.st_uid != 0 || stat.st_mode & 0o200 != 0 {
        return Ok(first?);
    }
    let chmod = |bits| fchmod(&open, Mode::from_bits_truncate(bits));
    chmod(stat.st_mode | 0o200)?;
    let second = act();
    chmod(stat.st_mode)?;
    Ok(second?)
}

/// Symbolic links that were made for one job, removed when it is over.
#[derive(Default)]
pub struct Links(Vec<(String, String)>);

impl Links {
    /// Makes each link where nothing exists. The first that fails ends it; those made before are removed.
    pub fn make(wanted: &[(String, String)]) -> io::Result<Self> {
        let mut made = Self::default();
        for (path, target) in wanted {
            let result = parent_of(path)
                .and_then(|(parent, name)| writing(&parent, || symlinkat(target.as_str(), &parent, name)));
            if let Err(e) = result {
                made.remove();
                return Err(error(format_args!("the link {path} cannot be made (nothing may exist there)"), &e));
            }
            made.0.push((path.clone(), target.clone()));
        }
        Ok(made)
    }

    /// Removes what still is the link that was made.
    pub fn remove(&mut self) {
        for (path, target) in self.0.drain(..) {
            let Ok((parent, name)) = parent_of(&path) else { continue };
            if readlinkat(&parent, name).is_ok_and(|is| is == target.as_str()) {
                let _ = writing(&parent, || unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir));
            }
        }
    }
}

/// Adds a passwd and a group line for the payload's numbers where there is none. Returns what could not be done.
pub fn add_account(uid: u32, gid: u32, home: &str) -> Vec<String> {
    let passwd = format!("{ACCOUNT}:x:{uid}:{gid}:{ACCOUNT}:{home}:/bin/sh\n");
    let group = format!("{ACCOUNT}:x:{gid}:\n");
    let mut failed = Vec::new();
    for (path, id, line) in [("/etc/passwd", uid, &passwd), ("/etc/group", gid, &group)] {
        if let Err(e) = append_line(path, id, line) {
            failed.push(e.to_string());
        }
    }
    failed
}

fn append_line(path: &str, id: u32, line: &str) -> io::Result<()> {
    let add = || -> io::Result<()> {
        let root = root()?;
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_NONBLOCK;
        let relative = path.trim_start_matches('/');
        let fd = match open_beneath(root.as_fd(), relative, flags, 0) {
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => {
                let fd = open_beneath(root.as_fd(), relative, flags | OFlag::O_CREAT | OFlag::O_EXCL, 0o644)?;
                nix::sys::stat::fchmod(&fd, nix::sys::stat::Mode::from_bits_truncate(0o644))?; // whatever the umask
                fd
            }
            result => result?,
        };
        let stat = fstat(&fd)?;
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() || stat.st_uid != 0 || stat.st_nlink != 1 {
            return Err(refused(format_args!("is not a regular file of root with one name")));
        }
        let mut file = File::from(fd);
        let text = read_whole(file.as_fd(), ACCOUNTS_MAX)?;
        let known = text.split(|b| *b == b'\n').any(|l| {
            let mut fields = l.split(|b| *b == b':');
            let has_name = fields.next() == Some(ACCOUNT.as_bytes());
            has_name || fields.nth(1) == Some(id.to_string().as_bytes())
        });
        if known {
            return Ok(());
        }
        let newline = if text.last().is_none_or(|b| *b == b'\n') { "" } else { "\n" };
        file.write_all(format!("{newline}{line}").as_bytes())
    };
    add().map_err(|e| error(format_args!("{path}: no line for the payload was added"), &e))
}
