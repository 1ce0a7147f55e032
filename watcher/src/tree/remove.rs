//! Removing what a payload has left: however much it is, however deep, while somebody else may still add to it.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::listing::{Kind, Listing, shown};
use super::{Deadline, marks, open_dir};

use crate::random::random_hex;

/// Removes what is at `path`, if anything is: a directory with everything in it, or something else.
pub fn remove_tree(path: &Path, deadline: &Deadline<'_>) -> io::Result<()> {
    match open_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => fs::remove_file(path),
        Ok(dir) => {
            remove_content(dir.as_fd(), deadline)?;
            fs::remove_dir(path)
        }
    }
}

/// Removes everything in `top`, but not `top` itself.
pub fn remove_content(top: BorrowedFd<'_>, deadline: &Deadline<'_>) -> io::Result<()> {
    remove_others(top, deadline, &|_, _| false)
}

/// Removes everything in `top` but the entries that are to be kept, by name and kind. What cannot be removed keeps
/// nothing else from going, and is the error in the end.
///
/// A payload can nest directories deeper than there are descriptors or stack to recurse with, and put more names into
/// one than there is memory to hold. So nothing recurses and nothing is collected: the directories in a directory are
/// moved up to the top, each once, until there is nothing left. Each directory is closed to others before it is listed,
/// so that what lies in it gets no more.
pub fn remove_others(
    top: BorrowedFd<'_>,
    deadline: &Deadline<'_>,
    keep: &dyn Fn(&str, &FileStat) -> bool,
) -> io::Result<()> {
    // Nobody has made these names before.
    let prefix = format!(".removed-{}", random_hex::<8>()?);
    let mut removal = Removal { top, deadline, prefix, moved: 0, aside: None };
    loop {
        let mut pass = removal.pass(top, keep)?;
        let aside = removal.aside.as_ref().map(|(name, dir)| (name.clone(), dir.try_clone()));
        if let Some((name, dir)) = aside {
            pass.add(removal.pass(dir?.as_fd(), &|_, _| false)?);
            if !pass.progress && pass.failed.is_none() {
                unlinkat(top, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
                removal.aside = None;
            }
        }
        match pass {
            Pass { progress: true, .. } => {}
            Pass { failed: Some(e), .. } => return Err(e),
            Pass { failed: None, .. } => return Ok(()),
        }
    }
}

/// What came of going through a directory once.
#[derive(Default)]
struct Pass {
    /// Whether something was removed or moved.
    progress: bool,
    /// What could not be.
    failed: Option<io::Error>,
}

impl Pass {
    fn add(&mut self, other: Self) {
        self.progress |= other.progress;
        self.failed = self.failed.take().or(other.failed);
    }

    fn took(&mut self, name: &CStr, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.progress = true,
            Err(Errno::ENOENT) => {} // somebody else was quicker
            Err(e) => {
                let e = io::Error::from(e);
                self.failed.get_or_insert_with(|| io::Error::new(e.kind(), format!("{}: {e}", shown(name))));
            }
        }
    }
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    deadline: &'a Deadline<'a>,
    prefix: String,
    moved: u64,
    /// A directory in `top` to move to, where `top` itself does not take directories of other projects.
    aside: Option<(CString, OwnedFd)>,
}

