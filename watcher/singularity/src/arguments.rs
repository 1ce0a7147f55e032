//! The command line, as condor_starter (23.9, 25.14) and glideinWMS write it for singularity and apptainer.

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `--version`.
    Version,
    /// HTCondor tries out what the program can: `exec -C SANDBOX /exit_37`, `exec -C X.sif /exit_37`, `exec -C SANDBOX
    /// /get_user_ns`.
    Probe(Probe),
    /// `test`: whether a job could be run, asked while the starter does nothing else.
    Test,
    /// A job.
    Job(Box<Job>),
    /// `startd-cron`: not singularity's; what the startd has to know of held jobs.
    StartdCron,
}

/// What HTCondor tries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Ends with 37.
    Sandbox,
    /// Fails: images in files are not served.
    ImageFile,
    /// Prints the inode of the user namespace, ends with 37.
    UserNamespace,
}

/// A job, as far as the command line says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// The image as it was written.
    pub image: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `--pwd`.
    pub cwd: Option<String>,
    /// `--home`, as the job sees it.
    pub home: Option<String>,
    /// `-B` and `--home SRC:DST`: what is to be seen, and where.
    pub binds: Vec<(String, String)>,
    /// Whether the caller's own environment is left out.
    pub clean_env: bool,
    /// `--env NAME=VALUE`.
    pub env: Vec<(String, String)>,
}

/// Options with a value.
const VALUED: [&str; 14] = [
    "-B",
    "--bind",
    "-W",
    "--workdir",
    "-S",
    "--scratch",
    "--pwd",
    "--cwd",
    "-H",
    "--home",
    "--env",
    "--no-mount",
    "--hostname",
    "--network",
];

/// Options that say what is so in any case, or what a container of its own has no use for. GPUs are the pod's matter.
const FLAGS: [&str; 25] = [
    "-s",
    "--silent",
    "-q",
    "--quiet",
    "-d",
    "--debug",
    "-C",
    "--contain",
    "-c",
    "--containall",
    "-i",
    "--ipc",
    "-p",
    "--pid",
    "-u",
    "--userns",
    "-e",
    "--cleanenv",
    "--nv",
    "--rocm",
    "--no-home",
    "--no-privs",
    "--no-init",
    "--disable-cache",
    "--nocolor",
];

/// Reads a command line without the program's own name.
pub fn parse(words: &[String]) -> Result<Call, String> {
    let mut words = words.iter().map(String::as_str);
    let mut job = Job::default();
    let verb = loop {
        match words.next() {
            None => return Err("which verb? exec, run, test or --version".into()),
            Some("--version" | "version") => return Ok(Call::Version),
            Some("startd-cron") => return Ok(Call::StartdCron),
            Some(verb @ ("exec" | "run" | "test")) => break verb,
            Some(option) if option.starts_with('-') => take_option(option, &mut words, &mut job)?,
            Some(other) => return Err(format!("{other:?}: no such verb; exec, run, test or --version")),
        }
    };
    let image = loop {
        match words.next() {
            None => return Err(format!("{verb}: no image is given")),
            Some(option) if option.starts_with('-') => take_option(option, &mut words, &mut job)?,
            Some(image) => break image,
        }
    };
    job.image = image.to_owned();
    job.argv = words.map(str::to_owned).collect();
    // A job has a working directory.
    let is_probe = job.cwd.is_none();
    match (verb, job.argv.first().map(String::as_str)) {
        ("test", _) => Ok(Call::Test),
        ("run", _) => Err(format!(
            "an executable has to be given: what {image} would run by itself (its ENTRYPOINT) is not known here"
        )),
        (_, None) => Err("exec: no program is given".into()),
        (_, Some("/exit_37")) if is_probe && image.ends_with(".sif") => Ok(Call::Probe(Probe::ImageFile)),
        (_, Some("/exit_37")) if is_probe => Ok(Call::Probe(Probe::Sandbox)),
        (_, Some("/get_user_ns")) if is_probe => Ok(Call::Probe(Probe::UserNamespace)),
        (_, Some(_)) => Ok(Call::Job(Box::new(job))),
    }
}

fn take_option<'a>(option: &'a str, words: &mut impl Iterator<Item = &'a str>, job: &mut Job) -> Result<(), String> {
    // Long options may have their value after an equals sign.
    let (name, joined) = match option.split_once('=') {
        Some((name, value)) if name.starts_with("--") => (name, Some(value)),
        _ => (option, None),
    };
    if FLAGS.contains(&name) && joined.is_none() {
        job.clean_env |= matches!(name, "-e" | "--cleanenv" | "-c" | "--containall");
        return Ok(());
    }
    if !VALUED.contains(&name) {
        return Err(format!("the option {option:?} cannot be served"));
    }
    let value = joined.or_else(|| words.next()).ok_or_else(|| format!("{name}: its value is missing"))?;
    match name {
        "-B" | "--bind" => job.binds.extend(value.split(',').filter(|b| !b.is_empty()).map(bind)),
        "--pwd" | "--cwd" => job.cwd = Some(value.to_owned()),
        "-H" | "--home" => {
            let (source, target) = bind(value);
            job.home = Some(target.clone());
            job.binds.push((source, target));
        }
        "--env" => {
            for (name, value) in value.split(',').filter_map(|pair| pair.split_once('=')) {
                if name.is_empty() {
                    return Err(format!("--env: a variable of the value {value:?} has no name"));
                }
                job.env.push((name.to_owned(), value.to_owned()));
            }
        }
        // Scratch directories, host name and network are the container's own.
        _ => {}
    }
    Ok(())
}

