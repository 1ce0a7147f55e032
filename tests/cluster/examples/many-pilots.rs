//! What the binds of many pilots cost an API server: the watcher's own binder for each of very many pods, whose kubelet
//! is simulated (its updates come in the order and after the times that were measured on real nodes). `many-pilots.sh`
//! does what has to be done before.
//!
//! usage: many-pilots NAMESPACE PODS BINDS-A-SECOND SECONDS

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use futures_util::{StreamExt, stream};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, Config};
use latebind_cluster_tests::relay::Relay;
use serde_json::{Value, json};
use watcher::bind::kubernetes::{Kubernetes, Options};
use watcher::bind::{Binder, Failure, Unattended};

/// From a patch to the kubelet's first word on it, and to its word on the new container.
const SEEN: Duration = Duration::from_millis(25);
const STARTED: Duration = Duration::from_millis(190);
const IMAGE: &str = "registry.example.org/x";
const PLACEHOLDER: &str = "registry.example.org/glue:1";
/// So many pods at once at most: each binder looks for its container's process in /proc, all of them in this one.
const AT_ONCE: usize = 200;
/// Most requests of a bind during which the server is started again: three, and the watch refused, the pod read and
/// watched again, with something for a server that is not ready yet.
const REQUESTS_MAX: f64 = 10.0;
const NODE: &str = "simulated";

fn digest(n: u64) -> String {
    format!("sha256:{n:064x}")
}

/// A number from 0 up to 1.
fn chance(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

fn pod(name: &str) -> Value {
    let container = |name: &str| json!({"name": name, "image": PLACEHOLDER, "imagePullPolicy": "IfNotPresent"});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "simulated"}},
        "spec": {"nodeName": NODE, "automountServiceAccountToken": false, "shareProcessNamespace": true,
            "tolerations": [{"operator": "Exists"}], "initContainers": [container("install")],
            "containers": [container("pilot"), container("payload")]},
    })
}

/// What the kubelet says: how often the payload was restarted, and of which image it is.
fn status(pod: &str, restarts: u64, image_id: &str, note: &str) -> Value {
    let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
    let id = |n: u64| format!("containerd://{pod}-{n}");
    let one = |name: &str, id: String, image_id: &str, restarts: u64, state: &Value, last: &Value| {
        json!({"name": name, "image": PLACEHOLDER, "imageID": image_id, "containerID": id, "ready": true,
            "started": true, "restartCount": restarts, "state": state, "lastState": last})
    };
    let ended = |id: String| json!({"terminated": {"exitCode": 0, "reason": "Completed", "containerID": id}});
    let glue = format!("registry.example.org/glue@{}", digest(0));
    let last = if restarts == 0 { json!({}) } else { ended(id(restarts - 1)) };
    json!({"status": {
        "phase": "Running", "message": note,
        "initContainerStatuses": [one("install", format!("containerd://{pod}-i"), &glue, 0, &ended(id(0)), &json!({}))],
        "containerStatuses": [
            one("pilot", format!("containerd://{pod}-p"), &glue, 0, &running, &json!({})),
            one("payload", id(restarts), image_id, restarts, &running, &last),
        ],
    }})
}

/// Answers each patch of a pod's image as a kubelet does.
async fn kubelet(pods: Api<DynamicObject>, is_paused: Arc<AtomicBool>) {
    let mut seen: HashMap<String, (String, u64)> = HashMap::new();
    loop {
        let Ok(all) = pods.list(&kube::api::ListParams::default()).await else {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        };
        let version = all.metadata.resource_version.clone().unwrap_or_default();
        all.items.into_iter().for_each(|pod| look(&pods, &is_paused, &mut seen, &pod));
        let Ok(events) = pods.watch(&WatchParams::default(), &version).await else { continue };
        let mut events = events.boxed();
        while let Some(Ok(event)) = events.next().await {
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => look(&pods, &is_paused, &mut seen, &pod),
                WatchEvent::Error(_) => break,
                _ => {}
            }
        }
    }
}

fn look(
    pods: &Api<DynamicObject>,
    is_paused: &Arc<AtomicBool>,
    seen: &mut HashMap<String, (String, u64)>,
    pod: &DynamicObject,
) {
    let image = pod.data["spec"]["containers"][1]["image"].as_str().unwrap_or_default().to_owned();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let (had, restarts) = seen.entry(name.clone()).or_insert_with(|| (PLACEHOLDER.into(), 0));
    if *had == image {
        return;
    }
    (*had, *restarts) = (image.clone(), *restarts + 1);
    let (pods, restarts, is_paused) = (pods.clone(), *restarts, is_paused.clone());
    tokio::spawn(async move {
        while is_paused.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let image_id = image.split_once('@').map_or_else(
            || format!("registry.example.org/glue@{}", digest(0)),
            |(_, digest)| format!("{IMAGE}@{digest}"),
        );
        tokio::time::sleep(SEEN).await;
        let seen = json!({"status": {"message": format!("sees {restarts}")}});
        say(&pods, &name, &seen).await;
        tokio::time::sleep(STARTED - SEEN).await;
        say(&pods, &name, &status(&name, restarts, &image_id, "")).await;
    });
}

