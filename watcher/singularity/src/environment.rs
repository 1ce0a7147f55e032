//! The job's environment: what the caller meant for it, by singularity's rules.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use latebind_contract::bytes::ByteString;

use super::arguments::Job;

/// Variables with these prefixes are the job's, without them.
const FOR_THE_JOB: [&str; 2] = ["SINGULARITYENV_", "APPTAINERENV_"];

/// What of the caller's own environment is never the job's: it says how the pilot's files and programs are found, or
/// speaks to singularity.
const NEVER: [&str; 6] = ["PATH", "HOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "PWD", "SHLVL"];
const NEVER_PREFIXED: [&str; 4] = ["SINGULARITY", "APPTAINER", "LATEBIND_", "_latebind"];

/// The variables for the job, and those that it cannot be given, since their names are not UTF-8. Whatever else it has
/// (PATH) is the image's.
pub fn of_job(
    job: &Job,
    own: impl Iterator<Item = (OsString, OsString)>,
) -> (BTreeMap<String, ByteString>, Vec<OsString>) {
    let (mut env, mut meant, mut left_out) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (name, value) in own {
        let value = ByteString::from(value.into_vec());
        let name = match name.into_string() {
            Ok(name) => name,
            Err(name) => {
                if !job.clean_env {
                    left_out.push(name);
                }
                continue;
            }
        };
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
        env.insert("HOME".into(), home.as_str().into());
    }
    // By these programs see where they are.
    for name in ["SINGULARITY_CONTAINER", "APPTAINER_CONTAINER"] {
        env.insert(name.into(), job.image.as_str().into());
    }
    (env, left_out)
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
        let own = own.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let (mut env, left_out) = of_job(job, own);
        assert!(left_out.is_empty());
        assert_eq!(env.remove("SINGULARITY_CONTAINER"), Some(job.image.as_str().into()));
        assert!(env.remove("APPTAINER_CONTAINER").is_some());
        env.iter().map(|(name, value)| format!("{name}={}", value.lossy())).collect()
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

    #[test]
    fn what_is_not_text_is_passed_on_and_a_name_that_is_not_is_left_out() {
        let os = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let own =
            || [(os(b"LATIN"), os(b"caf\xe9")), (os(b"caf\xe9"), os(b"x")), (os(b"SINGULARITYENV_M"), os(b"\xff"))];
        let (env, left_out) = of_job(&Job::default(), own().into_iter());
        assert_eq!((env.get("LATIN"), env.get("M")), (Some(&b"caf\xe9".into()), Some(&b"\xff".into())));
        assert_eq!(left_out, [os(b"caf\xe9")]);
        // What is not passed on is not looked at.
        let (env, left_out) = of_job(&Job { clean_env: true, ..Job::default() }, own().into_iter());
        assert!(!env.contains_key("LATIN") && env.contains_key("M") && left_out.is_empty());
    }
}
