//! The mount proof: what a payload container may have mounted at and below `/shared`, and nothing else.
//!
//! An image can declare volumes there. The engine then puts files of the image where ours should be, and runs them as
//! root:
//! so both sides read `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)) and demand exactly the expected mounts.

use super::layout;

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of the device, as `8:1`.
    pub device: String,
    /// The directory of that file system that is mounted, with escapes too.
    pub root: String,
    /// Where it is mounted, with the kernel's escapes (`\040` for a space, and so on), which none of ours has.
    pub point: String,
    /// Whether this mount is read-only.
    pub read_only: bool,
}

/// The three mounts of a payload container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMounts {
    /// At [`layout::BIN`], read-only.
    pub bin: Mount,
    /// At [`layout::ctl`].
    pub ctl: Mount,
    /// At [`layout::data`].
    pub data: Mount,
}

/// All mounts of a mountinfo text, in its order. A line that cannot be read makes the whole text unreadable.
pub fn parse(mountinfo: &str) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_id, _parent, device, root, point, options, ..] = fields.as_slice() else {
            return Err(format!("a line of mountinfo cannot be read: {line}"));
        };
        mounts.push(Mount {
            device: (*device).to_owned(),
            root: (*root).to_owned(),
            point: (*point).to_owned(),
            read_only: options.split(',').any(|option| option == "ro"),
        });
    }
    Ok(mounts)
}

/// The mounts of slot `slot`, if at and below `/shared` there are exactly those, each once, `bin` read-only.
pub fn check(mounts: &[Mount], slot: u32) -> Result<SlotMounts, String> {
    let (bin, ctl, data) = (layout::BIN.to_owned(), layout::ctl(slot), layout::data(slot));
    let below = format!("{}/", layout::SHARED);
    let mut shared = mounts.iter().filter(|m| m.point == layout::SHARED || m.point.starts_with(&below));
    if let Some(Mount { device, root, point, .. }) = shared.find(|m| ![&bin, &ctl, &data].contains(&&m.point)) {
        return Err(format!(
            "{point} is mounted there from {root} of device {device}: nothing but {bin}, {ctl} and {data} may be \
             mounted at or below {}. An image that declares a VOLUME there cannot be used",
            layout::SHARED
        ));
    }
    let one = |point: &str, read_only: bool| {
        let found: Vec<&Mount> = mounts.iter().filter(|m| m.point == point).collect();
        match found.as_slice() {
            [mount] if mount.read_only == read_only => Ok((*mount).clone()),
            [_] if read_only => {
                Err(format!("{point} is mounted writable: mount it read-only in the payload container"))
            }
            [_] => Err(format!("{point} is mounted read-only: it has to be writable")),
            [] => Err(format!("{point} is not mounted: the pod has to mount it, or the image has a link in its path")),
            _ => Err(format!("{point} is mounted twice, one on top of the other")),
        }
    };
    Ok(SlotMounts { bin: one(&bin, true)?, ctl: one(&ctl, false)?, data: one(&data, false)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
107 61 0:51 / / rw,relatime - overlay overlay rw
110 107 254:0 /pods/p/bin /shared/bin ro,relatime - ext4 /dev/vda rw
111 107 0:60 / /shared/slot/0/ctl rw,relatime - tmpfs tmpfs rw
112 107 254:0 /pods/p/slot-0/data /shared/slot/0/data rw,relatime - ext4 /dev/vda rw
113 107 254:0 /x /shared-not-ours rw - ext4 /dev/vda rw
";

    fn checked(text: &str) -> Result<SlotMounts, String> {
        check(&parse(text)?, 0)
    }

    #[test]
    fn exactly_the_expected_mounts_pass() {
        let mounts = checked(GOOD);
        assert_eq!(mounts.map(|m| m.data.root), Ok("/pods/p/slot-0/data".to_owned()));
    }

    #[test]
    fn everything_else_is_refused() {
        for (more, why) in [
            ("9 9 0:9 /v /shared rw - x x rw\n", "may be mounted"),
            ("9 9 0:9 /v /shared/bin ro - x x rw\n", "twice"),
            ("9 9 0:9 /v /shared/bin/glue ro - x x rw\n", "may be mounted"),
            ("9 9 0:9 /v /shared/slot/0/data/work rw - x x rw\n", "may be mounted"),
            ("9 9 0:9 /v /shared/slot/1/ctl rw - x x rw\n", "may be mounted"),
            ("garbage\n", "cannot be read"),
        ] {
            let refused = checked(&format!("{GOOD}{more}"));
            assert!(refused.as_ref().is_err_and(|e| e.contains(why)), "{more} {refused:?}");
        }
        for (from, to, why) in [
            ("/shared/bin ro", "/shared/bin rw", "writable"),
            ("/shared/slot/0/ctl rw", "/shared/slot/0/ctl ro", "read-only"),
            (" /shared/bin ", " /elsewhere/bin ", "not mounted"),
            (" /shared/bin ", " /shared/bin\\040 ", "may be mounted"),
        ] {
            let refused = checked(&GOOD.replace(from, to));
            assert!(refused.as_ref().is_err_and(|e| e.contains(why)), "{from} {refused:?}");
        }
    }
}
