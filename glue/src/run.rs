//! `glue run`: the first process of a payload container, from its checks to its end.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::stat::SFlag;
use sha2::{Digest, Sha256};

use crate::claim::{self, Claim, Claimed};
use crate::events::{Event, Events};
use crate::log;
use crate::rootfs::{self, Accounts};
use crate::start;
use crate::supervise::{self, Slot};
use latebind_contract::encoding::hex;
use latebind_contract::layout::{self, Ids};
use latebind_contract::mounts;
use latebind_contract::record::{GlueIdentity, Record, sign};
use latebind_contract::status::{Phase, Refused, Status};
use latebind_linux::error::{errno_of, error, refused};
use latebind_linux::processes::Proc;
use latebind_linux::sys::{self, Capabilities};
use latebind_linux::volume::{Dir, is, is_roots, open_at};

/// Told to stop, and did; `--stop-code` puts another in its place.
pub const STOPPED: i32 = 0;
/// Mounts, volumes, numbers or privileges are not what they have to be: nothing was run.
pub const REFUSED: i32 = layout::REFUSED_CODE;
/// A record or the status could not be written, or a system call failed that cannot fail.
pub const LOST: i32 = 4;
/// Processes of a job could not be ended: the container has to.
pub const UNKILLED: i32 = 5;
/// A volume has no room for the status or a record.
pub const FULL: i32 = layout::FULL_CODE;

