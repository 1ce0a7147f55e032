//! `glue run`: the first process of a payload container, from its checks to its end.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::stat::SFlag;
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::claim::{self, Claim, Claimed};
use crate::events::{Event, Events};
use crate::job::{self, Supervisor};
use crate::log;
use crate::prepare::{self, Identity, Slot};
use crate::rootfs::{self, Accounts, Links};
use latebind_contract::encoding::{hex, sha256_hex};
use latebind_contract::layout::{self, Ids};
use latebind_contract::mounts;
use latebind_contract::status::{Phase, Refused, Status};
use latebind_linux::error::{cut, errno_of, error, refused};
use latebind_linux::proc::Proc;
use latebind_linux::sys::{self, Capabilities};
use latebind_linux::volume::{Dir, is, is_roots, open_at};

/// Told to stop, and did; `--stop-code` puts another in its place.
pub const STOPPED: i32 = 0;
/// Mounts, volumes, numbers or privileges are not what they have to be: nothing was run.
pub const REFUSED: i32 = layout::REFUSED_CODE;
/// A record or the status could not be written, a job's supervisor was lost or late, mounts or `work/` are others than
/// before, or a system call failed that cannot fail.
pub const LOST: i32 = 4;
/// Processes of a job could not be ended: the container has to.
pub const UNKILLED: i32 = 5;
/// A volume has no room for the status or a record.
pub const FULL: i32 = layout::FULL_CODE;

/// What `glue run` is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Number of the slot.
    pub slot: u32,
    /// The slot's kill UID.
    pub kill_uid: u32,
    /// Exit code when told to stop while the pod goes on.
    pub stop_code: i32,
    /// Whether jobs run under the filter of system calls.
    pub seccomp: bool,
}

/// Serves a slot until told to stop. Returns the exit code.
pub fn run(options: &Options) -> i32 {
    let number = options.slot;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    log::name_slot(number);
    let served = match Glue::set_up(options) {
        Err(e) => Err((REFUSED, "refused", e)),
        Ok(mut glue) => glue.serve().map_err(|e| (LOST, "given up", e)),
    };
    served.unwrap_or_else(|(code, what, e)| {
        log::error(format_args!("slot {number} {what}: {e}"));
        if [nix::libc::ENOSPC, nix::libc::EDQUOT].contains(&errno_of(&e)) { FULL } else { code }
    })
}

struct Glue {
    slot: Slot,
    accounts: Accounts,
    status: Status,
    /// SHA-256 of our own binary, lower-case hex.
    sha256: String,
    stop_code: i32,
    /// The FIFOs of the last job: they keep what nobody has read, and no watcher may be there to do so.
    outputs: [Option<OwnedFd>; 3],
}

impl Glue {
    fn set_up(options: &Options) -> io::Result<Self> {
        let Options { slot: number, kill_uid, seccomp: filtered, stop_code } = *options;
        let proc = Proc::open()?;
        log::open_non_blocking();
        limit_privileges()?;
        prctl::set_child_subreaper(true)?;

        check_mounts(&proc, number)?;
        let (ctl, data) = (Dir::open(&layout::ctl(number))?, Dir::open(&layout::data(number))?);
        let ids = check_volumes(&ctl, &data, kill_uid)?;
        remove_stale(&ctl)?;

        // Opened before anything can run here: what is executed later is what runs now.
        let program = open_at(proc.as_fd(), "self/exe", OFlag::O_RDONLY)?;
        // Out of the way of the numbers that stage two gets, since what executes it still needs it then.
        let program = File::from(sys::duplicate_above(program.as_fd(), prepare::OUT_OF_THE_WAY)?);
        check_program(&program)?;
        let events = Events::new()?;
        let (notified, notify) = (ctl.open_fifo(layout::GLUE_NOTIFY)?, ctl.open_fifo(layout::WATCHER_NOTIFY)?);
        let mut random = [0; 16];
        sys::random(&mut random)?;
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let status = Status {
            contract: vec![latebind_contract::VERSION],
            incarnation: hex(&random),
            pid,
            glue: env!("CARGO_PKG_VERSION").into(),
            uid: ids.uid,
            gid: ids.gid,
            kill_uid,
            ..Status::default()
        };
        let cgroup = proc.cgroup(pid)?;
        rootfs::prepare_accounts();
        let slot = Slot { number, filtered, ids, ctl, data, proc, cgroup, events, notified, notify, program };
        let (accounts, sha256, outputs) = (Accounts::default(), String::new(), Default::default());
        Ok(Self { slot, accounts, status, sha256, stop_code, outputs })
    }

