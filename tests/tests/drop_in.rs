//! `latebind-singularity` as glideinWMS and people call it, in a pilot container: what runs, what is seen, and what is
//! held with which words. With HTCondor itself it is in `tests/condor`.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::{Command, Stdio};
use std::time::Duration;

use latebind_tests::pod::{DEBIAN, JOB_WITHIN, Options, Pod, eventually, host, podman, program};

/// Where clients connect to, in the pilot container.
const SOCKET: &str = "/run/latebind/clients.sock";
/// A job's directory.
const D: &str = "/shared/slot/0/data/execute/dir_1";

/// A pod with the drop-in, and a directory as HTCondor's starter makes one.
struct DropIn {
    pod: Pod,
    pilot: String,
    uid: u32,
}

/// What a call ended with, and said.
struct Called {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Called {
    #[track_caller]
    fn says(&self, wanted: &str) {
        let out = String::from_utf8_lossy(&self.out);
        assert_eq!((self.code, &*out), (Some(0), wanted), "{}", self.err);
    }
}

impl DropIn {
    fn start(arguments: &[&str]) -> Self {
        let all: Vec<&str> = ["--clients", SOCKET].iter().chain(arguments).copied().collect();
        let pod = Options::new().pilot(&all).start();
        pod.serves();
        let (pilot, uid) = (pod.container("pilot"), fs::metadata(pod.work(0)).unwrap().uid());
        let from = program("latebind-singularity");
        let copied = podman(&["cp", from.to_str().unwrap(), &format!("{pilot}:/singularity")]);
        assert!(copied.status.success(), "{copied:?}");
        let drop_in = Self { pod, pilot, uid };
        let execute = drop_in.pod.work(0).parent().unwrap().join("execute");
        for (path, owner) in [(execute.clone(), 0), (execute.join("dir_1"), uid)] {
            fs::create_dir(&path).unwrap();
            chown(&path, Some(owner), Some(owner)).unwrap();
        }
        assert_eq!(drop_in.shell(0, "/", "chmod 711 /singularity").code, Some(0));
        drop_in
    }

    fn command(&self, uid: u32, dir: &str, script: &str) -> Command {
        let ids = format!("{uid}:{uid}");
        let mut command = host(&["podman", "--", "exec", "--user", &ids, "--workdir", dir, &self.pilot]);
        command.args(["/bin/sh", "-c", &format!("S=/singularity I=docker://{DEBIAN} D={D}; {script}")]);
        command.stdin(Stdio::null());
        command
    }

    fn shell(&self, uid: u32, dir: &str, script: &str) -> Called {
        let ran = self.command(uid, dir, script).output().unwrap();
        let err = String::from_utf8_lossy(&ran.stderr).into_owned();
        Called { code: ran.status.code(), out: ran.stdout, err }
    }

    /// Runs `script` as a job's starter would call the drop-in.
    fn call(&self, script: &str) -> Called {
        self.shell(self.uid, D, script)
    }

