//! `deploy/monitoring`: rules, scrape configuration and dashboard, held against a real Prometheus (Debian's) that reads
//! a pod's metrics.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use latebind_tests::pod::{Options, Pod, Scratch, Signal, eventually, kill, probe};
use serde_json::{Value, json};

/// How long Prometheus may take to read, evaluate and say.
const LIMIT: Duration = Duration::from_secs(60);

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shell(script: &str) -> String {
    let output = Command::new("bash").args(["-euc", script]).current_dir(project()).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Debian's package, unpacked and not installed.
fn program(name: &str) -> PathBuf {
    let dir = shell(". .ci/deb.sh; kept_debs bookworm amd64 prometheus");
    Path::new(dir.trim()).join("usr/bin").join(name)
}

/// The rules as a file for a Prometheus without the operator, by the command that `rules.yaml` names.
fn rules() -> String {
    shell("sed '1,/^spec:/d; s/^  //' deploy/monitoring/rules.yaml")
}

fn promtool(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program("promtool")).args(arguments).current_dir(dir).output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("rules.yaml"), rules()).unwrap();
    fs::copy(project().join("tests/monitoring/alerts.yaml"), scratch.path().join("alerts.yaml")).unwrap();
    promtool(scratch.path(), &["check", "rules", "rules.yaml"]);
    promtool(scratch.path(), &["test", "rules", "alerts.yaml"]);
    // Each alert has its case there.
    let cases = fs::read_to_string(scratch.path().join("alerts.yaml")).unwrap();
    for rule in rules().lines().filter_map(|line| line.split_once("alert: ")) {
        assert!(cases.contains(&format!("alertname: {}\n", rule.1)), "no case for {}", rule.1);
    }
    // Debian's Prometheus is built without a client of Kubernetes.
    let scrape = fs::read_to_string(project().join("deploy/monitoring/scrape.yaml")).unwrap();
    let here = scrape.replace("kubernetes_sd_configs:\n  - role: pod\n", "static_configs:\n  - targets: [\"x:1\"]\n");
    assert_ne!(scrape, here);
    fs::write(scratch.path().join("scrape.yaml"), here).unwrap();
    promtool(scratch.path(), &["check", "config", "scrape.yaml"]);
}

/// A Prometheus in the network of a pod.
struct Prometheus {
    /// Outlives the pod.
    network: File,
    server: Child,
    _scratch: Scratch,
}

impl Prometheus {
    /// It reads and evaluates each second, and no alert has to last.
    fn beside(pod: &Pod) -> Self {
        let network = File::open(format!("/proc/{}/ns/net", pod.main_process("pause"))).unwrap();
        let scratch = Scratch::new();
        let path = |name: &str| scratch.path().join(name);
        let at_once: Vec<_> = rules().lines().filter(|l| !l.trim().starts_with("for: ")).map(String::from).collect();
        fs::write(path("rules.yaml"), at_once.join("\n")).unwrap();
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "latebind", "static_configs": [{"targets": ["127.0.0.1:9464"]}]}],
        });
        fs::write(path("config.yaml"), config.to_string()).unwrap();
        let server = within(&network)
            .arg(program("prometheus"))
            .args(["--web.listen-address=127.0.0.1:9090", "--log.level=warn"])
            .arg(format!("--config.file={}", path("config.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { network, server, _scratch: scratch }
    }

    /// The samples that an expression has now, as text; nothing while the server does not answer.
    fn query(&self, expression: &str) -> Option<String> {
        let mut command = within(&self.network);
        let asked = command.arg(program("promtool")).args(["query", "instant", "http://127.0.0.1:9090", expression]);
        let output = asked.output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    #[track_caller]
    fn says(&self, expression: &str, text: &str) {
        let mut last = None;
        let mut ask = || {
            last = self.query(expression);
            last.as_ref()?.contains(text).then_some(())
        };
        eventually(&format!("{expression} says {text}"), LIMIT, &mut ask);
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        kill(self.server.id() as i32, Signal::SIGKILL);
        self.server.wait().unwrap();
    }
}

/// What runs a program in the pod's network, which nothing else on this machine reaches.
fn within(network: &File) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/fd/{}", std::process::id(), network.as_raw_fd()));
    command
}

/// All expressions of the dashboard, with what Grafana puts in place of its variables.
fn expressions() -> Vec<String> {
    let text = fs::read(project().join("deploy/monitoring/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_slice(&text).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| target["expr"].as_str().unwrap().replace("$pod", ".*").replace("$__rate_interval", "1m"))
        .collect()
}

/// The metrics that a text names.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("latebind_")).collect()
}

#[test]
fn a_real_prometheus_reads_a_pod_and_fires_alerts() {
    let mut pod = Options::new().pilot(&["--metrics", "127.0.0.1:9464"]).start();
    let missing = json!({"image": "localhost/latebind/no-such-image:1", "argv": ["/x"]});
    pod.job("good", &probe(&["hello"])).is_good();
    pod.job("held", &missing).is("hold", "ImageNotFound");
    let prometheus = Prometheus::beside(&pod);
    prometheus.says("latebind_jobs_total", "reason=\"ImageNotFound\"} => 1 ");
    for n in 0..6 {
        pod.job(&format!("held-{n}"), &missing).is("hold", "ImageNotFound");
    }
    prometheus.says("ALERTS", "alertname=\"LatebindJobsHeld\"");
    // All that the dashboard and the rules ask for is there under its name.
    let known = prometheus.query("{__name__=~\"latebind_.+\"}").unwrap();
    let known = names(&known);
    let asked = [expressions().join("\n"), rules()].concat();
    assert!(names(&asked).len() > 10, "{asked}");
    let unknown: Vec<_> = names(&asked).difference(&known).copied().collect();
    assert!(unknown.is_empty(), "{unknown:?} of {known:?}");
    for expression in expressions() {
        assert!(prometheus.query(&expression).is_some(), "{expression}");
    }
    pod.signal(Signal::SIGTERM);
    assert!(pod.end(LIMIT).success());
    prometheus.says("ALERTS", "alertname=\"LatebindPilotDown\"");
}
