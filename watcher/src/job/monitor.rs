//! Watching a payload while it runs: who its processes are, what they use, and whether that is within the job's limits.
//!
//! A thread of its own for each job under way: looking at a thousand processes takes milliseconds, and
//! sampling must never delay the record. It looks every 2 s, and less often where a look would take more than 2 % of a
//! processor.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use latebind_contract::layout::Ids;
use latebind_linux::processes::{Pinned, Proc};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use procfs::FromRead;
use procfs::process::Stat;

use super::cgroup::Group;
use super::control::Control;
use super::disk::Disk;
use super::limits::{Limits, Which};
use super::relay::Meter;
use super::usage::{Summary, Usage};
use crate::helper;
use crate::pids::pids;

/// How often is looked.
const PERIOD: Duration = Duration::from_secs(2);
/// When a job has just started: short jobs are seen too.
const FIRST: Duration = Duration::from_millis(250);
/// In between: only its container's count of memory, which costs next to nothing.
const GLANCE_PERIOD: Duration = Duration::from_millis(100);
/// The same while a job uses more than half of the memory it may have.
const CLOSE_PERIOD: Duration = Duration::from_millis(25);
/// How often is asked for what only the payload's own UID may read.
const DETAIL_PERIOD: Duration = Duration::from_secs(10);
/// The part of a processor that looking may take.
const SHARE: f64 = 0.02;
/// Most processes that are asked for details at once.
const DETAIL_MAX: usize = 4096;
/// From here on, of the container's whole memory, nobody has time for a grace period.
const NO_GRACE: f64 = 0.97;

/// What a monitor is to watch.
pub struct Watched {
    /// The slot.
    pub slot: u32,
    /// Its numbers.
    pub ids: Ids,
    /// The cgroups of the container's processes.
    pub cgroup: String,
    /// Its glue, whose supervisor of the job reaps.
    pub glue: i32,
    /// What its container counts, if that can be seen.
    pub group: Option<Group>,
    /// The container's memory limit, where an earlier watcher could read it.
    pub memory_size: Option<u64>,
    /// How large the data volume is, if the pod's owner has said so.
    pub disk_size: Option<u64>,
    /// How much the job may use.
    pub limits: Limits,
}

/// Ends the monitor's thread when it goes; what was found stays on the board.
pub struct Watching {
    control: Arc<Control>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.control.board.lock().epoch += 1;
        self.control.board.changed.notify_all();
    }
}

/// Starts to watch a job's payload. What is found is put on the control's board; a crossed limit wakes whoever waits
/// for it.
pub fn start(watched: Watched, control: &Arc<Control>) -> std::io::Result<Watching> {
    let disk = Disk::open(watched.slot, watched.disk_size)?;
    let memory = watched.group.as_ref().and_then(|g| g.memory_limit).or(watched.memory_size);
    let limits = watched.limits.for_container(memory, disk.size);
    let epoch = {
        let mut inner = control.board.lock();
        inner.epoch += 1;
        (inner.limits, inner.crossed, inner.at_once) = (limits, None, false);
        inner.summary.get_or_insert_with(Summary::new);
        inner.epoch
    };
    let thread = std::thread::Builder::new().name(format!("monitor-{}", watched.slot));
    let sampler = Sampler::new(watched, disk, control.board.output.clone())?;
    let told = control.clone();
    thread.spawn(move || follow(sampler, limits, &told, epoch))?;
    Ok(Watching { control: control.clone() })
}

fn follow(mut looker: Sampler, limits: Limits, control: &Control, epoch: u64) {
    let began = Instant::now();
    let (mut pause, mut next) = (FIRST, Instant::now() + FIRST);
    loop {
        // Between two looks, the container's count alone: a program fills its memory within less than 2 s.
        let until = match limits.memory.filter(|_| looker.group.is_some()) {
            Some(limit) if looker.last.memory() > limit.0 / 2 => next.min(Instant::now() + CLOSE_PERIOD),
            Some(_) => next.min(Instant::now() + GLANCE_PERIOD),
            None => next,
        };
        let mut inner = control.board.lock();
        while inner.epoch == epoch && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            inner =
                control.board.changed.wait_timeout(inner, left).map_or_else(|e| e.into_inner().0, |(inner, _)| inner);
        }
        if inner.epoch != epoch {
            return;
        }
        drop(inner);
        let whole = Instant::now() >= next;
        let cost = cpu_of_thread();
        let mut usage = if whole { looker.look() } else { looker.glance() };
        let mut crossed = limits.crossed(&usage);
        if crossed.as_ref().is_some_and(|c| c.which == Which::Memory) && looker.could_be_shared() {
            usage = looker.look_closely();
            crossed = limits.crossed(&usage);
        }
        let cost = (cpu_of_thread() - cost).max(0.0);
        let at_once = looker.is_nearly_full();
        let mut inner = control.board.lock();
        if inner.epoch != epoch {
            return;
        }
        let summary = inner.summary.get_or_insert_with(Summary::new);
        summary.monitor_cpu_s += cost;
        if whole {
            summary.add(began.elapsed().as_secs_f64(), &usage);
        } else {
            summary.peak = summary.peak.max(&usage);
        }
        inner.all_stopped = looker.all_stopped;
        let news = match (&crossed, &inner.crossed) {
            (Some(_), None) => {
                inner.crossed = crossed;
                true
            }
            _ => at_once && inner.crossed.is_some() && !inner.at_once,
        };
        inner.at_once |= at_once && inner.crossed.is_some();
        drop(inner);
        if news {
            control.wake();
        }
        if whole {
            pause = (pause * 2).min(PERIOD);
            next = Instant::now() + pause.max(Duration::from_secs_f64(cost / SHARE));
        }
    }
}

