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
for try in 'mv execute away' 'ln -s /etc execute/dir_1' 'mkdir execute/dir_evil' 'mv $HOME execute/dir_other' 'touch x' 'ls ../ctl' 'chmod 777 execute'; do
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
fn the_clients_socket_knows_who_asks() {
    let pool = Pool::shared();
    // Somebody else in the pilot container may look on, and have no job.
    let run = "watcher run --socket /run/latebind/clients.sock localhost/latebind/busybox:1 -- /bin/true";
    let asked = pool.exec("pilot", "condor", &["/bin/sh", "-c", run]);
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert_eq!(asked.status.code(), Some(125), "{said}");
    assert!(said.contains("only root and the slots' own UIDs"), "{said}");
    // The slot's own UID may, in a sandbox of its own; its file is named, not relayed.
    let own = r#"set -e; d=/shared/slot/0/data/execute/by-hand; install -d -o 20000 -g 20000 $d; rm -f $d/*
cat > /tmp/by-hand <<'S'
cd /shared/slot/0/data/execute/by-hand
exec watcher run --socket /run/latebind/clients.sock --sandbox execute/by-hand localhost/latebind/busybox:1 -- \
    /bin/sh -c 'pwd; id -u; readlink /proc/self/fd/1; echo kept > file' > out
S
chmod 755 /tmp/by-hand; setpriv --reuid 20000 --regid 20000 --clear-groups /bin/sh /tmp/by-hand; cat $d/out $d/file; rm -r $d"#;
    let said = pool.in_pilot(own);
    let here = "/shared/slot/0/data/execute/by-hand";
    assert_eq!(said, format!("{here}\n20000\n{here}/out\nkept\n"));
}
