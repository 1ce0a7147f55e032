//! `latebind-host run`: the pilot of a small pod that runs one command, and what of this host it is shown.

use crate::arguments::RunArguments;
use crate::caller;
use crate::container::Mount;
use crate::failure::{Context, Failure, failure};
use crate::place::directory;
use latebind_contract::encoding::base64url;
use latebind_contract::startup::EnvFormat;
use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use watcher::docker_options;

/// Where the pilot container has the files that become the command's input.
const INPUT: &str = "/input";
/// Where it has the environment files.
const ENV_FILES: &str = "/input-env";
/// Where it puts record, report and outputs.
const RESULTS: &str = "/results";

/// What the watcher is told, and the files that this needs.
#[derive(Debug)]
pub struct OneCommand {
    /// The command's image, as its user wrote it.
    pub image: String,
    /// Arguments of the watcher.
    pub arguments: Vec<String>,
    /// To be mounted in the pilot container.
    pub mounts: Vec<Mount>,
}

/// Translates our options into those of `watcher run`.
pub fn translate(run: &RunArguments) -> Result<OneCommand, Failure> {
    let mut arguments = vec!["run".to_owned()];
    let mut mounts = Vec::new();
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    for (name, value) in variables(&run.env)? {
        match std::str::from_utf8(&value) {
            Ok(value) => option("--env", format!("{name}={value}")),
            // Engines take arguments of text alone.
            Err(_) => option("--env-base64", format!("{name}={}", base64url(&value))),
        }
    }
    for (n, file) in run.env_file.iter().enumerate() {
        let given = file.as_os_str().as_bytes();
        let (_, path) = EnvFormat::of_prefix(given);
        let format = String::from_utf8_lossy(given.strip_suffix(path).unwrap_or_default());
        let path = Path::new(OsStr::from_bytes(path));
        // A message names the file as its user does.
        let name = path.file_name().and_then(OsStr::to_str).filter(|name| !name.contains([':', ','])).unwrap_or("file");
        let target = format!("{ENV_FILES}/{n}/{name}");
        mounts.push(Mount::read_only(existing(path)?, &target));
        option("--env-file", format!("{format}{target}"));
    }
    let mut names = HashSet::new();
    for file in &run.input {
        let source = existing(file)?;
        // The name that the user wrote, not that of what a link points to.
        let name = file.file_name().or(source.file_name()).and_then(|n| n.to_str());
        let name = name.ok_or_else(|| failure(format!("the input {} has no UTF-8 name", file.display())))?;
        if !names.insert(name.to_owned()) {
            return Err(failure(format!("two inputs have the name {name}, and both would lie in the same directory")));
        }
        let target = format!("{INPUT}/{name}");
        mounts.push(Mount::read_only(source, target));
    }
    if !run.input.is_empty() {
        option("--inputs", INPUT.to_owned());
    }
    if let Some(results) = &run.results {
        directory(results, caller::directory_mode())?;
        mounts.push(Mount::writable(existing(results)?, RESULTS));
        option("--results", RESULTS.to_owned());
    }
    for path in &run.output {
        option("--output", path.clone());
    }
    if let Some(directory) = &run.workdir {
        let shown = directory.display();
        option("--workdir", text(directory).ok_or_else(|| failure(format!("--workdir {shown} is not UTF-8")))?);
    }
    for limit in &run.ulimit {
        option("--ulimit", limit.clone());
    }
    if let Some(seconds) = &run.stop_timeout {
        option("--grace", seconds.clone());
    }
    if let Some(seconds) = &run.timeout {
        option("--timeout", seconds.clone());
    }
    let flags = run.exec.then_some("--exec").into_iter().chain(run.program.args.then_some("--args"));
    arguments.extend(run.streams.options().chain(flags).map(str::to_owned));
    if let Some(program) = &run.program.entrypoint {
        let program = text(program).ok_or_else(|| failure("--entrypoint: the program's name has to be UTF-8"))?;
        arguments.push(format!("--entrypoint={program}"));
    }
    arguments.extend(run.watcher_arg.iter().cloned());
    let (image, command) = docker_options::image_and_command(&run.words).map_err(failure)?;
    let words: Option<Vec<String>> = command.iter().map(text).collect();
    if words.is_none() {
        arguments.push("--argv-base64".into());
    }
    arguments.extend([image.clone(), "--".into()]);
    let encoded = || command.iter().map(|word| base64url(word.as_bytes())).collect();
    arguments.extend(words.unwrap_or_else(encoded));
    Ok(OneCommand { image, arguments, mounts })
}