    fn serve(&mut self) -> io::Result<i32> {
        self.slot.put_status(&mut self.status)?;
        log::line(format_args!("slot {} ready, incarnation {}", self.slot.number, self.status.incarnation));
        // After `ready`, so that it delays only a job that is there already.
        self.sha256 = sha256_of(&self.slot.program)?;
        loop {
            match claim::look(&self.slot.ctl, self.slot.ids, &self.status.incarnation)? {
                Claim::Nothing => match self.slot.events.next(true, Some(self.slot.notified.as_fd()), None)? {
                    Event::Stop(signal) => {
                        log::line(format_args!("idle, told to stop by signal {signal}"));
                        return Ok(self.stopped());
                    }
                    // A child without a job: something that was orphaned late. Gone is gone.
                    Event::Child => {
                        job::has_living_children();
                    }
                    // Its bytes say nothing but that there is news.
                    _ => while nix::unistd::read(&self.slot.notified, &mut [0; 64]).is_ok_and(|n| n == 64) {},
                },
                Claim::Refused(refused) => self.refuse(refused)?,
                Claim::Job(claimed) => {
                    if let Some(code) = self.run_job(*claimed)? {
                        return Ok(code);
                    }
                    check_mounts(&self.slot.proc, self.slot.number)?;
                    if check_volumes(&self.slot.ctl, &self.slot.data, self.slot.ids.kill_uid)? != self.slot.ids {
                        return Err(refused(format_args!("data/work has got another owner")));
                    }
                }
            }
        }
    }

    /// What to end with, told to stop.
    fn stopped(&self) -> i32 {
        if self.slot.ctl.stat_of(layout::FINISH).is_ok() { STOPPED } else { self.stop_code }
    }

    fn refuse(&mut self, refused: Refused) -> io::Result<()> {
        prctl::set_dumpable(true)?;
        log::warn(format_args!("startup file refused: {}", refused.message));
        self.slot.ctl.remove(layout::STARTUP)?;
        self.status.refused = Some(refused);
        self.slot.put_status(&mut self.status)
    }

    /// One job, from the claim to the record. What glue is to end with after it, if it is.
    fn run_job(&mut self, mut claimed: Claimed) -> io::Result<Option<i32>> {
        let mut links = Links::default();
        let mut prepared = prepare::prepare(&self.slot, &claimed, &mut links, &mut self.accounts);
        let (incarnation, sha256, pid) = (&self.status.incarnation, &self.sha256, self.status.pid);
        let identity = Identity { incarnation, sha256, pid };
        let made = Supervisor::make(&self.slot, &mut claimed, &mut prepared, &identity);
        claimed.key.wipe();
        let startup_sha256 = sha256_hex(&claimed.file);
        claimed.file.zeroize();
        let supervisor = match made {
            Ok(supervisor) => supervisor,
            Err(e) => {
                let changed = !links.remove() || prepared.accounts_changed;
                claim::take(&self.slot.ctl, &claimed.order)?;
                self.refuse(Refused { startup_sha256, errno: errno_of(&e), message: cut(e.to_string()) })?;
                return Ok(changed.then(|| self.stopped()));
            }
        };
        // A new job is claimed: nobody needs the last one's record any more.
        self.slot.ctl.remove(layout::RECORD)?;
        self.status.phase = Phase::Running;
        self.status.job = Some(claimed.order.job.clone());
        self.status.main_pid = None;
        self.status.nonce = Some(claimed.order.nonce.clone());
        self.status.refused = None;
        self.slot.put_status(&mut self.status)?;
        claim::take(&self.slot.ctl, &claimed.order)?;
        supervisor.go(&startup_sha256);
        // Root keeps no other descriptor of the job's: whoever writes to a job that has closed its input learns of it.
        claimed.env_files.clear();
        self.outputs = std::mem::take(&mut prepared.fifos);
        let [input, ..] = &mut self.outputs;
        *input = None;
        let over = supervisor.follow(&self.slot, &claimed.order, &mut self.status)?;
        // No later job may find the root file system changed.
        let changed = !links.remove() || prepared.accounts_changed;
        self.status.phase = Phase::Done;
        self.status.main_pid = None;
        self.slot.put_status(&mut self.status)?;
        Ok(if over.unkilled { Some(UNKILLED) } else { (over.stop || changed).then(|| self.stopped()) })
    }
}

