//! Ordinary jobs of an ordinary user: what works with singularity works here.

use latebind_condor_tests::{JOB_WITHIN, Pool, status};

const BUSYBOX: &str = "universe = container\ncontainer_image = docker://localhost/latebind/busybox:1\n";

#[test]
fn a_job_runs_in_the_image_that_it_names() {
    let pool = Pool::shared();
    let job = pool.shell("echo from the slot; cat /etc/debian_version 2>/dev/null; id -u; pwd; ls", "");
    job.ends_with(0);
    let out = job.text("out");
    let wanted = format!("from the slot\n{}\n/shared/slot/0/data/execute/dir_", pool.uid(0));
    assert!(out.starts_with(&wanted), "{out}");
    let job = pool.submit(
        "universe = container\ncontainer_image = docker://localhost/latebind/debian:1\nexecutable = job.sh",
        &[("job.sh", "#!/bin/bash\ncat /etc/debian_version\n")],
    );
    job.ends_with(0);
    assert!(job.text("out").starts_with("12."), "{}", job.text("out"));
}

#[test]
fn arguments_and_environment_arrive_as_they_are() {
    let pool = Pool::shared();
    let lines = "arguments = \"one 'two words' 'it''s' '\"\"quoted\"\"' '' -s --pwd\"\n\
                 environment = \"PLAIN=1 SPACED='a b' QUOTED='say \"\"hi\"\"'\"\nrequest_cpus = 1";
    let script = "for a; do echo \"[$a]\"; done; echo \"$PLAIN,$SPACED,$QUOTED\"; echo \"$HOME\"; echo \"$PATH\"; \
                  echo \"omp $OMP_NUM_THREADS $MKL_NUM_THREADS $OPENBLAS_NUM_THREADS $GOMAXPROCS\"; \
                  env | grep -c -e SINGULARITYENV -e LATEBIND -e CONDOR_HOST -e GLIDEIN; test -r \"$_CONDOR_JOB_AD\" && echo ad";
    let job = pool.shell(script, lines);
    job.ends_with(0);
    let out = job.text("out");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[..8],
        ["[one]", "[two words]", "[it's]", "[\"quoted\"]", "[]", "[-s]", "[--pwd]", "1,a b,say \"hi\""],
        "{out}"
    );
    assert!(lines[8].starts_with("/shared/slot/0/data/execute/dir_"), "{out}");
    assert!(!lines[9].is_empty() && !lines[9].contains("condor"), "{out}");
    assert_eq!(lines[10..], ["omp 1 1 1 1", "0", "ad"], "{out}");
}

#[test]
fn standard_input_and_transfers() {
    let pool = Pool::shared();
    let lines = format!(
        "{BUSYBOX}executable = job.sh\ninput = in\ntransfer_input_files = more\ntransfer_output_files = made, dir\n\
         transfer_output_remaps = \"made=renamed\""
    );
    let script =
        "#!/bin/sh\nread -r a; echo \"$a\"; cat more; echo trouble >&2; echo x > made; mkdir dir; echo y > dir/z\n";
    let job = pool.submit(&lines, &[("job.sh", script), ("in", "first\nsecond\n"), ("more", "second file\n")]);
    job.ends_with(0);
    assert_eq!(job.text("out"), "first\nsecond file\n");
    assert_eq!(
        (job.text("err"), job.text("renamed"), job.text("dir/z")),
        ("trouble\n".into(), "x\n".into(), "y\n".into())
    );
}

#[test]
fn output_can_be_streamed() {
    let pool = Pool::shared();
    let job =
        pool.shell("echo early; echo worse >&2; sleep 8; echo late", "stream_output = True\nstream_error = True\n");
    job.comes_to(status::RUNNING);
    job.until("streaming", latebind_condor_tests::JOB_WITHIN, |_| job.text("out") == "early\n");
    job.ends_with(0);
    assert_eq!((job.text("out"), job.text("err")), ("early\nlate\n".into(), "worse\n".into()));
}

#[test]
fn a_program_of_the_image_needs_no_transfer() {
    let pool = Pool::shared();
    let job = pool.submit(
        &format!("{BUSYBOX}executable = /bin/echo\narguments = of the image\ntransfer_executable = False"),
        &[],
    );
    job.ends_with(0);
    assert_eq!(job.text("out"), "of the image\n");
}

