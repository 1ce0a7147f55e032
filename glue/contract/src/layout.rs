//! Where the shared volumes are, what lies in them, and which numbers a slot may use.

/// Name of the payload's account where no other is given.
pub const ACCOUNT: &str = "payload";

/// Top of everything that the containers of a pod share.
pub const SHARED: &str = "/shared";
/// Read-only volume with the glue binary.
pub const BIN: &str = "/shared/bin";
/// The glue binary, mode [`GLUE_MODE`], owner root.
pub const GLUE: &str = "/shared/bin/glue";
/// Mode of the glue binary. Nobody but root can read it: the kernel makes a process that executes what it may not read
/// undumpable, so that stage two, which has the payload's UID, cannot be traced from its first instruction on.
pub const GLUE_MODE: u32 = 0o511;
/// Name of the glue binary within [`BIN`].
pub const GLUE_NAME: &str = "glue";

/// One job, from watcher to glue, in two lines of JSON; unlinked by glue when claimed or refused.
pub const STARTUP: &str = "startup.jsonl";
/// Glue's phase and identity, replaced atomically.
pub const STATUS: &str = "status.json";
/// Signed exit record of the last job.
pub const RECORD: &str = "record.jws";
/// File within `ctl/`, the watcher's: the pod is over, and a glue that is told to stop now ends with 0 whatever its
/// `--stop-code`.
pub const FINISH: &str = "finish";
/// FIFO that the watcher writes to after each file that it put, to notify glue.
pub const GLUE_NOTIFY: &str = "glue.notify";
/// FIFO that glue writes to after each file that it put, to notify the watcher.
pub const WATCHER_NOTIFY: &str = "watcher.notify";
/// Names that a FIFO for relayed standard streams may have within `ctl/`.
pub const STREAMS: [&str; 3] = ["in", "out", "err"];
/// Every environment file's name starts with this.
pub const ENV_PREFIX: &str = "env.";
/// Every file is written under a name that ends so, then renamed.
pub const TEMPORARY_SUFFIX: &str = ".tmp";
/// The job's sandbox within `data/`; its owner defines the slot's payload UID and GID.
pub const WORK: &str = "work";

/// See [`attach`]; beneath `data/`.
pub const ATTACH: &str = "io/attach";

/// Largest startup file, in bytes.
pub const STARTUP_MAX: u64 = 1 << 20;
/// Largest environment file, in bytes.
pub const ENV_FILE_MAX: u64 = 1 << 20;
/// Most bytes of all environment files of one job: they share `ctl/` with the startup file, the status and the record.
pub const ENV_FILES_BYTES_MAX: u64 = 8 << 20;
/// Largest exit record, in bytes. Glue's own records stay far below; the bound is for the reader.
pub const RECORD_MAX: u64 = 64 << 10;
/// Largest number of environment files of one job.
pub const ENV_FILES_MAX: usize = 16;
/// Exit code of a `glue run` that found mounts, volumes, numbers or privileges other than they have to be.
pub const REFUSED_CODE: i32 = 3;
/// Exit code of a `glue run` that found no room for its status or a record.
pub const FULL_CODE: i32 = 6;
/// Highest slot number; one pod has few payload containers.
pub const SLOT_MAX: u32 = 63;

/// Payload UID and GID of slot 0 where the pod does not choose; slot n has this plus n.
pub const DEFAULT_PAYLOAD_ID: u32 = 20_000;
/// Kill UID of slot 0 where the pod does not choose; slot n has this plus n.
/// 65000 to 65533 is reserved by the Debian Policy Manual (section 9.2.2), so no package's account has it, and it is
/// mapped in the 65536 IDs that a pod gets with `hostUsers: false`.
pub const DEFAULT_KILL_UID: u32 = 65_100;

/// `/shared/slot/<n>`.
pub fn slot(n: u32) -> String {
    format!("{SHARED}/slot/{n}")
}

/// `/shared/slot/<n>/ctl`: startup file, status, record; root 0700.
pub fn ctl(n: u32) -> String {
    format!("{SHARED}/slot/{n}/ctl")
}

/// `/shared/slot/<n>/data`: the job's files; root 0755.
pub fn data(n: u32) -> String {
    format!("{SHARED}/slot/{n}/data")
}

/// `/shared/slot/<n>/data/work`: the job's sandbox; payload 0700.
pub fn work(n: u32) -> String {
    format!("{SHARED}/slot/{n}/data/{WORK}")
}

/// `/shared/slot/<n>/data/io/attach`: the watcher's socket for terminals and attendants; the payload's to connect to.
pub fn attach(n: u32) -> String {
    format!("{SHARED}/slot/{n}/data/{ATTACH}")
}

/// The numbers of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// UID of every process of the payload.
    pub uid: u32,
    /// GID of every process of the payload.
    pub gid: u32,
    /// UID that the kill routine runs under, so that the payload cannot signal it.
    pub kill_uid: u32,
}

impl Ids {
    /// Refuses numbers that would leave root in place, or that `setresuid(2)` takes as "leave unchanged".
    pub fn check(&self) -> Result<(), String> {
        for (what, n) in [("payload UID", self.uid), ("payload GID", self.gid), ("kill UID", self.kill_uid)] {
            if n == 0 || n == u32::MAX {
                return Err(format!(
                    "the {what} is {n}: 0 is root, and setresuid(2) takes 4294967295 as \"leave unchanged\"; \
                     choose another"
                ));
            }
        }
        if self.uid == self.kill_uid {
            return Err(format!(
                "the payload UID and the kill UID are both {}: the payload could then kill its killer; choose two",
                self.uid
            ));
        }
        Ok(())
    }
}

/// Whether `name` can be one entry of a directory: not empty, no slash, no NUL, neither `.` nor `..`.
pub fn is_component(name: impl AsRef<[u8]>) -> bool {
    let name = name.as_ref();
    !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0)
}

/// Whether an absolute path is at or below [`SHARED`], judged by its text alone.
pub fn is_shared(path: &str) -> bool {
    path.strip_prefix(SHARED).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether `path` is relative and stays beneath where it starts, judged by its text alone.
pub fn is_beneath(path: impl AsRef<[u8]>) -> bool {
    let path = path.as_ref();
    path.len() < 4096 && path.split(|byte| *byte == b'/').all(is_component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_leave_root_are_refused() {
        let good = Ids { uid: 20_000, gid: 20_000, kill_uid: 65_100 };
        assert!(good.check().is_ok());
        for bad in [0, u32::MAX] {
            assert!(Ids { uid: bad, ..good }.check().is_err());
            assert!(Ids { gid: bad, ..good }.check().is_err());
            assert!(Ids { kill_uid: bad, ..good }.check().is_err());
        }
        assert!(Ids { uid: 65_100, ..good }.check().is_err());
    }

    #[test]
    fn beneath_means_beneath() {
        for good in ["a", "work/out.txt", "io/stdout", "..a", "a..b"] {
            assert!(is_beneath(good), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/.", "a\0b"] {
            assert!(!is_beneath(bad), "{bad:?}");
        }
    }
}