fn text(word: &OsString) -> Option<String> {
    word.to_str().map(str::to_owned)
}

/// Each variable that was given, the last value of a name. As docker does, a bare name that is not set here is not set
/// there.
pub fn variables(given: &[OsString]) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    let mut all = BTreeMap::new();
    for assignment in given {
        let (name, value) = docker_options::variable(assignment).map_err(failure)?;
        if let Some(value) = value {
            all.insert(name, value);
        }
    }
    Ok(all)
}

fn existing(file: &Path) -> Result<PathBuf, Failure> {
    fs::canonicalize(file).context(|| format!("cannot use {}", file.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]
    use super::*;
    use crate::arguments::{Arguments, Verb};
    use clap::Parser;

    fn translated(line: &[&str]) -> Result<OneCommand, Failure> {
        let line = ["latebind-host", "run"].iter().chain(line);
        let Verb::Run(run) = Arguments::try_parse_from(line).unwrap().verb else { panic!("not run") };
        translate(&run)
    }

    #[test]
    fn options_become_the_watchers() {
        let one =
            translated(&["-i", "-e", "A=b=c", "--timeout", "5", "-w", "/x", "localhost/a:1", "--", "ls", "--all"]);
        let wanted = "run --env A=b=c --workdir /x --timeout 5 --interactive localhost/a:1 -- ls --all";
        assert_eq!(one.unwrap().arguments.join(" "), wanted);
    }

    #[test]
    fn options_end_at_the_image_and_two_dashes_may_follow_it() {
        for line in [&["localhost/a:1", "ls", "-e", "x", "--"][..], &["localhost/a:1", "--", "ls", "-e", "x", "--"]] {
            let one = translated(&[&["--rm", "-m", "1g"], line].concat()).unwrap();
            assert_eq!(
                (one.image.as_str(), one.arguments.join(" ").as_str()),
                ("localhost/a:1", "run localhost/a:1 -- ls -e x --")
            );
        }
    }

    #[test]
    fn the_last_value_of_a_name_counts() {
        let one = translated(&["-e", "A=1", "-e", "B=2", "-e", "A=3", "-e", "NOT_SET_HERE", "localhost/a:1", "ls"]);
        assert_eq!(one.unwrap().arguments.join(" "), "run --env A=3 --env B=2 localhost/a:1 -- ls");
    }

    #[test]
    fn what_the_image_runs_is_the_watchers_to_find() {
        let of = |line: &[&str]| translated(line).unwrap().arguments.join(" ");
        assert_eq!(of(&["localhost/a:1"]), "run localhost/a:1 --");
        assert_eq!(of(&["localhost/a:1", "--"]), "run localhost/a:1 --");
        assert_eq!(of(&["--args", "localhost/a:1", "--", "-v"]), "run --args localhost/a:1 -- -v");
        assert_eq!(of(&["--entrypoint", "/e", "localhost/a:1"]), "run --entrypoint=/e localhost/a:1 --");
        assert_eq!(of(&["--entrypoint", "", "localhost/a:1", "--", "a"]), "run --entrypoint= localhost/a:1 -- a");
    }

    #[test]
    fn results_come_back() {
        let one = translated(&["--results", "/tmp", "--output", "a", "--output", "b/c", "localhost/a:1", "--", "ls"])
            .unwrap();
        assert!(one.arguments.join(" ").contains("--results /results --output a --output b/c "));
        assert_eq!(one.mounts, [Mount::writable("/tmp", "/results")]);
    }

    #[test]
    fn files_are_mounted_for_the_pilot() {
        let one =
            translated(&["--input", "/etc/passwd", "--env-file", "/etc/group", "localhost/a:1", "--", "ls"]).unwrap();
        assert_eq!(
            one.mounts,
            [Mount::read_only("/etc/group", "/input-env/0/group"), Mount::read_only("/etc/passwd", "/input/passwd")]
        );
        assert!(one.arguments.join(" ").contains("--env-file /input-env/0/group --inputs /input "));
        let docker = translated(&["--env-file", "docker:/etc/group", "localhost/a:1", "--", "ls"]).unwrap();
        assert!(docker.arguments.join(" ").contains("--env-file docker:/input-env/0/group "));
        assert!(translated(&["--input", "/does/not/exist", "localhost/a:1", "--", "ls"]).is_err());
        assert!(
            translated(&["--input", "/etc/passwd", "--input", "/etc/passwd", "localhost/a:1", "--", "ls"]).is_err()
        );
    }
}