/// `SRC[:DST[:OPTIONS]]`.
fn bind(text: &str) -> (String, String) {
    let mut parts = text.split(':');
    let source = parts.next().unwrap_or_default();
    (source.to_owned(), parts.next().filter(|t| !t.is_empty()).unwrap_or(source).to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]
    use super::*;

    const D: &str = "/shared/slot/0/data/execute/dir_7";

    fn read(line: &str) -> Result<Call, String> {
        parse(&line.replace('D', D).split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    fn job(line: &str) -> Job {
        match read(line) {
            Ok(Call::Job(job)) => *job,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn detection_is_answered_here() {
        assert_eq!(read("--version"), Ok(Call::Version));
        assert_eq!(
            read("exec -C /usr/libexec/condor/singularity_test_sandbox /exit_37"),
            Ok(Call::Probe(Probe::Sandbox))
        );
        assert_eq!(read("exec -C /usr/libexec/condor/exit_37.sif /exit_37"), Ok(Call::Probe(Probe::ImageFile)));
        assert_eq!(job("exec --pwd D docker://a /exit_37").argv, ["/exit_37"]);
        assert_eq!(read("exec -C /sandbox /get_user_ns"), Ok(Call::Probe(Probe::UserNamespace)));
        assert_eq!(
            read("-s -q test -S /tmp -S /var/tmp -W D --pwd D -B D --home D -C docker://a D/job.sh"),
            Ok(Call::Test)
        );
    }

    #[test]
    fn the_starter_of_23_9() {
        let line =
            "-s exec -W D --pwd D -B D --home D --contain --ipc --cleanenv docker://alpine:3.20 D/job.sh a -s --pwd";
        let wanted = Job {
            image: "docker://alpine:3.20".into(),
            argv: vec![format!("{D}/job.sh"), "a".into(), "-s".into(), "--pwd".into()],
            cwd: Some(D.into()),
            home: Some(D.into()),
            binds: vec![(D.into(), D.into()), (D.into(), D.into())],
            clean_env: true,
            env: Vec::new(),
        };
        assert_eq!(job(line), wanted);
    }

    #[test]
    fn the_starter_of_25_14() {
        let line = "-s exec -W D/scratch --pwd D/scratch -B D --home D/scratch --contain --ipc --cleanenv docker://x D/scratch/job.sh";
        let job = job(line);
        assert_eq!((job.cwd, job.home), (Some(format!("{D}/scratch")), Some(format!("{D}/scratch"))));
    }

    #[test]
    fn default_settings_and_target_directory() {
        let read = job("-s exec -S /tmp -S /var/tmp -W D --pwd D -B D --home D -C docker://alpine:3.20 D/job.sh");
        assert!(!read.clean_env && read.argv.len() == 1);
        let read =
            job("-s exec -W D --pwd /work -B D:/work --home D --contain --ipc --cleanenv docker://a /work//job.sh");
        assert_eq!(read.cwd.as_deref(), Some("/work"));
        assert_eq!(read.binds.first(), Some(&(D.to_owned(), "/work".to_owned())));
        assert_eq!(read.argv, ["/work//job.sh"]);
        let read = job("-s exec -W D --pwd D -B D --home D --contain docker://a /bin/echo hi");
        assert_eq!(read.argv, ["/bin/echo", "hi"]);
    }

    #[test]
    fn glideins_write_it_their_way() {
        let read =
            job("-q --bind D:/srv,/etc/hosts exec --home D:/srv --pwd=/srv --nv --env=A=b /cvmfs/x/y:1 /srv/job.sh");
        assert_eq!((read.home.as_deref(), read.cwd.as_deref()), (Some("/srv"), Some("/srv")));
        assert_eq!(read.binds.len(), 3);
        assert_eq!(read.binds.get(1), Some(&("/etc/hosts".to_owned(), "/etc/hosts".to_owned())));
        assert_eq!(read.env, [("A".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn what_can_not_be_served_says_so() {
        assert!(read("-s run -W D docker://a").is_err_and(|e| e.contains("ENTRYPOINT")));
        assert!(read("exec --overlay x docker://a b").is_err_and(|e| e.contains("--overlay")));
        for bad in
            ["", "exec", "exec docker://a", "exec -B", "shell docker://a", "-s", "exec --env A=1,=2 docker://a b"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