    /// What a job is held for, of which the drop-in says so and waits.
    fn held_for(&self, script: &str) -> String {
        let mut held = self.command(self.uid, D, &format!("{script} 2>why; true")).spawn().unwrap();
        let why = self.pod.work(0).parent().unwrap().join("execute/dir_1/why");
        let said = eventually("a hold", JOB_WITHIN, || {
            fs::read_to_string(&why).ok().filter(|text| text.ends_with('\n') && !text.is_empty())
        });
        // Which it takes for the starter's wish to end it.
        let pids = self.shell(
            0,
            "/",
            "for p in /proc/[0-9]*; do case $(cat $p/comm) in singularity) echo ${p#/proc/};; esac; done",
        );
        for pid in String::from_utf8(pids.out).unwrap().lines() {
            self.shell(0, "/", &format!("kill -TERM {pid}"));
        }
        eventually("the end of the drop-in", Duration::from_secs(60), || held.try_wait().unwrap());
        fs::remove_file(&why).unwrap();
        said
    }
}

#[test]
fn glideinwms_gets_what_it_calls_for() {
    let drop_in = DropIn::start(&["--payload-has", "/etc/cron.d"]);
    let number = drop_in.call("$S version");
    assert!(number.out.starts_with(b"3.11.5-latebind-") && number.out.ends_with(b"\n"), "{}", number.err);
    assert!(drop_in.call("$S --version").out.starts_with(b"singularity version 3.11.5"));
    let home = "--home $PWD:/srv --pwd /srv --ipc --contain --pid";
    // In an image that has /srv, which is as it was for the next one.
    for _ in 0..2 {
        let binds = "--bind /etc/hosts,/etc/localtime,/etc/cron.d:/etc/cron.d:ro,/dev,/tmp";
        let job = drop_in.call(&format!(
            "echo x >in; $S -vvv -d exec {home} {binds} $I /bin/bash -c 'pwd; cat in; echo $HOME; ls -d /etc/cron.d'"
        ));
        job.says("/srv\nx\n/srv\n/etc/cron.d\n");
    }
    drop_in
        .call(&format!("$S exec {home} $I cat /proc/self/uid_map | tr -s ' ' , | head -n1"))
        .says(",0,0,4294967295\n");
    drop_in
        .call(&format!("cd /tmp; $S exec {home} $I cat /proc/self/uid_map | tr -s ' ' , | head -n1"))
        .says(",0,0,4294967295\n");
    let why = drop_in.held_for(&format!("$S exec {home} --bind /cvmfs $I pwd"));
    assert!(why.contains("/cvmfs cannot be bound") && why.contains("--payload-has"), "{why}");
    let why = drop_in.held_for(&format!("$S exec {home} --bind $PWD:/usr $I pwd"));
    assert!(why.contains("/usr cannot be made"), "{why}");
    let why = drop_in.held_for(&format!("_CONDOR_SCRATCH_DIR=$PWD $S exec {home} --overlay x $I pwd"));
    assert!(why.contains("--overlay cannot be served: an overlay cannot be mounted"), "{why}");
}

#[test]
fn what_is_not_text_reaches_the_job_and_what_is_not_passed_on_is_not_looked_at() {
    let drop_in = DropIn::start(&[]);
    let latin = r#"L="$(printf 'caf\351')";"#;
    let job = "$I /bin/bash -c 'printf %s \"$1$LATIN$MEANT\"' x";
    let call = drop_in.call(&format!("{latin} LATIN=$L SINGULARITYENV_MEANT=$L $S exec --pwd $PWD {job} \"$L\""));
    assert_eq!((call.code, &*call.out), (Some(0), &b"caf\xe9caf\xe9caf\xe9"[..]), "{}", call.err);
    let call = drop_in.call(&format!("{latin} LATIN=$L $S exec --cleanenv --env MEANT=$L --pwd $PWD {job} b"));
    assert_eq!((call.code, &*call.out), (Some(0), &b"bcaf\xe9"[..]), "{}", call.err);
    drop_in
        .call("$S exec --pwd $PWD --env A=a,b --env '\"B=c,d\",C=e' $I /bin/bash -c 'echo \"[$A][$B][$C]\"'")
        .says("[a,b][c,d][e]\n");
}

#[test]
fn the_payload_has_a_name_and_a_home_that_it_can_write_to() {
    let drop_in = DropIn::start(&[]);
    // No account of the pilot container has this UID.
    let script = "whoami; echo $USER; perl -e 'print((getpwuid($<))[7], \"\\n\")'; echo x >~/made; ls ~";
    drop_in
        .call(&format!("$S exec --home $PWD --pwd $PWD $I /bin/bash -c {}", quoted(script)))
        .says(&format!("payload\npayload\n{D}\nmade\n"));
    let account = format!("slot1_1:x:{0}:{0}::/:/bin/sh", drop_in.uid);
    assert_eq!(drop_in.shell(0, "/", &format!("echo {account} >>/etc/passwd")).code, Some(0));
    drop_in.call("$S exec --pwd $PWD $I /bin/bash -c 'whoami; echo $LOGNAME'").says("slot1_1\nslot1_1\n");
}

fn quoted(script: &str) -> String {
    format!("'{}'", script.replace('\'', r"'\''"))
}
