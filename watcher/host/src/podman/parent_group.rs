//! A control group that containers get theirs below, where this program has no right to make any elsewhere: in a job of
//! a batch system, whose limits hold for all that is in the job's group.

use crate::failure::{Context, Failure, failure};
use latebind_linux::cgroup::path_of;
use std::fs;
use std::path::{Component, Path};
use watcher::bind::host::ContainerLimits;

/// Where control groups are.
const TOP: &str = "/sys/fs/cgroup";
/// Of Slurm's cgroup/v2 plugin: the group that all jobs of a node are in.
const OF_SLURM: &str = "slurmstepd.scope";

/// The group.
#[derive(Debug)]
pub struct ParentGroup {
    /// As `/proc/<pid>/cgroup` has it.
    path: String,
    controllers: Vec<String>,
}

impl ParentGroup {
    /// The group that the user has named, if any. In a job of Slurm's there has to be one: elsewhere the containers
    /// would be outside of the job's limits, and outlive it.
    pub fn open(path: Option<&str>, own_groups: &str) -> Result<Option<Self>, Failure> {
        let Some(path) = path else { return demand_none_needed(own_groups).map(|()| None) };
        let normal = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.starts_with('/') || path == "/" || !Path::new(path).components().all(normal) {
            return Err(failure(format!(
                "{path:?} is not the path of a control group: it begins with / and is below {TOP}"
            )));
        }
        let group = Path::new(TOP).join(path.trim_start_matches('/'));
        let unusable = || {
            format!("cannot use the control group {} (it has to be a group of version 2, and yours)", group.display())
        };
        nix::unistd::access(&group.join("cgroup.procs"), nix::unistd::AccessFlags::W_OK).context(unusable)?;
        let controllers = fs::read_to_string(group.join("cgroup.controllers")).context(unusable)?;
        let controllers: Vec<String> = controllers.split_whitespace().map(str::to_owned).collect();
        for (controller, limit) in [("memory", "--memory"), ("cpu", "--cpus"), ("pids", "--pids")] {
            if !controllers.iter().any(|known| known == controller) {
                tracing::warn!("no {limit} for containers: {} has no controller {controller}", group.display());
            }
        }
        Ok(Some(Self { path: path.to_owned(), controllers }))
    }

    /// As `/proc/<pid>/cgroup` has it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Those limits that can be had there.
    pub fn narrowed(&self, limits: &ContainerLimits) -> ContainerLimits {
        let has = |controller: &str| self.controllers.iter().any(|known| known == controller);
        ContainerLimits {
            memory: limits.memory.filter(|_| has("memory")),
            cpus: limits.cpus.filter(|_| has("cpu")),
            pids: limits.pids.filter(|_| has("pids")),
        }
    }
}

fn demand_none_needed(own_groups: &str) -> Result<(), Failure> {
    let group = path_of(own_groups, "").unwrap_or_default();
    if !group.split('/').any(|part| part.ends_with(OF_SLURM)) {
        return Ok(());
    }
    Err(failure(format!(
        "this is a job of Slurm's ({group}): its limits would not hold for containers without a control group within \
         it. Say --cgroup-parent, or LATEBIND_CGROUP_PARENT=$(sudo -n latebind-delegate), which the node's root has to \
         install: docs/slurm.md"
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn a_slurm_job_without_a_group_for_containers_is_refused() {
        let of = |groups: &str| ParentGroup::open(None, groups).map(|group| group.is_some());
        let job = "0::/system.slice/n1_slurmstepd.scope/job_7/step_batch/user/task_0\n";
        assert!(of(job).is_err_and(|e| e.to_string().contains("latebind-delegate")));
        assert!(!of("0::/user.slice/user-1000.slice/session-3.scope\n").unwrap());
        assert!(!of("").unwrap());
    }

    #[test]
    fn what_is_no_group_is_refused() {
        for bad in ["", "/", "a/b", "/a/../b", "/no-such-group-as-this"] {
            assert!(ParentGroup::open(Some(bad), "").is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_without_a_controller_are_left_out() {
        let group = ParentGroup { path: "/x".into(), controllers: vec!["memory".into()] };
        let limits = ContainerLimits { memory: Some(1), cpus: Some(1.0), pids: Some(1) };
        assert_eq!(group.narrowed(&limits), ContainerLimits { memory: Some(1), cpus: None, pids: None });
    }
}