/// The capabilities that glue keeps: CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP.
fn kept() -> u64 {
    use caps::Capability::{CAP_KILL, CAP_SETGID, CAP_SETPCAP, CAP_SETUID};
    [CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP].iter().fold(0, |mask, cap| mask | cap.bitmask())
}

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
    identity: GlueIdentity,
    stop_code: i32,
    /// Of the last job: see [`Claimed::outputs`].
    outputs: Vec<OwnedFd>,
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
        // Out of the way of the numbers that stage two gets, since stage one still needs it then.
        let program = File::from(sys::duplicate_above(program.as_fd(), start::OUT_OF_THE_WAY)?);
        check_program(&program)?;
        let events = Events::new(ctl.open_fifo(layout::GLUE_NOTIFY)?)?;
        let notify = ctl.open_fifo(layout::WATCHER_NOTIFY)?;
        let mut random = [0; 16];
        sys::random(&mut random)?;
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let version = env!("CARGO_PKG_VERSION");
        let status = Status {
            contract: vec![latebind_contract::VERSION],
            incarnation: hex(&random),
            pid,
            glue: version.into(),
            uid: ids.uid,
            gid: ids.gid,
            kill_uid,
            ..Status::default()
        };
        let identity = GlueIdentity { version: version.into(), sha256: String::new() };
        let cgroup = proc.cgroup(pid)?;
        rootfs::prepare_accounts();
        let slot = Slot { number, filtered, ids, ctl, data, proc, cgroup, events, notify, program };
        Ok(Self { slot, accounts: Accounts::default(), status, identity, stop_code, outputs: Vec::new() })
    }

    fn serve(&mut self) -> io::Result<i32> {
        self.slot.put_status(&mut self.status)?;
        log::line(format_args!("slot {} ready, incarnation {}", self.slot.number, self.status.incarnation));
        // After `ready`, so that nobody waits for it.
        self.identity.sha256 = sha256_of(&self.slot.program)?;
        loop {
            match claim::look(&self.slot.ctl, self.slot.ids, &self.status.incarnation)? {
                Claim::Nothing => match self.slot.events.next(false, None, None)? {
                    Event::Stop(signal) => {
                        log::line(format_args!("idle, told to stop by signal {signal}"));
                        return Ok(self.stopped());
                    }
                    // A child without a job: something that was orphaned late. Gone is gone.
                    Event::Child => while matches!(sys::reap(-1), Ok(Some(_))) {},
                    _ => {}
                },
                Claim::Refused(refused) => {
                    prctl::set_dumpable(true)?;
                    self.refuse(refused)?;
                }
                Claim::Job(claimed) => {
                    if let Some(code) = self.run_job(*claimed)? {
                        return Ok(code);
                    }
                    check_mounts(&self.slot.proc, self.slot.number)?;
                    check_volumes(&self.slot.ctl, &self.slot.data, self.slot.ids.kill_uid)?;
                }
            }
        }
    }

    /// What to end with, told to stop.
    fn stopped(&self) -> i32 {
        if self.slot.ctl.stat_of(layout::FINISH).is_ok() { STOPPED } else { self.stop_code }
    }

    fn refuse(&mut self, refused: Refused) -> io::Result<()> {
        log::warn(format_args!("startup file refused: {}", refused.message));
        self.slot.ctl.remove(layout::STARTUP)?;
        self.status.refused = Some(refused);
        self.slot.put_status(&mut self.status)
    }

    /// One job, from the claim to the record. What glue is to end with after it, if it is.
    fn run_job(&mut self, mut claimed: Claimed) -> io::Result<Option<i32>> {
        // The last job's record is nobody's any more once its successor is claimed.
        self.slot.ctl.remove(layout::RECORD)?;
        self.status.phase = Phase::Running;
        self.status.job = Some(claimed.order.job.clone());
        self.status.main_pid = None;
        self.status.nonce = Some(claimed.order.nonce.clone());
        self.status.refused = None;
        self.slot.put_status(&mut self.status)?;
        claim::take(&self.slot.ctl, &mut claimed)?;
        let mut record = Record {
            version: latebind_contract::VERSION,
            job: claimed.order.job.clone(),
            nonce: claimed.order.nonce.clone(),
            incarnation: self.status.incarnation.clone(),
            startup_sha256: claimed.startup_sha256.clone(),
            seccomp: Some(self.slot.filtered),
            glue: self.identity.clone(),
            ..Record::default()
        };
        let stop = supervise::run(&self.slot, &mut self.accounts, &mut claimed, &mut record, &mut self.status)?;
        self.outputs = claimed.outputs;
        if let Some(failed) = &record.error {
            let kind = failed.reported.map_or(0, |(kind, _)| u32::from(kind));
            log::line(format_args!("job not started: {} (errno {}, report {kind})", failed.message, failed.errno));
        }
        let jws =
            sign(&record, &claimed.key).ok_or_else(|| refused(format_args!("the record cannot be written as JSON")))?;
        drop(claimed.key); // which overwrites it
        // Before the record is put: a watcher that was started again looks at the container's counters through glue.
        prctl::set_dumpable(true)?;
        // The watcher, which would else wait for it in vain, learns from glue's end that it cannot be written.
        self.slot.ctl.replace(layout::RECORD, jws.as_bytes(), 0o600)?;
        self.status.phase = Phase::Done;
        self.status.main_pid = None;
        self.slot.put_status(&mut self.status)?;
        Ok(if record.processes.unkilled > 0 { Some(UNKILLED) } else { stop.then(|| self.stopped()) })
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

/// Down to the four capabilities that are needed, in every set; refuses to go on without them.
fn limit_privileges() -> io::Result<()> {
    let has = sys::capabilities()?;
    if sys::uids()? != [0; 3] || has.effective & kept() != kept() {
        return Err(refused(format_args!(
            "glue run needs UID 0 with the capabilities SETUID, SETGID, KILL and SETPCAP: give the payload container \
             runAsUser 0 and these four. (Pod Security level \"restricted\" admits none of them, and so no payload UID)",
        )));
    }
    sys::limit_exec_capabilities(kept())?;
    sys::set_capabilities(Capabilities { effective: kept(), permitted: kept(), inheritable: 0 })
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
    // Small: what of the stack was ever touched stays resident while glue waits.
    let mut bytes = [0; 1024];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(bytes.get(..n).unwrap_or_default()),
        }
    }
}
