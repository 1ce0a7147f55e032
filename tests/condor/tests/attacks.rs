//! What a hostile payload tries on the pilot beside it.

use latebind_condor_tests::Pool;

#[test]
fn the_drop_in_can_not_be_looked_into() {
    let pool = Pool::shared();
    let script = r#"own=$(cat /proc/self/cgroup)
for p in /proc/[0-9]*; do
    [ "$(cat $p/cgroup 2>/dev/null)" != "$own" ] || continue
    echo "seen $(cat $p/comm)"
    for d in root cwd fd map_files; do ls $p/$d/ >/dev/null 2>&1 && echo "OPEN $p/$d $(cat $p/comm)"; done
    for f in environ mem maps auxv; do head -c 1 $p/$f >/dev/null 2>&1 && echo "OPEN $p/$f $(cat $p/comm)"; done
    readlink $p/exe >/dev/null 2>&1 && echo "OPEN $p/exe $(cat $p/comm)"
done
ls -a /run/latebind /var/lib/latebind /pilot /opt/latebind 2>/dev/null | sed 's/^/OPEN /'
cd /shared/slot/0/data
for try in 'mv execute away' 'ln -s /etc execute/dir_1' 'mkdir execute/dir_evil' 'rm -r execute' 'touch x' 'ls ../ctl' 'chmod 777 execute'; do
    $try 2>/dev/null && echo "OPEN $try"
done
echo end"#;
    let job = pool.shell(script, "");
    job.ends_with(0);
    let out = job.text("out");
    assert!(out.contains("seen singularity\n") && out.contains("seen watcher\n"), "{out}");
    assert!(out.ends_with("end\n"), "{out}");
    // `head` of an empty auxv or mem would be no secret; none may even be opened.
    let open: Vec<&str> = out.lines().filter(|line| line.starts_with("OPEN")).collect();
    assert!(open.is_empty(), "{open:#?}");
}

#[test]
fn its_own_image_may_have_condor_and_gets_nowhere() {
    let pool = Pool::shared();
    // The pool's own tools, without a token, by every method that needs none.
    let script = r#"addr=$(sed -n 's/^MyAddress = "\(.*\)"/\1/p' "$_CONDOR_MACHINE_AD")
echo "at $addr"
for methods in FS ANONYMOUS CLAIMTOBE PASSWORD IDTOKENS; do
    export CONDOR_CONFIG=/dev/null _CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS=$methods _CONDOR_SEC_DEFAULT_AUTHENTICATION_METHODS=$methods
    export _CONDOR_LOG=$PWD _CONDOR_LOCAL_DIR=$PWD _CONDOR_USE_SHARED_PORT=False
    for level in READ WRITE DAEMON ADMINISTRATOR CONFIG; do
        timeout 20 condor_ping -addr "$addr" -type STARTD -table $level 2>/dev/null | grep -w ALLOW
    done
done
echo end"#;
    let lines =
        "universe = container\ncontainer_image = docker://localhost/latebind/htcondor-pilot:1\nexecutable = job.sh";
    let job = pool.submit(lines, &[("job.sh", &format!("#!/bin/bash\n{script}\n"))]);
    job.ends_with(0);
    let out = job.text("out");
    assert!(out.starts_with("at <127.0.0.1:") && out.ends_with("end\n"), "{out}{}", job.text("err"));
    assert_eq!(out.lines().filter(|line| line.contains("ALLOW")).count(), 0, "{out}");
}