/// CPU time that this thread has used, seconds.
fn cpu_of_thread() -> f64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9)
}

/// A process that was found to be the payload's: neither its UID nor its container can change any more.
#[derive(Clone, Copy)]
struct Known {
    ticks: u64,
    seen: u64,
}

/// Looks at the processes of one payload.
pub struct Sampler {
    proc: Proc,
    ids: Ids,
    cgroup: String,
    glue: i32,
    group: Option<Group>,
    disk: Disk,
    output: Meter,
    ticks_per_second: f64,
    page: u64,
    /// By number and start time, which no two processes have in common.
    known: HashMap<(i32, u64), Known>,
    looks: u64,
    /// CPU time of those that are gone, in ticks.
    gone: u64,
    reaped_before: Option<u64>,
    pids: Vec<i32>,
    disk_at: Instant,
    detail_at: Instant,
    detail: Option<(helper::Details, u64)>,
    last: Usage,
    all_stopped: bool,
}

impl Sampler {
    /// Nothing is looked at yet.
    pub fn new(watched: Watched, disk: Disk, output: Meter) -> std::io::Result<Self> {
        let Watched { ids, cgroup, glue, group, .. } = watched;
        let reaped_before = stat_of(glue).map(|s| reaped(&s));
        Ok(Self {
            proc: Proc::open()?,
            ids,
            cgroup,
            glue,
            group,
            disk,
            output,
            ticks_per_second: procfs::ticks_per_second() as f64,
            page: procfs::page_size(),
            known: HashMap::new(),
            looks: 0,
            gone: 0,
            reaped_before,
            pids: Vec::new(),
            disk_at: Instant::now(),
            detail_at: Instant::now() + FIRST + FIRST,
            detail: None,
            last: Usage::default(),
            all_stopped: false,
        })
    }

    /// Everything that costs little, and what costs more if its time has come.
    pub fn look(&mut self) -> Usage {
        self.looks += 1;
        self.continue_glue();
        let mut usage = Usage { output: self.output.bytes(), disk: self.last.disk, ..Usage::default() };
        let (mut alive, mut stopped) = (0, 0);
        self.pids.clear();
        let mut supervisor = 0;
        for pid in pids() {
            let Some(stat) = stat_of(pid) else { continue };
            // No process of a payload can be that: it has another UID, and not glue as its parent.
            if stat.ppid == self.glue && self.proc.process(pid).is_some_and(|p| p.uid == self.ids.kill_uid) {
                supervisor = reaped(&stat);
                continue;
            }
            let Some(process) = self.is_payload(pid, &stat) else { continue };
            // A main thread that has ended shows as a zombie while others of its process run.
            if matches!(stat.state, 'Z' | 'X' | 'x') && stat.num_threads <= 1 {
                continue;
            }
            let own = stat.utime + stat.stime;
            let waited = u64::try_from(stat.cutime + stat.cstime).unwrap_or(0);
            self.known.insert(process, Known { ticks: own, seen: self.looks });
            alive += own + waited;
            usage.processes += 1;
            usage.threads += u64::try_from(stat.num_threads).unwrap_or(0);
            usage.rss += stat.rss.saturating_mul(self.page);
            stopped += u64::from(stat.state == 'T');
            self.pids.push(pid);
        }
        self.all_stopped = stopped > 0 && stopped == usage.processes;
        usage.cpu_s = self.cpu(alive + supervisor).max(self.last.cpu_s);
        usage.container_memory = self.group.as_ref().and_then(Group::memory_now);
        let began = Instant::now();
        if began >= self.disk_at {
            usage.disk = self.disk.used().unwrap_or(None).or(usage.disk);
            self.disk_at = Instant::now() + began.elapsed().mul_f64(1.0 / SHARE);
        }
        if began >= self.detail_at {
            self.ask_for_details(usage.rss);
        }
        self.add_details(&mut usage);
        self.last = usage;
        usage
    }