async fn say(pods: &Api<DynamicObject>, name: &str, what: &Value) {
    for _ in 0..100 {
        if pods.patch_status(name, &PatchParams::default(), &Patch::Merge(what)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Seconds of processor time of the processes that `LATEBIND_PROCESSES` names (`kube-apiserver=12 etcd=13`).
fn processors() -> BTreeMap<String, f64> {
    let named = env::var("LATEBIND_PROCESSES").unwrap_or_default();
    let pairs = named.split_ascii_whitespace().filter_map(|one| one.split_once('='));
    let used = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        [11, 12].iter().filter_map(|n| fields.get(*n)?.parse::<f64>().ok()).sum::<f64>() / 100.0
    };
    pairs.map(|(name, pid)| (name.to_owned(), used(pid))).collect()
}

/// The pilots' requests, by the server's audit log, from its line `from` on: verb and time.
fn requests(from: usize) -> (Vec<(String, String)>, usize) {
    let log = fs::read_to_string(env::var("LATEBIND_AUDIT_LOG").unwrap_or_default()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let of = |line: &&str| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["user"]["username"].as_str().filter(|user| user.ends_with(":pilot"))?;
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        Some((text("verb"), text("requestReceivedTimestamp")))
    };
    (lines.iter().skip(from).filter_map(of).collect(), lines.len())
}

fn counted(requests: &[(String, String)]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    requests.iter().for_each(|(verb, _)| *counts.entry(verb.as_str()).or_default() += 1);
    counts
}

type Bound = Result<Duration, Failure>;

fn bind(binder: &Kubernetes, n: u64) -> Bound {
    let began = Instant::now();
    binder.bind(0, &format!("{IMAGE}@{}", digest(n + 1)), &Unattended).map(|_| began.elapsed())
}

fn summary(what: &str, bound: &[Bound]) {
    let mut times: Vec<f64> = bound.iter().filter_map(|b| b.as_ref().ok()).map(Duration::as_secs_f64).collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get(((times.len() as f64 - 1.0) * share).max(0.0) as usize).copied().unwrap_or(0.0);
    println!(
        "{what}: {} binds, {} failed; median {:.2} s, p95 {:.2} s, most {:.2} s",
        bound.len(),
        bound.len() - times.len(),
        at(0.5),
        at(0.95),
        at(1.0)
    );
    if let Some(Err(e)) = bound.iter().find(|b| b.is_err()) {
        println!("  one that failed: {e}");
    }
}

/// Many pods at once.
fn bind_all(binders: &[Kubernetes], n: u64, meanwhile: impl FnOnce()) -> Vec<Bound> {
    thread::scope(|scope| {
        let threads: Vec<_> = binders.iter().take(AT_ONCE).map(|binder| scope.spawn(move || bind(binder, n))).collect();
        meanwhile();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let [namespace, pods, rate, seconds] = &words[..] else { panic!("many-pilots NAMESPACE PODS RATE SECONDS") };
    let (pods, rate, seconds): (usize, f64, f64) =
        (pods.parse().unwrap(), rate.parse().unwrap(), seconds.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let is_paused = Arc::new(AtomicBool::new(false));
    let name = |n: usize| format!("simulated-{n:04}");
    runtime.block_on(async {
        let config = Config::from_kubeconfig(&kube::config::KubeConfigOptions::default()).await.unwrap();
        let kind = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(Client::try_from(config).unwrap(), namespace, &kind);
        stream::iter(0..pods)
            .for_each_concurrent(16, |n| {
                let (api, name) = (&api, name(n));
                async move {
                    let made: DynamicObject = serde_json::from_value(pod(&name)).unwrap();
                    api.create(&PostParams::default(), &made).await.unwrap();
                    let glue = format!("registry.example.org/glue@{}", digest(0));
                    say(api, &name, &status(&name, 0, &glue, "")).await;
                }
            })
            .await;
        tokio::spawn(kubelet(api, is_paused.clone()));
    });
    // The pilots' way to the server counts what goes over it.
    let port = |name: &str| env::var(name).unwrap().parse().unwrap();
    let relay = Relay::at(port("LATEBIND_RELAY_PORT"), port("LATEBIND_API_PORT"));
    println!("{pods} pods; pilots reach the server by port {}", relay.port());
    let binder = |n: usize| {
        Kubernetes::new(Options {
            pod: name(n),
            namespace: namespace.clone(),
            uid: None,
            proxy: None,
            pull_timeout: Duration::from_secs(600),
            registries: None,
            end_needs: 30.0,
        })
    };
    let binders: Vec<Kubernetes> = (0..pods).map(|n| binder(n).unwrap()).collect();
    let idle = processors();
    thread::sleep(Duration::from_secs(5));
    let idle: BTreeMap<String, f64> =
        processors().into_iter().map(|(k, v)| (k.clone(), (v - idle.get(&k).unwrap_or(&0.0)) / 5.0)).collect();

    let (before, bytes, log) = (processors(), relay.passed(), requests(0).1);
    let (began, made) = (Instant::now(), AtomicU64::new(0));
    let mut state = 1;
    let free: Mutex<Vec<usize>> = Mutex::new((0..pods).collect());
    let bound: Mutex<Vec<Bound>> = Mutex::default();
    thread::scope(|scope| {
        let mut next = 0.0;
        while next < seconds {
            next -= (1.0 - chance(&mut state)).ln() / rate;
            thread::sleep(Duration::from_secs_f64(next).saturating_sub(began.elapsed()));
            let at = {
                let mut free = free.lock().unwrap();
                if free.is_empty() {
                    continue;
                }
                let at = (chance(&mut state) * free.len() as f64) as usize;
                free.swap_remove(at)
            };
            let n = made.fetch_add(1, Ordering::Relaxed);
            let (binder, free, bound) = (&binders[at], &free, &bound);
            scope.spawn(move || {
                let result = bind(binder, n % 7);
                bound.lock().unwrap().push(result);
                free.lock().unwrap().push(at);
            });
        }
    });
    let took = began.elapsed().as_secs_f64();
    let bound = bound.into_inner().unwrap();
    let binds = bound.len() as f64;
    summary(&format!("in Poisson order, {rate} a second"), &bound);
    let (all, log) = requests(log);
    for (verb, n) in counted(&all) {
        println!("  {verb}: {:.2} requests a bind", n as f64 / binds);
    }
    let (to, from) = relay.passed();
    println!(
        "  {:.1} KB a bind to the server, {:.1} KB from it (TLS), {} connections in all",
        (to - bytes.0) as f64 / binds / 1e3,
        (from - bytes.1) as f64 / binds / 1e3,
        relay.made()
    );
    for (name, used) in processors() {
        let own = used - before.get(&name).unwrap_or(&0.0) - idle.get(&name).unwrap_or(&0.0) * took;
        println!("  {name}: {:.1} ms of a processor a bind, the kubelet's two updates included", own / binds * 1e3);
    }

    if let Ok(command) = env::var("LATEBIND_THROTTLE") {
        assert!(std::process::Command::new("sh").args(["-c", &command]).status().unwrap().success());
        let bound = bind_all(&binders, 100, || ());
        summary("all at once, while the server throttles", &bound);
        let (all, _) = requests(log);
        println!("  {} requests were served in {:?}", all.len(), counted(&all));
        let undo = env::var("LATEBIND_THROTTLE_END").unwrap();
        assert!(std::process::Command::new("sh").args(["-c", &undo]).status().unwrap().success());
    }
    if let Ok(command) = env::var("LATEBIND_RESTART") {
        let (log, now) = (requests(0).1, relay.made());
        is_paused.store(true, Ordering::Relaxed);
        let bound = bind_all(&binders, 200, || {
            while counted(&requests(log).0).get("watch").is_none_or(|n| *n < pods.min(AT_ONCE)) {
                thread::sleep(Duration::from_millis(100));
            }
            assert!(std::process::Command::new("sh").args(["-c", &command]).status().unwrap().success());
            is_paused.store(false, Ordering::Relaxed);
        });
        summary("all at once, with a restart of the server", &bound);
        let mut bins: BTreeMap<String, usize> = BTreeMap::new();
        let all = requests(log).0;
        // Tenths of a second; those of before the restart are first.
        all.iter().for_each(|(_, at)| *bins.entry(at.chars().take(21).collect()).or_default() += 1);
        println!("  {} requests in {} connections; by tenths of a second:", all.len(), relay.made() - now);
        bins.iter().for_each(|(at, n)| println!("    {at} {n}"));
        // Without an end to what a restart brings about, each would ask again and again until its pod changes.
        let each = all.len() as f64 / bound.len() as f64;
        assert!(each <= REQUESTS_MAX && bound.iter().all(Result::is_ok), "{each:.1} requests a bind");
    }
}
