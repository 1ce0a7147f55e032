//! Pods that are there: which, and the removal of those that nobody runs any more.

use crate::arguments::RmArguments;
use crate::engine::Engine;
use crate::failure::{Context, Failure, failure};
use crate::place::is_pod_name;
use crate::pod;
use std::collections::{BTreeMap, BTreeSet};

/// `latebind-host rm`.
pub fn remove(engine: &dyn Engine, rm: &RmArguments) -> Result<(), Failure> {
    let known = known(engine)?;
    let chosen: Vec<&String> = if rm.all { known.iter().collect() } else { rm.names.iter().collect() };
    for name in chosen {
        if !is_pod_name(name) {
            return Err(failure(format!("{name:?} is not a name of a pod; latebind-host ps lists them")));
        }
        if rm.all {
            let Some(_claim) = engine.place().claim(name)? else { continue };
            pod::remove_leftovers(engine, name)?;
        } else if known.contains(name) {
            let _claim = pod::claim(engine, name)?;
            pod::remove_leftovers(engine, name)?;
        } else {
            return Err(failure(format!("there is no pod {name}; latebind-host ps lists them")));
        }
        say(&format!("{name}\n"))?;
    }
    Ok(())
}

/// `latebind-host ps`.
pub fn list(engine: &dyn Engine) -> Result<(), Failure> {
    let containers = containers(engine)?;
    let mut table = format!("{:<24} {:<9} CONTAINERS\n", "POD", "STATE");
    for name in known(engine)? {
        // A pod that can be claimed is one that nobody runs.
        let state = if engine.place().claim(&name)?.is_some() { "left over" } else { "running" };
        let roles = containers.get(&name).map(|r| r.join(", ")).unwrap_or_default();
        table.push_str(&format!("{name:<24} {state:<9} {roles}\n"));
    }
    say(&table)
}

fn known(engine: &dyn Engine) -> Result<BTreeSet<String>, Failure> {
    let mut names: BTreeSet<String> = engine.place().pod_names()?.into_iter().collect();
    names.extend(containers(engine)?.into_keys());
    Ok(names)
}

/// For each pod its containers with their states.
fn containers(engine: &dyn Engine) -> Result<BTreeMap<String, Vec<String>>, Failure> {
    let mut pods = BTreeMap::<String, Vec<String>>::new();
    let mut all = engine.list()?;
    all.sort();
    all.into_iter().for_each(|(pod, role)| pods.entry(pod).or_default().push(role));
    Ok(pods)
}

fn say(text: &str) -> Result<(), Failure> {
    watcher::text::say(text).context(|| "cannot write".into())
}