    /// A glue that somebody has stopped would neither reap nor time out nor end its job. Which process it is was
    /// proven; that its number has not passed on, its container and UID say.
    fn continue_glue(&self) {
        if stat_of(self.glue).is_none_or(|stat| stat.state != 'T') {
            return;
        }
        let Ok(pinned) = Pinned::new(self.glue) else { return };
        let is_roots = self.proc.process(self.glue).is_some_and(|p| p.uid == 0 && p.is_stopped());
        if is_roots && self.proc.cgroup(self.glue).is_ok_and(|c| c == self.cgroup) {
            tracing::warn!(pid = self.glue, "somebody has stopped glue: it is continued");
            let _ = pinned.signal(Signal::SIGCONT);
        }
    }

    /// Only the container's count of memory.
    pub fn glance(&mut self) -> Usage {
        if let Some(group) = &self.group {
            self.last.container_memory = group.memory_now().or(self.last.container_memory);
        }
        self.last
    }

    /// Whether pages that several processes share may have been counted more than once.
    fn could_be_shared(&self) -> bool {
        self.last.container_memory.is_none() && self.last.processes > 1
    }

    /// Asks for the shared part of memory now.
    fn look_closely(&mut self) -> Usage {
        self.ask_for_details(self.last.rss);
        let mut usage = self.last;
        self.add_details(&mut usage);
        self.last = usage;
        usage
    }

    /// Whether the kernel is about to end something in the container for memory.
    fn is_nearly_full(&self) -> bool {
        let limit = self.group.as_ref().and_then(|g| g.memory_limit);
        limit.zip(self.last.container_memory).is_some_and(|(limit, used)| used as f64 > limit as f64 * NO_GRACE)
    }

    /// The process's number and start, if it is the payload's: by UID and container. Once it was, it is.
    fn is_payload(&self, pid: i32, stat: &Stat) -> Option<(i32, u64)> {
        let key = (pid, stat.starttime);
        if self.known.contains_key(&key) {
            return Some(key);
        }
        let process = self.proc.process(pid).filter(|p| p.uid == self.ids.uid)?;
        self.proc.cgroup_of(&process).is_ok_and(|c| c == self.cgroup).then_some(key)
    }

    /// CPU time since the start. Three counts, each of which misses something: by the processes that live and who has
    /// waited for the others (not those whose parent ignores their end), by those that were seen (not the short-lived),
    /// by the container (where it can be read).
    fn cpu(&mut self, alive: u64) -> f64 {
        let now = self.looks;
        let mut gone = 0;
        self.known.retain(|_, known| {
            let here = known.seen == now;
            gone += if here { 0 } else { known.ticks };
            here
        });
        self.gone += gone;
        let seen = self.gone + self.known.values().map(|k| k.ticks).sum::<u64>();
        let reaped = stat_of(self.glue).map(|s| reaped(&s)).zip(self.reaped_before);
        let waited = alive + reaped.map_or(0, |(now, before)| now.saturating_sub(before));
        let counted = self.group.as_ref().and_then(Group::cpu_s).unwrap_or(0.0);
        (seen.max(waited) as f64 / self.ticks_per_second).max(counted)
    }

    fn ask_for_details(&mut self, rss: u64) {
        let began = Instant::now();
        let pids = self.pids.get(..self.pids.len().min(DETAIL_MAX)).unwrap_or_default();
        match helper::details(self.ids, pids) {
            Ok(details) => self.detail = Some((details, rss)),
            Err(e) => {
                // An earlier share would be believed for as long as the payload keeps the helper from its work.
                self.detail = None;
                tracing::debug!("details of the payload's processes: {e}");
            }
        }
        self.detail_at = Instant::now() + DETAIL_PERIOD.max(began.elapsed().mul_f64(1.0 / SHARE));
    }

    /// What was found when details were last asked for; the proportional set is taken to have grown with the resident
    /// one.
    fn add_details(&self, usage: &mut Usage) {
        let Some((details, rss_then)) = self.detail else { return };
        let grown = if rss_then == 0 { 1.0 } else { usage.rss as f64 / rss_then as f64 };
        usage.pss = details.pss.map(|pss| ((pss as f64 * grown) as u64).min(usage.rss));
        (usage.files, usage.read_bytes, usage.written_bytes) =
            (details.files, details.read_bytes, details.written_bytes);
    }
}

fn reaped(stat: &Stat) -> u64 {
    u64::try_from(stat.cutime + stat.cstime).unwrap_or(0)
}

fn stat_of(pid: i32) -> Option<Stat> {
    Stat::from_read(File::open(format!("/proc/{pid}/stat")).ok()?).ok()
}
