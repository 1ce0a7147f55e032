#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]
use super::*;

const D: &str = "/shared/slot/0/data/execute/dir_7";

fn read(line: &str) -> Result<Call, String> {
    parse(&line.replace('D', D).split(' ').map(ByteString::from).collect::<Vec<_>>())
}

fn writable(source: &str, target: &str) -> Bind {
    Bind { source: source.into(), target: target.into(), read_only: false }
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
    assert_eq!(read("version"), Ok(Call::Number));
    assert_eq!(read("-q version"), Ok(Call::Number));
    assert_eq!(read("exec -C /usr/libexec/condor/singularity_test_sandbox /exit_37"), Ok(Call::Probe(Probe::Sandbox)));
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
    let line = "-s exec -W D --pwd D -B D --home D --contain --ipc --cleanenv docker://alpine:3.20 D/job.sh a -s --pwd";
    let wanted = Job {
        image: "docker://alpine:3.20".into(),
        argv: vec![format!("{D}/job.sh").into(), "a".into(), "-s".into(), "--pwd".into()],
        runs_image: false,
        cwd: Some(D.into()),
        home: Some(D.into()),
        binds: vec![writable(D, D), writable(D, D)],
        clean_env: true,
        env: Vec::new(),
    };
    assert_eq!(job(line), wanted);
}

#[test]
fn the_starter_of_25_14() {
    let line = "-s exec -W D/scratch --pwd D/scratch -B D --home D/scratch --contain --ipc --cleanenv docker://x D/scratch/job.sh";
    let job = job(line);
    assert_eq!((job.cwd, job.home), (Some(format!("{D}/scratch").into()), Some(format!("{D}/scratch"))));
}

#[test]
fn default_settings_and_target_directory() {
    let read = job("-s exec -S /tmp -S /var/tmp -W D --pwd D -B D --home D -C docker://alpine:3.20 D/job.sh");
    assert!(read.clean_env && read.argv.len() == 1);
    let read = job("-s exec -W D --pwd /work -B D:/work --home D --contain --ipc --cleanenv docker://a /work//job.sh");
    assert_eq!(read.cwd, Some("/work".into()));
    assert_eq!(read.binds.first(), Some(&writable(D, "/work")));
    assert_eq!(read.argv, ["/work//job.sh"]);
    let read = job("-s exec -W D --pwd D -B D --home D --contain docker://a /bin/echo hi");
    assert_eq!(read.argv, ["/bin/echo", "hi"]);
}

#[test]
fn glideins_write_it_their_way() {
    let read = job("-q --bind D:/srv,/etc/hosts exec --home D:/srv --pwd=/srv --nv --env=A=b /cvmfs/x/y:1 /srv/job.sh");
    assert_eq!((read.home.as_deref(), read.cwd), (Some("/srv"), Some("/srv".into())));
    assert_eq!(read.binds.len(), 3);
    assert_eq!(read.binds.get(1), Some(&writable("/etc/hosts", "/etc/hosts")));
    assert_eq!(read.env, [("A".to_owned(), "b".into())]);
}

#[test]
fn run_leaves_the_program_to_the_image() {
    let run = job("-s run -W D docker://a");
    assert!(run.runs_image && run.argv.is_empty());
    let run = job("run docker://a b c");
    assert!(run.runs_image && run.argv.len() == 2);
    assert!(!job("exec docker://a b c").runs_image);
}

