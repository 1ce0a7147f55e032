//! What a test needs of a cluster. The first statement of each test says it:
//! `needs("1.20 or later; node, parts")`.

use std::fmt::{self, Display, Formatter};

use crate::access::{Cluster, cluster};
use crate::node::Node;

/// What a cluster may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A root shell on the node, and no other node.
    Node,
    /// Kubelet and API server that can be stopped and started again, with their logs.
    Parts,
    /// A node whose loopback interface is this machine's, so that it reaches the servers that tests make.
    Loopback,
    /// A node that has this machine's `/tmp`: what a test writes there is there at once.
    Files,
    /// Pods in the node's own network, and the API server on its loopback interface.
    HostNetwork,
    /// The two registries of our own cluster, one of them closed.
    Registries,
}

impl Need {
    const ALL: [Self; 6] = [Self::Node, Self::Parts, Self::Loopback, Self::Files, Self::HostNetwork, Self::Registries];

    /// Its word in `needs("...")`.
    fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Parts => "parts",
            Self::Loopback => "loopback",
            Self::Files => "files",
            Self::HostNetwork => "host network",
            Self::Registries => "registries",
        }
    }

    /// Why a cluster does not have it; `None` if it has.
    fn lacks(self, cluster: &Cluster) -> Option<&'static str> {
        let node = cluster.node_if_any();
        match self {
            Self::Node if node.is_none() => Some("a root shell on the node: set LATEBIND_NODE_EXEC"),
            Self::Node if cluster.nodes() != 1 => Some("a cluster of one node, which LATEBIND_NODE_EXEC leads to"),
            Self::Parts if !cluster.is_own() => {
                Some("a kubelet and an API server that can be stopped: our own cluster")
            }
            Self::Loopback if !node.is_some_and(|node| node.is_this_machine()) => {
                Some("a node that has this machine's loopback interface")
            }
            Self::Files if !node.is_some_and(Node::has_our_files) => Some("a node that has this machine's /tmp"),
            Self::HostNetwork if !cluster.is_own() => Some("pods in the node's network: our own cluster"),
            Self::Registries if !cluster.is_own() => Some("an open and a closed registry: our own cluster"),
            _ => None,
        }
    }
}

/// Which servers a test is for, and what else it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    from: (u32, u32),
    until: Option<(u32, u32)>,
    needs: Vec<Need>,
}

/// A version as `1.20`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Needs {
    /// Of `1.20 or later`, `1.20 to 1.31`, with `; node, parts` where it needs these.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (versions, words) = text.split_once(';').unwrap_or((text, ""));
        let wrong = || format!("\"{text}\": expected e.g. \"1.20 or later; node, parts\" or \"1.20 to 1.31\"");
        let (from, until) = match versions.split_once(" to ") {
            Some((from, until)) => (version(from), Some(version(until).ok_or_else(wrong)?)),
            None => (version(versions.strip_suffix(" or later").ok_or_else(wrong)?), None),
        };
        let need = |word: &str| {
            let found = Need::ALL.into_iter().find(|need| need.word() == word.trim());
            found.ok_or_else(|| format!("\"{text}\": {:?} is not one of {:?}", word.trim(), Need::ALL.map(Need::word)))
        };
        let needs = words.split(',').filter(|word| !word.trim().is_empty()).map(need).collect::<Result<_, _>>()?;
        Ok(Self { from: from.ok_or_else(wrong)?, until, needs })
    }

    /// Why a test with these needs is left out on a cluster; `None` if it can run there.
    pub fn lacking(&self, cluster: &Cluster) -> Option<String> {
        let server = cluster.server();
        if server < self.from || self.until.is_some_and(|until| server > until) {
            return Some(format!("it is for servers of {self}, and this one is {}.{}", server.0, server.1));
        }
        let lacking = self.needs.iter().find_map(|need| need.lacks(cluster));
        lacking.map(|what| format!("it needs {what}"))
    }
}

impl Display for Needs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.from;
        match self.until {
            Some(until) => write!(f, "{major}.{minor} to {}.{}", until.0, until.1),
            None => write!(f, "{major}.{minor} or later"),
        }
    }
}

/// Says what the calling test needs: the first statement of each test.
///
/// # Panics
/// Where the cluster does not have it: such a test is to be left out, and neither passes nor is skipped by itself.
#[track_caller]
pub fn needs(text: &str) {
    let needs = Needs::parse(text).unwrap_or_else(|e| panic!("{e}"));
    if let Some(lacking) = needs.lacking(cluster()) {
        panic!("this test does not run on this cluster: {lacking}; .ci/test-cluster.sh leaves such tests out");
    }
}

/// The tests of a source file, with what they say that they need.
///
/// # Errors
/// If one of them does not say it first.
pub fn of_source(source: &str) -> Result<Vec<(String, Needs)>, String> {
    let mut lines = source.lines().map(str::trim);
    let mut found = Vec::new();
    while lines.any(|line| line == "#[test]") {
        let mut rest = lines.by_ref().skip_while(|line| line.starts_with("#[") || line.starts_with("//"));
        let head = rest.next().unwrap_or_default();
        let name = head.strip_prefix("fn ").and_then(|head| head.split_once('('));
        let (name, _) = name.ok_or_else(|| format!("after #[test] comes {head:?}, and not a function"))?;
        let first = rest.next().unwrap_or_default();
        let text = first.strip_prefix("needs(\"").and_then(|first| first.strip_suffix("\");"));
        let text = text.ok_or_else(|| format!("{name}: its first line is not needs(\"...\"), but {first:?}"))?;
        found.push((name.to_owned(), Needs::parse(text).map_err(|e| format!("{name}: {e}"))?));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn needs_are_read() {
        let plain = Needs::parse("1.20 or later").unwrap();
        assert_eq!((plain.from, plain.until, plain.needs.as_slice()), ((1, 20), None, [].as_slice()));
        let all = Needs::parse("1.9 to 1.31; node, host network,parts").unwrap();
        assert_eq!((all.from, all.until), ((1, 9), Some((1, 31))));
        assert_eq!(all.needs, [Need::Node, Need::HostNetwork, Need::Parts]);
        for wrong in ["", "1.20", "or later", "1 or later", "1.20 to", "1.20 or later; nod", "1.20 or later, node"] {
            assert!(Needs::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_test_that_does_not_say_what_it_needs_is_named() {
        let good = "#[test]\n#[ignore]\n// why\nfn one() {\n    needs(\"1.20 or later\");\n}\n";
        assert_eq!(of_source(good).unwrap()[0].0, "one");
        let bad = format!("{good}#[test]\nfn another() {{\n    let pilot = Pilot::start();\n}}\n");
        assert!(of_source(&bad).unwrap_err().contains("another"));
    }

    /// `--skip` with `--exact` goes by the name alone, for all files.
    #[test]
    fn all_tests_here_say_what_they_need_and_no_two_have_one_name() {
        let mut names = BTreeMap::new();
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap() {
            let path = entry.unwrap().path();
            let source = std::fs::read_to_string(&path).unwrap();
            let tests = of_source(&source).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(tests.len(), source.matches("#[test]").count(), "{}", path.display());
            for (name, _) in tests {
                if let Some(other) = names.insert(name.clone(), path.clone()) {
                    panic!("{name} is in {} and in {}", other.display(), path.display());
                }
            }
        }
        assert!(names.len() > 60, "{names:?}");
    }
}
