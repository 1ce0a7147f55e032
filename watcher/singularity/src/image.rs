//! Image names: from what jobs and glideins write to a full name in a registry.

use std::fs;
use std::io;
use std::path::Path;

use watcher::reference::Reference;
use watcher::text::printable;

/// Where the table of rewritten names is in the pilot container: lines `PREFIX REPLACEMENT`, the longest prefix counts.
pub const TABLE: &str = "/etc/latebind/images";

/// Rewritten prefixes, with what stands for them.
#[derive(Debug, Default)]
pub struct Table(Vec<(String, String)>);

impl Table {
    /// Reads the table; empty where there is no such file.
    pub fn open(path: &Path) -> Result<Self, String> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|e| format!("{}: {e}", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(format!("{}: {e}", path.display())),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut rows = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                [prefix, to] => rows.push(((*prefix).to_owned(), (*to).to_owned())),
                _ => return Err(format!("line {}: write PREFIX REPLACEMENT", n + 1)),
            }
        }
        rows.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(Self(rows))
    }

    /// The image in full: `docker.io/library/debian:12`. What is no image of a registry is refused, in words for its
    /// user.
    pub fn resolve(&self, image: &str) -> Result<String, String> {
        let rewritten = self.0.iter().find_map(|(prefix, to)| Some(format!("{to}{}", image.strip_prefix(prefix)?)));
        let name = rewritten.as_deref().unwrap_or(image);
        let name = name.strip_prefix("docker://").unwrap_or(name);
        if let Some((scheme, _)) = name.split_once("://") {
            return Err(format!(
                "the image {image:?} cannot be used here: \"{}://\" is not served, only docker://",
                printable(scheme)
            ));
        }
        if name.starts_with(['/', '.']) || [".sif", ".img", ".sqsh"].iter().any(|end| name.ends_with(end)) {
            return Err(format!(
                "the image {image:?} cannot be used here: it is a file or directory; name an image of a registry instead, as \
                 docker://NAME"
            ));
        }
        let reference = Reference::parse(name)?;
        let tag = match (&reference.tag, &reference.digest) {
            (Some(tag), _) => format!(":{tag}"),
            (None, None) => ":latest".into(),
            (None, Some(_)) => String::new(),
        };
        let digest = reference.digest.as_ref().map_or_else(String::new, |digest| format!("@{digest}"));
        Ok(format!("{}{tag}{digest}", reference.repository()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn names_are_written_in_full() {
        let table = Table::default();
        let digest = format!("sha256:{}", "a".repeat(64));
        for (given, full) in [
            ("docker://alpine:3.20", "docker.io/library/alpine:3.20"),
            ("docker://alpine", "docker.io/library/alpine:latest"),
            ("opensciencegrid/osgvo-el9", "docker.io/opensciencegrid/osgvo-el9:latest"),
            ("docker://registry.example.org:5000/a/b:1", "registry.example.org:5000/a/b:1"),
            ("docker://localhost/latebind/busybox:1", "localhost/latebind/busybox:1"),
        ] {
            assert_eq!(table.resolve(given).as_deref(), Ok(full));
        }
        assert_eq!(table.resolve(&format!("a/b@{digest}")), Ok(format!("docker.io/a/b@{digest}")));
    }

    #[test]
    fn the_table_maps_paths_to_registries() {
        let text = "# OSG\n/cvmfs/singularity.opensciencegrid.org/ docker.io/\n\n\
                    /cvmfs/singularity.opensciencegrid.org/mine/ registry.example.org/ours/\n";
        let table = Table::parse(text).unwrap();
        let name = |path: &str| table.resolve(&format!("/cvmfs/singularity.opensciencegrid.org/{path}"));
        assert_eq!(
            name("opensciencegrid/osgvo-el7:latest").as_deref(),
            Ok("docker.io/opensciencegrid/osgvo-el7:latest")
        );
        assert_eq!(name("mine/tool:2").as_deref(), Ok("registry.example.org/ours/tool:2"));
        assert!(table.resolve("/cvmfs/unpacked.cern.ch/x").is_err());
        assert!(Table::parse("one-word\n").is_err());
    }

    #[test]
    fn what_is_in_no_registry_is_refused() {
        for image in [
            "image.sif",
            "/cvmfs/x/y:1",
            "./sandbox",
            "oras://a/b:1",
            "library://a/b",
            "https://a/b.sif",
            "",
            "A B",
            "UPPER:1",
        ] {
            assert!(Table::default().resolve(image).is_err(), "{image}");
        }
    }
}