#[test]
fn the_sandbox_can_stand_elsewhere() {
    let pool = Pool::shared();
    // HTCondor 25 has the job in a directory `scratch` beneath it.
    let job = pool.shell("pwd; ls $PWD/job.sh; echo here > $PWD/result", "container_target_dir = /elsewhere\n");
    job.ends_with(0);
    let out = job.text("out");
    let (pwd, program) = out.split_once('\n').unwrap_or_default();
    assert!(["/elsewhere", "/elsewhere/scratch"].contains(&pwd), "{out}");
    assert_eq!(program.trim(), format!("{pwd}/job.sh"));
    assert_eq!(job.text("result"), "here\n");
}

#[test]
fn the_sandbox_can_stand_where_the_image_has_a_directory_or_no_parent() {
    let pool = Pool::shared();
    for place in ["/srv", "/opt/a/b", "/tmp", "/mnt"] {
        let job = pool.submit(
            &format!(
                "universe = container\ncontainer_image = docker://localhost/latebind/debian:1\nexecutable = job.sh\n\
                 container_target_dir = {place}"
            ),
            &[("job.sh", "#!/bin/bash\npwd; ls $PWD/job.sh; echo here >$PWD/result\n")],
        );
        job.ends_with(0);
        let out = job.text("out");
        assert!(out.starts_with(place) && out.trim_end().ends_with("/job.sh"), "{place}: {out}");
        assert_eq!(job.text("result"), "here\n", "{place}");
    }
}

#[test]
fn a_variable_that_is_not_text_reaches_the_job() {
    let pool = Pool::shared();
    let lines = [BUSYBOX.as_bytes(), b"executable = job.sh\nenvironment = \"LATIN=caf\xe9\"\n"].concat();
    let job = pool.submit_bytes(&lines, &[("job.sh", "#!/bin/sh\nprintf %s \"$LATIN\" | od -An -tx1\n")]);
    job.ends_with(0);
    assert_eq!(job.text("out").split_whitespace().collect::<String>(), "636166e9");
}

#[test]
fn the_payload_has_the_slots_account() {
    let pool = Pool::shared();
    let job = pool.shell("id -un; echo $USER; eval echo ~$USER; echo x >~/made", "");
    job.ends_with(0);
    let out = job.text("out");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("payload") && lines[1] == lines[0], "{out}");
    assert!(lines[2].starts_with("/shared/slot/0/data/execute/dir_"), "{out}");
}

#[test]
fn exit_codes_and_signals_are_the_jobs_own() {
    let pool = Pool::shared();
    pool.shell("exit 37", "").ends_with(37);
    for signal in [9, 11, 15] {
        let job = pool.shell(&format!("kill -{signal} $$"), "");
        let ad = job.ends();
        assert_eq!((&ad["ExitBySignal"], &ad["ExitSignal"]), (&true.into(), &signal.into()), "{}", job.text("err"));
    }
}

#[test]
fn a_job_without_an_image_gets_the_operators() {
    let pool = Pool::shared();
    let job =
        pool.submit("universe = vanilla\nexecutable = job.sh", &[("job.sh", "#!/bin/bash\ncat /etc/debian_version\n")]);
    job.ends_with(0);
    assert!(job.text("out").starts_with("12."), "{}", job.text("out"));
}

#[test]
fn names_that_are_paths_are_rewritten() {
    let pool = Pool::shared();
    let lines = "universe = vanilla\n+SingularityImage = \"/cvmfs/pool.test/busybox:1\"\nexecutable = job.sh";
    let job = pool.submit(lines, &[("job.sh", "#!/bin/sh\nls /bin/busybox\n")]);
    job.ends_with(0);
    assert_eq!(job.text("out"), "/bin/busybox\n");
}

#[test]
fn what_no_run_can_mend_is_held_with_the_reason() {
    let pool = Pool::shared();
    let named = |image: &str| {
        format!(
            "universe = container\ncontainer_image = docker://{image}\nexecutable = /bin/true\ntransfer_executable = False"
        )
    };
    pool.submit(&named("localhost/latebind/no-such-image:1"), &[]).is_held("ImageNotFound");
    pool.submit("universe = vanilla\n+SingularityImage = \"/no/such/table\"\nexecutable = /bin/true\ntransfer_executable = False", &[])
        .is_held("name an image of a registry");
    let missing = pool.submit(&format!("{BUSYBOX}executable = /no/such/program\ntransfer_executable = False"), &[]);
    let ad = missing.is_held("CommandNotFound");
    assert_eq!(ad["HoldReasonCode"], 21);
    // Repaired and released, it runs.
    pool.ask("pool", "alice", &["condor_qedit", &missing.id, "Cmd", "\"/bin/true\""]);
    missing.tool(&["condor_release"]);
    missing.ends_with(0);
}

