//! Trees of files that others made: removed and copied by descriptor, following nothing, however deep they are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use glue::volume::open_beneath;
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

/// How deep a tree of inputs may be.
const DEPTH_MAX: usize = 64;

/// Opens a directory that is no link itself.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Opens a regular file that is no link itself, for reading.
pub fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, Mode::empty())?;
    if is(&fstat(&fd)?, SFlag::S_IFREG) { Ok(File::from(fd)) } else { Err(io::Error::other("is no regular file")) }
}

/// Whether this is of that kind.
pub fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// Names in a directory, `.` and `..` left out.
fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::CString>> {
    let mut entries = Dir::openat(dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in entries.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes everything in `top`, but not `top` itself.
pub fn remove_content(top: BorrowedFd<'_>) -> io::Result<()> {
    remove_others(top, |_, _| false)
}

/// Removes everything in `top` but the entries that are to be kept, by name and kind.
///
/// A payload can nest directories deeper than there are descriptors or stack to recurse with. So nothing recurses: the
/// directories in a directory are moved up to the top, until there is nothing left; each is moved once.
pub fn remove_others(top: BorrowedFd<'_>, keep: impl Fn(&str, &FileStat) -> bool) -> io::Result<()> {
    let mut moved: u64 = 0;
    loop {
        let mut entries = Vec::new();
        for name in names(top)? {
            let stat = fstatat(top, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if !name.to_str().is_ok_and(|name| keep(name, &stat)) {
                entries.push((name, stat));
            }
        }
        if entries.is_empty() {
            return Ok(());
        }
        for (name, stat) in entries {
            if !is(&stat, SFlag::S_IFDIR) {
                unlinkat(top, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
                continue;
            }
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let dir = nix::fcntl::openat(top, name.as_c_str(), flags, Mode::empty())?;
            for inner in names(dir.as_fd())? {
                let stat = fstatat(&dir, inner.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                if is(&stat, SFlag::S_IFDIR) {
                    // A name that may be taken already: rename(2) then fails, and the next one is tried.
                    loop {
                        moved += 1;
                        match renameat(&dir, inner.as_c_str(), top, format!(".removed-{moved}").as_str()) {
                            Err(
                                nix::errno::Errno::EEXIST | nix::errno::Errno::ENOTEMPTY | nix::errno::Errno::ENOTDIR,
                            ) => {}
                            result => break result?,
                        }
                    }
                } else {
                    unlinkat(&dir, inner.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
                }
            }
            unlinkat(top, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
    }
}

/// Copies the files and directories in `from` into `to`, owned by `owner`. A link is refused: what it means depends on where
/// it is read, and whoever made it may mean a file of the pilot.
pub fn copy_content(from: BorrowedFd<'_>, to: BorrowedFd<'_>, owner: (u32, u32)) -> io::Result<()> {
    copy_level(from, to, owner, 0)
}

fn copy_level(from: BorrowedFd<'_>, to: BorrowedFd<'_>, owner: (u32, u32), depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!("nested deeper than {DEPTH_MAX}")));
    }
    for name in names(from)? {
        let shown = String::from_utf8_lossy(name.to_bytes()).escape_debug().to_string();
        let at = |e: io::Error| io::Error::new(e.kind(), format!("{shown}: {e}"));
        let text = name.to_str().map_err(|_| at(io::Error::other("its name is not UTF-8")))?;
        // One name of this very directory, no link: it can lead nowhere else. It may be a mount, as each input of
        // `latebind-host run` is.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let source = nix::fcntl::openat(from, text, flags, Mode::empty()).map_err(|e| at(e.into()))?;
        let stat = fstat(&source)?;
        let made = if is(&stat, SFlag::S_IFDIR) {
            mkdirat(to, text, Mode::from_bits_truncate(0o700)).map_err(|e| at(e.into()))?;
            let made = open_beneath(to, text, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0).map_err(at)?;
            copy_level(source.as_fd(), made.as_fd(), owner, depth + 1).map_err(at)?;
            fchmod(&made, Mode::from_bits_truncate(0o755))?;
            made
        } else if is(&stat, SFlag::S_IFREG) {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let mut made = File::from(open_beneath(to, text, flags, 0o600).map_err(at)?);
            io::copy(&mut File::from(source), &mut made).map_err(at)?;
            let mode = if stat.st_mode & 0o111 == 0 { 0o644 } else { 0o755 };
            fchmod(&made, Mode::from_bits_truncate(mode))?;
            made.into()
        } else {
            return Err(at(io::Error::other("is neither a file nor a directory")));
        };
        fchown(&made, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn the_deepest_tree_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let top = open_dir(scratch.path()).unwrap();
        let mut at = open_dir(scratch.path()).unwrap();
        for _ in 0..4_000 {
            mkdirat(&at, "d", Mode::from_bits_truncate(0o700)).unwrap();
            at = nix::fcntl::openat(&at, "d", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        fs::write(scratch.path().join(".removed-3"), "in the way").unwrap();
        fs::create_dir(scratch.path().join(".removed-4")).unwrap();
        fs::write(scratch.path().join(".removed-4/x"), "in the way").unwrap();
        remove_content(top.as_fd()).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let (inside, outside) = (scratch.path().join("inside"), scratch.path().join("outside"));
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, inside.join("a/b/link")).unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        fs::set_permissions(inside.join("a"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_content(open_dir(&inside).unwrap().as_fd()).unwrap();
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn copies_are_the_owners_and_links_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        fs::create_dir_all(from.join("d")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("d/program"), "x").unwrap();
        fs::set_permissions(from.join("d/program"), fs::Permissions::from_mode(0o4711)).unwrap();
        let copy = || copy_content(open_dir(&from).unwrap().as_fd(), open_dir(&to).unwrap().as_fd(), (20_000, 20_001));
        copy().unwrap();
        use std::os::unix::fs::MetadataExt;
        let made = fs::metadata(to.join("d/program")).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (20_000, 20_001, 0o755));
        remove_content(open_dir(&to).unwrap().as_fd()).unwrap();
        symlink("/etc/passwd", from.join("d/link")).unwrap();
        assert!(copy().is_err_and(|e| e.to_string().contains("link")));
        assert!(open_dir(&from.join("d/link")).is_err() && open_file(&from.join("d/link")).is_err());
    }
}
