//! The job's environment: what the caller meant for it, by singularity's rules.

use std::collections::BTreeMap;

use super::arguments::Job;

/// Variables with these prefixes are the job's, without them.
const FOR_THE_JOB: [&str; 2] = ["SINGULARITYENV_", "APPTAINERENV_"];

/// What of the caller's own environment is never the job's: it says how the pilot's files and programs are found, or
/// speaks to singularity.
const NEVER: [&str; 6] = ["PATH", "HOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "PWD", "SHLVL"];
const NEVER_PREFIXED: [&str; 4] = ["SINGULARITY", "APPTAINER", "LATEBIND_", "_latebind"];

/// The variables for the job. Whatever else it has (PATH) is the image's.
pub fn of_job(job: &Job, own: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let (mut env, mut meant) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in own {
        if let Some(name) = FOR_THE_JOB.iter().find_map(|prefix| name.strip_prefix(prefix)) {
            if !name.is_empty() {
                meant.insert(name.to_owned(), value);
            }
        } else if !job.clean_env
            && !NEVER.contains(&name.as_str())
            && !NEVER_PREFIXED.iter().any(|prefix| name.starts_with(prefix))
        {
            env.insert(name, value);
        }
    }
    env.extend(meant);
    env.extend(job.env.iter().cloned());
    if let Some(home) = &job.home {
        env.insert("HOME".into(), home.clone());
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(job: &Job) -> Vec<String> {
        let own = [
            ("A", "plain"),
            ("SINGULARITYENV_A", "x y"),
            ("APPTAINERENV_B", "b"),
            ("SINGULARITYENV_PATH", "/their/bin"),
            ("SINGULARITYENV_", "nameless"),
            ("PATH", "/pilot/bin"),
            ("LD_PRELOAD", "/evil.so"),
            ("SINGULARITY_BIND", "/x"),
            ("C", "plain"),
        ];
        let own = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        of_job(job, own).iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn a_clean_environment_has_what_was_meant_for_it() {
        let job = Job { clean_env: true, home: Some("/work".into()), ..Job::default() };
        assert_eq!(of(&job), ["A=x y", "B=b", "HOME=/work", "PATH=/their/bin"]);
    }

    #[test]
    fn else_the_callers_own_comes_along_but_for_its_ways() {
        let job = Job { env: vec![("B".into(), "option".into())], ..Job::default() };
        assert_eq!(of(&job), ["A=x y", "B=option", "C=plain", "PATH=/their/bin"]);
    }
}