#[test]
fn a_job_without_an_executable_runs_what_its_image_runs() {
    let pool = Pool::shared();
    // The image has an ENTRYPOINT; the arguments stand in the place of its CMD.
    let image = "universe = container\ncontainer_image = docker://localhost/latebind/noshell:1\n";
    let job = pool.submit(&format!("{image}arguments = exit 7"), &[]);
    job.ends_with(7);
    let job = pool.submit(&format!("{image}arguments = hello"), &[]);
    job.ends_with(0);
    assert!(job.text("out").contains("from a static program"), "{}", job.text("out"));
}

#[test]
fn what_cannot_be_served_is_not_matched() {
    let pool = Pool::shared();
    let docker = "universe = docker\ndocker_image = localhost/latebind/busybox:1\nexecutable = /bin/true\ntransfer_executable = False";
    let file = "universe = container\ncontainer_image = image.sif\nexecutable = /bin/true\ntransfer_executable = False";
    let jobs = [pool.submit(docker, &[]), pool.submit(file, &[("image.sif", "no image")])];
    // One that was handed in later, and has run, shows that the others were looked at.
    for _ in 0..2 {
        pool.shell("echo served", "").ends_with(0);
    }
    for job in &jobs {
        let ad = job.ad();
        assert_eq!((&ad["JobStatus"], &ad["NumJobStarts"]), (&status::IDLE.into(), &0.into()), "{}", job.text("log"));
        let why = pool.ask("pool", "alice", &["condor_q", "-better-analyze", &job.id]);
        assert!(why.contains("TARGET.Has"), "{why}");
    }
}

#[test]
fn chirp_works_where_the_image_has_it() {
    let pool = Pool::shared();
    let lines = "universe = container\ncontainer_image = docker://localhost/latebind/htcondor-pilot:1\nexecutable = job.sh\n\
                 want_io_proxy = True\n";
    let script = "#!/bin/sh\nexport CONDOR_CONFIG=/dev/null\n/usr/libexec/condor/condor_chirp set_job_attr Said 7\n";
    let job = pool.submit(lines, &[("job.sh", script)]);
    let ad = job.ends_with(0);
    assert_eq!(ad["Said"], 7, "{}", job.text("err"));
}

#[test]
fn the_slot_says_what_it_is() {
    let pool = Pool::shared();
    let attributes = [
        "Latebind",
        "GLIDEIN_Site",
        "GLIDEIN_ResourceName",
        "Cpus",
        "Memory",
        "HasSingularity",
        "HasSIF =?= True",
        "HasDocker =?= True",
    ];
    let mut words = vec!["condor_status", "-af"];
    words.extend(attributes);
    // 5 % below the limit of 1 GiB.
    assert_eq!(pool.ask("pool", "alice", &words).trim(), "true Test Here 1 972 true false false");
}

#[test]
fn twenty_jobs_in_four_images_go_through_one_slot() {
    let pool = Pool::shared();
    let in_image =
        |image: &str| format!("universe = container\ncontainer_image = docker://localhost/latebind/{image}:1\n");
    let jobs: Vec<_> = (0..20)
        .map(|n| {
            let script = format!("#!/bin/sh\necho job {n}\nexit {n}\n");
            match n % 4 {
                // No shell, no library: nothing but the one program.
                0 => {
                    let lines = "executable = /probe\ntransfer_executable = False\narguments = exit ";
                    pool.submit(&format!("{}{lines}{n}\n", in_image("noshell")), &[])
                }
                other => {
                    let image = ["", "busybox", "debian", "passwd-link"][other];
                    pool.submit(&format!("{}executable = job.sh\n", in_image(image)), &[("job.sh", &script)])
                }
            }
        })
        .collect();
    for (n, job) in jobs.iter().enumerate() {
        job.ends_with(n as i64);
        if n % 4 != 0 {
            assert_eq!(job.text("out"), format!("job {n}\n"));
        }
    }
}

#[test]
fn a_pilot_without_a_slot_for_them_takes_no_job_that_labels_itself_a_pilot() {
    let pool = Pool::shared();
    let job = pool.shell("true", "+LatebindPilot = True\n");
    job.until("it is not matched", JOB_WITHIN, |ad| ad["LastRejMatchTime"].is_i64());
    job.tool(&["condor_rm"]);
    assert!(!job.text("log").contains("Job executing"));
}
