//! Jobs a second in place on Kubernetes, beside `kubectl exec`, which runs the same program one time after the other
//! and proves nothing about it. On our own cluster, which has to run (`make cluster`).

use std::time::{Duration, Instant};

use latebind_cluster_tests::cluster;
use latebind_cluster_tests::pilot::Options;
use latebind_tests::rate;

const JOBS: usize = 200;
/// Calls of `kubectl exec`, which take long.
const RUNS: u32 = 10;

fn main() -> Result<(), String> {
    let pilot = Options::new().spool(&["--reuse", "same-owner"]).start();
    rate::put(&pilot.spool_here(), JOBS, &cluster().image_by_digest("busybox", "1"))?;
    let began = Instant::now();
    let is_done = |n: usize| pilot.spool_here().join(format!("done/job-{n:05}/result/report.json")).exists();
    while !(0..JOBS).all(is_done) {
        if began.elapsed() > Duration::from_secs(300) {
            return Err("the jobs have no results after 300 s".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let jobs = rate::in_place(&pilot.spool_here(), JOBS)?;
    let began = Instant::now();
    for _ in 0..RUNS {
        let ran = pilot.exec("payload", &["/bin/busybox", "true"]);
        if ran.code != Some(0) {
            return Err(format!("kubectl exec: {}", ran.err()));
        }
    }
    let executed = f64::from(RUNS) / began.elapsed().as_secs_f64();
    println!("trivial jobs a second, one after the other, on Kubernetes");
    println!("  spool, one slot, --reuse same-owner   {jobs:.1}");
    println!("  kubectl exec                          {executed:.1}");
    Ok(())
}
