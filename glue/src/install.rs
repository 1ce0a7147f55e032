//! `glue install`: in an init container, puts the binary into its volume and gives each slot's volumes their owners.
//!
//! An emptyDir comes with mode 0777 and no sticky bit, so each volume's top is taken over here. Safe to run twice,
//! beside a running job, and after a run that was killed half-way.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fchmod, mkdirat};
use nix::unistd::{Gid, Uid, fchown};

use latebind_contract::layout;
use latebind_linux::error::{error, refused};
use latebind_linux::sys;
use latebind_linux::volume::{Dir, open_at, read_whole};

/// One slot as it is to be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// Payload UID.
    pub uid: u32,
    /// Payload GID.
    pub gid: u32,
}

/// Sets up the binary and all `slots`.
pub fn install(slots: &[Slot]) -> io::Result<()> {
    nix::sys::stat::umask(Mode::from_bits_truncate(0o077));
    install_binary()?;
    slots.iter().try_for_each(install_slot)
}

fn install_binary() -> io::Result<()> {
    let bin = Dir::open(layout::BIN)?;
    // An image volume has the binary already, and nobody can change it; `glue run` checks its owner and mode.
    let flags =
        nix::sys::statvfs::fstatvfs(bin.as_fd()).map_err(|e| error(format_args!("{}", bin.path()), &e.into()))?.flags();
    if flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY) {
        return Ok(());
    }
    take_over(&bin, 0o755)?;
    let temporary = format!("{}{}", layout::GLUE_NAME, layout::TEMPORARY_SUFFIX);
    bin.remove(&temporary)?;
    let program = open_at(nix::fcntl::AT_FDCWD, "/proc/self/exe", OFlag::O_RDONLY)
        .and_then(|from| read_whole(&File::from(from)))
        .map_err(|e| error(format_args!("/proc/self/exe cannot be read"), &e))?;
    let to = bin.open_beneath(&temporary, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, 0o500)?;
    let mut to = File::from(to);
    let put = || -> io::Result<()> {
        to.write_all(&program)?;
        // Executable and not readable by others: what of the payload's UID executes it can be traced by nobody of that
        // UID.
        fchmod(&to, Mode::from_bits_truncate(layout::GLUE_MODE))?;
        // A node that goes down now must not leave half a binary behind under the final name.
        to.sync_all()?;
        drop(to);
        bin.rename(&temporary, layout::GLUE_NAME)
    };
    put().map_err(|e| error(format_args!("{} cannot be written", layout::GLUE), &e))
}

fn install_slot(slot: &Slot) -> io::Result<()> {
    let ctl = Dir::open(&layout::ctl(slot.number))?;
    take_over(&ctl, 0o700)?;
    let data = Dir::open(&layout::data(slot.number))?;
    take_over(&data, 0o755)?;
    let made = match mkdirat(data.as_fd(), layout::WORK, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(e) => Err(error(format_args!("{}/{} cannot be made", data.path(), layout::WORK), &e.into())),
    };
    made?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let work = data.open_beneath(layout::WORK, flags, 0)?;
    let stat = nix::sys::stat::fstat(&work)?;
    if (stat.st_uid, stat.st_gid) != (slot.uid, slot.gid) {
        fchown(work.as_fd(), Some(Uid::from_raw(slot.uid)), Some(Gid::from_raw(slot.gid))).map_err(|e| {
            error(format_args!("data/work cannot be given to the payload: the container needs CHOWN"), &e.into())
        })?;
    }
    if stat.st_mode & !SFlag::S_IFMT.bits() != 0o700 {
        fchmod(&work, Mode::from_bits_truncate(0o700)).map_err(|e| {
            error(format_args!("data/work cannot be closed to others: the container needs FOWNER"), &e.into())
        })?;
    }
    Ok(())
}

/// Makes a volume's top root's, with this mode.
fn take_over(dir: &Dir, mode: u32) -> io::Result<()> {
    let stat = dir.stat()?;
    let failed = |e: nix::errno::Errno| error(format_args!("{} cannot be taken over", dir.path()), &e.into());
    if (stat.st_uid, stat.st_gid) != (0, 0) {
        fchown(dir.as_fd(), Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).map_err(failed)?;
    }
    if stat.st_mode & !SFlag::S_IFMT.bits() != mode {
        fchmod(dir.as_fd(), Mode::from_bits_truncate(mode)).map_err(failed)?;
    }
    Ok(())
}

/// Reads the slots that are given as options; at least one has to be.
pub fn slots(options: &[&str]) -> Option<Vec<Slot>> {
    let slots: Option<Vec<_>> = options
        .chunks(2)
        .map(|pair| match pair {
            ["--slot", value] => parse_slot(value),
            _ => None,
        })
        .collect();
    slots.filter(|slots| !slots.is_empty())
}

/// Reads `N`, `N:UID` or `N:UID:GID`.
fn parse_slot(text: &str) -> Option<Slot> {
    let mut numbers = text.split(':').map(|n| n.parse::<u32>().ok());
    let number = numbers.next()??;
    let uid = numbers.next().unwrap_or(Some(layout::DEFAULT_PAYLOAD_ID.checked_add(number)?))?;
    let gid = numbers.next().unwrap_or(Some(uid))?;
    let good = |id: u32| id != 0 && id != u32::MAX;
    (numbers.next().is_none() && number <= layout::SLOT_MAX && good(uid) && good(gid)).then_some(Slot {
        number,
        uid,
        gid,
    })
}

/// Whether this process could set anything up at all.
pub fn check_root() -> io::Result<()> {
    if sys::uids()? == [0; 3] {
        return Ok(());
    }
    Err(refused(format_args!("glue install needs UID 0 with CHOWN, FOWNER and DAC_OVERRIDE")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read() {
        let slot = |number, uid, gid| Some(Slot { number, uid, gid });
        assert_eq!(parse_slot("0"), slot(0, 20_000, 20_000));
        assert_eq!(parse_slot("3"), slot(3, 20_003, 20_003));
        assert_eq!(parse_slot("1:5000"), slot(1, 5_000, 5_000));
        assert_eq!(parse_slot("1:5000:6000"), slot(1, 5_000, 6_000));
        for bad in ["", "x", "64", "0:0", "0:1:0", "0:4294967295", "0:1:2:3", "-1", "0:", "0:4294967296"] {
            assert_eq!(parse_slot(bad), None, "{bad}");
        }
    }
}
