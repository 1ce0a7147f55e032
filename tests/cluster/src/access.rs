//! How the cluster is reached: kubectl, and the names of images in its registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use latebind_tests::pod::{Ran, Running};
use serde_json::Value;

use crate::node::Node;

/// How long one call of kubectl may take.
pub const CALL_WITHIN: Duration = Duration::from_secs(60);

/// The cluster under test.
pub struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
    registry: String,
    digests: PathBuf,
    own: bool,
    node: Option<Node>,
}

/// The cluster under test.
///
/// # Panics
/// If there is none.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::find)
}

/// Where our own cluster keeps everything; tests/cluster/settings.sh has the same.
fn state() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("LATEBIND_CLUSTER").unwrap_or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        cache.expect("HOME is not set: set it or LATEBIND_CLUSTER").join("latebind-cluster")
    })
}

/// A port of our own cluster; tests/cluster/settings.sh has the same.
fn port(of_the_first: u16) -> u16 {
    let number = std::env::var("LATEBIND_CLUSTER_NUMBER").ok().filter(|n| !n.is_empty());
    of_the_first + 100 * number.map_or(0, |n| n.parse::<u16>().expect("LATEBIND_CLUSTER_NUMBER is one digit"))
}

impl Cluster {
    fn find() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let state = state();
        let digests = |registry: &str| state.join("registries/pushed").join(registry.replace('/', "_"));
        if let (Some(kubeconfig), Some(registry)) = (set("KUBECONFIG"), set("LATEBIND_REGISTRY")) {
            let registry = registry.trim_end_matches('/').to_owned();
            return Self {
                kubectl: "kubectl".into(),
                kubeconfig: kubeconfig.into(),
                cache: std::env::temp_dir().join("latebind-kubectl"),
                digests: digests(&registry),
                registry,
                own: false,
                node: Node::of_another(),
            };
        }
        let kubeconfig = state.join("kubeconfig");
        assert!(
            kubeconfig.exists(),
            "no cluster runs here: make cluster, or set KUBECONFIG and LATEBIND_REGISTRY to one of yours"
        );
        let registry = format!("127.0.0.1:{}/latebind", port(7500));
        Self {
            kubectl: state.join("debian/usr/bin/kubectl"),
            kubeconfig,
            cache: state.join("run/kubectl"),
            digests: digests(&registry),
            registry,
            own: true,
            node: Some(Node::own(state)),
        }
    }

    /// An image of `images/`, by its tag.
    pub fn image(&self, name: &str) -> String {
        format!("{}{name}:1", self.image_prefix())
    }

    /// What the names of the images there begin with.
    pub fn image_prefix(&self) -> String {
        format!("{}/", self.registry)
    }

    /// The digest, `sha256:...`, that the registry has an image of `images/` under.
    pub fn digest(&self, name: &str) -> String {
        let note = self.digests.join(name);
        let text = fs::read_to_string(&note)
            .unwrap_or_else(|e| panic!("{}: {e}; was {name} pushed? tests/cluster/push.sh", note.display()));
        text.split_whitespace().nth(1).expect("the note has an ID and a digest").to_owned()
    }

    /// The same image by its digest, under a tag that need not exist: the engine does not look at it.
    pub fn image_by_digest(&self, name: &str, tag: &str) -> String {
        format!("{}/{name}:{tag}@{}", self.registry, self.digest(name))
    }

    /// An image that the registry does not have.
    pub fn missing_image(&self) -> String {
        self.image("no-such-image")
    }

    /// The port of the registry. Of our own cluster only.
    pub fn registry_port(&self) -> u16 {
        self.need_own();
        port(7500)
    }

    /// An image that is there, in a registry which wants a password for it. Of our own cluster only.
    pub fn denied_image(&self) -> String {
        self.need_own();
        format!("127.0.0.1:{}/latebind/busybox:1", port(7501))
    }

    /// The port on loopback of our own cluster's API server.
    pub fn api_port(&self) -> u16 {
        self.need_own();
        port(7443)
    }

    /// Whether this is our own cluster.
    pub fn is_own(&self) -> bool {
        self.own
    }

    fn need_own(&self) {
        assert!(self.own, "only our own cluster has this: the test's needs(...) do not say so");
    }

    /// The node, where there is a way to it.
    pub fn node_if_any(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The node.
    ///
    /// # Panics
    /// If there is no way to it: the test has to say `needs("...; node")`.
    pub fn node(&self) -> &Node {
        let way = "set LATEBIND_NODE_EXEC to a command that runs others as root on the node: docs/kubernetes.md";
        self.node.as_ref().unwrap_or_else(|| panic!("there is no way to the node of this cluster: {way}"))
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> usize {
        self.ask_json(&["get", "nodes"])["items"].as_array().map_or(0, Vec::len)
    }

    /// The server's version: major and minor number.
    pub fn server(&self) -> (u32, u32) {
        static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
        *VERSION.get_or_init(|| {
            let said = self.ask_json(&["version"]);
            // Some vendors add a plus sign.
            let number = |field: &str| {
                let text = said["serverVersion"][field].as_str().unwrap_or_default();
                let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
                digits.parse().unwrap_or_else(|e| panic!("the server's version: {field} is {text:?}: {e}"))
            };
            (number("major"), number("minor"))
        })
    }

    /// kubectl on this cluster, to be given its arguments.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).arg("--cache-dir").arg(&self.cache);
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        command
    }

    /// Renders a kustomization, whose path is below the project's directory or whole: with kubectl's own kustomize, or
    /// with one that knows components, which kubectl has from 1.21 on.
    #[track_caller]
    pub fn render(&self, directory: &str, components: bool) -> String {
        let mut command = self.kubectl();
        if components && self.own {
            command = Command::new(self.kubectl.with_file_name("kustomize"));
            command.arg("build").current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        } else {
            command.arg("kustomize");
        }
        let ran = Running::start(command.arg(directory), Vec::new()).finish(CALL_WITHIN);
        assert_eq!(ran.code, Some(0), "{directory}: {}", ran.err());
        ran.out()
    }

    /// Calls kubectl, to its end, whatever that is.
    pub fn call(&self, arguments: &[&str]) -> Ran {
        Running::start(self.kubectl().args(arguments), Vec::new()).finish(CALL_WITHIN)
    }

    /// Calls kubectl and returns its standard output.
    ///
    /// # Panics
    /// With what kubectl said, if it failed.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> String {
        self.ask_with_input(arguments, String::new())
    }

    /// The same with something on standard input.
    #[track_caller]
    pub fn ask_with_input(&self, arguments: &[&str], input: String) -> String {
        let ran = Running::start(self.kubectl().args(arguments), input.into_bytes()).finish(CALL_WITHIN);
        assert_eq!(ran.code, Some(0), "kubectl {}: {}", arguments.join(" "), ran.err());
        ran.out()
    }

    /// The same, with an answer in JSON.
    #[track_caller]
    pub fn ask_json(&self, arguments: &[&str]) -> Value {
        let said = self.ask(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("kubectl {}: {e}: {said}", arguments.join(" ")))
    }
}
