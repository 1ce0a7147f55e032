//! Pods that are there: which, and the removal of those that nobody runs any more.

use crate::arguments::RmArguments;
use crate::container::{POD_LABEL, ROLE_LABEL};
use crate::engine::{CALL_LIMIT, Engine};
use crate::failure::{Context, Failure, failure};
use crate::place::is_pod_name;
use crate::pod;
use std::collections::{BTreeMap, BTreeSet};

/// `latebind-host rm`.
pub fn remove(engine: &Engine, rm: &RmArguments) -> Result<(), Failure> {
    let known = known(engine)?;
    let chosen: Vec<&String> = if rm.all { known.iter().collect() } else { rm.names.iter().collect() };
    for name in chosen {
        if !is_pod_name(name) {
            return Err(failure(format!("{name:?} is no name of a pod; latebind-host ps lists them")));
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
pub fn list(engine: &Engine) -> Result<(), Failure> {
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

fn known(engine: &Engine) -> Result<BTreeSet<String>, Failure> {
    let mut names: BTreeSet<String> = engine.place().pod_names()?.into_iter().collect();
    names.extend(containers(engine)?.into_keys());
    Ok(names)
}

/// For each pod its containers with their states.
fn containers(engine: &Engine) -> Result<BTreeMap<String, Vec<String>>, Failure> {
    let filter = format!("--filter=label={POD_LABEL}");
    let doing = || "cannot list containers".to_owned();
    // No other label: an image may have as many of its own as it likes.
    let of = |label: &str| format!("{{{{index .Labels \"{label}\"}}}}");
    let format = format!("--format={} {} {{{{.ListContainer.State}}}}", of(POD_LABEL), of(ROLE_LABEL));
    let text = engine.call(&["ps", "--all", &filter, &format], CALL_LIMIT).context(doing)?;
    let mut pods = BTreeMap::<String, Vec<String>>::new();
    for line in text.lines() {
        if let Some((name, role)) = line.split_once(' ') {
            pods.entry(name.to_owned()).or_default().push(role.to_owned());
        }
    }
    for list in pods.values_mut() {
        list.sort();
    }
    Ok(pods)
}

fn say(text: &str) -> Result<(), Failure> {
    watcher::text::say(text).context(|| "cannot write".into())
}