#[test]
fn what_cannot_be_served_says_so() {
    assert!(read("exec --overlay x docker://a b").is_err_and(|e| e.contains("--overlay")));
    for bad in ["", "exec", "exec docker://a", "exec -B", "shell docker://a", "-s", "exec --env A=1,=2 docker://a b"] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

/// Each way in which `singularity_lib.sh` of glideinWMS calls the program: what it means, or what is said.
#[test]
fn glideinwms_is_answered_in_each_of_its_calls() {
    // singularity_test_bin
    assert_eq!((read("--version"), read("version")), (Ok(Call::Version), Ok(Call::Number)));
    // singularity_exec: by the wrapper for a job, and by singularity_test_exec with -vvv -d where it debugs.
    let options = "--home D:/srv --pwd /srv --ipc --contain --pid --bind";
    let binds = "/cvmfs,/etc/hosts,/etc/localtime";
    let wrapper =
        job(&format!("exec {options} {binds} /cvmfs/x/y:1 /srv/.gwms-user-job-wrapper.sh /srv/condor_exec.exe a"));
    let seen: Vec<_> = wrapper.binds.iter().map(|bind| (bind.source.as_str(), bind.target.as_str())).collect();
    let own = [(D, "/srv"), ("/cvmfs", "/cvmfs"), ("/etc/hosts", "/etc/hosts"), ("/etc/localtime", "/etc/localtime")];
    assert_eq!(seen, own);
    assert_eq!((wrapper.home.as_deref(), wrapper.cwd.clone()), (Some("/srv"), Some("/srv".into())));
    assert_eq!(wrapper.argv.len(), 3);
    for global in ["-vvv -d", "-v", "-s", "-q", "--debug --verbose"] {
        let validation = job(&format!("{global} exec {options} {binds} /cvmfs/x/y:1 cat /proc/self/uid_map"));
        assert!(validation.asks_for_uid_map() && validation.binds == wrapper.binds, "{global}");
    }
    // GLIDEIN_CONTAINER_ENV, GPUs, GLIDEIN_SINGULARITY_OPTS
    assert!(job("exec --ipc --contain --cleanenv --pid --home D:/srv --pwd /srv docker://x a").clean_env);
    assert!(!wrapper.clean_env);
    job("exec --home D:/srv --pwd /srv --ipc --contain --nv --pid --bind /etc/OpenCL/vendors docker://x a");
    job("exec --home D:/srv --pwd /srv --ipc --contain --userns --no-privs --pid docker://x a");
    // GLIDEIN_SINGULARITY_BINDPATH with each of its forms, and empty items.
    let bound = job("exec --home D:/srv --pwd /srv --bind /a:/b:ro,,/c:/d:rw,/e, docker://x a").binds;
    let read_only = Bind { read_only: true, ..writable("/a", "/b") };
    assert_eq!(bound.get(1..), Some(&[read_only, writable("/c", "/d"), writable("/e", "/e")][..]));
    // In the directory of the glidein, for its setup scripts.
    assert_eq!(job("exec --home D:/srv --pwd /srv --bind /glidein:/srv/.gwms_base docker://x a").binds.len(), 2);
}

#[test]
fn a_variable_of_an_option_is_what_apptainer_makes_of_it() {
    let of = |value: &[u8]| {
        let words = [&b"exec"[..], b"--pwd", b"/w", b"--env", value, b"docker://x", b"a"];
        match parse(&words.map(ByteString::from)) {
            Ok(Call::Job(job)) => Ok(job.env),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        }
    };
    let set =
        |pairs: &[(&str, &str)]| Ok(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect());
    for (value, wanted) in [
        ("A=a", vec![("A", "a")]),
        ("A=", vec![("A", "")]),
        ("A=a,b", vec![("A", "a,b")]),
        ("\"A=a,b\"", vec![("A", "a,b")]),
        ("A=\"", vec![("A", "")]),
        ("\"A=a,b\",B=2", vec![("A", "a,b"), ("B", "2")]),
        ("A=a,B=b", vec![("A", "a"), ("B", "b")]),
        ("A=b=c", vec![("A", "b=c")]),
        ("\"A=say \"\"x\"\"\",B=", vec![("A", "say \"x\""), ("B", "")]),
        ("A=a b\n", vec![("A", "a b\n")]),
    ] {
        assert_eq!(of(value.as_bytes()), set(&wanted), "{value}");
    }
    for bad in ["", "A", "A,B", "A=a,b,B=2", "=a", "A=1,=2", "A=1,B=\"x", "\"A=1,B=2", "A=1,B=2\"", "\"A=1\"x,B=2", ","]
    {
        assert!(of(bad.as_bytes()).is_err_and(|why| why.contains("--env")), "{bad}");
    }
    assert_eq!(of(b"A=caf\xe9"), Ok(vec![("A".into(), b"caf\xe9".into())]));
    assert!(of(b"caf\xe9=A").is_err());
}

#[test]
fn letters_stand_together_as_pflag_has_it() {
    assert!(job("-sq exec -Cip --pwd /w docker://x a").clean_env);
    assert_eq!(job("exec -eB/a:/b --pwd /w docker://x a").binds, [writable("/a", "/b")]);
    assert_eq!(job("exec -B=/a --pwd /w docker://x a").binds, [writable("/a", "/a")]);
    assert!(job("exec --cleanenv=true --pwd=/w docker://x a").clean_env);
    for bad in ["exec -sZ docker://x a", "exec - docker://x a", "exec --cleanenv=false docker://x a", "exec -B"] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn arguments_and_directories_are_bytes() {
    let words = [&b"exec"[..], b"--pwd", b"/caf\xe9", b"docker://x", b"/bin/\xe9", b"\xff"].map(ByteString::from);
    let Ok(Call::Job(job)) = parse(&words) else { panic!("not a job") };
    assert_eq!((job.cwd, job.argv), (Some(b"/caf\xe9".into()), vec![b"/bin/\xe9".into(), b"\xff".into()]));
    for (n, bad) in [(1, &b"--\xff"[..]), (1, b"-\xff"), (3, b"docker://\xff")] {
        let mut words = words.to_vec();
        words[n] = bad.into();
        assert!(parse(&words).is_err(), "{bad:?}");
    }
}

#[test]
fn each_option_is_in_the_document() {
    let document = include_str!("../../../docs/htcondor.md");
    let options = super::super::known_options::REFUSED.iter().map(|(name, _)| *name);
    let all = options.chain(super::super::known_options::FLAGS).chain(super::super::known_options::VALUED);
    for name in all.filter(|name| name.starts_with("--")) {
        assert!(document.contains(&format!("`{name}`")), "docs/htcondor.md does not have {name}");
    }
    for (name, instead) in super::super::known_options::REFUSED {
        let value = if name.starts_with("--") { format!("{name}=x") } else { name.to_owned() };
        assert!(read(&format!("exec {value} docker://x a")).is_err_and(|why| why.contains(instead)), "{name}");
    }
}