impl Removal<'_> {
    /// Goes once through `list`, `top` or the directory aside, and removes what can be removed.
    fn pass(&mut self, list: BorrowedFd<'_>, keep: &dyn Fn(&str, &FileStat) -> bool) -> io::Result<Pass> {
        let (mut listing, mut pass) = (Listing::default(), Pass::default());
        listing.seek(list, 0)?;
        while let Some(entry) = listing.next(list)? {
            self.deadline.check()?;
            if self.aside.as_ref().is_some_and(|(name, _)| name.as_c_str() == entry.name) {
                continue;
            }
            if let Ok(name) = entry.name.to_str()
                && fstatat(list, entry.name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| keep(name, &stat))
            {
                continue;
            }
            match remove_unless_directory(list, entry.name, entry.kind) {
                Some(result) => pass.took(entry.name, result),
                None => pass.add(self.remove_directory(list, entry.name)?),
            }
        }
        Ok(pass)
    }

    fn remove_directory(&mut self, list: BorrowedFd<'_>, name: &CStr) -> io::Result<Pass> {
        let mut pass = Pass::default();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let dir = match openat(list, name, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(e) => {
                pass.took(name, Err(e));
                return Ok(pass);
            }
        };
        // Where that is not possible, it is removed as it is.
        let _ = marks::close(dir.as_fd());
        let mut listing = Listing::default();
        while let Some(inner) = listing.next(dir.as_fd())? {
            self.deadline.check()?;
            let result = remove_unless_directory(dir.as_fd(), inner.name, inner.kind)
                .unwrap_or_else(|| self.remove_or_move_up(dir.as_fd(), inner.name));
            pass.took(inner.name, result);
        }
        match unlinkat(list, name, UnlinkatFlags::RemoveDir) {
            // The listing may have missed what was next to something removed: the next pass finds it.
            Err(Errno::ENOTEMPTY) if pass.progress || pass.failed.is_some() => {}
            result => pass.took(name, result),
        }
        Ok(pass)
    }

    /// Removes a directory if it is empty, or else moves it to the top.
    fn remove_or_move_up(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        // A move costs several times as much, and a payload can make hundreds of thousands of directories.
        match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(_) => {}
        }
        self.moved += 1;
        let to = format!("{}-{}", self.prefix, self.moved);
        let target = self.aside.as_ref().map_or(self.top, |(_, aside)| aside.as_fd());
        match renameat(dir, name, target, to.as_str()) {
            Err(Errno::EXDEV) if self.aside.is_none() => {
                let aside = CString::new(self.prefix.as_str()).map_err(|_| Errno::EINVAL)?;
                mkdirat(self.top, aside.as_c_str(), Mode::from_bits_truncate(0o700))?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let open = openat(self.top, aside.as_c_str(), flags, Mode::empty())?;
                marks::take_any_project(open.as_fd());
                let moved = renameat(dir, name, open.as_fd(), to.as_str());
                self.aside = Some((aside, open));
                moved
            }
            result => result,
        }
    }
}

/// Removes an entry; `None` where it is a directory.
fn remove_unless_directory(dir: BorrowedFd<'_>, name: &CStr, kind: Kind) -> Option<Result<(), Errno>> {
    if kind == Kind::Directory {
        return None;
    }
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => None,
        // What POSIX says for a directory.
        Err(Errno::EPERM) if kind == Kind::Unknown => None,
        result => Some(result),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::super::open_dir;
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::time::Duration;

    fn remove(top: &Path) -> io::Result<()> {
        remove_content(open_dir(top).unwrap().as_fd(), &Deadline::within(Duration::from_secs(120)))
    }

    fn is_empty(top: &Path) -> bool {
        fs::read_dir(top).unwrap().count() == 0
    }

    #[test]
    fn the_deepest_tree_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        let mut at = open_dir(top).unwrap();
        for _ in 0..4_000 {
            mkdirat(&at, "d", Mode::from_bits_truncate(0o700)).unwrap();
            at = openat(&at, "d", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        remove(top).unwrap();
        assert!(is_empty(top));
    }

    #[test]
    fn what_an_interrupted_removal_has_moved_up_goes_too() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        fs::create_dir_all(top.join("a/b/c/d")).unwrap();
        fs::create_dir_all(top.join(".removed-0-1/x/y")).unwrap();
        let open = open_dir(top).unwrap();
        assert!(remove_content(open.as_fd(), &Deadline::within(Duration::ZERO)).is_err());
        assert!(!is_empty(top));
        remove(top).unwrap();
        assert!(is_empty(top));
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        let (inside, outside) = (top.join("inside"), top.join("outside"));
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, inside.join("a/b/link")).unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        fs::set_permissions(inside.join("a"), fs::Permissions::from_mode(0o000)).unwrap();
        remove(&inside).unwrap();
        assert!(is_empty(&inside) && outside.join("kept").exists());
    }

    #[test]
    fn many_names_in_one_directory_go() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        for dir in ["a", "b"] {
            fs::create_dir(top.join(dir)).unwrap();
            for n in 0..3_000 {
                fs::create_dir(top.join(dir).join(format!("{n:0200}"))).unwrap();
                fs::write(top.join(dir).join(format!("file-{n}")), "").unwrap();
            }
        }
        remove(top).unwrap();
        assert!(is_empty(top));
    }

    #[test]
    fn who_has_a_directory_open_adds_nothing_once_it_is_being_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        let dir = top.join("public");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        // Root writes where it likes, so the mode is looked at: the directory lives on behind the descriptor.
        let open = open_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(20_001), Some(20_001)).unwrap();
        remove(top).unwrap();
        let stat = nix::sys::stat::fstat(&open).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777), (0, 0, 0o700));
    }

    #[test]
    fn what_is_kept_stays_and_the_rest_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        fs::create_dir_all(top.join("kept/in")).unwrap();
        fs::create_dir_all(top.join("gone/in")).unwrap();
        let open = open_dir(top).unwrap();
        remove_others(open.as_fd(), &Deadline::within(Duration::from_secs(60)), &|name, _| name == "kept").unwrap();
        assert!(top.join("kept/in").exists() && !top.join("gone").exists());
    }
}