/// Refuses a binary that others may read: stage two could be traced by others of its UID between its exec and its first
/// look.
fn check_program(program: &File) -> io::Result<()> {
    let stat = nix::sys::stat::fstat(program)?;
    if is_roots(&stat, 0o066) {
        return Ok(());
    }
    Err(refused(format_args!(
        "glue's binary has owner {} and mode {:o}: only root may be able to read it ({:o}); run `glue install`",
        stat.st_uid,
        stat.st_mode & 0o7777,
        layout::GLUE_MODE
    )))
}

/// Down to the three capabilities that are needed for a job, none of which an exec would keep; refuses to go on without
/// them, and without SETPCAP, which it takes to see to that.
fn limit_privileges() -> io::Result<()> {
    use caps::Capability::{CAP_KILL, CAP_SETGID, CAP_SETPCAP, CAP_SETUID};
    let kept = CAP_KILL.bitmask() | CAP_SETGID.bitmask() | CAP_SETUID.bitmask();
    let needed = kept | CAP_SETPCAP.bitmask();
    if sys::uids()? != [0; 3] || sys::capabilities()?.effective & needed != needed {
        return Err(refused(format_args!(
            "glue run needs UID 0 with the capabilities SETUID, SETGID, KILL and SETPCAP: give the payload container \
             runAsUser 0 and these four. (Pod Security level \"restricted\" admits none of them and no payload UID)",
        )));
    }
    sys::end_exec_capabilities()?;
    sys::set_capabilities(Capabilities { effective: kept, permitted: kept, inheritable: 0 })
}

fn check_mounts(proc: &Proc, slot: u32) -> io::Result<()> {
    let all = mounts::parse(&proc.read("self/mountinfo")?).map_err(|e| refused(format_args!("{e}")))?;
    mounts::check(&all, slot).map(drop).map_err(|e| refused(format_args!("{e}")))
}

/// Refuses volumes that the payload could change, and takes the slot's numbers from the owner of `work/`.
fn check_volumes(ctl: &Dir, data: &Dir, kill_uid: u32) -> io::Result<Ids> {
    ctl.demand_root_only(0o077)?;
    data.demand_root_only(0o022)?;
    Dir::open(layout::BIN)?.demand_root_only(0o022)?;
    let work =
        data.stat_of(layout::WORK).map_err(|e| error(format_args!("data/work: run `glue install` first"), &e))?;
    // Its mode is the payload's own business: it may have changed it, and gains nothing by that.
    if !is(&work, SFlag::S_IFDIR) {
        return Err(refused(format_args!("data/work is not a directory: run `glue install` first")));
    }
    let ids = Ids { uid: work.st_uid, gid: work.st_gid, kill_uid };
    ids.check().map_err(|e| refused(format_args!("the owner of data/work and --kill-uid: {e}")))?;
    Ok(ids)
}

/// Removes whatever a watcher may have put before this glue lived: none of it can be meant for it.
fn remove_stale(ctl: &Dir) -> io::Result<()> {
    let stale = |name: &String| {
        [layout::STARTUP, layout::RECORD, layout::STATUS, layout::FINISH].contains(&name.as_str())
            || name.starts_with(layout::ENV_PREFIX)
            || name.ends_with(layout::TEMPORARY_SUFFIX)
    };
    ctl.names()?.iter().filter(|name| stale(name)).try_for_each(|name| ctl.remove(name))
}

fn sha256_of(file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = file;
    // Small: what of stack or heap was ever touched stays resident while glue waits.
    let mut bytes = [0; 1024];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(bytes.get(..n).unwrap_or_default()),
        }
    }
}
