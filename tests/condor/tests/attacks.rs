//! What a hostile payload tries on the pilot beside it.

use latebind_condor_tests::{Pool, status};

#[test]
fn the_drop_in_cannot_be_looked_into() {
    let pool = Pool::shared();
    let script = r#"own=$(cat /proc/self/cgroup)
for p in /proc/[0-9]*; do
    [ "$(cat $p/cgroup 2>/dev/null)" != "$own" ] || continue
    echo "seen $(cat $p/comm)"
    for d in root cwd fd map_files; do ls $p/$d/ >/dev/null 2>&1 && echo "OPEN $p/$d $(cat $p/comm)"; done
    for f in environ mem maps auxv; do head -c 1 $p/$f >/dev/null 2>&1 && echo "OPEN $p/$f $(cat $p/comm)"; done
    readlink $p/exe >/dev/null 2>&1 && echo "OPEN $p/exe $(cat $p/comm)"
    [ $p = /proc/1 ] || /probe trace ${p#/proc/} | sed "s|^|traced $(cat $p/comm) |"
done
ls -a /run/latebind /var/lib/latebind /pilot /opt/latebind 2>/dev/null | sed 's/^/OPEN /'
cd /shared/slot/0/data
for try in 'mv execute away' 'ln -s /etc execute/dir_1' 'mkdir execute/dir_evil' 'mv $HOME execute/dir_other' 'touch x' 'ls ../ctl' 'chmod 777 execute' 'rmdir execute' \
    'mv ${_CONDOR_SCRATCH_DIR%/scratch} execute/mine' 'ln -s /etc execute/link' 'touch execute/file' 'ls ../../1' 'touch ../x'; do
    eval $try 2>/dev/null && echo "OPEN $try"
done
echo end"#;
    let job = pool.shell(script, "");
    job.ends_with(0);
    let out = job.text("out");
    assert!(out.contains("seen singularity\n") && out.contains("seen watcher\n"), "{out}");
    assert!(out.ends_with("end\n"), "{out}");
    let traced: Vec<&str> = out.lines().filter(|line| line.starts_with("traced singularity ")).collect();
    assert!(!traced.is_empty(), "{out}");
    assert!(traced.iter().all(|line| line.matches("not permitted").count() == 3), "{traced:?}");
    assert!(!out.contains("worked"), "{out}");
    // `head` of an empty auxv or mem would be no secret; none may even be opened.
    let open: Vec<&str> = out.lines().filter(|line| line.starts_with("OPEN")).collect();
    assert!(open.is_empty(), "{open:#?}");
}

#[test]
fn localhost_is_no_way_in() {
    let pool = Pool::shared();
    // From where a payload is, too: the same network, any account, every method that needs no token.
    let pilot = r#"addr=$(condor_status -af MyAddress | head -n 1)
for methods in FS ANONYMOUS CLAIMTOBE PASSWORD IDTOKENS; do
    _CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS=$methods timeout 20 condor_ping -addr "$addr" -type STARTD -table \
        READ WRITE DAEMON ADMINISTRATOR CONFIG 2>&1
done; :"#;
    let said = pool.ask("pool", "alice", &["/bin/bash", "-c", pilot]);
    assert_eq!(said.matches("FAIL FAIL").count(), 25, "{said}");
    assert!(!said.contains("ALLOW"), "{said}");
    // The same question to who would answer: the tool works.
    let schedd = "condor_ping -addr \"$(condor_status -schedd -af MyAddress)\" -type SCHEDD -table READ WRITE";
    let said = pool.ask("pool", "alice", &["/bin/bash", "-c", schedd]);
    assert_eq!(said.matches("ALLOW alice@pool.test").count(), 2, "{said}");
}

#[test]
fn a_payload_gets_nothing_from_the_pilots_daemons() {
    let pool = Pool::shared();
    // With HTCondor's own tools, in the payload container: the daemons can be reached, and nothing can be asked of
    // them.
    let script = r#"addr=$(sed -n 's/^MyAddress = "\(.*\)"/\1/p' "$_CONDOR_MACHINE_AD")
port=${addr#<*:} port=${port%%[?>]*}
(exec 3<>"/dev/tcp/127.0.0.1/$port") && echo reached
printf '%s\n' "LOCAL_DIR = $PWD" "LOG = $PWD" 'ENABLE_IPV6 = False' 'NETWORK_INTERFACE = 127.0.0.1' 'NO_DNS = True' \
    'DEFAULT_DOMAIN_NAME = pool.test' >conf
export CONDOR_CONFIG=$PWD/conf
for methods in FS CLAIMTOBE ANONYMOUS IDTOKENS; do
    _CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS=$methods timeout 20 condor_ping -addr "$addr" -type STARTD -table \
        READ WRITE DAEMON ADMINISTRATOR CONFIG 2>&1
done
for tool in 'condor_off -fast' 'condor_vacate -fast' 'condor_drain'; do
    _CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS=FS,ANONYMOUS,CLAIMTOBE timeout 20 $tool -addr "$addr" >/dev/null 2>&1 && echo "OPEN $tool"
done
ls -a /pilot /run/latebind /etc/condor/tokens.d 2>/dev/null
echo end"#;
    let lines =
        "universe = container\ncontainer_image = docker://localhost/latebind/htcondor-pilot:1\nexecutable = job.sh\n";
    let job = pool.submit(lines, &[("job.sh", &format!("#!/bin/bash\n{script}\n"))]);
    job.ends_with(0);
    let out = job.text("out");
    assert!(out.starts_with("reached\n") && out.ends_with("\nend\n"), "{out}\n{}", job.text("err"));
    assert_eq!(out.matches("FAIL FAIL").count(), 20, "{out}");
    assert!(!out.contains("ALLOW") && !out.contains("OPEN"), "{out}");
    assert!(!out.contains("pod.conf") && !out.contains("clients.sock"), "{out}");
}

#[test]
fn no_program_of_a_user_runs_in_the_pilot_container() {
    let pool = Pool::shared();
    let files = [("own", "#!/bin/sh\n: >&2\n")];
    let common = "universe = container\ncontainer_image = docker://localhost/latebind/busybox:1\nexecutable = /bin/true\n\
                  transfer_executable = False\n";
    let jobs = [
        "+PreCmd = \"own\"\ntransfer_input_files = own",
        "+PostCmd = \"own\"\ntransfer_input_files = own",
        "+ToolDaemonCmd = \"own\"\ntransfer_input_files = own",
        "transfer_plugins = odd=own\ntransfer_input_files = odd://x",
    ]
    .map(|lines| pool.submit(&format!("{common}{lines}"), &files));
    // Jobs that were handed in later, and have run, show that these were looked at.
    for _ in 0..2 {
        pool.shell("echo served", "").ends_with(0);
    }
    for job in &jobs {
        let ad = job.ad();
        assert_eq!((&ad["JobStatus"], &ad["NumJobStarts"]), (&status::IDLE.into(), &0.into()), "{}", job.text("log"));
    }
    // The same job without it is one that runs: it is not idle for another reason.
    pool.submit(&format!("{common}transfer_input_files = own"), &files).ends_with(0);
    // Not even where it is added to a job that has begun to run, and begins again.
    let job = pool.shell("echo > begun; sleep 1000", "");
    job.sandbox_has(0, "begun");
    pool.ask("pool", "alice", &["condor_qedit", &job.id, "PreCmd", "\"/bin/true\""]);
    job.tool(&["condor_vacate_job", "-fast"]);
    pool.shell("echo served", "").ends_with(0);
    assert_eq!(job.ad()["NumJobStarts"], 1, "{}", job.text("log"));
}

#[test]
fn links_in_the_sandbox_lead_to_nothing_of_the_pilots() {
    let pool = Pool::shared();
    // HTCondor fetches outputs with the payload's UID, but in the pilot container.
    let targets = [
        "/pilot/pod.conf",
        "/pilot/log/StartLog",
        "/pilot/tokens/pool",
        "/proc/self/environ",
        "/var/lib/latebind/serve.sock",
    ];
    // All at once: who fails to fetch takes its time.
    let jobs = targets.map(|target| pool.shell(&format!("ln -s {target} stolen"), "transfer_output_files = stolen\n"));
    for (target, job) in targets.iter().zip(&jobs) {
        let ad = job.until("over", latebind_condor_tests::JOB_WITHIN, |ad| {
            ad["JobStatus"] == status::HELD || ad["JobStatus"] == status::COMPLETED
        });
        assert_eq!(job.text("stolen"), "", "{target}");
        assert_eq!(ad["JobStatus"], status::HELD, "{target}");
    }
    let job = pool.shell("echo mine > file; ln -s file link", "transfer_output_files = link\n");
    job.ends_with(0);
    assert_eq!(job.text("link"), "mine\n");
}

#[test]
fn who_stops_its_own_drop_in_keeps_the_slot_no_longer_than_its_job() {
    let pool = Pool::shared();
    let script = r#"for p in /proc/[0-9]*; do
    [ "$(cat $p/comm)" != singularity ] || kill -STOP ${p#/proc/} && stopped=$p
done 2>/dev/null
sleep 1
echo done > begun"#;
    let job = pool.shell(&format!("{script}\nsleep 1\nexit 4"), "");
    job.ends_with(4);
    pool.shell("echo next", "").ends_with(0);
}

#[test]
fn the_clients_socket_knows_who_asks() {
    let pool = Pool::shared();
    // Somebody else in the pilot container may look on, and have no job.
    let run = "watcher run --socket /run/latebind/clients.sock localhost/latebind/busybox:1 -- /bin/true";
    let asked = pool.exec("pilot", "condor", &["/bin/sh", "-c", run]);
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert_eq!(asked.status.code(), Some(125), "{said}");
    assert!(said.contains("only root and the slots' own UIDs"), "{said}");
    // The slot's own UID may, in a sandbox of its own; what it says comes to the file through a pipe.
    let own = r#"set -e; d=/shared/slot/0/data/execute/by-hand; install -d -o UID -g UID $d; rm -f $d/*
cat > /tmp/by-hand <<'S'
cd /shared/slot/0/data/execute/by-hand
exec watcher run --socket /run/latebind/clients.sock --sandbox execute/by-hand localhost/latebind/busybox:1 -- \
    /bin/sh -c 'pwd; id -u; readlink /proc/self/fd/1; echo kept > file' > out
S
chmod 755 /tmp/by-hand; setpriv --reuid UID --regid UID --clear-groups /bin/sh /tmp/by-hand; cat $d/out $d/file; rm -r $d"#;
    let uid = pool.uid(0);
    let said = pool.in_pilot(&own.replace("UID", &uid.to_string()));
    let here = "/shared/slot/0/data/execute/by-hand";
    assert_eq!(said, format!("{here}\n{uid}\n/shared/slot/0/ctl/out\nkept\n"));
}
